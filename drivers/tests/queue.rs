//! The driver side of the virtqueue, in both formats, against a device model: polite, then not.

use ringfence_drivers::virtio::{BufferList, Device, DeviceType, QueueError, QueueOptions, features};
use ringfence_memory::{DeviceId, DmaPool, DmaWindows};
use ringfence_testkit::bench::{BUFFER_LEN, Bench, FORMATS, Shape, no_controls};
use ringfence_testkit::{EVENT_IDX, Event, Fake, ID, IN_ORDER, RING_PACKED, grant};

#[test]
fn round_trip_with_data() {
    for format in FORMATS {
        let (mut bench, chain) = Bench::one_in_flight(format, 8);
        assert_eq!(chain.segments.len(), 2);
        assert_eq!(chain.writable_len(), BUFFER_LEN as u32);
        bench.ring.write(&chain.segments[1], b"answer");
        bench.ring.complete(chain.head, 6);
        let completion = bench.queue.pop().unwrap().unwrap();
        let mut answer = [0; 6];
        completion.buffers.buffers()[1][0].read_slice(&mut answer, 0).unwrap();
        assert_eq!((&answer, completion.written), (b"answer", Some(6)));
        // The device writes late: only the copy counts, and the buffer is ours to read any time.
        bench.ring.write(&chain.segments[1], b"laughs");
        assert_eq!(&answer, b"answer");
        assert!(bench.queue.pop().unwrap().is_none());
    }
}

/// D1: what a device says of a chain that it could not write to means nothing (2.8.13).
#[test]
fn the_length_of_what_cannot_be_written() {
    for format in FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]) {
        let mut bench = Bench::new(format, 8, 2);
        for len in [0, 1, 64, 65, 0xdead_beef, u32::MAX] {
            for (written, readable) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
                bench.submit(readable, 0).unwrap();
                bench.queue.kick();
                let head = bench.ring.take().unwrap().head;
                if written {
                    bench.ring.complete(head, len)
                } else {
                    bench.ring.complete_unwritten(head, len)
                }
                assert_eq!(bench.reap(), Ok(vec![(bench.names, Some(0))]), "{len:#x}, {format:#x}");
                assert_eq!(bench.queue.counters().rejected, 0);
            }
        }
        // With a byte to write it is believed, or not.
        for (len, expected) in [(0, Some(0)), (64, Some(64)), (65, None), (u32::MAX, None)] {
            bench.submit(1, 1).unwrap();
            bench.queue.kick();
            let head = bench.ring.take().unwrap().head;
            bench.ring.complete(head, len);
            assert_eq!(bench.reap(), Ok(vec![(bench.names, expected)]), "{len:#x}, {format:#x}");
        }
        assert_eq!(bench.queue.counters().rejected, 2);
        // Nor is it believed where something had to be written.
        let [readable, _] = bench.item(1, 0).unwrap().into_buffers();
        bench.queue.submit(BufferList::new(77, readable, vec![], 1)).unwrap();
        bench.queue.kick();
        let head = bench.ring.take().unwrap().head;
        bench.ring.complete(head, 1);
        assert_eq!(bench.queue.pop().unwrap().unwrap().written, None);
        assert_eq!(bench.queue.counters().rejected, 3);
    }
}

#[test]
fn index_wraps_around() {
    for (format, size) in [(0, 4), (RING_PACKED, 4), (RING_PACKED, 7)] {
        let mut bench = Bench::new(format, size, 2);
        for round in 0..70_000_u32 {
            bench.submit(1, (round % 2) as usize).unwrap();
            bench.queue.kick();
            let chain = bench.ring.take().unwrap();
            bench.ring.complete(chain.head, 0);
            assert_eq!(bench.reap().unwrap().len(), 1);
        }
        bench.check();
        assert_eq!(bench.queue.counters().kicks, 70_000);
        assert_eq!(bench.ring.used, bench.ring.available());
    }
}

