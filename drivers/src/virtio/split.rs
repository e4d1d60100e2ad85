//! The split virtqueue's memory (section 2.7): descriptor table, available ring, used ring.
//!
//! What this side writes it also remembers privately; of what the device writes, each used element and the used
//! index are read once.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ringfence_memory::{AtomicAccess, Bytes, Direction, DmaRegion, DmaWindows, fence};

use super::{Buffers, Error, QueueError, QueueSetup};

const DESCRIPTOR_LEN: usize = 16;
const AVAILABLE_LEN: usize = 2;
const USED_LEN: usize = 8;
/// Bytes before the elements of both rings: flags and index.
const RING_HEADER: usize = 4;
const RING_INDEX: usize = 2;

const NEXT: u32 = 1;
const WRITE: u32 = 2;
/// In the available ring's flags: no interrupts, please. In the used ring's: no notifications, please.
const SUPPRESS: u16 = 1;

/// A chain that was added: descriptors from `head` to `tail`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    tail: u16,
    pub(super) count: u16,
    /// Bytes that the device may write.
    pub(super) writable: u32,
}

/// A used element.
pub(super) struct Used {
    pub(super) id: u32,
    pub(super) len: u32,
}

#[derive(Debug)]
pub(super) struct SplitRing {
    /// Descriptor table and available ring, which the device can only read.
    driver: DmaRegion,
    /// Used ring, which the device can only write.
    device: DmaRegion,
    size: u16,
    available_at: usize,
    /// For each descriptor the one after it, in its chain or in the list of free ones.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    /// Index of the next available entry to write, and that which the device was told.
    available: u16,
    published: u16,
    /// Index of the next used element to read.
    used: u16,
}

/// Byte offset of element `index` in an array at `base`.
fn element(base: usize, index: u16, len: usize) -> usize {
    base.saturating_add(usize::from(index).saturating_mul(len))
}

impl SplitRing {
    /// Rings for `size` descriptors: a power of two.
    pub(super) fn new(windows: &DmaWindows, size: u16) -> Result<Self, Error> {
        let available_at = element(0, size, DESCRIPTOR_LEN);
        // Both rings are followed by an event index of 2 bytes.
        let driver_len = element(available_at, size, AVAILABLE_LEN).saturating_add(RING_HEADER + 2);
        let device_len = element(0, size, USED_LEN).saturating_add(RING_HEADER + 2);
        let driver = windows.allocate_for(driver_len, Direction::ToDevice)?;
        let device = windows.allocate_for(device_len, Direction::FromDevice)?;
        Ok(Self {
            driver,
            device,
            size,
            available_at,
            next: (1..size).chain([0]).collect(),
            free_head: 0,
            free: size,
            available: 0,
            published: 0,
            used: 0,
        })
    }

