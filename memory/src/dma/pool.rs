//! Equal buffers, lent by value.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicIsize, AtomicU32, Ordering};

use super::segment::LONGEST;
use super::table::WindowTable;
use super::{DmaAddr, DmaError, DmaRegion, DmaWindows};
use crate::{AtomicU64, Bytes, Direction, PAGE_SIZE, PlatformError, VolatileError, VolatileSlice};

/// Equal buffers, lent by value.
///
/// They are cut from one region, or from several where memory is in pieces, which the pool and its buffers
/// keep alive together; a buffer goes back when it is dropped. Taking and giving back takes no lock:
/// interrupt handlers may do it while the pool exists. (After that, the last buffer to be dropped gives the
/// memory back, which takes locks.)
///
/// ```
/// use ringfence_memory::{DeviceId, DmaPool, DmaWindows, host::HostPlatform};
///
/// let windows = DmaWindows::new(Box::leak(Box::new(HostPlatform::new())), DeviceId(0x18))?;
/// let pool = DmaPool::new(&windows, 4, 512)?;
/// let mut buffer = pool.take().expect("none is lent");
/// buffer.write_slice(b"sector", 0)?;
/// assert_eq!((pool.available(), buffer.len()), (3, 512));
/// drop(buffer);
/// assert_eq!(pool.available(), 4);
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
pub struct DmaPool(NonNull<Slots>);

/// What a pool and its buffers share. It is freed by the pool if all buffers are home when that is dropped,
/// else by the last buffer that comes home.
struct Slots {
    regions: Vec<DmaRegion>,
    slot_len: usize,
    /// The list of free slots: in the lower half 1 + the index of the first, or 0; in the upper half how many
    /// were taken, so that a list is not mistaken for one that looked alike. [`CLOSED`] after the pool was
    /// dropped.
    head: AtomicU64,
    /// Set once, before the first buffer is lent.
    slots: Vec<Slot>,
    /// After the pool was dropped: buffers out. Before: less than 0 by each that will not come home.
    out: AtomicIsize,
}

/// One slot, with all that a request asks about its buffer: made once, for speed.
struct Slot {
    /// Its first byte, and what the device calls it.
    start: NonNull<u8>,
    address: u64,
    len: usize,
    /// How many of its bytes the device may read, and write: all or none.
    allowed: [u32; 2],
    /// Compared, never followed.
    table: *const WindowTable,
    pool: NonNull<Slots>,
    /// Which of the pool's regions it is in.
    region: u32,
    /// Its own index, and the next free slot, as `head` has it.
    index: u32,
    next: AtomicU32,
}

/// The pool was dropped.
const CLOSED: u64 = u64::MAX;

// SAFETY: the pointers in its slots alone keep it from being `Send` and `Sync`. `table` is compared, never
// followed; behind `start` are the regions' bytes, which are accessed as shared memory only, by whichever
// thread; `pool` is the value itself.
unsafe impl Send for Slots {}
// SAFETY: as for `Send`.
unsafe impl Sync for Slots {}

// SAFETY: it is a share in `Slots`, which is `Send` and `Sync`.
unsafe impl Send for DmaPool {}
// SAFETY: as for `Send`.
unsafe impl Sync for DmaPool {}

impl Slots {
    fn take(&self) -> Option<&Slot> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = (head as u32).checked_sub(1)?;
            // If somebody else takes this slot meanwhile, the exchange fails, whatever was read.
            let slot = self.slots.get(index as usize)?;
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(slot.next.load(Ordering::Relaxed));
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(slot),
                Err(now) => head = now,
            }
        }
    }

    /// Puts a slot back. Never inlined: buffers are dropped in many places.
    ///
    /// # Safety
    /// It is a buffer's, whose share in its pool's `Slots` is given up.
    #[inline(never)]
    unsafe fn give(slot: NonNull<Slot>) {
        // SAFETY: the caller's share.
        let (Slot { next, index, .. }, pool) = unsafe { (slot.as_ref(), slot.as_ref().pool) };
        // SAFETY: as above.
        let free = unsafe { &pool.as_ref().head };
        let mut head = free.load(Ordering::Relaxed);
        while head != CLOSED {
            next.store(head as u32, Ordering::Relaxed);
            let new = head & !u64::from(u32::MAX) | u64::from(*index + 1);
            // Release: whoever takes it next sees what its last user did.
            match free.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
        // SAFETY: the pool is gone, and the buffer is in no list.
        unsafe { Self::settle(pool, -1) }
    }

    /// Length of a list that begins with `head`; bounded, as it may change meanwhile.
    fn count(&self, head: u64) -> usize {
        let follow = |at: &u32| at.checked_sub(1).and_then(|index| self.slots.get(index as usize));
        let after = |at: &u32| follow(at).map(|slot| slot.next.load(Ordering::Relaxed));
        let list = core::iter::successors(Some(head as u32), after);
        list.take(self.slots.len()).filter(|&at| at != 0).count()
    }

    /// Accounts for `change` buffers more out, the pool being gone or those never coming home; frees `this`
    /// with the last.
    ///
    /// # Safety
    /// It is a share in `this` that is given up.
    unsafe fn settle(this: NonNull<Self>, change: isize) {
        // SAFETY: the caller's share.
        let out = unsafe { this.as_ref() }.out.fetch_add(change, Ordering::AcqRel) + change;
        if out == 0 {
            // SAFETY: made by `Box::leak` in `DmaPool::cut`. The pool added those that were out, each of them
            // took itself away, and only one of these calls makes the sum 0: nobody else has a share.
            drop(unsafe { Box::from_raw(this.as_ptr()) });
        }
    }
}

