//! Memory shared with one device: regions, pools of equal buffers, and the table of what the device may reach.
//!
//! Who owns what: a driver holds one [`DmaWindows`] per device; each [`DmaRegion`] cut from it is a contiguous run
//! of zeroed bytes with a device address; a [`DmaPool`] takes a region and lends its slots as [`DmaBuf`]s, by
//! value. A buffer moves into a queue and comes back with its completion, so no lifetime can be got wrong, and
//! `mem::forget` only shrinks the capacity.
//!
//! A region that is dropped while its device may still write is *quarantined*: it goes back to the platform only
//! after [`DmaWindows::reset_device`] has seen the device's status read 0. If that never happens it is leaked.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;
use core::time::Duration;

use spin::Mutex;

use crate::{
    DeviceId, DmaMemory, PAGE_SIZE, Platform, PlatformError, Register, VolatileError, VolatileSlice,
};

/// Why a DMA call was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The platform has no memory for it.
    Platform(PlatformError),
    /// A length of zero, or one that overflows when rounded up.
    BadLength,
    /// The address belongs to another device.
    WrongDevice,
    /// The access does not fit the memory.
    Access(VolatileError),
}

impl From<VolatileError> for DmaError {
    fn from(error: VolatileError) -> Self {
        Self::Access(error)
    }
}

/// An address as one device uses it. Only the owners of DMA memory mint it, there is no way to build one from an
/// integer or to read the integer out, and it is accepted only in memory and registers of the same device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DmaAddr {
    value: u64,
    device: DeviceId,
}

impl fmt::Debug for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d:{:#x}", self.value)
    }
}

/// What one device may reach: its regions, and those that wait for the device to be quiet.
///
/// Cloning gives another handle to the same table.
#[derive(Clone)]
pub struct DmaWindows(Arc<Table>);

struct Table {
    platform: &'static dyn Platform,
    device: DeviceId,
    state: Mutex<State>,
}

struct State {
    /// Whether the device was given an address since the last proof that it is quiet.
    live: bool,
    regions: Vec<Weak<Owned>>,
    quarantine: Vec<DmaMemory>,
}

/// The device status did not read 0 in time: the device may still use its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetTimeout;

/// The device status field, through which a device is reset.
///
/// # Safety
/// When `read` returns 0 after `write(0)`, the device must have stopped: it accesses no memory it was told of
/// before. A [`Register<u8>`] is one if it is the `device_status` of a virtio device (virtio 1.4, 2.4.2).
pub unsafe trait DeviceStatus {
    /// The status byte.
    fn read(&self) -> u8;
    /// Sets the status byte; 0 asks for a reset.
    fn write(&self, value: u8);
}

// SAFETY: whoever names a register the device status vouches for it; `drivers` does so in one place, from the
// common configuration that the device's own capability points to.
unsafe impl DeviceStatus for Register<u8> {
    fn read(&self) -> u8 {
        Register::read(self)
    }

    fn write(&self, value: u8) {
        Register::write(self, value)
    }
}

impl DmaWindows {
    /// An empty table for `device`.
    pub fn new(platform: &'static dyn Platform, device: DeviceId) -> Self {
        let state = State { live: false, regions: Vec::new(), quarantine: Vec::new() };
        Self(Arc::new(Table { platform, device, state: Mutex::new(state) }))
    }

    /// The device that this table is for.
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// A new region of at least `len` bytes (rounded up to pages), zeroed, owned by the caller.
    pub fn allocate(&self, len: usize) -> Result<DmaRegion, DmaError> {
        let pages = NonZeroUsize::new(len.div_ceil(PAGE_SIZE)).ok_or(DmaError::BadLength)?;
        let memory = self.0.platform.dma_allocate(self.0.device, pages).map_err(DmaError::Platform)?;
        let len = memory.backing().len();
        let owned = Arc::new(Owned { memory: Some(memory), table: self.0.clone(), len });
        let mut state = self.0.state.lock();
        state.regions.retain(|region| region.strong_count() > 0);
        state.regions.push(Arc::downgrade(&owned));
        // Room for every live region, so that dropping one never allocates.
        let regions = state.regions.len();
        state.quarantine.reserve(regions);
        drop(state);
        Ok(DmaRegion(owned))
    }