    pub(super) fn setup(&self, index: u16) -> Result<QueueSetup, Error> {
        let address = |region: &DmaRegion, offset| region.address(offset).ok_or(Error::BadConfig);
        Ok(QueueSetup {
            index,
            size: self.size,
            descriptors: address(&self.driver, 0)?,
            driver: address(&self.driver, self.available_at)?,
            device: address(&self.device, 0)?,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// Whether the device has not been told about the available entry at `position`.
    pub(super) fn is_unpublished(&self, position: u16) -> bool {
        position.wrapping_sub(self.published) < self.available.wrapping_sub(self.published)
    }

    /// Writes the descriptors of `buffers` and an available entry for them, at the returned position; the device
    /// is not told. On failure nothing is taken.
    pub(super) fn add<B: Buffers>(&mut self, buffers: &B) -> Result<(Chain, u16), QueueError> {
        let head = self.free_head;
        let (mut at, mut count, mut total, mut writable) = (head, 0_u16, 0_u32, 0_u32);
        let mut part = buffers.part(0).ok_or(QueueError::BadChain)?;
        let after = loop {
            if count == self.free {
                return Err(QueueError::Full);
            }
            // What the device reads comes before what it writes (2.7.4.2); all of it is less than 4 GiB (2.7.5).
            if part.len == 0 || writable > 0 && !part.writable {
                return Err(QueueError::BadChain);
            }
            total = total.checked_add(part.len).ok_or(QueueError::BadChain)?;
            count = count.saturating_add(1);
            let next = *self.next.get(usize::from(at)).ok_or(QueueError::Broken)?;
            let following = buffers.part(count);
            let mut flags = if following.is_some() { NEXT } else { 0 };
            if part.writable {
                flags |= WRITE;
                writable = writable.saturating_add(part.len);
            }
            let offset = element(0, at, DESCRIPTOR_LEN);
            self.driver.write_dma_addr(offset, part.address).map_err(|_| QueueError::WrongDevice)?;
            self.store(offset.saturating_add(8), part.len.to_le())?;
            self.store(offset.saturating_add(12), (flags | u32::from(next) << 16).to_le())?;
            match following {
                Some(following) => (part, at) = (following, next),
                None => break next,
            }
        };
        let position = self.available;
        let slot = position & self.mask();
        self.store(self.available_entry(slot), head.to_le())?;
        self.available = position.wrapping_add(1);
        self.free_head = after;
        self.free = self.free.saturating_sub(count);
        Ok((Chain { head, tail: at, count, writable }, position))
    }

    /// Takes the descriptors of a finished chain back.
    pub(super) fn release(&mut self, chain: &Chain) {
        if let Some(next) = self.next.get_mut(usize::from(chain.tail)) {
            *next = self.free_head;
            self.free_head = chain.head;
            self.free = self.free.saturating_add(chain.count);
        }
    }

    /// Tells the device of all that was added. `true` if it wants to be notified of it.
    pub(super) fn publish(&mut self) -> Result<bool, QueueError> {
        if self.published == self.available {
            return Ok(false);
        }
        // Release: the descriptors and entries are written before the index that covers them (2.7.13.3.1).
        let index = self.available_at.saturating_add(RING_INDEX);
        self.slice_store(index, self.available.to_le(), Ordering::Release)?;
        self.published = self.available;
        // The device either sees the index, or we see its flags as they were before it went to sleep (2.7.13.4.1).
        fence(Ordering::SeqCst);
        Ok(u16::from_le(self.load(0, Ordering::Relaxed)?) & SUPPRESS == 0)
    }

    /// How many used elements there are to read, by one read of the used index.
    pub(super) fn used_count(&self) -> Result<u16, QueueError> {
        // Acquire: elements and buffers are read after the index that covers them.
        let index = self.load::<u16>(RING_INDEX, Ordering::Acquire)?;
        Ok(u16::from_le(index).wrapping_sub(self.used))
    }

    /// Reads the next used element; the caller knows that there is one.
    pub(super) fn take_used(&mut self) -> Result<Used, QueueError> {
        let slot = self.used & self.mask();
        let at = element(RING_HEADER, slot, USED_LEN);
        let id = u32::from_le(self.load(at, Ordering::Relaxed)?);
        let len = u32::from_le(self.load(at.saturating_add(4), Ordering::Relaxed)?);
        self.used = self.used.wrapping_add(1);
        Ok(Used { id, len })
    }

    /// Asks the device to interrupt when it has used buffers, or not to. Only a wish: interrupts may come anyway.
    pub(super) fn set_interrupts(&mut self, on: bool) -> Result<(), QueueError> {
        let flags = if on { 0 } else { SUPPRESS };
        self.slice_store(self.available_at, flags.to_le(), Ordering::Relaxed)?;
        if on {
            // The device either sees the flag, or the caller's next look sees its used index.
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    fn mask(&self) -> u16 {
        self.size.wrapping_sub(1)
    }

    fn available_entry(&self, slot: u16) -> usize {
        element(self.available_at.saturating_add(RING_HEADER), slot, AVAILABLE_LEN)
    }

    fn store<V: AtomicAccess>(&self, offset: usize, value: V) -> Result<(), QueueError> {
        self.slice_store(offset, value, Ordering::Relaxed)
    }

    // All offsets are in the regions by construction: an error would be a bug here, and makes the queue useless.
    fn slice_store<V: AtomicAccess>(
        &self,
        offset: usize,
        value: V,
        order: Ordering,
    ) -> Result<(), QueueError> {
        self.driver.as_volatile_slice().store(value, offset, order).map_err(|_| QueueError::Broken)
    }

    fn load<V: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<V, QueueError> {
        self.device.as_volatile_slice().load(offset, order).map_err(|_| QueueError::Broken)
    }
}
