//! Equal buffers, lent by value.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use spin::Mutex;

use super::{Direction, DmaAddr, DmaError, DmaRegion, DmaWindows};
use crate::{Bytes, DeviceId, VolatileError, VolatileSlice};

/// Equal buffers cut from one region, lent by value.
///
/// The pool and its buffers keep the region alive together; a buffer goes back when it is dropped.
///
/// ```
/// use ringfence_memory::{DeviceId, DmaPool, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::new(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18));
/// let pool = DmaPool::new(&windows, 4, 512)?;
/// let mut buffer = pool.take().expect("none is lent");
/// buffer.write_slice(b"sector", 0)?;
/// assert_eq!((pool.available(), buffer.len()), (3, 512));
/// drop(buffer);
/// assert_eq!(pool.available(), 4);
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
#[derive(Debug)]
pub struct DmaPool(Arc<Slots>);

struct Slots {
    region: DmaRegion,
    /// The region's, for speed.
    device_address: u64,
    device: DeviceId,
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
        Self::new_for(windows, count, slot_len, Direction::Both)
    }

    /// The same, for one direction only.
    pub fn new_for(
        windows: &DmaWindows,
        count: usize,
        slot_len: usize,
        direction: Direction,
    ) -> Result<Self, DmaError> {
        let bytes = count.checked_mul(slot_len).filter(|&bytes| bytes > 0).ok_or(DmaError::BadLength)?;
        let region = windows.allocate_for(bytes, direction)?;
        // Taken from the end: the first buffer lent is the first of the region.
        let free = (0..count).rev().filter_map(|slot| slot.checked_mul(slot_len)).collect();
        let (device_address, device) = (region.0.device_address(), region.0.table().device());
        Ok(Self(Arc::new(Slots { region, device_address, device, slot_len, free: Mutex::new(free) })))
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
    #[inline]
    pub fn len(&self) -> usize {
        self.slots.slot_len
    }

    /// Whether the buffer has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the device finds the buffer.
    #[inline]
    pub fn address(&self) -> DmaAddr {
        let Slots { device_address, device, .. } = *self.slots;
        DmaAddr { value: device_address.wrapping_add(self.offset as u64), device }
    }

    /// Where the device finds `len` bytes from `offset` on; `None` if they are not all in the buffer.
    #[inline]
    pub fn address_of(&self, offset: usize, len: usize) -> Option<DmaAddr> {
        offset.checked_add(len).filter(|&end| end <= self.len())?;
        let DmaAddr { value, device } = self.address();
        Some(DmaAddr { value: value.wrapping_add(offset as u64), device })
    }

    /// The device that may reach the buffer.
    pub fn device(&self) -> DeviceId {
        self.slots.device
    }

    /// All of the buffer's bytes.
    #[inline]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        self.slots.region.slice(self.offset, self.len()).unwrap_or_else(|_| VolatileSlice::empty())
    }

    /// Copies bytes out, from `offset` on.
    #[inline]
    pub fn read_slice(&self, to: &mut [u8], offset: usize) -> Result<(), VolatileError> {
        self.as_volatile_slice().read_slice(to, offset)
    }

    /// Copies all of `from` in, at `offset`.
    #[inline]
    pub fn write_slice(&mut self, from: &[u8], offset: usize) -> Result<(), VolatileError> {
        self.as_volatile_slice().write_slice(from, offset)
    }

    /// Drops a buffer that the device may still use: the pool has one less from now on. Its memory is quarantined with
    /// the rest of the region, when the pool and all its buffers are dropped.
    pub fn abandon(self) {
        let buffer = ManuallyDrop::new(self);
        // SAFETY: `buffer` is neither used again nor dropped, so its share of the pool is moved out once.
        drop(unsafe { ptr::read(&buffer.slots) });
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
