//! The packed virtqueue's memory (section 2.8): one ring of descriptors, which the driver makes available and
//! the device overwrites when it has used them, and an event suppression structure for each side.
//!
//! Of the ring only the second half of a used descriptor is read, in one access, and only where one is due.
//! The buffer id is the slot.

use core::sync::atomic::Ordering;

use ringfence_memory::virtqueue::{self, need_event, packed, packed::Descriptor, packed::Event};
use ringfence_memory::{
    DescriptorBits, DescriptorTable, Direction, DmaArray, DmaWindows, Packed, Segment, fence,
};

use super::chain::{Added, Chain};
use super::indirect::Tables;
use super::layout::Layout;
use super::ring::{AnyRing, Bad, EndsOf, Ring, Used};
use super::{Error, QueueError, QueueSetup};

/// Flags of a descriptor, where they are in its second half.
const NEXT: u64 = (virtqueue::NEXT as u64) << Descriptor::FLAGS;
const AVAIL: u64 = (packed::AVAIL as u64) << Descriptor::FLAGS;
const USED: u64 = (packed::USED as u64) << Descriptor::FLAGS;

/// Flags of an event suppression structure, where they are in it.
const DISABLE: u32 = (Event::DISABLE as u32) << Event::FLAGS;
const DESC: u32 = (Event::DESC as u32) << Event::FLAGS;
const EVENT_FLAGS: u32 = u32::MAX << Event::FLAGS;

/// Event suppression structures in a cache line. Each of the two has a line of its own, behind the
/// descriptors: what the device might write over the driver's, it alone reads.
const LINE: usize = 16;

/// A position in the ring: an index, and the wrap counter there (2.8.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    index: u16,
    /// [`AVAIL`] while the wrap counter is 1, else [`USED`]: the flags that make a descriptor here available.
    available: DescriptorBits<Packed>,
}

impl Position {
    fn start() -> Self {
        Self { index: 0, available: AVAIL.into() }
    }

    /// The position `count` further on in a ring of `size`; `count` is not above it.
    #[inline]
    fn after(self, count: u16, size: u16) -> Self {
        let index = self.index.wrapping_add(count);
        if index < size { Self { index, ..self } } else { self.in_next_round(index.wrapping_sub(size)) }
    }

    #[cold]
    fn in_next_round(self, index: u16) -> Self {
        Self { index, available: (self.available.get() ^ (AVAIL | USED)).into() }
    }

    /// How far it is to `end`, which is not more than one round further on.
    fn until(self, end: Self, size: u16) -> u16 {
        let round = if self.wrap() == end.wrap() { 0 } else { size };
        end.index.wrapping_sub(self.index).wrapping_add(round)
    }

    fn wrap(self) -> bool {
        self.available.get() == AVAIL
    }

    /// As the device is told of it.
    #[inline]
    fn told(self) -> packed::Position {
        packed::Position { index: self.index, wrap: self.wrap() }
    }

    /// Whether flags here say that the descriptor was used: both bits are as the wrap counter is.
    #[inline]
    fn is_used(self, rest: u64) -> bool {
        // `available` has the one of them that says so: AVAIL where both are set, USED where both are clear.
        (rest ^ self.available.get()) & (AVAIL | USED) == USED
    }
}

/// A buffer id, where it is in the second half of a descriptor: the slot.
#[inline]
fn id(slot: u16) -> DescriptorBits<Packed> {
    (u64::from(slot) << Descriptor::ID).into()
}

#[derive(Debug)]
pub(super) struct PackedRing {
    /// Which both sides write. Of the first one since the last [`publish`](Ring::publish) the second half is
    /// held back.
    descriptors: DescriptorTable<Packed>,
    /// Our event suppression structure, and the device's.
    driver_event: DmaArray<u32>,
    device_event: DmaArray<u32>,
    tables: Option<Tables<Packed>>,
    layout: Layout,
    event_index: bool,
    interrupts: bool,
    /// Where the next descriptor goes, where it did when the device was last told, and where the next used
    /// one comes.
    available: Position,
    published: Position,
    used: Position,
}

