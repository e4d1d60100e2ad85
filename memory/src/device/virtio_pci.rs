//! Where the registers of a virtio device on PCI are (virtio 1.4, 4.1.4), and those that it is notified by.

use core::fmt;
use core::ops::Range;

use super::common_config::{CommonConfig, common};
use super::msix::MsixCapability;
use super::{BAR_COUNT, Bar, Capability, ConfigSpace, MmioError, MmioRegion, MsixTable, Register};
use crate::{Platform, PlatformError};

/// Capability types (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// More than any device needs (QEMU with `page-per-vq`: 8 MiB), and no more than is sensible to map.
const MAX_BAR: u64 = 64 << 20;

/// Why a device's structures cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioPciError {
    /// One of the structures that virtio 1.x demands is missing, malformed, out of its BAR, or lies across
    /// another: the type of its capability (4.1.4).
    MissingCapability(u8),
    /// Registers could not be claimed.
    Platform(PlatformError),
    /// A register does not lie where the device says.
    Mmio(MmioError),
}

crate::error::messages! { VirtioPciError {
    MissingCapability(kind) => "virtio structure {kind} is missing or malformed",
    Platform(error: PlatformError) => "its registers cannot be claimed: {error}",
    Mmio(error: MmioError) => "a register is not where the device says: {error}",
} }

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
    /// Those of a function, in the order of its capabilities.
    fn all(config: &ConfigSpace) -> impl Iterator<Item = Self> {
        let config = *config;
        let vendor = config.capabilities().filter(|capability| capability.id == Capability::VENDOR);
        vendor.filter_map(move |capability| Self::read(&config, capability))
    }

    /// Reads a virtio capability of any kind; `None` if it is too short or in a BAR that is reserved
    /// (4.1.4.1).
    fn read(config: &ConfigSpace, capability: Capability) -> Option<Self> {
        let word = |at| capability.field(at).map(|offset| config.read_u32(offset));
        let [_, _, cap_len, kind] = word(0)?.to_le_bytes();
        let [bar, ..] = word(4)?.to_le_bytes();
        let least = if kind == NOTIFY { 20 } else { 16 };
        if cap_len < least || usize::from(bar) >= BAR_COUNT {
            return None;
        }
        let multiplier = if kind == NOTIFY { word(16)? } else { 0 };
        Some(Self { kind, bar, offset: word(8)?, length: word(12)?, multiplier })
    }

    /// Whether the structure lies in its BAR, is aligned as it must be, and is long enough.
    fn fits(&self, bars: &[Option<Bar>; BAR_COUNT]) -> bool {
        let Some(Some(Bar::Memory { size, .. })) = bars.get(usize::from(self.bar)) else { return false };
        let (align, least) = match self.kind {
            COMMON => (4, common::LEN as u64),
            NOTIFY => (2, 2),
            DEVICE => (4, 1),
            _ => (1, 1),
        };
        let range = self.range();
        self.offset.is_multiple_of(align) && range.end - range.start >= least && range.end <= *size
    }

    fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.length)
    }

    /// Whether some byte is in both.
    fn overlaps(&self, bar: u8, range: &Range<u64>) -> bool {
        self.bar == bar && self.range().start < range.end && range.start < self.range().end
    }
}

/// BARs, each claimed and mapped at most once.
struct Mapped<'a> {
    platform: &'a dyn Platform,
    bars: [Option<Bar>; BAR_COUNT],
    regions: [Option<MmioRegion>; BAR_COUNT],
}

impl Mapped<'_> {
    fn bar(&mut self, index: u8) -> Result<MmioRegion, VirtioPciError> {
        let index = usize::from(index);
        if let Some(Some(region)) = self.regions.get(index) {
            return Ok(region.clone());
        }
        let Some(Some(Bar::Memory { address: Some(start), size, .. })) = self.bars.get(index).copied() else {
            return Err(PlatformError::BadRange.into());
        };
        let region = MmioRegion::map(self.platform, start, size.min(MAX_BAR) as usize)?;
        if let Some(slot) = self.regions.get_mut(index) {
            *slot = Some(region.clone());
        }
        Ok(region)
    }

    fn structure(&mut self, structure: &Structure) -> Result<MmioRegion, VirtioPciError> {
        let (offset, length) = (structure.offset as usize, structure.length as usize);
        Ok(self.bar(structure.bar)?.part(offset, length)?)
    }
}

