//! The network driver against a card that sends and receives through the rings, and lies.

use std::time::Duration;

use proptest::prelude::*;
use ringfence_drivers::net::{self, MAX_FRAME_LEN, Net, RxFrame, TxFrame};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use ringfence_testkit::card::{
    ALL, Bench, FORMATS, HEADER, MAC, PLAIN, bench, bench_with, config, deliver, frame, sent,
};
use ringfence_testkit::{Event, Fake, ID, grant};

#[test]
fn comes_up_with_a_full_receive_ring() {
    let bench = bench(16);
    assert_eq!(
        (bench.net.control.mac(), bench.net.control.mtu(), bench.net.control.link_up()),
        (MAC, 1400, true)
    );
    assert_eq!(bench.rx.pending(), 16);
    assert_eq!((bench.fake.kicks(0), bench.fake.kicks(1)), (1, 0));
    assert!(!bench.tx.interrupts_wanted(), "nobody waits for frames to be sent");
    assert!(bench.rx.interrupts_wanted());
    assert_eq!(bench.net.control.features(), ALL);
}

#[test]
fn optional_features() {
    let plain = bench_with(features::VERSION_1, vec![], 8);
    assert_eq!((plain.net.control.mtu(), plain.net.control.link_up()), (1500, true));
    assert_eq!(plain.net.control.mac()[0] & 0b11, 0b10, "locally administered, not multicast");
    let [.., bus, function] = ID.0.to_be_bytes();
    assert_eq!(plain.net.control.mac(), [0x02, 0x52, 0, 0, bus, function], "the same at each start");
    for mtu in [0, 67, 1501, 9000, 65535] {
        let bench = bench_with(ALL, config(1, mtu), 8);
        assert_eq!(
            (bench.net.control.features() & net::features::MTU, bench.net.control.mtu()),
            (0, 1500),
            "MTU {mtu}"
        );
    }
    let down = bench_with(ALL, config(0, 1500), 8);
    assert!(!down.net.control.link_up());
}

/// An address that no station can have is not accepted (5.1.4.2), and a locally administered one used.
#[test]
fn addresses_that_no_station_has() {
    let own = [0x02, 0x52, 0, 0, 0, ID.0 as u8];
    let cases = [
        ([0; 6], false),
        ([0xff; 6], false),
        ([0x01, 0, 0x5e, 0, 0, 1], false),
        ([0x33, 0x33, 0, 0, 0, 1], false),
        ([0x53, 0x54, 0, 0x12, 0x34, 0x56], false),
        ([0, 0, 0, 0, 0, 1], true),
        ([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff], true),
        (MAC, true),
    ];
    for (mac, usable) in cases {
        // Offered with all that could be accepted in its place.
        let offered = !(features::QUEUES | net::features::CTRL_VQ | features::ACCESS_PLATFORM);
        let bench = bench_with(offered, [&mac[..], &config(1, 1400)[6..]].concat(), 8);
        let (accepted, expected) = if usable { (ALL, mac) } else { (ALL & !net::features::MAC, own) };
        assert_eq!((bench.net.control.mac(), bench.net.control.features()), (expected, accepted), "{mac:x?}");
    }
}

#[test]
fn frames_both_ways() {
    let mut bench = bench(4);
    for round in 0..50 {
        let (to, from) = (frame(14 + round * 20, round as u8), frame(60 + round * 21, 99));
        assert!(bench.deliver(&to) && bench.send(&from));
        bench.net.pair.kick();
        assert_eq!(bench.receive(), Some(to));
        assert_eq!(bench.sent(), Some(from));
        assert_eq!(bench.receive(), None);
    }
    let [rx, tx] = bench.net.pair.counters();
    assert_eq!((rx.completions, rx.rejected, tx.submitted, tx.rejected), (50, 0, 50, 0));
}

/// As much as fits, and no more than there is.
#[test]
fn a_frame_is_read_as_far_as_there_is_room() {
    let mut bench = bench(4);
    for (len, room) in [(60, 100), (60, 61), (60, 60), (60, 59), (60, 1), (60, 0), (1518, 2032), (14, 2048)] {
        let frame = frame(len, 5);
        assert!(bench.deliver(&frame));
        let mut bytes = vec![0xee; room];
        let read = |found: &RxFrame<'_>| {
            assert!(!found.is_empty());
            assert_eq!((found.len(), found.read(&mut bytes)), (len, len.min(room)));
        };
        assert_eq!(bench.net.pair.receive(1, read), Ok(1));
        bench.net.pair.kick();
        let (copied, rest) = bytes.split_at(len.min(room));
        assert_eq!(copied, &frame[..copied.len()]);
        assert!(rest.iter().all(|&byte| byte == 0xee), "{len} bytes, room for {room}");
    }
}

