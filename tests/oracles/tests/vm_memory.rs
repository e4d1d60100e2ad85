//! `GuestMemory`, regions and slices against rust-vmm's `vm-memory`: the same random map, the same calls, the
//! same answers. What is different on purpose is marked DEVIATION, and is in the table of
//! `ringfence_memory::seed_systems`.
#![cfg(not(ringfence_loom))]
#![expect(deprecated, reason = "try_access is part of the document")]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use proptest::prelude::*;
use ringfence_memory::rust_vmm as ours;
use ringfence_memory::rust_vmm::{
    Bitmap as _, GuestMemory as _, GuestMemoryHeap, GuestMemoryRegion as _, WithBitmapSlice as _,
};
use ringfence_memory::{AtomicAccess, Bytes as _, VolatileError};
use vm_memory as theirs;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _, VolatileMemory as _};

type Ours = GuestMemoryHeap<ours::AtomicBitmap>;
type Theirs = theirs::GuestMemoryMmap<theirs::bitmap::AtomicBitmap>;

/// One map, twice.
struct Pair {
    ranges: Vec<(u64, usize)>,
    ours: Ours,
    theirs: Theirs,
}

/// An error in terms that both have. Of one that a slice makes, a region of theirs says less.
#[derive(Debug, PartialEq)]
enum Failed {
    Address(u64),
    Backend,
    Partial(usize, usize),
    Callback,
    Overflow,
    Other,
}

fn our_error(error: ours::GuestMemoryError) -> Failed {
    use ours::GuestMemoryError as E;
    match error {
        E::InvalidGuestAddress(at) => Failed::Address(at.0),
        E::InvalidRegionAddress(_) | E::Access(VolatileError::OutOfBounds | VolatileError::Misaligned) => {
            Failed::Backend
        }
        E::PartialBuffer { expected, completed } => Failed::Partial(expected, completed),
        E::CallbackOutOfRange => Failed::Callback,
        E::HostAddressNotAvailable | E::Access(VolatileError::NotPermitted) => Failed::Other,
    }
}

fn their_error(error: theirs::GuestMemoryError) -> Failed {
    use theirs::GuestMemoryError as E;
    match error {
        E::InvalidGuestAddress(at) => Failed::Address(at.0),
        E::InvalidBackendAddress => Failed::Backend,
        E::PartialBuffer { expected, completed } => Failed::Partial(expected, completed),
        E::CallbackOutOfRange => Failed::Callback,
        E::GuestAddressOverflow => Failed::Overflow,
        _ => Failed::Other,
    }
}

/// A slice's error, likewise.
fn refused<T>(result: Result<T, impl std::fmt::Debug>) -> Result<T, ()> {
    result.map_err(drop)
}

impl Pair {
    fn new(ranges: Vec<(u64, usize)>) -> Self {
        let ours: Vec<_> = ranges.iter().map(|(at, len)| (ours::GuestAddress(*at), *len)).collect();
        let theirs: Vec<_> = ranges.iter().map(|(at, len)| (theirs::GuestAddress(*at), *len)).collect();
        let ours = Ours::from_ranges(&ours).unwrap();
        Self { ranges, ours, theirs: Theirs::from_ranges(&theirs).unwrap() }
    }

