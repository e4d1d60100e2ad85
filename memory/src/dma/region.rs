//! Contiguous runs of bytes that one device may reach.

use alloc::sync::Arc;
use core::fmt;
use core::num::NonZeroUsize;
use core::ops::Deref;

use super::table::{TableState, Window, WindowTable};
use super::windows::DmaWindows;
use super::{DmaAddr, DmaError};
use crate::{Direction, DmaMemory, PAGE_SIZE, VolatileSlice};

/// An open window to memory: what the owner of a [`DmaRegion`] and the parts that were cut from it have in
/// common.
pub(crate) struct Region {
    /// In the list of windows as well, and in every snapshot that shows it.
    pub(super) memory: Arc<DmaMemory>,
    /// Keeps the table claimed.
    pub(super) windows: DmaWindows,
    pub(super) direction: Direction,
    /// So many of its first bytes are descriptors: nothing else that a device writes may be there.
    pub(super) descriptors: usize,
}

impl Deref for Region {
    type Target = DmaMemory;

    #[inline]
    fn deref(&self) -> &DmaMemory {
        &self.memory
    }
}

impl Region {
    #[inline]
    pub(super) fn table(&self) -> &Arc<WindowTable> {
        self.windows.table()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.table().close_window(self.device_address);
    }
}

/// A contiguous run of bytes that one device may reach, zeroed unless [adopted](DmaWindows::adopt);
/// page-aligned.
///
/// Not `Clone`: whoever holds the region, and the parts cut from it, are the only ones on the driver's side
/// to access it. When they are all dropped the device's window closes: later snapshots do not show it. The
/// memory goes back to the platform when the last snapshot is gone and the device has been reset.
/// Accessing the bytes takes no lock; dropping does.
pub struct DmaRegion(pub(super) Arc<Region>);

impl DmaRegion {
    /// Length in bytes: a multiple of [`PAGE_SIZE`](crate::PAGE_SIZE).
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Always false: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the device may do with it.
    pub fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Where the device finds the byte at `offset`; `None` beyond the end.
    pub fn address(&self, offset: usize) -> Option<DmaAddr<'_>> {
        let value = self.0.device_address.checked_add(offset as u64).filter(|_| offset < self.len())?;
        Some(DmaAddr { value, region: &self.0, life: self.0.table().life() })
    }

    /// All of the region's bytes.
    #[inline]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

impl DmaWindows {
    /// A new region of at least `len` bytes (rounded up to pages), zeroed, owned by the caller, that the
    /// device may read and write.
    pub fn allocate(&self, len: usize) -> Result<DmaRegion, DmaError> {
        self.allocate_for(len, Direction::Both)
    }

    /// The same, for one direction only.
    pub fn allocate_for(&self, len: usize, direction: Direction) -> Result<DmaRegion, DmaError> {
        self.open(len, direction, 0).map(DmaRegion)
    }

    /// Opens a window to new memory, of which the first `descriptors` bytes are for descriptors.
    pub(super) fn open(
        &self,
        len: usize,
        direction: Direction,
        descriptors: usize,
    ) -> Result<Arc<Region>, DmaError> {
        let pages = NonZeroUsize::new(len.div_ceil(PAGE_SIZE)).ok_or(DmaError::BadLength)?;
        let table = self.table();
        let memory =
            table.platform.dma_allocate(table.device, pages, direction).map_err(DmaError::Platform)?;
        Ok(self.open_to(memory, direction, descriptors)?)
    }

    /// A region of memory that the kernel has already: pages that the device fills or reads without a copy.
    /// The memory is the device's in `direction` from here on. For the drivers it is as any other; only, it
    /// need not be zeroed.
    ///
    /// It goes back, by whatever [`DmaMemory::new`] or [`DmaMemory::from_raw`] was told to give it back by,
    /// when the region, all that was cut from it and the last snapshot are gone, and the device has been
    /// reset since (unless it was told of nothing yet). That is as a rule when the driver is dropped; the
    /// reset of a queue is not enough. Until then it is in quarantine, and cannot be adopted again: keep the
    /// region or its buffers and reuse them. Afterwards it may become anything.
    ///
    /// ```
    /// use ringfence_memory::{Direction, DmaBuf, DmaError, DmaMemory, DmaWindows, PAGE_SIZE};
    /// # use core::ptr::NonNull;
    /// # use ringfence_memory::{DeviceId, host::HostPlatform};
    /// # use std::alloc::{Layout, alloc_zeroed};
    /// # let page = || NonNull::new(unsafe { alloc_zeroed(Layout::from_size_align(4096, 4096).unwrap()) });
    ///
    /// /// The kernel has its page back.
    /// unsafe fn give_back(start: NonNull<u8>, len: usize) {
    ///     // ...
    /// }
    ///
    /// # let platform = Box::leak(Box::new(HostPlatform::new()));
    /// # let windows = DmaWindows::for_model(platform, DeviceId::off_bus(0))?;
    /// # let start = page().unwrap();
    /// # let device_address = start.as_ptr().addr() as u64;
    /// // SAFETY: one page, which devices find at that address, and nobody else uses until `give_back`.
    /// let memory = unsafe { DmaMemory::from_raw(start, PAGE_SIZE, device_address, give_back) };
    /// let region = windows.adopt(memory, Direction::Both).map_err(|(error, _)| error)?;
    /// let buffer = DmaBuf::from_region(region).map_err(|(error, _)| error)?; // for a `Request`, say
    /// # let mut first = [1];
    /// # buffer.read_slice(&mut first, 0)?;
    /// # assert_eq!((first, windows.usage()), ([0], (PAGE_SIZE, 0)));
    /// # Ok::<(), DmaError>(())
    /// ```
    ///
    /// # Errors
    /// With the memory. [`DmaError::Overlap`] if the device has a window to some of these addresses, or a
    /// closed one from which it has not been reset; [`DmaError::Platform`] if there is no room for the
    /// window.
    pub fn adopt(&self, memory: DmaMemory, direction: Direction) -> Result<DmaRegion, (DmaError, DmaMemory)> {
        self.open_to(memory, direction, 0).map(DmaRegion)
    }

    fn open_to(
        &self,
        memory: DmaMemory,
        direction: Direction,
        descriptors: usize,
    ) -> Result<Arc<Region>, (DmaError, DmaMemory)> {
        let (table, memory) = (self.table(), Arc::new(memory));
        let window = Window { memory: memory.clone(), direction, closed: None };
        match table.open(window) {
            Ok(()) => Ok(Arc::new(Region { memory, windows: self.clone(), direction, descriptors })),
            // The window had the only other share, and is dropped.
            Err(error) => match Arc::into_inner(memory) {
                Some(memory) => Err((error, memory)),
                None => unreachable!("nobody else has seen it"),
            },
        }
    }
}

impl TableState {
    /// As [`WindowTable::open`], where there is room in the list.
    pub(super) fn insert(&mut self, window: Window) -> Result<(), DmaError> {
        let (start, end) = (window.device_address, window.device_address + window.len as u64);
        let at = self.windows.partition_point(|other| other.device_address < start);
        let before = at.checked_sub(1).is_some_and(|last| {
            let last = &self.windows[last];
            last.device_address + last.len as u64 > start
        });
        if before || self.windows.get(at).is_some_and(|next| next.device_address < end) {
            return Err(DmaError::Overlap);
        }
        self.regions += 1;
        self.open += window.len;
        self.windows.insert(at, window);
        self.generation += 1;
        Ok(())
    }
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegion({:?}, {} bytes, {:?})", self.address(0), self.len(), self.direction())
    }
}