/// The structures of a virtio device, claimed and mapped.
pub struct VirtioPci {
    /// The common configuration.
    pub common: CommonConfig,
    /// Where queues are notified.
    pub notify: NotifyConfig,
    /// The ISR status: what an interrupt on the line was about. Reading releases the line (4.1.4.5).
    pub isr: Register<u8>,
    /// The device configuration, if there is one.
    pub device: Option<MmioRegion>,
    /// Its interrupt messages, if it has such.
    pub msix: Option<MsixTable>,
}

impl VirtioPci {
    /// Whether a function announces the interface of virtio 1.x.
    pub fn is_modern(config: &ConfigSpace) -> bool {
        Structure::all(config).any(|found| found.kind == COMMON)
    }

    /// Finds and maps the structures: of each kind the first that can be used (4.1.4.1). Nothing is written
    /// to the device except that it answers at its memory BARs and does not raise its interrupt line.
    ///
    /// # Errors
    /// Any: the device was not told of anything.
    pub fn new(platform: &'static dyn Platform, config: ConfigSpace) -> Result<Self, VirtioPciError> {
        let bars = config.bars();
        let find = |kind| Structure::all(&config).find(|found| found.kind == kind && found.fits(&bars));
        let demand = |kind| find(kind).ok_or(VirtioPciError::MissingCapability(kind));
        let (common, notify, isr) = (demand(COMMON)?, demand(NOTIFY)?, demand(ISR)?);
        let (device, msix) = (find(DEVICE), MsixCapability::find(&config));
        // Only numbers of queues and positions go there, but they must not go where addresses are.
        let of_table = |capability: &MsixCapability| notify.overlaps(capability.bar, &capability.table());
        if notify.overlaps(common.bar, &common.range()) || msix.as_ref().is_some_and(of_table) {
            return Err(VirtioPciError::MissingCapability(NOTIFY));
        }

        let mut mapped = Mapped { platform, bars, regions: [const { None }; BAR_COUNT] };
        config.enable_memory();
        config.enable_intx(false);
        let across = |capability: &MsixCapability| common.overlaps(capability.bar, &capability.table());
        let msix = msix.filter(|capability| !across(capability)).and_then(|capability| {
            let bar = mapped.bar(capability.bar).ok()?;
            MsixTable::new(config, capability, &bar).ok()
        });
        let registers = mapped.structure(&common)?;
        Ok(Self {
            common: CommonConfig::new(registers, config, platform)?,
            notify: NotifyConfig { registers: mapped.structure(&notify)?, multiplier: notify.multiplier },
            isr: mapped.structure(&isr)?.register(0)?,
            device: device.map(|device| mapped.structure(&device)).transpose()?,
            msix,
        })
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioPci({:?})", self.common)
    }
}

/// The notification structure (4.1.4.4).
#[derive(Debug)]
pub struct NotifyConfig {
    registers: MmioRegion,
    multiplier: u32,
}

impl NotifyConfig {
    /// What notifies queue `queue`, whose [`QUEUE_NOTIFY_OFF`](common::QUEUE_NOTIFY_OFF) is `offset`;
    /// `with_data` if NOTIFICATION_DATA was accepted.
    ///
    /// # Errors
    /// If the device's register is not in the structure, or not aligned.
    pub fn notifier(&self, queue: u16, offset: u16, with_data: bool) -> Result<Notifier, MmioError> {
        // Two numbers of 16 and 32 bits; `register` checks that the product is in the structure.
        let offset = usize::from(offset).saturating_mul(self.multiplier as usize);
        let register = match with_data {
            true => NotifyRegister::WithData(self.registers.register(offset)?),
            false => NotifyRegister::Queue(self.registers.register(offset)?),
        };
        Ok(Notifier { register, queue })
    }
}

/// The notification register of one queue (4.1.5.2).
#[derive(Debug)]
pub struct Notifier {
    register: NotifyRegister,
    queue: u16,
}

#[derive(Debug)]
enum NotifyRegister {
    Queue(Register<u16>),
    WithData(Register<u32>),
}

impl Notifier {
    /// One register write: the queue's number and, with NOTIFICATION_DATA, `position`. Any context.
    #[inline]
    pub fn notify(&self, position: u16) {
        // SAFETY: no address goes here; `VirtioPci::new` saw that the structure is apart from where addresses
        // are.
        unsafe {
            match &self.register {
                NotifyRegister::Queue(register) => register.write(self.queue),
                NotifyRegister::WithData(register) => {
                    register.write(u32::from(self.queue) | u32::from(position) << 16);
                }
            }
        }
    }
}
