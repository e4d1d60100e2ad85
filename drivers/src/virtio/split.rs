//! The split virtqueue's memory (section 2.7): descriptor table, available ring, used ring.
//!
//! What this side writes is never read back; of what the device writes, each used element is read once, and
//! the used index once for each batch.
//!
//! Each slot has its own descriptors: the first slots as many as a chain may have parts, in a row; the others
//! one, for an indirect table. A slot's number is that of its first descriptor. Only IN_ORDER demands
//! something else. With IN_ORDER each chain takes the descriptors after those of the last one instead.

use core::sync::atomic::Ordering;

use ringfence_memory::{DescriptorTable, Direction, DmaArray, DmaWindows, Segment, Split, fence};

use super::chain::{Buffers, Chain, Entry, Frames};
use super::ring::{Layout, Ring, Used};
use super::tables::Tables;
use super::{Error, QueueError, QueueSetup};

const AVAILABLE_LEN: usize = 2;
const USED_LEN: usize = 8;
/// Bytes before the elements of both rings: flags and index.
const RING_HEADER: usize = 4;
/// In arrays of 16-bit values.
const FLAGS: usize = 0;
const INDEX: usize = 1;
const ENTRIES: usize = 2;
/// Where the used ring begins: not at 0, so that its elements are aligned to their 8 bytes.
const USED_AT: usize = 4;

/// In the second half of a descriptor.
const NEXT: u64 = 1 << 32;
/// In the available ring's flags: no interrupts, please. In the used ring's: no notifications, please.
const SUPPRESS: u16 = 1;
/// How far ahead of the used index that was last seen `used_event` is put when no interrupts are wanted:
/// until the next look the device can go on by a whole ring, which does not pass it.
const FAR: u16 = 1 << 15;

/// Whether going from `old` to `new` passes `event` (2.7.7.1, 2.7.10): for all index values, wrapped or not.
pub(super) const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[inline]
fn store(
    descriptors: &mut DescriptorTable<Split>,
    at: u16,
    segment: &Segment<'_>,
    next: Option<u16>,
) -> Result<(), QueueError> {
    Ok(descriptors.store(at.into(), segment, link(next), Ordering::Relaxed)?)
}

/// What says in the second half of a descriptor that `next` is the one after it in its chain.
#[inline]
fn link(next: Option<u16>) -> u64 {
    next.map_or(0, |next| NEXT | u64::from(next) << 48)
}

#[derive(Debug)]
pub(super) struct SplitRing {
    /// Which the device can only read, as the available ring.
    descriptors: DescriptorTable<Split>,
    /// Flags, index, entries and `used_event`; and the entries by themselves.
    available_ring: DmaArray<u16>,
    available_entries: DmaArray<u16>,
    /// Flags, index, elements and `avail_event`, as 16-bit values, which the device can only write.
    used_ring: DmaArray<u16>,
    used_elements: DmaArray<u64>,
    tables: Option<Tables<Split>>,
    layout: Layout,
    /// Those of slots in the ring were written once: the first part to the slot's first descriptor, in front
    /// of the second, and the last to its last one.
    frames: Frames,
    /// Chains of one own part in slots before this one are written in the usual way: within the frame, if
    /// slots have one.
    usual_end: u16,
    framed: bool,
    /// Length of the frames' last segment; 0 without.
    last_len: u32,
    mask: u16,
    /// With IN_ORDER descriptors are taken in the order of the table (2.7.9): this one is the next.
    next_in_order: Option<u16>,
    /// With IN_ORDER, the free descriptors of the table.
    free: u16,
    event_index: bool,
    interrupts: bool,
    /// Index of the next available entry to write, and that which the device was told.
    available: u16,
    published: u16,
    /// Index of the next used element to read, the used index that was last seen, and the `used_event` that
    /// was written.
    used: u16,
    seen: u16,
    used_event: u16,
}

impl SplitRing {
    /// Rings for `layout.size` descriptors: a power of two.
    pub(super) fn new(
        windows: &DmaWindows,
        layout: Layout,
        event_index: bool,
        in_order: bool,
    ) -> Result<Self, Error> {
        let size = usize::from(layout.size);
        // Both rings are followed by an event index of 2 bytes.
        let ring_len = |len| size.saturating_mul(len).saturating_add(RING_HEADER + 2);
        let descriptors = DescriptorTable::new(windows, size, ring_len(AVAILABLE_LEN), Direction::ToDevice)?;
        let device_len = ring_len(USED_LEN).saturating_add(USED_AT);
        let device = windows.allocate_for(device_len, Direction::FromDevice)?;
        // In order any chain may need one.
        let count = if in_order { layout.slots } else { layout.tables() };
        let tables = (layout.tables() > 0).then(|| Tables::new(windows, count, layout.parts)).transpose()?;
        let available_ring = descriptors.array_after(size.saturating_add(ENTRIES + 1))?;
        Ok(Self {
            available_entries: available_ring.part(ENTRIES, size).ok_or(Error::BadConfig)?,
            available_ring,
            descriptors,
            used_ring: device.array(USED_AT, ring_len(USED_LEN) / 2)?,
            used_elements: device.array(USED_AT + RING_HEADER, size)?,
            tables,
            layout,
            frames: Frames::default(),
            usual_end: if in_order { 0 } else { layout.first_indirect },
            framed: false,
            last_len: 0,
            mask: layout.size.saturating_sub(1),
            next_in_order: in_order.then_some(0),
            free: layout.size,
            event_index,
            interrupts: true,
            available: 0,
            published: 0,
            used: 0,
            seen: 0,
            used_event: 0,
        })
    }

