//! Memory as a device or a guest addresses it: the same rules for every implementor of `GuestMemory`.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::Ordering::{Acquire, Release};

use proptest::prelude::*;
use ringfence_memory::fuchsia::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;
use ringfence_testkit::machine::{PAGE, System, SystemPlatform};

const DEVICE: DeviceId = DeviceId(0x10);

/// Device addresses are physical addresses plus this.
const BUS: u64 = 4 << 30;

fn machine() -> (System, &'static SystemPlatform) {
    let system = System::small();
    let kernel = Box::leak(Box::new(SystemPlatform { space: system.space, bus: BUS }));
    (system, kernel)
}

type Guest = GuestMemoryHeap<AtomicBitmap>;

const RANGES: [(u64, u64); 4] =
    [(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x800), (0u64.wrapping_sub(0x1000), 0x1000)];

/// Two neighbours, a hole, and one at the very end of the address space.
fn guest() -> Guest {
    Guest::from_ranges(&RANGES.map(|(start, len)| (GuestAddress(start), len as usize))).unwrap()
}

/// Every address question, answered by a list of byte ranges instead.
fn conforms(memory: &impl GuestMemory, ranges: &[(u64, u64)]) {
    let has = |at: u64| ranges.iter().any(|(start, len)| at.wrapping_sub(*start) < *len);
    assert_eq!(memory.num_regions(), ranges.len());
    assert_eq!(memory.iter().map(|region| (region.start_addr().0, region.len())).collect::<Vec<_>>(), ranges);
    let last = ranges.iter().map(|(start, len)| start + (len - 1)).max().unwrap_or(0);
    assert_eq!(memory.last_addr(), GuestAddress(last));
    let edges = ranges.iter().flat_map(|(start, len)| [*start, start + len / 2, start.wrapping_add(*len)]);
    for edge in edges.chain([0, u64::MAX]) {
        for at in [edge.wrapping_sub(1), edge, edge.wrapping_add(1)] {
            let address = GuestAddress(at);
            assert_eq!(memory.address_in_range(address), has(at), "{at:#x}");
            assert_eq!(memory.check_address(address), has(at).then_some(address));
            assert_eq!(memory.find_region(address).is_some(), has(at));
            let found = memory.to_region_addr(address);
            assert_eq!(found.map(|(region, offset)| region.start_addr().0 + offset.0), has(at).then_some(at));
            for len in [0, 1, 2, 0x7ff, 0x800, 0x801, 0x1000, 0x1800, 0x2000, 0x2001] {
                let all = (0..len).all(|offset| at.checked_add(offset).is_some_and(has));
                assert_eq!(memory.check_range(address, len as usize), all, "{at:#x} + {len:#x}");
                let end = at.checked_add(len).filter(|end| has(*end)).map(GuestAddress);
                assert_eq!(memory.checked_offset(address, len as usize), end);
            }
        }
    }
}

#[test]
fn addresses_of_any_guest() {
    conforms(&guest(), &RANGES);
    conforms(&Guest::default(), &[]);
}

#[test]
fn addresses_of_windows() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let regions = [1, 3, 2].map(|pages| windows.allocate(pages * 4096).unwrap());
    let start = |region: &DmaRegion| windows.publish(region.address(0).unwrap()).unwrap().0;
    let ranges: Vec<_> = regions.iter().map(|region| (start(region), region.len() as u64)).collect();
    conforms(&windows.readable().unwrap(), &ranges);
    conforms(&windows.writable().unwrap(), &ranges);
}