#[test]
fn sizes_are_legal_and_within_both_limits() {
    let cases = [
        // What the device allows, what is wished, the size of a split ring, and of a packed one.
        (1, 9, Ok(1), Ok(1)),
        (3, 9, Ok(2), Ok(3)),
        (256, 200, Ok(128), Ok(200)),
        (65535, 65535, Ok(32768), Ok(32768)),
        (32767, 65535, Ok(16384), Ok(32767)),
        (32768, 4, Ok(4), Ok(4)),
        (0, 9, Err(()), Err(())),
        (5, 0, Err(()), Err(())),
    ];
    for (max, size, split, packed) in cases {
        for (format, expected) in [(0, split), (RING_PACKED, packed)] {
            let fake = Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[max]);
            let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), fake.windows()).unwrap();
            let mut device = offer.negotiate(format).unwrap();
            let wish = QueueOptions { size, chains: u16::MAX, segments: 1, longest: 1 };
            let queue = device.queue::<BufferList>(0, &wish, 1, no_controls);
            assert_eq!(queue.map(|queue| queue.size()).map_err(|_| ()), expected, "max {max}, wish {size}");
            assert!(device.queue::<BufferList>(1, &wish, 1, no_controls).is_err(), "there is no queue 1");
        }
    }
}

#[test]
fn one_kick_for_a_batch_and_none_if_suppressed() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 16, 2);
        bench.queue.kick();
        assert_eq!(bench.fake.kicks(0), 0, "nothing to tell");
        for _ in 0..8 {
            bench.submit(1, 1).unwrap();
            assert_eq!(bench.ring.pending(), 0, "not before the kick");
        }
        bench.queue.kick();
        assert_eq!((bench.fake.kicks(0), bench.ring.pending()), (1, 8));
        assert_eq!(bench.submit(1, 0), Err(QueueError::Full));
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, 0);
        bench.reap().unwrap();
        bench.ring.suppress_kicks(true);
        bench.submit(2, 0).unwrap();
        bench.queue.kick();
        assert_eq!((bench.fake.kicks(0), bench.ring.pending()), (1, 8));
    }
}

#[test]
fn no_kick_before_driver_ok() {
    for format in FORMATS {
        let fake = Fake::new(DeviceType(42), features::VERSION_1 | format, vec![], &[8]);
        let windows = fake.windows();
        let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(format).unwrap();
        let wish = QueueOptions { size: 8, chains: 8, segments: 1, longest: 1 };
        let mut queue = device.queue::<BufferList>(0, &wish, 1, no_controls).unwrap();
        let pool = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
        let item = BufferList::new(1, vec![], vec![pool.take().unwrap()], 0);
        queue.submit(item).unwrap();
        queue.kick();
        assert_eq!((fake.kicks(0), fake.ring(0).pending()), (0, 1), "published, not notified");
        let started = device.driver_ok().unwrap();
        queue.start(&started);
        queue.kick();
        assert_eq!(fake.kicks(0), 1, "the notification was owed");
        assert_eq!(fake.model().events.last(), Some(&Event::Kick(0)));
    }
}

#[test]
fn interrupts_are_asked_for_and_rechecked() {
    for features in FORMATS.into_iter().flat_map(|format| [format, format | EVENT_IDX]) {
        let (mut bench, chain) = Bench::one_in_flight(features, 8);
        assert!(bench.ring.interrupts_wanted());
        bench.queue.disable_interrupts();
        assert!(!bench.ring.interrupts_wanted());
        assert!(!bench.queue.enable_interrupts());
        assert!(bench.ring.interrupts_wanted());
        bench.queue.disable_interrupts();
        bench.ring.put_used(chain.head.into(), 0);
        assert!(!bench.ring.publish(), "an interrupt that nobody wanted");
        assert!(bench.queue.enable_interrupts(), "a completion came while interrupts were off");
        assert_eq!(bench.reap().unwrap().len(), 1);
        assert!(!bench.queue.enable_interrupts());
        assert!(bench.ring.interrupts_wanted());
    }
}

