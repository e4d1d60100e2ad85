//! What the traits of guest memory give an implementor that gives no more than it must.

use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

/// Addresses without memory that could be accessed.
struct Bare {
    start: u64,
    len: u64,
}

impl GuestMemoryRegion for Bare {
    type B = ();

    fn len(&self) -> u64 {
        self.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) -> &() {
        &()
    }
}

impl GuestMemoryRegionBytes for Bare {}

struct List(Vec<Bare>);

impl GuestMemory for List {
    type R = Bare;

    fn iter(&self) -> impl Iterator<Item = &Bare> {
        self.0.iter()
    }
}

#[test]
fn a_list_of_regions_is_searched() {
    let ranges = [(3, 1), (4, 2), (8, 3), (u64::MAX, 1)];
    let list = List(ranges.map(|(start, len)| Bare { start, len }).into());
    assert_eq!((list.num_regions(), list.last_addr()), (4, GuestAddress(u64::MAX)));
    for at in (0..14).chain([u64::MAX - 1, u64::MAX]) {
        let expected = ranges.into_iter().find(|(start, len)| at >= *start && at - start < *len);
        let (found, address) = (list.find_region(GuestAddress(at)), GuestAddress(at));
        assert_eq!(found.map(|region| (region.start, region.len)), expected, "{at}");
        let offset = list.to_region_addr(address).map(|(_, offset)| offset.0);
        assert_eq!(offset, expected.map(|(start, _)| at - start));
    }
}

#[test]
fn a_region_without_memory_refuses_access() {
    let region = Bare { start: 0x1000, len: 8 };
    let (at, refused) = (MemoryRegionAddress(0), GuestMemoryError::HostAddressNotAvailable);
    assert_eq!(region.get_host_address(at), Err(refused));
    assert_eq!(region.get_slice(at, 1).map(|slice| slice.len()), Err(refused));
    assert_eq!((region.read(&mut [0], at), region.write(&[0], at)), (Err(refused), Err(refused)));
    assert_eq!([0, 1, 8].map(|len| Bare { start: 0, len }.is_empty()), [true, false, false]);
}

/// A transfer that memory ends says how many bytes it made, if one was made.
#[test]
fn transfers_end_with_the_memory() {
    for len in 1..5 {
        let ranges = [(GuestAddress(0x10), 1), (GuestAddress(0x11), len)];
        let guest = GuestMemoryHeap::<()>::from_ranges(&ranges).unwrap();
        for start in 0..=len + 1 {
            let (at, rest) = (GuestAddress(0x10 + start as u64), len + 1 - start);
            let expected = if rest > 0 { Ok(rest) } else { Err(GuestMemoryError::InvalidGuestAddress(at)) };
            assert_eq!((guest.write(&[7; 9], at), guest.read(&mut [0; 9], at)), (expected, expected));
        }
    }
}