impl PackedRing {
    /// A ring of `layout.size` descriptors.
    pub(super) fn new(windows: &DmaWindows, layout: Layout, event_index: bool) -> Result<Self, Error> {
        let size = usize::from(layout.size);
        let descriptors = DescriptorTable::new(windows, size, 8 * LINE, Direction::Both)?;
        let events = descriptors.array_after(2 * LINE)?;
        let event = |at| events.part(at, 1).ok_or(Error::BadConfig);
        Ok(Self {
            descriptors,
            driver_event: event(0)?,
            device_event: event(LINE)?,
            tables: Tables::new(windows, &layout)?,
            layout,
            event_index,
            interrupts: true,
            available: Position::start(),
            published: Position::start(),
            used: Position::start(),
        })
    }

    /// Writes any chain at all.
    fn write(&mut self, chain: Chain<'_>) -> Result<Added, QueueError> {
        let Self { descriptors, tables, layout, available: start, .. } = self;
        let (slot, start) = (chain.slot, *start);
        if let Some(tables) = tables {
            let head = (descriptors, start.index, id(slot) | start.available, true);
            return tables.add(chain, layout, |_| 0, head);
        }
        let count = chain.count(layout)?;
        // Nothing is written of a chain that is refused (2.8.5): what lies behind its head might be taken for
        // another.
        chain.write(count, |_, segment, _| Ok(descriptors.check(segment)?))?;
        let mut first = None;
        let added = chain.write(count, |number, segment, more| {
            let at = start.after(number, layout.size);
            let bits = id(slot) | at.available | if more { NEXT } else { 0 }.into();
            if number == 0 {
                first = Some((*segment, bits));
                return Ok(());
            }
            Ok(descriptors.store(at.index.into(), segment, bits, Ordering::Relaxed)?)
        })?;
        // What the device may come to first is written last; it looks no further than the first of all those
        // that it was not told of.
        let (segment, bits) = first.ok_or(QueueError::BadChain)?;
        descriptors.hold(start.index.into(), [(&segment, bits)])?;
        Ok(added)
    }

    /// Writes a chain of one segment of its own where the ring does not wrap, as [`write`](Self::write) does.
    #[inline(always)]
    fn write_one(
        &mut self,
        start: Position,
        slot: u16,
        segment: &Segment<'_>,
        ends: Option<[Segment<'_>; 2]>,
    ) -> Result<Added, QueueError> {
        let own = if segment.is_writable() { segment.len() } else { 0 };
        let (at, bits) = (usize::from(start.index), id(slot) | start.available);
        let Some([first, last]) = ends else {
            self.descriptors.hold(at, [(segment, bits)])?;
            return Ok(Added { count: 1, writable: own });
        };
        let next = bits | NEXT.into();
        self.descriptors.hold(at, [(&first, next), (segment, next), (&last, bits)])?;
        Ok(Added { count: 3, writable: own.wrapping_add(last.len()) })
    }

    /// Whether the device wants to be notified of the last `added` descriptors that it was told of.
    #[inline]
    fn wants_kick(&self, added: u16) -> bool {
        let event = u32::from_le(self.device_event.load_wrapping(0, Ordering::Relaxed));
        match event & EVENT_FLAGS {
            DISABLE => false,
            DESC if self.event_index => self.passes(event as u16, added),
            _ => true,
        }
    }

    /// Whether the last `added` descriptors that the device was told of include the one at `event`:
    /// [`packed::need_event`], for less.
    fn passes(&self, event: u16, added: u16) -> bool {
        let event = packed::Position::from_word(event);
        let (new, wrap, size) = (self.published.index, self.published.wrap(), self.layout.size);
        // Indices that go on where the ring wraps: those of the last round are negative.
        let event = if event.wrap == wrap { event.index } else { event.index.wrapping_sub(size) };
        need_event(event, new, new.wrapping_sub(added))
    }

    fn set_event(&self, flags: u16) {
        let word = Event { position: self.used.told(), flags }.to_word();
        self.driver_event.store_wrapping(0, word.to_le(), Ordering::Relaxed);
    }
}

impl AnyRing for PackedRing {
    #[inline(never)]
    fn add(&mut self, chain: Chain<'_>) -> Result<Added, QueueError> {
        let added = self.write(chain)?;
        self.available = self.available.after(added.count, self.layout.size);
        Ok(added)
    }

    fn next_used(&mut self, number: u64) -> Result<Option<Used>, Bad> {
        self.used(self.used, number)
    }

    fn go_on(&mut self, count: u16) {
        self.used = self.used.after(count, self.layout.size);
    }
}

impl Ring for PackedRing {
    type Available = Position;
    type Used = Position;

