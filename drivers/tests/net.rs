//! The network driver against a card that sends and receives through the rings, and lies.

mod support;

use proptest::prelude::*;
use ringfence_drivers::net::{MAX_FRAME_LEN, Net, Phy, TxPacket};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use smoltcp::phy::{Device as _, RxToken, TxToken};
use smoltcp::time::Instant;
use support::{Chain, DeviceRing, EVENT_IDX, Fake, FakeTransport, ID, IN_ORDER, RING_PACKED, grant};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const HEADER: usize = 12;
const ALL: u64 = features::VERSION_1 | features::net::MAC | features::net::STATUS | features::net::MTU;

const FORMATS: [u64; 5] = [0, EVENT_IDX, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER];

fn config(status: u16, mtu: u16) -> Vec<u8> {
    let mut config = MAC.to_vec();
    config.extend(status.to_le_bytes());
    config.extend([1, 0]);
    config.extend(mtu.to_le_bytes());
    config
}

struct Bench {
    fake: Fake,
    net: Net<FakeTransport>,
    rx: DeviceRing,
    tx: DeviceRing,
}

fn bench_with(offered: u64, config: Vec<u8>, size: u16) -> Bench {
    let fake = Fake::new(DeviceType::NET, offered, config, &[size, size]);
    let net = Net::new(fake.transport(), &grant(), fake.windows()).unwrap();
    let (rx, tx) = (fake.ring(0), fake.ring(1));
    Bench { fake, net, rx, tx }
}

fn bench(size: u16) -> Bench {
    bench_with(ALL, config(1, 1400), size)
}

impl Bench {
    /// The card receives a frame: it goes to the next buffer, with a header that says nothing.
    fn deliver(&mut self, frame: &[u8]) -> bool {
        let Some(chain) = self.rx.take() else { return false };
        self.put(&chain, frame);
        self.rx.complete(chain.head, (HEADER + frame.len()) as u32);
        true
    }

    fn put(&self, chain: &Chain, frame: &[u8]) {
        assert_eq!((chain.segments.len(), chain.segments[0].len), (1, 2044));
        let packet = [&[0xa5; HEADER], frame].concat();
        self.rx.write(&chain.segments[0], &packet);
    }

    /// What the card sends.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let chain = self.tx.take()?;
        let packet: Vec<u8> = chain.segments.iter().flat_map(|segment| self.tx.read(segment)).collect();
        assert_eq!(packet[..HEADER], [0; HEADER], "no offload, no flags, num_buffers 0");
        self.tx.complete(chain.head, 0);
        Some(packet[HEADER..].to_vec())
    }

    fn send(&mut self, frame: &[u8]) -> bool {
        let Some(mut packet) = self.net.take() else { return false };
        packet.write(frame).unwrap();
        self.net.send(packet).unwrap();
        true
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let packet = self.net.receive().unwrap()?;
        let mut frame = vec![0; packet.len()];
        assert_eq!(packet.read(&mut frame), packet.len());
        self.net.recycle(packet);
        Some(frame)
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn comes_up_with_a_full_receive_ring() {
    let bench = bench(16);
    assert_eq!((bench.net.mac(), bench.net.mtu(), bench.net.link_up()), (MAC, 1400, true));
    assert_eq!(bench.rx.pending(), 16);
    assert_eq!((bench.fake.kicks(0), bench.fake.kicks(1)), (1, 0));
    assert!(!bench.tx.interrupts_wanted(), "nobody waits for frames to be sent");
    assert!(bench.rx.interrupts_wanted());
    assert_eq!(bench.net.features(), ALL);
}

#[test]
fn optional_features() {
    let plain = bench_with(features::VERSION_1, vec![], 8);
    assert_eq!((plain.net.mtu(), plain.net.link_up()), (1500, true));
    assert_eq!(plain.net.mac()[0] & 0b11, 0b10, "locally administered, not multicast");
    let [.., bus, function] = ID.0.to_be_bytes();
    assert_eq!(plain.net.mac(), [0x02, 0x52, 0, 0, bus, function], "the same at each start");
    for mtu in [0, 67, 1501, 9000, 65535] {
        let bench = bench_with(ALL, config(1, mtu), 8);
        assert_eq!((bench.net.features() & features::net::MTU, bench.net.mtu()), (0, 1500), "MTU {mtu}");
    }
    let down = bench_with(ALL, config(0, 1500), 8);
    assert!(!down.net.link_up());
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
        let bench = bench_with(ALL, [&mac[..], &config(1, 1400)[6..]].concat(), 8);
        let accepted = bench.net.features() & features::net::MAC != 0;
        let expected = if usable { mac } else { own };
        assert_eq!((bench.net.mac(), accepted), (expected, usable), "{mac:x?}");
    }
}

