//! The network driver's options: several pairs of queues and the command that turns them on, both formats,
//! batches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringfence_drivers::net::{self, Net, NetPair, Options, Phy, TxFrame};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use ringfence_testkit::{
    DeviceRing, EVENT_IDX, Event, Fake, FakeNotifier, FakeTransport, IN_ORDER, INDIRECT_DESC, RING_PACKED,
};
use smoltcp::phy::{Device as _, RxToken, TxToken};
use smoltcp::time::Instant;

/// 5.1.3.
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const BASE: u64 = features::VERSION_1 | net::features::MAC | net::features::STATUS;
const HEADER: usize = 12;
const FORMATS: [u64; 2] = [0, RING_PACKED];

/// A configuration with `pairs` pairs of queues (5.1.4).
fn config(pairs: u16) -> Vec<u8> {
    [&[0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0], pairs.to_le_bytes().as_slice()].concat()
}

fn card(offered: u64, pairs: u16, queues: usize) -> Fake {
    Fake::new(DeviceType::NET, BASE | offered, config(pairs), &vec![8; queues])
}

/// What the card does with a command.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Writes this.
    Ack(u8),
    /// Writes nothing, and says so.
    Unwritten,
    /// Writes that all is well, and says that it wrote nothing.
    Denied,
    /// Lets time pass.
    Nothing,
    /// Is unplugged.
    Leave,
    /// Uses a buffer that is not there.
    Lie,
}

/// Brings a card up that answers a command in queue `control`, and says what the command was.
fn bring_up(
    fake: &Fake,
    control: usize,
    answer: Answer,
    options: &Options,
) -> (Result<Net<FakeTransport>, Error>, Option<Vec<u8>>) {
    let up = AtomicBool::new(false);
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            while fake.kicks(control as u16) == 0 {
                if up.load(Ordering::Relaxed) {
                    return None;
                }
                thread::yield_now();
            }
            let mut ring = fake.ring(control);
            let chain = ring.take().expect("the command is there before the notification");
            assert!(!ring.interrupts_wanted(), "the answer is waited for");
            let (readable, writable): (Vec<_>, Vec<_>) =
                chain.segments.iter().partition(|part| !part.writable);
            assert_eq!(chain.writable_len(), 1, "room for the answer");
            let command = readable.into_iter().flat_map(|part| ring.read(part)).collect();
            match answer {
                Answer::Ack(byte) => {
                    ring.write(writable[0], &[byte]);
                    ring.complete(chain.head, 1);
                }
                Answer::Unwritten => ring.complete(chain.head, 0),
                Answer::Denied => {
                    ring.write(writable[0], &[0]);
                    ring.complete(chain.head, 0);
                }
                Answer::Nothing => fake.platform.advance(Duration::from_secs(3)),
                Answer::Leave => {
                    fake.model().gone = true;
                    fake.platform.advance(Duration::from_secs(3));
                }
                Answer::Lie => ring.complete(chain.head + 1, 1),
            }
            Some(command)
        });
        let net = Net::with_options(fake.transport(), &fake.grant(), fake.windows(), options);
        up.store(true, Ordering::Relaxed);
        (net, device.join().unwrap())
    })
}

fn pairs(pairs: u16) -> Options {
    Options { pairs, ..Options::default() }
}

