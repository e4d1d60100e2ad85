//! The device side of a ring in either format. It is laid out as the driver's; what it may expect of the
//! driver is written from sections 2.7 and 2.8 of the specification.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::virtqueue::packed::{self, AVAIL, Event, Position, USED};
use ringfence_memory::virtqueue::split::{self, AVAILABLE, NO_NOTIFICATION, Ring, UsedElement};
use ringfence_memory::virtqueue::{self, INDIRECT, MAX_SIZE, NEXT, WORD_LEN, WRITE};
use ringfence_memory::{Bytes, DeviceId};

/// Features (section 6) that change what a ring looks like.
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const RING_PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
pub const RING_RESET: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

#[derive(Clone, Debug)]
pub struct Chain {
    /// Its first descriptor, or its buffer id.
    pub head: u16,
    pub segments: Vec<Segment>,
    /// Where its indirect table is.
    pub table: Option<u64>,
    /// How many descriptors of the ring it takes.
    pub descriptors: u16,
}

impl Chain {
    pub fn writable_len(&self) -> u32 {
        self.segments.iter().filter(|segment| segment.writable).map(|segment| segment.len).sum()
    }
}

/// Descriptors of a table.
fn count(len: u32) -> u16 {
    assert!(len.is_multiple_of(virtqueue::DESCRIPTOR_LEN as u32), "{len} bytes of table");
    u16::try_from(len / virtqueue::DESCRIPTOR_LEN as u32).unwrap()
}

fn segment(address: u64, len: u32, flags: u16) -> Segment {
    Segment { address, len, writable: flags & WRITE != 0 }
}

pub struct DeviceRing {
    platform: &'static HostPlatform,
    id: DeviceId,
    pub size: u16,
    features: u64,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Positions, which count on where the ring wraps: in the split ring elements, in the packed ring
    /// descriptors.
    pub taken: u64,
    pub used: u64,
    /// Second halves of used descriptors that the driver cannot see yet.
    unpublished: Vec<(u64, u64)>,
    /// How far the driver was told of used elements.
    told: u64,
    /// Descriptors of the chains that were taken, by id.
    lengths: HashMap<u16, u16>,
    /// It broke the rules: driver and device may disagree about everything from now on.
    lied: bool,
}

impl DeviceRing {
    pub fn new(
        platform: &'static HostPlatform,
        id: DeviceId,
        size: u16,
        [descriptors, driver, device]: [u64; 3],
        features: u64,
    ) -> Self {
        let packed = features & RING_PACKED != 0;
        let split = [virtqueue::DESCRIPTOR_LEN, AVAILABLE.align, split::USED.align];
        let alignments = if packed { [split[0], Event::LEN, Event::LEN] } else { split };
        assert!(size > 0 && size <= MAX_SIZE && (packed || size.is_power_of_two()));
        let mut areas = [descriptors, driver, device].into_iter().zip(alignments);
        assert!(areas.all(|(area, align)| area.is_multiple_of(align as u64)));
        Self {
            platform,
            id,
            size,
            features,
            descriptors,
            driver,
            device,
            taken: 0,
            used: 0,
            unpublished: Vec::new(),
            told: 0,
            lengths: HashMap::new(),
            lied: false,
        }
    }

    fn packed(&self) -> bool {
        self.features & RING_PACKED != 0
    }

    fn event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    /// Memory at a device address: everything that the driver mentions must be shared with the device.
    pub fn memory(&self, address: u64, len: usize) -> HostMemory {
        self.platform
            .translate(self.id, address, len)
            .unwrap_or_else(|| panic!("{len} bytes at {address:#x} are not shared with the device"))
    }

    pub fn is_shared(&self, address: u64, len: usize) -> bool {
        self.platform.translate(self.id, address, len).is_some()
    }

    fn u16_at(&self, address: u64) -> u16 {
        u16::from_le(self.memory(address, 2).slice().load(0, Ordering::Acquire).unwrap())
    }

    fn put_u16(&self, address: u64, value: u16) {
        self.memory(address, 2).slice().store(value.to_le(), 0, Ordering::Release).unwrap();
    }

    fn u32_at(&self, address: u64) -> u32 {
        u32::from_le(self.memory(address, 4).slice().load(0, Ordering::Acquire).unwrap())
    }

    fn u64_at(&self, address: u64) -> u64 {
        u64::from_le(self.memory(address, 8).slice().load(0, Ordering::Acquire).unwrap())
    }

    fn put_u64(&self, address: u64, value: u64) {
        self.memory(address, 8).slice().store(value.to_le(), 0, Ordering::Release).unwrap();
    }

