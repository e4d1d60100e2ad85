//! The memory of a packed virtqueue (section 2.8) as the device sees it.
//!
//! A position is a slot of the ring with the wrap counter in bit 15, as in the event suppression structures.
//! Those, and either half of a descriptor, are accessed as a whole, as our driver does: two sizes would be
//! none that the language says anything of.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ringfence_memory::{AtomicAccess, Bytes, fuchsia::DeviceRange};

use super::queue::{PackedMemory, QueueError, Taken};
use super::ring::{DESC_LEN, Desc, MAX_SIZE, element, halves, is_aligned};

/// The second half of a descriptor: length, buffer id, flags (2.8.13).
const REST: usize = 8;
const ID_SHIFT: u32 = 32;
const WRITE: u64 = 1 << 49;
const AVAIL: u64 = 1 << 55;
const USED: u64 = 1 << 63;

/// An event suppression structure (2.8.10): a position, and flags.
const EVENT_LEN: usize = 4;
const EVENT_FLAGS: u32 = 0xffff << 16;
const ENABLE: u32 = 0;
const DISABLE: u32 = 1 << 16;
const AT: u32 = 2 << 16;

const WRAP: u16 = 1 << 15;

pub(super) struct Packed<'a> {
    memory: PackedMemory<'a>,
    size: u16,
}

impl<'a> Packed<'a> {
    pub(super) fn new(memory: PackedMemory<'a>) -> Option<Self> {
        let size = u16::try_from(memory.desc.len() / DESC_LEN).ok()?;
        let PackedMemory { desc, desc_used, driver_event, device_event } = &memory;
        let fits = (1..=MAX_SIZE).contains(&size)
            && desc.len() == element(0, size, DESC_LEN)
            && desc_used.get() == desc.get()
            && driver_event.len() == EVENT_LEN
            && device_event.len() == EVENT_LEN;
        let aligned = is_aligned(desc, DESC_LEN)
            && is_aligned(driver_event, EVENT_LEN)
            && is_aligned(device_event, EVENT_LEN);
        let readable = desc.try_ptr::<u8>().is_some() && driver_event.try_ptr::<u8>().is_some();
        let writable = desc_used.try_mut_ptr::<u8>().is_some() && device_event.try_mut_ptr::<u8>().is_some();
        (fits && aligned && readable && writable).then_some(Self { memory, size })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn is_position(&self, position: u16) -> bool {
        position & !WRAP < self.size
    }

    pub(super) fn advance(&self, position: u16, slots: u16) -> u16 {
        let slot = (position & !WRAP).saturating_add(slots);
        match slot.checked_sub(self.size) {
            Some(slot) => (position ^ WRAP) & WRAP | slot,
            None => position & WRAP | slot,
        }
    }

    /// How many slots `to` lies after `from`, in two rounds of the ring.
    pub(super) fn distance(&self, from: u16, to: u16) -> u16 {
        let linear = |position: u16| {
            let round = if position & WRAP == 0 { u32::from(self.size) } else { 0 };
            u32::from(position & !WRAP).saturating_add(round)
        };
        let rounds = u32::from(self.size).saturating_mul(2);
        // `from` is a position of ours, `to` may be any number.
        let ahead = linear(to).saturating_add(rounds).saturating_sub(linear(from));
        // At most 65535: two rounds of 32768, less one.
        ahead.checked_rem(rounds).and_then(|ahead| u16::try_from(ahead).ok()).unwrap_or(0)
    }

    /// Takes the chain at `next`, if it was made available; `used` is the next slot to use.
    pub(super) fn take(&self, next: u16, used: u16) -> Result<Option<Taken>, QueueError> {
        if !self.is_set(next) {
            return Ok(None);
        }
        let room = self.room(next, used);
        let (mut descs, mut at) = (Vec::new(), next);
        for slots in 1..=room {
            let halves = halves(&self.memory.desc, self.at(at, 0)).map_err(|_| QueueError::Overrun)?;
            at = self.advance(at, 1);
            let (desc, id) = Desc::packed(halves, at & !WRAP);
            descs.push(desc);
            if !desc.has_next() {
                return Ok(Some(Taken { id, slots, descs, error: None }));
            }
        }
        Err(QueueError::Overrun)
    }

    /// Whether the driver may have made everything before `position` available: it lies ahead of `next` by no
    /// more than there is room for, up to a descriptor that is available; or behind, if chains were found
    /// before the driver notified.
    pub(super) fn is_available(&self, position: u16, next: u16, used: u16) -> bool {
        if !self.is_position(position) {
            return false;
        }
        let (ahead, behind) = (self.distance(next, position), self.distance(position, next));
        let last = self.advance(next, ahead.saturating_sub(1));
        behind <= self.size || ahead <= self.room(next, used) && self.is_set(next) && self.is_set(last)
    }

    fn room(&self, next: u16, used: u16) -> u16 {
        self.size.saturating_sub(self.distance(used, next))
    }

    /// Whether the driver has made the descriptor at `position` available.
    fn is_set(&self, position: u16) -> bool {
        // Acquire: the chain is read after the flags that make it available (2.8.21).
        let rest = self.memory.desc.load(self.at(position, REST), Ordering::Acquire).map_or(0, u64::from_le);
        let wrap = position & WRAP != 0;
        (rest & AVAIL != 0) == wrap && (rest & USED != 0) != wrap
    }

    /// Writes a used descriptor at `used` (2.8.7).
    pub(super) fn put(&self, used: u16, id: u16, written: u32) {
        let flags = if used & WRAP == 0 { 0 } else { AVAIL | USED } | if written > 0 { WRITE } else { 0 };
        let rest = u64::from(written) | u64::from(id) << ID_SHIFT | flags;
        // Release: buffers are written before the flags that tell of them.
        self.store(&self.memory.desc_used, rest.to_le(), self.at(used, REST), Ordering::Release);
    }

    /// Whether the driver wants to be notified after the used position went from `old` to `new`.
    pub(super) fn needs_notification(&self, event_idx: bool, old: u16, new: u16) -> bool {
        let Ok(event) = self.memory.driver_event.load(0, Ordering::Relaxed).map(u32::from_le) else {
            return true;
        };
        match event & EVENT_FLAGS {
            DISABLE => false,
            AT if event_idx => self.distance(old, event as u16) < self.distance(old, new),
            _ => true,
        }
    }

    /// Asks the driver to notify the device of every chain, or none.
    pub(super) fn suppress_notifications(&self, suppress: bool) {
        let flags = if suppress { DISABLE } else { ENABLE };
        self.store(&self.memory.device_event, flags.to_le(), 0, Ordering::Relaxed);
    }

    /// Asks the driver to notify the device when it makes the slot of `position` available.
    pub(super) fn set_avail_event(&self, position: u16) {
        let event = AT | u32::from(position);
        self.store(&self.memory.device_event, event.to_le(), 0, Ordering::Relaxed);
    }

    fn at(&self, position: u16, field: usize) -> usize {
        element(field, position & !WRAP, DESC_LEN)
    }

    fn store<T: AtomicAccess>(&self, range: &DeviceRange<'_>, value: T, at: usize, order: Ordering) {
        // `new` has checked size, alignment and direction: there is no error to report.
        let stored = range.store(value, at, order);
        debug_assert!(stored.is_ok());
    }
}