#[test]
fn collections_are_sorted_and_without_overlap() {
    use GuestRegionCollectionError::*;
    let made = |ranges: &[(u64, usize)]| {
        let ranges: Vec<_> = ranges.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
        Guest::from_ranges(&ranges).map(|guest| guest.num_regions())
    };
    assert_eq!(made(&[]), Err(NoMemoryRegion));
    assert_eq!(made(&[(0, 8), (8, 1), (9, 1)]), Ok(3));
    assert_eq!(made(&[(8, 8), (0, 8)]), Err(UnsortedMemoryRegions));
    assert_eq!(made(&[(0, 8), (7, 8)]), Err(MemoryRegionOverlap));
    assert_eq!(made(&[(0, 8), (0, 8)]), Err(MemoryRegionOverlap));
    assert_eq!(made(&[(0, 8), (16, 0)]), Err(InvalidGuestRegion));
    assert_eq!((made(&[(u64::MAX, 1)]), made(&[(u64::MAX, 2)])), (Ok(1), Err(InvalidGuestRegion)));
    assert_eq!(made(&[(0, isize::MAX as usize)]), Err(OutOfMemory));
    let region = GuestRegionHeap::<()>::new(GuestAddress(3), 9).unwrap();
    assert_eq!((region.len(), region.is_empty(), region.last_addr()), (9, false, GuestAddress(11)));
    assert_eq!(region.as_volatile_slice().unwrap().read_obj(0), Ok([0_u8; 9]), "zeroed");
    assert_eq!(format!("{region:?}"), "GuestRegionHeap(0x3, 9 bytes)");
}

/// An address in a region, for accesses and for pointers.
#[test]
fn regions_by_offset() {
    let guest = guest();
    let region = guest.find_region(GuestAddress(0x4000)).unwrap();
    let at = MemoryRegionAddress;
    let outside = Err(GuestMemoryError::Access(VolatileError::OutOfBounds));
    assert_eq!(region.write(&[1, 2, 3], at(0x7fe)), Ok(2));
    assert_eq!(region.read(&mut [0; 3], at(0x7ff)), Ok(1));
    assert_eq!(region.read_obj::<[u8; 2]>(at(0x7fe)), Ok([1, 2]));
    assert_eq!((region.write(&[1], at(0x800)), region.read(&mut [0], at(0x800))), (outside, outside));
    assert_eq!(region.write_slice(&[1, 2, 3], at(0x7fe)), outside.map(drop));
    assert_eq!(region.read_slice(&mut [0; 3], at(0x7fe)), outside.map(drop));
    assert_eq!(region.store(0x0403_u16, at(0x7fe), Release), Ok(()));
    assert_eq!(region.load::<u8>(at(0x7ff), Acquire), Ok(4));
    assert!(
        region.store(1_u16, at(0x7ff), Release).is_err() && region.load::<u16>(at(0x800), Acquire).is_err()
    );
    // No bytes are nowhere refused; a slice of none begins at the end at the latest.
    for offset in [0, 0x800, 0x801, u64::MAX] {
        assert_eq!((region.write(&[], at(offset)), region.read(&mut [], at(offset))), (Ok(0), Ok(0)));
        assert_eq!(region.write_slice(&[], at(offset)), Ok(()));
        assert_eq!(region.read_slice(&mut [], at(offset)), Ok(()));
        let slice = region.get_slice(at(offset), 0).map(|slice| slice.len());
        let refused = Err(GuestMemoryError::InvalidRegionAddress(at(offset)));
        assert_eq!(slice, if offset <= 0x800 { Ok(0) } else { refused });
    }
    let start = region.as_volatile_slice().unwrap().as_ptr().as_ptr();
    assert_eq!(region.get_host_address(at(0x7ff)), Ok(start.wrapping_add(0x7ff)));
    assert_eq!(region.get_host_address(at(0x800)), Err(GuestMemoryError::InvalidRegionAddress(at(0x800))));
    assert_eq!(guest.get_host_address(GuestAddress(0x4004)), Ok(start.wrapping_add(4)));
    assert_eq!(
        (region.checked_offset(at(1), 0x7fe), region.checked_offset(at(1), 0x7ff)),
        (Some(at(0x7ff)), None)
    );
    assert_eq!((at(1).checked_sub(1), at(1).checked_sub(2)), (Some(at(0)), None));
}