#[test]
fn bad_chains_come_back() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 4, 4);
        assert_eq!(bench.submit(0, 0), Err(QueueError::BadChain));
        assert_eq!(bench.submit(3, 2), Err(QueueError::BadChain), "longer than the ring");
        bench.check();
        let windows = DmaWindows::for_model(ringfence_testkit::platform(), DeviceId(ID.0 + 1)).unwrap();
        let pool = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
        // First, and after one that is in order.
        for ours in [0, 1, 2, 3] {
            let [mut readable, _] = bench.item(ours, 0).unwrap().into_buffers();
            readable.push(pool.take().unwrap());
            let item = BufferList::new(0, readable, vec![], 0);
            let (error, item) = bench.queue.submit(item).unwrap_err();
            assert_eq!((error, item.buffers()[0].len()), (QueueError::WrongDevice, ours + 1));
        }
        bench.check();
        bench.queue.kick();
        assert_eq!((bench.ring.pending(), bench.fake.kicks(0)), (0, 0), "nothing of them reached the device");
        // Nor after a chain that is shorter than what was refused.
        bench.submit(1, 0).unwrap();
        bench.queue.kick();
        assert_eq!(bench.ring.pending(), 1);
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, 0);
        assert_eq!((chain.segments.len(), bench.reap().unwrap().len(), bench.ring.pending()), (1, 1, 0));
        assert_eq!(bench.submit(2, 2).map(drop), Ok(()), "all four are still there");
        bench.queue.kick();
        assert_eq!(bench.ring.take().unwrap().segments.len(), 4);
        assert_eq!(bench.ring.pending(), 0);
        let buffer = pool.take().unwrap();
        assert!(buffer.segment(1, BUFFER_LEN, false).is_none());
        assert!(buffer.segment(usize::MAX, 2, true).is_none());
        assert!(buffer.segment(BUFFER_LEN, 0, true).is_none());
        assert!(buffer.segment(0, 0, false).is_none());
    }
}

#[test]
fn a_refused_segment_between_fixed_ones() {
    for format in FORMATS {
        let shape = Shape { features: format, size: 16, chains: 4, segments: 4, longest: 4, fixed: true };
        let mut bench = Bench::with(shape);
        let windows = DmaWindows::for_model(ringfence_testkit::platform(), DeviceId(ID.0 + 1)).unwrap();
        let foreign = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
        // In each slot, and with something else in front or not.
        for round in 0..40 {
            let ours = round % 2;
            let [readable, _] = bench.item(ours, 0).unwrap().into_buffers();
            let item = BufferList::new(0, readable, vec![foreign.take().unwrap()], 0);
            assert_eq!(bench.queue.submit(item).unwrap_err().0, QueueError::WrongDevice);
            // A chain that is shorter, and one as long.
            for count in [0, 1, 2] {
                bench.submit(0, count).unwrap();
                bench.queue.kick();
                assert_eq!(bench.ring.pending(), 1);
                let chain = bench.ring.take().unwrap();
                let lens: Vec<_> = chain.segments.iter().map(|part| part.len as usize).collect();
                assert_eq!(lens, [vec![16], vec![BUFFER_LEN; count], vec![1]].concat());
                let header = bench.ring.read(&chain.segments[0]);
                assert_eq!(header, [bench.names.to_le_bytes(), [0; 8]].concat(), "that of this chain");
                bench.ring.complete(chain.head, 1);
                assert_eq!(bench.reap().unwrap(), [(bench.names, Some(1))]);
                assert_eq!(bench.ring.pending(), 0);
            }
        }
    }
}

/// Parts that are not in their buffer, or are empty. What only a faulty `Buffers` of the crate could say is
/// tried in `src/virtio/queue_tests.rs`.
#[test]
fn odd_chains_come_back() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 8, 2);
        let backwards = std::ops::Range { start: 9, end: 8 };
        let odd =
            [0..0, 8..8, BUFFER_LEN..BUFFER_LEN, 1..BUFFER_LEN + 1, usize::MAX - 1..usize::MAX, backwards];
        for (readable, part) in
            [1, 2, 0].into_iter().flat_map(|readable| odd.clone().map(|part| (readable, part)))
        {
            let item = bench.item(readable, 2 - readable).unwrap();
            let item = item.with_segments(vec![0..8, part.clone()]);
            let (error, back) = bench.queue.submit(item).unwrap_err();
            assert_eq!((error, back.name()), (QueueError::BadChain, bench.names), "{part:?}");
            bench.queue.kick();
            assert_eq!((bench.ring.pending(), bench.fake.kicks(0)), (0, 0), "{part:?}");
        }
        bench.check();
        let item = bench.item(1, 1).unwrap().with_segments(vec![3..4, 8..BUFFER_LEN]);
        bench.inside.insert(item.name(), 2);
        bench.queue.submit(item).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        assert_eq!(
            chain.segments.iter().map(|part| part.len).collect::<Vec<_>>(),
            [1, BUFFER_LEN as u32 - 8]
        );
    }
}

