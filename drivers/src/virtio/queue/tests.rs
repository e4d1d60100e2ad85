//! What only a [`Buffers`] of this crate could put into a queue, faulty or not.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::{Bytes, DeviceId, DmaBuf, DmaPool, DmaWindows, Segment};

use super::*;
use crate::virtio::{Ends, sealed};

const ID: DeviceId = DeviceId(0x18);
const LEN: usize = 64;
const FORMATS: [u64; 2] = [0, features::RING_PACKED];

/// What a chain is like, and what is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    /// Two segments, and nothing is wrong.
    #[default]
    Two,
    /// One that is written, alone or behind those two.
    One,
    Three,
    /// So many segments, which are all the same buffer, and the length of the last one.
    Repeated(u16, usize),
    /// A readable segment after a writable one of a single byte.
    Order,
    /// Only one of the two is there.
    Missing,
    /// None is there.
    Absent,
    /// It says that it has more than fit.
    TooMany,
    /// It cannot be prepared.
    Unprepared,
}

#[derive(Debug, Default)]
struct Odd(Option<DmaBuf>, Kind);

impl sealed::Sealed for Odd {}

impl Buffers for Odd {
    type Context = ();
    type Request = ();

    fn only<'a>(&'a self, (): (), (): &'a ()) -> Option<Segment<'a>> {
        if self.1 == Kind::One { self.0.as_ref()?.segment(0, 8, true) } else { None }
    }

    fn count(&self, (): (), (): &()) -> u16 {
        match self.1 {
            Kind::TooMany => u16::MAX,
            Kind::Repeated(count, _) => count,
            Kind::Three => 3,
            Kind::One => 1,
            _ => 2,
        }
    }

    fn segment<'a>(&'a self, (): (), (): &'a (), index: u16) -> Option<Segment<'a>> {
        let buffer = self.0.as_ref()?;
        match (index, self.1) {
            (0, Kind::Order) => buffer.segment(0, 1, true),
            (1, Kind::Missing) | (_, Kind::Absent) => None,
            (_, Kind::Repeated(count, last)) => {
                buffer.segment(0, if index + 1 < count { buffer.len() } else { last }, true)
            }
            (0, Kind::One) | (2, Kind::Three) => buffer.segment(0, 8, true),
            (0 | 1, _) => buffer.segment(0, 8, false),
            _ => None,
        }
    }

    fn prepare<'a>(&self, (): (), (): &'a (), _: u16) -> Ends<'a> {
        if self.1 == Kind::Unprepared { Err(QueueError::Broken) } else { Ok(None) }
    }

    fn abandon(self) {
        self.0.into_iter().for_each(DmaBuf::abandon);
    }
}

/// Counts notifications.
struct Bell<'a>(&'a Cell<usize>);

impl Notify for Bell<'_> {
    fn notify(&self, _: u16) {
        self.0.set(self.0.get() + 1);
    }
}

/// A queue, and what its device sees.
struct Rig<'a> {
    platform: &'static HostPlatform,
    windows: DmaWindows,
    format: u64,
    areas: [u64; 3],
    queue: Queue<Odd, Bell<'a>>,
}

impl<'a> Rig<'a> {
    fn new(format: u64, options: &QueueOptions, kicks: &'a Cell<usize>) -> Self {
        let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
        let windows = DmaWindows::for_model(platform, ID).unwrap();
        let new = NewQueue::new(&windows, options.size, options, format).unwrap();
        let setup = new.setup(0).unwrap();
        let areas = setup.addresses.addresses().map(|address| windows.publish(address).unwrap().0);
        let life = setup.addresses.life();
        let mut queue = Queue::new(new, life.clone(), 0, Bell(kicks), ()).unwrap();
        queue.start(&DriverOk(life));
        Self { platform, windows, format, areas, queue }
    }

    fn word(&self, at: u64) -> u16 {
        let word = self.platform.translate(ID, at, 2).unwrap();
        u16::from_le(word.slice().load(0, Ordering::Acquire).unwrap())
    }

    fn put<const COUNT: usize>(&self, at: u64, words: [u16; COUNT]) {
        for (at, word) in (at..).step_by(2).zip(words) {
            let memory = self.platform.translate(ID, at, 2).unwrap();
            memory.slice().store(word.to_le(), 0, Ordering::Release).unwrap();
        }
    }

    /// The available index, or the flags of the first descriptor.
    fn seen(&self) -> u16 {
        let [descriptors, driver, _] = self.areas;
        self.word(if self.format == 0 { driver + 2 } else { descriptors + 14 })
    }

    /// The slot of the chain that is the `number`th, and begins at the descriptor `at` of a packed ring.
    fn slot(&self, number: u64, at: u64) -> u16 {
        let [descriptors, driver, _] = self.areas;
        self.word(if self.format == 0 { driver + 4 + 2 * number } else { descriptors + 16 * at + 12 })
    }

    /// The device uses that chain, in the first round.
    fn put_used(&self, number: u64, at: u64, len: u16) {
        let ([descriptors, _, device], slot) = (self.areas, self.slot(number, at));
        if self.format == 0 {
            self.put(device + 4 + 8 * number, [slot, 0, len, 0]);
            self.put(device + 2, [number as u16 + 1]);
        } else {
            self.put(descriptors + 16 * at + 8, [len, 0, slot, 0x8080]);
        }
    }
}

const OPTIONS: QueueOptions = QueueOptions { size: 8, chains: 8, segments: 2, longest: 2 };