#[test]
fn slices_cross_neighbours_and_stop_at_holes() {
    let guest = guest();
    let lens = |at, count| {
        let slices = guest.get_slices(GuestAddress(at), count);
        slices.map(|slice| slice.map(|slice| slice.len())).collect::<Vec<_>>()
    };
    assert_eq!(lens(0x1ff0, 0x20), [Ok(0x10), Ok(0x10)]);
    assert_eq!(lens(0x1000, 0x2000), [Ok(0x1000), Ok(0x1000)]);
    let hole = Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(0x3000)));
    assert_eq!(lens(0x2ff0, 0x20), [Ok(0x10), hole]);
    assert_eq!(lens(0x1234, 0), []);
    assert_eq!(lens(0, 0), []);
    assert_eq!(lens(u64::MAX - 7, 8), [Ok(8)]);
    assert_eq!(lens(u64::MAX - 7, 9).len(), 2);
    assert!(lens(u64::MAX - 7, usize::MAX)[1].is_err());
    let mut slices = guest.get_slices(GuestAddress(0x3000), 1);
    assert!(slices.next().unwrap().is_err() && slices.next().is_none() && slices.next().is_none(), "fused");
    // One slice is one region.
    assert!(guest.get_slice(GuestAddress(0x1ff0), 0x11).is_err());
    assert_eq!(guest.get_slice(GuestAddress(0x1ff0), 0x10).unwrap().len(), 0x10);
}

#[test]
#[expect(deprecated)]
fn try_access_says_how_far_it_came() {
    let guest = guest();
    let access = |at, count, step: usize| {
        let mut calls = Vec::new();
        let done = guest.try_access(count, GuestAddress(at), |done, len, offset, region| {
            calls.push((done, len, region.start_addr().0 + offset.0));
            Ok(len.min(step))
        });
        (done, calls)
    };
    assert_eq!(access(0x1ff8, 16, 99), (Ok(16), vec![(0, 8, 0x1ff8), (8, 8, 0x2000)]));
    assert_eq!(access(0x2ff8, 16, 99), (Ok(8), vec![(0, 8, 0x2ff8)]));
    assert_eq!(access(0x1ff8, 8, 5).1, [(0, 8, 0x1ff8), (5, 3, 0x1ffd)]);
    assert_eq!(access(0x1000, 8, 0).0, Ok(0));
    assert_eq!(access(0x3000, 8, 9).0, Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(0x3000))));
    // As vm-memory: `f` is told of no bytes, and may not claim more than there are.
    assert_eq!(access(0x3000, 0, 9).0, Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(0x3000))));
    assert_eq!(access(0x1000, 0, 9), (Ok(0), vec![(0, 0, 0x1000)]));
    let claims = |count, claim| guest.try_access(count, GuestAddress(0x1ff8), |_, _, _, _| Ok(claim));
    assert_eq!(claims(16, 16), Ok(16), "more than this piece, not more than was asked for");
    assert_eq!(claims(16, 17), Err(GuestMemoryError::CallbackOutOfRange));
    assert_eq!(claims(16, usize::MAX), Err(GuestMemoryError::CallbackOutOfRange));
    assert_eq!(claims(0, 1), Err(GuestMemoryError::CallbackOutOfRange));
    let failed = guest
        .try_access(1, GuestAddress(0x1000), |_, _, _, _| Err(GuestMemoryError::HostAddressNotAvailable));
    assert_eq!(failed, Err(GuestMemoryError::HostAddressNotAvailable));
}

