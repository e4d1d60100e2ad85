//! The driver's side of a virtqueue, split and packed, for tests of devices. Written from the specification;
//! it shares no code with the rings of the crate but how they are laid out. It can publish anything.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use ringfence_device_side::queue::{self, DriverNotify, Queue, RingMemory};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::virtqueue::packed::{self, Event, Position};
use ringfence_memory::virtqueue::split::{self, AVAILABLE, NO_NOTIFICATION, Ring, UsedElement};
use ringfence_memory::virtqueue::{self, DESCRIPTOR_LEN, WORD_LEN};
pub use ringfence_memory::virtqueue::{INDIRECT, NEXT, WRITE};
use ringfence_memory::{
    Bytes, DeviceId, Direction, DmaRegion, DmaWindows,
    fuchsia::{DeviceRange, DriverMem, DriverRange},
};

/// Memory at addresses that are nobody's pointers.
pub struct Arena {
    region: DmaRegion,
    next: Cell<u64>,
}

impl Arena {
    pub const BASE: u64 = 0x7_0000_0000;

    pub fn new(len: usize) -> Self {
        let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
        let region = DmaWindows::new(platform, DeviceId(7)).unwrap().allocate(len).unwrap();
        Self { region, next: Cell::new(Self::BASE) }
    }

    /// The addresses of all bytes.
    pub fn all(&self) -> Range<u64> {
        Self::BASE..Self::BASE + self.region.len() as u64
    }

    pub fn allocate(&self, len: usize, alignment: u64) -> u64 {
        let start = self.next.get().next_multiple_of(alignment);
        assert!(start + len as u64 <= self.all().end, "the arena is too small");
        self.next.set(start + len as u64);
        start
    }

    pub fn mark(&self) -> u64 {
        self.next.get()
    }

    /// Forgets what was allocated since `mark`.
    pub fn release(&self, mark: u64) {
        self.next.set(mark);
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.region.as_volatile_slice().read_slice(&mut bytes, offset(address)).unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.region.as_volatile_slice().write_slice(bytes, offset(address)).unwrap();
    }

    pub fn get16(&self, address: u64) -> u16 {
        u16::from_le(self.region.as_volatile_slice().load(offset(address), SeqCst).unwrap())
    }

    pub fn put16(&self, address: u64, value: u16) {
        self.region.as_volatile_slice().store(value.to_le(), offset(address), SeqCst).unwrap();
    }

    fn get64(&self, address: u64) -> u64 {
        u64::from_le(self.region.as_volatile_slice().read_obj(offset(address)).unwrap())
    }

    /// What a device may use in one direction: these addresses.
    pub fn view(&self, direction: Direction, windows: &[Range<u64>]) -> View<'_> {
        View { arena: self, direction, windows: windows.to_vec() }
    }

    /// Everything, in each direction.
    pub fn views(&self) -> (View<'_>, View<'_>) {
        (self.view(Direction::ToDevice, &[self.all()]), self.view(Direction::FromDevice, &[self.all()]))
    }
}

fn offset(address: u64) -> usize {
    (address - Arena::BASE) as usize
}

pub struct View<'m> {
    arena: &'m Arena,
    direction: Direction,
    windows: Vec<Range<u64>>,
}

impl DriverMem for View<'_> {
    fn translate<'a>(&'a self, driver: DriverRange) -> Option<DeviceRange<'a>> {
        let (start, end) = (driver.0.start as u64, driver.0.end as u64);
        self.windows.iter().find(|window| window.start <= start && end <= window.end)?;
        let slice = self.arena.region.as_volatile_slice().subslice(offset(start), driver.len()).ok()?;
        Some(slice.restrict(self.direction).into())
    }
}

#[derive(Clone, Debug, Default)]
pub struct NotificationCounter(Rc<Cell<usize>>);

impl NotificationCounter {
    pub fn get(&self) -> usize {
        self.0.get()
    }
}

impl DriverNotify for NotificationCounter {
    fn notify(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A descriptor to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
}

#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub segments: Vec<Segment>,
}

