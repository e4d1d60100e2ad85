//! Disks and cards with every combination of ring features, and with several queues.

use alloc::vec::Vec;
use core::time::Duration;

use ringfence_device_side::loopback::{Echo, Loopback, Options, RamDisk};
use ringfence_drivers::block::{self, Block, Options as Wish, Request, SECTOR_SIZE};
use ringfence_drivers::net::{self, Net, Options as CardWish, RxFrame};
use ringfence_drivers::virtio::{
    BufferList, Device, DeviceType, Error, Notify, Queue, QueueOptions, Transport, features, status,
};
use ringfence_kernel::platform::KERNEL;
use ringfence_memory::{DmaPool, DmaWindows};

use crate::common::assert_sound;
use crate::million::{Exerciser, MAC};
use crate::{CARD, DISK, NAME, Pools, Rings, SECTORS, bytes, raw};

/// How many ways there are to choose from what rings can do.
const CHOICES: u32 = 1 << features::QUEUES.count_ones();

/// One of them.
fn choice(bits: u32) -> u64 {
    let rings = (0..u64::BITS).map(|bit| 1 << bit).filter(|feature| features::QUEUES & feature != 0);
    (0..).zip(rings).filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, feature)| feature).sum()
}

fn disk(options: &Options, queues: u16) -> (Loopback<RamDisk>, DmaWindows) {
    let windows = DmaWindows::for_model(&KERNEL, DISK).expect("nobody else has it");
    let model = RamDisk::new(SECTORS, NAME).with_queues(queues);
    (Loopback::with_options(model, windows.clone(), options), windows)
}

/// A disk works whatever its rings can do: also if it answers in another order than it was asked, and after
/// its queue was reset.
#[test_case]
fn every_combination_of_ring_features() {
    for bits in 0..CHOICES {
        let chosen = choice(bits);
        let has = |feature| chosen & feature != 0;
        let (device, windows) = disk(&Options { features: chosen, queue_size: 64 }, 1);
        device.with_model(|model| model.disorder(bits.into()));
        let wish = Wish { queue_size: if has(features::RING_PACKED) { 61 } else { 64 }, ..Wish::default() };
        let block = Block::with_options(
            device.clone(),
            &device.grant().expect("it is a model"),
            windows.clone(),
            &wish,
        );
        let mut exerciser = Exerciser::new(block.expect("the disk starts"), &windows);
        let block = exerciser.block();
        let always = features::VERSION_1 | features::ACCESS_PLATFORM | block::features::FLUSH;
        assert_eq!(block.control.features(), chosen | always);
        let deepest = if has(features::INDIRECT_DESC) { wish.queue_size } else { wish.queue_size / 3 };
        assert_eq!((block.queue.queue_size(), block.queue.depth()), (wish.queue_size, deepest.into()));
        exerciser.exercise(500);
        let Block { control, queue, .. } = exerciser.block();
        let reset = control.reset_queue(queue);
        let missing = Err(Error::MissingFeature(40));
        assert_eq!(reset, if has(features::RING_RESET) { Ok(()) } else { missing });
        exerciser.exercise(500);
        let overtaken = exerciser.overtaken();
        assert_eq!(overtaken == 0, has(features::IN_ORDER), "{overtaken} overtaken with {chosen:#x}");
    }
    assert_sound();
}