    /// What the map says of an address.
    fn addresses(&self, at: u64, len: usize) {
        let (our, their) = (ours::GuestAddress(at), theirs::GuestAddress(at));
        assert_eq!(self.ours.num_regions(), self.theirs.num_regions());
        assert_eq!(self.ours.last_addr().0, self.theirs.last_addr().0);
        let regions = self.theirs.iter().map(|region| (region.start_addr().0, region.len()));
        assert!(self.ours.iter().map(|region| (region.start_addr().0, region.len())).eq(regions));
        let region = self.theirs.find_region(their).map(|region| region.start_addr().0);
        assert_eq!(self.ours.find_region(our).map(|region| region.start_addr().0), region);
        let found = self.theirs.to_region_addr(their).map(|(region, at)| (region.last_addr().0, at.0));
        assert_eq!(self.ours.to_region_addr(our).map(|(region, at)| (region.last_addr().0, at.0)), found);
        assert_eq!(self.ours.address_in_range(our), self.theirs.address_in_range(their));
        let checked = self.theirs.check_address(their).map(|at| at.0);
        assert_eq!(self.ours.check_address(our).map(|at| at.0), checked);
        let checked = self.theirs.checked_offset(their, len).map(|at| at.0);
        assert_eq!(self.ours.checked_offset(our, len).map(|at| at.0), checked);
        assert_eq!(self.ours.check_range(our, len), self.theirs.check_range(their, len));
        // A pointer, as the distance from the region's first byte.
        let start = |at: *mut u8, start: *const u8| at.addr() - start.addr();
        let pointer = self.ours.get_host_address(our).map_err(our_error).map(|pointer| {
            let region = self.ours.find_region(our).unwrap();
            start(pointer, region.as_volatile_slice().unwrap().as_ptr().as_ptr())
        });
        let their_pointer = self.theirs.get_host_address(their).map_err(their_error).map(|pointer| {
            let region = self.theirs.find_region(their).unwrap();
            start(pointer, region.as_volatile_slice().unwrap().ptr_guard().as_ptr())
        });
        assert_eq!(pointer, their_pointer);
    }

    fn slices(&self, at: u64, len: usize) {
        let slice = self.ours.get_slice(ours::GuestAddress(at), len).map(|slice| slice.len());
        let their = self.theirs.get_slice(theirs::GuestAddress(at), len).map(|slice| slice.len());
        assert_eq!(slice.map_err(our_error), their.map_err(their_error));
        let mut slices = self.ours.get_slices(ours::GuestAddress(at), len);
        for their in self.theirs.get_slices(theirs::GuestAddress(at), len) {
            let slice = slices.next().unwrap().map(|slice| slice.len());
            assert_eq!(slice.map_err(our_error), their.map(|slice| slice.len()).map_err(their_error));
        }
        assert!(slices.next().is_none() && slices.next().is_none());
    }

    /// Claims are what the callback returns, one after the other: a number, or an error.
    fn try_access(&self, at: u64, len: usize, claims: &[Option<usize>]) {
        let mut seen = Vec::new();
        let mut rest = claims.iter();
        let result = self.ours.try_access(len, ours::GuestAddress(at), |done, len, offset, region| {
            seen.push((done, len, offset.0, region.start_addr().0));
            let claim = rest.next().copied().unwrap_or(Some(len));
            claim.ok_or(ours::GuestMemoryError::HostAddressNotAvailable)
        });
        let mut expected = Vec::new();
        let mut rest = claims.iter();
        let their = self.theirs.try_access(len, theirs::GuestAddress(at), |done, len, offset, region| {
            expected.push((done, len, offset.0, region.start_addr().0));
            let claim = rest.next().copied().unwrap_or(Some(len));
            claim.ok_or(theirs::GuestMemoryError::HostAddressNotAvailable)
        });
        assert_eq!(seen, expected);
        match their.map_err(their_error) {
            // DEVIATION: a claim that leads beyond the last address is followed to a hole, not to an error.
            Err(Failed::Overflow) => assert!(result.is_ok_and(|done| at.checked_add(done as u64).is_none())),
            their => assert_eq!(result.map_err(our_error), their),
        }
    }

    fn copies(&self, at: u64, len: usize, value: u8) {
        let bytes: Vec<u8> = (0..len).map(|index| value.wrapping_add(index as u8)).collect();
        let (our, their) = (ours::GuestAddress(at), theirs::GuestAddress(at));
        let result = self.ours.write(&bytes, our).map_err(our_error);
        assert_eq!(result, self.theirs.write(&bytes, their).map_err(their_error));
        let (mut seen, mut expected) = (vec![0x5a; len], vec![0x5a; len]);
        let result = self.ours.read(&mut seen, our).map_err(our_error);
        assert_eq!(result, self.theirs.read(&mut expected, their).map_err(their_error));
        assert_eq!(seen, expected);
        let result = self.ours.write_slice(&bytes, our).map_err(our_error);
        assert_eq!(result, self.theirs.write_slice(&bytes, their).map_err(their_error));
        let result = self.ours.read_slice(&mut seen, our).map_err(our_error);
        assert_eq!(result, self.theirs.read_slice(&mut expected, their).map_err(their_error));
        assert_eq!(seen, expected);
        let object = [value; 8];
        let result = self.ours.write_obj(object, our).map_err(our_error);
        assert_eq!(result, self.theirs.write_obj(u64::from_ne_bytes(object), their).map_err(their_error));
        let result = self.ours.read_obj::<u64>(our).map_err(our_error);
        assert_eq!(result, self.theirs.read_obj::<u64>(their).map_err(their_error));
    }