/// What makes a frame is the stack's business, from one byte on.
#[test]
fn the_shortest_frames() {
    let mut bench = bench(4);
    for len in [1, 2, 13, 14] {
        assert!(bench.send(&frame(len, 9)));
        bench.net.pair.kick();
        assert_eq!(bench.sent(), Some(frame(len, 9)));
    }
}

#[test]
fn a_batch_is_one_kick_each_way() {
    let mut bench = bench(16);
    let kicks = |bench: &Bench| (bench.fake.kicks(0), bench.fake.kicks(1));
    let before = kicks(&bench);
    for seed in 0..8 {
        assert!(bench.deliver(&frame(100, seed)) && bench.send(&frame(100, seed)));
    }
    assert_eq!(bench.tx.pending(), 0);
    for seed in 0..8 {
        assert_eq!(bench.receive(), Some(frame(100, seed)));
    }
    bench.net.pair.kick();
    assert_eq!(kicks(&bench), (before.0 + 1, before.1 + 1));
    assert_eq!((bench.rx.pending(), bench.tx.pending()), (16, 8));
}

/// A card that swallows the frames it is to send is noticed once nothing came back for as long as one has
/// patience, however full the ring is; one that is slow, or whose frames nobody has taken back, is not.
#[test]
fn a_card_that_swallows_frames() {
    const PATIENCE: u64 = 30;
    for format in FORMATS {
        let Bench { mut net, mut rx, mut tx, .. } = bench_with(ALL | format, config(1, 1400), 4);
        let secs = Duration::from_secs;
        let check = |net: &mut Net<_>, now| net.pair.check(secs(now), secs(PATIENCE));
        let stuck = Err(QueueError::Unresponsive);
        let send = |net: &mut Net<_>| {
            assert_eq!(net.pair.send(1, |room| room.write(&[7; 60]).unwrap()), Ok(1));
            net.pair.kick();
        };
        // Buffers to receive into wait for ever.
        (0..5).for_each(|hour| assert_eq!(check(&mut net, 3600 * hour), Ok(())));
        // It counts from when it was seen, and no frame that is sent, or received, starts it again.
        for (now, expected) in [(9000, Ok(())), (9010, Ok(())), (9020, Ok(())), (9030, Ok(())), (9031, stuck)]
        {
            if [9000, 9020].contains(&now) {
                send(&mut net);
            }
            assert!(deliver(&mut rx, PLAIN, &[0; 60]));
            assert_eq!(net.pair.receive(1, |_| ()), Ok(1));
            assert_eq!(check(&mut net, now), expected, "at {now}, {format:#x}");
        }
        // It was only slow: frames come back, of which nobody has taken any.
        let chain = tx.take().unwrap();
        tx.complete(chain.head, 0);
        assert_eq!([9032, 9900].map(|now| check(&mut net, now)), [Ok(()), Ok(())]);
        // One is taken back; another is kept.
        send(&mut net);
        assert_eq!([9901, 9916, 9931].map(|now| check(&mut net, now)), [Ok(()); 3]);
        assert_eq!(check(&mut net, 9932), stuck);
        // One after the other, each in time, though some is always on its way.
        for turn in 1..10 {
            let chain = tx.take().unwrap();
            tx.complete(chain.head, 0);
            send(&mut net);
            assert_eq!(check(&mut net, 9932 + 20 * turn), Ok(()));
        }
        // All are back, and then nothing is on its way for long.
        while sent(&mut tx).is_some() {}
        assert_eq!(net.pair.send(4, |_| ()), Ok(0));
        assert_eq!(check(&mut net, 20_000), Ok(()));
        send(&mut net);
        // A host that stops the guest stops the card, too: the card has half of the time after it.
        assert_eq!(
            [30_000, 30_015, 90_000, 90_001].map(|now| check(&mut net, now)),
            [Ok(()), Ok(()), Ok(()), stuck]
        );
        tx.complete(9, 0);
        assert_eq!(net.pair.send(1, |_| ()), Err(QueueError::Broken));
        assert_eq!(check(&mut net, 90_002), Err(QueueError::Broken));
    }
}

