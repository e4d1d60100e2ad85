//! Arrays and descriptors in DMA memory: checked once, and then at each index.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use proptest::prelude::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

const DEVICE: DeviceId = DeviceId(0x08);
const PAGE: usize = 4096;

fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

fn windows() -> DmaWindows {
    DmaWindows::for_model(platform(), DEVICE).unwrap()
}

fn out_of_bounds<T>(result: Result<T, DmaError>) -> bool {
    matches!(result, Err(DmaError::Access(VolatileError::OutOfBounds)))
}

fn misaligned<T>(result: Result<T, DmaError>) -> bool {
    matches!(result, Err(DmaError::Access(VolatileError::Misaligned)))
}

#[test]
fn arrays_lie_in_their_region_and_are_aligned() {
    let region = windows().allocate(2 * PAGE).unwrap();
    let len = region.len();
    assert_eq!(region.array::<u64>(0, len / 8).unwrap().len(), len / 8);
    assert_eq!(region.array::<u32>(len - 4, 1).unwrap().len(), 1);
    assert_eq!(region.array::<u8>(len - 1, 1).unwrap().len(), 1);
    assert!(out_of_bounds(region.array::<u16>(6, 0)), "none");
    for (offset, count) in [
        (0, len / 8 + 1),
        (8, len / 8),
        (len, 1),
        (len + 8, 0),
        (usize::MAX - 7, 1),
        (0, usize::MAX / 8 + 1),
        (8, usize::MAX / 8),
        (usize::MAX, usize::MAX),
    ] {
        assert!(out_of_bounds(region.array::<u64>(offset, count)), "{count} from {offset}");
    }
    for offset in 1..8 {
        assert!(misaligned(region.array::<u64>(offset, 1)));
        assert_eq!(misaligned(region.array::<u32>(offset, 1)), offset % 4 != 0);
        assert_eq!(misaligned(region.array::<u16>(offset, 1)), offset % 2 != 0);
        assert!(region.array::<u8>(offset, 1).is_ok());
    }
}

#[test]
fn nothing_beyond_the_end() {
    let windows = windows();
    let region = windows.allocate(PAGE).unwrap();
    let array = region.array::<u32>(8, 3).unwrap();
    assert!(!array.is_empty());
    region.as_volatile_slice().fill(0xa5).unwrap();
    for index in [3, 4, 1000, usize::MAX / 4, usize::MAX / 4 + 1, usize::MAX] {
        assert_eq!((array.load(index, Relaxed), array.store(index, 0, Relaxed)), (None, None), "{index}");
        assert!(array.address(index).is_none());
    }
    let mut bytes = [0; PAGE];
    region.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0xa5; PAGE], "a refused store left no trace");
    let buffer = DmaPool::new(&windows, 2, 64).unwrap().take().unwrap();
    // O23: nothing begins at the end.
    for (offset, len) in [(0, 0), (64, 0), (0, 65), (63, 2), (usize::MAX, 1), (1, usize::MAX)] {
        assert!(buffer.segment(offset, len, false).is_none(), "{len} from {offset}");
    }
    assert!(buffer.segment(63, 1, true).is_some_and(|last| last.len() == 1 && last.is_writable()));
}

/// O11: a segment goes the way that its memory is for.
#[test]
fn segments_have_a_direction() {
    let windows = windows();
    for (direction, read, write) in [
        (Direction::ToDevice, true, false),
        (Direction::FromDevice, false, true),
        (Direction::Both, true, true),
    ] {
        let pool = DmaPool::new_for(&windows, 1, 64, direction).unwrap();
        let buffer = pool.take().unwrap();
        for (writable, allowed) in [(false, read), (true, write)] {
            assert_eq!(buffer.segment(0, 64, writable).is_some(), allowed, "{direction:?}");
        }
    }
}