impl Chain {
    /// What the device is to read.
    pub fn readable(&self, arena: &Arena) -> Vec<u8> {
        let readable = self.segments.iter().filter(|segment| segment.flags & WRITE == 0);
        readable.flat_map(|segment| arena.read(segment.address, segment.len as usize)).collect()
    }

    /// How many bytes the device may write.
    pub fn room(&self) -> u32 {
        let writable = self.segments.iter().filter(|segment| segment.flags & WRITE != 0);
        writable.map(|segment| segment.len).sum()
    }

    /// What lies where the device is to write.
    pub fn writable(&self, arena: &Arena) -> Vec<u8> {
        let writable = self.segments.iter().filter(|segment| segment.flags & WRITE != 0);
        writable.flat_map(|segment| arena.read(segment.address, segment.len as usize)).collect()
    }
}

pub struct ChainBuilder<'m> {
    arena: &'m Arena,
    chain: Chain,
}

impl<'m> ChainBuilder<'m> {
    pub fn new(arena: &'m Arena) -> Self {
        Self { arena, chain: Chain::default() }
    }

    pub fn readable(self, data: &[u8]) -> Self {
        let address = self.arena.allocate(data.len(), 1);
        self.arena.write(address, data);
        self.reference(address, data.len() as u32, 0)
    }

    pub fn writable(self, len: usize) -> Self {
        let address = self.arena.allocate(len, 1);
        self.reference(address, len as u32, WRITE)
    }

    /// Any descriptor; the flag NEXT is added where one follows.
    pub fn reference(mut self, address: u64, len: u32, flags: u16) -> Self {
        self.chain.segments.push(Segment { address, len, flags });
        self
    }

    pub fn build(self) -> Chain {
        self.chain
    }
}

#[derive(Debug)]
pub struct UsedChain {
    pub id: u16,
    pub written: u32,
    pub chain: Chain,
}

/// The driver. `next` and `used` are free running indexes, or slots with the wrap counter in bit 15.
pub struct FakeQueue<'m> {
    pub arena: &'m Arena,
    pub packed: bool,
    pub size: u16,
    /// Addresses of the three areas.
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    pub next: u16,
    pub used: u16,
    /// How many used elements the device wrote.
    pub elements: usize,
    free: VecDeque<u16>,
    /// Chains in flight by id, with the descriptors they occupy.
    in_flight: BTreeMap<u16, (Chain, Vec<u16>)>,
    /// With VIRTIO_F_IN_ORDER: the ids in the order they were published.
    order: Option<VecDeque<u16>>,
    /// Chains that the last used element returned.
    batch: VecDeque<UsedChain>,
}

impl<'m> FakeQueue<'m> {
    /// A ring at position `start`.
    pub fn new(arena: &'m Arena, packed: bool, size: u16, start: u16) -> Self {
        let split = (AVAILABLE.len(size), split::USED.len(size));
        let (driver_len, device_len) = if packed { (Event::LEN, Event::LEN) } else { split };
        let desc = arena.allocate(virtqueue::descriptor(size), DESCRIPTOR_LEN as u64);
        let (driver, device) = (arena.allocate(driver_len, 4), arena.allocate(device_len, 4));
        let fake = Self {
            arena,
            packed,
            size,
            desc,
            driver,
            device,
            next: start,
            used: start,
            elements: 0,
            free: (0..size).collect(),
            in_flight: BTreeMap::new(),
            order: None,
            batch: VecDeque::new(),
        };
        if packed {
            // Nothing is available, in the round of `start` and the one before.
            for slot in 0..size {
                let round = Position::from_word(if slot < start & !Position::WRAP { start } else { !start });
                fake.put_desc(desc, slot, Segment { address: 0, len: 0, flags: round.used() }, 0);
            }
        } else {
            arena.put16(driver + Ring::INDEX as u64, start);
            arena.put16(device + Ring::INDEX as u64, start);
        }
        fake
    }

    /// With VIRTIO_F_IN_ORDER, if `in_order`. To begin with.
    pub fn in_order(mut self, in_order: bool) -> Self {
        self.order = in_order.then(VecDeque::new);
        self
    }

