//! A driver's queue and a device's that share memory, and what each has yet to see of the other: for any
//! combination of ring features.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::sample::Index;
use ringfence_device_side::chain::{ReadableChain, WritableChain};
use ringfence_device_side::queue::{DescChain, Queue as DeviceQueue, RingMemory};
use ringfence_drivers::virtio::{
    BufferList, Controls, Device, DeviceType, Error, Queue, QueueOptions, Ticket, features,
};
use ringfence_memory::{Direction, DmaBuf, DmaPool, DmaSnapshot, virtqueue::packed::Position};

use crate::bench::Room;
use crate::fake_queue::NotificationCounter;
use crate::{Fake, FakeNotifier, FakeTransport, grant};

/// Bytes of a segment at most.
pub const LEN: usize = 16;
/// The fixed segments of each chain: a header and a status.
const FIXED: usize = 2;

/// Which features are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub packed: bool,
    indirect: bool,
    event_idx: bool,
    pub in_order: bool,
    data: bool,
}

impl Mode {
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32_u32).map(|bits| {
            let [packed, indirect, event_idx, in_order, data] =
                std::array::from_fn(|bit| bits >> bit & 1 != 0);
            Self { packed, indirect, event_idx, in_order, data }
        })
    }

    fn features(self) -> u64 {
        let bits = [
            (true, features::RING_RESET),
            (self.packed, features::RING_PACKED),
            (self.indirect, features::INDIRECT_DESC),
            (self.event_idx, features::EVENT_IDX),
            (self.in_order, features::IN_ORDER),
            (self.data, features::NOTIFICATION_DATA),
        ];
        bits.iter().filter(|bit| bit.0).map(|bit| bit.1).sum()
    }
}

/// The byte that chain `number` is filled with, and the one that it is answered with.
fn byte(number: u64) -> u8 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// When one side wants to be notified by the other, as far as it said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    Always,
    Never,
    /// When the chain of this number, counted from the start of the ring, is made available or used.
    At(u64),
}

impl Wish {
    fn asking(event_idx: bool, next: u64) -> Self {
        if event_idx { Self::At(next) } else { Self::Always }
    }

    /// What a ring of zeros says.
    fn of_zeros(mode: Mode) -> Self {
        Self::asking(mode.event_idx && !mode.packed, 0)
    }

    /// Whether going from chain `old` to chain `new` has to notify; `None` if it may, because positions in
    /// the ring come again after `period` chains.
    fn due(self, old: u64, new: u64, period: u64) -> Option<bool> {
        match self {
            _ if old == new => Some(false),
            Self::Always => Some(true),
            Self::Never => Some(false),
            Self::At(at) if at >= old => Some(at < new),
            Self::At(at) => (new - at < period).then_some(false),
        }
    }
}

/// What was submitted, until the device takes it.
pub struct Sent {
    number: u64,
    readable: usize,
    writable: Vec<usize>,
}

/// What was answered, until the driver sees it.
struct Answer {
    number: u64,
    written: usize,
    /// Lengths of what it could be written to.
    writable: Vec<usize>,
}

/// Counts of chains since the start of the ring. Each is at most the one before it.
#[derive(Debug, Default)]
struct Counts {
    submitted: u64,
    published: u64,
    taken: u64,
    /// Seen by the driver if it looks, and of these reaped.
    used: u64,
    reaped: u64,
    /// What `used` was when it was last decided whether to notify.
    signalled: u64,
}

