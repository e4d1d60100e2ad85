//! What QEMU does with a guest that can have only one processor: it leaves out the guest's fences. Then the
//! driver may publish and see what the device wanted a moment ago, while the device, which is going to sleep,
//! does not see yet what was published. Nobody does anything from then on, until the driver looks again.

use std::cell::RefCell;
use std::task::Wake;
use std::thread;
use std::time::{Duration, Instant};

use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{DeviceType, Hybrid, QueueError, features};
use ringfence_testkit::bench::{Bench, FORMATS};
use ringfence_testkit::tasks::{Shared, Task, check, server, settle};
use ringfence_testkit::{DeviceRing, EVENT_IDX, Event, Fake, IN_ORDER, INDIRECT_DESC, RING_PACKED};

/// All combinations that a ring's memory and events depend on, with the sizes of rings.
fn rings() -> impl Iterator<Item = (u64, u16)> {
    let others = (0..8).map(|bits| {
        [EVENT_IDX, INDIRECT_DESC, IN_ORDER]
            .iter()
            .enumerate()
            .map(|(bit, one)| (bits >> bit & 1) * one)
            .sum()
    });
    let rings = others.flat_map(|others: u64| FORMATS.map(|format| format | others));
    rings.flat_map(|ring| {
        let odd = (ring & RING_PACKED != 0).then_some((ring, 11));
        [(ring, 8)].into_iter().chain(odd)
    })
}

/// What the device writes before it sleeps: it wants to be notified from `position` on.
fn want_kick_at(ring: &DeviceRing, features: u64, position: u64) {
    match (features & RING_PACKED != 0, features & EVENT_IDX != 0) {
        (true, true) => ring.put_event([ring.event(position), 2]),
        (false, true) => ring.put_avail_event(ring.event(position)),
        (_, false) => ring.suppress_kicks(false),
    }
}

#[test]
fn a_lost_notification_is_sent_again_once() {
    for (features, size) in rings() {
        let mut bench = Bench::new(features, size, 3);
        // Where the ring wraps, too.
        for round in 0..3 * size {
            let count = 1 + round % bench.queue.depth().min(3);
            bench.publish_unseen(count);
            // It has not seen them.
            want_kick_at(&bench.ring, features, bench.ring.taken);
            assert_eq!(bench.kicks_of(|bench| bench.queue.kick()), 0, "nothing was published");
            assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 1, "features {features:#x}");
            // It may be slow.
            assert_eq!(bench.kicks_of(|bench| (0..9).for_each(|_| bench.queue.kick_again())), 0);
            bench.serve();
            assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 0, "nothing is in flight");
        }
    }
}

/// Wherever the device wants to be notified, it is if that is in what it has not used yet.
#[test]
fn only_what_is_in_flight_counts() {
    for (features, size) in rings().filter(|(features, _)| features & EVENT_IDX != 0) {
        let mut bench = Bench::new(features, size, 3);
        let depth = bench.queue.depth();
        for (count, back) in
            (1..=depth).flat_map(|count| (0..2 * u64::from(size)).map(move |back| (count, back)))
        {
            bench.publish_unseen(count);
            let (used, end) = (bench.ring.used, bench.ring.available());
            // Up to a round before, and as far behind.
            let Some(position) = (end + u64::from(size)).checked_sub(back) else {
                bench.serve();
                continue;
            };
            // Positions of a packed ring come again after two rounds.
            let wanted = (used..end).any(|at| bench.ring.event(at) == bench.ring.event(position));
            want_kick_at(&bench.ring, features, position);
            let kicks = bench.kicks_of(|bench| bench.queue.kick_again());
            assert_eq!(kicks, usize::from(wanted), "features {features:#x}, {position} in {used}..{end}");
            bench.serve();
        }
    }
}

#[test]
fn a_device_that_wants_no_notification_gets_none() {
    for (features, size) in rings() {
        let mut bench = Bench::new(features, size, 3);
        for _ in 0..3 * size {
            bench.publish_unseen(1);
            assert_eq!(bench.kicks_of(|bench| (0..9).for_each(|_| bench.queue.kick_again())), 0);
            bench.serve();
            want_kick_at(&bench.ring, features, bench.ring.taken - 1);
            assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 0, "nothing is in flight");
        }
    }
}

/// A look tells of everything, as a kick does, and by one notification.
#[test]
fn a_look_publishes_too() {
    for (features, size) in rings() {
        let mut bench = Bench::new(features, size, 3);
        bench.publish_unseen(1);
        bench.submit(1, 1).unwrap();
        want_kick_at(&bench.ring, features, bench.ring.taken);
        assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 1, "features {features:#x}");
        assert_eq!(bench.ring.pending(), 2);
        // What was published since the last look may have been lost again.
        assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 1);
        assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 0);
        bench.serve();
    }
}

#[test]
fn a_broken_queue_notifies_no_more() {
    for features in FORMATS {
        let mut bench = Bench::new(features, 8, 3);
        bench.publish_unseen(1);
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head + 1, 0);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
        want_kick_at(&bench.ring, features, 0);
        assert_eq!(bench.kicks_of(|bench| bench.queue.kick_again()), 0);
        bench.assert_broken();
    }
}