#[test]
fn odd_chains_come_back() {
    for format in FORMATS {
        let kicks = Cell::new(0);
        let mut rig = Rig::new(format, &OPTIONS, &kicks);
        let pool = DmaPool::new(&rig.windows, 2, LEN).unwrap();
        for kind in [Kind::Order, Kind::Missing, Kind::Absent, Kind::TooMany, Kind::Unprepared] {
            let (error, back) = rig.queue.submit(Odd(pool.take(), kind)).map(drop).unwrap_err();
            let unprepared = kind == Kind::Unprepared;
            let expected = if unprepared { QueueError::Broken } else { QueueError::BadChain };
            assert_eq!((error, back.0.unwrap().len(), back.1), (expected, LEN, kind));
            rig.queue.kick();
            assert_eq!((rig.seen(), kicks.get()), (0, 0), "{kind:?}");
        }
        assert_eq!((rig.queue.in_flight(), rig.queue.depth(), pool.available()), (0, 4, 2));
        assert!(rig.queue.submit(Odd(pool.take(), Kind::Two)).is_ok());
        rig.queue.kick();
        assert_eq!((rig.seen() != 0, kicks.get()), (true, 1));
        assert_eq!(rig.queue.reclaim(&rig.windows.reset_model().unwrap()).collect::<Vec<_>>().len(), 1);
    }
}

/// A chain is shorter than 4 GiB (2.7.5).
#[test]
fn a_chain_of_4_gib_is_refused() {
    const MIB: usize = 1 << 20;
    let options = QueueOptions { size: 8192, chains: 1, segments: 4096, longest: 4096 };
    for format in FORMATS {
        let kicks = Cell::new(0);
        let mut rig = Rig::new(format, &options, &kicks);
        let pool = DmaPool::new(&rig.windows, 1, MIB).unwrap();
        let longest = Odd(pool.take(), Kind::Repeated(4096, MIB));
        let (error, Odd(buffer, _)) = rig.queue.submit(longest).map(drop).unwrap_err();
        assert_eq!(error, QueueError::BadChain);
        let almost = Odd(buffer, Kind::Repeated(4096, MIB - 2));
        assert!(rig.queue.submit(almost).is_ok());
        rig.queue.kick();
        let len = u32::MAX - 1;
        rig.put_used(0, 0, 7);
        let [low, high] = [len as u16, (len >> 16) as u16];
        let [descriptors, _, device] = rig.areas;
        rig.put(if format == 0 { device + 8 } else { descriptors + 8 }, [low, high]);
        assert_eq!(rig.queue.pop().unwrap().unwrap().written, Some(len));
    }
}

/// A chain that goes again is another one, wherever the ones before it were written.
#[test]
fn what_goes_again_may_have_changed() {
    use Kind::{One, Two};
    for (format, kinds) in FORMATS
        .into_iter()
        .flat_map(|format| [[One, One], [One, Two], [Two, One], [Two, Two]].map(|kinds| (format, kinds)))
    {
        let kicks = Cell::new(0);
        let mut rig = Rig::new(format, &QueueOptions { size: 16, ..OPTIONS }, &kicks);
        let pool = DmaPool::new(&rig.windows, 2, LEN).unwrap();
        for _ in 0..2 {
            rig.queue.submit(Odd(pool.take(), One)).unwrap();
        }
        rig.queue.kick();
        (0..2).for_each(|number| rig.put_used(number, number, 3));
        let mut next = kinds.into_iter();
        let renewed = rig.queue.renew(9, |odd, _, _| {
            odd.1 = next.next().unwrap();
            Some(())
        });
        assert_eq!((renewed, rig.queue.in_flight()), (Ok(2), 2));
        rig.queue.kick();
        let second = if kinds[0] == Two { 4 } else { 3 };
        assert_eq!([rig.slot(2, 2), rig.slot(3, second)], [0, 1], "{format:#x}, {kinds:?}");
        rig.put_used(2, 2, 5);
        rig.put_used(3, second, 5);
        let mut written = Vec::new();
        rig.queue.reap(|done, _| written.push(done.written)).unwrap();
        let expected = kinds.map(|kind| Some(if kind == One { 5 } else { 0 }));
        assert_eq!(written, expected, "{format:#x}, {kinds:?}");
    }
}

/// It is dropped, what came before it is in the ring, and the queue goes on.
#[test]
fn what_cannot_go_again_is_said() {
    // One long chain fits: none that goes again in its slot.
    let options = QueueOptions { size: 16, chains: 4, segments: 2, longest: 3 };
    for (format, (kind, error)) in FORMATS.into_iter().flat_map(|format| {
        let full = (Kind::Three, QueueError::Full);
        [(Kind::Order, QueueError::BadChain), full].map(|kind| (format, kind))
    }) {
        let kicks = Cell::new(0);
        let mut rig = Rig::new(format, &options, &kicks);
        let pool = DmaPool::new(&rig.windows, 3, LEN).unwrap();
        for _ in 0..3 {
            rig.queue.submit(Odd(pool.take(), Kind::One)).unwrap();
        }
        rig.queue.kick();
        (0..3).for_each(|number| rig.put_used(number, number, 0));
        let mut kinds = [Kind::Two, kind].into_iter();
        let renewed = rig.queue.renew(9, |odd, _, _| {
            odd.1 = kinds.next().unwrap();
            Some(())
        });
        assert_eq!(renewed, Err(error), "{format:#x}");
        assert_eq!((rig.queue.in_flight(), pool.available()), (2, 1), "{format:#x}");
        rig.queue.kick();
        assert_eq!(rig.slot(3, 3), 0);
        assert_eq!(rig.queue.pop().unwrap().unwrap().ticket.index(), 2);
        rig.put_used(3, 3, 0);
        assert_eq!(rig.queue.pop().unwrap().unwrap().ticket.index(), 0);
        assert_eq!((rig.queue.in_flight(), pool.available(), rig.queue.is_broken()), (0, 3, false));
    }
}
