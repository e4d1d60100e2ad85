//! The registers of a device over MMIO (virtio 1.4, 4.2), with a device behind them that sees each write.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::cell::RefCell;
use std::rc::Rc;

use ringfence_memory::*;
use ringfence_testkit::registers::stepped::Stepped;
use ringfence_testkit::registers::{FEATURES_OK, LIMIT, RING_PACKED, Ring};

const ID: DeviceId = DeviceId::off_bus(3);
const START: u64 = 0xfeb0_0000;
const LEN: usize = 0x200;

// The registers that the device side needs.
const MAGIC: usize = 0;
const VERSION: usize = 4;
const TYPE: usize = 8;
const QUEUE_SEL: usize = 0x30;
const NUM_MAX: usize = 0x34;
const READY: usize = 0x44;
const ISR: usize = 0x60;
const STATUS: usize = 0x70;
const RESET: usize = 0xc0;
const CONFIG: usize = 0x100;

/// Queues 0 to 2 have these sizes at most; there is no other.
const SIZES: [u32; 3] = [64, 16, 256];
const OFFERED: u64 = 0x1234_5678_9abc_def0;

/// What was written, in order.
type Log = Rc<RefCell<Vec<(usize, u32)>>>;

struct Device {
    side: &'static Stepped,
    log: Log,
}

impl Device {
    fn new() -> Self {
        let log = Log::default();
        let (writes, mut ready) = (log.clone(), [0_u32; 3]);
        let side = Stepped::new(move |side, at| {
            let value: u32 = side.get(at);
            writes.borrow_mut().push((at, value));
            let queue = side.get::<u32>(QUEUE_SEL) as usize;
            match at {
                0x14 => side.set(0x10, (OFFERED >> (32 * value)) as u32),
                QUEUE_SEL => {
                    side.set(NUM_MAX, SIZES.get(queue).copied().unwrap_or(0));
                    side.set(READY, ready.get(queue).copied().unwrap_or(0));
                }
                READY => ready[queue] = value,
                RESET => (ready[queue], _) = (0, side.set(READY, 0_u32)),
                STATUS if value == 0 => (ready, _) = ([0; 3], side.set(READY, 0_u32)),
                _ => {}
            }
        });
        for (at, value) in [(MAGIC, 0x7472_6976_u32), (VERSION, 2), (TYPE, 2), (CONFIG, 0x4433_2211)] {
            side.set(at, value);
        }
        Self { side, log }
    }

    fn registers(&self) -> MmioRegion {
        MmioRegion::map(self.side, None, PhysAddr::new(START).unwrap(), LEN).unwrap()
    }

    fn find(&self) -> Result<VirtioMmio, VirtioMmioError> {
        unsafe { VirtioMmio::new(self.side, ID, &self.registers()) }
    }

    fn windows(&self) -> DmaWindows {
        DmaWindows::new(self.side, ID).unwrap()
    }

    /// What was written since it was asked last.
    fn written(&self) -> Vec<(usize, u32)> {
        std::mem::take(&mut *self.log.borrow_mut())
    }
}

fn grant() -> DmaGrant {
    unsafe { DmaGrant::without_iommu(ID) }
}

/// Brings the device to where queues can be set up.
fn negotiate(virtio: &VirtioMmio, windows: &DmaWindows, features: u64) {
    virtio.reset(windows, LIMIT).unwrap();
    virtio.grant(&grant()).unwrap();
    assert!(virtio.set_driver_features(features));
    virtio.set_status(3);
    virtio.set_status(FEATURES_OK);
}

/// 4.2.2.2, 4.2.3.1.1: what has another magic value or version is ignored, and so is a place without a
/// device; nothing is written to it.
#[test]
fn what_is_not_known_is_left_alone() {
    use VirtioMmioError::*;
    for (magic, version, kind, expected) in [
        (0x7472_6976_u32, 2_u32, 2_u32, Ok(2)),
        (0x7472_6976, 2, u32::MAX, Ok(u32::MAX)),
        (0x7472_6976, 2, 0, Err(Empty)),
        (0x7472_6976, 1, 0, Err(Empty)),
        (0x7472_6976, 1, 2, Err(Legacy)),
        (0x7472_6976, 0, 2, Err(Unknown)),
        (0x7472_6976, 3, 2, Err(Unknown)),
        (0x7472_6977, 2, 2, Err(Unknown)),
        (0x7669_7274, 2, 2, Err(Unknown)),
        (0, 0, 0, Err(Unknown)),
        (u32::MAX, u32::MAX, u32::MAX, Err(Unknown)),
    ] {
        let device = Device::new();
        for (at, value) in [(MAGIC, magic), (VERSION, version), (TYPE, kind)] {
            device.side.set(at, value);
        }
        let found = device.find().map(|virtio| virtio.device_type());
        assert_eq!((found, device.written()), (expected, vec![]), "{magic:#x}, {version}, {kind}");
    }
    let device = Device::new();
    let short = device.registers().part(0, CONFIG - 1).unwrap();
    let found = unsafe { VirtioMmio::new(device.side, ID, &short) };
    assert_eq!(found.unwrap_err(), Mmio(MmioError::OutOfBounds));
    let odd = device.registers().part(2, LEN - 2).unwrap();
    let found = unsafe { VirtioMmio::new(device.side, ID, &odd) };
    assert_eq!(found.unwrap_err(), Mmio(MmioError::Misaligned));
}