#[test]
fn atomic_accesses_are_aligned_and_in_one_region() {
    let guest = guest();
    guest.store(0x1234_5678_u32, GuestAddress(0x1ffc), Release).unwrap();
    assert_eq!(guest.load::<u16>(GuestAddress(0x1ffe), Acquire), Ok(0x1234));
    let misaligned = Err(GuestMemoryError::Access(VolatileError::Misaligned));
    assert_eq!(guest.load::<u32>(GuestAddress(0x1ffa), Acquire), misaligned);
    assert!(guest.load::<u64>(GuestAddress(0x1ffc), Acquire).is_err(), "it would cross");
    assert!(guest.store(1_u64, GuestAddress(0x3000), Release).is_err());
    assert_eq!(guest.write_obj([7_u16; 8], GuestAddress(0x1ff8)), Ok(()), "copies cross");
    assert_eq!(guest.read_obj::<[u16; 8]>(GuestAddress(0x1ff8)), Ok([7; 8]));
    let partial = Err(GuestMemoryError::PartialBuffer { expected: 16, completed: 8 });
    assert_eq!(guest.write_obj([7_u16; 8], GuestAddress(0x2ff8)), partial);
    assert_eq!(guest.write(&[1; 16], GuestAddress(0x2ff8)), Ok(8));
}

proptest! {
    /// Copies and dirty pages, against a map of single bytes.
    #[test]
    fn copies_like_a_map_of_bytes(steps in prop::collection::vec((0x0f80_u64..0x4900, 0..0x1200_usize, any::<u8>()), 1..20)) {
        let guest = guest();
        let mut model = std::collections::BTreeMap::new();
        for region in guest.iter().take(3) {
            model.extend((region.start_addr().0..region.start_addr().0 + region.len()).map(|at| (at, 0)));
        }
        let mut dirty = std::collections::BTreeSet::new();
        for (at, len, value) in steps {
            let done = (at..at + len as u64).take_while(|at| model.contains_key(at)).count();
            let written = guest.write(&vec![value; len], GuestAddress(at));
            prop_assert_eq!(written.ok(), (done > 0 || len == 0).then_some(done));
            for at in at..at + done as u64 {
                model.insert(at, value);
                dirty.insert(at / PAGE);
            }
            let mut seen = vec![!value; len];
            let read = guest.read(&mut seen, GuestAddress(at));
            prop_assert_eq!(read.ok(), (done > 0 || len == 0).then_some(done));
            prop_assert!(seen[..done].iter().all(|byte| *byte == value));
            prop_assert!(seen[done..].iter().all(|byte| *byte == !value));
        }
        for region in guest.iter().take(3) {
            let slice = region.as_volatile_slice().unwrap();
            for offset in 0..region.len() {
                prop_assert_eq!(slice.read_obj::<u8>(offset as usize).unwrap(), model[&(region.start_addr().0 + offset)]);
                prop_assert_eq!(region.bitmap().dirty_at(offset as usize), dirty.contains(&((region.start_addr().0 + offset) / PAGE)));
            }
        }
    }
}

#[test]
fn a_view_serves_its_direction_alone() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let make = |direction| windows.allocate_for(4096, direction).unwrap();
    let regions = [make(Direction::ToDevice), make(Direction::FromDevice), make(Direction::Both)];
    let address = |region: &DmaRegion| windows.publish(region.address(0).unwrap()).unwrap();
    let (readable, writable) = (windows.readable().unwrap(), windows.writable().unwrap());
    for region in &regions {
        let at = address(region);
        assert_eq!(readable.address_in_range(at), region.direction() != Direction::FromDevice);
        assert_eq!(writable.address_in_range(at), region.direction() != Direction::ToDevice);
    }
    let refused = Err(GuestMemoryError::Access(VolatileError::NotPermitted));
    let both = address(&regions[2]);
    assert_eq!(readable.write_slice(&[1], both), refused);
    assert_eq!(writable.read_slice(&mut [0], both), refused);
    assert_eq!(writable.write_slice(&[5], both), Ok(()));
    assert_eq!(readable.read_obj::<u8>(both), Ok(5));
    // The same through ranges.
    let range = |at: GuestAddress, len| DriverRange::try_from((at.0, len)).unwrap();
    let (read, write) =
        (readable.translate(range(both, 8)).unwrap(), writable.translate(range(both, 8)).unwrap());
    assert!(read.try_ptr::<u64>().is_some() && read.try_mut_ptr::<u64>().is_none());
    assert!(write.try_ptr::<u64>().is_none() && write.try_mut_ptr::<u64>().is_some());
    assert_eq!(read.store(1_u8, 0, Release), Err(VolatileError::NotPermitted));
    assert_eq!(write.load::<u8>(0, Acquire), Err(VolatileError::NotPermitted));
    assert!(readable.translate(range(address(&regions[1]), 1)).is_none());
    assert!(writable.translate(range(address(&regions[0]), 1)).is_none());
    assert_eq!(
        read.as_volatile_slice().restrict(Direction::FromDevice).len(),
        0,
        "nothing is left of a detour"
    );
    assert_eq!(read.as_volatile_slice().restrict(Direction::Both).direction(), Direction::ToDevice);
}

