//! The packed virtqueue's memory (section 2.8): one ring of descriptors, which the driver makes available and the device
//! overwrites when it has used them, and an event suppression structure for each side.
//!
//! Of the ring only the second half of a used descriptor is read, in one access, and only where one is due. The buffer
//! id is the slot.

use core::sync::atomic::Ordering;

use ringfence_memory::{DescriptorArray, Direction, DmaAddr, DmaArray, DmaRegion, DmaWindows, fence};

use super::chain::{Buffers, Chain, Entry, Frames, Part};
use super::ring::{Layout, Ring, Used};
use super::split::need_event;
use super::tables::{DESCRIPTOR_LEN, Tables};
use super::{Error, QueueError, QueueSetup};

/// Flags of a descriptor, where they are in its second half (2.8.13).
const NEXT: u64 = 1 << 48;
const WRITE: u64 = 2 << 48;
const INDIRECT: u64 = 4 << 48;
const AVAIL: u64 = 1 << 55;
const USED: u64 = 1 << 63;
/// Where the buffer id is in it.
const ID_SHIFT: u32 = 32;

/// An event suppression structure (2.8.14): a position in the lower half, flags in the upper.
const ENABLE: u32 = 0;
const DISABLE: u32 = 1 << 16;
const AT: u32 = 2 << 16;
const EVENT_FLAGS: u32 = 3 << 16;
/// In a position: the wrap counter.
const WRAP: u16 = 1 << 15;

/// A place in the ring, and the wrap counter there (2.8.1).
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u16,
    /// [`AVAIL`] while the wrap counter is 1, else [`USED`]: the flags that make a descriptor here available.
    available: u64,
}

impl Place {
    const START: Self = Self { index: 0, available: AVAIL };

    /// The place `count` further on in a ring of `size`; `count` is not above it.
    #[inline]
    fn after(self, count: u16, size: u16) -> Self {
        let index = self.index.wrapping_add(count);
        if index < size { Self { index, ..self } } else { self.wrapped(index.wrapping_sub(size)) }
    }

    #[cold]
    fn wrapped(self, index: u16) -> Self {
        Self { index, available: self.available ^ (AVAIL | USED) }
    }

    fn wrap(self) -> bool {
        self.available == AVAIL
    }

    /// As event suppression structures and notifications have it.
    fn position(self) -> u16 {
        self.index | if self.wrap() { WRAP } else { 0 }
    }

    /// Whether flags here say that the descriptor was used: both bits are as the wrap counter is.
    #[inline]
    fn is_used(self, rest: u64) -> bool {
        let used = if self.wrap() { AVAIL | USED } else { 0 };
        rest & (AVAIL | USED) == used
    }
}

/// A buffer id, where it is in the second half of a descriptor: the slot.
#[inline]
fn id(slot: u16) -> u64 {
    u64::from(slot) << ID_SHIFT
}

/// The length and flags of a part.
#[inline]
fn rest(part: &Part) -> u64 {
    u64::from(part.len) | if part.writable { WRITE } else { 0 }
}

#[derive(Debug)]
pub(super) struct PackedRing {
    /// The descriptors, which both sides write.
    ring: DmaRegion,
    /// Our event suppression structure, and the device's.
    driver: DmaRegion,
    device: DmaRegion,
    descriptors: DescriptorArray,
    /// The ring as 64-bit words: two for each descriptor.
    words: DmaArray<u64>,
    driver_event: DmaArray<u32>,
    device_event: DmaArray<u32>,
    tables: Option<Tables>,
    layout: Layout,
    frames: Frames,
    /// Before this index a chain of one own part is written in the usual way: within the frame, if slots have one.
    usual_end: u16,
    event_index: bool,
    interrupts: bool,
    /// Where the next descriptor goes, and where the next used one comes.
    available: Place,
    used: Place,
    /// Free descriptors in the ring.
    free: u16,
    /// The first descriptor since the last [`publish`](Ring::publish), which lacks its second half, and how many there
    /// are.
    held: Option<(u16, u64)>,
    added: u16,
}

impl PackedRing {
    /// A ring of `layout.size` descriptors.
    pub(super) fn new(windows: &DmaWindows, layout: Layout, event_index: bool) -> Result<Self, Error> {
        let size = usize::from(layout.size);
        let ring = windows.allocate_for(size.saturating_mul(DESCRIPTOR_LEN), Direction::Both)?;
        let driver = windows.allocate_for(size_of::<u32>(), Direction::ToDevice)?;
        let device = windows.allocate_for(size_of::<u32>(), Direction::FromDevice)?;
        let tables = (layout.tables() > 0).then(|| Tables::new(windows, layout.slots, layout.parts));
        Ok(Self {
            descriptors: DescriptorArray::new(&ring, 0, size)?,
            words: ring.array(0, size.saturating_mul(2))?,
            driver_event: driver.array(0, 1)?,
            device_event: device.array(0, 1)?,
            ring,
            driver,
            device,
            tables: tables.transpose()?,
            layout,
            frames: Frames::default(),
            usual_end: 0,
            event_index,
            interrupts: true,
            available: Place::START,
            used: Place::START,
            free: layout.size,
            held: None,
            added: 0,
        })
    }