pub struct Rig {
    mode: Mode,
    room: Room,
    /// The most segments of a chain, and how many of them are not the item's.
    pub longest: usize,
    pub fixed: usize,
    fake: Fake,
    device: Device<FakeTransport>,
    pub driver: Queue<BufferList, FakeNotifier>,
    pools: [DmaPool; 2],
    views: &'static [DmaSnapshot; 2],
    side: &'static DeviceQueue<'static, NotificationCounter>,
    pub interrupts: NotificationCounter,
    batching: bool,
    polling: bool,
    kick: Wish,
    interrupt: Wish,
    /// How often the driver notified the device.
    pub kicks: usize,
    count: Counts,
    pub number: u64,
    /// In flight: the ticket of each, and by slot how many segments are in it.
    slots: HashMap<u64, Ticket>,
    occupied: HashMap<usize, usize>,
    sent: VecDeque<Sent>,
    pub held: Vec<(Sent, u64, DescChain<'static, 'static, NotificationCounter>)>,
    /// Returned, but with IN_ORDER not used yet: by position in the order they were taken.
    waiting: BTreeMap<u64, Answer>,
    answers: VecDeque<Answer>,
    /// Descriptors of all chains taken since the start, and the kicks that told of more: chains published,
    /// position.
    descriptors: u64,
    positions: VecDeque<(u64, u16)>,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl Rig {
    pub fn new(mode: Mode, options: QueueOptions, batching: bool) -> Self {
        Self::with_fixed(mode, options, batching, false)
    }

    /// With a header and a status in each chain, if `fixed`.
    pub fn with_fixed(mode: Mode, options: QueueOptions, batching: bool, fixed: bool) -> Self {
        let offered = mode.features() | features::VERSION_1;
        let fake = Fake::new(DeviceType(42), offered, vec![], &[options.size]);
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features::QUEUES).unwrap();
        assert_eq!(device.features(), offered);
        assert_eq!(fake.model().accepted, offered, "all of it is in use");
        let driver = device.queue::<BufferList>(0, &options, 1, |shape| {
            if fixed { Controls::new(&windows, shape.slots).map(Some) } else { Ok(None) }
        });
        let mut driver = driver.unwrap();
        driver.start(&device.driver_ok().unwrap());
        assert_eq!(driver.size(), options.size);
        let room = Room::of(offered, &options);
        assert_eq!(usize::from(driver.depth()), room.depth);
        let buffers = room.depth * room.longest;
        let pools = [Direction::ToDevice, Direction::FromDevice]
            .map(|direction| DmaPool::new_for(&windows, buffers, LEN, direction).unwrap());
        let views = leak([windows.readable().unwrap(), windows.writable().unwrap()]);
        let interrupts = NotificationCounter::default();
        let side = Self::open(&fake, mode, views, &interrupts, batching);
        Self {
            mode,
            room,
            longest: room.longest,
            fixed: if fixed { FIXED } else { 0 },
            fake,
            device,
            driver,
            pools,
            views,
            side,
            interrupts,
            batching,
            polling: false,
            kick: Wish::of_zeros(mode),
            interrupt: Wish::of_zeros(mode),
            kicks: 0,
            count: Counts::default(),
            number: 0,
            slots: HashMap::new(),
            occupied: HashMap::new(),
            sent: VecDeque::new(),
            held: Vec::new(),
            waiting: BTreeMap::new(),
            answers: VecDeque::new(),
            descriptors: 0,
            positions: VecDeque::new(),
        }
    }

    fn open(
        fake: &Fake,
        mode: Mode,
        views: &'static [DmaSnapshot; 2],
        interrupts: &NotificationCounter,
        batching: bool,
    ) -> &'static DeviceQueue<'static, NotificationCounter> {
        let at = fake.model().queues[0];
        let areas = [at.descriptors, at.driver, at.device];
        let memory = RingMemory::find(views.each_ref(), mode.packed, at.size, areas).unwrap();
        let side = memory.queue(interrupts.clone()).unwrap().with_features(mode.features());
        side.set_batching(batching);
        leak(side)
    }

    /// After how many chains positions in the ring come again, at least.
    fn period(&self) -> u64 {
        let size = u64::from(self.driver.size());
        if self.mode.packed { 2 * size / self.longest as u64 } else { 1 << 16 }
    }

    /// Submits a chain of so many segments of these lengths to read and to write.
    pub fn submit(&mut self, readable: &[usize], writable: &[usize]) -> bool {
        let segments = readable.len() + writable.len() + self.fixed;
        let room = self.driver.in_flight() < self.driver.depth();
        let expected = self.room.expected(self.occupied.values().copied(), segments);
        let number = self.number;
        let take = |pool: usize, lens: &[usize]| -> Vec<DmaBuf> {
            lens.iter().map_while(|_| self.pools[pool].take()).collect()
        };
        let [mut to_read, to_write] = [take(0, readable), take(1, writable)];
        if to_read.len() + to_write.len() + self.fixed != segments {
            assert!(expected.is_err());
            return false;
        }
        for (buffer, &len) in to_read.iter_mut().zip(readable) {
            buffer.write_slice(&vec![byte(number); len], 0).unwrap();
        }
        let lens = readable.iter().chain(writable);
        let item =
            BufferList::new(number, to_read, to_write, 0).with_segments(lens.map(|&len| 0..len).collect());
        let slot = self.driver.next_slot();
        assert_eq!(slot.is_some(), room);
        match self.driver.submit(item) {
            Ok(taken) => {
                assert_eq!(expected, Ok(()));
                assert_eq!(Some(taken.index()), slot.map(usize::from));
                assert!(taken.index() < self.driver.slots());
                assert_eq!(self.occupied.insert(taken.index(), segments), None, "one chain in a slot");
                self.slots.insert(number, taken);
                let status = (self.fixed > 0).then_some(1);
                let writable = writable.iter().copied().chain(status).collect();
                let sent = Sent { number, readable: readable.iter().sum(), writable };
                self.sent.push_back(sent);
                self.number += 1;
                self.count.submitted += 1;
                true
            }
            Err((error, item)) => {
                assert_eq!(item.name(), number, "given back");
                assert_eq!(item.buffers().map(<[_]>::len), [readable.len(), writable.len()]);
                assert_eq!(Err(error), expected);
                false
            }
        }
    }

