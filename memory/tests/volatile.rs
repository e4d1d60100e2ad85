//! Copies of shared bytes, of every length and alignment, against plain slices.

use proptest::prelude::*;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

const LEN: usize = 1200;

type Region = GuestRegionHeap<AtomicBitmap>;

fn region(len: usize) -> Region {
    Region::new(GuestAddress(0), len).unwrap()
}

/// Bytes that all differ from their neighbours.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index / 256) as u8) ^ seed).collect()
}

fn contents(slice: &VolatileSlice<'_, impl BitmapSlice>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// Each length up to several of the largest moves, at each offset in a word, changes what it is to and
/// nothing else.
#[test]
fn copies_of_every_length_and_alignment() {
    let region = region(LEN);
    let slice = region.as_volatile_slice().unwrap();
    let mut model = vec![0; LEN];
    for len in (0..300).chain([383, 384, 511, 513, 777]) {
        for offset in 0..8 {
            let bytes = pattern(len as u8, len);
            slice.write_slice(&bytes, offset).unwrap();
            model[offset..][..len].copy_from_slice(&bytes);
            let mut seen = vec![0xee; len + 2];
            slice.read_slice(&mut seen[1..=len], offset).unwrap();
            assert_eq!((seen[0], seen[len + 1]), (0xee, 0xee));
            assert_eq!(seen[1..=len], bytes);
            assert!(contents(&slice) == model, "{len} at {offset}");
        }
    }
}

#[test]
fn slices_are_copied_and_filled_whole() {
    let (from, to) = (region(LEN), region(LEN));
    let (from, all) = (from.as_volatile_slice().unwrap(), to.as_volatile_slice().unwrap());
    for len in [0, 1, 255, 256, 257, 600, 1100] {
        let (bytes, mut model) = (pattern(len as u8, len), contents(&all));
        from.write_slice(&bytes, 3).unwrap();
        model[5..][..len].copy_from_slice(&bytes);
        let (short, long) = (from.subslice(3, len).unwrap(), all.offset(5).unwrap());
        assert_eq!(short.copy_to_volatile_slice(&long), Ok(len));
        assert_eq!(long.copy_to_volatile_slice(&short), Ok(len), "as many as both have");
        assert!(contents(&all) == model);
        all.subslice(7, len).unwrap().fill(len as u8).unwrap();
        model[7..][..len].fill(len as u8);
        assert!(contents(&all) == model);
    }
    // Overlapping slices, from the front: the first piece is read before it is written.
    let overlap = region(64);
    let slice = overlap.as_volatile_slice().unwrap();
    slice.write_slice(&pattern(0, 64), 0).unwrap();
    slice.subslice(0, 32).unwrap().copy_to_volatile_slice(&slice.offset(8).unwrap()).unwrap();
    assert_eq!(contents(&slice)[8..40], pattern(0, 64)[..32]);
}

#[test]
fn what_is_refused_changes_nothing() {
    let region = region(16);
    let slice = region.as_volatile_slice().unwrap();
    let outside = Err(VolatileError::OutOfBounds);
    for (offset, len) in [(16, 1), (15, 2), (17, 1), (0, 17), (usize::MAX, 1), (usize::MAX, usize::MAX)] {
        assert_eq!(slice.subslice(offset, len).map(|_| ()), outside);
        let mut buffer = vec![7; len.min(20)];
        assert_eq!(slice.write_slice(&buffer, offset), outside);
        assert_eq!(slice.read_slice(&mut buffer, offset), outside);
        assert!(buffer.iter().all(|byte| *byte == 7));
    }
    assert!(!region.bitmap().dirty_at(0) && contents(&slice) == [0; 16]);
    assert_eq!((VolatileSlice::empty().len(), VolatileSlice::empty().is_empty()), (0, true));
    // A part of what is there, but not nothing of it.
    assert_eq!((slice.write(&[1; 4], 14), slice.read(&mut [0; 4], 13)), (Ok(2), Ok(3)));
    assert_eq!((slice.write(&[1], 16), slice.read(&mut [0], 16)), (outside.map(|()| 0), outside.map(|()| 0)));
    assert_eq!((slice.write(&[1], 99), slice.read(&mut [0], 99)), (outside.map(|()| 0), outside.map(|()| 0)));
    for offset in [0, 16, 17, usize::MAX] {
        assert_eq!((slice.write(&[], offset), slice.read(&mut [], offset)), (Ok(0), Ok(0)));
        assert_eq!((slice.write_slice(&[], offset), slice.read_slice(&mut [], offset)), (Ok(()), Ok(())));
    }
    assert_eq!(
        (slice.offset(16).map(|rest| rest.len()), slice.offset(17).map(|_| 0)),
        (Ok(0), outside.map(|()| 0))
    );
    assert!(slice.split_at(16).is_ok() && slice.split_at(17).is_err());
    let nothings = slice.get_array_ref::<()>(16, 2).unwrap();
    assert_eq!((nothings.load(1), nothings.load(2)), (Ok(()), outside));
    assert_eq!((slice.get_array_ref::<u8>(16, 0).unwrap().is_empty(), slice.is_empty()), (true, false));
}

#[test]
fn directions_are_kept() {
    use core::sync::atomic::Ordering::Relaxed;
    let region = region(16);
    let slice = region.as_volatile_slice().unwrap();
    let refused = Err(VolatileError::NotPermitted);
    let (reads, writes) = (slice.restrict(Direction::ToDevice), slice.restrict(Direction::FromDevice));
    assert_eq!(
        (reads.direction(), writes.direction(), slice.direction()),
        (Direction::ToDevice, Direction::FromDevice, Direction::Both)
    );
    assert_eq!((reads.write(&[1], 0), reads.write_slice(&[1], 0)), (refused.map(|()| 0), refused));
    assert_eq!((reads.store(1_u8, 0, Relaxed), reads.fill(1)), (refused, refused));
    assert_eq!((writes.read(&mut [1], 0), writes.read_slice(&mut [1], 0)), (refused.map(|()| 0), refused));
    assert_eq!(writes.load::<u8>(0, Relaxed), refused.map(|()| 0));
    assert_eq!(writes.copy_to_volatile_slice(&slice), refused.map(|()| 0));
    assert_eq!(slice.copy_to_volatile_slice(&reads), refused.map(|()| 0));
    assert_eq!((writes.write_slice(&[5], 0), reads.read_obj::<u8>(0)), (Ok(()), Ok(5)));
    assert_eq!(
        (reads.restrict(Direction::ToDevice).len(), writes.restrict(Direction::FromDevice).len()),
        (16, 16)
    );
    assert_eq!(
        (reads.restrict(Direction::FromDevice).len(), writes.restrict(Direction::ToDevice).len()),
        (0, 0)
    );
    assert_eq!(writes.restrict(Direction::Both).direction(), Direction::FromDevice);
    let part = reads.subslice(3, 4).unwrap();
    assert_eq!((part.direction(), part.len()), (Direction::ToDevice, 4));
}

#[test]
fn accesses_are_whole_and_aligned() {
    use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
    let region = region(16);
    let slice = region.as_volatile_slice().unwrap();
    for order in [Relaxed, Release, SeqCst] {
        slice.store(0x0807_0605_0403_0201_u64, 8, order).unwrap();
    }
    for order in [Relaxed, Acquire, SeqCst] {
        assert_eq!(slice.load::<u64>(8, order), Ok(0x0807_0605_0403_0201));
    }
    assert_eq!((slice.load(12, Relaxed), slice.load(14, Relaxed)), (Ok(0x0807_0605_u32), Ok(0x0807_u16)));
    assert_eq!(slice.load(15, Relaxed), Ok(8_u8));
    let misaligned = Err(VolatileError::Misaligned);
    assert_eq!(
        (slice.load(1, Relaxed), slice.store(1_u16, 3, Relaxed)),
        (misaligned.map(|()| 0_u16), misaligned)
    );
    assert_eq!(
        (slice.load(2, Relaxed), slice.store(1_u32, 6, Relaxed)),
        (misaligned.map(|()| 0_u32), misaligned)
    );
    assert_eq!(
        (slice.load(4, Relaxed), slice.store(1_u64, 4, Relaxed)),
        (misaligned.map(|()| 0_u64), misaligned)
    );
    assert_eq!(slice.store(1_u64, 16, Relaxed), Err(VolatileError::OutOfBounds));
}

proptest! {
    /// Every way of writing marks the pages of what it wrote, and no others; parts of slices mark the same
    /// pages.
    #[test]
    fn writes_mark_their_pages(
        steps in prop::collection::vec((0_usize..6 * 4096, 0_usize..2 * 4096, 0_u8..6, 0_usize..4096), 1..8)
    ) {
        let region = region(6 * PAGE_SIZE - 100);
        let all = region.as_volatile_slice().unwrap();
        let mut dirty = std::collections::BTreeSet::new();
        for (at, len, way, inner) in steps {
            // The same place, seen from a part of the slice that starts before it.
            let start = at.saturating_sub(inner);
            let Ok(part) = all.offset(start) else { continue };
            let (offset, bytes) = (at - start, vec![1; len]);
            let done = match way {
                0 => part.write(&bytes, offset).unwrap_or(0),
                1 => part.write_slice(&bytes, offset).map_or(0, |()| len),
                2 => part.store(1_u64, offset, core::sync::atomic::Ordering::Relaxed).map_or(0, |()| 8),
                3 => part.subslice(offset, len).map_or(0, |part| part.fill(1).map(|()| len).unwrap()),
                4 => part
                    .get_array_ref::<u16>(offset, len / 2)
                    .map_or(0, |array| array.copy_from(&vec![1; len]).unwrap() * 2),
                _ => part.get_ref::<u32>(offset).and_then(|value| value.store(1)).map_or(0, |()| 4),
            };
            dirty.extend((at..at + done).map(|at| at / PAGE_SIZE));
            for page in 0..8 {
                prop_assert_eq!(region.bitmap().is_bit_set(page), dirty.contains(&page));
                prop_assert_eq!(region.bitmap().dirty_at(page * PAGE_SIZE + inner), dirty.contains(&page));
                if let Some(within) = (page * PAGE_SIZE).checked_sub(start) {
                    prop_assert_eq!(part.bitmap().dirty_at(within), dirty.contains(&page));
                }
            }
            prop_assert_eq!(region.bitmap().dirty_pages(), dirty.len());
        }
        region.bitmap().reset();
        prop_assert_eq!(region.bitmap().dirty_pages(), 0);
    }
}

#[test]
fn bitmaps_at_their_edges() {
    let bitmap = AtomicBitmap::with_len(130 * PAGE_SIZE + 1);
    assert_eq!((bitmap.len(), bitmap.is_empty(), AtomicBitmap::with_len(0).is_empty()), (131, false, true));
    bitmap.mark_dirty(0, 0);
    bitmap.mark_dirty(131 * PAGE_SIZE, 1);
    bitmap.mark_dirty(usize::MAX, usize::MAX);
    AtomicBitmap::with_len(0).mark_dirty(0, 1);
    assert_eq!(bitmap.dirty_pages(), 0, "of no bytes, and behind the end");
    bitmap.mark_dirty(63 * PAGE_SIZE, PAGE_SIZE + 1);
    bitmap.mark_dirty(130 * PAGE_SIZE, usize::MAX);
    let dirty: Vec<_> = (0..300).filter(|page| bitmap.is_bit_set(*page)).collect();
    assert_eq!(dirty, [63, 64, 130]);
    assert_eq!(format!("{bitmap:?}"), "AtomicBitmap(3 of 131 pages dirty)");
    let part = WithBitmapSlice::slice_at(&bitmap, 63 * PAGE_SIZE);
    assert!(part.dirty_at(2 * PAGE_SIZE - 1) && !part.dirty_at(2 * PAGE_SIZE) && !part.dirty_at(usize::MAX));
    ().mark_dirty(0, 1);
    assert!(!().dirty_at(0), "it records nothing");
}