/// Block by block and word by word, where the device finds them too.
#[test]
fn blocks_lie_one_after_the_other() {
    let windows = windows();
    let blocks = DmaBlocks::<3>::new(&windows, 5).unwrap();
    assert_eq!((blocks.len(), blocks.is_empty()), (5, false));
    for index in [5, 6, 1000, usize::MAX / 24 + 1, usize::MAX] {
        assert!(blocks.get(index).is_none(), "{index}");
    }
    for index in 0..5 {
        let (block, value) = (blocks.get(index).unwrap(), 10 * index as u64);
        assert_eq!(block.load::<1>(Acquire), 0, "zero at first");
        block.store::<0>(value, Release);
        block.store::<1>(value + 1, Relaxed);
        block.store::<2>(value + 2, Relaxed);
    }
    let mut table = DescriptorTable::<Split>::new(&windows, 4, 0, Direction::ToDevice).unwrap();
    for index in 0..5 {
        let (block, value) = (blocks.get(index).unwrap(), 10 * index as u64);
        let words = [block.load::<0>(Acquire), block.load::<1>(Relaxed), block.load::<2>(Relaxed)];
        assert_eq!(words, [value, value + 1, value + 2]);
        for beyond in [index + 8, index + (usize::MAX & !7)] {
            assert_eq!(blocks.get_wrapping(beyond).load::<0>(Relaxed), value, "there is room for eight");
        }
        table.store(0, &block.segment::<0, 24>(false), 0, Relaxed).unwrap();
        table.store(1, &block.segment::<2, 1>(true), 0, Relaxed).unwrap();
        let [(whole, rest), (last, written)] = [0, 1].map(|at| descriptor(&windows, &table, at));
        assert_eq!((rest, last - whole, written), (24, 16, 1 | 2 << 32));
        let found = windows.readable().unwrap().read_obj::<[u64; 3]>(GuestAddress(whole));
        assert_eq!(found, Ok(words), "as the device finds it");
        windows.writable().unwrap().write_obj(0xab_u8, GuestAddress(last)).unwrap();
        assert_eq!(block.load::<2>(Acquire) as u8, 0xab);
    }
    assert!(DmaBlocks::<3>::new(&windows, 0).is_err() && DmaBlocks::<3>::new(&windows, usize::MAX).is_err());
    drop(blocks);
    assert_eq!(windows.usage().1, PAGE, "they own their memory");
}

/// Whatever a length that wrapped would say.
#[test]
fn blocks_longer_than_memory() {
    const WORDS: usize = usize::MAX / 8 + 2;
    let windows = windows();
    for count in [0, 1, 2, usize::MAX] {
        assert_eq!(DmaBlocks::<WORDS>::new(&windows, count).map(drop), Err(DmaError::BadLength));
        assert_eq!(DmaBlocks::<0>::new(&windows, count).map(drop), Err(DmaError::BadLength));
    }
    assert_eq!(windows.usage(), (0, 0));
}

#[test]
fn one_block_and_more_than_a_page_of_them() {
    for (count, pages) in [(1, 1), (128, 1), (129, 2), (256, 2), (257, 3)] {
        let windows = windows();
        let blocks = DmaBlocks::<3>::new(&windows, count).unwrap();
        assert_eq!((blocks.len(), blocks.is_empty()), (count, false));
        assert_eq!(windows.usage().0, pages * PAGE, "{count}");
        blocks.get(count - 1).unwrap().store::<2>(7, Release);
    }
}

/// A descriptor as the device reads it: its two halves.
fn descriptor<F: RingFormat>(windows: &DmaWindows, table: &DescriptorTable<F>, index: usize) -> (u64, u64) {
    let start = windows.publish(table.address()).unwrap();
    let halves: [u64; 2] =
        windows.readable().unwrap().read_obj(GuestAddress(start.0 + 16 * index as u64)).unwrap();
    (u64::from_le(halves[0]), u64::from_le(halves[1]))
}