#[test]
fn ranges_translate_as_fuchsia_says() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let region = windows.allocate(8192).unwrap();
    let start = windows.publish(region.address(0).unwrap()).unwrap().0 as usize;
    let view = windows.writable().unwrap();
    let translate = |range: std::ops::Range<usize>| view.translate(DriverRange(range));
    let range = translate(start + 4095..start + 8192).unwrap();
    assert_eq!((range.len(), range.is_empty()), (4097, false));
    assert_eq!(range.get().start, region.as_volatile_slice().as_ptr().addr().get() + 4095);
    assert!(range.try_mut_ptr::<u16>().is_none(), "misaligned");
    assert!(range.try_mut_ptr::<[u8; 4098]>().is_none(), "too short");
    let (head, tail) = range.split_at(1).unwrap();
    assert_eq!((head.len(), tail.len()), (1, 4096));
    assert!(tail.try_mut_ptr::<[u64; 512]>().is_some());
    assert_eq!(range.split_at(4097).unwrap().1.len(), 0);
    assert!(range.split_at(4098).is_none());
    assert_eq!(range, translate(start + 4095..start + 8192).unwrap());
    assert_eq!(translate(start..start).map(|range| range.len()), Some(0));
    assert!(translate(start + 1..start).is_none(), "backwards");
    assert!(translate(start..start + 8193).is_none());
    assert!(translate(start + 8192..start + 8193).is_none());
    assert!(translate(0..1).is_none() && translate(usize::MAX - 1..usize::MAX).is_none());
    assert!(
        DriverRange::try_from((u64::MAX - 3, 4)).is_err() && DriverRange::try_from((u64::MAX - 4, 4)).is_ok()
    );
    let driver = DriverRange(10..20);
    assert_eq!(driver.split_at(4), Some((DriverRange(10..14), DriverRange(14..20))));
    assert_eq!(driver.split_at(10), Some((DriverRange(10..20), DriverRange(20..20))));
    assert_eq!((driver.split_at(11), driver.len()), (None, 10));
}

#[test]
fn values_and_arrays() {
    let guest = guest();
    let slice = guest.get_slice(GuestAddress(0x1000), 64).unwrap();
    let value = slice.get_ref::<u32>(3).unwrap();
    value.store(0xaabb_ccdd).unwrap();
    assert_eq!((value.load(), value.to_slice().len()), (Ok(0xaabb_ccdd), 4));
    assert!(slice.get_ref::<u64>(57).is_err() && slice.get_ref::<u64>(56).is_ok());
    let array = slice.get_array_ref::<u16>(8, 5).unwrap();
    assert_eq!((array.len(), array.element_size(), array.is_empty()), (5, 2, false));
    assert_eq!(array.copy_from(&[1, 2, 3, 4, 5, 6]), Ok(5));
    array.store(1, 99).unwrap();
    let mut seen = [0; 4];
    assert_eq!((array.copy_to(&mut seen), seen), (Ok(4), [1, 99, 3, 4]));
    assert_eq!((array.load(4), array.load(5)), (Ok(5), Err(VolatileError::OutOfBounds)));
    assert!(array.ref_at(5).is_err());
    assert!(slice.get_array_ref::<u64>(0, usize::MAX).is_err() && slice.get_array_ref::<u64>(8, 8).is_err());
    // Between slices, as much as fits.
    let other = guest.get_slice(GuestAddress(0x4000), 40).unwrap();
    assert_eq!(slice.copy_to_volatile_slice(&other), Ok(40));
    assert_eq!(other.read_obj::<u16>(10), Ok(99));
    assert!(
        guest.iter().nth(2).unwrap().bitmap().dirty_at(0)
            && guest.iter().nth(2).unwrap().bitmap().dirty_pages() == 1
    );
}