    /// Writes the descriptors of any chain at all; `others` slots are free besides.
    fn write_any<B: Buffers>(&mut self, entry: Entry<'_, B>, others: u16) -> Result<Chain, QueueError> {
        let slot = entry.slot;
        let Some(head) = self.next_in_order else {
            return match slot.checked_sub(self.layout.first_indirect) {
                Some(table) => self.add_table(entry, table, slot),
                None => self.add_run(entry, slot),
            };
        };
        let is_room = self.tables.is_none() || self.free.wrapping_sub(others) >= self.layout.parts;
        let chain = if is_room { self.add_run(entry, head) } else { self.add_table(entry, slot, head) }?;
        self.next_in_order = Some(head.wrapping_add(chain.count) & self.mask);
        self.free = self.free.wrapping_sub(chain.count);
        Ok(chain)
    }

    /// Writes a chain to the table at `index`, and a descriptor of that at `head`.
    fn add_table<B: Buffers>(
        &mut self,
        entry: Entry<'_, B>,
        index: u16,
        head: u16,
    ) -> Result<Chain, QueueError> {
        let tables = self.tables.as_mut().ok_or(QueueError::Broken)?;
        let (chain, first, count) = tables.write(index, entry, &self.frames, link)?;
        self.descriptors.store_indirect(head.into(), (&tables.descriptors, first, count), 0, false)?;
        Ok(Chain { id: head, ..chain })
    }

    /// Writes a chain to the descriptors from `head` on; the table goes on at its start.
    fn add_run<B: Buffers>(&mut self, entry: Entry<'_, B>, head: u16) -> Result<Chain, QueueError> {
        let (frame, mask) = (self.frames.get(entry.slot), self.mask);
        let chain = entry.write(frame, self.layout.parts, |place, segment, more| {
            let at = head.wrapping_add(place) & mask;
            store(&mut self.descriptors, at, segment, more.then_some(at.wrapping_add(1) & mask))
        })?;
        Ok(Chain { id: head, ..chain })
    }