/// Which queues were set up, in which order.
fn queues_up(fake: &Fake) -> Vec<u16> {
    let up = |event: &Event| if let Event::QueueUp(index) = event { Some(*index) } else { None };
    fake.model().events.iter().filter_map(up).collect()
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// The card receives a frame.
fn deliver(ring: &mut DeviceRing, frame: &[u8]) -> bool {
    let Some(chain) = ring.take() else { return false };
    ring.write(&chain.segments[0], &[&[0; HEADER], frame].concat());
    ring.complete(chain.head, (HEADER + frame.len()) as u32);
    true
}

/// The card sends a frame.
fn sent(ring: &mut DeviceRing) -> Option<Vec<u8>> {
    let chain = ring.take()?;
    let packet: Vec<u8> = chain.segments.iter().flat_map(|segment| ring.read(segment)).collect();
    assert_eq!(packet[..HEADER], [0; HEADER], "no offload");
    ring.complete(chain.head, 0);
    Some(packet[HEADER..].to_vec())
}

fn send(pair: &mut NetPair<FakeNotifier>, frame: &[u8]) {
    assert_eq!(pair.send(1, |room| room.write(frame).unwrap()), Ok(1));
}

/// All frames that the pair has received.
fn received(pair: &mut NetPair<FakeNotifier>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let count = pair.receive(usize::MAX, |frame| {
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.read(&mut bytes), frame.len());
        frames.push(bytes);
    });
    assert_eq!(count, Ok(frames.len()));
    frames
}

#[test]
fn as_many_pairs_as_wanted_and_there() {
    for (there, wanted, expected) in [
        (4_u16, 2, 2_u16),
        (4, 3, 3),
        (4, 4, 4),
        (3, 4, 3),
        (4, u16::MAX, 4),
        (2, 2, 2),
        (0x203, 0x102, 0x102),
    ] {
        let case = format!("{there} there, {wanted} wanted");
        let control = 2 * there;
        let fake = card(MQ | CTRL_VQ, there, usize::from(control) + 1);
        let (net, command) = bring_up(&fake, control.into(), Answer::Ack(0), &pairs(wanted));
        let mut net = net.unwrap();
        assert_eq!((net.pairs(), net.split().1.count()), (expected.into(), expected.into()), "{case}");
        assert_eq!(net.control.features(), BASE | MQ | CTRL_VQ, "{case}");
        // 5.1.6.5.5: class, command, number of pairs.
        let [low, high] = expected.to_le_bytes();
        assert_eq!(command, Some(vec![4, 0, low, high]), "{case}");
        let queues: Vec<u16> = (0..2 * expected).chain([control]).collect();
        assert_eq!(
            queues_up(&fake),
            queues,
            "{case}: the control queue comes after all pairs that there are"
        );
        for index in 0..expected {
            assert_eq!((fake.kicks(2 * index), fake.kicks(2 * index + 1)), (1, 0), "{case}");
            assert_eq!(fake.ring(usize::from(2 * index)).pending(), 8, "{case}: filled");
        }
    }
}

#[test]
fn one_pair_needs_no_command() {
    for (offered, there, wanted) in [
        (MQ | CTRL_VQ, 4, 1),
        (MQ | CTRL_VQ, 4, 0),
        (MQ | CTRL_VQ, 1, 4),
        // Numbers that cannot be; with the last but one the control queue would have no number.
        (MQ | CTRL_VQ, 0, 4),
        (MQ | CTRL_VQ, 0x8000, 4),
        (MQ | CTRL_VQ, 0x8001, 4),
        (MQ | CTRL_VQ, u16::MAX, 4),
        // Neither is of use without the other.
        (MQ, 4, 4),
        (CTRL_VQ, 4, 4),
        (0, 4, 4),
    ] {
        let case = format!("{offered:#x}, {there} there, {wanted} wanted");
        let fake = card(offered, there, 9);
        let (net, command) = bring_up(&fake, 8, Answer::Ack(0), &pairs(wanted));
        let net = net.unwrap();
        assert_eq!((net.pairs(), net.control.features(), command), (1, BASE, None), "{case}");
        assert_eq!(queues_up(&fake), [0, 1], "{case}");
    }
}

/// Who does not ask for more has one pair, and 256 buffers each way.
#[test]
fn the_default_options() {
    let fake = Fake::new(DeviceType::NET, BASE | MQ | CTRL_VQ, config(4), &[1024; 9]);
    let (net, command) = bring_up(&fake, 8, Answer::Ack(0), &Options::default());
    let net = net.unwrap();
    assert_eq!((net.pairs(), Options::default().pairs, command), (1, 1, None));
    assert_eq!(net.pair.queue_sizes(), [256; 2]);
    assert_eq!((fake.ring(0).pending(), fake.ring(1).pending()), (256, 0));
}

