//! The memory of a packed virtqueue (section 2.8) as the device sees it.
//!
//! Event suppression structures, and either half of a descriptor, are accessed as a whole, as our driver
//! does: two sizes would be none that the language says anything of.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ringfence_memory::virtqueue::packed::{Descriptor, Event, Position, need_event};
use ringfence_memory::virtqueue::{self, DESCRIPTOR_LEN, MAX_SIZE, WORD_LEN, WRITE};
use ringfence_memory::{AtomicAccess, Bytes, fuchsia::DeviceRange};

use super::error::QueueError;
use super::memory::PackedMemory;
use super::ring::{Desc, descriptor, is_aligned};
use super::taken::Taken;

pub(super) struct Packed<'a> {
    memory: PackedMemory<'a>,
    size: u16,
}

impl<'a> Packed<'a> {
    pub(super) fn new(memory: PackedMemory<'a>) -> Option<Self> {
        let size = u16::try_from(memory.desc.len() / DESCRIPTOR_LEN).ok()?;
        let PackedMemory { desc, desc_used, driver_event, device_event } = &memory;
        let fits = (1..=MAX_SIZE).contains(&size)
            && desc.len() == virtqueue::descriptor(size)
            && desc_used.get() == desc.get()
            && driver_event.len() == Event::LEN
            && device_event.len() == Event::LEN;
        let aligned = is_aligned(desc, DESCRIPTOR_LEN)
            && is_aligned(driver_event, Event::LEN)
            && is_aligned(device_event, Event::LEN);
        let readable = desc.try_ptr::<u8>().is_some() && driver_event.try_ptr::<u8>().is_some();
        let writable = desc_used.try_mut_ptr::<u8>().is_some() && device_event.try_mut_ptr::<u8>().is_some();
        (fits && aligned && readable && writable).then_some(Self { memory, size })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn is_position(&self, position: u16) -> bool {
        Position::from_word(position).index < self.size
    }

    pub(super) fn advance(&self, position: u16, count: u16) -> u16 {
        Position::from_word(position).after(count, self.size).to_word()
    }

    /// How many descriptors `to` lies after `from`, in two rounds of the ring. Both are positions of it.
    pub(super) fn distance(&self, from: u16, to: u16) -> u16 {
        Position::from_word(from).until(Position::from_word(to), self.size)
    }

    /// Takes the chain at `next`, if it was made available; `used` is the next descriptor to use.
    pub(super) fn take(&self, next: u16, used: u16) -> Result<Option<Taken>, QueueError> {
        if !self.is_set(next) {
            return Ok(None);
        }
        let room = self.room(next, used);
        let (mut descs, mut at) = (Vec::new(), next);
        for count in 1..=room {
            let words = descriptor(&self.memory.desc, Position::from_word(at).index);
            at = self.advance(at, 1);
            let (desc, id) =
                Desc::packed(words.map_err(|_| QueueError::Overrun)?, Position::from_word(at).index);
            descs.push(desc);
            if !desc.has_next() {
                return Ok(Some(Taken { id, count, descs, error: None }));
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
        let rest = self.memory.desc.load(rest(position), Ordering::Acquire).map(u64::from_le);
        rest.is_ok_and(|rest| {
            Position::from_word(position).is_available(Descriptor::from_words([0, rest]).flags)
        })
    }

    /// Writes a used descriptor at `used` (2.8.7).
    pub(super) fn put(&self, used: u16, id: u16, written: u32) {
        let flags = Position::from_word(used).used() | if written > 0 { WRITE } else { 0 };
        let [_, word] = Descriptor { address: 0, len: written, id, flags }.to_words();
        // Release: buffers are written before the flags that tell of them.
        self.store(&self.memory.desc_used, word.to_le(), rest(used), Ordering::Release);
    }

    /// Whether the driver wants to be notified after the used position went from `old` to `new`.
    pub(super) fn needs_notification(&self, event_idx: bool, old: u16, new: u16) -> bool {
        let Ok(event) = self.memory.driver_event.load(0, Ordering::Relaxed).map(u32::from_le) else {
            return true;
        };
        let Event { position, flags } = Event::from_word(event);
        match flags {
            Event::DISABLE => false,
            Event::DESC if event_idx => {
                need_event(position, Position::from_word(new), self.distance(old, new), self.size)
            }
            _ => true,
        }
    }

    /// Asks the driver to notify the device of every chain, or none.
    pub(super) fn suppress_notifications(&self, suppress: bool) {
        let flags = if suppress { Event::DISABLE } else { Event::ENABLE };
        self.set_event(Event { position: Position::START, flags });
    }

    /// Asks the driver to notify the device when it makes the descriptor at `position` available.
    pub(super) fn set_avail_event(&self, position: u16) {
        self.set_event(Event { position: Position::from_word(position), flags: Event::DESC });
    }

    fn set_event(&self, event: Event) {
        self.store(&self.memory.device_event, event.to_word().to_le(), 0, Ordering::Relaxed);
    }

    fn store<T: AtomicAccess>(&self, range: &DeviceRange<'_>, value: T, at: usize, order: Ordering) {
        // `new` has checked size, alignment and direction: there is no error to report.
        let stored = range.store(value, at, order);
        debug_assert!(stored.is_ok());
    }
}

/// Where length, id and flags of the descriptor at `position` are.
fn rest(position: u16) -> usize {
    virtqueue::descriptor(Position::from_word(position).index).saturating_add(WORD_LEN)
}
