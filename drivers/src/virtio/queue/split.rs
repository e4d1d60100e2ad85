//! The split virtqueue's memory (section 2.7): descriptor table, available ring, used ring.
//!
//! What this side writes is never read back; of what the device writes, the used index is read once for each
//! batch, and of a used element nothing is believed but what was checked in the same read.
//!
//! A slot's number is that of its first descriptor. Its others are as far apart as there are slots, so that
//! neither number is ever multiplied. Only with IN_ORDER each chain takes the descriptors after those of the
//! last one instead.

use core::sync::atomic::Ordering;

use ringfence_memory::virtqueue::split::{self, AVAILABLE, Descriptor, NO_NOTIFICATION, USED, UsedElement};
use ringfence_memory::virtqueue::{NEXT, need_event};
use ringfence_memory::{DescriptorTable, Direction, DmaArray, DmaWindows, Segment, Split, fence};

use super::chain::{Added, Chain};
use super::indirect::Tables;
use super::layout::Layout;
use super::ring::{AnyRing, Bad, EndsOf, Ring, Used};
use super::spare::Spare;
use super::{Error, QueueError, QueueSetup};

/// Where the used ring begins: not at 0, so that its elements are aligned to their 8 bytes.
const USED_AT: usize = 4;

/// How far ahead of the used index that was last seen `used_event` is put when no interrupts are wanted:
/// until the next look the device can go on by a whole ring, which does not pass it.
const FAR: u16 = 1 << 15;

/// What says in the second half of a descriptor that `next` is the one after it in its chain.
#[inline]
fn link(next: Option<u16>) -> u64 {
    let link = |next| u64::from(NEXT) << Descriptor::FLAGS | u64::from(next) << Descriptor::NEXT;
    next.map_or(0, link)
}

fn store(
    descriptors: &mut DescriptorTable<Split>,
    at: u16,
    segment: &Segment<'_>,
    next: Option<u16>,
) -> Result<(), QueueError> {
    Ok(descriptors.store(at.into(), segment, link(next), Ordering::Relaxed)?)
}

#[derive(Debug)]
pub(super) struct SplitRing {
    /// Which the device can only read, as the available ring.
    descriptors: DescriptorTable<Split>,
    /// The parts of the available ring: flags, index, ring and `used_event`.
    available_ring: [DmaArray<u16>; 4],
    /// Of the used ring, which the device can only write: flags, index and `avail_event`; and its elements.
    used_ring: [DmaArray<u16>; 3],
    used_elements: DmaArray<u64>,
    tables: Option<Tables<Split>>,
    layout: Layout,
    spare: Spare,
    /// Whether a chain of one segment of its own can be written as [`Ring::add_one`] does: to the first
    /// descriptor of its slot or, with ends, to the second. The ends are written once then, to the first and
    /// the last.
    ready_for_one: bool,
    /// Of slot 0, the second descriptor and the last.
    second: u16,
    last: u16,
    event_index: bool,
    interrupts: bool,
    /// The available index that the device was told: the number of chains, modulo 65,536.
    published: u16,
    /// The same of those that came back, which is the index of the next used element to read; the used index
    /// that was last seen, and the `used_event` that was written.
    used: u16,
    seen: u16,
    used_event: u16,
}

impl SplitRing {
    /// Rings for `layout.size` descriptors: a power of two. What is as large as these is smaller to make in
    /// place than in the registers of a caller.
    #[inline(never)]
    pub(super) fn new(windows: &DmaWindows, layout: Layout, event_index: bool) -> Result<Self, Error> {
        let size = usize::from(layout.size);
        let (available_len, used_len) = (AVAILABLE.len(layout.size), USED.len(layout.size));
        let descriptors = DescriptorTable::new(windows, size, available_len, Direction::ToDevice)?;
        let device = windows.allocate_for(used_len.saturating_add(USED_AT), Direction::FromDevice)?;
        let available = descriptors.array_after(available_len / 2)?;
        let part = |at: usize, count| available.part(at / 2, count).ok_or(Error::BadConfig);
        let used = |at: usize| device.array(at.saturating_add(USED_AT), 1);
        let (flags, index, elements) = (split::Ring::FLAGS, split::Ring::INDEX, split::Ring::ELEMENTS);
        let (used_event, avail_event) = (AVAILABLE.event(layout.size), USED.event(layout.size));
        Ok(Self {
            available_ring: [part(flags, 1)?, part(index, 1)?, part(elements, size)?, part(used_event, 1)?],
            descriptors,
            used_ring: [used(flags)?, used(index)?, used(avail_event)?],
            used_elements: device.array(elements.saturating_add(USED_AT), size)?,
            tables: Tables::new(windows, &layout)?,
            spare: Spare::new(&layout)?,
            layout,
            ready_for_one: false,
            second: layout.slots,
            // Below the size: slots have so many descriptors.
            last: layout.slots.wrapping_mul(layout.reserved.wrapping_sub(1)),
            event_index,
            interrupts: true,
            published: 0,
            used: 0,
            seen: 0,
            used_event: 0,
        })
    }

