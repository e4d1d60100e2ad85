//! Resets of one queue, and proofs of another device or an earlier life.

use ringfence_drivers::virtio::{
    BufferList, Device, DeviceType, Error, Queue, QueueError, QueueOptions, RESET_LIMIT, features,
};
use ringfence_memory::{DeviceId, DmaError, DmaPool, Platform};
use ringfence_testkit::bench::{Bench, FORMATS, Shape, no_controls, rings};
use ringfence_testkit::{EVENT_IDX, Event, Fake, ID, RING_PACKED, RING_RESET};

#[test]
fn a_queue_reset_needs_the_feature() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 8, 3);
        bench.run(3);
        let refused = bench.device.reset_queue(&mut bench.queue);
        assert_eq!((refused, bench.resets()), (Err(Error::MissingFeature(40)), 0));
        bench.run(3);
    }
}

#[test]
fn a_queue_is_reset_only_when_idle() {
    for features in rings() {
        let mut bench = Bench::new(features | RING_RESET, 8, 3);
        bench.run(3);
        // Not even if the device does not know yet.
        bench.submit(1, 1).unwrap();
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::Busy));
        bench.queue.kick();
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::Busy));
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, 7);
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::Busy), "used, but still inside");
        assert_eq!((bench.resets(), bench.queue.in_flight()), (0, 1), "nothing was done");
        assert_eq!(bench.reap().unwrap().len(), 1);
        bench.run(3);
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Ok(()));
        assert_eq!(bench.resets(), 1);
    }
}

#[test]
fn a_reset_queue_starts_over() {
    // A packed ring of a size that is no power of two, too.
    let shapes = rings().flat_map(|features| {
        let odd = (features & RING_PACKED != 0).then_some(11);
        [8].into_iter().chain(odd).map(move |size| (features, size))
    });
    for (features, size) in shapes {
        let mut bench = Bench::new(features | RING_RESET, size, 3);
        let memory = bench.fake.windows().usage();
        let mut total = 0;
        // In the first round, in the middle of one, and with the wrap counter at 0.
        for chains in [0, 1, 5, 3 * usize::from(size) + 2, 4] {
            bench.run(chains);
            total += chains as u64;
            // What the device asked for before counts no more afterwards.
            bench.ring.suppress_kicks(true);
            let before = bench.ring.available() as u16;
            bench.device.reset_queue(&mut bench.queue).unwrap();
            if features & RING_PACKED == 0 {
                // 2.7.6.1: the device runs the queue until then.
                assert_eq!(bench.fake.model().index_at_reset, before, "the index never goes back");
            }
            bench.ring = bench.fake.ring(0);
            assert_eq!((bench.ring.pending(), bench.ring.available()), (0, 0), "features {features:#x}");
            assert!(bench.queue.pop().unwrap().is_none(), "nothing was used yet");
            assert!(bench.ring.interrupts_wanted(), "as before");
            bench.submit(1, 2).unwrap();
            let kicks = bench.fake.kicks(0);
            bench.queue.kick();
            assert_eq!(bench.fake.kicks(0), kicks + 1);
            let position = bench.fake.model().queues[0].position;
            assert_eq!(position, Some(bench.ring.event(bench.ring.available())), "counted from the start");
            let chain = bench.ring.take().unwrap();
            assert_eq!(chain.segments.len(), 3);
            bench.ring.complete(chain.head, 9);
            assert_eq!(bench.reap().unwrap(), [(bench.names, Some(9))]);
            total += 1;
            bench.run(2 * usize::from(size));
            total += 2 * u64::from(size);
            bench.check();
        }
        assert_eq!(bench.queue.counters().completions, total, "the counters go on");
        assert_eq!(bench.fake.windows().usage(), memory, "in the same memory");
    }
}

/// A notification that was owed when the queue was reset is owed no more: what it was for was used. And it is
/// the queue that was meant which is reset.
#[test]
fn a_reset_pays_what_was_owed() {
    for features in rings() {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | features | RING_RESET, vec![], &[8, 8]);
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(features | RING_RESET).unwrap();
        let wish = QueueOptions { size: 8, chains: 4, segments: 1, longest: 1 };
        let mut queue = device.queue::<BufferList>(1, &wish, 1, no_controls).unwrap();
        assert_eq!(queue.index(), 1);
        let started = device.driver_ok().unwrap();
        let pool = DmaPool::new(&windows, 1, 64).unwrap();
        // The device looks, though nobody rings.
        queue.submit(BufferList::new(1, vec![], vec![pool.take().unwrap()], 0)).unwrap();
        queue.kick();
        let mut ring = fake.ring(1);
        let chain = ring.take().unwrap();
        ring.complete(chain.head, 0);
        assert!(queue.pop().unwrap().is_some());
        device.reset_queue(&mut queue).unwrap();
        assert!(fake.model().events.contains(&Event::QueueReset(1)));
        queue.start(&started);
        queue.kick();
        assert_eq!(fake.kicks(1), 0, "features {features:#x}");
        queue.submit(BufferList::new(2, vec![], vec![pool.take().unwrap()], 0)).unwrap();
        queue.kick();
        assert_eq!(fake.kicks(1), 1, "features {features:#x}");
    }
}