/// A task that waits for sector 5, the server, which is asleep, and the disk, which has not looked yet.
fn asleep(
    bench: &mut ringfence_testkit::tasks::Bench,
    then: impl FnOnce(&Shared<'_>, &mut ringfence_testkit::tasks::Disk, [&mut Task<'_>; 2]),
) {
    let (mut disk, request) = (bench.disk(0), bench.read(5));
    disk.ring.suppress_kicks(true);
    let queue = Shared::new(&mut bench.block.queue, Hybrid::new(0)).unwrap();
    let ended = RefCell::default();
    let (mut server, mut task) =
        (server(&queue, &ended), Task::new(async { check(queue.request(request).await, 5) }));
    assert!(!queue.is_asleep(), "with nothing to wait for");
    settle(&mut [&mut task, &mut server]);
    assert!(queue.is_asleep());
    then(&queue, &mut disk, [&mut task, &mut server]);
    assert!(task.is_over() && server.future.is_some() && ended.borrow().is_none());
    assert!(!queue.is_asleep());
}

#[test]
fn a_sleeping_server_notifies_again() {
    for ring in ringfence_testkit::tasks::formats() {
        let mut bench = ringfence_testkit::tasks::Bench::new(ring, 1, 64);
        let model = bench.fake.model.clone();
        let kicks = || model.lock().events.iter().filter(|&&event| event == Event::Kick(0)).count();
        asleep(&mut bench, |queue, disk, [task, server]| {
            assert_eq!(kicks(), 0);
            want_kick_at(&disk.ring, ring, 0);
            for _ in 0..3 {
                queue.look_again();
                assert_eq!((kicks(), server.run()), (1, false), "there is nothing for the server");
            }
            assert_eq!(disk.take(), 1);
            assert!(disk.finish(0), "the server sleeps");
            server.flag.clone().wake();
            settle(&mut [task, server]);
        });
    }
}

#[test]
fn a_sleeping_server_sees_what_raised_no_interrupt() {
    for ring in ringfence_testkit::tasks::formats() {
        let mut bench = ringfence_testkit::tasks::Bench::new(ring, 1, 64);
        asleep(&mut bench, |queue, disk, [task, server]| {
            assert_eq!(disk.take(), 1);
            disk.finish(0);
            settle(&mut [task, server]);
            assert!(!task.is_over());
            queue.look_again();
            settle(&mut [task, server]);
        });
    }
}

#[test]
fn a_server_that_is_awake_looks_by_itself() {
    let mut bench = ringfence_testkit::tasks::Bench::new(0, 1, 64);
    let (disk, request) = (bench.disk(0), bench.read(5));
    let ringfence_testkit::tasks::Bench { fake, block, .. } = &mut bench;
    disk.ring.suppress_kicks(true);
    let queue = Shared::new(&mut block.queue, Hybrid::new(9)).unwrap();
    let ended = RefCell::default();
    let mut task = Task::new(async { drop(queue.request(request).await) });
    let mut server = server(&queue, &ended);
    task.run();
    server.run();
    disk.ring.suppress_kicks(false);
    assert!(!queue.is_asleep());
    queue.look_again();
    assert_eq!(fake.kicks(0), 0);
    drop((task, server));
}

#[test]
fn who_polls_for_long_notifies_again() {
    const LIMIT: Duration = Duration::from_secs(5);
    for ring in ringfence_testkit::tasks::formats() {
        let mut bench = ringfence_testkit::tasks::Bench::new(ring, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(5));
        let ringfence_testkit::tasks::Bench { fake, block, .. } = &mut bench;
        disk.ring.suppress_kicks(true);
        thread::scope(|scope| {
            let device = scope.spawn(|| {
                while disk.ring.pending() == 0 {
                    thread::yield_now();
                }
                want_kick_at(&disk.ring, ring, 0);
                let start = Instant::now();
                while fake.kicks(0) == 0 && start.elapsed() < LIMIT {
                    thread::yield_now();
                }
                disk.take();
                disk.finish(0);
            });
            check(block.call(request, 2 * LIMIT).unwrap(), 5);
            device.join().unwrap();
        });
        assert_eq!(fake.kicks(0), 1);
    }
}

/// A disk that answers as soon as it is told of a request is told at once, and not when the call looks again.
#[test]
fn a_call_notifies_at_once() {
    for ring in ringfence_testkit::tasks::formats() {
        let mut bench = ringfence_testkit::tasks::Bench::new(ring, 1, 64);
        let (mut disk, request) = (bench.disk(0), bench.read(5));
        // A machine that is busy may have the call look again before it sees the answer.
        bench.fake.model().on_kick = Some(Box::new(move || {
            if disk.take() == 1 {
                disk.finish(0);
            }
        }));
        check(bench.block.call(request, Duration::ZERO).unwrap(), 5);
    }
}

#[test]
fn both_queues_of_a_card_are_looked_at() {
    for features in FORMATS {
        let fake = Fake::new(DeviceType::NET, features::VERSION_1 | features, vec![0; 12], &[8, 8]);
        let mut net = Net::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
        let rings = [0, 1].map(|queue| fake.ring(queue));
        rings.iter().for_each(|ring| ring.suppress_kicks(true));
        assert_eq!(net.pair.send(1, |frame| frame.write(&[1; 60]).unwrap()), Ok(1));
        net.pair.kick();
        let before = [0, 1].map(|queue| fake.kicks(queue));
        for (queue, ring) in rings.iter().enumerate() {
            ring.suppress_kicks(false);
            net.pair.kick_again();
            let after = [0, 1].map(|queue| fake.kicks(queue));
            assert_eq!([0, 1].map(|at: usize| after[at] - before[at]), [1, usize::from(queue == 1)]);
        }
    }
}