/// The device wrote exactly the pages that were lent for it.
#[test]
fn windows_record_what_a_device_writes() {
    let windows = DmaWindows::for_model(Box::leak(Box::new(HostPlatform::new())), DEVICE).unwrap();
    let region = windows.allocate(4 * 4096).unwrap();
    let at = windows.publish(region.address(4095).unwrap()).unwrap();
    let view = windows.snapshot::<AtomicBitmap>(Direction::FromDevice).unwrap();
    view.write_slice(&[1, 2], at).unwrap();
    let bitmap = view.iter().next().unwrap().bitmap();
    assert_eq!([0, 1, 2, 3].map(|page| bitmap.is_bit_set(page)), [true, true, false, false]);
    bitmap.reset();
    view.translate(DriverRange::try_from((at.0 + 4096 + 1, 4)).unwrap()).unwrap();
    assert_eq!((bitmap.dirty_pages(), bitmap.dirty_at(2 * 4096), bitmap.len()), (1, true, 4));
}

#[test]
fn a_snapshot_is_frozen_and_keeps_its_regions() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::for_model(host, DEVICE).unwrap();
    let region = windows.allocate(4096).unwrap();
    let at = windows.publish(region.address(0).unwrap()).unwrap();
    region.as_volatile_slice().write_obj(7_u8, 0).unwrap();
    let (before, generation) = (windows.readable().unwrap(), windows.generation());
    let later = windows.allocate(4096).unwrap();
    assert_ne!(windows.generation(), generation);
    assert_eq!((before.num_regions(), windows.readable().unwrap().num_regions()), (1, 2));
    drop((region, later));
    assert_eq!(windows.readable().unwrap().num_regions(), 0, "closed for whoever asks now");
    assert_eq!(before.read_obj::<u8>(at), Ok(7), "but not pulled away");
    assert_eq!(windows.reset_model().unwrap_err(), ResetError::Timeout, "somebody looks at the memory");
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 8192), 8192), "the device was told of something");
    drop(before);
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 8192), 8192));
    windows.reset_model().unwrap();
    assert_eq!((windows.usage(), host.dma_in_use()), ((0, 0), 0));
}

/// What is dropped before the device is told of anything is not quarantined, whoever looks at it meanwhile.
#[test]
fn what_a_device_was_not_told_of_goes_back_with_its_last_view() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::for_model(host, DEVICE).unwrap();
    let [first, second] = [(); 2].map(|()| windows.allocate(4096).unwrap());
    let view = windows.readable().unwrap();
    drop(first);
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 8192), "the view has it");
    windows.publish(second.address(0).unwrap()).unwrap();
    drop(view);
    assert_eq!((windows.usage(), host.dma_in_use()), ((4096, 0), 4096));
}

