//! A virtio device on PCI, as memory: its configuration space and its registers. Nothing is behind the
//! registers but what a test does.
#![allow(clippy::undocumented_unsafe_blocks, reason = "a test dies of what is wrong here")]

pub mod stepped;

use std::time::Duration;

use ringfence_memory::host::{HostMemory, HostPlatform};
use ringfence_memory::*;
// Spin locks: ThreadSanitizer does not see what the standard library does while its locks are contended.
use spin::Mutex;

use crate::host_does;

pub const BAR: u64 = 0xfe00_0000;
pub const BAR_LEN: usize = 0x8000;
/// Where the structures are in the BAR.
pub const COMMON: usize = 0;
pub const ISR: usize = 0x1000;
pub const DEVICE_CONFIG: usize = 0x2000;
pub const NOTIFY: usize = 0x3000;
pub const MSIX: usize = 0x4000;
pub const VECTORS: u16 = 4;
pub const QUEUES: u16 = 3;

/// Status bits and a feature.
pub const FEATURES_OK: u8 = 8;
pub const RING_PACKED: u64 = 1 << 34;

pub const COMMAND: u16 = 4;
pub const MEMORY: u32 = 2;
pub const BUS_MASTER: u32 = 4;

pub fn platform() -> &'static HostPlatform {
    Box::leak(Box::new(HostPlatform::new()))
}

type Hook = Box<dyn FnMut(&Card, u16) + Send>;

/// The function at its place on the bus.
pub struct Card {
    pub platform: &'static HostPlatform,
    pub address: PciAddress,
    pub registers: HostMemory,
    words: Mutex<[u32; 1024]>,
    /// Bytes of each BAR: a power of two.
    pub bar_lens: Mutex<[u32; 6]>,
    /// What the status was when decoding was turned off.
    hidden: Mutex<Option<u8>>,
    /// Called at each read of a configuration register.
    pub on_read: Mutex<Option<Hook>>,
    /// Everything that was written to configuration space.
    pub written: Mutex<Vec<(u16, u32)>>,
}

impl Card {
    pub fn new() -> &'static Self {
        Self::on(platform(), 1)
    }

    pub fn on(platform: &'static HostPlatform, device: u8) -> &'static Self {
        let bar = BAR + u64::from(device) * 0x10_0000;
        let mut words = [0; 1024];
        words[0] = 0x1042_1af4;
        words[1] = MEMORY | 1 << 20;
        words[4] = bar as u32;
        words[13] = 0x40;
        let structures =
            [(1, COMMON, 0x1000), (3, ISR, 0x1000), (4, DEVICE_CONFIG, 0x1000), (2, NOTIFY, 0x1000)];
        let mut at = 0x40;
        for (kind, offset, len) in structures {
            let next = at + 0x14;
            let [length, ..] = [0x14_u32];
            words[at / 4] = 0x09 | (next as u32) << 8 | length << 16 | kind << 24;
            words[at / 4 + 1] = 0;
            words[at / 4 + 2] = offset as u32;
            words[at / 4 + 3] = len;
            words[at / 4 + 4] = 4;
            at = next;
        }
        words[at / 4] = 0x11 | u32::from(VECTORS - 1) << 16;
        words[at / 4 + 1] = MSIX as u32;
        words[at / 4 + 2] = 0x5000;
        let registers = platform.add_registers(bar, BAR_LEN);
        registers.slice().write_obj(QUEUES, COMMON + common::NUM_QUEUES).unwrap();
        Box::leak(Box::new(Self {
            platform,
            address: PciAddress::new(0, 0, device, 0).unwrap(),
            registers,
            words: Mutex::new(words),
            bar_lens: Mutex::new([BAR_LEN as u32; 6]),
            hidden: Mutex::default(),
            on_read: Mutex::default(),
            written: Mutex::default(),
        }))
    }

    pub fn config(&'static self) -> ConfigSpace {
        ConfigSpace::new(self, self.address)
    }

    pub fn virtio(&'static self) -> VirtioPci {
        VirtioPci::new(self.platform, self.config()).unwrap()
    }

    pub fn windows(&self) -> DmaWindows {
        DmaWindows::new(self.platform, self.address.id()).unwrap()
    }

    pub fn grant(&self) -> DmaGrant {
        unsafe { DmaGrant::without_iommu(self.address.id()) }
    }

    pub fn status(&self) -> u8 {
        self.registers.slice().read_obj(COMMON + common::DEVICE_STATUS).unwrap()
    }

    pub fn set_status(&self, status: u8) {
        self.registers.slice().write_obj(status, COMMON + common::DEVICE_STATUS).unwrap();
    }

    /// Brings the device to where queues can be set up.
    pub fn negotiate(&self, virtio: &VirtioPci, windows: &DmaWindows, features: u64) {
        virtio.common.reset(windows, LIMIT).unwrap();
        assert!(virtio.common.set_driver_features(features));
        virtio.common.set_status(3);
        virtio.common.set_status(FEATURES_OK);
        self.forget_queue();
    }

    /// What a device does with its queue registers when it is reset.
    pub fn forget_queue(&self) {
        self.registers.slice().write_obj([0_u8; 0x20], COMMON + common::QUEUE_SIZE).unwrap();
    }

    /// The address in one of the queue registers.
    pub fn told(&self, register: usize) -> u64 {
        self.registers.slice().read_obj(COMMON + register).unwrap()
    }

    /// A word of configuration space, behind the back of whoever looks at reads.
    pub fn config_word(&self, offset: u16) -> u32 {
        self.words.lock()[usize::from(offset) / 4]
    }

    /// What the firmware, or a hypervisor, could do: anything.
    pub fn poke(&self, offset: u16, value: u32) {
        unsafe { ConfigAccess::write(self, self.address, offset, value) }
    }

    /// The capability at `at` as 4.1.4 draws it, with a multiplier of 4.
    pub fn describe(&self, at: u16, [cap_len, kind, bar, offset, length]: [u32; 5]) {
        let header = 0x09 | u32::from(at + 0x14) << 8 | cap_len << 16 | kind << 24;
        for (word, value) in [header, 0xa5a5_a500 | bar, offset, length, 4].into_iter().enumerate() {
            self.poke(at + 4 * word as u16, value);
        }
    }

    /// Bytes that are all different, as far as bytes can be.
    pub fn pattern(&self) {
        for at in (0..BAR_LEN).step_by(2) {
            self.registers.slice().write_obj((at as u16).wrapping_mul(0x6d2b), at).unwrap();
        }
    }

    pub fn at<T: zerocopy::FromBytes + AtomicAccess>(&self, offset: u32) -> T {
        self.registers.slice().read_obj(offset as usize).unwrap()
    }
}

