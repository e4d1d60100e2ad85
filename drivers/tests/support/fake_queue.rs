//! The driver's side of a virtqueue, split and packed, for tests of devices. Written from the specification;
//! it shares no code with the rings of the crate. It can publish anything.
#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use ringfence_drivers::virtio::device_side::queue::{
    DriverNotify, PackedMemory, Position, Queue, QueueMemory,
};
use ringfence_memory::host::HostPlatform;
use ringfence_memory::{
    Bytes, DeviceId, Direction, DmaRegion, DmaWindows,
    fuchsia::{DeviceRange, DriverMem, DriverRange},
};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

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

/// The memory of a ring as its device sees it.
#[derive(Clone)]
pub enum RingMemory<'v> {
    Split(QueueMemory<'v>),
    Packed(PackedMemory<'v>),
}

impl<'v> RingMemory<'v> {
    pub fn new<M: DriverMem>(
        readable: &'v M,
        writable: &'v M,
        packed: bool,
        size: u16,
        [desc, driver, device]: [u64; 3],
    ) -> Self {
        let n = usize::from(size);
        let get = |view: &'v M, address: u64, len: usize| {
            view.translate(DriverRange::try_from((address, len as u32)).unwrap()).expect("in the view")
        };
        if packed {
            Self::Packed(PackedMemory {
                desc: get(readable, desc, 16 * n),
                desc_used: get(writable, desc, 16 * n),
                driver_event: get(readable, driver, 4),
                device_event: get(writable, device, 4),
            })
        } else {
            Self::Split(QueueMemory {
                desc: get(readable, desc, 16 * n),
                avail: get(readable, driver, 6 + 2 * n),
                used: get(writable, device, 6 + 8 * n),
            })
        }
    }

    pub fn queue<N: DriverNotify>(self, notify: N) -> Option<Queue<'v, N>> {
        match self {
            Self::Split(memory) => Queue::new(memory, notify),
            Self::Packed(memory) => Queue::new_packed(memory, notify),
        }
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
        let n = usize::from(size);
        let (driver_len, device_len) = if packed { (4, 4) } else { (6 + 2 * n, 6 + 8 * n) };
        let desc = arena.allocate(16 * n, 16);
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
                let round = if slot < start & !USED { start } else { !start };
                let flags = if round & USED != 0 { AVAIL | USED } else { 0 };
                arena.put16(desc + 16 * u64::from(slot) + 14, flags);
            }
        } else {
            arena.put16(driver + 2, start);
            arena.put16(device + 2, start);
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
        position: Position,
        notify: N,
    ) -> Queue<'v, N> {
        let queue = self.memory(readable, writable).queue(notify);
        queue.unwrap().with_features(features).resume(position).unwrap()
    }

    pub fn memory<'v>(&self, readable: &'v View<'_>, writable: &'v View<'_>) -> RingMemory<'v> {
        let areas = [self.desc, self.driver, self.device];
        RingMemory::new(readable, writable, self.packed, self.size, areas)
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A position `steps` elements after `from`.
    pub fn after(&self, from: u16, steps: u16) -> u16 {
        (0..steps).fold(from, |at, _| match (self.packed, (at & !USED) + 1 == self.size) {
            (false, _) => at.wrapping_add(1),
            (true, false) => at + 1,
            (true, true) => (at & USED) ^ USED,
        })
    }

    /// Publishes `chain`, and gives its id; `None` if there is no room.
    pub fn publish(&mut self, chain: Chain) -> Option<u16> {
        let segments = chain.segments.clone();
        self.publish_as(chain, &segments)
    }

    /// Publishes `chain` in a table of its own.
    pub fn publish_indirect(&mut self, chain: Chain) -> Option<u16> {
        let table = self.arena.allocate(16 * chain.segments.len(), 16);
        for (index, segment) in chain.segments.iter().enumerate() {
            let last = index + 1 == chain.segments.len();
            let (flags, next) = match self.packed {
                true => (segment.flags, 0),
                false if last => (segment.flags, 0),
                false => (segment.flags | NEXT, index as u16 + 1),
            };
            self.put_desc(
                table,
                index as u16,
                *segment,
                if self.packed { (0, flags) } else { (flags, next) },
            );
        }
        let len = 16 * chain.segments.len() as u32;
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
        let flags = |index: usize| segments[index].flags | if index + 1 < segments.len() { NEXT } else { 0 };
        if self.packed {
            // From the last slot to the first: the first makes the chain available.
            for index in (0..segments.len()).rev() {
                let at = self.after(self.next, index as u16);
                let wrap = if at & USED != 0 { AVAIL } else { USED };
                self.put_desc(self.desc, at & !USED, segments[index], (id, flags(index) | wrap));
            }
            self.next = self.after(self.next, segments.len() as u16);
        } else {
            for (index, &desc) in descs.iter().enumerate() {
                let next = descs.get(index + 1).copied().unwrap_or(0xdead);
                self.put_desc(self.desc, desc, segments[index], (flags(index), next));
            }
            self.publish_head(id);
        }
        assert!(self.in_flight.insert(id, (chain, descs)).is_none());
        Some(id)
    }

    /// Split only: makes any head available.
    pub fn publish_head(&mut self, head: u16) {
        let slot = u64::from(self.next % self.size);
        self.arena.put16(self.driver + 4 + 2 * slot, head);
        self.next = self.next.wrapping_add(1);
        self.arena.put16(self.driver + 2, self.next);
    }

    /// A raw descriptor: the last two fields are flags and next, or id and flags.
    pub fn put_desc(&self, table: u64, index: u16, segment: Segment, last: (u16, u16)) {
        let at = table + 16 * u64::from(index);
        self.arena.write(at, &segment.address.to_le_bytes());
        self.arena.write(at + 8, &segment.len.to_le_bytes());
        self.arena.put16(at + 12, last.0);
        self.arena.put16(at + 14, last.1);
    }

    /// Takes the next used chain. Panics if the device used what it does not have.
    pub fn next_used(&mut self) -> Option<UsedChain> {
        if self.batch.is_empty() {
            self.next_element();
        }
        self.batch.pop_front()
    }

    fn next_element(&mut self) -> Option<()> {
        let (id, written, at) = if self.packed {
            let at = self.desc + 16 * u64::from(self.used & !USED);
            let flags = self.arena.get16(at + 14);
            let both = if self.used & USED != 0 { AVAIL | USED } else { 0 };
            if flags & (AVAIL | USED) != both {
                return None;
            }
            let len = u32::from_le_bytes(self.arena.read(at + 8, 4).try_into().unwrap());
            assert_eq!(flags & WRITE != 0, len > 0, "WRITE says whether anything was written");
            (u32::from(self.arena.get16(at + 12)), len, at)
        } else {
            if self.arena.get16(self.device + 2) == self.used {
                return None;
            }
            let at = self.device + 4 + 8 * u64::from(self.used % self.size);
            let [id, len] =
                [0, 4].map(|field| u32::from_le_bytes(self.arena.read(at + field, 4).try_into().unwrap()));
            (id, len, at)
        };
        self.elements += 1;
        let last = u16::try_from(id).unwrap();
        loop {
            let id = self.order.as_mut().map_or(last, |order| order.pop_front().expect("in flight"));
            let (chain, descs) = self.in_flight.remove(&id).unwrap_or_else(|| panic!("{id} used at {at:#x}"));
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
            self.arena.put16(self.driver, position);
            self.arena.put16(self.driver + 2, 2);
        } else {
            self.arena.put16(self.driver + 4 + 2 * u64::from(self.size), position);
        }
    }

    pub fn suppress_interrupts(&self, suppress: bool) {
        let at = if self.packed { self.driver + 2 } else { self.driver };
        self.arena.put16(at, suppress.into());
    }

    /// At what position the device wants to be notified, if it says so.
    pub fn avail_event(&self) -> u16 {
        let split = 4 + 8 * u64::from(self.size);
        self.arena.get16(if self.packed { self.device } else { self.device + split })
    }

    /// Whether the device wants to be notified at all: flags.
    pub fn device_flags(&self) -> u16 {
        self.arena.get16(if self.packed { self.device + 2 } else { self.device })
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
        let position = Position::at(fake.next);
        let queue = fake.queue(&views.0, &views.1, features, position, notify.clone());
        Self { queue, notify, fake }
    }
}