/// Only one driver at a time has a device's windows, and the next one gets the same table: else an address
/// from one table, told to the device through another, would be unknown to the table that decides what is
/// quarantined.
#[test]
fn a_device_has_one_table_and_one_owner() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    for claim in [DmaWindows::new, DmaWindows::for_model] {
        let (one, stranger) = (claim(host, DEVICE).unwrap(), claim(host, DeviceId(77)).unwrap());
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed);
        let (region, life) = (one.allocate(4096).unwrap(), one.life());
        drop(one.clone());
        drop(one);
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed, "its memory is somebody's");
        let array = region.array::<u8>(0, 1).unwrap();
        drop(region);
        assert_eq!(claim(host, DEVICE).unwrap_err(), DmaError::Claimed, "a part of it is");
        drop(array);
        let next = claim(host, DEVICE).unwrap();
        assert_eq!(next.life(), life);
        assert_ne!(next.life(), stranger.life());
    }
    assert_ne!(
        DmaWindows::new(host, DEVICE).unwrap().life(),
        DmaWindows::for_model(host, DEVICE).unwrap().life(),
        "a model is no device on a bus"
    );
}

#[test]
fn the_next_driver_finds_what_is_left() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let one = DmaWindows::for_model(host, DEVICE).unwrap();
    let region = one.allocate(4096).unwrap();
    one.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    assert_eq!(one.usage(), (0, 4096));
    drop(one);
    let next = DmaWindows::for_model(host, DEVICE).unwrap();
    assert_eq!(next.usage(), (0, 4096));
    next.reset_model().unwrap();
    assert_eq!((next.usage(), host.dma_in_use()), ((0, 0), 0));
    let stranger = DmaWindows::for_model(host, DeviceId(77)).unwrap().allocate(1).unwrap();
    assert_eq!(next.publish(stranger.address(0).unwrap()), Err(DmaError::WrongDevice));
}

/// What a device on a bus may reach, nobody in this program reaches in its place.
#[test]
fn a_bus_device_has_no_stand_in() {
    let host = Box::leak(Box::new(HostPlatform::new()));
    let windows = DmaWindows::new(host, DEVICE).unwrap();
    let region = windows.allocate(4096).unwrap();
    assert_eq!(windows.publish(region.address(0).unwrap()), Err(DmaError::WrongDevice));
    assert_eq!(windows.reset_model().unwrap_err(), ResetError::WrongDevice);
    for view in [windows.readable().unwrap(), windows.writable().unwrap()] {
        let start = view.iter().next().unwrap().start_addr();
        assert!(view.check_range(start, 4096), "an IOMMU can be told the addresses");
        assert_eq!(view.read_obj::<u8>(start), Err(GuestMemoryError::HostAddressNotAvailable));
        assert_eq!(view.write_obj(1_u8, start), Err(GuestMemoryError::HostAddressNotAvailable));
        assert!(view.translate(DriverRange(start.0 as usize..start.0 as usize + 1)).is_none());
    }
}

#[test]
fn quarantined_frames_have_their_own_owner() {
    let (system, kernel) = machine();
    let count = |owner| system.space.frames().count(owner);
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let (idle, region) = (count(Owner::DmaIdle), windows.allocate(3 * 4096).unwrap());
    let snapshot = windows.writable().unwrap();
    windows.publish(region.address(0).unwrap()).unwrap();
    drop(region);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, 3), "though a snapshot still has it");
    drop(snapshot);
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, 3));
    system.check();
    let others: Vec<_> = std::iter::from_fn(|| windows.allocate(4096).ok()).collect();
    assert!(!others.is_empty() && count(Owner::Quarantined) == 3);
    windows.reset_model().unwrap();
    assert_eq!(count(Owner::Quarantined), 0);
    drop(others);
    assert!(count(Owner::DmaIdle) >= idle + 3 && count(Owner::Dma) == 0);
    system.check();
}