/// Each half is selected before it is read or written (4.2.2.2), and the choice is final with FEATURES_OK.
#[test]
fn features_are_selected() {
    let device = Device::new();
    let virtio = device.find().unwrap();
    assert_eq!(virtio.device_features(), OFFERED);
    assert_eq!(device.written(), [(0x14, 0), (0x14, 1)]);
    assert!(virtio.set_driver_features(0x0102_0304_0506_0708));
    assert_eq!(device.written(), [(0x24, 0), (0x20, 0x0506_0708), (0x24, 1), (0x20, 0x0102_0304)]);
    virtio.set_status(FEATURES_OK);
    device.written();
    assert!(!virtio.set_driver_features(1));
    virtio.set_status(0);
    virtio.set_status(0xff);
    assert_eq!(device.written(), [(STATUS, 8), (STATUS, 0xcf)], "bits that there are, and none is cleared");
}

/// In the order of 4.2.3.2: selected, seen not to be in use, sized, placed, and made ready.
#[test]
fn a_queue_is_told_where_it_is() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    device.written();
    virtio.set_queue(&windows, 1, &ring.addresses()).unwrap();
    let written = device.written();
    let places: Vec<_> = written.iter().map(|(at, _)| *at).collect();
    assert_eq!(places, [QUEUE_SEL, 0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, READY]);
    assert_eq!((written[0].1, written[1].1, written[8].1), (1, 16, 1));
    let told = |low: usize| u64::from(written[low].1) | u64::from(written[low + 1].1) << 32;
    ring.driver.as_volatile_slice().write_obj(*b"available", 0).unwrap();
    let seen = device.side.host.translate(ID, told(4), 9).unwrap();
    assert_eq!(seen.slice().read_obj(0), Ok(*b"available"));
    assert_eq!([2, 6].map(|low| device.side.host.translate(ID, told(low), 128).is_some()), [true; 2]);
    // While it is ready none of its registers is written (4.2.2.2).
    assert_eq!(virtio.set_queue(&windows, 1, &ring.addresses()), Err(SetQueueError::Unavailable));
    assert_eq!(virtio.set_queue(&windows, 3, &ring.addresses()), Err(SetQueueError::Unavailable), "no such");
    assert_eq!(device.written(), [(QUEUE_SEL, 1), (QUEUE_SEL, 3)]);
    // No size above the largest (4.2.2.2), nor what the device then does not take.
    let large = Ring::new(&windows, 128);
    assert_eq!(virtio.set_queue(&windows, 0, &large.addresses()), Err(SetQueueError::Refused));
    assert_eq!(device.written(), [(QUEUE_SEL, 0)]);
    assert_eq!([0, 1, 2, 3].map(|index| virtio.queue_max_size(index)), [64, 16, 256, 0]);
}

#[test]
fn a_queue_that_does_not_become_ready() {
    let device = Device::new();
    let stubborn = Stepped::new(|side, at| {
        side.set(NUM_MAX, 16_u32);
        if at == READY {
            side.set(READY, 0_u32);
        }
    });
    for (at, value) in [(MAGIC, 0x7472_6976_u32), (VERSION, 2), (TYPE, 2)] {
        stubborn.set(at, value);
    }
    let device = Device { side: stubborn, ..device };
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    assert_eq!(virtio.set_queue(&windows, 0, &ring.addresses()), Err(SetQueueError::Refused));
}