    /// Whether a chain can be written directly while `others` more may each need a descriptor.
    #[inline]
    fn is_room(&self, others: u16) -> bool {
        self.tables.is_none() || self.free.wrapping_sub(others) >= self.layout.parts
    }

    /// Writes any chain at all, but for the second half of its first descriptor, which is returned; `others` slots are
    /// free besides.
    fn write_any<B: Buffers>(&self, entry: Entry<'_, B>, others: u16) -> Result<(Chain, u64), QueueError> {
        let (slot, start) = (entry.slot, self.available);
        if !self.is_room(others) {
            let tables = self.tables.as_ref().ok_or(QueueError::Broken)?;
            let (chain, table, len) = tables.write(slot, entry, &self.frames, |part, _| rest(part))?;
            self.descriptors.store_address(start.index.into(), table)?;
            return Ok((chain, u64::from(len) | INDIRECT | id(slot) | start.available));
        }
        let mut first = 0;
        let chain = entry.write(self.frames.get(slot), self.layout.parts, |place, part, more| {
            let at = start.after(place, self.layout.size);
            let rest = rest(part) | id(slot) | at.available | if more { NEXT } else { 0 };
            self.descriptors.store_address(at.index.into(), part.address)?;
            if place > 0 {
                return self.store_rest(at.index, rest, Ordering::Relaxed);
            }
            first = rest;
            Ok(())
        });
        Ok((chain.inspect_err(|_| self.clear())?, first))
    }

    /// Writes a chain of one part within a frame where the ring does not wrap, as [`add_any`](Self::add_any) does.
    #[inline]
    fn add_framed(
        &self,
        part: &Part,
        slot: u16,
        (first, last): &(Part, Part),
    ) -> Result<(Chain, u64), QueueError> {
        let Place { index, available } = self.available;
        let common = id(slot) | available;
        let (second, third) = (index.wrapping_add(1), index.wrapping_add(2));
        // What the device may come to first is written last.
        self.store(third, last, u64::from(last.len) | WRITE | common)?;
        self.store(second, part, rest(part) | NEXT | common)?;
        self.descriptors.store_address(index.into(), first.address)?;
        let own = if part.writable { part.len } else { 0 };
        let chain = Chain { count: 3, writable: own.wrapping_add(last.len), id: slot };
        Ok((chain, u64::from(first.len) | NEXT | common))
    }

    /// Ends the writing of a chain with the second half of its first descriptor.
    #[inline]
    fn add_first(&mut self, chain: Chain, first: u64) -> Result<Chain, QueueError> {
        let start = self.available;
        // The device looks no further than the first of all those that it was not told of.
        match self.held {
            None => self.held = Some((start.index, first)),
            Some(_) => self.store_rest(start.index, first, Ordering::Relaxed)?,
        }
        self.available = start.after(chain.count, self.layout.size);
        self.free = self.free.wrapping_sub(chain.count);
        self.added = self.added.wrapping_add(chain.count);
        Ok(chain)
    }

    #[inline]
    fn store(&self, at: u16, part: &Part, rest: u64) -> Result<(), QueueError> {
        self.descriptors.store_address(at.into(), part.address)?;
        self.store_rest(at, rest, Ordering::Relaxed)
    }

    /// Makes the descriptors after the first free one, which may have been written, unavailable again.
    #[cold]
    fn clear(&self) {
        let mut place = self.available;
        for _ in 1..self.layout.parts.min(self.free) {
            place = place.after(1, self.layout.size);
            let unavailable = if place.wrap() { 0 } else { AVAIL | USED };
            // Cannot fail, as in `store_rest`.
            let _ = self.store_rest(place.index, unavailable, Ordering::Relaxed);
        }
    }

    /// Whether the last `added` descriptors include the one at `position`.
    fn passes(&self, position: u16, added: u16) -> bool {
        let (new, wrap) = (self.available.index, self.available.wrap());
        // Indices that go on where the ring wraps: those of the last round are negative.
        let index = position & !WRAP;
        let event = if (position & WRAP != 0) == wrap { index } else { index.wrapping_sub(self.layout.size) };
        need_event(event, new, new.wrapping_sub(added))
    }

    // All places are in the ring by construction: an error would be a bug here, and makes the queue useless.
    #[inline]
    fn store_rest(&self, index: u16, rest: u64, order: Ordering) -> Result<(), QueueError> {
        Ok(self.descriptors.store_rest(index.into(), rest, order)?)
    }
}

