//! A virtio device brought up for a ring that is written by hand, for a benchmark's ceiling. Nothing here is
//! checked: it is told addresses as numbers, and its registers are written as they are.

use alloc::vec::Vec;
use core::ptr::NonNull;

use ringfence_drivers::pci::{Bar, Capability, Function};
use ringfence_drivers::virtio::{Error, features, status};
use ringfence_kernel::memory::space;
use ringfence_memory::{
    ConfigSpace, DmaGrant, DmaRegion, DmaWindows, FrameRange, MappedPages, Mmio, PciAddress, PhysAddr,
    VirtAddr, common,
};

/// Types of capabilities (4.1.4).
const COMMON: u8 = 1;
pub const NOTIFY: u8 = 2;

/// The memory BARs of a function, claimed.
pub struct Bars {
    pub function: PciAddress,
    pages: Vec<MappedPages<Mmio>>,
}

impl Bars {
    /// Nobody else has them.
    pub fn claim(function: &Function) -> Self {
        let mut pages = Vec::new();
        for bar in function.bars().into_iter().flatten() {
            let Bar::Memory { address: Some(start), size, .. } = bar else { continue };
            let frames = FrameRange::from_phys_addr(start, size).expect("a BAR is a range");
            // SAFETY: these are a function's registers; that they were offered before is no harm.
            let _ = unsafe { space().offer_mmio(frames) };
            pages.push(space().claim_mmio(frames, None).expect("no other driver has the device"));
        }
        Self { function: function.address(), pages }
    }

    /// Where the register at a physical address is mapped, if it is in one of them.
    pub fn find(&self, address: u64) -> Option<NonNull<u8>> {
        self.pages.iter().find_map(|pages| {
            let offset = address.checked_sub(pages.physical_address().value())?;
            let start = NonNull::new(pages.as_ptr()).filter(|_| offset < pages.size_in_bytes())?;
            // SAFETY: `offset` is below the length of the mapping.
            Some(unsafe { start.add(offset as usize) })
        })
    }
}

/// The physical address of a structure of a virtio device, and its capability (4.1.4).
pub fn structure(function: &Function, kind: u8) -> Option<(u64, Capability)> {
    let config = function.config();
    let mut vendor = function.capabilities().filter(|capability| capability.id == Capability::VENDOR);
    let ([bar, offset], capability) = vendor.find_map(|capability| {
        let word = |at| Some(config.read_u32(capability.field(at)?));
        let found = word(0)?.to_le_bytes()[3] == kind;
        found.then_some(([word(4)? & 0xff, word(8)?], capability))
    })?;
    let Some(Bar::Memory { address: Some(start), .. }) = function.bars()[bar as usize] else { return None };
    Some((start.value() + u64::from(offset), capability))
}

/// Tells a device that a queue has new buffers.
#[derive(Clone, Copy)]
pub struct Bell {
    register: NonNull<u16>,
    queue: u16,
}

impl Bell {
    /// One register write.
    #[inline(always)]
    pub fn ring(&self) {
        // SAFETY: the register is mapped as long as the `Raw` that it is of, which outlives the ring.
        unsafe { self.register.write_volatile(self.queue) }
    }
}

/// A device without a driver; reset when dropped.
pub struct Raw {
    config: ConfigSpace,
    _bars: Bars,
    /// The common configuration structure.
    common: NonNull<u8>,
    notify: NonNull<u8>,
    multiplier: usize,
    windows: DmaWindows,
    features: u64,
}