#[test]
fn a_refusal_leaves_one_pair() {
    for format in FORMATS {
        for answer in [Answer::Ack(1), Answer::Ack(2), Answer::Ack(0xff), Answer::Unwritten, Answer::Denied] {
            let fake = card(MQ | CTRL_VQ | format, 3, 7);
            let (net, command) = bring_up(&fake, 6, answer, &pairs(3));
            let mut net = net.unwrap();
            assert!(command.is_some());
            assert_eq!((net.pairs(), net.split().1.count()), (1, 1), "{answer:?}");
            // 5.1.6.5.5: nothing may go to the others.
            assert_eq!((2..6).map(|index| fake.kicks(index)).sum::<usize>(), 0, "{answer:?}");
            let (mut rx, mut tx) = (fake.ring(0), fake.ring(1));
            assert!(deliver(&mut rx, &frame(60, 1)));
            send(&mut net.pair, &frame(70, 2));
            net.pair.kick();
            assert_eq!((received(&mut net.pair), sent(&mut tx)), (vec![frame(60, 1)], Some(frame(70, 2))));
            drop(net);
            assert_eq!(fake.platform.dma_in_use(), 0, "{answer:?}");
        }
    }
}

/// One pair works while the device has not said whether it uses the others.
#[test]
fn an_answer_that_nobody_waits_for() {
    for (answer, expected) in [(0, 3), (1, 1)] {
        let fake = card(MQ | CTRL_VQ, 3, 7);
        let mut net = Net::begin(fake.transport(), &fake.grant(), fake.windows(), &pairs(3)).unwrap();
        let (mut commands, mut tx) = (fake.ring(6), fake.ring(1));
        let chain = commands.take().unwrap();
        assert_eq!(net.poll_pairs(), Ok(false));
        send(&mut net.pair, &frame(70, 2));
        net.pair.kick();
        assert_eq!(sent(&mut tx), Some(frame(70, 2)));
        net.split().1.skip(1).for_each(|pair| pair.kick());
        assert_eq!((2..6).map(|index| fake.kicks(index)).sum::<usize>(), 0, "not before they are agreed on");
        commands.write(chain.segments.last().unwrap(), &[answer]);
        commands.complete(chain.head, 1);
        assert_eq!((net.poll_pairs(), net.poll_pairs(), net.pairs()), (Ok(true), Ok(true), expected));
        net.split().1.for_each(|pair| pair.kick());
        let kicked = (0..3).filter(|pair| fake.kicks(2 * pair) > 0).count();
        assert_eq!(kicked, expected);
    }
}

#[test]
fn without_an_answer_it_fails() {
    for (answer, expected) in [
        (Answer::Nothing, Error::Timeout),
        (Answer::Leave, Error::Gone),
        (Answer::Lie, Error::Queue(QueueError::Broken)),
    ] {
        let fake = card(MQ | CTRL_VQ, 2, 5);
        let (net, _) = bring_up(&fake, 4, answer, &pairs(2));
        assert_eq!(net.map(drop), Err(expected));
        let quiet = !matches!(answer, Answer::Leave);
        assert_eq!(fake.platform.dma_in_use() == 0, quiet, "{answer:?}: free only after a reset");
    }
    // A device that is still not quiet keeps what it has.
    let fake = card(MQ | CTRL_VQ, 2, 5);
    let (net, _) = bring_up(&fake, 4, Answer::Ack(0), &pairs(2));
    fake.model().stuck = true;
    drop(net);
    assert_ne!(fake.platform.dma_in_use(), 0);
}