    fn setup(&self, index: u16) -> Result<QueueSetup<'_>, Error> {
        let driver = self.driver_event.address(0).ok_or(Error::BadConfig)?;
        let device = self.device_event.address(0).ok_or(Error::BadConfig)?;
        let addresses = self.descriptors.queue(driver, device)?;
        Ok(QueueSetup { index, addresses })
    }

    fn rewind(&mut self) {
        (self.available, self.published, self.used) =
            (Position::start(), Position::start(), Position::start());
        self.descriptors.clear();
        self.device_event.store_wrapping(0, 0, Ordering::Relaxed);
        if self.interrupts { self.enable_interrupts() } else { self.disable_interrupts() }
    }

    fn position(&self) -> u16 {
        self.available.told().to_word()
    }

    fn set_ends(&mut self, ends: EndsOf<'_>) -> Result<bool, QueueError> {
        let one = if ends(0).is_some() { 3 } else { 1 };
        Ok(self.tables.is_none() && one <= self.layout.reserved)
    }

    #[inline(always)]
    fn available(&self) -> Position {
        self.available
    }

    #[inline(always)]
    fn set_available(&mut self, available: Position) {
        self.available = available;
    }

    #[inline(always)]
    fn add_one(
        &mut self,
        available: &mut Position,
        (slot, _): (u16, u64),
        segment: &Segment<'_>,
        ends: Option<[Segment<'_>; 2]>,
    ) -> Result<Added, QueueError> {
        let added = self.write_one(*available, slot, segment, ends)?;
        *available = available.after(added.count, self.layout.size);
        Ok(added)
    }

    #[inline]
    fn publish(&mut self, _: u64) -> bool {
        // Release: all else is written before the descriptor that leads the device to it (2.8.21.1).
        if !self.descriptors.store_held(Ordering::Release) {
            return false;
        }
        let added = self.published.until(self.available, self.layout.size);
        self.published = self.available;
        // The device either sees that, or we see what it wrote before it went to sleep (2.8.21.3.1).
        fence(Ordering::SeqCst);
        self.wants_kick(added)
    }

    fn is_kick_due(&self, _: u16) -> bool {
        // What is in flight is between the used descriptor that comes next and the last one published.
        self.wants_kick(self.used.until(self.published, self.layout.size))
    }

    #[inline]
    fn look(&mut self, _: u16) -> Result<Position, QueueError> {
        Ok(self.used)
    }

    #[inline(always)]
    fn used(&mut self, at: Position, _: u64) -> Result<Option<Used>, Bad> {
        // Acquire: buffers are read after the flags that cover them. The id and the length come with the
        // flags.
        let rest = self.descriptors.load_rest(at.index.into(), Ordering::Acquire);
        let rest = rest.ok_or(Bad)?;
        if !at.is_used(rest) {
            return Ok(None);
        }
        // The length is valid only where WRITE says so (2.8.13), but QEMU (seen in 7.2) never sets it.
        let Descriptor { id, len, .. } = Descriptor::from_words([0, rest]);
        Ok(Some(Used { id: id.into(), len: Some(len) }))
    }

    #[inline(always)]
    fn advance(&mut self, at: &mut Position, count: u16) {
        *at = at.after(count, self.layout.size);
    }

    #[inline]
    fn set_used(&mut self, at: Position, _: u64) {
        self.used = at;
    }

    fn leave(&mut self, at: Position) {
        self.used = at;
    }

    fn now(&self) -> Position {
        self.used
    }

    fn disable_interrupts(&mut self) {
        self.interrupts = false;
        self.set_event(Event::DISABLE);
    }

    fn enable_interrupts(&mut self) {
        self.interrupts = true;
        self.set_event(if self.event_index { Event::DESC } else { Event::ENABLE });
        // The device either sees this, or the caller's next look sees its used descriptor.
        fence(Ordering::SeqCst);
    }
}

/// What [`InOrder`](super::in_order::InOrder) needs.
impl PackedRing {
    /// Writes any chain, and says what the device will call it.
    pub(super) fn add_at(&mut self, chain: Chain<'_>, _: u16) -> Result<(Added, u16), QueueError> {
        Ok((self.add(chain)?, chain.slot))
    }

    /// Whether the device may have used a chain without an element of its own.
    pub(super) fn may_be_skipped(&self, _: u64) -> bool {
        true
    }
}
