//! From what a driver published to memory, over a map of its own with holes and neighbours.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use proptest::prelude::*;
use ringfence_memory::fuchsia::*;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

type Guest = GuestMemoryHeap<AtomicBitmap>;

fn guest(ranges: &[(u64, usize)]) -> Guest {
    let ranges: Vec<_> = ranges.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
    Guest::from_ranges(&ranges).unwrap()
}

fn dirty(guest: &Guest) -> Vec<usize> {
    let bitmap = guest.iter().next().unwrap().bitmap();
    (0..bitmap.len()).filter(|page| bitmap.is_bit_set(*page)).collect()
}

/// What may be written is marked when it is translated: those pages, and no other.
#[test]
fn translated_pages_are_dirty() {
    for (start, len, pages) in [
        (4095, 1, &[0][..]),
        (4096, 1, &[1]),
        (4095, 2, &[0, 1]),
        (0, 4096, &[0]),
        (4096, 8192, &[1, 2]),
        (1, 8192, &[0, 1, 2]),
        (8192, 0, &[]),
    ] {
        let guest = guest(&[(0x10_0000, 4 * 4096)]);
        assert_eq!(
            guest.translate(DriverRange(0x10_0000 + start..0x10_0000 + start + len)).unwrap().len(),
            len
        );
        assert_eq!(dirty(&guest), pages, "{start} + {len}");
    }
    // What may only be read is not.
    struct ReadOnly(Guest);
    impl GuestMemory for ReadOnly {
        type R = <Guest as GuestMemory>::R;
        fn iter(&self) -> impl Iterator<Item = &Self::R> {
            self.0.iter()
        }
        fn get_slice(
            &self,
            addr: GuestAddress,
            count: usize,
        ) -> GuestMemoryResult<VolatileSlice<'_, MS<'_, Self>>> {
            Ok(self.0.get_slice(addr, count)?.restrict(Direction::ToDevice))
        }
    }
    let guest = ReadOnly(guest(&[(0, 4096)]));
    assert!(guest.translate(DriverRange(0..8)).unwrap().try_mut_ptr::<u8>().is_none());
    assert!(dirty(&guest.0).is_empty());
}

#[test]
fn a_range_is_reached_by_offset() {
    let guest = guest(&[(0x1000, 64)]);
    let range = guest.translate(DriverRange(0x1008..0x1018)).unwrap();
    assert_eq!((range.write(&[1, 2, 3], 14), range.write_slice(&[4, 5], 0)), (Ok(2), Ok(())));
    let mut seen = [0; 3];
    assert_eq!((range.read(&mut seen, 14), seen), (Ok(2), [1, 2, 0]));
    assert_eq!((range.read_slice(&mut seen[..2], 0), seen), (Ok(()), [4, 5, 0]));
    assert_eq!(
        (range.store(0x0706_u16, 2, Release), range.load::<u32>(0, Acquire)),
        (Ok(()), Ok(0x0706_0504))
    );
    assert_eq!(guest.read_obj::<[u8; 4]>(GuestAddress(0x1008)), Ok([4, 5, 6, 7]));
    let outside = Err(VolatileError::OutOfBounds);
    assert_eq!((range.write(&[1], 16), range.read(&mut [1], 16)), (outside, outside));
    assert_eq!(
        (range.write_slice(&[1], 16), range.read_slice(&mut [1], 16)),
        (Err(VolatileError::OutOfBounds), Err(VolatileError::OutOfBounds))
    );
    assert_eq!(range.load::<u16>(1, Relaxed), Err(VolatileError::Misaligned));
    assert_eq!(range.as_volatile_slice().len(), 16);
}