/// Without any patience a card has the time in which it is looked at twice.
#[test]
fn a_card_that_nobody_has_patience_with() {
    for patience in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(2)] {
        let Bench { mut net, mut tx, .. } = bench(4);
        let mut check = |ms, done: bool| {
            if done {
                let chain = tx.take().unwrap();
                tx.complete(chain.head, 0);
            }
            if done || ms == 0 {
                assert_eq!(net.pair.send(1, |room| room.write(&[7; 60]).unwrap()), Ok(1));
                net.pair.kick();
            }
            net.pair.check(Duration::from_millis(ms), patience)
        };
        assert_eq!([0, 1, 2, 50, 51, 52].map(|ms| check(ms, ms == 50)), [Ok(()); 6], "{patience:?}");
        assert_eq!(check(53, false), Err(QueueError::Unresponsive));
    }
}

#[test]
fn a_full_transmit_ring() {
    let mut bench = bench(4);
    for seed in 0..4 {
        assert!(bench.send(&frame(60, seed)));
    }
    bench.net.pair.kick();
    assert!(!bench.net.pair.can_send());
    assert_eq!(bench.net.pair.send(1, |_| panic!("there is no room")), Ok(0));
    assert!(!bench.net.pair.enable_interrupts());
    assert!(bench.tx.interrupts_wanted(), "somebody waits for room");
    assert_eq!(bench.sent(), Some(frame(60, 0)));
    assert!(bench.net.pair.can_send());
    bench.net.pair.disable_interrupts();
    assert!(!bench.tx.interrupts_wanted());
    assert!(bench.send(&frame(60, 4)));
    // Not asked for while there is room.
    bench.sent().unwrap();
    assert!(!bench.net.pair.enable_interrupts());
    assert!(!bench.tx.interrupts_wanted());
}

#[test]
fn frames_that_nobody_reads_make_room() {
    let mut bench = bench(4);
    for seed in 0..20 {
        assert!(bench.deliver(&frame(64, seed)));
        assert_eq!(bench.net.pair.receive(1, |frame| assert_eq!(frame.len(), 64)), Ok(1));
        bench.net.pair.kick();
        assert_eq!(bench.rx.pending(), 4);
    }
}

/// What is left unwritten ends the call, does not go out, and loses no room: neither a slot that is new nor
/// one whose buffer came back.
#[test]
fn frames_left_unwritten() {
    for format in FORMATS {
        let mut bench = bench_with(ALL | format, config(1, 1400), 4);
        let mut asked = 0;
        for round in 0..1000_usize {
            let full = round % 5;
            for seed in 0..full {
                assert!(bench.send(&frame(60, seed as u8)));
            }
            if full < 4 {
                assert_eq!(bench.net.pair.send(4, |_| asked += 1), Ok(0), "round {round}, {format:#x}");
                let too_long = |room: &mut TxFrame<'_>| assert!(room.write(&[0; 1415]).is_err());
                assert_eq!(bench.net.pair.send(4, too_long), Ok(0));
                assert!(bench.net.pair.can_send());
            }
            bench.net.pair.kick();
            assert_eq!(bench.tx.pending(), full as u16, "an unwritten frame never goes out");
            for seed in 0..full {
                assert_eq!(bench.sent(), Some(frame(60, seed as u8)));
            }
            // The first buffers that come back.
            assert_eq!(bench.net.pair.send(4, |_| asked += 1), Ok(0), "round {round}, {format:#x}");
            let mut seeds = [1, 2].into_iter();
            let two = |room: &mut TxFrame<'_>| {
                seeds.next().into_iter().for_each(|seed| room.write(&frame(70, seed)).unwrap());
            };
            assert_eq!(bench.net.pair.send(4, two), Ok(2));
            bench.net.pair.kick();
            assert_eq!(
                [bench.sent(), bench.sent(), bench.sent()],
                [Some(frame(70, 1)), Some(frame(70, 2)), None]
            );
        }
        assert_eq!(asked, 1000 + 800, "each call ends with the first");
        // All of the room is still there.
        let mut count = 0;
        while bench.send(&frame(80, count)) {
            count += 1;
        }
        bench.net.pair.kick();
        assert_eq!((count, bench.tx.pending(), bench.net.pair.can_send()), (4, 4, false));
        let [_, tx] = bench.net.pair.counters();
        assert_eq!(
            tx.submitted - tx.completions,
            4,
            "what was left unwritten came back, and did not go again"
        );
    }
}