#[test]
fn queues_that_are_announced_but_not_there() {
    for (queues, missing) in [(8, 8), (7, 7), (4, 4)] {
        let fake = card(MQ | CTRL_VQ, 4, queues);
        let (net, _) = bring_up(&fake, 8, Answer::Ack(0), &pairs(4));
        assert_eq!(net.map(drop), Err(Error::QueueUnavailable(missing)));
        assert_eq!((fake.platform.dma_in_use(), fake.model().status), (0, 128), "all is given back");
    }
    // One whose control queue has no room for a command and the answer.
    for (max, expected) in [(1, Err(Error::QueueUnavailable(8))), (2, Ok(()))] {
        let fake = card(MQ | CTRL_VQ, 4, 9);
        fake.model().queues[8].max = max;
        assert_eq!(bring_up(&fake, 8, Answer::Ack(0), &pairs(4)).0.map(drop), expected);
    }
    // A configuration that ends before the field.
    let fake = Fake::new(DeviceType::NET, BASE | MQ | CTRL_VQ, config(4)[..8].to_vec(), &[8; 9]);
    assert_eq!(bring_up(&fake, 8, Answer::Ack(0), &pairs(4)).0.map(drop), Err(Error::BadConfig));
}

/// What is read of the configuration was all there at one moment (2.5.3), whenever it changes.
#[test]
fn a_card_that_changes_while_it_is_read() {
    let mtu = |mtu: u16| mtu.to_le_bytes();
    let old = ([0x52, 0x54, 0, 0x12, 0x34, 0x56], 1400, 2);
    let new = ([0x52, 0x54, 1, 0x65, 0x43, 0x21], 1300, 1);
    let [before, after] =
        [old, new].map(|(mac, len, pairs)| [&mac[..], &[1, 0, pairs as u8, 0], &mtu(len)].concat());
    let mut seen = Vec::new();
    for looks in 0..12 {
        let offered = BASE | net::features::MTU | MQ | CTRL_VQ;
        let fake = Fake::new(DeviceType::NET, offered, before.clone(), &[8; 5]);
        fake.model().change = Some((looks, after.clone()));
        let (net, _) = bring_up(&fake, 4, Answer::Ack(0), &pairs(2));
        let net = net.unwrap();
        let found = (net.control.mac(), net.control.mtu(), net.pairs());
        assert!(found == old || found == new, "after {looks} looks: {found:x?}");
        seen.push(found);
    }
    assert!(seen.contains(&old) && seen.contains(&new));
}

#[test]
fn queue_features_as_wanted() {
    let all = features::QUEUES;
    for (wanted, expected) in [
        (0, 0),
        (EVENT_IDX, EVENT_IDX),
        (RING_PACKED, RING_PACKED),
        (INDIRECT_DESC, INDIRECT_DESC),
        (EVENT_IDX | INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC),
        // Not these two together, because of what QEMU makes of them.
        (all, all & !EVENT_IDX),
        (EVENT_IDX | RING_PACKED, RING_PACKED),
        // What is no feature of queues cannot be had this way.
        (u64::MAX, all & !EVENT_IDX),
    ] {
        let fake = card(!(1 << 3), 1, 2);
        let options = Options { features: wanted, ..Options::default() };
        let net = Net::with_options(fake.transport(), &fake.grant(), fake.windows(), &options).unwrap();
        assert_eq!(net.control.features() & all, expected, "{wanted:#x}");
        assert_eq!(net.control.features() & !all & !(1 << 33), BASE, "{wanted:#x}");
    }
    // What is not offered does no harm to the other.
    let fake = card(EVENT_IDX, 1, 2);
    let net = Net::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
    assert_eq!(net.control.features() & all, EVENT_IDX);
    let options = Options { queue_size: 5, ..Options::default() };
    for (format, size) in [(0, 4), (RING_PACKED, 5)] {
        let fake = card(format, 1, 2);
        let net = Net::with_options(fake.transport(), &fake.grant(), fake.windows(), &options).unwrap();
        assert_eq!(net.pair.queue_sizes(), [size; 2]);
    }
}

