//! Virtio over PCI, the modern interface (section 4.1). Transitional devices are driven through it too.

use core::time::Duration;

use ringfence_memory::{
    AtomicAccess, ConfigSpace, DeviceId, DmaGrant, DmaWindows, MmioRegion, MsiMessage, Platform, Register,
    ResetTimeout,
};

use super::{DeviceType, Error, Notify, QueueSetup, Transport, features, status};
use crate::pci::{BAR_COUNT, Bar, Capability, Function, MsixCapability, MsixTable};

/// Capability types (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// No vector (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// More than any device needs (QEMU with `page-per-vq`: 8 MiB), and no more than is sensible to map.
const MAX_BAR: u64 = 64 << 20;

/// Offsets in the common configuration structure (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    /// Up to here every version of the structure has it.
    pub const LEN: u32 = 0x38;
    pub const QUEUE_RESET: usize = 0x3a;
}

/// One of the structures that the device's capabilities describe: a part of a BAR.
#[derive(Clone, Copy)]
struct Structure {
    kind: u8,
    bar: u8,
    offset: u32,
    length: u32,
    /// Of the notify structure only.
    multiplier: u32,
}

impl Structure {
    /// Reads a virtio capability; `None` if it is too short or of a kind or in a BAR that is reserved (4.1.4.1).
    fn read(config: ConfigSpace, capability: Capability) -> Option<Self> {
        let word = |at| capability.field(at).map(|offset| config.read_u32(offset));
        let [_, _, cap_len, kind] = word(0)?.to_le_bytes();
        let [bar, ..] = word(4)?.to_le_bytes();
        let least = if kind == NOTIFY { 20 } else { 16 };
        if cap_len < least || usize::from(bar) >= BAR_COUNT || !(COMMON..=DEVICE).contains(&kind) {
            return None;
        }
        let multiplier = if kind == NOTIFY { word(16)? } else { 0 };
        Some(Self { kind, bar, offset: word(8)?, length: word(12)?, multiplier })
    }

    /// Whether the structure lies in its BAR, is aligned as it must be, and is long enough.
    fn fits(&self, bars: &[Option<Bar>; BAR_COUNT]) -> bool {
        let Some(Some(Bar::Memory { size, .. })) = bars.get(usize::from(self.bar)) else { return false };
        let (align, least) = match self.kind {
            COMMON => (4, common::LEN),
            NOTIFY => (2, 2),
            DEVICE => (4, 1),
            _ => (1, 1),
        };
        let end = u64::from(self.offset).checked_add(u64::from(self.length));
        self.offset.is_multiple_of(align) && self.length >= least && end.is_some_and(|end| end <= *size)
    }
}

/// BARs, each claimed and mapped at most once.
struct Mapped<'a> {
    platform: &'a dyn Platform,
    bars: [Option<Bar>; BAR_COUNT],
    regions: [Option<MmioRegion>; BAR_COUNT],
}

impl Mapped<'_> {
    fn bar(&mut self, index: u8) -> Result<MmioRegion, Error> {
        let index = usize::from(index);
        if let Some(Some(region)) = self.regions.get(index) {
            return Ok(region.clone());
        }
        let Some(Some(Bar::Memory { address: Some(start), size, .. })) = self.bars.get(index).copied() else {
            return Err(Error::BadConfig);
        };
        let len = usize::try_from(size.min(MAX_BAR)).map_err(|_| Error::BadConfig)?;
        let region = MmioRegion::map(self.platform, start, len)?;
        if let Some(slot) = self.regions.get_mut(index) {
            *slot = Some(region.clone());
        }
        Ok(region)
    }

    fn structure(&mut self, structure: &Structure) -> Result<MmioRegion, Error> {
        let (offset, length) = (structure.offset as usize, structure.length as usize);
        Ok(self.bar(structure.bar)?.part(offset, length)?)
    }
}

/// A virtio device behind PCI.
#[derive(Debug)]
pub struct PciTransport {
    function: Function,
    kind: DeviceType,
    common: MmioRegion,
    status: Register<u8>,
    notify: MmioRegion,
    notify_multiplier: u32,
    isr: Register<u8>,
    device: Option<MmioRegion>,
    msix: Option<MsixTable>,
    /// Number of MSI-X vectors in use; 0 means the interrupt line.
    vectors: u16,
    /// The features that the driver accepted.
    features: u64,
}