    /// The device's queue over this ring, in views that may be narrower than the arena.
    pub fn queue<'v, N: DriverNotify>(
        &self,
        readable: &'v View<'_>,
        writable: &'v View<'_>,
        features: u64,
        position: queue::Position,
        notify: N,
    ) -> Queue<'v, N> {
        let queue = self.memory(readable, writable).queue(notify);
        queue.unwrap().with_features(features).resume(position).unwrap()
    }

    pub fn memory<'v>(&self, readable: &'v View<'_>, writable: &'v View<'_>) -> RingMemory<'v> {
        let areas = [self.desc, self.driver, self.device];
        RingMemory::find([readable, writable], self.packed, self.size, areas).expect("in the views")
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A position `steps` elements after `from`.
    pub fn after(&self, from: u16, steps: u16) -> u16 {
        if !self.packed {
            return from.wrapping_add(steps);
        }
        let from = Position::from_word(from);
        (0..steps).fold(from, |at, _| at.after(1, self.size)).to_word()
    }

    /// Publishes `chain`, and gives its id; `None` if there is no room.
    pub fn publish(&mut self, chain: Chain) -> Option<u16> {
        let segments = chain.segments.clone();
        self.publish_as(chain, &segments)
    }

    /// Publishes `chain` in a table of its own.
    pub fn publish_indirect(&mut self, chain: Chain) -> Option<u16> {
        let count = chain.segments.len() as u16;
        let table = self.arena.allocate(virtqueue::descriptor(count), DESCRIPTOR_LEN as u64);
        for (index, segment) in (0..).zip(&chain.segments) {
            let more = !self.packed && index + 1 < count;
            let flags = segment.flags | if more { NEXT } else { 0 };
            self.put_desc(table, index, Segment { flags, ..*segment }, if more { index + 1 } else { 0 });
        }
        let len = virtqueue::descriptor(count) as u32;
        self.publish_as(chain, &[Segment { address: table, len, flags: INDIRECT }])
    }

    fn publish_as(&mut self, chain: Chain, segments: &[Segment]) -> Option<u16> {
        if segments.len() > self.free.len() || segments.is_empty() {
            return None;
        }
        // In order each descriptor is the one after the last (2.7.5).
        let free = &mut self.free;
        let take = |_| if self.order.is_some() { free.pop_front() } else { free.pop_back() };
        let descs: Vec<u16> = segments.iter().map(take).map(Option::unwrap).collect();
        let id = descs[0];
        self.order.as_mut().into_iter().for_each(|order| order.push_back(id));
        let segment = |index: usize, flags: u16| {
            let next = if index + 1 < segments.len() { NEXT } else { 0 };
            Segment { flags: segments[index].flags | flags | next, ..segments[index] }
        };
        if self.packed {
            // From the last slot to the first: the first makes the chain available.
            for index in (0..segments.len()).rev() {
                let at = Position::from_word(self.after(self.next, index as u16));
                self.put_desc(self.desc, at.index, segment(index, at.available()), id);
            }
            self.next = self.after(self.next, segments.len() as u16);
        } else {
            for (index, &desc) in descs.iter().enumerate() {
                let next = descs.get(index + 1).copied().unwrap_or(0xdead);
                self.put_desc(self.desc, desc, segment(index, 0), next);
            }
            self.publish_head(id);
        }
        assert!(self.in_flight.insert(id, (chain, descs)).is_none());
        Some(id)
    }

    /// Split only: makes any head available.
    pub fn publish_head(&mut self, head: u16) {
        self.arena.put16(self.driver + AVAILABLE.element(self.next % self.size) as u64, head);
        self.next = self.next.wrapping_add(1);
        self.arena.put16(self.driver + Ring::INDEX as u64, self.next);
    }

    /// Any descriptor; `other` is its next one or its id, as the format has it.
    pub fn put_desc(&self, table: u64, index: u16, segment: Segment, other: u16) {
        let Segment { address, len, flags } = segment;
        let words = if self.packed {
            packed::Descriptor { address, len, id: other, flags }.to_words()
        } else {
            split::Descriptor { address, len, flags, next: other }.to_words()
        };
        let at = table + virtqueue::descriptor(index) as u64;
        self.arena.write(at, words.map(u64::to_le_bytes).as_flattened());
    }

    /// The words of a descriptor.
    pub fn desc(&self, index: u16) -> [u64; 2] {
        let at = self.desc + virtqueue::descriptor(index) as u64;
        [at, at + WORD_LEN as u64].map(|at| self.arena.get64(at))
    }

    /// Takes the next used chain. Panics if the device used what it does not have.
    pub fn next_used(&mut self) -> Option<UsedChain> {
        if self.batch.is_empty() {
            self.next_element();
        }
        self.batch.pop_front()
    }

    fn next_element(&mut self) -> Option<()> {
        let (id, written) = if self.packed {
            let at = Position::from_word(self.used);
            let packed::Descriptor { id, len, flags, .. } =
                packed::Descriptor::from_words(self.desc(at.index));
            if !at.is_used(flags) {
                return None;
            }
            assert_eq!(flags & WRITE != 0, len > 0, "WRITE says whether anything was written");
            (id.into(), len)
        } else {
            if self.arena.get16(self.device + Ring::INDEX as u64) == self.used {
                return None;
            }
            let at = self.device + split::USED.element(self.used % self.size) as u64;
            let UsedElement { id, len } = UsedElement::from_word(self.arena.get64(at));
            (id, len)
        };
        self.elements += 1;
        let last = u16::try_from(id).unwrap();
        loop {
            let id = self.order.as_mut().map_or(last, |order| order.pop_front().expect("in flight"));
            let (chain, descs) =
                self.in_flight.remove(&id).unwrap_or_else(|| panic!("{id} is not in flight"));
            self.used = self.after(self.used, if self.packed { descs.len() as u16 } else { 1 });
            self.free.extend(descs);
            // Those that were skipped were written completely.
            let written = if id == last { written } else { chain.room() };
            self.batch.push_back(UsedChain { id, written, chain });
            if id == last {
                return Some(());
            }
        }
    }

    /// Asks for a notification when the element at `position` is used.
    pub fn set_used_event(&self, position: u16) {
        if self.packed {
            self.put_event(Event { position: Position::from_word(position), flags: Event::DESC });
        } else {
            self.arena.put16(self.driver + AVAILABLE.event(self.size) as u64, position);
        }
    }

    pub fn suppress_interrupts(&self, suppress: bool) {
        if self.packed {
            let flags = if suppress { Event::DISABLE } else { Event::ENABLE };
            self.put_event(Event { position: Position::START, flags });
        } else {
            self.arena.put16(self.driver, if suppress { NO_NOTIFICATION } else { 0 });
        }
    }

    fn put_event(&self, event: Event) {
        self.arena.write(self.driver, &event.to_word().to_le_bytes());
    }

    fn device_event(&self) -> Event {
        let word = self.arena.read(self.device, Event::LEN);
        Event::from_word(u32::from_le_bytes(word.try_into().unwrap()))
    }

    /// At what position the device wants to be notified, if it says so.
    pub fn avail_event(&self) -> u16 {
        let split = self.device + split::USED.event(self.size) as u64;
        if self.packed { self.device_event().position.to_word() } else { self.arena.get16(split) }
    }

    /// Whether the device wants to be notified at all: flags.
    pub fn device_flags(&self) -> u16 {
        if self.packed { self.device_event().flags } else { self.arena.get16(self.device) }
    }
}

/// A queue with its driver.
pub struct TestQueue<'v, 'm> {
    pub queue: Queue<'v, NotificationCounter>,
    pub notify: NotificationCounter,
    pub fake: FakeQueue<'m>,
}

impl<'v, 'm> TestQueue<'v, 'm> {
    pub fn new(fake: FakeQueue<'m>, views: &'v (View<'_>, View<'_>), features: u64) -> Self {
        let notify = NotificationCounter::default();
        let position = queue::Position::at(fake.next);
        let queue = fake.queue(&views.0, &views.1, features, position, notify.clone());
        Self { queue, notify, fake }
    }
}