    /// A descriptor: each word in one access, as the driver does.
    fn descriptor(&self, table: u64, index: u16) -> [u64; 2] {
        let at = table + virtqueue::descriptor(index) as u64;
        [self.u64_at(at), self.u64_at(at + WORD_LEN as u64)]
    }

    /// Where length, id and flags are of the descriptor at `position` of a packed ring.
    fn rest(&self, position: u64) -> u64 {
        self.descriptors + (virtqueue::descriptor(self.index(position)) + WORD_LEN) as u64
    }

    /// The index of a position in the ring.
    fn index(&self, position: u64) -> u16 {
        (position % u64::from(self.size)) as u16
    }

    /// A position of a packed ring as the ring has it.
    fn position(&self, position: u64) -> Position {
        let wrap = (position / u64::from(self.size)).is_multiple_of(2);
        Position { index: self.index(position), wrap }
    }

    /// A position as notifications and event indices have it.
    pub fn event(&self, position: u64) -> u16 {
        if self.packed() { self.position(position).to_word() } else { position as u16 }
    }

    /// Flags of the descriptor at `position` of a packed ring, if it is available.
    fn available_flags(&self, position: u64) -> Option<u16> {
        let flags = packed::Descriptor::from_words([0, self.u64_at(self.rest(position))]).flags;
        self.position(position).is_available(flags).then_some(flags)
    }

    /// Chains made available and not taken yet, and the position behind them.
    fn look(&self) -> (u16, u64) {
        if !self.packed() {
            let pending = self.u16_at(self.driver + Ring::INDEX as u64).wrapping_sub(self.taken as u16);
            assert!(
                self.lied || pending <= self.size,
                "{pending} chains were made available in a ring of {}",
                self.size
            );
            return (pending, self.taken + u64::from(pending));
        }
        let (mut count, mut at) = (0, self.taken);
        while let Some(flags) = self.available_flags(at).filter(|_| at - self.taken < self.size.into()) {
            count += u16::from(flags & NEXT == 0);
            at += 1;
        }
        (count, at)
    }

    /// Chains made available and not taken yet.
    pub fn pending(&self) -> u16 {
        self.look().0
    }

    /// How far the driver is.
    pub fn available(&self) -> u64 {
        self.look().1
    }

    /// Whether what the driver publishes cannot be judged any more, because the device lied to it or wrote
    /// where it may not.
    pub fn lied(&self) -> bool {
        self.lied
    }

    /// Takes the next available chain, checking the driver's side of the contract.
    pub fn take(&mut self) -> Option<Chain> {
        let is_there =
            if self.packed() { self.available_flags(self.taken).is_some() } else { self.pending() > 0 };
        if !is_there {
            return None;
        }
        let chain = if self.packed() { self.next_packed() } else { self.next_split() };
        assert!(
            !chain.segments.is_empty() && chain.segments.len() <= self.size.into(),
            "a chain longer than the queue"
        );
        assert!(chain.table.is_none() || self.features & INDIRECT_DESC != 0, "a table without the feature");
        assert!(chain.segments.is_sorted_by_key(|segment| segment.writable), "readable after writable");
        for Segment { address, len, .. } in &chain.segments {
            assert!(self.is_shared(*address, *len as usize) && *len > 0, "{len} bytes at {address:#x}");
        }
        self.taken += if self.packed() { chain.descriptors.into() } else { 1 };
        assert_eq!(self.lengths.insert(chain.head, chain.descriptors), None, "id {} twice", chain.head);
        Some(chain)
    }

    fn next_split(&self) -> Chain {
        self.chain_at(self.u16_at(self.driver + AVAILABLE.element(self.index(self.taken)) as u64))
    }

    /// The chain of a split ring that begins at `head`, as it is now.
    pub fn chain_at(&self, head: u16) -> Chain {
        assert!(head < self.size, "descriptor {head} of {}", self.size);
        let words = self.descriptor(self.descriptors, head);
        let split::Descriptor { address, len, flags, .. } = split::Descriptor::from_words(words);
        if flags & INDIRECT == 0 {
            let segments = self.follow(self.descriptors, self.size, head);
            return Chain { head, descriptors: segments.len() as u16, segments, table: None };
        }
        assert_eq!(flags & NEXT, 0, "a table and more");
        let segments = self.follow(address, count(len), 0);
        Chain { head, segments, table: Some(address), descriptors: 1 }
    }