unsafe impl ConfigAccess for Card {
    fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let hook = self.on_read.lock().take();
        if let Some(mut hook) = hook {
            hook(self, offset);
            self.on_read.lock().get_or_insert(hook);
        }
        let there = function == self.address;
        if there { self.words.lock()[usize::from(offset) / 4] } else { u32::MAX }
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        assert_eq!(function, self.address);
        self.written.lock().push((offset, value));
        let words = &mut *self.words.lock();
        let word = &mut words[usize::from(offset) / 4];
        *word = match offset {
            COMMAND => value & 0xffff | *word & 0xffff_0000,
            0x10..0x28 if value == u32::MAX && *word != 0 => {
                !(self.bar_lens.lock()[usize::from(offset - 0x10) / 4] - 1)
            }
            0x10..0x28 if value == u32::MAX => 0,
            _ => value,
        };
        if offset == COMMAND {
            // What does not decode reads as zeros (as QEMU has it), and comes back as it was.
            let decodes = value & MEMORY != 0;
            let mut hidden = self.hidden.lock();
            match (decodes, hidden.take()) {
                (false, None) => {
                    *hidden = Some(self.status());
                    self.set_status(0);
                }
                (true, Some(status)) => self.set_status(status),
                (_, other) => *hidden = other,
            }
        }
    }

    fn last_bus(&self) -> u8 {
        0
    }
}

/// The platform of a card, whose clock calls a hook when it is read: while somebody waits, with no lock held.
pub struct Clock {
    platform: &'static HostPlatform,
    /// Registers that were claimed: where they start, and how many bytes.
    pub claims: Mutex<Vec<(u64, usize)>>,
    pub on_read: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Clock {
    pub fn of(card: &Card) -> &'static Self {
        Box::leak(Box::new(Self {
            platform: card.platform,
            claims: Mutex::default(),
            on_read: Mutex::default(),
        }))
    }
}

unsafe impl Platform for Clock {
    host_does!(platform: dma_allocate, registry);

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        let memory = self.platform.mmio_map(device, start, len)?;
        self.claims.lock().push((start.value(), len));
        Ok(memory)
    }

    fn now(&self) -> Duration {
        let hook = self.on_read.lock().take();
        hook.into_iter().for_each(|mut hook| hook());
        self.platform.now()
    }
}

/// A queue of `size` descriptors.
pub struct Ring {
    pub descriptors: DescriptorTable<Split>,
    pub driver: DmaRegion,
    pub device: DmaRegion,
}

impl Ring {
    pub fn new(windows: &DmaWindows, size: usize) -> Self {
        Self {
            descriptors: DescriptorTable::new(windows, size, 0, Direction::ToDevice).unwrap(),
            driver: windows.allocate_for(4096, Direction::ToDevice).unwrap(),
            device: windows.allocate_for(4096, Direction::FromDevice).unwrap(),
        }
    }

    pub fn addresses(&self) -> QueueAddresses<'_> {
        self.descriptors.queue(self.driver.address(0).unwrap(), self.device.address(0).unwrap()).unwrap()
    }
}

pub const LIMIT: Duration = Duration::from_millis(20);