impl Ring for PackedRing {
    fn setup(&self, index: u16) -> Result<QueueSetup, Error> {
        let address = |address: Option<DmaAddr>| address.ok_or(Error::BadConfig);
        Ok(QueueSetup {
            index,
            size: self.layout.size,
            descriptors: address(self.ring.address(0))?,
            driver: address(self.driver.address(0))?,
            device: address(self.device.address(0))?,
        })
    }

    fn rewind(&mut self) -> Result<(), QueueError> {
        (self.available, self.used) = (Place::START, Place::START);
        (self.free, self.held, self.added) = (self.layout.size, None, 0);
        for index in 0..self.words.len() {
            self.words.store(index, 0, Ordering::Relaxed).ok_or(QueueError::Broken)?;
        }
        self.device_event.store(0, ENABLE, Ordering::Relaxed).ok_or(QueueError::Broken)?;
        if self.interrupts { self.enable_interrupts() } else { self.disable_interrupts() }
    }

    fn position(&self) -> u16 {
        self.available.position()
    }

    fn set_frames(&mut self, frames: Frames) -> Result<(), QueueError> {
        // A frame must not wrap, nor take descriptors that others need.
        self.usual_end = match frames.lens {
            None => self.layout.size,
            Some(_) if self.tables.is_none() && self.layout.parts > 2 => self.layout.size.saturating_sub(2),
            Some(_) => 0,
        };
        self.frames = frames;
        Ok(())
    }

    #[inline(always)]
    fn is_usual(&self, _: u16) -> bool {
        self.available.index < self.usual_end
    }

    #[inline(always)]
    fn add_usual(&mut self, slot: u16, part: &Part) -> Result<Chain, QueueError> {
        if let Some(frame) = self.frames.get(slot) {
            let (chain, first) = self.add_framed(part, slot, frame).inspect_err(|_| self.clear())?;
            return self.add_first(chain, first);
        }
        let start = self.available;
        self.descriptors.store_address(start.index.into(), part.address)?;
        let writable = if part.writable { part.len } else { 0 };
        self.add_first(Chain { count: 1, writable, id: slot }, rest(part) | id(slot) | start.available)
    }

    #[inline(never)]
    fn add_any<B: Buffers>(&mut self, entry: Entry<'_, B>, others: u16) -> Result<Chain, QueueError> {
        let (chain, first) = self.write_any(entry, others)?;
        self.add_first(chain, first)
    }

    fn publish(&mut self) -> Result<bool, QueueError> {
        let Some((index, rest)) = self.held.take() else { return Ok(false) };
        // Release: all else is written before the descriptor that leads the device to it (2.8.21.1).
        self.store_rest(index, rest, Ordering::Release)?;
        let added = core::mem::take(&mut self.added);
        // The device either sees that, or we see what it wrote before it went to sleep (2.8.21.3.1).
        fence(Ordering::SeqCst);
        let event = self.device_event.load(0, Ordering::Relaxed).map(u32::from_le);
        let event = event.ok_or(QueueError::Broken)?;
        Ok(match event & EVENT_FLAGS {
            DISABLE => false,
            AT if self.event_index => self.passes(event as u16, added),
            _ => true,
        })
    }

    #[inline]
    fn look(&mut self, _: u16) -> Result<(), QueueError> {
        Ok(())
    }

    #[inline]
    fn used(&self) -> Result<Option<Used>, QueueError> {
        let at = usize::from(self.used.index).wrapping_mul(2).wrapping_add(1);
        // Acquire: buffers are read after the flags that cover them. The id and the length come with the flags.
        let rest = self.words.load(at, Ordering::Acquire).map(u64::from_le).ok_or(QueueError::Broken)?;
        let used = Used { id: (rest >> ID_SHIFT) as u32 & 0xffff, len: rest as u32 };
        Ok(self.used.is_used(rest).then_some(used))
    }

    fn is_skippable(&self) -> bool {
        true
    }

    #[inline]
    fn advance(&mut self, count: u16) {
        self.used = self.used.after(count, self.layout.size);
        self.free = self.free.wrapping_add(count);
    }

    fn disable_interrupts(&mut self) -> Result<(), QueueError> {
        self.interrupts = false;
        self.driver_event.store(0, DISABLE.to_le(), Ordering::Relaxed).ok_or(QueueError::Broken)
    }

    fn enable_interrupts(&mut self) -> Result<(), QueueError> {
        self.interrupts = true;
        let event = if self.event_index { AT | u32::from(self.used.position()) } else { ENABLE };
        self.driver_event.store(0, event.to_le(), Ordering::Relaxed).ok_or(QueueError::Broken)?;
        // The device either sees this, or the caller's next look sees its used descriptor.
        fence(Ordering::SeqCst);
        Ok(())
    }
}