    fn follow(&self, table: u64, count: u16, mut at: u16) -> Vec<Segment> {
        let mut segments = Vec::new();
        loop {
            assert!(at < count, "descriptor {at} of {count}");
            assert!(segments.len() < count.into(), "a loop of descriptors");
            let words = self.descriptor(table, at);
            let split::Descriptor { address, len, flags, next } = split::Descriptor::from_words(words);
            assert!(flags & !(NEXT | WRITE) == 0, "flags {flags:#x}");
            segments.push(segment(address, len, flags));
            if flags & NEXT == 0 {
                return segments;
            }
            at = next;
        }
    }

    fn next_packed(&self) -> Chain {
        let mut segments = Vec::new();
        for position in self.taken.. {
            assert!(self.available_flags(position).is_some(), "a part of a chain is not available");
            let words = self.descriptor(self.descriptors, self.index(position));
            let packed::Descriptor { address, len, id, flags } = packed::Descriptor::from_words(words);
            if flags & INDIRECT != 0 {
                assert!(segments.is_empty() && flags & NEXT == 0, "a table and more");
                let table = (0..count(len)).map(|at| self.descriptor(address, at));
                let segments = table.map(packed::Descriptor::from_words).map(|descriptor| {
                    assert!(descriptor.flags & !WRITE == 0, "flags {:#x} in a table", descriptor.flags);
                    segment(descriptor.address, descriptor.len, descriptor.flags)
                });
                let segments = segments.collect();
                return Chain { head: id, segments, table: Some(address), descriptors: 1 };
            }
            assert!(flags & !(NEXT | WRITE | AVAIL | USED) == 0, "flags {flags:#x}");
            segments.push(segment(address, len, flags));
            if flags & NEXT == 0 {
                return Chain { head: id, descriptors: segments.len() as u16, segments, table: None };
            }
        }
        unreachable!("the positions never end")
    }