    fn atomics<T>(&self, at: u64, value: T)
    where
        T: AtomicAccess + theirs::AtomicAccess + PartialEq + std::fmt::Debug,
    {
        let (our, their) = (ours::GuestAddress(at), theirs::GuestAddress(at));
        let result = self.ours.store(value, our, Release).map_err(our_error);
        assert_eq!(result, self.theirs.store(value, their, Release).map_err(their_error));
        let result = self.ours.load::<T>(our, Acquire).map_err(our_error);
        assert_eq!(result, self.theirs.load::<T>(their, Acquire).map_err(their_error));
    }

    /// Accesses by offset in the region at `index`, and in a slice of all of it.
    fn region(&self, index: usize, offset: u64, len: usize, value: u8) {
        let (our, their) = (self.ours.iter().nth(index).unwrap(), self.theirs.iter().nth(index).unwrap());
        let (our_at, their_at) = (ours::MemoryRegionAddress(offset), theirs::MemoryRegionAddress(offset));
        assert_eq!(our.address_in_range(our_at), their.address_in_range(their_at));
        assert_eq!(our.check_address(our_at).map(|at| at.0), their.check_address(their_at).map(|at| at.0));
        let checked = their.checked_offset(their_at, len).map(|at| at.0);
        assert_eq!(our.checked_offset(our_at, len).map(|at| at.0), checked);
        let guest = our.to_region_addr(ours::GuestAddress(offset)).map(|at| at.0);
        assert_eq!(guest, their.to_region_addr(theirs::GuestAddress(offset)).map(|at| at.0));
        assert_eq!(our.get_host_address(our_at).is_ok(), their.get_host_address(their_at).is_ok());
        let slice = our.get_slice(our_at, len).map(|slice| slice.len()).map_err(our_error);
        assert_eq!(slice, their.get_slice(their_at, len).map(|slice| slice.len()).map_err(their_error));

        let bytes = vec![value; len];
        let (mut seen, mut expected) = (vec![0x5a; len], vec![0x5a; len]);
        let result = our.write(&bytes, our_at).map_err(our_error);
        assert_eq!(result, their.write(&bytes, their_at).map_err(their_error));
        let result = our.read(&mut seen, our_at).map_err(our_error);
        assert_eq!(result, their.read(&mut expected, their_at).map_err(their_error));
        assert_eq!(seen, expected);
        let fits = len == 0 || offset.checked_add(len as u64).is_some_and(|end| end <= our.len());
        if fits {
            assert_eq!(our.write_slice(&bytes, our_at).map_err(our_error), Ok(()));
            assert!(their.write_slice(&bytes, their_at).is_ok());
        } else {
            // DEVIATION: of what does not fit in a region or slice nothing is copied.
            let before = (self.bytes(index), vec![0x77; len]);
            let mut seen = before.1.clone();
            assert_eq!(our.write_slice(&bytes, our_at).map_err(our_error), Err(Failed::Backend));
            assert_eq!(our.read_slice(&mut seen, our_at).map_err(our_error), Err(Failed::Backend));
            assert!(their.read_slice(&mut expected, their_at).is_err());
            assert_eq!((self.bytes(index), seen), before);
        }
        let result = our.store(u32::from(value), our_at, Relaxed).map_err(our_error);
        assert_eq!(result, their.store(u32::from(value), their_at, Relaxed).map_err(their_error));
        let result = our.load::<u16>(our_at, Relaxed).map_err(our_error);
        assert_eq!(result, their.load::<u16>(their_at, Relaxed).map_err(their_error));
        if let Ok(offset) = usize::try_from(offset) {
            self.slice(index, offset, len, value);
        }
    }