#[test]
fn an_id_that_was_never_in_flight() {
    let cases = [7, 8, 1000, 65535, 65536, 0x8000_0000, u32::MAX];
    for (format, id) in FORMATS.into_iter().flat_map(|format| cases.map(|id| (format, id))) {
        // An id of a packed ring has no more bits.
        if format == RING_PACKED && id > 0xffff {
            continue;
        }
        let (mut bench, chain) = Bench::one_in_flight(format, 8);
        assert_ne!(u32::from(chain.head), id);
        bench.ring.put_used(id, 0);
        bench.ring.publish();
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "id {id:#x}");
        bench.assert_broken();
    }
}

#[test]
fn an_id_that_is_right_only_in_its_low_half() {
    let (mut bench, chain) = Bench::one_in_flight(0, 8);
    bench.ring.put_used(u32::from(chain.head) | 0x1_0000, 0);
    bench.ring.publish();
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    bench.assert_broken();
}

#[test]
fn an_id_twice() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 8, 2);
        bench.submit(1, 1).unwrap();
        bench.submit(1, 1).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.put_used(chain.head.into(), 0);
        bench.ring.put_used(chain.head.into(), 0);
        bench.ring.publish();
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
        assert_eq!(bench.queue.counters().completions, 1, "the first was true");
        bench.assert_broken();
    }
}

#[test]
fn the_middle_of_a_chain_as_id() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 8, 4);
        bench.submit(2, 2).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head + 1, 0);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
        bench.assert_broken();
    }
}

#[test]
fn a_chain_that_was_not_published() {
    for format in FORMATS {
        let mut bench = Bench::new(format, 8, 2);
        let first = bench.submit(1, 1).unwrap();
        bench.queue.kick();
        let second = bench.submit(1, 1).unwrap();
        assert_ne!(first, second);
        bench.ring.complete(second.index() as u16, 0);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
        bench.assert_broken();
    }
}

/// Nor one of which the device was told nothing at all.
#[test]
fn a_chain_before_the_first_kick() {
    for features in FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]) {
        let mut bench = Bench::new(features, 8, 2);
        let slot = bench.submit(1, 1).unwrap();
        bench.ring.lie_used(slot.index() as u32);
        bench.ring.publish();
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "features {features:#x}");
        bench.assert_broken();
    }
}

#[test]
fn a_used_index_that_jumps() {
    for index in [2, 9, 0x7fff, 0x8000, 0xffff] {
        let (mut bench, chain) = Bench::one_in_flight(0, 8);
        bench.ring.put_used(chain.head.into(), 0);
        bench.ring.lie(index);
        assert_eq!(bench.reap().unwrap_err(), QueueError::Broken, "index {index:#x}");
        assert_eq!(bench.queue.counters().completions, 0);
        bench.assert_broken();
    }
}

/// What was seen does not go away again.
#[test]
fn a_used_index_that_goes_back() {
    for features in [0, EVENT_IDX, IN_ORDER] {
        let mut bench = Bench::new(features, 8, 2);
        for _ in 0..2 {
            bench.submit(1, 1).unwrap();
        }
        bench.queue.kick();
        let chains = [(); 2].map(|()| bench.ring.take().unwrap());
        chains.iter().for_each(|chain| bench.ring.put_used(chain.head.into(), 0));
        bench.ring.publish();
        assert!(bench.queue.pop().unwrap().is_some());
        bench.ring.lie(1);
        assert_eq!(bench.queue.pop().map(drop), Err(QueueError::Broken), "features {features:#x}");
        assert!(bench.queue.is_broken());
    }
}