#[test]
fn frames_longer_than_the_device_takes() {
    for (offered, mtu, most) in
        [(ALL, 68, 82), (ALL, 1000, 1014), (ALL, 1500, 1514), (ALL, 1501, 1514), (0, 0, 1514)]
    {
        let mut bench = bench_with(offered | features::VERSION_1, config(1, mtu), 4);
        let mut lens = [most + 1, MAX_FRAME_LEN + 1, 2032, 2033, 5000, 0, most].into_iter();
        // The last one that is taken counts.
        let sent = bench.net.pair.send(1, |room| {
            for len in lens.by_ref() {
                let result = room.write(&frame(len, 3));
                assert_eq!(result.is_ok(), len == most, "{len} bytes, MTU {mtu}");
            }
        });
        assert_eq!(sent, Ok(1));
        // What is refused leaves what was written before.
        let sent = bench.net.pair.send(1, |room| {
            room.write(&frame(60, 4)).unwrap();
            assert!(room.write(&frame(most + 1, 5)).is_err());
        });
        assert_eq!(sent, Ok(1));
        assert_eq!(bench.net.pair.send(3, |room| _ = room.write(&frame(most + 1, 6))), Ok(0));
        bench.net.pair.kick();
        let out: Vec<_> = std::iter::from_fn(|| bench.sent()).collect();
        assert_eq!(out, [frame(most, 3), frame(60, 4)], "MTU {mtu}");
    }
}

#[test]
fn link_and_health() {
    let mut bench = bench(4);
    assert_eq!(bench.net.control.config_changed(), Ok(false));
    bench.fake.model().config[6] = 0;
    assert_eq!((bench.net.control.config_changed(), bench.net.control.link_up()), (Ok(true), false));
    bench.fake.model().config[6] = 1;
    assert_eq!((bench.net.control.config_changed(), bench.net.control.link_up()), (Ok(true), true));
    bench.fake.model().status |= 64;
    assert_eq!(bench.net.control.config_changed(), Err(Error::NeedsReset));
}