#[test]
fn a_reset_leaves_interrupts_as_they_were() {
    for features in rings() {
        let mut bench = Bench::new(features | RING_RESET, 8, 3);
        bench.run(5);
        for off in [true, false] {
            if off {
                bench.queue.disable_interrupts()
            } else {
                assert!(!bench.queue.enable_interrupts())
            }
            bench.device.reset_queue(&mut bench.queue).unwrap();
            bench.ring = bench.fake.ring(0);
            assert_eq!(bench.ring.interrupts_wanted(), !off, "features {features:#x}");
            bench.run(3);
            assert_eq!(bench.ring.interrupts_wanted(), !off && features & EVENT_IDX == 0);
        }
    }
}

#[test]
fn a_queue_that_does_not_reset() {
    for format in FORMATS {
        let mut bench = Bench::new(format | RING_RESET, 8, 3);
        bench.run(3);
        bench.fake.model().stuck_queues = true;
        let start = bench.fake.platform.now();
        assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::Timeout));
        assert!(bench.fake.platform.now() - start < 2 * RESET_LIMIT, "the wait is bounded");
        assert!(bench.queue.is_broken());
        assert_eq!(bench.submit(1, 1), Err(QueueError::Broken));
        let kicks = bench.fake.kicks(0);
        bench.queue.kick();
        assert_eq!((bench.fake.kicks(0), bench.reap()), (kicks, Err(QueueError::Broken)));
        bench.check();
        drop(bench.queue);
        assert_eq!(bench.pool.available(), bench.buffers, "nothing went in");
    }
}

/// Who cannot wait for a queue's reset asks for it, and looks now and then: until it is done the queue is not
/// broken, but takes nothing and tells the device nothing.
#[test]
fn a_queue_reset_that_nobody_waits_for() {
    for features in rings() {
        let mut bench = Bench::new(features | RING_RESET, 8, 3);
        bench.run(3);
        let Bench { device, queue, fake, .. } = &mut bench;
        assert_eq!(device.poll_reset_queue(queue), Some(Err(Error::WrongState)), "nobody asked");
        let (start, kicks) = (fake.platform.now(), fake.kicks(0));
        let slot = queue.next_slot();
        fake.model().stuck_queues = true;
        assert_eq!(device.begin_reset_queue(queue), Ok(()));
        for _ in 0..3 {
            assert_eq!(bench.device.poll_reset_queue(&mut bench.queue), None);
            assert_eq!(bench.device.begin_reset_queue(&mut bench.queue), Err(Error::Busy));
            assert_eq!(bench.device.reset_queue(&mut bench.queue), Err(Error::Busy));
            assert_eq!((bench.queue.is_broken(), bench.queue.next_slot()), (false, None));
            assert_eq!(bench.refusal(), QueueError::Full);
            bench.queue.kick();
            bench.queue.kick_again();
            assert_eq!((bench.reap().unwrap().len(), bench.fake.kicks(0), bench.resets()), (0, kicks, 1));
        }
        bench.fake.model().stuck_queues = false;
        let Bench { device, queue, fake, .. } = &mut bench;
        assert_eq!(device.poll_reset_queue(queue), Some(Ok(())));
        assert_eq!(device.poll_reset_queue(queue), Some(Err(Error::WrongState)), "it is done");
        assert_eq!((queue.next_slot(), fake.kicks(0)), (slot, kicks));
        assert!(fake.platform.now() - start < RESET_LIMIT / 10);
        bench.ring = bench.fake.ring(0);
        bench.run(20);
        bench.check();
    }
}

/// A queue that never resets, of a device that is reset then, or that finds it broken meanwhile.
#[test]
fn a_queue_reset_that_nobody_sees_the_end_of() {
    for format in FORMATS {
        let [mut bench, mut other] = two(format | RING_RESET);
        bench.fake.model().stuck_queues = true;
        bench.device.begin_reset_queue(&mut bench.queue).unwrap();
        let foreign = other.device.poll_reset_queue(&mut bench.queue);
        assert_eq!(foreign, Some(Err(Error::Dma(DmaError::WrongLife))));
        assert_eq!(bench.device.poll_reset_queue(&mut bench.queue), None);
        let quiet = bench.device.shut_down().unwrap();
        assert_eq!(bench.device.poll_reset_queue(&mut bench.queue), Some(Err(Error::WrongState)));
        assert_eq!(bench.refusal(), QueueError::Full);
        assert_eq!(bench.queue.reclaim(&quiet).count(), 0);
        assert_eq!(bench.refusal(), QueueError::Broken);

        other.fake.model().stuck_queues = true;
        other.device.begin_reset_queue(&mut other.queue).unwrap();
        other.ring.complete(7, 0);
        assert_eq!(other.reap(), Err(QueueError::Broken));
        let polled = other.device.poll_reset_queue(&mut other.queue);
        assert_eq!(polled, Some(Err(Error::Queue(QueueError::Broken))));
        assert_eq!(other.submit(1, 1), Err(QueueError::Broken));
    }
}