    fn slice(&self, index: usize, offset: usize, len: usize, value: u8) {
        let our = self.ours.iter().nth(index).unwrap().as_volatile_slice().unwrap();
        let their = self.theirs.iter().nth(index).unwrap().as_volatile_slice().unwrap();
        assert_eq!(our.len(), their.len());
        let bytes = vec![value; len];
        let mut seen = bytes.clone();
        assert_eq!(refused(our.write(&bytes, offset)), refused(their.write(&bytes, offset)));
        assert_eq!(refused(our.read(&mut seen, offset)), refused(their.read(&mut seen, offset)));
        let rest = refused(their.offset(offset)).map(|slice| slice.len());
        assert_eq!(refused(our.offset(offset)).map(|slice| slice.len()), rest);
        let parts = refused(their.split_at(offset)).map(|(head, tail)| (head.len(), tail.len()));
        assert_eq!(refused(our.split_at(offset)).map(|(head, tail)| (head.len(), tail.len())), parts);
        let part = refused(their.subslice(offset, len)).map(|slice| slice.len());
        assert_eq!(refused(our.subslice(offset, len)).map(|slice| slice.len()), part);
        let result = refused(our.store(u64::from(value), offset, Relaxed));
        assert_eq!(result, refused(their.store(u64::from(value), offset, Relaxed)));
        assert_eq!(refused(our.load::<u8>(offset, Relaxed)), refused(their.load::<u8>(offset, Relaxed)));

        let (value_ref, their_ref) = (our.get_ref::<u32>(offset), their.get_ref::<u32>(offset));
        assert_eq!(value_ref.is_ok(), their_ref.is_ok());
        if let (Ok(our), Ok(their)) = (value_ref, their_ref) {
            assert_eq!((our.load(), our.to_slice().len()), (Ok(their.load()), their.to_slice().len()));
            our.store(0x0101 * u32::from(value)).unwrap();
            their.store(0x0101 * u32::from(value));
        }
        let (array, their_array) =
            (our.get_array_ref::<u16>(offset, len), their.get_array_ref::<u16>(offset, len));
        assert_eq!(array.is_ok(), their_array.is_ok());
        if let (Ok(our), Ok(their)) = (array, their_array) {
            assert_eq!((our.len(), our.element_size()), (their.len(), their.element_size()));
            assert_eq!(our.is_empty(), their.is_empty());
            let (mut seen, mut expected) = (vec![7_u16; 5], vec![7_u16; 5]);
            assert_eq!(our.copy_to(&mut seen), Ok(their.copy_to(&mut expected)));
            assert_eq!(seen, expected);
            // DEVIATION: it says how many elements.
            assert_eq!(our.copy_from(&[u16::from(value); 3]), Ok(len.min(3)));
            their.copy_from(&[u16::from(value); 3]);
            for index in 0..len.min(6) {
                our.store(index, index as u16).unwrap();
                their.store(index, index as u16);
                assert_eq!(our.load(index), Ok(their.load(index)));
                assert_eq!(our.ref_at(index).unwrap().load(), Ok(their.ref_at(index).load()));
            }
            // DEVIATION: beyond the end it is an error, where theirs panics.
            assert!(our.ref_at(len).is_err() && our.load(len).is_err() && our.store(len, 0).is_err());
        }
        // Into the second half, from the first.
        let half = our.len() / 2;
        let ([our_head, our_tail], [their_head, their_tail]) = (
            our.split_at(half).map(<[_; 2]>::from).unwrap(),
            their.split_at(half).map(<[_; 2]>::from).unwrap(),
        );
        // DEVIATION: it says how many bytes.
        assert_eq!(our_head.copy_to_volatile_slice(&our_tail), Ok(half));
        their_head.copy_to_volatile_slice(their_tail);
    }