/// Whoever looks first: nothing that is behind the jump is believed, then or later.
#[test]
fn a_used_index_that_jumps_breaks_the_queue_whoever_looks() {
    type Look = fn(&mut Bench) -> bool;
    let looks: [(&str, Look); 3] = [
        ("pop", |bench| bench.queue.pop().is_err()),
        ("reap", |bench| bench.reap().is_err()),
        ("enable_interrupts", |bench| bench.queue.enable_interrupts()),
    ];
    for features in [0, EVENT_IDX, IN_ORDER, EVENT_IDX | IN_ORDER] {
        for (name, look) in looks {
            for index in [3, 4, 9, 0x8000, 0xffff] {
                let mut bench = Bench::new(features, 8, 2);
                for _ in 0..2 {
                    bench.submit(1, 1).unwrap();
                }
                bench.queue.kick();
                // What is in the used ring beyond was never written: it names the first chain, time and
                // again.
                bench.ring.lie(index);
                assert!(look(&mut bench), "{name} after a jump to {index:#x}, features {features:#x}");
                assert!(bench.queue.is_broken(), "{name} after a jump to {index:#x}, features {features:#x}");
                // Not even if it is as if nothing had been.
                bench.ring.lie(1);
                bench.queue.disable_interrupts();
                assert!(looks.iter().all(|(_, look)| look(&mut bench)));
                assert_eq!((bench.queue.counters().completions, bench.queue.counters().rejected), (0, 1));
                bench.check();
                bench.assert_broken();
            }
        }
    }
}

/// In a packed ring each descriptor says for itself that it was used.
#[test]
fn used_flags_where_nothing_is_in_flight() {
    let (mut bench, chain) = Bench::one_in_flight(RING_PACKED, 8);
    bench.submit(1, 1).unwrap();
    bench.queue.kick();
    bench.ring.complete(chain.head, 0);
    assert_eq!(bench.reap().unwrap().len(), 1);
    for flags in [0, 0x80, 0x7f7f, 0x8000] {
        bench.ring.lie(flags);
        assert_eq!(bench.reap(), Ok(vec![]), "flags {flags:#x} do not say used");
        assert!(!bench.queue.enable_interrupts());
    }
    // The id of what was made available there is still in place: as good as an honest answer, but only once.
    bench.ring.lie(0x8080);
    assert!(bench.queue.enable_interrupts());
    assert_eq!(bench.reap().map(|back| back.len()), Ok(1));
    assert_eq!(bench.reap(), Ok(vec![]));
    bench.submit(1, 1).unwrap();
    bench.ring.used += 2;
    bench.ring.put_used(7, 0);
    bench.ring.publish();
    assert_eq!(bench.reap().unwrap_err(), QueueError::Broken);
    bench.assert_broken();
}

#[test]
fn a_length_that_cannot_be() {
    let cases = [
        (0, 0, Some(0)),
        (0, 64, Some(64)),
        (0, 65, None),
        (0, u32::MAX, None),
        (12, 12, Some(12)),
        (12, 11, None),
        (12, 0, None),
        (65, 64, None),
    ];
    for (format, (least, len, expected)) in
        FORMATS.into_iter().flat_map(|format| cases.map(|case| (format, case)))
    {
        let mut bench = Bench::new(format, 8, 2);
        let [readable, writable] = bench.item(1, 1).unwrap().into_buffers();
        let item = BufferList::new(bench.names, readable, writable, least);
        bench.inside.insert(item.name(), 2);
        bench.queue.submit(item).unwrap();
        bench.queue.kick();
        let chain = bench.ring.take().unwrap();
        bench.ring.complete(chain.head, len);
        assert_eq!(bench.reap().unwrap()[0].1, expected, "least {least}, length {len}");
        assert_eq!(bench.queue.counters().rejected, u64::from(expected.is_none()));
        assert!(!bench.queue.is_broken(), "the buffer came back, the ring is in order");
        bench.check();
    }
}

#[test]
fn a_reset_gives_back_what_was_in_flight() {
    for format in FORMATS {
        let (mut bench, _) = Bench::one_in_flight(format, 8);
        assert_eq!(bench.pool.available(), bench.buffers - 2);
        let quiet = bench.device.shut_down().unwrap();
        let names: Vec<_> = bench.queue.reclaim(&quiet).map(|item| item.name()).collect();
        assert_eq!(names, [1]);
        assert_eq!(bench.pool.available(), bench.buffers);
        assert_eq!((bench.queue.in_flight(), bench.queue.occupied()), (0, 0));
        assert_eq!(bench.submit(1, 0), Err(QueueError::Broken), "a queue ends with its device");
    }
}