    /// Writes 0 to the device status and waits up to `limit` for it to read 0 (virtio 1.4, 2.4.2 and 4.1.4.3.2).
    /// Then the device holds no buffer, and the quarantine is released.
    pub fn reset_device(&self, status: &dyn DeviceStatus, limit: Duration) -> Result<(), ResetTimeout> {
        let start = self.0.platform.now();
        status.write(0);
        while status.read() != 0 {
            if self.0.platform.now().saturating_sub(start) > limit {
                return Err(ResetTimeout);
            }
            core::hint::spin_loop();
        }
        let quiet = {
            let mut state = self.0.state.lock();
            state.live = false;
            core::mem::take(&mut state.quarantine)
        };
        drop(quiet); // outside the lock: this calls the platform
        Ok(())
    }

    /// The platform's monotonic clock, for time limits.
    pub fn now(&self) -> Duration {
        self.0.platform.now()
    }

    /// Bytes of this device's live regions, and bytes in quarantine.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        let live = state.regions.iter().filter_map(Weak::upgrade).map(|region| region.len).sum();
        (live, state.quarantine.iter().map(|memory| memory.backing().len()).sum())
    }

    /// Tells the device an address: the one way in which a [`DmaAddr`] becomes a number.
    /// `None` if it is another device's.
    pub(crate) fn publish(&self, address: DmaAddr) -> Option<u64> {
        if address.device != self.0.device {
            return None;
        }
        self.0.state.lock().live = true;
        Some(address.value)
    }
}

impl fmt::Debug for DmaWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (live, quarantined) = self.usage();
        write!(f, "DmaWindows({:?}, {live} bytes live, {quarantined} quarantined)", self.0.device)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // Nobody can prove any more that the device is quiet: what is still in quarantine is leaked.
        self.state.get_mut().quarantine.drain(..).for_each(core::mem::forget);
    }
}

struct Owned {
    /// `None` only while dropping.
    memory: Option<DmaMemory>,
    table: Arc<Table>,
    len: usize,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut state = self.table.state.lock();
        if state.live {
            state.quarantine.push(memory);
        } else {
            drop(state);
            drop(memory);
        }
    }
}

impl Owned {
    fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, VolatileError> {
        let backing = self.memory.as_ref().ok_or(VolatileError::OutOfBounds)?.backing();
        // SAFETY: `Backing` promises the bytes for as long as it lives, which is as long as `self`; `DmaMemory`
        // promises that they hold no Rust object, and nothing in this module makes a reference.
        unsafe { VolatileSlice::new(backing.pointer(), backing.len()) }.subslice(offset, len)
    }

    fn address(&self, offset: usize) -> Option<DmaAddr> {
        let base = self.memory.as_ref()?.device_address();
        let value = base.checked_add(offset as u64).filter(|_| offset < self.len)?;
        Some(DmaAddr { value, device: self.table.device })
    }

    fn write_address(&self, offset: usize, address: DmaAddr) -> Result<(), DmaError> {
        if address.device != self.table.device {
            return Err(DmaError::WrongDevice);
        }
        Ok(self.slice(0, self.len)?.write_obj(offset, &address.value.to_le())?)
    }
}

/// A contiguous run of zeroed bytes that one device may reach; page-aligned.
///
/// Not `Clone`: whoever holds the region is the only one on the CPU side to access it.
#[derive(Debug)]
pub struct DmaRegion(Arc<Owned>);

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} bytes", self.address(0), self.len)
    }
}

impl DmaRegion {
    /// Length in bytes: a multiple of [`PAGE_SIZE`].
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Always false: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Where the device finds the byte at `offset`; `None` beyond the end.
    pub fn address(&self, offset: usize) -> Option<DmaAddr> {
        self.0.address(offset)
    }

