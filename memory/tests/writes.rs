//! What a device sees of its driver: which registers are written, in which order, and how long it is waited
//! for.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_memory::*;
use ringfence_testkit::registers::stepped::Stepped;
use ringfence_testkit::registers::*;

/// Writes: offset and value.
type Log = Arc<Mutex<Vec<(usize, u32)>>>;

/// What is in the register at `offset`, which is as wide as 4.1.4.3 says; those of messages have 32 bits.
fn value(registers: &Stepped, offset: usize) -> u32 {
    match offset {
        0x00..0x10 | 0x20..0x38 | MSIX.. => registers.get(offset),
        common::DEVICE_STATUS => registers.get::<u8>(offset).into(),
        _ => registers.get::<u16>(offset).into(),
    }
}

const FEATURES: u64 = 0x8765_4321_1234_5678;

/// A device with a feature word and a notification offset that depend on what is selected.
fn device() -> (&'static Stepped, VirtioPci, DmaWindows, Log) {
    let (card, log) = (Card::new(), Log::default());
    let seen = log.clone();
    let registers = Stepped::new(move |registers, offset| {
        seen.lock().unwrap().push((offset, value(registers, offset)));
        match offset {
            common::DEVICE_FEATURE_SELECT => {
                let half = (FEATURES >> (32 * registers.get::<u32>(offset).min(1))) as u32;
                registers.set(common::DEVICE_FEATURE, half);
            }
            common::QUEUE_SELECT => {
                registers.set(common::QUEUE_NOTIFY_OFF, 3 * registers.get::<u16>(offset) + 1);
            }
            _ => {}
        }
    });
    registers.set(common::NUM_QUEUES, QUEUES);
    let virtio = VirtioPci::new(registers, card.config()).unwrap();
    let windows = DmaWindows::new(registers, card.address.id()).unwrap();
    (registers, virtio, windows, log)
}

#[test]
fn registers_are_written_in_their_order() {
    let (registers, virtio, windows, log) = device();
    let common = &virtio.common;
    let writes = || std::mem::take(&mut *log.lock().unwrap());
    let mask = |vector: u16, masked| (MSIX + 16 * usize::from(vector) + 12, masked);
    assert_eq!(writes(), [0, 1, 2, 3].map(|vector| mask(vector, 1)));

    assert_eq!(common.device_features(), FEATURES);
    assert_eq!(writes(), [(0x00, 0), (0x00, 1)]);
    common.reset(&windows, LIMIT).unwrap();
    common.set_status(3);
    assert!(writes().iter().all(|(offset, _)| *offset == common::DEVICE_STATUS), "only that");
    assert!(common.set_driver_features(0x1_0000_0002));
    assert_eq!(writes(), [(0x08, 0), (0x0c, 2), (0x08, 1), (0x0c, 1)]);
    common.set_status(FEATURES_OK);
    assert_eq!(writes(), [(0x14, 0x0b)]);

    let ring = Ring::new(&windows, 16);
    common.set_queue(&windows, 2, &ring.addresses()).unwrap();
    let [descriptors, driver, device] = [0x20, 0x28, 0x30].map(|offset| registers.get::<u64>(offset));
    let (low, high) = (|address: u64| address as u32, |address: u64| (address >> 32) as u32);
    let expected = [
        (0x16, 2),
        (0x18, 16),
        (0x20, low(descriptors)),
        (0x24, high(descriptors)),
        (0x28, low(driver)),
        (0x2c, high(driver)),
        (0x30, low(device)),
        (0x34, high(device)),
        (0x1c, 1),
    ];
    assert_eq!(writes(), expected, "enabled when all is said");
    ring.driver.as_volatile_slice().write_obj(*b"available", 0).unwrap();
    let seen = registers.host.translate(windows.device(), driver, 256).unwrap();
    assert_eq!(seen.slice().read_obj(0), Ok(*b"available"));

    assert_eq!(common.read_queue::<u16>(1, common::QUEUE_NOTIFY_OFF), Ok(4));
    assert_eq!(common.set_queue_vector(0, 5), Ok(5));
    common.reset_queue(2).unwrap();
    assert_eq!(common.set_config_vector(7), Ok(7));
    assert_eq!(writes(), [(0x16, 1), (0x16, 0), (0x1a, 5), (0x16, 2), (0x3a, 1), (0x10, 7)]);

    virtio.msix.unwrap().set(3, unsafe { MsiMessage::new(0x1_fee0_1000, 0x41) }).unwrap();
    let entry = MSIX + 16 * 3;
    let message = [(entry, 0xfee0_1000), (entry + 4, 1), (entry + 8, 0x41)];
    assert_eq!(writes(), [&[mask(3, 1)], &message[..], &[mask(3, 0)]].concat(), "not sent while it is half");
}

/// A device that is slow is waited for as long as the limit, by the platform's clock, and no longer.
#[test]
fn a_reset_has_its_time() {
    let card = Card::new();
    let registers = Stepped::new(|registers, offset| {
        if offset == common::DEVICE_STATUS && registers.get::<u8>(offset) == 0 {
            registers.set(offset, 0x40_u8);
        }
    });
    let virtio = VirtioPci::new(registers, card.config()).unwrap();
    let windows = DmaWindows::new(registers, card.address.id()).unwrap();
    let limit = Duration::from_secs(8);
    for (seconds, in_time) in [(1, true), (8, true), (10, false), (7, true)] {
        let mut now = Duration::from_secs(1000);
        let done = now + Duration::from_secs(seconds);
        *registers.clock.borrow_mut() = Box::new(move |registers| {
            if now == done {
                registers.set(common::DEVICE_STATUS, 0_u8);
            }
            now += Duration::from_secs(1);
            now - Duration::from_secs(1)
        });
        let proof = virtio.common.reset(&windows, limit);
        assert_eq!(proof.err(), (!in_time).then_some(ResetError::Timeout), "{seconds} s");
    }
}

/// A host that stops the machine while a device is waited for has stopped the device, too: it has half of the
/// limit left, and no more than that.
#[test]
fn a_stop_of_the_machine_is_half_of_the_limit() {
    let card = Card::new();
    let registers = Stepped::new(|registers, offset| {
        if offset == common::DEVICE_STATUS && registers.get::<u8>(offset) == 0 {
            registers.set(offset, 0x40_u8);
        }
    });
    let virtio = VirtioPci::new(registers, card.config()).unwrap();
    let windows = DmaWindows::new(registers, card.address.id()).unwrap();
    // After 2 s of the limit there is a stop of a minute.
    for (seconds, in_time) in [(1, true), (2, true), (3, false), (9, false)] {
        let (mut now, mut looks) = (Duration::ZERO, 0);
        *registers.clock.borrow_mut() = Box::new(move |registers| {
            if looks == 3 + seconds {
                registers.set(common::DEVICE_STATUS, 0_u8);
            }
            looks += 1;
            now += Duration::from_secs(if looks == 4 { 60 } else { 1 });
            now
        });
        let proof = virtio.common.reset(&windows, Duration::from_secs(8));
        assert_eq!(proof.err(), (!in_time).then_some(ResetError::Timeout), "{seconds} s");
    }
}