    pub fn kick(&mut self) {
        let old = self.count.published;
        self.fake.model().events.clear();
        self.driver.kick();
        self.count.published = self.count.submitted;
        let kicks = self.fake.kicks(0);
        self.kicks += kicks;
        let due = self.kick.due(old, self.count.published, self.period());
        match due {
            Some(due) => assert_eq!(kicks, usize::from(due), "{:?} from {old}: {:?}", self.kick, self.count),
            None => assert!(kicks <= 1),
        }
        if kicks > 0 {
            let position = self.fake.model().queues[0].position.unwrap();
            assert_eq!(self.side.notified(position), Ok(()));
            self.positions.push_back((self.count.published, position));
        }
    }

    /// The device takes a chain; if there is none it sleeps, unless it polls.
    pub fn take(&mut self) -> bool {
        let Some(chain) = self.side.next_chain().unwrap() else {
            assert_eq!(self.count.taken, self.count.published, "a published chain was not found");
            if self.mode.event_idx && !self.polling {
                self.kick = Wish::At(self.count.taken);
            }
            return false;
        };
        assert!(self.count.taken < self.count.published, "a chain that was not published");
        let sent = self.sent.pop_front().unwrap();
        let in_table_order = self.mode.in_order && !self.mode.packed;
        assert!(in_table_order || usize::from(chain.id()) == self.slots[&sent.number].index());
        let size = u64::from(self.driver.size());
        let descs = chain.iter().collect::<Result<Vec<_>, _>>().unwrap();
        if in_table_order {
            // In ring order (2.7.5).
            assert_eq!(u64::from(chain.id()), self.descriptors % size);
            for (desc, next) in descs.iter().zip(self.descriptors + 1..) {
                assert!(desc.next().is_none_or(|found| u64::from(found) == next % size));
            }
        }
        assert!(self.mode.indirect || !descs[0].is_indirect());
        self.descriptors += descs.len() as u64;
        self.held.push((sent, self.count.taken, chain));
        self.count.taken += 1;
        while self.positions.front().is_some_and(|kick| kick.0 == self.count.taken) {
            let Some((_, position)) = self.positions.pop_front() else { break };
            // All before it was made available.
            let (round, slot) = (self.descriptors / size, self.descriptors % size);
            let packed = Position { index: slot as u16, wrap: round.is_multiple_of(2) };
            let expected = if self.mode.packed { packed.to_word() } else { self.count.taken as u16 };
            assert_eq!(position, expected, "the position in the notification");
        }
        true
    }

    /// The device answers a chain that it holds, with a part of what it may write, or all of it.
    pub fn answer(&mut self, which: usize, part: Option<Index>) {
        let (sent, turn, chain) = self.held.swap_remove(which);
        let Sent { number, readable, writable } = sent;
        let (mut input, mut data) = (ReadableChain::new(chain, &self.views[0]), vec![0; readable]);
        if self.fixed > 0 {
            let mut header = [0; 16];
            assert_eq!((input.read(&mut header), u128::from_le_bytes(header)), (Ok(16), number.into()));
        }
        assert_eq!(input.remaining().unwrap().bytes, readable);
        assert_eq!(input.read(&mut data), Ok(readable));
        assert!(data.iter().all(|&found| found == byte(number)), "what the driver wrote");
        let mut output = WritableChain::from_readable(input, &self.views[1]).unwrap();
        assert_eq!(output.remaining().unwrap().descriptors, writable.len());
        let room = writable.iter().sum::<usize>();
        assert_eq!(output.remaining().unwrap().bytes, room);
        let written = part.map_or(room, |part| part.index(room + 1));
        assert_eq!(output.write(&vec![!byte(number); written]), Ok(written));
        let answer = Answer { number, written, writable };
        if self.mode.in_order {
            self.waiting.insert(turn, answer);
        } else {
            self.answers.push_back(answer);
            self.count.used += 1;
        }
        let before = self.interrupts.get();
        drop(output);
        if self.batching {
            assert_eq!(self.interrupts.get(), before);
            // Not more than one round of the ring at once.
            let returned = (self.count.used - self.count.signalled) as usize + self.waiting.len();
            if (returned + 1) * self.longest >= self.driver.size().into() {
                self.flush();
            }
        } else {
            self.used();
            self.interrupted(before);
        }
    }