impl PciTransport {
    /// Finds and maps the device's structures. Nothing is written to the device except that it answers at its
    /// memory BARs; its interrupt line is turned off.
    ///
    /// # Errors
    /// [`Error::LegacyOnly`] if none of the structures of virtio 1.x is there: then the device was left alone.
    pub fn new(platform: &dyn Platform, function: &Function) -> Result<Self, Error> {
        let kind = DeviceType::of(function).ok_or(Error::WrongType)?;
        if !is_modern(function) {
            return Err(Error::LegacyOnly);
        }
        let mut mapped = Mapped { platform, bars: function.bars(), regions: [const { None }; BAR_COUNT] };
        // Of each kind the first that can be used (4.1.4.1).
        let find = |kind| structures(function).find(|found| found.kind == kind && found.fits(&mapped.bars));
        let demand = |kind| find(kind).ok_or(Error::MissingCapability(kind));
        let (common, notify, isr) = (demand(COMMON)?, demand(NOTIFY)?, demand(ISR)?);
        let device = find(DEVICE);

        function.enable_memory();
        function.enable_intx(false);
        let msix = match MsixCapability::find(function) {
            Some(capability) => {
                let bar = mapped.bar(capability.table_bar);
                bar.and_then(|bar| Ok(MsixTable::new(function, capability, &bar)?)).ok()
            }
            None => None,
        };
        let common = mapped.structure(&common)?;
        Ok(Self {
            function: *function,
            kind,
            status: common.register(common::DEVICE_STATUS)?,
            common,
            notify: mapped.structure(&notify)?,
            notify_multiplier: notify.multiplier,
            isr: mapped.structure(&isr)?.register(0)?,
            device: device.map(|device| mapped.structure(&device)).transpose()?,
            msix,
            vectors: 0,
            features: 0,
        })
    }

    /// The function behind the transport.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Names the device to the memory system.
    pub fn device_id(&self) -> DeviceId {
        self.function.address().id()
    }

    /// How many MSI-X vectors the device has; 0 if it has no MSI-X.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.as_ref().map_or(0, MsixTable::size)
    }

    /// Uses MSI-X: `messages[0]` for changes of the configuration, `messages[1 + n]` for queue n; the last one
    /// given serves all that are beyond the end. Call it before the driver takes the transport.
    ///
    /// # Errors
    /// [`Error::NoVector`] if `messages` is empty, longer than [`msix_vectors`](Self::msix_vectors), or the
    /// device does not turn MSI-X on. The interrupt line can be used instead.
    pub fn use_msix(&mut self, messages: &[MsiMessage]) -> Result<(), Error> {
        let table = self.msix.as_ref().ok_or(Error::NoVector)?;
        let count = u16::try_from(messages.len()).map_err(|_| Error::NoVector)?;
        if count == 0 || count > table.size() {
            return Err(Error::NoVector);
        }
        for (vector, message) in (0..).zip(messages) {
            table.set(vector, *message)?;
        }
        if !table.enable(true) {
            let _ = table.enable(false);
            return Err(Error::NoVector);
        }
        self.vectors = count;
        Ok(())
    }

    /// Uses the interrupt line. The handler must call [`IsrStatus::acknowledge`] for each interrupt.
    pub fn use_intx(&mut self) -> IsrStatus {
        self.vectors = 0;
        if let Some(table) = &self.msix {
            let _ = table.enable(false);
        }
        self.function.enable_intx(true);
        IsrStatus(self.isr.clone())
    }

    /// The vector of `source` (0 is the configuration, 1 + n queue n), or [`NO_VECTOR`] without MSI-X.
    fn vector(&self, source: u16) -> u16 {
        self.vectors.checked_sub(1).map_or(NO_VECTOR, |last| source.min(last))
    }

    /// Writes a vector to the register at `offset` and reads it back (4.1.5.1.2.2).
    fn set_vector(&self, offset: usize, source: u16) -> Result<(), Error> {
        let vector = self.vector(source);
        if self.msix.is_none() {
            return Ok(());
        }
        self.common.write(offset, vector)?;
        if self.common.read::<u16>(offset)? == vector { Ok(()) } else { Err(Error::NoVector) }
    }

    fn select_queue(&self, index: u16) -> Result<(), Error> {
        if index >= self.common.read::<u16>(common::NUM_QUEUES)? {
            return Err(Error::QueueUnavailable(index));
        }
        Ok(self.common.write(common::QUEUE_SELECT, index)?)
    }

    fn notifier(&self, queue: u16) -> Result<PciNotifier, Error> {
        let offset: u16 = self.common.read(common::QUEUE_NOTIFY_OFF)?;
        // Two numbers of 16 and 32 bits; `register` checks that the sum is in the structure (4.1.4.4).
        let offset = usize::from(offset).saturating_mul(self.notify_multiplier as usize);
        if self.features & features::NOTIFICATION_DATA != 0 {
            return Ok(PciNotifier {
                register: NotifyRegister::WithData(self.notify.register(offset)?),
                queue,
            });
        }
        Ok(PciNotifier { register: NotifyRegister::Queue(self.notify.register(offset)?), queue })
    }
}

/// The function's virtio structures, in the order of its capabilities.
fn structures(function: &Function) -> impl Iterator<Item = Structure> {
    let config = function.config();
    let vendor = function.capabilities().filter(|capability| capability.id == Capability::VENDOR);
    vendor.filter_map(move |capability| Structure::read(config, capability))
}