    pub fn read(&self, segment: &Segment) -> Vec<u8> {
        assert!(!segment.writable);
        let mut bytes = vec![0; segment.len as usize];
        self.memory(segment.address, bytes.len()).slice().read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// Writes to the start of a segment.
    pub fn write(&self, segment: &Segment, bytes: &[u8]) {
        assert!(segment.writable && bytes.len() <= segment.len as usize);
        self.memory(segment.address, bytes.len()).slice().write_slice(bytes, 0).unwrap();
    }

    /// Writes a used element without publishing it. Ids of a packed ring have 16 bits.
    pub fn put_used(&mut self, id: u32, len: u32) {
        if !self.packed() {
            let element = split::USED.element(self.index(self.used)) as u64;
            self.put_u64(self.device + element, UsedElement { id, len }.to_word());
            self.end(id);
            self.used += 1;
            return;
        }
        let flags = self.position(self.used).used() | if len > 0 { WRITE } else { 0 };
        let [_, rest] = packed::Descriptor { address: 0, len, id: id as u16, flags }.to_words();
        self.unpublished.push((self.used, rest));
        self.used += u64::from(self.end(id));
    }

    /// The chain called `id` is used: says how many descriptors it has. That there is none is a lie.
    fn end(&mut self, id: u32) -> u16 {
        let count = u16::try_from(id).ok().and_then(|id| self.lengths.remove(&id));
        self.lied |= count.is_none();
        count.unwrap_or(1)
    }

    /// Writes one used element for all of `ids`, the oldest in flight, of which the last was written to `len`
    /// bytes (2.7.9, 2.8.9).
    pub fn put_used_batch(&mut self, ids: &[u16], len: u32) {
        let (last, others) = ids.split_last().unwrap();
        let first = self.used;
        let mut skipped = 0;
        for id in others {
            let count = self.end((*id).into());
            skipped += if self.packed() { count.into() } else { 1 };
        }
        self.put_used((*last).into(), len);
        // The element is where the first of the batch would have its own.
        assert!(self.used > first);
        self.used += skipped;
    }

    /// Shows the driver all used elements. Says whether an interrupt is due.
    pub fn publish(&mut self) -> bool {
        if self.packed() {
            for (position, rest) in std::mem::take(&mut self.unpublished).into_iter().rev() {
                self.put_u64(self.rest(position), rest);
            }
        } else {
            self.put_u16(self.device + Ring::INDEX as u64, self.used as u16);
        }
        let told = std::mem::replace(&mut self.told, self.used);
        self.interrupt_due(told, self.used)
    }

    /// Tells the driver that used elements are where none are: the used index of a split ring, or flags in a
    /// packed one.
    pub fn lie(&mut self, index: u16) {
        self.lied = true;
        if !self.packed() {
            return self.put_u16(self.device + Ring::INDEX as u64, index);
        }
        let at = self.rest(self.used);
        let used = packed::Descriptor::from_words([0, self.u64_at(at)]);
        self.put_u64(at, packed::Descriptor { flags: index, ..used }.to_words()[1]);
    }

    /// Writes a used element for a chain that may not be due, or not even there.
    pub fn lie_used(&mut self, id: u32) {
        self.lied = true;
        self.put_used(id, 0);
    }

    /// As `complete`, but a packed ring's used descriptor does not say that anything was written (2.8.13).
    pub fn complete_unwritten(&mut self, head: u16, len: u32) {
        self.put_used(head.into(), len);
        self.unpublished
            .iter_mut()
            .for_each(|(_, rest)| *rest &= !(u64::from(WRITE) << packed::Descriptor::FLAGS));
        self.publish();
    }

    pub fn complete(&mut self, head: u16, len: u32) {
        self.put_used(head.into(), len);
        self.publish();
    }

    /// Whether one of the positions `old..new` is where an event is wanted (2.7.7.2, 2.8.10.1).
    fn passes(&self, event: u16, old: u64, new: u64) -> bool {
        (old..new).any(|position| self.event(position) == event)
    }

    /// Whether the driver is to be interrupted for the used elements `old..new`.
    pub fn interrupt_due(&self, old: u64, new: u64) -> bool {
        if self.packed() {
            let word = self.u32_at(self.driver);
            let event = Event::from_word(word);
            assert_eq!(event.to_word(), word, "reserved bits in an event suppression structure");
            return match event.flags {
                Event::ENABLE => old != new,
                Event::DISABLE => false,
                Event::DESC if self.event_idx() => self.passes(event.position.to_word(), old, new),
                flags => panic!("event flags {flags:#x}"),
            };
        }
        let first = self.u16_at(self.driver);
        if self.event_idx() {
            assert_eq!(first, 0, "the available ring's flags");
            return self.passes(self.u16_at(self.driver + AVAILABLE.event(self.size) as u64), old, new);
        }
        assert!(first <= NO_NOTIFICATION, "reserved bits in the available ring's flags");
        first == 0 && old != new
    }

    pub fn interrupts_wanted(&self) -> bool {
        self.interrupt_due(self.used, self.used + 1)
    }

    /// Asks for no notifications, or for the next.
    pub fn suppress_kicks(&self, suppress: bool) {
        match (self.packed(), self.event_idx()) {
            (true, true) if !suppress => self.put_event([self.event(self.available()), Event::DESC]),
            (true, _) => self.put_event([0, suppress.into()]),
            // Behind: as far away as can be.
            (false, true) if suppress => self.put_avail_event(self.taken.wrapping_sub(1) as u16),
            (false, true) => self.put_avail_event(self.available() as u16),
            (false, false) => self.put_u16(self.device, suppress.into()),
        }
    }

    /// Writes the device event suppression structure.
    pub fn put_event(&self, [position, flags]: [u16; 2]) {
        assert!(self.packed());
        let event = Event { position: Position::from_word(position), flags }.to_word();
        self.memory(self.device, Event::LEN).slice().store(event.to_le(), 0, Ordering::Release).unwrap();
    }

    pub fn put_avail_event(&self, event: u16) {
        assert!(!self.packed());
        self.put_u16(self.device + split::USED.event(self.size) as u64, event);
    }

    /// Whether the device is to be notified of what became available at the positions `old..new`.
    pub fn kick_due(&self, old: u64, new: u64) -> bool {
        if self.packed() {
            let Event { position, flags } = Event::from_word(self.u32_at(self.device));
            let passes =
                flags != Event::DESC || !self.event_idx() || self.passes(position.to_word(), old, new);
            return old != new && flags != Event::DISABLE && passes;
        }
        if self.event_idx() {
            return self.passes(self.u16_at(self.device + split::USED.event(self.size) as u64), old, new);
        }
        old != new && self.u16_at(self.device) & NO_NOTIFICATION == 0
    }

    /// Overwrites the descriptors and the available ring's elements, which are no business of the device.
    pub fn scribble(&mut self, with: u8) {
        self.lied = true;
        self.memory(self.descriptors, virtqueue::descriptor(self.size)).slice().fill(with).unwrap();
        if !self.packed() {
            let elements = AVAILABLE.event(self.size) - Ring::ELEMENTS;
            self.memory(self.driver + Ring::ELEMENTS as u64, elements).slice().fill(with).unwrap();
        }
    }
}