/// Each queue is its own: a request goes through it, and its notification wakes nobody else.
#[test_case]
fn several_queues() {
    const QUEUES: u16 = 5;
    for packed in [0, features::RING_PACKED] {
        let offer = Options { features: packed | features::NOTIFICATION_DATA, queue_size: 16 };
        let (device, windows) = disk(&offer, QUEUES);
        // As many as there are, no more, and fewer if that is wished.
        for (wish, queues) in [(9, QUEUES), (QUEUES, QUEUES), (2, 2), (1, 1)] {
            let wish = Wish { queues: wish, ..Wish::default() };
            let mut block = Block::with_options(
                device.clone(),
                &device.grant().expect("it is a model"),
                windows.clone(),
                &wish,
            )
            .expect("the disk starts");
            assert_ne!(block.control.features() & block::features::MQ, 0);
            let pool = DmaPool::new(&windows, queues.into(), SECTOR_SIZE).expect("there is memory");
            let (_, each) = block.split();
            let mut each = each.collect::<Vec<_>>();
            assert_eq!(each.len(), usize::from(queues));
            for (number, queue) in (0..).zip(&mut each) {
                let mut buffer = pool.take().expect("one for each");
                buffer.write_slice(&[number + 1; SECTOR_SIZE], 0).expect("it fits");
                let request = Request::Write { sector: number.into(), buffer, len: SECTOR_SIZE };
                queue.submit(request).expect("there is room");
            }
            // The last first, and only one of them at a time.
            for index in (0..each.len()).rev() {
                each[index].kick();
                for (other, queue) in each.iter_mut().enumerate() {
                    let mut results = Vec::new();
                    queue.reap(|done| results.push(done.result)).expect("the ring is sound");
                    assert_eq!(results.len(), usize::from(other == index), "queue {other} after {index}");
                    assert!(results.iter().all(Result::is_ok));
                }
            }
            for (number, queue) in (0..).zip(&mut each) {
                let buffer = pool.take().expect("it came back");
                let request = Request::Read { sector: number.into(), buffer, len: SECTOR_SIZE };
                queue.submit(request).expect("there is room");
                queue.kick();
                let mut bytes = [0; SECTOR_SIZE];
                let reaped = queue.reap(|done| {
                    let buffer = done.buffer.expect("a read has one");
                    buffer.read_slice(&mut bytes, 0).expect("it fits");
                });
                assert_eq!((reaped, bytes), (Ok(1), [number + 1; SECTOR_SIZE]));
                assert_eq!((queue.counters().completions, queue.counters().kicks), (2, 2));
            }
        }
    }
    assert_sound();
}

/// A notification that tells of chains that are not there ends the device.
#[test_case]
fn notifications_that_lie() {
    const RUNNING: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    for (packed, start) in [(0, 0), (features::RING_PACKED, 1 << 15)] {
        for data in [0, features::NOTIFICATION_DATA] {
            let (device, windows) = disk(&Options { features: packed | data, queue_size: 4 }, 1);
            let mut transport = device.clone();
            transport.start(&device.grant().expect("it is a model")).expect("it is the device's grant");
            transport.set_driver_features(features::VERSION_1 | packed | data);
            transport.set_status(RUNNING & !status::DRIVER_OK);
            let rings = Rings::new(&windows);
            let doorbell = transport.set_up_queue(&windows, &rings.setup(0)).expect("it is in a window");
            transport.set_status(RUNNING);
            doorbell.notify(start);
            assert_eq!(transport.status(), RUNNING, "that was true");
            doorbell.notify(start + 1);
            let lied = if data == 0 { 0 } else { status::NEEDS_RESET };
            assert_eq!(transport.status(), RUNNING | lied);
            transport.reset(&windows, Duration::ZERO).expect("it resets");
        }
    }
    assert_sound();
}

/// Only a queue that was reset can be set up again, and only where queues can be reset.
#[test_case]
fn queues_are_reset_where_that_was_negotiated() {
    for reset in [0, features::RING_RESET] {
        let (device, windows) = disk(&Options { features: reset, queue_size: 4 }, 1);
        let mut transport = device.clone();
        transport.set_driver_features(features::VERSION_1 | reset);
        let rings = Rings::new(&windows);
        let setup = rings.setup(0);
        let taken = Err(Error::QueueUnavailable(0));
        for _ in 0..3 {
            assert_eq!(transport.set_up_queue(&windows, &setup).map(drop), Ok(()));
            assert_eq!(transport.set_up_queue(&windows, &setup).map(drop), taken);
            let result = transport.begin_reset_queue(0);
            assert_eq!(result, if reset == 0 { taken } else { Ok(()) });
            if reset == 0 {
                break;
            }
        }
        let beyond = transport.begin_reset_queue(1);
        assert_eq!(beyond, Err(Error::QueueUnavailable(1)));
        transport.reset(&windows, Duration::ZERO).expect("it resets");
    }
}