    /// Writes a chain to the descriptors of its slot, and to spare ones if it is longer.
    fn add_direct(&mut self, chain: Chain<'_>) -> Result<Added, QueueError> {
        let Self { descriptors, layout, spare, ready_for_one, last, .. } = self;
        let (slot, count) = (chain.slot, chain.count(layout)?);
        // All is checked before a spare descriptor is taken.
        chain.write(count, |_, segment, _| Ok(descriptors.check(segment)?))?;
        // Where `add_one` counts on it the last descriptor of a slot keeps its end; a chain without any
        // segment of its own has that second.
        let keeps_last = *ready_for_one && chain.ends.is_some() && count > 2;
        let own = layout.reserved.wrapping_sub(keeps_last.into());
        let mut at = slot;
        chain.write(count, |number, segment, more| {
            let here = at;
            let next = number.wrapping_add(1);
            if more {
                at = match next {
                    _ if keeps_last && next.wrapping_add(1) == count => slot.wrapping_add(*last),
                    _ if next < own => here.wrapping_add(layout.slots),
                    _ => spare.take(slot).ok_or(QueueError::Broken)?,
                };
            }
            store(descriptors, here, segment, more.then_some(at))
        })
    }

    /// Writes the available element of the chain that begins at `head`, after `number` others.
    #[inline(always)]
    fn add_available(&self, number: u64, head: u16) {
        let [_, _, ring, _] = &self.available_ring;
        ring.store_wrapping(number as usize, head.to_le(), Ordering::Relaxed);
    }

    /// Says whether interrupts are wanted: by the flag or, since that must stay 0 then (2.7.7.1), by `event`.
    fn set_wish(&mut self, flags: u16, event: u16) {
        let [wish, _, _, used_event] = &self.available_ring;
        if self.event_index {
            self.used_event = event;
            used_event.store_wrapping(0, event.to_le(), Ordering::Relaxed);
        } else {
            wish.store_wrapping(0, flags.to_le(), Ordering::Relaxed);
        }
    }
}

impl AnyRing for SplitRing {
    #[inline(never)]
    fn add(&mut self, chain: Chain<'_>) -> Result<Added, QueueError> {
        let Chain { slot, number, .. } = chain;
        let added = match &mut self.tables {
            Some(tables) => {
                let head = (&mut self.descriptors, slot, 0.into(), false);
                tables.add(chain, &self.layout, link, head)?
            }
            None => self.add_direct(chain)?,
        };
        self.add_available(number, slot);
        Ok(added)
    }

    fn next_used(&mut self, number: u64) -> Result<Option<Used>, Bad> {
        self.used(self.seen, number)
    }

    fn go_on(&mut self, _: u16) {}

    #[cold]
    fn give_back(&mut self, slot: u16) {
        self.spare.give_back(slot);
    }
}

impl Ring for SplitRing {
    type Available = ();
    /// The used index.
    type Used = u16;