#[test]
fn each_pair_on_a_thread_of_its_own() {
    for format in FORMATS {
        let fake = card(MQ | CTRL_VQ | format, 3, 7);
        let (net, _) = bring_up(&fake, 6, Answer::Ack(0), &pairs(3));
        let mut net = net.unwrap();
        let (control, queues) = net.split();
        assert!(control.link_up());
        thread::scope(|scope| {
            let mut workers = Vec::new();
            for (number, pair) in queues.enumerate() {
                let (mut rx, mut tx) = (fake.ring(2 * number), fake.ring(2 * number + 1));
                workers.push(scope.spawn(move || {
                    for round in 0..300 {
                        let seed = (round * 3 + number) as u8;
                        for more in 0..3 {
                            assert!(deliver(&mut rx, &frame(60 + more, seed)));
                            send(pair, &frame(80 + more, seed));
                        }
                        pair.kick();
                        assert_eq!(received(pair), [0, 1, 2].map(|more| frame(60 + more, seed)));
                        let out: Vec<_> = std::iter::from_fn(|| sent(&mut tx)).collect();
                        assert_eq!(out, [0, 1, 2].map(|more| frame(80 + more, seed)));
                    }
                }));
            }
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
        for pair in net.split().1 {
            let [rx, tx] = pair.counters();
            assert_eq!((rx.completions, rx.rejected, tx.submitted), (900, 0, 900));
        }
    }
}

#[test]
fn dropping_it_frees_all_pairs() {
    for format in FORMATS {
        let fake = card(MQ | CTRL_VQ | format, 2, 5);
        let (net, _) = bring_up(&fake, 4, Answer::Ack(0), &pairs(2));
        let mut net = net.unwrap();
        for pair in net.split().1 {
            send(pair, &frame(60, 0));
            pair.kick();
        }
        assert_ne!(fake.platform.dma_in_use(), 0);
        drop(net);
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
}

#[test]
fn batches() {
    for format in FORMATS {
        let fake = card(format, 1, 2);
        let mut net = Net::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
        let (mut rx, mut tx) = (fake.ring(0), fake.ring(1));
        let kicks = |fake: &Fake| (fake.kicks(0), fake.kicks(1));
        for round in 0..20 {
            let before = kicks(&fake);
            let mut seeds = (round..).take(6);
            let write = |room: &mut TxFrame<'_>| {
                seeds.next().into_iter().for_each(|seed| room.write(&frame(60, seed)).unwrap());
            };
            assert_eq!(net.pair.send(7, write), Ok(6), "until there is nothing more");
            assert_eq!(net.pair.send(1, |room| room.write(&frame(60, round + 6)).unwrap()), Ok(1));
            assert_eq!(net.pair.send(5, |room| room.write(&frame(60, round + 7)).unwrap()), Ok(1), "8 fit");
            assert_eq!(net.pair.send(5, |_| panic!("there is no room")), Ok(0));
            // 26 bytes are the header and an Ethernet header, 1530 are the longest frame.
            for (len, good) in
                [(26, true), (25, false), (1530, true), (1531, false), (2044, false), (0, false), (72, true)]
            {
                let chain = rx.take().unwrap();
                rx.write(&chain.segments[0], &[&[0; HEADER], frame(2032, round).as_slice()].concat());
                rx.complete(chain.head, len);
                assert_eq!(rx.pending(), 8 - 1, "one at a time");
                let frames = received(&mut net.pair);
                let expected = frame(2032, round)[..(len as usize).clamp(HEADER, 1530) - HEADER].to_vec();
                assert_eq!(frames, if good { vec![expected] } else { vec![] }, "{len}");
                net.pair.kick();
            }
            assert_eq!(received(&mut net.pair), Vec::<Vec<u8>>::new());
            let out: Vec<_> = std::iter::from_fn(|| sent(&mut tx)).collect();
            assert_eq!(out, (round..round + 8).map(|seed| frame(60, seed)).collect::<Vec<_>>());
            assert_eq!(kicks(&fake), (before.0 + 7, before.1 + 1));
        }
        assert_eq!(net.pair.counters()[0].rejected, 20 * 4);
        rx.complete(77, 60);
        assert_eq!(net.pair.receive(9, |_| panic!("nothing came")), Err(QueueError::Broken));
        assert!(net.pair.is_broken());
    }
}

#[test]
fn smoltcp_sees_all_pairs() {
    let fake = card(MQ | CTRL_VQ, 3, 7);
    let (net, _) = bring_up(&fake, 6, Answer::Ack(0), &pairs(3));
    let mut phy = Phy::new(net.unwrap());
    let (mut rx, mut tx): (Vec<_>, Vec<_>) =
        (0..3).map(|pair| (fake.ring(2 * pair), fake.ring(2 * pair + 1))).unzip();
    for (pair, count) in [(0, 4), (2, 4)] {
        (0..count).for_each(|seed| assert!(deliver(&mut rx[pair], &frame(60, 10 * pair as u8 + seed))));
    }
    assert!(phy.has_received(), "though not from all");
    phy.disable_interrupts();
    assert!(rx.iter().chain(&tx).all(|ring| !ring.interrupts_wanted()));
    assert!(phy.enable_interrupts());
    assert!(rx.iter().all(DeviceRing::interrupts_wanted), "of all, though the first has something");
    let mut seeds = Vec::new();
    while let Some((received, answer)) = phy.receive(Instant::ZERO) {
        let frame = received.consume(|bytes| bytes.to_vec());
        answer.consume(60, |bytes| bytes.copy_from_slice(&frame));
        seeds.push(frame[0]);
    }
    assert_eq!(seeds, [0, 20, 1, 21, 2, 22, 3, 23], "in turn");
    phy.kick();
    let patience = Duration::from_secs(30);
    assert_eq!(phy.check(Duration::ZERO, patience), Ok(()));
    let mut out = |pair: usize| -> Vec<u8> {
        std::iter::from_fn(|| sent(&mut tx[pair])).map(|frame| frame[0]).collect()
    };
    assert_eq!([out(0), out(1)], [vec![0, 1, 2, 3], vec![]], "where it came from");
    assert_eq!([1, 2].map(|times| phy.check(times * patience, patience)), [Ok(()); 2], "twice a half");
    assert_eq!(phy.check(3 * patience, patience), Err(QueueError::Unresponsive), "the last one keeps them");
    assert_eq!(out(2), [20, 21, 22, 23], "where it came from");
    assert_eq!(phy.check(4 * patience, patience), Ok(()));
    assert!(!phy.is_broken());
    rx[1].complete(77, 60);
    assert!(phy.receive(Instant::ZERO).is_none());
    assert!(phy.is_broken());
}

#[test]
fn a_buffer_that_the_card_was_not_told_of() {
    let formats = FORMATS.into_iter().flat_map(|format| [format, format | IN_ORDER]);
    let formats = formats.flat_map(|format| [format, format | EVENT_IDX]);
    for (format, in_one_look) in formats.flat_map(|format| [(format, false), (format, true)]) {
        let fake = card(format, 1, 2);
        let mut net = Net::new(fake.transport(), &fake.grant(), fake.windows()).unwrap();
        let mut rx = fake.ring(0);
        // Around the ring, so that it begins anywhere.
        for _ in 0..13 {
            let chain = rx.take().unwrap();
            rx.complete(chain.head, 60);
            assert_eq!(net.pair.receive(1, |frame| assert_eq!(frame.len(), 60 - HEADER)), Ok(1));
            net.pair.kick();
        }
        // It is in the ring again, but only the driver knows.
        let chain = rx.take().unwrap();
        rx.put_used(chain.head.into(), 60);
        let mut shown = 0;
        if !in_one_look {
            rx.publish();
            assert_eq!(net.pair.receive(9, |_| shown += 1), Ok(1));
        }
        rx.lie_used(chain.head.into());
        rx.publish();
        assert_eq!(net.pair.receive(9, |_| shown += 1), Err(QueueError::Broken), "{format:#x}");
        assert_eq!((shown, net.pair.is_broken()), (1, true));
        assert_eq!(net.pair.counters()[0].rejected, 1);
        for _ in 0..2 {
            assert_eq!(net.pair.receive(9, |_| panic!("nothing came")), Err(QueueError::Broken));
        }
        drop(net);
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
}