impl Raw {
    /// Resets the device and accepts what it offers of `wanted`, and VERSION_1. Queues may be set up then.
    /// The windows are the device's; nothing in them is in its hands.
    pub fn start(function: &Function, windows: &DmaWindows, wanted: u64) -> Result<Self, Error> {
        let (bars, config) = (Bars::claim(function), function.config());
        let find = |kind| structure(function, kind).ok_or(Error::MissingCapability(kind));
        let ((common, _), (notify, capability)) = (find(COMMON)?, find(NOTIFY)?);
        let multiplier = capability.field(16).map(|field| config.read_u32(field)).ok_or(Error::BadConfig)?;
        let place = |address| bars.find(address).ok_or(Error::BadConfig);
        let mut raw = Self {
            config,
            common: place(common)?,
            notify: place(notify)?,
            _bars: bars,
            multiplier: multiplier as usize,
            windows: windows.clone(),
            features: 0,
        };
        config.enable_memory();
        config.enable_intx(false);
        raw.reset();
        raw.set(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER);
        // SAFETY: the devices of this machine access only what they are told.
        let grant = unsafe { DmaGrant::without_iommu(config.address().id()) };
        config.enable_bus_master(&grant)?;
        raw.features = raw.negotiate(wanted | features::VERSION_1);
        raw.set(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        Ok(raw)
    }

    fn negotiate(&self, wanted: u64) -> u64 {
        let mut accepted = 0;
        for half in 0..2_u32 {
            self.set(common::DEVICE_FEATURE_SELECT, half);
            let features = self.get::<u32>(common::DEVICE_FEATURE) & (wanted >> (32 * half)) as u32;
            self.set(common::DRIVER_FEATURE_SELECT, half);
            self.set(common::DRIVER_FEATURE, features);
            accepted |= u64::from(features) << (32 * half);
        }
        accepted
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Where to get memory that the device can reach. It must stay until the device is reset: the windows do
    /// not know what the device was told.
    pub fn windows(&self) -> &DmaWindows {
        &self.windows
    }

    /// The largest size of queue `index`; 0 if there is none.
    pub fn queue_size(&self, index: u16) -> u16 {
        self.set(common::QUEUE_SELECT, index);
        self.get(common::QUEUE_SIZE)
    }

    /// Tells the device where a queue's descriptors, driver area and device area are.
    pub fn queue(&self, index: u16, size: u16, parts: [u64; 3]) -> Bell {
        self.set(common::QUEUE_SELECT, index);
        self.set(common::QUEUE_SIZE, size);
        for (offset, address) in (common::QUEUE_DESC..).step_by(8).zip(parts) {
            self.set(offset, address as u32);
            self.set(offset + 4, (address >> 32) as u32);
        }
        self.set(common::QUEUE_ENABLE, 1_u16);
        let offset = usize::from(self.get::<u16>(common::QUEUE_NOTIFY_OFF)) * self.multiplier;
        // SAFETY: the device says that the register is in its structure.
        Bell { register: unsafe { self.notify.add(offset) }.cast(), queue: index }
    }

    /// Tells the device to start.
    pub fn run(&self) {
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.set(common::DEVICE_STATUS, bits);
    }

    fn reset(&self) {
        self.set(common::DEVICE_STATUS, 0_u8);
        while self.get::<u8>(common::DEVICE_STATUS) != 0 {
            core::hint::spin_loop();
        }
    }

    fn get<T>(&self, offset: usize) -> T {
        // SAFETY: the structure is mapped, and each version has these registers, aligned.
        unsafe { self.common.add(offset).cast::<T>().read_volatile() }
    }

    fn set<T>(&self, offset: usize, value: T) {
        // SAFETY: as in `get`. What the device is told of are regions of its own, kept until it is reset.
        unsafe { self.common.add(offset).cast::<T>().write_volatile(value) }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.reset();
        self.config.disable_bus_master();
    }
}

/// The first byte of a region.
pub fn start_of(region: &DmaRegion) -> NonNull<u8> {
    region.as_volatile_slice().as_ptr()
}

/// The number by which a device knows a byte of DMA memory: without an IOMMU, where it is.
pub fn number(byte: NonNull<u8>) -> u64 {
    let address = VirtAddr::from_ptr(byte.as_ptr()).and_then(|address| space().translate(address));
    address.map(PhysAddr::value).expect("it is mapped")
}