impl DmaPool {
    /// A pool of `count` buffers of `slot_len` bytes each; buffers are aligned to the largest power of two
    /// that divides `slot_len`, up to a page.
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
        let bytes = count.checked_mul(slot_len).filter(|&bytes| 0 < bytes && bytes <= LONGEST as usize);
        bytes.ok_or(DmaError::BadLength)?;
        let mut regions = Vec::new();
        let (mut missing, mut together) = (count, count);
        while missing > 0 {
            match windows.allocate_for(together * slot_len, direction) {
                Ok(region) => {
                    missing = missing.saturating_sub(region.len() / slot_len);
                    super::push(&mut regions, region)?;
                    together = together.min(missing);
                }
                // Physical memory is in pieces: smaller ones will do, down to a page or a buffer.
                Err(DmaError::Platform(PlatformError::OutOfMemory))
                    if together * slot_len > PAGE_SIZE && together > 1 =>
                {
                    together = together.div_ceil(2);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self::cut(regions, count, slot_len)?)
    }

    /// A pool of buffers of `slot_len` bytes, as many as fit into each of `regions`: memory that was
    /// [adopted](DmaWindows::adopt), say.
    ///
    /// # Errors
    /// With the regions: [`DmaError::BadLength`] if no buffer fits, [`DmaError::WrongDevice`] if the regions
    /// are not of one device, or not of one direction, [`DmaError::Shared`] while there is an
    /// [array](DmaRegion::array) in one.
    pub fn of(regions: Vec<DmaRegion>, slot_len: usize) -> Result<Self, (DmaError, Vec<DmaRegion>)> {
        let Some(first) = regions.first().filter(|_| slot_len > 0) else {
            return Err((DmaError::BadLength, regions));
        };
        let alike = |other: &DmaRegion| {
            Arc::ptr_eq(other.0.table(), first.0.table()) && other.direction() == first.direction()
        };
        if !regions.iter().all(alike) {
            return Err((DmaError::WrongDevice, regions));
        }
        // An array could write to what a device has of the buffer.
        if !regions.iter().all(|region| Arc::strong_count(&region.0) == 1) {
            return Err((DmaError::Shared, regions));
        }
        let count = regions.iter().map(|region| region.len() / slot_len).sum();
        Self::cut(regions, count, slot_len)
    }

    /// Cuts `count` slots out of the regions, which have room for so many.
    fn cut(
        regions: Vec<DmaRegion>,
        count: usize,
        slot_len: usize,
    ) -> Result<Self, (DmaError, Vec<DmaRegion>)> {
        if count == 0 || slot_len > LONGEST as usize || count >= u32::MAX as usize {
            return Err((DmaError::BadLength, regions));
        }
        let mut slots = match super::list(count) {
            Ok(slots) => slots,
            Err(error) => return Err((error, regions)),
        };
        let head = AtomicU64::new(1);
        let pool = Slots { regions, slot_len, head, slots: Vec::new(), out: AtomicIsize::new(0) };
        let mut pool = NonNull::from(Box::leak(Box::new(pool)));
        // SAFETY: nobody else has it yet.
        let shared = unsafe { pool.as_mut() };
        for (at, region) in shared.regions.iter().enumerate() {
            let (bytes, table) = (region.as_volatile_slice(), Arc::as_ptr(region.0.table()));
            let allowed = [Direction::ToDevice, Direction::FromDevice]
                .map(|way| if region.direction().allows(way) { slot_len as u32 } else { 0 });
            let in_it = (bytes.len() / slot_len).min(count - slots.len());
            for offset in (0..in_it).map(|index| index.wrapping_mul(slot_len)) {
                // SAFETY: `bytes` has room for `in_it` slots.
                let start = unsafe { bytes.as_ptr().add(offset) };
                let address = region.0.device_address.wrapping_add(offset as u64);
                let index = slots.len() as u32;
                // Taken from the beginning: the first buffer lent is the first of the first region.
                let next = AtomicU32::new(if index as usize + 1 < count { index + 2 } else { 0 });
                let (len, region) = (slot_len, at as u32);
                slots.push(Slot { start, address, len, allowed, table, pool, region, index, next });
            }
        }
        shared.slots = slots;
        Ok(Self(pool))
    }

    /// A buffer, with whatever its last user left in it; `None` if all are lent. Takes no lock.
    #[inline]
    pub fn take(&self) -> Option<DmaBuf> {
        self.slots().take().map(|slot| DmaBuf(NonNull::from(slot)))
    }

    /// How many buffers can be taken now: counted one by one, for checks.
    pub fn available(&self) -> usize {
        self.slots().count(self.slots().head.load(Ordering::Acquire))
    }

    /// Length of each buffer in bytes.
    pub fn slot_len(&self) -> usize {
        self.slots().slot_len
    }

    fn slots(&self) -> &Slots {
        // SAFETY: the pool has a share in it.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for DmaPool {
    fn drop(&mut self) {
        let slots = self.slots();
        let home = slots.count(slots.head.swap(CLOSED, Ordering::AcqRel));
        let out = (slots.slots.len() - home) as isize;
        // SAFETY: the pool is dropped; from here on buffers see that it is.
        unsafe { Slots::settle(self.0, out) }
    }
}

impl fmt::Debug for DmaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slots { slot_len, regions, .. } = self.slots();
        write!(f, "DmaPool({slot_len} bytes each, {} free, in {regions:?})", self.available())
    }
}

