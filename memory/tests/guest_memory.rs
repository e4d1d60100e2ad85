//! Memory as a device or a guest addresses it: the same rules for every implementor of `GuestMemory`.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::Ordering::{Acquire, Release};

use proptest::prelude::*;
use ringfence_memory::fuchsia::*;
use ringfence_memory::host::HostPlatform;
use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;
use ringfence_testkit::machine::PAGE;

const DEVICE: DeviceId = DeviceId(0x10);

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
    fn copies_like_a_map_of_bytes(
        steps in prop::collection::vec((0x0f80_u64..0x4900, 0..0x1200_usize, any::<u8>()), 1..20),
    ) {
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
                let at = region.start_addr().0 + offset;
                prop_assert_eq!(slice.read_obj::<u8>(offset as usize).unwrap(), model[&at]);
                prop_assert_eq!(region.bitmap().dirty_at(offset as usize), dirty.contains(&(at / PAGE)));
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