#[test]
fn the_audit_compares_windows_with_regions() {
    let (system, kernel) = machine();
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let regions = [windows.allocate(4096).unwrap(), windows.allocate(2 * 4096).unwrap()];
    assert_eq!(system.space.audit().windows, (2, 3));
    system.check();
    // A page of a window that leads to private memory.
    let private = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let page = VirtAddr::from_ptr(regions[0].as_volatile_slice().as_ptr().as_ptr()).unwrap();
    let entry = system.machine.entry(page.value(), 0);
    let before = system.machine.word(entry);
    system
        .machine
        .set_word(entry, system.machine.word(system.machine.entry(private.start_address().value(), 0)));
    let report = system.space.audit();
    system.machine.set_word(entry, before);
    assert!(report.findings().any(|finding| *finding == Finding::WindowNotDma(page)), "{report:?}");
    // A forgotten region stays open; a region whose closing was skipped would be found.
    std::mem::forget(regions);
    assert_eq!(system.space.audit().windows, (2, 3));
    system.check();
}

#[test]
fn the_physical_map_refuses_what_is_not_shared() {
    let (system, kernel) = machine();
    let ram: u64 = system.space.phys_map(&[]).iter().map(|region| region.len()).sum();
    assert_eq!(ram, system.space.frames().total() as u64 * PAGE);
    let private = system.space.allocate(1, Protection::ReadWrite).unwrap();
    let windows = DmaWindows::for_model(kernel, DEVICE).unwrap();
    let regions = [1, 2, 1].map(|pages| windows.allocate(pages * 4096).unwrap());
    // Lent in any order, one twice, one that is of another machine, and one not at all.
    let elsewhere = machine();
    let other = DmaWindows::for_model(elsewhere.1, DEVICE).unwrap().allocate(4096).unwrap();
    let kept = windows.allocate(4096).unwrap();
    let map = system.space.phys_map(&[&regions[2], &regions[0], &other, &regions[1], &regions[0]]);
    assert_eq!(map.iter().map(|region| region.len()).sum::<u64>(), ram, "the same RAM, cut up");
    assert_eq!(map.iter().filter(|region| region.is_shared()).count(), 3);
    let at = |region: &DmaRegion| GuestAddress(windows.publish(region.address(0).unwrap()).unwrap().0 - BUS);
    for region in &regions {
        map.write_obj(0x55_u8, at(region)).unwrap();
        assert_eq!(region.as_volatile_slice().read_obj::<u8>(0), Ok(0x55));
        assert_eq!(
            map.get_slice(at(region), region.len()).unwrap().as_ptr(),
            region.as_volatile_slice().as_ptr()
        );
    }
    let refused = Err(GuestMemoryError::HostAddressNotAvailable);
    let hidden = GuestAddress(system.space.translate(private.start_address()).unwrap().value());
    assert!(map.check_range(hidden, 4096), "it is RAM");
    assert_eq!(map.read_obj::<u8>(at(&kept)), refused, "its owner has not lent it");
    for address in (0..=ram).step_by(4096).flat_map(|page| [page.wrapping_sub(1), page, page + 1]) {
        let linear = map.iter().find(|region| region.to_region_addr(GuestAddress(address)).is_some());
        let found = map.find_region(GuestAddress(address));
        assert_eq!(found.map(|region| region.start_addr()), linear.map(|region| region.start_addr()));
    }
    assert_eq!(map.read_obj::<u8>(hidden), refused);
    assert_eq!(map.write_obj(1_u8, hidden), refused.map(drop));
    assert_eq!(map.get_host_address(hidden), Err(GuestMemoryError::HostAddressNotAvailable));
    for table in [system.pool.start_address(), system.kernel.start_address()] {
        assert_eq!(map.read_obj::<u8>(GuestAddress(table.value())), refused);
        assert!(map.translate(DriverRange(table.value() as usize..table.value() as usize + 8)).is_none());
    }
    let past = GuestAddress(map.last_addr().0 + 1);
    assert_eq!(map.read_obj::<u8>(past), Err(GuestMemoryError::InvalidGuestAddress(past)));
    drop((regions, kept));
    windows.reset_model().unwrap();
    assert_eq!(system.space.frames().count(Owner::Dma), 0);
}