/// O13: the length is the segment's, and what the address is no bit of the caller's decides.
#[test]
fn a_descriptor_says_what_its_segment_is() {
    fn check<F: RingFormat>(windows: &DmaWindows, flags: u32) {
        let mut table = DescriptorTable::<F>::new(windows, 4, 0, Direction::ToDevice).unwrap();
        assert_eq!((table.len(), table.is_empty()), (4, false));
        let pool = DmaPool::new(windows, 1, 512).unwrap();
        let buffer = pool.take().unwrap();
        let at = windows.publish(buffer.address()).unwrap().raw_value();
        let (write, indirect) = (2_u64 << flags, 4_u64 << flags);
        let free = !(u64::from(u32::MAX) | write | indirect);
        for writable in [false, true] {
            let segment = buffer.segment(100, 300, writable).unwrap();
            let expected = 300 | free | if writable { write } else { 0 };
            table.store(2, &segment, u64::MAX, Release).unwrap();
            assert_eq!(descriptor(windows, &table, 2), (at + 100, expected));
            assert_eq!(table.load_rest(2, Acquire), Some(expected));
            table.store(2, &segment, 0, Release).unwrap();
            assert_eq!(descriptor(windows, &table, 2), (at + 100, expected & !free));
            // The same held back.
            table.clear();
            assert_eq!(descriptor(windows, &table, 2), (0, 0));
            assert!(!table.store_held(Release));
            table.hold(1, [(&segment, u64::MAX)]).unwrap();
            assert_eq!(descriptor(windows, &table, 1), (0, 0), "neither half");
            assert!(table.store_held(Release));
            assert_eq!(descriptor(windows, &table, 1), (at + 100, expected));
            assert!(!table.store_held(Release));
        }
        let segment = buffer.segment(0, 1, false).unwrap();
        for index in [4, 5, 1000, usize::MAX / 2, usize::MAX / 2 + 1, usize::MAX] {
            assert!(out_of_bounds(table.store(index, &segment, 0, Relaxed)), "{index}");
            assert!(out_of_bounds(table.hold(index, [(&segment, 0)])));
            assert_eq!(table.load_rest(index, Relaxed), None);
        }
        assert!(
            out_of_bounds(table.hold(3, [(&segment, 0); 2]))
                && out_of_bounds(table.hold(0, [(&segment, 0); 5]))
        );
        assert!(!table.store_held(Relaxed), "nothing is held of what was refused");
        // Of a chain only the first is held, and of two chains that of the first.
        table.clear();
        table.hold(0, [(&segment, 0), (&segment, 1 << 63)]).unwrap();
        table.hold(2, [(&segment, 0)]).unwrap();
        let lens = [0, 1, 2].map(|index| descriptor(windows, &table, index).1 as u32);
        assert_eq!(lens, [0, 1, 1]);
        table.clear();
        assert!(!table.store_held(Relaxed), "forgotten");
    }
    /// What was held goes with its own address, whatever was written in its place meanwhile.
    fn pairs<F: RingFormat>(windows: &DmaWindows) {
        let mut table = DescriptorTable::<F>::new(windows, 4, 0, Direction::ToDevice).unwrap();
        let indirect = DescriptorTable::<F>::new(windows, 4, 0, Direction::ToDevice).unwrap();
        let pool = DmaPool::new(windows, 2, 512).unwrap();
        let (long, short) = (pool.take().unwrap(), pool.take().unwrap());
        let (long, short) = (long.segment(0, 512, false).unwrap(), short.segment(511, 1, false).unwrap());
        table.store(1, &long, 0, Relaxed).unwrap();
        let its_own = descriptor(windows, &table, 1);
        table.hold(0, [(&long, 0)]).unwrap();
        table.store(0, &short, 0, Relaxed).unwrap();
        assert!(table.store_held(Release));
        assert_eq!(descriptor(windows, &table, 0), its_own);
        table.store_indirect(0, (&indirect, 0, 4), 0, false).unwrap();
        let refers = descriptor(windows, &table, 0);
        table.hold(0, [(&short, 0)]).unwrap();
        assert_eq!(descriptor(windows, &table, 0), refers, "no address beside another's length");
        assert!(table.store_held(Release));
        table.store_indirect(0, (&indirect, 0, 4), 0, true).unwrap();
        table.store(0, &short, 0, Relaxed).unwrap();
        assert!(table.store_held(Release));
        assert_eq!(descriptor(windows, &table, 0), refers);
    }
    let windows = windows();
    check::<Split>(&windows, 32);
    check::<Packed>(&windows, 48);
    pairs::<Split>(&windows);
    pairs::<Packed>(&windows);
}

