//! A machine as rust-vmm's `vm-memory` models one: physical memory, and in front of it an IOMMU that maps
//! what one device was given and nothing else. Device address, physical address and pointer all differ.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use ringfence_memory::rust_vmm::{GuestMemory as _, GuestMemoryRegion as _, MemoryRegionAddress};
use ringfence_memory::{DmaSnapshot, DmaWindows};
use vm_memory::iommu::{Error, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{
    Address as _, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, Iommu, IommuMemory, Permissions, VolatileSlice,
};

/// What to add to a device address for the physical one.
const SHIFT: u64 = 0x77_0000_0000;

/// What the device sees.
pub type Memory = IommuMemory<GuestRegionCollection<Region>, Windows>;

/// An access that the IOMMU refused: device address, length, what was tried.
pub type Fault = (u64, usize, Permissions);

/// The faults of one machine; clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

impl Faults {
    /// Takes all faults out of the log.
    pub fn take(&self) -> Vec<Fault> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Physical memory behind one window.
#[derive(Debug)]
pub struct Region {
    start: u64,
    pointer: NonNull<u8>,
    len: usize,
    /// Keep the memory.
    _shared: [Arc<(Permissions, DmaSnapshot)>; 2],
}

// SAFETY: the memory is DMA memory, which is only ever accessed volatile, and is kept alive.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: vm_memory::MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let offset = offset.raw_value() as usize;
        if offset.checked_add(count).is_none_or(|end| end > self.len) {
            return Err(GuestMemoryError::InvalidGuestAddress(self.start_addr()));
        }
        // SAFETY: in the window, as was just checked, and the snapshots keep the window's memory.
        Ok(unsafe { VolatileSlice::new(self.pointer.add(offset).as_ptr(), count) })
    }
}

impl GuestMemoryRegionBytes for Region {}

/// The IOMMU: its table is complete, so what is not in the table is a fault.
#[derive(Debug)]
pub struct Windows {
    table: RwLock<Iotlb>,
    faults: Faults,
}

impl Iommu for Windows {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        let refuse = |reason: &str| {
            self.faults.0.lock().unwrap().push((iova.0, length, access));
            let iova_range = IovaRange { base: iova, length };
            Error::CannotResolve { iova_range, reason: reason.to_owned() }
        };
        // `lookup` takes neither of these well.
        if length == 0 || iova.checked_add(length as u64).is_none() {
            return Err(refuse("no length, or around the end of the address space"));
        }
        Iotlb::lookup(self.table.read().unwrap(), iova, length, access).map_err(|_| refuse("not mapped so"))
    }
}

/// The memory of a machine as the device of `windows` sees it now.
pub fn memory(windows: &DmaWindows, faults: &Faults) -> Memory {
    let mut shared = BTreeMap::new();
    let snapshots =
        [(Permissions::Read, windows.readable().unwrap()), (Permissions::Write, windows.writable().unwrap())]
            .map(Arc::new);
    for snapshot in &snapshots {
        for window in snapshot.1.iter() {
            let slice = window.get_slice(MemoryRegionAddress(0), window.len() as usize).unwrap();
            let found =
                shared.entry(window.start_addr().0).or_insert((slice.as_ptr(), slice.len(), Permissions::No));
            assert_eq!((found.0, found.1), (slice.as_ptr(), slice.len()), "the two views disagree");
            found.2 = found.2 | snapshot.0;
        }
    }
    let (mut table, mut regions) = (Iotlb::new(), Vec::new());
    for (address, (pointer, len, permissions)) in shared {
        let start = address + SHIFT;
        table.set_mapping(GuestAddress(address), GuestAddress(start), len, permissions).unwrap();
        regions.push(Region { start, pointer, len, _shared: snapshots.clone() });
    }
    let windows = Windows { table: RwLock::new(table), faults: faults.clone() };
    IommuMemory::new(GuestRegionCollection::from_regions(regions).unwrap(), windows, true, ())
}