#[test]
fn frames_both_ways() {
    let mut bench = bench(4);
    for round in 0..50 {
        let (to, from) = (frame(14 + round * 20, round as u8), frame(60 + round * 21, 99));
        assert!(bench.deliver(&to) && bench.send(&from));
        bench.net.kick();
        assert_eq!(bench.receive(), Some(to));
        assert_eq!(bench.sent(), Some(from));
        assert_eq!(bench.receive(), None);
    }
    let [rx, tx] = bench.net.counters();
    assert_eq!((rx.completions, rx.rejected, tx.submitted, tx.rejected), (50, 0, 50, 0));
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
    bench.net.kick();
    assert_eq!(kicks(&bench), (before.0 + 1, before.1 + 1));
    assert_eq!((bench.rx.pending(), bench.tx.pending()), (16, 8));
}

#[test]
fn a_full_transmit_ring() {
    let mut bench = bench(4);
    for seed in 0..4 {
        assert!(bench.send(&frame(60, seed)));
    }
    bench.net.kick();
    assert!(!bench.net.can_send() && bench.net.take().is_none());
    assert!(!bench.net.enable_interrupts());
    assert!(bench.tx.interrupts_wanted(), "somebody waits for room");
    assert_eq!(bench.sent(), Some(frame(60, 0)));
    assert!(bench.net.can_send());
    bench.net.disable_interrupts();
    assert!(!bench.tx.interrupts_wanted());
    assert!(bench.send(&frame(60, 4)));
    // Not asked for while there is room.
    bench.sent().unwrap();
    assert!(!bench.net.enable_interrupts());
    assert!(!bench.tx.interrupts_wanted());
}

#[test]
fn dropped_packets_are_replaced() {
    let mut bench = bench(4);
    for seed in 0..20 {
        assert!(bench.deliver(&frame(64, seed)));
        let packet = bench.net.receive().unwrap().unwrap();
        drop(packet);
        bench.net.kick();
        assert_eq!(bench.rx.pending(), 4);
    }
}

#[test]
fn lengths_that_cannot_be() {
    let mut bench = bench(8);
    for len in [0, 1, 12, 25, 2045, 65536, u32::MAX] {
        let chain = bench.rx.take().unwrap();
        bench.rx.complete(chain.head, len);
    }
    assert!(bench.deliver(&frame(60, 7)));
    assert_eq!(bench.receive(), Some(frame(60, 7)), "the next good one is found in the same call");
    assert_eq!(bench.net.counters()[0].rejected, 7);
    bench.net.kick();
    assert_eq!(bench.rx.pending(), 8, "the buffers are in use again");
    // The longest that fits a buffer.
    let longest = frame(2044 - HEADER, 3);
    assert!(bench.deliver(&longest));
    assert_eq!(bench.receive(), Some(longest));
    let mut packet = bench.net.take().unwrap();
    assert!(packet.write(&frame(MAX_FRAME_LEN + 1, 0)).is_err());
    assert!(packet.write(&frame(MAX_FRAME_LEN, 0)).is_ok());
}

#[test]
fn a_broken_ring_ends_it() {
    let mut bench = bench(8);
    bench.rx.complete(77, 60);
    assert_eq!(bench.net.receive().unwrap_err(), QueueError::Broken);
    assert!(bench.net.is_broken());
    assert!(bench.net.enable_interrupts(), "nobody may sleep on it");
    let mut bench = self::bench(8);
    bench.send(&frame(60, 0));
    bench.net.kick();
    bench.tx.lie(5);
    while let Some(packet) = bench.net.take() {
        let _ = bench.net.send(packet);
    }
    assert!(bench.net.is_broken());
    let platform = bench.fake.platform;
    drop(bench.net);
    assert_eq!(platform.dma_in_use(), 0, "a reset frees all");
}

#[test]
fn link_and_health() {
    let mut bench = bench(4);
    assert_eq!(bench.net.config_changed(), Ok(false));
    bench.fake.model().config[6] = 0;
    assert_eq!((bench.net.config_changed(), bench.net.link_up()), (Ok(true), false));
    bench.fake.model().config[6] = 1;
    assert_eq!((bench.net.config_changed(), bench.net.link_up()), (Ok(true), true));
    bench.fake.model().status |= 64;
    assert_eq!(bench.net.config_changed(), Err(Error::NeedsReset));
}

#[test]
fn set_up_that_fails_frees_all() {
    for refused in [1, 2, 8, 4] {
        let fake = Fake::new(DeviceType::NET, ALL, config(1, 1500), &[8, 8]);
        fake.model().refused_status = refused;
        assert!(Net::new(fake.transport(), &grant(), fake.windows()).is_err());
        assert_eq!(fake.platform.dma_in_use(), 0);
    }
    let fake = Fake::new(DeviceType::NET, ALL, config(1, 1500), &[8, 0]);
    let result = Net::new(fake.transport(), &grant(), fake.windows());
    assert_eq!(result.map(drop), Err(Error::QueueUnavailable(1)));
    assert_eq!(fake.platform.dma_in_use(), 0);
}

