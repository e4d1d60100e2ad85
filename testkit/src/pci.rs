//! A virtio card on PCI whose registers are plain memory: what is written can be seen, and what the device
//! would say is put there beforehand.

use std::sync::OnceLock;

use ringfence_drivers::block::Block;
use ringfence_drivers::pci::{Function, enumerate};
use ringfence_drivers::virtio::{Error, PciTransport};
use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::{Bytes, DmaWindows, MsiMessage};

use crate::config::{FakeConfig, FakeFunction, address, virtio_capability};
use crate::{ID, grant, platform};

/// Where QEMU puts its structures in BAR 4.
pub const COMMON: usize = 0;
pub const ISR: usize = 0x1000;
pub const DEVICE: usize = 0x2000;
pub const NOTIFY: usize = 0x3000;
pub const BAR4: u64 = 0x38_0000_4000;
pub const BAR1: u32 = 0xfebd_1000;
pub const COMMAND: usize = 4;
pub const MSIX_AT: usize = 0x40;

pub struct Card {
    pub platform: &'static HostPlatform,
    pub config: &'static FakeConfig,
    pub function: Function,
    pub registers: HostMemory,
    pub msix: HostMemory,
    pub windows: OnceLock<DmaWindows>,
}

pub fn qemu_capabilities() -> Vec<(u8, Vec<u8>)> {
    vec![
        // Table of 3 in BAR 1, pending bits behind it.
        (0x11, [&[0x02, 0x00][..], &[0x01, 0, 0, 0], &[0x01, 0x08, 0, 0]].concat()),
        virtio_capability(5, 0, 0, 0, Some(0)),
        virtio_capability(2, 4, NOTIFY as u32, 0x1000, Some(4)),
        virtio_capability(4, 4, DEVICE as u32, 0x1000, None),
        virtio_capability(3, 4, ISR as u32, 0x1000, None),
        virtio_capability(1, 4, COMMON as u32, 0x1000, None),
    ]
}

pub fn card(capabilities: &[(u8, Vec<u8>)]) -> Card {
    card_of(0x1042, capabilities, BAR4, 0x4000)
}

/// A card with a BAR 4 of `size` bytes at `bar`, of which the first 16 KiB are there.
pub fn card_of(device: u16, capabilities: &[(u8, Vec<u8>)], bar: u64, size: u64) -> Card {
    let mut function = FakeFunction::new(0x1af4, device, [1, 0, 0], 0);
    function.bar32(1, BAR1, 0x1000);
    function.bar64(4, bar, size);
    function.put(0x3c, &[11, 1]);
    function.capabilities(capabilities);
    function.writable[MSIX_AT / 4] = 0xc000_0000;
    let config = FakeConfig::leak([(address(0, 3, 0), function)]);
    let platform = platform();
    let registers = platform.add_registers(bar, 0x4000);
    let msix = platform.add_registers(BAR1.into(), 0x1000);
    let function = enumerate(config, 0).next().unwrap();
    let card = Card { platform, config, function, registers, msix, windows: OnceLock::new() };
    assert_eq!(card.function.address().id(), ID);
    // Feature bits 0 and 32, since both halves read from the same place.
    card.put32(COMMON + 0x04, 1);
    card.put16(COMMON + 0x12, 1); // num_queues
    card.put16(COMMON + 0x18, 64); // queue_size
    card.put16(COMMON + 0x1e, 5); // queue_notify_off
    card.put32(DEVICE, 100); // capacity
    card
}

impl Card {
    pub fn put16(&self, offset: usize, value: u16) {
        self.registers.slice().write_obj(value, offset).unwrap();
    }
    pub fn put32(&self, offset: usize, value: u32) {
        self.registers.slice().write_obj(value, offset).unwrap();
    }
    pub fn get16(&self, offset: usize) -> u16 {
        self.registers.slice().read_obj(offset).unwrap()
    }
    pub fn get64(&self, offset: usize) -> u64 {
        self.registers.slice().read_obj(offset).unwrap()
    }
    pub fn transport(&self) -> Result<PciTransport, Error> {
        PciTransport::new(self.platform, &self.function)
    }
    pub fn windows(&self) -> DmaWindows {
        self.windows.get_or_init(|| DmaWindows::new(self.platform, ID).unwrap()).clone()
    }
    pub fn block(&self) -> Result<Block<PciTransport>, Error> {
        Block::new(self.transport()?, &grant(), self.windows())
    }
    pub fn command(&self) -> u32 {
        self.config.word(self.function.address(), COMMAND) & 0xffff
    }
}

pub const QUEUE_SELECT: usize = COMMON + 0x16;
pub const QUEUE_SIZE: usize = COMMON + 0x18;
pub const QUEUE_VECTOR: usize = COMMON + 0x1a;
pub const QUEUE_ENABLE: usize = COMMON + 0x1c;
pub const QUEUE_ADDRESSES: [usize; 3] = [COMMON + 0x20, COMMON + 0x28, COMMON + 0x30];
pub const QUEUE_RESET: usize = COMMON + 0x3a;

/// A card that offers `features` of 32..64; bits 0..32 read the same.
pub fn card_with(features: u64) -> Card {
    let card = card(&qemu_capabilities());
    card.put32(COMMON + 0x04, 1 | (features >> 32) as u32);
    card.put32(DEVICE + 12, 1); // seg_max
    card.put32(DEVICE + 20, 512); // blk_size
    card
}

pub const MEMORY: u32 = 1 << 1;
pub const BUS_MASTER: u32 = 1 << 2;
pub const INTX_OFF: u32 = 1 << 10;

pub fn messages(count: u32) -> Vec<MsiMessage> {
    // SAFETY: nothing performs the write.
    (0..count).map(|n| unsafe { MsiMessage::new(0xfee0_0000 | 0x7_0000_0000, 0x40 + n) }).collect()
}