fn two(features: u64) -> [Bench; 2] {
    let shape = Shape { features, size: 8, chains: 2, segments: 3, longest: 3, fixed: false };
    [ID, DeviceId(ID.0 + 8)].map(|id| {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | features, vec![], &[8]);
        Bench::on(fake.with_id(id), shape)
    })
}

#[test]
fn a_queue_of_another_device_is_not_reset() {
    for format in FORMATS {
        let [mut ours, mut theirs] = two(format | RING_RESET);
        ours.run(2);
        theirs.run(2);
        // Their own queue is busy, and would be reset in place of ours.
        theirs.submit(1, 1).unwrap();
        theirs.queue.kick();
        let refused = theirs.device.reset_queue(&mut ours.queue);
        assert_eq!(refused, Err(Error::Dma(DmaError::WrongLife)));
        assert_eq!((ours.resets(), theirs.resets()), (0, 0));
        ours.run(2);
    }
}

#[test]
fn another_device_that_is_quiet_proves_nothing() {
    for format in FORMATS {
        let [mut ours, mut theirs] = two(format);
        ours.submit(1, 1).unwrap();
        ours.queue.kick();
        let chain = ours.ring.take().unwrap();
        let quiet = theirs.device.shut_down().unwrap();
        assert_eq!(ours.queue.reclaim(&quiet).count(), 0);
        assert!(!ours.queue.is_broken());
        ours.check();
        assert_eq!(ours.pool.available(), ours.buffers - 2, "our device still has the buffers");
        ours.ring.complete(chain.head, 5);
        assert_eq!(ours.reap().unwrap(), [(1, Some(5))], "and gives them back as if nothing had happened");
        ours.run(10);
        // Its own proof counts.
        ours.submit(1, 1).unwrap();
        let quiet = ours.device.shut_down().unwrap();
        assert_eq!(ours.queue.reclaim(&quiet).count(), 1);
        assert_eq!(ours.pool.available(), ours.buffers);
    }
}

/// That the device was quiet once says nothing of what it was given since.
#[test]
fn a_proof_of_an_earlier_life() {
    for format in FORMATS {
        let mut before = Bench::new(format, 8, 3);
        let stale = [before.device.shut_down().unwrap(), before.device.shut_down().unwrap()];
        let Bench { fake, .. } = before;
        let shape = Shape { features: format, size: 8, chains: 2, segments: 3, longest: 3, fixed: false };
        let mut bench = Bench::on(fake, shape);
        bench.submit(1, 1).unwrap();
        bench.queue.kick();
        for stale in &stale {
            assert_eq!(bench.queue.reclaim(stale).count(), 0);
        }
        bench.check();
        assert_eq!(bench.pool.available(), bench.buffers - 2);
        let quiet = bench.device.shut_down().unwrap();
        assert_eq!(bench.queue.reclaim(&quiet).count(), 1);
    }
}

#[test]
fn another_device_that_was_started_proves_nothing() {
    for format in FORMATS {
        let fakes = [ID, DeviceId(ID.0 + 8)]
            .map(|id| Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[8]).with_id(id));
        let mut devices = fakes.each_ref().map(|fake| {
            let begun = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), fake.windows());
            begun.unwrap().negotiate(format).unwrap()
        });
        let options = QueueOptions { size: 8, chains: 4, segments: 2, longest: 2 };
        let mut queue = devices[0].queue::<BufferList>(0, &options, 1, no_controls).unwrap();
        let pool = DmaPool::new(&fakes[0].windows(), 4, 64).unwrap();
        let submit = |queue: &mut Queue<_, _>| {
            let writable = vec![pool.take().unwrap()];
            queue.submit(BufferList::new(0, vec![], writable, 0)).unwrap();
            queue.kick();
        };
        let theirs = devices[1].driver_ok().unwrap();
        queue.start(&theirs);
        submit(&mut queue);
        assert_eq!(fakes[0].kicks(0), 0, "our device was not started");
        let ours = devices[0].driver_ok().unwrap();
        queue.start(&ours);
        // Nor does it stop what was started.
        queue.start(&theirs);
        submit(&mut queue);
        assert_eq!((fakes[0].kicks(0), fakes[1].kicks(0)), (1, 0));
    }
}
