//! The transport over MMIO (4.2), over registers that are plain memory: what is written can be seen, and what
//! the device would say is put there beforehand. The registers themselves are tested in `memory`.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::time::Duration;

use ringfence_drivers::block::{Block, Request};
use ringfence_drivers::virtio::{
    DeviceType, Error, InterruptStatus, MmioTransport, RESET_LIMIT, Transport, features, status,
};
use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::{
    Bytes, DeviceId, DmaError, DmaGrant, DmaPool, DmaWindows, MmioRegion, PhysAddr, VirtioMmio,
    VirtioMmioError,
};
use ringfence_testkit::disk::answer_read;
use ringfence_testkit::{DeviceRing, platform};

const START: u64 = 0xfeb0_0e00;
const ID: DeviceId = DeviceId::off_bus(0);

struct Device {
    platform: &'static HostPlatform,
    registers: HostMemory,
    windows: DmaWindows,
}

impl Device {
    /// A disk of 100 sectors.
    fn new() -> Self {
        let platform = platform();
        let registers = platform.add_registers(START, 0x200);
        let device = Self { platform, registers, windows: DmaWindows::new(platform, ID).unwrap() };
        device.put(0, 0x7472_6976);
        device.put(4, 2);
        device.put(8, 2);
        // Feature bits 0 and 32, since both halves read from the same place.
        device.put(0x10, 1);
        device.put(0x34, 64);
        device.put(0x100, 100);
        device
    }

    fn put(&self, offset: usize, value: u32) {
        self.registers.slice().write_obj(value, offset).unwrap();
    }

    fn get(&self, offset: usize) -> u32 {
        self.registers.slice().read_obj(offset).unwrap()
    }

    fn found(&self) -> Result<VirtioMmio, VirtioMmioError> {
        let region = MmioRegion::map(self.platform, None, PhysAddr::new(START).unwrap(), 0x200).unwrap();
        unsafe { VirtioMmio::new(self.platform, ID, &region) }
    }

    fn transport(&self) -> Result<MmioTransport, Error> {
        MmioTransport::new(self.found()?)
    }

    fn block(&self) -> Result<Block<MmioTransport>, Error> {
        Block::new(self.transport()?, &grant(ID), self.windows.clone())
    }
}

fn grant(id: DeviceId) -> DmaGrant {
    unsafe { DmaGrant::without_iommu(id) }
}

#[test]
fn a_block_device_end_to_end() {
    let device = Device::new();
    let mut block = device.block().unwrap();
    assert_eq!((block.control.features(), block.queue.geometry().sectors), (features::VERSION_1, 100));
    assert_eq!((device.get(0x70), device.get(0x38), device.get(0x44)), (0x0f, 64, 1));

    device.put(0x50, u32::MAX);
    let pool = DmaPool::new(&device.windows, 1, 512).unwrap();
    block.queue.submit(Request::Read { sector: 7, buffer: pool.take().unwrap(), len: 512 }).unwrap();
    assert_eq!(device.get(0x50), u32::MAX);
    block.queue.kick();
    assert_eq!(device.get(0x50), 0, "the queue's index");
    let addresses = [0x80, 0x90, 0xa0].map(|at| device.registers.slice().read_obj::<u64>(at).unwrap());
    answer_read(&mut block.queue, DeviceRing::new(device.platform, ID, 64, addresses, 0));
    drop(block);
    assert_eq!((device.get(0x70), device.windows.usage().1), (0, 0), "reset, and nothing in quarantine");
}

/// Whatever is there that is not a disk of version 2, or whose grant is another's, is not driven.
#[test]
fn what_is_not_driven() {
    for (at, value, expected) in [
        (0, 0, Error::WrongType),
        (4, 1, Error::LegacyOnly),
        (4, 3, Error::WrongType),
        (8, 0, Error::WrongType),
        (8, 1, Error::WrongType),
        (8, 0x1_0002, Error::WrongType),
        (0x70, u32::MAX, Error::Gone),
        (0x34, 0, Error::QueueUnavailable(0)),
        (0x44, 1, Error::QueueUnavailable(0)),
        (0x10, 0, Error::MissingFeature(32)),
    ] {
        let device = Device::new();
        device.put(at, value);
        assert_eq!(device.block().map(drop), Err(expected), "{at:#x} is {value:#x}");
    }
    let device = Device::new();
    let other = grant(DeviceId::off_bus(1));
    let refused = Block::new(device.transport().unwrap(), &other, device.windows.clone());
    assert_eq!(refused.map(drop), Err(Error::Dma(DmaError::WrongDevice)));
    assert_eq!(device.get(0x70), 0, "nothing was written");
}

/// A size that is no number of 16 bits is as large as can be, and what is used of it a queue's.
#[test]
fn sizes_are_bounded() {
    for (max, expected) in [(0, 0), (64, 64), (0xffff, 0xffff), (0x1_0000, 0xffff), (u32::MAX, 0xffff)] {
        let device = Device::new();
        device.put(0x34, max);
        assert_eq!(device.transport().unwrap().queue_max_size(0), expected);
    }
}

/// A reset that somebody waits for elsewhere, and the steps around it.
#[test]
fn single_steps() {
    let device = Device::new();
    let mut transport = device.transport().unwrap();
    assert_eq!((transport.device_type(), transport.device_id()), (DeviceType::BLOCK, ID));
    assert!(transport.poll_reset(&device.windows).is_none(), "nobody asked");
    transport.begin_reset(&device.windows).unwrap();
    device.put(0x70, 1);
    assert!(transport.poll_reset(&device.windows).is_none());
    device.put(0x70, 0);
    assert!(transport.poll_reset(&device.windows).is_some());
    transport.reset(&device.windows, RESET_LIMIT).unwrap();
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
    assert_eq!((transport.status(), transport.config_generation()), (3, 0));
    device.put(0xfc, 0x1234_5678);
    assert_eq!(transport.config_generation(), 0x1234_5678);
    assert_eq!((transport.read_config::<u8>(0), transport.read_config::<u32>(0)), (Ok(100), Ok(100)));
    assert!(transport.read_config::<u32>(0x100).is_err());

    transport.begin_reset_queue(0).unwrap();
    assert_eq!((device.get(0xc0), transport.poll_reset_queue(0)), (1, Ok(false)));
    device.put(0xc0, 0);
    assert_eq!(transport.poll_reset_queue(0), Ok(true));
    device.put(0x44, 1);
    assert_eq!(transport.poll_reset_queue(0), Ok(false), "it is in use");
    device.put(0x34, 0);
    assert_eq!(transport.begin_reset_queue(1), Err(Error::QueueUnavailable(1)));

    let interrupts = transport.interrupts().unwrap();
    for (bits, queue, config) in
        [(0, false, false), (1, true, false), (2, false, true), (u32::MAX, true, true)]
    {
        device.put(0x60, bits);
        assert_eq!(interrupts.acknowledge(), InterruptStatus { queue, config });
        assert_eq!(device.get(0x64), bits & 3);
    }
    // A status that never reads 0 is none of a device that has reset.
    device.put(0, 0);
    assert!(transport.reset(&device.windows, Duration::ZERO).is_err());
}