    /// All of the region's bytes.
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // The whole region is always in bounds; an empty slice would only refuse accesses.
        self.0.slice(0, self.0.len).unwrap_or_else(|_| VolatileSlice::empty())
    }

    /// Stores `address` as a little-endian 64-bit field at `offset`, for this region's own device only.
    pub fn write_dma_addr(&self, offset: usize, address: DmaAddr) -> Result<(), DmaError> {
        self.0.write_address(offset, address)
    }
}

/// Equal buffers cut from one region, lent by value.
///
/// The pool and its buffers keep the region alive together; a buffer goes back when it is dropped.
#[derive(Debug)]
pub struct DmaPool(Arc<Slots>);

struct Slots {
    region: DmaRegion,
    slot_len: usize,
    free: Mutex<Vec<usize>>,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes each, {} free, in {:?}", self.slot_len, self.free.lock().len(), self.region)
    }
}

impl DmaPool {
    /// A pool of `count` buffers of `slot_len` bytes each; buffers are aligned to the largest power of two that
    /// divides `slot_len`, up to a page.
    pub fn new(windows: &DmaWindows, count: usize, slot_len: usize) -> Result<Self, DmaError> {
        let bytes = count.checked_mul(slot_len).filter(|&bytes| bytes > 0).ok_or(DmaError::BadLength)?;
        let region = windows.allocate(bytes)?;
        // Taken from the end: the first buffer lent is the first of the region.
        let free = (0..count).rev().filter_map(|slot| slot.checked_mul(slot_len)).collect();
        Ok(Self(Arc::new(Slots { region, slot_len, free: Mutex::new(free) })))
    }

    /// A buffer, with whatever its last user left in it; `None` if all are lent.
    pub fn take(&self) -> Option<DmaBuf> {
        let offset = self.0.free.lock().pop()?;
        Some(DmaBuf { slots: self.0.clone(), offset })
    }

    /// How many buffers can be taken now.
    pub fn available(&self) -> usize {
        self.0.free.lock().len()
    }

    /// Length of each buffer in bytes.
    pub fn slot_len(&self) -> usize {
        self.0.slot_len
    }
}

/// One buffer of a [`DmaPool`]: the only value through which the CPU reaches these bytes.
pub struct DmaBuf {
    slots: Arc<Slots>,
    offset: usize,
}

impl DmaBuf {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.slots.slot_len
    }

    /// Whether the buffer has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the device finds the buffer.
    pub fn address(&self) -> DmaAddr {
        let region = &self.slots.region.0;
        let value =
            region.memory.as_ref().map_or(0, DmaMemory::device_address).wrapping_add(self.offset as u64);
        DmaAddr { value, device: region.table.device }
    }

    /// Where the device finds the byte at `offset`; `None` beyond the end.
    pub fn address_at(&self, offset: usize) -> Option<DmaAddr> {
        let start = self.offset.checked_add(offset).filter(|_| offset < self.len())?;
        self.slots.region.address(start)
    }

    /// The device that may reach the buffer.
    pub fn device(&self) -> DeviceId {
        self.slots.region.0.table.device
    }

    /// All of the buffer's bytes.
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        self.slots.region.0.slice(self.offset, self.len()).unwrap_or_else(|_| VolatileSlice::empty())
    }

    /// Copies bytes out, from `offset` on.
    pub fn read_slice(&self, offset: usize, to: &mut [u8]) -> Result<(), VolatileError> {
        self.as_volatile_slice().read_slice(offset, to)
    }

    /// Copies all of `from` in, at `offset`.
    pub fn write_slice(&mut self, offset: usize, from: &[u8]) -> Result<(), VolatileError> {
        self.as_volatile_slice().write_slice(offset, from)
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        self.slots.free.lock().push(self.offset);
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({:?}, {} bytes)", self.address(), self.len())
    }
}