/// As `store` does, but round and round: and to no other descriptor.
#[test]
fn descriptors_are_stored_round_and_round() {
    let windows = windows();
    let mut table = DescriptorTable::<Split>::new(&windows, 8, 0, Direction::ToDevice).unwrap();
    let buffer = DmaPool::new(&windows, 1, 512).unwrap().take().unwrap();
    let at = at_of(&windows, &buffer);
    for index in [0, 7, 8, 11, 1000, usize::MAX] {
        for (writable, bits) in [(false, u64::MAX), (true, 0), (true, 1 << 32 | 5 << 48)] {
            let segment = buffer.segment(100, 300, writable).unwrap();
            let before: Vec<_> = (0..8).map(|at| descriptor(&windows, &table, at)).collect();
            table.store_wrapping(index, &segment, bits, Release).unwrap();
            let rest = 300 | bits & !(u64::from(u32::MAX) | 6 << 32) | if writable { 2 << 32 } else { 0 };
            for (other, before) in before.into_iter().enumerate() {
                let expected = if other == index % 8 { (at + 100, rest) } else { before };
                assert_eq!(descriptor(&windows, &table, other), expected, "{index}");
            }
        }
    }
    // Of another length some descriptor is written, but nothing beyond them.
    let mut odd = DescriptorTable::<Packed>::new(&windows, 5, 64, Direction::Both).unwrap();
    let behind = odd.array_after::<u64>(8).unwrap();
    let segment = buffer.segment(0, 1, false).unwrap();
    for index in [0, 5, 6, 7, 12, usize::MAX] {
        odd.clear();
        odd.store_wrapping(index, &segment, 0, Relaxed).unwrap();
        assert_eq!(
            (0..5).filter(|&at| descriptor(&windows, &odd, at) == (at_of(&windows, &buffer), 1)).count(),
            1
        );
        assert!((0..8).all(|at| behind.load(at, Relaxed) == Some(0)), "{index}");
    }
    let theirs = DmaWindows::for_model(platform(), DEVICE).unwrap();
    let foreign = DmaPool::new(&theirs, 1, 512).unwrap().take().unwrap();
    let before = descriptor(&windows, &table, 0);
    let refused = table.store_wrapping(0, &foreign.segment(0, 1, true).unwrap(), 0, Relaxed);
    assert_eq!((refused, descriptor(&windows, &table, 0)), (Err(DmaError::WrongDevice), before));
}

/// Where the device finds a buffer.
fn at_of(windows: &DmaWindows, buffer: &DmaBuf) -> u64 {
    windows.publish(buffer.address()).unwrap().raw_value()
}

#[test]
fn a_table_refers_to_its_own_devices_tables_of_its_own_life() {
    let host = platform();
    let (ours, theirs) = (windows(), DmaWindows::for_model(host, DeviceId(9)).unwrap());
    let table =
        |windows, count| DescriptorTable::<Split>::new(windows, count, 0, Direction::ToDevice).unwrap();
    let (mut ring, indirect, foreign) = (table(&ours, 4), table(&ours, 8), table(&theirs, 8));
    assert_eq!(ring.store_indirect(0, (&foreign, 0, 1), 0, false), Err(DmaError::WrongDevice));
    for (first, count) in [(0, 0), (8, 0), (0, 9), (7, 2), (8, 1), (usize::MAX, 2), (2, usize::MAX)] {
        assert!(
            out_of_bounds(ring.store_indirect(0, (&indirect, first, count), 0, false)),
            "{count} from {first}"
        );
    }
    assert!(out_of_bounds(ring.store_indirect(4, (&indirect, 0, 1), 0, false)));
    assert!(out_of_bounds(ring.store_indirect(4, (&indirect, 0, 1), 0, true)));
    assert_eq!(descriptor(&ours, &ring, 0), (0, 0), "nothing was written");
    ring.store_indirect(0, (&indirect, 2, 3), u64::MAX, false).unwrap();
    let at = ours.publish(indirect.address()).unwrap().raw_value();
    let free = !(u64::from(u32::MAX) | 6 << 32);
    assert_eq!(descriptor(&ours, &ring, 0), (at + 32, 48 | free | 4 << 32));
    ring.store_indirect(1, (&indirect, 0, 8), 0, true).unwrap();
    assert_eq!(descriptor(&ours, &ring, 1), (0, 0));
    assert!(ring.store_held(Release));
    assert_eq!(descriptor(&ours, &ring, 1), (at, 128 | 4 << 32));
    // What was written before the reset may be stale: a ring of the new life leads to no such table.
    ours.reset_model().unwrap();
    let mut new = table(&ours, 4);
    assert_eq!(new.store_indirect(0, (&indirect, 0, 1), 0, false), Err(DmaError::WrongLife));
    assert_eq!(ring.store_indirect(0, (&table(&ours, 1), 0, 1), 0, false), Err(DmaError::WrongLife));
    assert_eq!(ours.publish(ring.address()), Err(DmaError::WrongLife));
    assert_eq!(ours.publish(indirect.address()), Err(DmaError::WrongLife));
    assert!(ours.publish(new.address()).is_ok());
}

