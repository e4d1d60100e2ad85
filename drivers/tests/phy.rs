//! The network driver as a device of smoltcp.

use std::time::Duration;

use ringfence_drivers::net::{MAX_FRAME_LEN, Phy};
use ringfence_drivers::virtio::QueueError;
use ringfence_testkit::card::{
    ALL, Bench, FORMATS, HEADER, PLAIN, bench, bench_with, config, deliver, frame, sent,
};
use smoltcp::phy::{Device as _, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

#[test]
fn as_a_device_of_smoltcp() {
    let Bench { fake, net, rx, tx } = bench(4);
    let mut phy = Phy::new(net);
    let now = Instant::ZERO;
    let capabilities = phy.capabilities();
    assert_eq!((capabilities.medium, capabilities.max_transmission_unit), (Medium::Ethernet, 1414));
    assert!(phy.receive(now).is_none());
    let (mut rx, mut tx) = (rx, tx);
    phy.disable_interrupts();
    assert!(!rx.interrupts_wanted());
    assert!(!phy.enable_interrupts(), "nothing is there: the caller may sleep");
    assert!(rx.interrupts_wanted());
    let chain = rx.take().unwrap();
    rx.write(&chain.segments[0], &[&[0; HEADER], frame(80, 1).as_slice()].concat());
    rx.complete(chain.head, (HEADER + 80) as u32);
    assert!(phy.enable_interrupts(), "a frame is there");
    let (received, answer) = phy.receive(now).unwrap();
    let copy = received.consume(|bytes| bytes.to_vec());
    assert_eq!(copy, frame(80, 1));
    answer.consume(60, |bytes| bytes.copy_from_slice(&frame(60, 2)));
    for seed in 3..6 {
        phy.transmit(now).unwrap().consume(70, |bytes| bytes.copy_from_slice(&frame(70, seed)));
    }
    assert!(phy.transmit(now).is_none(), "the ring is full");
    let chain = rx.take().unwrap();
    rx.write(&chain.segments[0], &[&[0; HEADER], frame(90, 8).as_slice()].concat());
    rx.complete(chain.head, (HEADER + 90) as u32);
    assert!(phy.receive(now).is_none(), "no frame without room to answer it");
    assert!(!phy.enable_interrupts(), "only room is something to go on for: the caller may sleep");
    assert!(rx.interrupts_wanted() && tx.interrupts_wanted());
    let kicks = fake.kicks(1);
    phy.net.pair.kick();
    assert_eq!(fake.kicks(1), kicks + 1);
    let sent: Vec<_> = std::iter::from_fn(|| {
        let chain = tx.take()?;
        tx.complete(chain.head, 0);
        Some(tx.read(&chain.segments[0])[HEADER..].to_vec())
    })
    .collect();
    assert_eq!(sent, [frame(60, 2), frame(70, 3), frame(70, 4), frame(70, 5)]);
    assert!(phy.enable_interrupts(), "there is room");
    let (received, _) = phy.receive(now).expect("the frame was not lost");
    assert_eq!(received.consume(|bytes| bytes.to_vec()), frame(90, 8));
    assert!(!phy.enable_interrupts(), "nothing is left");
    // Beyond the announced size: smoltcp gets its slice, the wire gets nothing.
    for len in [1415, 1514, 1515, 9000] {
        phy.transmit(now).unwrap().consume(len, |bytes| assert_eq!(bytes.len(), len));
        phy.net.pair.kick();
        assert_eq!(tx.pending(), 0, "{len}");
    }
    phy.transmit(now).unwrap().consume(1414, |bytes| bytes.fill(7));
    phy.net.pair.kick();
    assert_eq!(tx.take().unwrap().segments[0].len as usize, HEADER + 1414);
}

/// While all frames to send wait for the card, what was received waits too, and the guest sleeps.
#[test]
fn a_full_transmit_ring_is_slept_on() {
    for format in FORMATS {
        let Bench { net, mut rx, mut tx, .. } = bench_with(ALL | format, config(1, 1400), 4);
        let (mut phy, now) = (Phy::new(net), Instant::ZERO);
        for round in 0..10 {
            assert!(!phy.enable_interrupts(), "nothing is there");
            for seed in 0..4 {
                let room = phy.transmit(now).unwrap();
                room.consume(60, |bytes| bytes.copy_from_slice(&frame(60, seed)));
            }
            phy.kick();
            phy.disable_interrupts();
            assert!(deliver(&mut rx, PLAIN, &frame(70, round)));
            for _ in 0..3 {
                assert!(phy.receive(now).is_none() && phy.transmit(now).is_none());
                assert!(!phy.enable_interrupts(), "there is nothing that can be done: {format:#x}");
                assert!(tx.interrupts_wanted(), "somebody waits for room");
            }
            assert_eq!(sent(&mut tx), Some(frame(60, 0)));
            assert!(phy.enable_interrupts(), "there is room: {format:#x}");
            let (received, answer) = phy.receive(now).unwrap();
            assert_eq!(received.consume(<[u8]>::to_vec), frame(70, round));
            answer.consume(80, |bytes| bytes.fill(round));
            phy.kick();
            assert!(!phy.enable_interrupts(), "full again, and nothing is there");
            assert_eq!(std::iter::from_fn(|| sent(&mut tx)).count(), 4);
            let room = phy.transmit(now).unwrap();
            room.consume(60, |bytes| bytes.fill(1));
            phy.kick();
            assert_eq!(sent(&mut tx), Some(vec![1; 60]));
            assert!(!phy.enable_interrupts(), "with room and nothing to receive the guest sleeps");
        }
    }
}

/// Who finds no room goes to sleep; room that comes before interrupts are on keeps it awake, once.
#[test]
fn room_that_comes_before_the_guest_sleeps() {
    for format in FORMATS {
        let Bench { net, mut tx, .. } = bench_with(ALL | format, config(1, 1400), 4);
        let (mut phy, now) = (Phy::new(net), Instant::ZERO);
        for _ in 0..3 {
            while let Some(room) = phy.transmit(now) {
                room.consume(60, |bytes| bytes.fill(1));
            }
            phy.kick();
            assert_eq!(sent(&mut tx), Some(vec![1; 60]));
            assert_eq!([phy.enable_interrupts(), phy.enable_interrupts()], [true, false], "{format:#x}");
        }
    }
}

/// A VLAN tag makes frames longer than the stack takes: those are dropped, not cut.
#[test]
fn frames_longer_than_the_stack_takes() {
    for format in FORMATS {
        let Bench { mut net, mut rx, .. } = bench_with(ALL | format, config(1, 1400), 8);
        for len in [MAX_FRAME_LEN + 1, 1518] {
            assert!(deliver(&mut rx, PLAIN, &frame(len, 1)));
            assert_eq!(
                net.pair.receive(1, |frame| assert_eq!(frame.len(), len)),
                Ok(1),
                "the driver takes it"
            );
        }
        net.pair.kick();
        let (mut phy, now) = (Phy::new(net), Instant::ZERO);
        let lens = [60, MAX_FRAME_LEN + 1, 1518, MAX_FRAME_LEN, 1517];
        lens.iter().for_each(|&len| assert!(deliver(&mut rx, PLAIN, &frame(len, 2))));
        let mut found = Vec::new();
        while let Some((received, _)) = phy.receive(now) {
            found.push(received.consume(<[u8]>::to_vec));
        }
        assert_eq!(found, [frame(60, 2), frame(MAX_FRAME_LEN, 2)]);
        assert!(!phy.enable_interrupts(), "nothing is left");
        phy.kick();
        assert_eq!(rx.pending(), 8, "their buffers are in use again");
    }
}

/// Room for one frame is enough, and a ring full of what is dropped is emptied at once.
#[test]
fn the_whole_ring_is_looked_at() {
    for (size, format) in [1, 2, 8].into_iter().flat_map(|size| FORMATS.map(|format| (size, format))) {
        let Bench { net, mut rx, .. } = bench_with(ALL | format, config(1, 1400), size);
        let (mut phy, now) = (Phy::new(net), Instant::ZERO);
        for round in 0..3 {
            for seed in 0..size as u8 {
                assert!(deliver(&mut rx, PLAIN, &frame(MAX_FRAME_LEN + 1, seed)));
            }
            assert!(phy.receive(now).is_none());
            assert!(!phy.enable_interrupts(), "nothing is left of {size}, {format:#x}");
            phy.kick();
            assert!(deliver(&mut rx, PLAIN, &frame(60, round)));
            let (received, _) = phy.receive(now).unwrap();
            assert_eq!(received.consume(<[u8]>::to_vec), frame(60, round));
            phy.kick();
        }
    }
}

/// Nobody sleeps on a broken ring, though there is nothing that can be done.
#[test]
fn a_broken_ring_is_not_slept_on() {
    for (format, full) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let Bench { net, mut rx, .. } = bench_with(ALL | format, config(1, 1400), 4);
        let (mut phy, now) = (Phy::new(net), Instant::ZERO);
        while full && let Some(room) = phy.transmit(now) {
            room.consume(60, |bytes| bytes.fill(1));
        }
        phy.kick();
        assert!(!phy.enable_interrupts());
        rx.complete(77, 60);
        assert!(phy.enable_interrupts() || !phy.is_broken(), "full: {full}, {format:#x}");
        let _ = phy.net.pair.receive(1, |_| panic!("nothing came"));
        assert!(phy.is_broken());
        assert_eq!(phy.check(Duration::ZERO, Duration::ZERO), Err(QueueError::Broken));
        assert!(phy.enable_interrupts(), "full: {full}, {format:#x}");
    }
}

/// What whoever sleeps looks at again: frames that nobody told of, and a notification that was lost.
#[test]
fn looks_again() {
    let Bench { fake, net, mut rx, mut tx } = bench(4);
    let (mut phy, now) = (Phy::new(net), Instant::ZERO);
    assert!(!phy.has_received());
    assert!(deliver(&mut rx, PLAIN, &frame(70, 1)));
    assert!(phy.has_received());
    assert!(phy.receive(now).is_some() && !phy.has_received());
    tx.suppress_kicks(true);
    phy.transmit(now).unwrap().consume(60, |bytes| bytes.fill(2));
    phy.kick();
    let kicks = fake.kicks(1);
    tx.suppress_kicks(false);
    phy.kick();
    assert_eq!(fake.kicks(1), kicks, "nothing was published");
    phy.kick_again();
    assert_eq!((fake.kicks(1), sent(&mut tx)), (kicks + 1, Some(vec![2; 60])));
}
