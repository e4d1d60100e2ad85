//! What only a faulty [`Buffers`] of this crate could put into a queue.

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

/// What is wrong with a chain of two segments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Fault {
    #[default]
    Nothing,
    /// A readable segment after a writable one.
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

#[derive(Default)]
struct Odd(Option<DmaBuf>, Fault);

impl sealed::Sealed for Odd {}

impl Buffers for Odd {
    type Context = ();
    type Request = ();

    fn only<'a>(&'a self, (): (), (): &'a ()) -> Option<Segment<'a>> {
        None
    }

    fn count(&self, (): (), (): &()) -> u16 {
        if self.1 == Fault::TooMany { u16::MAX } else { 2 }
    }

    fn segment<'a>(&'a self, (): (), (): &'a (), index: u16) -> Option<Segment<'a>> {
        match (index, self.1) {
            (0, Fault::Order) => self.0.as_ref()?.segment(0, 8, true),
            (1, Fault::Missing) | (_, Fault::Absent) => None,
            (0 | 1, _) => self.0.as_ref()?.segment(0, 8, false),
            _ => None,
        }
    }

    fn prepare<'a>(&self, (): (), (): &'a (), _: u16) -> Ends<'a> {
        if self.1 == Fault::Unprepared { Err(QueueError::Broken) } else { Ok(None) }
    }

    fn least_written(&self) -> u32 {
        0
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

#[test]
fn odd_chains_come_back() {
    for format in [0, features::RING_PACKED] {
        let platform: &'static HostPlatform = Box::leak(Box::new(HostPlatform::new()));
        let windows = DmaWindows::for_model(platform, ID).unwrap();
        let options = QueueOptions { size: 8, chains: 8, segments: 2, longest: 2 };
        let new = NewQueue::new(&windows, 8, &options, format).unwrap();
        let setup = new.setup(0).unwrap();
        let [descriptors, driver, _] =
            setup.addresses.addresses().map(|address| windows.publish(address).unwrap().0);
        let (life, kicks) = (setup.addresses.life(), Cell::new(0));
        let mut queue = Queue::<Odd, _>::new(new, life.clone(), 0, Bell(&kicks), ()).unwrap();
        queue.start(&DriverOk(life));
        // The available index, or the flags of the first descriptor.
        let seen = || {
            let at = if format == 0 { driver + 2 } else { descriptors + 14 };
            let word = platform.translate(ID, at, 2).unwrap();
            u16::from_le(word.slice().load(0, Ordering::Acquire).unwrap())
        };
        let pool = DmaPool::new(&windows, 2, LEN).unwrap();
        let faults = [Fault::Order, Fault::Missing, Fault::Absent, Fault::TooMany, Fault::Unprepared];
        for fault in faults {
            let (error, back) = queue.submit(Odd(pool.take(), fault)).map(drop).unwrap_err();
            let unprepared = fault == Fault::Unprepared;
            let expected = if unprepared { QueueError::Broken } else { QueueError::BadChain };
            assert_eq!((error, back.0.unwrap().len(), back.1), (expected, LEN, fault));
            queue.kick();
            assert_eq!((seen(), kicks.get()), (0, 0), "{fault:?}");
        }
        assert_eq!((queue.in_flight(), queue.depth(), pool.available()), (0, 4, 2));
        assert!(queue.submit(Odd(pool.take(), Fault::Nothing)).is_ok());
        queue.kick();
        assert_eq!((seen() != 0, kicks.get()), (true, 1));
        assert_eq!(queue.reclaim(&windows.reset_model().unwrap()).collect::<Vec<_>>().len(), 1);
    }
}