#[test]
fn ranges_of_our_own() {
    let guest = guest(&[(0, 64)]);
    let start = guest.get_host_address(GuestAddress(0)).unwrap().expose_provenance();
    let range = unsafe { DeviceRange::new(start..start + 64) };
    assert_eq!((range.get(), range.len(), range.is_empty()), (start..start + 64, 64, false));
    assert_eq!(range, guest.translate(DriverRange(0..64)).unwrap());
    assert_ne!(range, guest.translate(DriverRange(0..63)).unwrap());
    assert_ne!(range, guest.translate(DriverRange(1..64)).unwrap());
    assert_eq!(range.try_ptr::<[u64; 8]>().map(|at| at.addr()), Some(start));
    assert_eq!(range.try_mut_ptr::<[u64; 8]>().map(|at| at.addr()), Some(start));
    assert!(range.try_ptr::<[u64; 9]>().is_none() && range.try_mut_ptr::<[u8; 65]>().is_none());
    let odd = range.split_at(1).unwrap().1;
    assert!(
        odd.try_ptr::<u8>().is_some() && odd.try_ptr::<u16>().is_none() && odd.try_mut_ptr::<u64>().is_none()
    );
    // There is nothing at the null pointer, and nothing backwards.
    assert!(unsafe { DeviceRange::new(0..16) }.is_empty());
    let backwards = unsafe { DeviceRange::new(start + 8..start) };
    assert_eq!((backwards.get(), backwards.is_empty()), (start + 8..start + 8, true));
}

#[test]
#[expect(clippy::reversed_empty_ranges)]
fn published_ranges() {
    let range = DriverRange(10..20);
    assert_eq!((range.len(), range.is_empty(), DriverRange(10..10).is_empty()), (10, false, true));
    assert_eq!(range.split_at(4), Some((DriverRange(10..14), DriverRange(14..20))));
    assert_eq!(range.split_at(0), Some((DriverRange(10..10), DriverRange(10..20))));
    assert_eq!(range.split_at(10), Some((DriverRange(10..20), DriverRange(20..20))));
    assert_eq!((range.split_at(11), range.split_at(usize::MAX)), (None, None));
    let backwards = DriverRange(20..10);
    assert_eq!((backwards.len(), backwards.is_empty(), backwards.split_at(1)), (0, true, None));
    assert_eq!(DriverRange::try_from((16, 4)), Ok(DriverRange::from(16..20)));
    assert_eq!(DriverRange::try_from((u64::MAX - 4, 4)), Ok(DriverRange(usize::MAX - 4..usize::MAX)));
    assert_eq!(DriverRange::try_from((u64::MAX - 3, 4)), Err(RangeError::OutOfSpace));
    assert_eq!(DriverRange::try_from((u64::MAX, u32::MAX)), Err(RangeError::OutOfSpace));
}

proptest! {
    /// A range is translated if its bytes, one by one, are all of one region; then it is these bytes.
    #[test]
    fn only_whole_ranges_of_one_region(
        start in 0_usize..0x120,
        len in 0_usize..0x60,
        backwards in any::<bool>(),
    ) {
        let ranges = [(0x20, 0x30), (0x50, 0x10), (0x80, 0x41)];
        let guest = guest(&ranges);
        let end = if backwards { start.saturating_sub(len) } else { start + len };
        let driver = DriverRange(start..end);
        let region = ranges.iter().find(|(at, len)| (*at as usize..*at as usize + len).contains(&start));
        let fits = region.is_some_and(|(at, size)| start + len <= *at as usize + size);
        let found = guest.translate(driver.clone());
        let reversed = driver.0.end < driver.0.start;
        let serves = if driver.is_empty() { region.is_some() } else { fits };
        prop_assert_eq!(found.is_some(), !reversed && serves);
        if let Some(range) = found {
            prop_assert_eq!(range.len(), driver.len());
            range.write_slice(&vec![9; range.len()], 0).unwrap();
            for (at, size) in ranges {
                for at in at as usize..at as usize + size {
                    let value = guest.read_obj::<u8>(GuestAddress(at as u64)).unwrap();
                    prop_assert_eq!(value, if driver.0.contains(&at) { 9 } else { 0 });
                }
            }
        }
    }
}