#[test]
fn as_a_device_of_smoltcp() {
    let Bench { fake, net, rx, tx } = bench(4);
    let mut phy = Phy::new(net);
    let now = Instant::ZERO;
    assert_eq!(phy.capabilities().max_transmission_unit, 1414);
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
    let kicks = fake.kicks(1);
    phy.net.kick();
    assert_eq!(fake.kicks(1), kicks + 1);
    let sent: Vec<_> = std::iter::from_fn(|| {
        let chain = tx.take()?;
        tx.complete(chain.head, 0);
        Some(tx.read(&chain.segments[0])[HEADER..].to_vec())
    })
    .collect();
    assert_eq!(sent, [frame(60, 2), frame(70, 3), frame(70, 4), frame(70, 5)]);
    let (received, _) = phy.receive(now).expect("the frame was not lost");
    assert_eq!(received.consume(|bytes| bytes.to_vec()), frame(90, 8));
    // Beyond the announced size: smoltcp gets its slice, the wire gets nothing.
    phy.transmit(now).unwrap().consume(9000, |bytes| assert_eq!(bytes.len(), 9000));
    phy.net.kick();
    assert_eq!(tx.pending(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    Lie(u32),
    Receive,
    ReceiveAndDrop,
    ReceiveBatch,
    Send(usize),
    SendBatch(usize, usize),
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
            4 => Just(Step::Receive),
            1 => Just(Step::ReceiveAndDrop),
            2 => Just(Step::ReceiveBatch),
            4 => (14_usize..1514).prop_map(Step::Send),
            3 => (0_usize..6, 14_usize..1514).prop_map(|(count, len)| Step::SendBatch(count, len)),
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
                        to.push_back(Some(frame));
                    }
                }
                Step::Lie(len) => {
                    if let Some(chain) = bench.rx.take() {
                        bench.rx.complete(chain.head, len);
                        to.push_back(None);
                        if (26..=2044).contains(&len) {
                            // Whatever was in the buffer: only the length can be right.
                            to.pop_back();
                            to.push_back(Some(vec![0; len as usize - HEADER]));
                        }
                    }
                }
                Step::Receive | Step::ReceiveAndDrop => {
                    while to.front() == Some(&None) {
                        to.pop_front();
                    }
                    let expected = to.pop_front().flatten();
                    let got = match step {
                        Step::Receive => bench.receive().map(|frame| frame.len()),
                        _ => bench.net.receive().unwrap().map(|packet| packet.len()),
                    };
                    prop_assert_eq!(got, expected.map(|frame| frame.len()));
                }
                Step::Send(len) => {
                    let frame = frame(len, seed as u8);
                    if bench.send(&frame) {
                        from.push_back(frame);
                    }
                }
                Step::ReceiveBatch => {
                    let mut got = Vec::new();
                    // The first may only take what the last look at the ring has left.
                    let mut batch = || bench.net.receive_batch(|packet| got.push(packet.len())).unwrap();
                    let count = batch() + batch();
                    let expected: Vec<_> = to.drain(..).flatten().map(|frame: Vec<u8>| frame.len()).collect();
                    prop_assert_eq!((count, got), (expected.len(), expected));
                }
                Step::SendBatch(count, len) => {
                    let mut written = 0;
                    let write = |packet: &mut TxPacket| {
                        let frame = frame(len, (seed + written) as u8);
                        packet.write(&frame).unwrap();
                        written += 1;
                        from.push_back(frame);
                        true
                    };
                    let sent = bench.net.send_batch(count, write).unwrap();
                    prop_assert_eq!(sent, written);
                    prop_assert!(sent == count || sent < count && !bench.net.can_send(), "as many as fit");
                }
                Step::Kick => bench.net.kick(),
                Step::TakeSent => {
                    if let Some(frame) = bench.sent() {
                        prop_assert_eq!(Some(frame), from.pop_front());
                    }
                }
            }
        }
        bench.net.kick();
        while let Some(frame) = bench.sent() {
            prop_assert_eq!(Some(frame), from.pop_front());
        }
        prop_assert!(from.is_empty());
        while bench.net.receive().unwrap().is_some() {}
        bench.net.kick();
        prop_assert_eq!(bench.rx.pending(), 4, "all receive buffers are with the device");
        let free = std::iter::from_fn(|| bench.net.take()).count();
        prop_assert_eq!(free, 4, "all transmit buffers are with the driver");
    }
}