    const COUNTS: bool = false;

    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
        let ([driver, ..], [device, ..]) = (&self.available_ring, &self.used_ring);
        let areas = driver.address(0).zip(device.address(0));
        let (driver, device) = areas.ok_or(Error::BadConfig)?;
        let addresses = self.descriptors.queue(driver, device)?;
        Ok(QueueSetup { index, addresses })
    }

    fn rewind(&mut self) {
        (self.published, self.used, self.seen) = (0, 0, 0);
        let [_, index, ..] = &self.available_ring;
        index.store_wrapping(0, 0, Ordering::Relaxed);
        self.used_ring.iter().for_each(|word| word.store_wrapping(0, 0, Ordering::Relaxed));
        if self.interrupts { self.enable_interrupts() } else { self.disable_interrupts() }
    }

    fn position(&self) -> u16 {
        self.published
    }

    fn set_ends(&mut self, ends: EndsOf<'_>) -> Result<bool, QueueError> {
        let Layout { slots, reserved, .. } = self.layout;
        let have_ends = ends(0).is_some();
        self.ready_for_one = self.tables.is_none() && reserved >= if have_ends { 3 } else { 1 };
        for slot in (0..slots).filter(|_| have_ends && self.ready_for_one) {
            let [first, last] = ends(slot).ok_or(QueueError::BadChain)?;
            let (second, end) = (slot.wrapping_add(self.second), slot.wrapping_add(self.last));
            store(&mut self.descriptors, slot, &first, Some(second))?;
            store(&mut self.descriptors, end, &last, None)?;
        }
        Ok(self.ready_for_one)
    }

    #[inline(always)]
    fn available(&self) {}

    #[inline(always)]
    fn set_available(&mut self, (): ()) {}

    #[inline(always)]
    fn add_one(
        &mut self,
        (): &mut (),
        (slot, number): (u16, u64),
        segment: &Segment<'_>,
        ends: Option<[Segment<'_>; 2]>,
    ) -> Result<Added, QueueError> {
        let (at, end) = (u32::from(slot), slot.wrapping_add(self.last));
        let (at, next) =
            if ends.is_some() { (at.wrapping_add(self.second.into()), Some(end)) } else { (at, None) };
        self.descriptors.store_wrapping(at as usize, segment, link(next), Ordering::Relaxed)?;
        self.add_available(number, slot);
        let own = if segment.is_writable() { segment.len() } else { 0 };
        let last = ends.map_or(0, |[_, last]| last.len());
        // No more than the slot's own.
        Ok(Added { count: 1, writable: own.wrapping_add(last) })
    }

    #[inline(always)]
    fn add_again(&mut self, (): &mut (), (slot, number): (u16, u64)) -> bool {
        self.add_available(number, slot);
        true
    }

    #[inline]
    fn publish(&mut self, number: u64) -> bool {
        let (old, new) = (self.published, number as u16);
        if old == new {
            return false;
        }
        let [_, index, ..] = &self.available_ring;
        // Release: the descriptors and elements are written before the index that covers them (2.7.13.3.1).
        index.store_wrapping(0, new.to_le(), Ordering::Release);
        self.published = new;
        // The device either sees the index, or we see what it wrote before it went to sleep (2.7.13.4.1).
        fence(Ordering::SeqCst);
        self.is_kick_due(new.wrapping_sub(old))
    }

    #[inline]
    fn is_kick_due(&self, chains: u16) -> bool {
        let [flags, _, avail_event] = &self.used_ring;
        if !self.event_index {
            return u16::from_le(flags.load_wrapping(0, Ordering::Relaxed)) & NO_NOTIFICATION == 0;
        }
        let event = u16::from_le(avail_event.load_wrapping(0, Ordering::Relaxed));
        need_event(event, self.published, self.published.wrapping_sub(chains))
    }

    #[inline]
    fn look(&mut self, in_flight: u16) -> Result<u16, QueueError> {
        // Acquire: elements and buffers are read after the index that covers them.
        let [_, index, _] = &self.used_ring;
        let index = u16::from_le(index.load_wrapping(0, Ordering::Acquire));
        // Nor does it ever go back.
        let (now, before) = (index.wrapping_sub(self.used), self.seen.wrapping_sub(self.used));
        if now > in_flight || now < before {
            return Err(QueueError::Broken);
        }
        self.seen = index;
        // Until the next look the device can go on by a whole ring.
        let ahead = self.used_event.wrapping_sub(index);
        if self.event_index && !self.interrupts && ahead < self.layout.size {
            self.disable_interrupts();
        }
        Ok(index)
    }

    #[inline(always)]
    fn used(&mut self, end: u16, number: u64) -> Result<Option<Used>, Bad> {
        if number as u16 == end {
            return Ok(None);
        }
        let element = self.used_elements.load_wrapping(number as usize, Ordering::Relaxed);
        let element = u64::from_le(element);
        let UsedElement { id, len } = UsedElement::from_word(element);
        Ok(Some(Used { id, len: Some(len) }))
    }

    #[inline(always)]
    fn advance(&mut self, _: &mut u16, _: u16) {}

    #[inline]
    fn set_used(&mut self, _: u16, number: u64) {
        self.used = number as u16;
    }

    fn now(&self) -> u16 {
        self.seen
    }

    fn disable_interrupts(&mut self) {
        self.interrupts = false;
        self.set_wish(NO_NOTIFICATION, self.seen.wrapping_add(FAR));
    }

    fn enable_interrupts(&mut self) {
        self.interrupts = true;
        self.set_wish(0, self.used);
        // The device either sees this, or the caller's next look sees its used index.
        fence(Ordering::SeqCst);
    }
}

/// What [`InOrder`](super::in_order::InOrder) needs.
impl SplitRing {
    /// Writes any chain to the descriptors from `head` on, and says what the device will call it.
    pub(super) fn add_at(&mut self, chain: Chain<'_>, head: u16) -> Result<(Added, u16), QueueError> {
        let Self { descriptors, tables, layout, .. } = self;
        let added = if let Some(tables) = tables {
            tables.add(chain, layout, link, (descriptors, head, 0.into(), false))?
        } else {
            // The table goes on at its start.
            let (count, mask) = (chain.count(layout)?, layout.size.wrapping_sub(1));
            chain.write(count, |number, segment, more| {
                let at = head.wrapping_add(number) & mask;
                store(descriptors, at, segment, more.then_some(at.wrapping_add(1) & mask))
            })?
        };
        self.add_available(chain.number, head);
        Ok((added, head))
    }

    /// Whether the device may have used a chain without an element of its own.
    pub(super) fn may_be_skipped(&self, number: u64) -> bool {
        number as u16 != self.seen
    }
}