    fn bytes(&self, index: usize) -> Vec<u8> {
        let slice = self.ours.iter().nth(index).unwrap().as_volatile_slice().unwrap();
        let mut bytes = vec![0; slice.len()];
        slice.read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// The same bytes, and the same pages dirty.
    fn compare(&self) {
        for (index, (our, their)) in self.ours.iter().zip(self.theirs.iter()).enumerate() {
            let mut expected = vec![0; their.len() as usize];
            their.read_slice(&mut expected, theirs::MemoryRegionAddress(0)).unwrap();
            assert!(self.bytes(index) == expected);
            for offset in (0..expected.len()).step_by(1000) {
                let dirty = their.bitmap().dirty_at(offset);
                assert_eq!(our.bitmap().dirty_at(offset), dirty);
                assert_eq!(our.bitmap().slice_at(1).dirty_at(offset), their.bitmap().dirty_at(offset + 1));
            }
        }
    }
}

/// Up to five regions, with holes or none between them. DEVIATION: a region may end at the very last address,
/// which theirs refuses; so the last one ends one byte before.
fn ranges() -> impl Strategy<Value = Vec<(u64, usize)>> {
    let len = prop_oneof![1..40_usize, 4000..4200_usize, 9000..9100_usize];
    let gap = prop_oneof![3 => Just(0), 2 => 1..20_u64, 1 => 4000..5000_u64];
    let base = prop_oneof![Just(Some(0)), (0..0x3000_u64).prop_map(Some), Just(Some(1 << 40)), Just(None)];
    (base, prop::collection::vec((gap, len), 1..=5)).prop_map(|(base, steps)| {
        let total: u64 = steps.iter().map(|(gap, len)| gap + *len as u64).sum();
        let mut at = base.unwrap_or(u64::MAX - total);
        let place = |(gap, len)| {
            let start = at + gap;
            at = start + len as u64;
            (start, len)
        };
        steps.into_iter().map(place).collect()
    })
}

#[derive(Clone, Debug)]
struct Call {
    kind: u8,
    index: prop::sample::Index,
    /// Where: from the region's start, middle or end, or from 0.
    edge: u8,
    delta: i64,
    len: usize,
    value: u8,
    claims: Vec<Option<usize>>,
}

fn call() -> impl Strategy<Value = Call> {
    let len = prop_oneof![0..20_usize, 0..10_000_usize, Just(usize::MAX), Just(1 << 63)];
    let delta = prop_oneof![-20..20_i64, -5000..5000_i64];
    let claim = prop_oneof![
        4 => (1..40_usize).prop_map(Some),
        1 => Just(Some(0)),
        1 => Just(Some(usize::MAX)),
        1 => (0..20_000_usize).prop_map(Some),
        1 => Just(None),
    ];
    let claims = prop::collection::vec(claim, 0..6);
    (0..8_u8, any::<prop::sample::Index>(), 0..4_u8, delta, len, any::<u8>(), claims).prop_map(
        |(kind, index, edge, delta, len, value, claims)| Call {
            kind,
            index,
            edge,
            delta,
            len,
            value,
            claims,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn vm_memory_answers_the_same(ranges in ranges(), calls in prop::collection::vec(call(), 1..30)) {
        let pair = Pair::new(ranges);
        for Call { kind, index, edge, delta, len, value, claims } in calls {
            let index = index.index(pair.ranges.len());
            let (start, size) = pair.ranges[index];
            let edges = [start, start + size as u64 / 2, start.wrapping_add(size as u64), 0];
            let from = edges[usize::from(edge)];
            let at = from.wrapping_add_signed(delta);
            let some = len.min(10_000);
            match kind {
                0 => pair.addresses(at, len),
                1 => pair.slices(at, len),
                2 => pair.try_access(at, len, &claims),
                3 => pair.copies(at, some, value),
                4 => pair.atomics(at, value),
                5 => pair.atomics(at, u16::from(value) * 0x101),
                6 => pair.atomics(at, u64::from(value) << 33),
                _ => pair.region(index, at.wrapping_sub(start), some, value),
            }
            if kind == 7 {
                pair.atomics(at, u32::from(value) << 9);
                pair.region(index, (size as u64 / 2).wrapping_add_signed(delta), some, value);
            }
        }
        pair.compare();
    }
}

/// What makes no map, in both.
#[test]
fn maps_that_both_refuse() {
    for ranges in
        [&[][..], &[(0, 16), (8, 16)], &[(8, 8), (0, 8)], &[(0, 8), (0, 8)], &[(u64::MAX, 2)], &[(0, 0)]]
    {
        let ours: Vec<_> = ranges.iter().map(|(at, len)| (ours::GuestAddress(*at), *len)).collect();
        let theirs: Vec<_> = ranges.iter().map(|(at, len)| (theirs::GuestAddress(*at), *len)).collect();
        assert!(Ours::from_ranges(&ours).is_err(), "{ranges:?}");
        assert!(Theirs::from_ranges(&theirs).is_err(), "{ranges:?}");
    }
}