/// A card works whatever its rings can do, and each pair of queues receives what it sent.
#[test_case]
fn cards_with_several_pairs() {
    const PAIRS: u16 = 3;
    for bits in 0..CHOICES {
        let windows = DmaWindows::for_model(&KERNEL, CARD).expect("nobody else has it");
        let offer = Options { features: choice(bits), queue_size: 16 };
        let wire = Loopback::with_options(Echo::new(MAC).with_pairs(PAIRS), windows.clone(), &offer);
        for (wish, pairs) in [(1, 1), (2, 2), (8, PAIRS)] {
            let wish = CardWish { pairs: wish, ..CardWish::default() };
            let mut card = Net::with_options(
                wire.clone(),
                &wire.grant().expect("it is a model"),
                windows.clone(),
                &wish,
            )
            .expect("the card starts");
            let used = wire.with_model(|model| model.pairs());
            assert_eq!((card.pairs(), used), (pairs.into(), pairs), "with {:#x}", offer.features);
            let each = card.split().1;
            for (number, pair) in (0..).zip(each) {
                for round in 0..20_u8 {
                    let bytes = [number << 5 | round; 80];
                    let frames = 60..61 + usize::from(round % 8);
                    for len in frames.clone() {
                        let sent =
                            pair.send(1, |room| room.write(&bytes[..len]).expect("it is short enough"));
                        assert_eq!(sent, Ok(1), "there is room");
                    }
                    pair.kick();
                    for len in frames {
                        let read = |frame: &RxFrame<'_>| {
                            let mut found = [0; 80];
                            assert_eq!((frame.len(), frame.read(&mut found)), (len, len));
                            assert_eq!(found[..len], bytes[..len]);
                        };
                        assert_eq!(pair.receive(1, read), Ok(1), "it comes back");
                    }
                    assert_eq!(pair.receive(1, |_| {}), Ok(0), "one frame too many");
                }
            }
        }
    }
    assert_sound();
}

/// The control queue turns pairs of queues on; it comes after all pairs, used or not (5.1.2).
#[test_case]
fn pairs_are_set_by_command() {
    const PAIRS: u16 = 3;
    let windows = DmaWindows::for_model(&KERNEL, CARD).expect("nobody else has it");
    let card = Loopback::new(Echo::new(MAC).with_pairs(PAIRS), windows.clone());
    let mut pools = Pools::new(&windows);
    for (negotiated, index) in [(net::features::MQ | net::features::CTRL_VQ, 6), (net::features::CTRL_VQ, 2)]
    {
        let begun = Device::begin(
            card.clone(),
            DeviceType::NET,
            &card.grant().expect("it is a model"),
            windows.clone(),
        );
        let mut driver = begun.expect("the card starts").negotiate(negotiated).expect("it is offered");
        assert_eq!((driver.features() & negotiated, driver.config::<u16>(8)), (negotiated, Ok(PAIRS)));
        let options = QueueOptions { size: 4, chains: 1, segments: 2, longest: 2 };
        let mut queue: Queue<BufferList, _> =
            driver.queue(index, &options, 2, |_| Ok(None)).expect("it is there");
        queue.start(&driver.driver_ok().expect("it is ready"));
        let mut pairs = 1;
        for (command, known) in [
            (&[4, 0, 3, 0][..], true),
            (&[4, 0, 2, 0], true),
            (&[4, 0, 0, 0], false),
            (&[4, 0, 4, 0], false),
            (&[4, 0, 1, 1], false),
            (&[4, 1, 1, 0], false),
            (&[3, 0, 1, 0], false),
            (&[4, 0, 1], false),
            (&[4, 0, 1, 0, 0], false),
            (&[4, 0, 1, 0], true),
        ] {
            let (mut input, output) = (pools.take(command.len(), 0), pools.take(1, 0xff));
            input.write_slice(command, 0).expect("it fits");
            assert!(queue.submit(raw(input, Some(output))).is_ok());
            queue.kick();
            let completion = queue.pop().expect("the ring is sound").expect("it is answered");
            let [_, output] = completion.buffers.into_buffers();
            let answer = bytes(&output[0]);
            assert_eq!((completion.written, &*answer), (Some(1), &[u8::from(!known)][..]), "{command:?}");
            if known {
                pairs = command[2].into();
            }
            assert_eq!(card.with_model(|model| model.pairs()), pairs);
        }
        let quiet = driver.shut_down().expect("it resets");
        assert_eq!(queue.reclaim(&quiet).count(), 0);
    }
    assert_sound();
}