#[test]
fn another_devices_memory_is_refused() {
    let host = platform();
    let ours = DmaWindows::for_model(host, DEVICE).unwrap();
    let strangers = [
        DmaWindows::for_model(host, DeviceId(9)).unwrap(),
        DmaWindows::for_model(platform(), DEVICE).unwrap(),
        DmaWindows::new(host, DEVICE).unwrap(),
    ];
    let mut table = DescriptorTable::<Packed>::new(&ours, 4, 0, Direction::Both).unwrap();
    for theirs in &strangers {
        let buffer = DmaPool::new(theirs, 1, 64).unwrap().take().unwrap();
        let segment = buffer.segment(0, 64, true).unwrap();
        assert_eq!(table.check(&segment), Err(DmaError::WrongDevice));
        assert_eq!(table.store(0, &segment, 0, Relaxed), Err(DmaError::WrongDevice));
        assert_eq!(table.hold(0, [(&segment, 0)]), Err(DmaError::WrongDevice));
        let blocks = DmaBlocks::<1>::new(theirs, 1).unwrap();
        let segment = blocks.get(0).unwrap().segment::<0, 8>(true);
        assert_eq!(table.check(&segment), Err(DmaError::WrongDevice));
    }
    assert!(!table.store_held(Relaxed));
    assert_eq!(descriptor(&ours, &table, 0), (0, 0), "nothing was written");
}

/// Room behind the descriptors, for an available ring.
#[test]
fn what_follows_the_descriptors() {
    let windows = windows();
    let table = DescriptorTable::<Split>::new(&windows, 256, 518, Direction::ToDevice).unwrap();
    let after = table.array_after::<u16>(3).unwrap();
    assert!(out_of_bounds(table.array_after::<u16>(PAGE / 2 + 1)));
    after.store(0, 0x1234, Relaxed).unwrap();
    let area = windows.allocate(4096).unwrap();
    let queue = table.queue(after.address(0).unwrap(), area.address(0).unwrap()).unwrap();
    let [desc, driver, _] = queue.addresses();
    let (desc, driver) = (windows.publish(desc).unwrap(), windows.publish(driver).unwrap());
    assert_eq!(driver.0, desc.0 + 16 * 256);
    assert_eq!(windows.readable().unwrap().read_obj::<u16>(driver), Ok(0x1234));
    drop(table);
    drop(area);
    assert_eq!(windows.usage(), (2 * PAGE, PAGE), "the array owns it too");
}

/// O5: memory and its window last as long as anything that could name them.
#[test]
fn an_array_keeps_the_window_open() {
    let host = platform();
    let windows = DmaWindows::for_model(host, DEVICE).unwrap();
    let region = windows.allocate(PAGE).unwrap();
    let (array, other) = (region.array::<u32>(0, 4).unwrap(), region.array::<u8>(64, 1).unwrap());
    array.store(1, 77, Release).unwrap();
    let address = windows.publish(region.address(0).unwrap()).unwrap();
    drop((region, other));
    assert_eq!(windows.usage(), (PAGE, 0));
    assert!(
        windows.readable().unwrap().check_range(address, PAGE)
            && windows.writable().unwrap().check_range(address, PAGE)
    );
    assert_eq!(array.load(1, Acquire), Some(77));
    assert_eq!(windows.publish(array.address(0).unwrap()), Ok(address));
    drop(array);
    assert!(!windows.readable().unwrap().address_in_range(address), "the window is closed");
    assert_eq!((host.dma_in_use(), windows.usage()), (PAGE, (0, PAGE)));
    windows.reset_model().unwrap();
    assert_eq!((host.dma_in_use(), windows.usage()), (0, (0, 0)));
}