/// There is no bus that keeps the device from memory: it is told of none unless there is a grant for it, of
/// its life, as PCI's bus-master bit demands.
#[test]
fn nothing_is_told_without_a_grant() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    let ready = |virtio: &VirtioMmio| {
        virtio.reset(&windows, LIMIT).unwrap();
        assert!(virtio.set_driver_features(0));
        virtio.set_status(0x0b);
    };
    let tell = || virtio.set_queue(&windows, 0, &Ring::new(&windows, 16).addresses());
    let model = DmaWindows::for_model(device.side, ID).unwrap();
    for (wrong, life) in [
        (unsafe { DmaGrant::without_iommu(DeviceId::off_bus(4)) }, 0),
        (unsafe { DmaGrant::without_iommu(DeviceId(3)) }, 1),
        (DmaGrant::for_model(&model).unwrap(), 2),
    ] {
        ready(&virtio);
        device.written();
        assert_eq!(virtio.grant(&wrong), Err(DmaError::WrongDevice), "{life}");
        assert_eq!(tell(), Err(SetQueueError::NotGranted));
        assert_eq!(device.written(), []);
        virtio.grant(&grant()).unwrap();
        assert_eq!(tell(), Ok(()));
    }
    // Given while the device was asked to reset: that ends with the life.
    let begun = virtio.begin_reset(&windows).unwrap();
    virtio.grant(&grant()).unwrap();
    virtio.poll_reset(&windows, &begun).unwrap();
    assert!(virtio.set_driver_features(0));
    virtio.set_status(0x0b);
    assert_eq!(tell(), Err(SetQueueError::NotGranted));
    // And given before it was asked, and not seen to reset: nothing is known of what it was told.
    virtio.grant(&grant()).unwrap();
    let begun = virtio.begin_reset(&windows).unwrap();
    assert_eq!(tell(), Err(SetQueueError::NotGranted));
    virtio.poll_reset(&windows, &begun).unwrap();
    // Taken back, and given again.
    ready(&virtio);
    virtio.grant(&grant()).unwrap();
    virtio.revoke();
    assert_eq!(tell(), Err(SetQueueError::NotGranted));
    virtio.grant(&grant()).unwrap();
    assert_eq!(tell(), Ok(()));
}

/// Addresses of another device, of a model with its number, of another life, or of a ring in the other format
/// are refused.
#[test]
fn a_queue_is_of_this_device_its_life_and_its_format() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    negotiate(&virtio, &windows, 0);
    let old = Ring::new(&windows, 16);
    let stale = old.addresses();
    negotiate(&virtio, &windows, 0);
    device.written();
    let tell = |windows: &DmaWindows, queue: &QueueAddresses<'_>| virtio.set_queue(windows, 0, queue);
    assert_eq!(tell(&windows, &stale), Err(SetQueueError::Dma(DmaError::WrongLife)));
    for other in [
        DmaWindows::new(device.side, DeviceId::off_bus(4)).unwrap(),
        DmaWindows::for_model(device.side, ID).unwrap(),
    ] {
        let (ring, wrong) = (Ring::new(&other, 16), Err(SetQueueError::Dma(DmaError::WrongDevice)));
        assert_eq!((tell(&other, &ring.addresses()), tell(&windows, &ring.addresses())), (wrong, wrong));
        assert_eq!(virtio.reset(&other, LIMIT).unwrap_err(), ResetError::WrongDevice);
    }
    let area = windows.allocate(4096).unwrap();
    let table = DescriptorTable::<Packed>::new(&windows, 16, 0, Direction::Both).unwrap();
    let packed = table.queue(area.address(0).unwrap(), area.address(8).unwrap()).unwrap();
    assert_eq!(tell(&windows, &packed), Err(SetQueueError::WrongFormat));
    assert_eq!(device.written(), []);
    negotiate(&virtio, &windows, RING_PACKED);
    let table = DescriptorTable::<Packed>::new(&windows, 16, 0, Direction::Both).unwrap();
    let packed = table.queue(area.address(0).unwrap(), area.address(8).unwrap()).unwrap();
    let split = Ring::new(&windows, 16);
    assert_eq!(tell(&windows, &split.addresses()), Err(SetQueueError::WrongFormat));
    assert_eq!(tell(&windows, &packed), Ok(()));
}