    /// Writes the available entry of the chain that begins at `head`.
    #[inline]
    fn add_available(&mut self, head: u16) {
        self.available_entries.store_wrapping(self.available.into(), head.to_le(), Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// The last descriptor of a slot in the ring.
    #[inline]
    fn end(&self, slot: u16) -> u16 {
        slot.wrapping_add(self.layout.parts).wrapping_sub(1)
    }

    fn set_used_event(&mut self, event: u16) -> Result<(), QueueError> {
        self.used_event = event;
        self.put(usize::from(self.layout.size).wrapping_add(ENTRIES), event, Ordering::Relaxed)
    }

    fn avail_event_at(&self) -> usize {
        usize::from(self.layout.size).wrapping_mul(USED_LEN / 2).wrapping_add(ENTRIES)
    }

    // All places are in the arrays by construction: an error would be a bug here, and makes the queue
    // useless.
    #[inline]
    fn put(&self, at: usize, value: u16, order: Ordering) -> Result<(), QueueError> {
        self.available_ring.store(at, value.to_le(), order).ok_or(QueueError::Broken)
    }

    #[inline]
    fn get(&self, at: usize, order: Ordering) -> Result<u16, QueueError> {
        self.used_ring.load(at, order).map(u16::from_le).ok_or(QueueError::Broken)
    }
}

impl Ring for SplitRing {
    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
        let driver = self.available_ring.address(0).ok_or(Error::BadConfig)?;
        let device = self.used_ring.address(0).ok_or(Error::BadConfig)?;
        let addresses = self.descriptors.queue(driver, device)?;
        Ok(QueueSetup { index, addresses })
    }

    fn rewind(&mut self) -> Result<(), QueueError> {
        (self.available, self.published, self.used, self.seen) = (0, 0, 0, 0);
        self.next_in_order = self.next_in_order.map(|_| 0);
        self.free = self.layout.size;
        self.put(INDEX, 0, Ordering::Relaxed)?;
        for at in [FLAGS, INDEX, self.avail_event_at()] {
            self.used_ring.store(at, 0, Ordering::Relaxed).ok_or(QueueError::Broken)?;
        }
        if self.interrupts { self.enable_interrupts() } else { self.disable_interrupts() }
    }

    fn position(&self) -> u16 {
        self.available
    }

    fn set_frames(&mut self, frames: Frames) -> Result<(), QueueError> {
        self.frames = frames;
        if !self.frames.are_there() {
            return Ok(());
        }
        if self.layout.parts < 2 {
            return Err(QueueError::BadChain);
        }
        self.framed = true;
        self.last_len = self.frames.last_len();
        for slot in (0..self.usual_end).step_by(self.layout.parts.into()) {
            let [first, last] = self.frames.get(slot).ok_or(QueueError::Broken)?;
            let end = self.end(slot);
            store(&mut self.descriptors, slot, &first, Some(slot.wrapping_add(1)))?;
            store(&mut self.descriptors, end, &last, None)?;
        }
        if self.layout.parts == 2 {
            self.usual_end = 0;
        }
        Ok(())
    }

    #[inline(always)]
    fn is_usual(&self, slot: u16) -> bool {
        slot < self.usual_end
    }

    #[inline(always)]
    fn add_usual<B: Buffers>(&mut self, slot: u16, segment: &Segment<'_>) -> Result<Chain, QueueError> {
        // A frame is there already; the segment goes in between.
        let (at, next, count) = if B::FRAMED && self.framed {
            (slot.wrapping_add(1), Some(self.end(slot)), 3)
        } else {
            (slot, None, 1)
        };
        store(&mut self.descriptors, at, segment, next)?;
        let own = if segment.is_writable() { segment.len() } else { 0 };
        let last = if B::FRAMED { self.last_len } else { 0 };
        self.add_available(slot);
        Ok(Chain { count, writable: own.wrapping_add(last), id: slot })
    }

    #[inline(always)]
    fn add_again<B: Buffers>(&mut self, slot: u16) -> Result<bool, QueueError> {
        if slot >= self.usual_end || B::FRAMED {
            return Ok(false);
        }
        self.add_available(slot);
        Ok(true)
    }

    #[inline(never)]
    fn add_any<B: Buffers>(&mut self, entry: Entry<'_, B>, others: u16) -> Result<Chain, QueueError> {
        let chain = self.write_any(entry, others)?;
        self.add_available(chain.id);
        Ok(chain)
    }

    fn publish(&mut self) -> Result<bool, QueueError> {
        let (old, new) = (self.published, self.available);
        if old == new {
            return Ok(false);
        }
        // Release: the descriptors and entries are written before the index that covers them (2.7.13.3.1).
        self.put(INDEX, new, Ordering::Release)?;
        self.published = new;
        // The device either sees the index, or we see what it wrote before it went to sleep (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_index {
            Ok(need_event(self.get(self.avail_event_at(), Ordering::Relaxed)?, new, old))
        } else {
            Ok(self.get(FLAGS, Ordering::Relaxed)? & SUPPRESS == 0)
        }
    }

    #[inline]
    fn look(&mut self, in_flight: u16) -> Result<(), QueueError> {
        if self.used != self.seen {
            return Ok(());
        }
        // Acquire: elements and buffers are read after the index that covers them.
        let index = self.get(INDEX, Ordering::Acquire)?;
        if index.wrapping_sub(self.used) > in_flight {
            return Err(QueueError::Broken);
        }
        self.seen = index;
        // Until the next look the device can go on by a whole ring.
        let ahead = self.used_event.wrapping_sub(index);
        if self.event_index && !self.interrupts && ahead < self.layout.size {
            self.disable_interrupts()?;
        }
        Ok(())
    }

    #[inline]
    fn used(&self) -> Result<Option<Used>, QueueError> {
        if self.used == self.seen {
            return Ok(None);
        }
        let element = u64::from_le(self.used_elements.load_wrapping(self.used.into(), Ordering::Relaxed));
        Ok(Some(Used { id: element as u32, len: (element >> 32) as u32 }))
    }

    fn is_skippable(&self) -> bool {
        self.used != self.seen
    }

    #[inline]
    fn advance(&mut self, _: u16) {
        self.used = self.used.wrapping_add(1);
    }

    fn freed_in_order(&mut self, count: u16) {
        self.free = self.free.wrapping_add(count);
    }

    fn disable_interrupts(&mut self) -> Result<(), QueueError> {
        self.interrupts = false;
        if self.event_index {
            // The flag must stay 0 (2.7.7.1).
            self.set_used_event(self.seen.wrapping_add(FAR))
        } else {
            self.put(FLAGS, SUPPRESS, Ordering::Relaxed)
        }
    }

    fn enable_interrupts(&mut self) -> Result<(), QueueError> {
        self.interrupts = true;
        if self.event_index {
            self.set_used_event(self.used)?;
        } else {
            self.put(FLAGS, 0, Ordering::Relaxed)?;
        }
        // The device either sees this, or the caller's next look sees its used index.
        fence(Ordering::SeqCst);
        Ok(())
    }
}