#[test]
fn arrays_are_shared_between_threads() {
    let region = windows().allocate(PAGE).unwrap();
    let array = region.array::<u32>(0, 2).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for value in 1..=100 {
                array.store(0, value, Release).unwrap();
                while array.load(1, Acquire) != Some(value) {
                    std::thread::yield_now();
                }
            }
        });
        for value in 1..=100 {
            while array.load(0, Acquire) != Some(value) {
                std::thread::yield_now();
            }
            array.store(1, value, Release).unwrap();
        }
        other.join().unwrap();
    });
    assert_eq!(array.load(0, Acquire), Some(100));
}

proptest! {
    /// Loads and stores agree with a plain array, whatever the index, and touch nothing around it.
    #[test]
    fn agrees_with_an_array(
        offset in (0_usize..40).prop_map(|words| 2 * words),
        count in 1_usize..50,
        steps in prop::collection::vec((0_usize..60, any::<u16>()), 0..100),
    ) {
        let region = windows().allocate(PAGE).unwrap();
        let array = region.array::<u16>(offset, count).unwrap();
        let mut model = vec![0; PAGE];
        for (index, value) in steps {
            prop_assert_eq!(array.store(index, value, Release).is_some(), index < count);
            if index < count {
                model[offset + 2 * index..][..2].copy_from_slice(&value.to_ne_bytes());
                prop_assert_eq!(array.load(index, Acquire), Some(value));
            }
        }
        let mut all = vec![0; PAGE];
        region.as_volatile_slice().read_slice(&mut all, 0).unwrap();
        prop_assert_eq!(all, model);
    }

    /// For rings: any index leads to a value of the array, and nothing around it is touched; if the length is
    /// a power of two, it goes round and round.
    #[test]
    fn wraps_within_the_array(
        first in 0_usize..100,
        count in prop_oneof![1_usize..70, (0..7).prop_map(|order| 1_usize << order)],
        index in prop_oneof![0_usize..200, any::<usize>()],
    ) {
        let region = windows().allocate(PAGE).unwrap();
        let whole = region.array::<u16>(0, PAGE / 2).unwrap();
        let array = whole.part(first, count).unwrap();
        array.store_wrapping(index, 7, Release);
        prop_assert_eq!(array.load_wrapping(index, Acquire), 7);
        let written: Vec<usize> = (0..whole.len()).filter(|at| whole.load(*at, Relaxed) == Some(7)).collect();
        prop_assert_eq!(written.len(), 1);
        prop_assert!((first..first + count).contains(&written[0]));
        prop_assert!(!count.is_power_of_two() || written[0] == first + index % count);
        prop_assert_eq!(array.part(0, count).map(|part| (part.len(), part.is_empty())), Some((count, false)));
        for (index, count) in [(0, 0), (count, 1), (0, count + 1), (usize::MAX, 2), (1, usize::MAX)] {
            prop_assert!(array.part(index, count).is_none());
        }
    }
}

/// What a device writes of its own is never a descriptor: it would choose an address.
#[test]
fn a_device_writes_no_area_where_descriptors_are() {
    fn check<F: RingFormat>(windows: &DmaWindows) {
        let table = |count| DescriptorTable::<F>::new(windows, count, 4096, Direction::Both).unwrap();
        let (table, other, area) = (table(16), table(64), windows.allocate(4096).unwrap());
        let (there, behind) = (area.address(0).unwrap(), other.array_after::<u64>(64).unwrap());
        let refused = Err(DmaError::Access(VolatileError::NotPermitted));
        for at in [table.address(), other.address()] {
            assert_eq!(table.queue(there, at).map(|_| ()), refused);
            assert_eq!(table.queue(at, there).map(|_| ()), Ok(()), "it only reads there");
        }
        let behind = behind.address(0).unwrap();
        assert_eq!(table.queue(there, behind).map(|_| ()), Ok(()), "no descriptor is there");
    }
    let windows = windows();
    check::<Split>(&windows);
    check::<Packed>(&windows);
}