    /// What is next in order is used now.
    fn used(&mut self) {
        while let Some(answer) = self.waiting.remove(&self.count.used) {
            self.answers.push_back(answer);
            self.count.used += 1;
        }
    }

    pub fn flush(&mut self) {
        self.used();
        let before = self.interrupts.get();
        self.side.flush();
        self.interrupted(before);
    }

    /// The device has just decided whether to interrupt; before that it had done so `before` times.
    fn interrupted(&mut self, before: usize) {
        let interrupts = self.interrupts.get() - before;
        match self.interrupt.due(self.count.signalled, self.count.used, self.period()) {
            Some(due) => assert_eq!(interrupts, usize::from(due), "{:?}: {:?}", self.interrupt, self.count),
            None => assert!(interrupts <= 1),
        }
        self.count.signalled = self.count.used;
    }

    /// The driver takes up to `limit` completions.
    pub fn reap(&mut self, limit: usize) -> usize {
        for count in 0..limit {
            let Some(completion) = self.driver.pop().unwrap() else {
                assert!(self.answers.is_empty(), "a completion was not found");
                return count;
            };
            let Answer { number, written, writable } =
                self.answers.pop_front().expect("a completion out of nothing");
            assert_eq!(completion.buffers.name(), number);
            assert_eq!(Some(completion.ticket), self.slots.remove(&number));
            assert!(self.occupied.remove(&completion.ticket.index()).is_some());
            assert_eq!(completion.written, Some(written as u32));
            let mut left = written;
            let to_write = completion.buffers.buffers()[1];
            assert_eq!(to_write.len() + self.fixed / FIXED, writable.len());
            for (buffer, &len) in to_write.iter().zip(&writable) {
                let (mut bytes, now) = ([0; LEN], left.min(len));
                buffer.read_slice(&mut bytes[..now], 0).unwrap();
                assert!(bytes[..now].iter().all(|&found| found == !byte(number)), "what the device wrote");
                left -= now;
            }
            let status = self.driver.context().as_ref().map(|controls| controls.status(completion.ticket));
            assert_eq!(status.is_some(), self.fixed > 0);
            if left == 1 {
                assert_eq!(status, Some(!byte(number)));
            }
            self.count.reaped += 1;
        }
        limit
    }

    pub fn set_interrupts(&mut self, on: bool) {
        if !on {
            self.driver.disable_interrupts();
            self.interrupt = Wish::Never;
            return;
        }
        let there = self.driver.enable_interrupts();
        assert_eq!(there, !self.answers.is_empty(), "whether not to sleep");
        self.interrupt = Wish::asking(self.mode.event_idx, self.count.reaped);
    }

    /// The device stops to poll, and sleeps; or begins.
    pub fn set_notifications(&mut self, on: bool) {
        self.side.set_notifications(on);
        self.polling = !on;
        self.kick = if on { Wish::asking(self.mode.event_idx, self.count.taken) } else { Wish::Never };
        while on && self.take() {}
    }

    pub fn reset(&mut self) {
        let idle = self.driver.in_flight() == 0;
        let result = self.device.reset_queue(&mut self.driver);
        assert_eq!(result, if idle { Ok(()) } else { Err(Error::Busy) });
        if !idle {
            return;
        }
        self.side = Self::open(&self.fake, self.mode, self.views, &self.interrupts, self.batching);
        (self.count, self.descriptors, self.polling) = (Counts::default(), 0, false);
        self.positions.clear();
        self.kick = Wish::of_zeros(self.mode);
        if self.interrupt != Wish::Never {
            self.interrupt = Wish::asking(self.mode.event_idx, 0);
        }
    }

    pub fn check(&self) {
        let in_flight = self.count.submitted - self.count.reaped;
        assert_eq!(u64::from(self.driver.in_flight()), in_flight);
        assert_eq!(self.driver.occupied() as u64, in_flight);
        assert_eq!(self.slots.len() as u64, in_flight);
        let counters = self.driver.counters();
        assert_eq!(counters.kicks, self.kicks as u64);
        assert_eq!((counters.submitted, counters.completions), (self.number, self.number - in_flight));
        assert_eq!((counters.rejected, self.driver.is_broken()), (0, false));
        assert_eq!(self.side.error(), None);
    }

    /// All that is left comes back, and nothing more.
    pub fn finish(&mut self) {
        self.kick();
        while self.take() {}
        while !self.held.is_empty() {
            self.answer(0, None);
        }
        self.flush();
        self.reap(usize::MAX);
        self.check();
        assert_eq!(self.driver.in_flight(), 0);
        for pool in &self.pools {
            assert_eq!(pool.available(), self.room.depth * self.longest);
        }
    }
}