#[test]
fn set_up_that_fails_frees_all() {
    for refused in [1, 2, 8, 4] {
        let fake = Fake::new(DeviceType::NET, ALL, config(1, 1500), &[8, 8]);
        fake.model().refused_status = refused;
        assert!(Net::new(fake.transport(), &grant(), fake.windows()).is_err());
        assert_eq!((fake.platform.dma_in_use(), fake.model().status), (0, 128), "{refused} is refused");
    }
    const STATUS: u64 = features::VERSION_1 | net::features::STATUS;
    for (offered, config, queues, expected) in [
        (ALL, config(1, 1500), [8, 0], Error::QueueUnavailable(1)),
        (STATUS, vec![0; 6], [8, 8], Error::BadConfig),
    ] {
        let fake = Fake::new(DeviceType::NET, offered, config, &queues);
        let result = Net::new(fake.transport(), &grant(), fake.windows());
        assert_eq!(result.map(drop), Err(expected));
        assert_eq!((fake.platform.dma_in_use(), fake.model().status), (0, 128));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    Lie(u32),
    Receive(usize),
    Send(usize),
    /// How many are asked for, and how many of these written, of this length.
    SendBatch(usize, usize, usize),
    Kick,
    TakeSent,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What goes in comes out, in order, whatever the mix; buffers are never lost.
    #[test]
    fn any_mix_of_steps(format in prop::sample::select(&FORMATS), steps in prop::collection::vec(
        prop_oneof![
            4 => (14_usize..1514).prop_map(Step::Deliver),
            1 => prop_oneof![0_u32..30, any::<u32>()].prop_map(Step::Lie),
            5 => Just(Step::Receive(1)),
            2 => prop_oneof![Just(usize::MAX), 0_usize..5].prop_map(Step::Receive),
            4 => (14_usize..1514).prop_map(Step::Send),
            3 => (0_usize..6, 0_usize..6, 14_usize..1514)
                .prop_map(|(count, end, len)| Step::SendBatch(count, end, len)),
            3 => Just(Step::Kick),
            3 => Just(Step::TakeSent),
        ],
        1..200,
    )) {
        let mut bench = bench_with(ALL | format, config(1, 1400), 4);
        let (mut to, mut from) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
        for (seed, step) in steps.into_iter().enumerate() {
            match step {
                Step::Deliver(len) => {
                    let frame = frame(len, seed as u8);
                    if bench.deliver(&frame) {
                        to.push_back(Some((len, Some(frame))));
                    }
                }
                Step::Lie(len) => {
                    if let Some(chain) = bench.rx.take() {
                        bench.rx.complete(chain.head, len);
                        // Whatever was in the buffer: only the length can be right.
                        let good = (26..=1530).contains(&len);
                        to.push_back(good.then(|| (len as usize - HEADER, None)));
                    }
                }
                Step::Receive(most) => {
                    let before = bench.net.pair.counters()[0];
                    let got = bench.receive_up_to(most);
                    let after = bench.net.pair.counters()[0];
                    let count = (after.completions - before.completions) as usize;
                    // It may only take what the last look at the ring has left.
                    prop_assert!(count <= most && count >= most.min(1).min(to.len()));
                    prop_assert_eq!(after.rejected - before.rejected, (count - got.len()) as u64);
                    let expected: Vec<_> = to.drain(..count).flatten().collect();
                    prop_assert_eq!(got.len(), expected.len());
                    for (got, (len, frame)) in got.iter().zip(&expected) {
                        prop_assert_eq!(got.len(), *len);
                        prop_assert!(frame.as_ref().is_none_or(|frame| frame == got));
                    }
                }
                Step::Send(len) => {
                    let (frame, room) = (frame(len, seed as u8), bench.net.pair.can_send());
                    let write = |room: &mut TxFrame<'_>| assert_eq!(room.write(&frame).is_ok(), len <= 1414);
                    let sent = bench.net.pair.send(1, write);
                    let good = room && len <= 1414;
                    prop_assert_eq!(sent, Ok(usize::from(good)));
                    from.extend(good.then_some(frame));
                }
                Step::SendBatch(count, end, len) => {
                    let mut written = 0;
                    let mut write = |room: &mut TxFrame<'_>| {
                        let frame = frame(len, (seed + written) as u8);
                        if written < end && room.write(&frame).is_ok() {
                            written += 1;
                            from.push_back(frame);
                        }
                    };
                    let sent = bench.net.pair.send(count, &mut write).unwrap();
                    // It may only take what the last look at the ring has left.
                    let sent = sent + bench.net.pair.send(count - sent, &mut write).unwrap();
                    prop_assert_eq!(sent, written);
                    let all = if len <= 1414 { count.min(end) } else { 0 };
                    prop_assert!(sent <= all);
                    prop_assert!(sent == all || !bench.net.pair.can_send(), "as many as fit");
                }
                Step::Kick => bench.net.pair.kick(),
                Step::TakeSent => {
                    if let Some(frame) = bench.sent() {
                        prop_assert_eq!(Some(frame), from.pop_front());
                    }
                }
            }
        }
        bench.net.pair.kick();
        while let Some(frame) = bench.sent() {
            prop_assert_eq!(Some(frame), from.pop_front());
        }
        prop_assert!(from.is_empty());
        while bench.net.pair.has_received() {
            bench.receive_up_to(usize::MAX);
        }
        bench.net.pair.kick();
        prop_assert_eq!(bench.rx.pending(), 4, "all receive buffers are with the device");
        let free = (0_u8..).take_while(|&seed| bench.send(&frame(60, seed))).count();
        prop_assert_eq!(free, 4, "all transmit buffers are with the driver");
    }
}

/// Who cannot wait asks, and looks now and then.
#[test]
fn a_shut_down_that_nobody_waits_for() {
    let Bench { fake, mut net, .. } = bench(4);
    let life = fake.windows().life();
    let control = &mut net.control;
    assert!(control.poll_shut_down().is_none(), "nobody asked");
    assert_eq!(fake.model().status & 4, 4);
    assert_eq!(control.begin_shut_down(), Ok(()));
    assert!(control.poll_shut_down().is_some_and(|quiet| quiet.ends(&life)));
    drop(net);
    assert_eq!(fake.platform.dma_in_use(), 0);
    // Who drops it then does not wait either, but takes what the card shows by then.
    let Bench { fake, mut net, .. } = self::bench(4);
    assert_eq!(net.control.begin_shut_down(), Ok(()));
    drop(net);
    assert_eq!(fake.model().events.last(), Some(&Event::Stopped));
    assert_eq!(fake.platform.dma_in_use(), 0);
}