/// Whether a virtio function announces the interface of virtio 1.x. One that does not is legacy-only.
pub(crate) fn is_modern(function: &Function) -> bool {
    structures(function).any(|found| found.kind == COMMON)
}

impl Transport for PciTransport {
    type Notifier = PciNotifier;

    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn status(&self) -> u8 {
        self.status.read()
    }

    fn set_status(&mut self, status: u8) {
        self.status.write(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<(), ResetTimeout> {
        windows.reset_device(&self.status, limit)
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        self.function.config().enable_bus_master(grant)?;
        self.set_vector(common::CONFIG_MSIX_VECTOR, 0)
    }

    fn stop(&mut self) {
        self.function.config().disable_bus_master();
        self.function.enable_intx(false);
        if let Some(table) = &self.msix {
            let _ = table.enable(false);
        }
    }

    fn device_features(&mut self) -> u64 {
        let half = |select: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, select)?;
            self.common.read::<u32>(common::DEVICE_FEATURE)
        };
        // The structure is long enough, so this cannot fail; no features would be a safe answer.
        let (low, high) = (half(0).unwrap_or(0), half(1).unwrap_or(0));
        u64::from(high) << 32 | u64::from(low)
    }

    fn set_driver_features(&mut self, features: u64) {
        self.features = features;
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            let _ = self.common.write::<u32>(common::DRIVER_FEATURE_SELECT, select);
            let _ = self.common.write(common::DRIVER_FEATURE, half);
        }
    }

    fn config_generation(&self) -> u8 {
        self.common.read(common::CONFIG_GENERATION).unwrap_or(status::GONE)
    }

    fn read_config<V: AtomicAccess>(&self, offset: usize) -> Result<V, Error> {
        Ok(self.device.as_ref().ok_or(Error::MissingCapability(DEVICE))?.read(offset)?)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.select_queue(index).and_then(|()| Ok(self.common.read(common::QUEUE_SIZE)?)).unwrap_or(0)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup) -> Result<PciNotifier, Error> {
        let index = queue.index;
        self.select_queue(index)?;
        let common = &self.common;
        if common.read::<u16>(common::QUEUE_ENABLE)? != 0 {
            return Err(Error::QueueUnavailable(index));
        }
        common.write(common::QUEUE_SIZE, queue.size)?;
        let rings = [
            (common::QUEUE_DESC, queue.descriptors),
            (common::QUEUE_DRIVER, queue.driver),
            (common::QUEUE_DEVICE, queue.device),
        ];
        for (offset, address) in rings {
            common.write_dma_addr(offset, windows, address)?;
        }
        self.set_vector(common::QUEUE_MSIX_VECTOR, index.saturating_add(1))?;
        let notifier = self.notifier(index)?;
        if common.read::<u16>(common::QUEUE_SIZE)? != queue.size {
            return Err(Error::QueueRefused(index));
        }
        common.write(common::QUEUE_ENABLE, 1_u16)?;
        if common.read::<u16>(common::QUEUE_ENABLE)? != 1 {
            return Err(Error::QueueRefused(index));
        }
        Ok(notifier)
    }

    fn reset_queue(&mut self, windows: &DmaWindows, index: u16, limit: Duration) -> Result<(), Error> {
        self.select_queue(index)?;
        self.common.write(common::QUEUE_RESET, 1_u16)?;
        let start = windows.now();
        // It reads 1 until the reset is done, and the queue is disabled then (4.1.4.3.1).
        while self.common.read::<u16>(common::QUEUE_RESET)? != 0
            || self.common.read::<u16>(common::QUEUE_ENABLE)? != 0
        {
            if windows.now().saturating_sub(start) > limit {
                return Err(Error::Timeout);
            }
            core::hint::spin_loop();
        }
        Ok(())
    }
}

/// The notification register of one queue (4.1.5.2).
#[derive(Debug)]
pub struct PciNotifier {
    register: NotifyRegister,
    queue: u16,
}

#[derive(Debug)]
enum NotifyRegister {
    Queue(Register<u16>),
    WithData(Register<u32>),
}

impl Notify for PciNotifier {
    fn notify(&self, position: u16) {
        match &self.register {
            NotifyRegister::Queue(register) => register.write(self.queue),
            NotifyRegister::WithData(register) => {
                register.write(u32::from(self.queue) | u32::from(position) << 16);
            }
        }
    }
}

/// The ISR status register: what an interrupt on the line was about (4.1.4.5).
#[derive(Clone, Debug)]
pub struct IsrStatus(Register<u8>);

/// What the device wanted with an interrupt. Neither means that another device shares the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptStatus {
    /// A queue may have completions.
    pub queue: bool,
    /// The configuration or the device status changed.
    pub config: bool,
}

impl IsrStatus {
    /// Reads the register, which also releases the line. An unplugged device reads as all ones: then both are set.
    pub fn acknowledge(&self) -> InterruptStatus {
        let bits = self.0.read();
        InterruptStatus { queue: bits & 1 != 0, config: bits & 2 != 0 }
    }
}