/// A status of 0 proves a reset if the same registers say before and after that a device is there, and its
/// status was something else when it was asked.
#[test]
fn a_reset_is_proved_by_the_devices_own_status() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    virtio.set_queue(&windows, 0, &ring.addresses()).unwrap();
    drop(ring);
    let held = windows.usage().1;
    assert!(held >= 3 * 4096);
    for (at, absent) in [(MAGIC, u32::MAX), (MAGIC, 0), (VERSION, 1), (VERSION, 0)] {
        let there: u32 = device.side.get(at);
        // Not asked, as nobody is there.
        device.written();
        device.side.set(at, absent);
        assert_eq!(virtio.begin_reset(&windows).unwrap_err(), ResetError::Timeout);
        assert_eq!(device.written(), []);
        // Asked, and gone when the answer comes.
        device.side.set(at, there);
        let begun = virtio.begin_reset(&windows).unwrap();
        device.side.set(at, absent);
        assert!(virtio.poll_reset(&windows, &begun).is_none());
        device.side.set(at, there);
        virtio.set_status(3);
    }
    for unproved in [u32::MAX, 0x100, 0xff, 1, 0x40] {
        let begun = virtio.begin_reset(&windows).unwrap();
        device.side.set(STATUS, unproved);
        assert!(virtio.poll_reset(&windows, &begun).is_none(), "{unproved:#x}");
        device.side.set(STATUS, 3_u32);
    }
    for unheard in [u32::MAX, 0x100, 0xff] {
        device.side.set(STATUS, unheard);
        assert_eq!(virtio.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    }
    assert_eq!(windows.usage(), (0, held));
    device.side.set(STATUS, 3_u32);
    let life = windows.life();
    assert!(virtio.reset(&windows, LIMIT).unwrap().ends(&life));
    assert_eq!(windows.usage(), (0, 0));
    // From 0, the status is set before it is cleared.
    device.written();
    virtio.reset(&windows, LIMIT).unwrap();
    assert_eq!(device.written(), [(STATUS, 1), (STATUS, 0)]);
}

/// Nobody who is not there is asked, and one that goes while it is asked was not: whatever its status reads.
#[test]
fn a_device_that_goes_is_not_reset() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    device.side.set(MAGIC, 0_u32);
    assert_eq!(virtio.begin_reset(&windows).unwrap_err(), ResetError::Timeout);
    assert_eq!(device.written(), [], "its status is 0, and stays so");

    let goes = Stepped::new(|side, at| {
        if at == STATUS && side.get::<u32>(STATUS) == 0 {
            side.set(MAGIC, 0_u32);
        }
    });
    for (at, value) in [(MAGIC, 0x7472_6976_u32), (VERSION, 2), (TYPE, 2)] {
        goes.set(at, value);
    }
    let device = Device { side: goes, ..device };
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    assert_eq!(virtio.begin_reset(&windows).unwrap_err(), ResetError::Timeout);
    assert_eq!(goes.get::<u32>(STATUS), 0);
}

/// 4.2.2.2: a reset of a queue is over when the register reads 0; then it can be set up again.
#[test]
fn a_queue_is_reset_alone() {
    let device = Device::new();
    let (virtio, windows) = (device.find().unwrap(), device.windows());
    negotiate(&virtio, &windows, 0);
    let ring = Ring::new(&windows, 16);
    virtio.set_queue(&windows, 1, &ring.addresses()).unwrap();
    assert!(!virtio.is_queue_reset(1), "ready");
    device.written();
    virtio.reset_queue(1);
    assert_eq!(device.written(), [(QUEUE_SEL, 1), (RESET, 1)]);
    assert!(!virtio.is_queue_reset(1), "not done");
    device.side.set(RESET, 0_u32);
    assert!(virtio.is_queue_reset(1));
    virtio.set_queue(&windows, 1, &ring.addresses()).unwrap();
}

/// 4.2.2.2, 4.2.3.3, 4.2.3.4: one write notifies; what was seen of an interrupt is acknowledged, and no bit
/// that is not defined.
#[test]
fn notifications_and_interrupts() {
    let device = Device::new();
    let virtio = device.find().unwrap();
    virtio.notifier(0xabcd, false).unwrap().notify(0x1234);
    virtio.notifier(0xabcd, true).unwrap().notify(0x1234);
    assert_eq!(device.written(), [(0x50, 0xabcd), (0x50, 0x1234_abcd)]);
    let interrupts = virtio.interrupts().unwrap();
    for (status, expected) in [(0, 0), (1, 1), (2, 2), (3, 3), (0xffff_fffc, 0), (u32::MAX, 3)] {
        device.side.set(ISR, status);
        assert_eq!((interrupts.acknowledge(), device.written()), (expected, vec![(0x64, expected)]));
    }
}

/// The configuration is behind the registers, in fields of any size; its generation is beside it.
#[test]
fn configuration_is_read() {
    let device = Device::new();
    let virtio = device.find().unwrap();
    let config = virtio.config();
    assert_eq!(
        (config.len(), config.read::<u8>(1), config.read::<u32>(0)),
        (0x100, Ok(0x22), Ok(0x4433_2211))
    );
    assert_eq!(config.read::<u16>(0x100), Err(MmioError::OutOfBounds));
    device.side.set(0xfc, 0x1_0000_u32);
    assert_eq!((virtio.config_generation(), virtio.device()), (0x1_0000, ID));
    assert_eq!(device.written(), []);
}
