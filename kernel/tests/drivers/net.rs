//! Two network cards on one cable.

use alloc::vec::Vec;

use ringfence_drivers::net::{MAX_FRAME_LEN, RxFrame, TxFrame};
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::interrupts::device::DeviceInterrupts;
use ringfence_kernel::testing::On;

use crate::support::{Card, EVENT_IDX, RING_PACKED, Random, functions_for, rings, start_card, until};

/// MAC, STATUS and VERSION_1 (virtio 1.4, 5.1.3 and 6), and what rings are like here. The driver does not
/// accept EVENT_IDX of packed rings: QEMU's network card gets it wrong.
pub fn features() -> u64 {
    let refused = if rings() & RING_PACKED != 0 { EVENT_IDX } else { 0 };
    1 << 5 | 1 << 16 | 1 << 32 | rings() & !refused
}

fn pair() -> [(Card, DeviceInterrupts); 2] {
    let functions = functions_for(DeviceType::NET);
    [0, 1].map(|index| {
        let (card, interrupts, _) = start_card(&functions[index]);
        (card, interrupts)
    })
}

/// A frame for experiments (IEEE 802, EtherType 0x88b5) with `number` and noise in it.
fn frame(from: &Card, to: &Card, number: u64, len: usize) -> Vec<u8> {
    let mut frame =
        [&to.control.mac()[..], &from.control.mac(), &[0x88, 0xb5], &number.to_le_bytes()].concat();
    let mut random = Random(number);
    frame.resize_with(len, || random.next() as u8);
    frame
}

/// Waits for a frame.
fn receive(card: &mut Card, mut read: impl FnMut(&RxFrame<'_>)) {
    until("a frame", || (card.pair.receive(1, &mut read).expect("the ring is sound") == 1).then_some(()));
}

/// Sends frames in one batch and checks that exactly these arrive.
fn deliver(from: &mut Card, to: &mut Card, frames: &[Vec<u8>]) {
    let before = (from.pair.counters(), to.pair.counters());
    let mut left = frames.iter();
    let write = |room: &mut TxFrame<'_>| {
        left.next().into_iter().for_each(|frame| room.write(frame).expect("it is short enough"));
    };
    assert_eq!(from.pair.send(usize::MAX, write), Ok(frames.len()), "the ring has room");
    from.pair.kick();
    for (index, frame) in frames.iter().enumerate() {
        let mut bytes = alloc::vec![0; 2048];
        receive(to, |packet| {
            let len = packet.read(&mut bytes);
            assert_eq!((packet.len(), len), (frame.len(), frame.len()), "frame {index}");
            assert!(bytes[..len] == frame[..], "frame {index} of {} bytes was changed", frame.len());
        });
    }
    to.pair.kick();
    assert_eq!(to.pair.receive(1, |_| {}), Ok(0), "one frame too many");
    let (sent, received) = (from.pair.counters()[1], to.pair.counters()[0]);
    assert!(sent.kicks - before.0[1].kicks <= 1, "one notification for a batch");
    assert!(received.kicks - before.1[0].kicks <= 1, "one notification for all buffers");
    assert_eq!(sent.submitted - before.0[1].submitted, frames.len() as u64);
    assert_eq!(received.completions - before.1[0].completions, frames.len() as u64);
}

fn frames_arrive_unchanged() {
    let [(mut one, _calls), (mut two, _more_calls)] = pair();
    assert_eq!(one.control.mac(), [0x52, 0x54, 0, 0, 0, 1]);
    assert_eq!(two.control.mac(), [0x52, 0x54, 0, 0, 0, 2]);
    for card in [&one, &two] {
        assert_eq!((card.control.features(), card.pair.queue_sizes()), (features(), [256, 256]));
        assert_eq!((card.control.mtu(), card.control.link_up()), (1500, true));
    }
    let mut random = Random(1);
    // Every length, in batches of all sizes, in both directions.
    let mut lengths = 60..=MAX_FRAME_LEN;
    let mut first = 0;
    while !lengths.is_empty() {
        let batch: Vec<usize> = lengths.by_ref().take(1 + random.below(100) as usize).collect();
        let frames = |from: &Card, to: &Card| -> Vec<Vec<u8>> {
            batch.iter().map(|&len| frame(from, to, first + len as u64, len)).collect()
        };
        let (there, back) = (frames(&one, &two), frames(&two, &one));
        first += 10_000;
        deliver(&mut one, &mut two, &there);
        deliver(&mut two, &mut one, &back);
    }
    for card in [&one, &two] {
        assert_eq!(card.pair.counters().map(|counters| counters.rejected), [0, 0]);
        assert_eq!(card.pair.counters()[1].submitted, 1455);
    }
}

/// Frames of 60 to 1,514 bytes, by the batch.
#[test_case]
const FRAMES: On = On("net-pair,rings", &frames_arrive_unchanged);

fn full_transmit_ring_recovers() {
    let [(mut one, _calls), (mut two, _more_calls)] = pair();
    for round in 0..3 {
        let frame = frame(&one, &two, round, 100);
        let too_long = |room: &mut TxFrame<'_>| assert!(room.write(&[0; MAX_FRAME_LEN + 1]).is_err());
        assert_eq!(one.pair.send(1, too_long), Ok(0), "it is not sent");
        let write = |room: &mut TxFrame<'_>| room.write(&frame).expect("it is short enough");
        let mut sent = 0;
        // The device may still be at the last ones.
        until("room for all", || {
            sent += one.pair.send(usize::MAX, write).expect("the ring is sound");
            (!one.pair.can_send() && sent >= 256).then_some(())
        });
        assert_eq!(sent, 256, "as many as the ring holds");
        one.pair.kick();
        for _ in 0..256 {
            let mut bytes = [0; 100];
            receive(&mut two, |packet| {
                assert_eq!((packet.len(), packet.read(&mut bytes)), (100, 100));
                assert!(bytes == frame[..]);
            });
        }
        two.pair.kick();
        until("room to send", || one.pair.can_send().then_some(()));
    }
    assert_eq!(one.pair.counters()[1].kicks, 3);
}

/// All buffers out and back.
#[test_case]
const FULL_RING: On = On("net-pair,rings", &full_transmit_ring_recovers);