/// One buffer of a [`DmaPool`]: the only value through which the CPU reaches these bytes.
///
/// One word: so it costs little to hand on. Nothing here takes a lock, but for the last drop of all when the
/// [pool](DmaPool) is gone.
pub struct DmaBuf(NonNull<Slot>);

// SAFETY: it is a share in `Slots`, which is `Send` and `Sync`.
unsafe impl Send for DmaBuf {}
// SAFETY: as for `Send`.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: the buffer has a share in its pool's `Slots`, and so in this, until it is dropped or
        // abandoned.
        unsafe { self.0.as_ref() }
    }

    fn region(&self) -> &DmaRegion {
        // SAFETY: as in `slot`.
        let Slots { regions, .. } = unsafe { self.slot().pool.as_ref() };
        &regions[self.slot().region as usize]
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.slot().len
    }

    /// Whether the buffer has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the device finds the buffer's first byte.
    pub fn address(&self) -> DmaAddr<'_> {
        let region = &self.region().0;
        DmaAddr { value: self.device_address(), region, life: region.table().life() }
    }

    #[inline]
    pub(super) fn device_address(&self) -> u64 {
        self.slot().address
    }

    /// How many of its bytes the device may write, if `writable`, or else read.
    #[inline]
    pub(super) fn allowed(&self, writable: bool) -> u32 {
        let [readable, written] = self.slot().allowed;
        if writable { written } else { readable }
    }

    #[inline]
    pub(super) fn table(&self) -> *const WindowTable {
        self.slot().table
    }

    /// Which way its bytes may go.
    pub fn direction(&self) -> Direction {
        match self.slot().allowed {
            [0, _] => Direction::FromDevice,
            [_, 0] => Direction::ToDevice,
            _ => Direction::Both,
        }
    }

    /// All of the buffer's bytes.
    #[inline]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        let Slot { start, len, .. } = self.slot();
        // SAFETY: all in the region that `Slots` keeps: for as long as the buffer has its share, so for as
        // long as it is borrowed. They hold no Rust object, as `DmaRegion` says.
        unsafe { VolatileSlice::new(*start, *len) }
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

    /// A buffer that is a whole region: a page that was [adopted](DmaWindows::adopt), say, which goes where
    /// it came from when the buffer is dropped and the device is quiet.
    ///
    /// # Errors
    /// With the region: [`DmaError::BadLength`] for 4 GiB and more, [`DmaError::Shared`] while there is an
    /// [array](DmaRegion::array) in it, [`DmaError::Platform`] without memory.
    pub fn from_region(region: DmaRegion) -> Result<Self, (DmaError, DmaRegion)> {
        let len = region.len();
        let mut regions = match super::list(1) {
            Ok(regions) => regions,
            Err(error) => return Err((error, region)),
        };
        regions.push(region);
        match DmaPool::of(regions, len) {
            Ok(pool) => Ok(pool.take().unwrap_or_else(|| unreachable!("it has one"))),
            Err((error, regions)) => {
                Err((error, regions.into_iter().next().unwrap_or_else(|| unreachable!("there is one"))))
            }
        }
    }

    /// Drops a buffer that the device may still use: the pool has one less from now on. Its memory is
    /// quarantined with the rest of the region, when the pool and all its buffers are dropped.
    pub fn abandon(self) {
        let buffer = ManuallyDrop::new(self);
        // SAFETY: `buffer` is neither used again nor dropped.
        unsafe { Slots::settle(buffer.slot().pool, -1) }
    }
}

impl Drop for DmaBuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the buffer is dropped.
        unsafe { Slots::give(self.0) }
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({:?}, {} bytes)", self.address(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceId, host::HostPlatform};

    /// A thread that saw the head before others took and gave does not take it for the present one: though
    /// the same slot is first, the upper half tells them apart.
    #[test]
    fn a_head_never_comes_twice() {
        let windows = DmaWindows::new(Box::leak(Box::new(HostPlatform::new())), DeviceId(8)).unwrap();
        let pool = DmaPool::new(&windows, 2, 64).unwrap();
        let head = || pool.slots().head.load(Ordering::Relaxed);
        for taken in 0..100 {
            assert_eq!((head() >> 32, head() as u32), (taken, 1));
            drop(pool.take());
        }
    }
}
