//! Where the registers of a virtio device on PCI are (virtio 1.4, 4.1.4), and those that it is notified by.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::common_config::{CommonConfig, common};
use super::msix::MsixCapability;
use super::{BAR_COUNT, Bar, Capability, ConfigSpace, MmioError, MmioRegion, MsixTable, Register};
use crate::{DeviceId, PAGE_SIZE, PhysAddr, Platform, PlatformError};

/// Capability types (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

const PAGE: u64 = PAGE_SIZE as u64;

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

    /// What is used of it: as far as the specification knows it and its BAR goes, whatever the capability
    /// says beyond that (4.1.4.1). `None` if it is not aligned as it must be, or too short.
    fn part(&self, bars: &Bars) -> Option<Part> {
        let (align, least, known) = match self.kind {
            COMMON => (4, common::LEN as u64, common::KNOWN_LEN as u64),
            NOTIFY => (2, 2, u64::MAX),
            DEVICE => (4, 1, PAGE),
            _ => (1, 1, 1),
        };
        let Some(Some(Bar::Memory { size, .. })) = bars.get(usize::from(self.bar)) else { return None };
        let start = u64::from(self.offset);
        let end = (start + u64::from(self.length).min(known)).min(*size);
        let fits = self.offset.is_multiple_of(align) && end.saturating_sub(start) >= least;
        fits.then_some(Part { bar: self.bar, range: start..end })
    }
}

type Bars = [Option<Bar>; BAR_COUNT];

/// Bytes of a BAR.
#[derive(Clone)]
struct Part {
    bar: u8,
    range: Range<u64>,
}

impl Part {
    /// Whether some byte is in both.
    fn overlaps(&self, other: &Self) -> bool {
        self.bar == other.bar && self.range.start < other.range.end && other.range.start < self.range.end
    }

    /// Becomes both, and what is between them, if that is nothing.
    fn absorbs(&mut self, other: &Self) -> bool {
        let (range, with) = (&mut self.range, &other.range);
        let touches = self.bar == other.bar && range.start <= with.end && with.start <= range.end;
        if touches {
            *range = range.start.min(with.start)..range.end.max(with.end);
        }
        touches
    }

    fn holds(&self, other: &Self) -> bool {
        self.bar == other.bar && self.range.start <= other.range.start && other.range.end <= self.range.end
    }
}

/// Whole pages of BARs, no two of which overlap. Each run of them is claimed when it is first used.
struct Mapped {
    platform: &'static dyn Platform,
    device: DeviceId,
    bars: Bars,
    runs: Vec<(Part, Option<MmioRegion>)>,
}

impl Mapped {
    /// `parts` that lie in the same page, or side by side, are in one run.
    fn new(
        platform: &'static dyn Platform,
        device: DeviceId,
        bars: Bars,
        parts: &[Option<Part>],
    ) -> Result<Self, VirtioPciError> {
        let mut mapped = Self { platform, device, bars, runs: Vec::new() };
        for part in parts.iter().flatten() {
            mapped.add(mapped.pages(part)?)?;
        }
        Ok(mapped)
    }

    /// One run with those that it touches and that were not used yet. Those that nobody uses any more are
    /// given back first: a device may have a doorbell in a page of its own for each queue, and another one
    /// after each reset of that.
    fn add(&mut self, mut pages: Part) -> Result<(), VirtioPciError> {
        self.runs.retain(|(run, region)| match region {
            Some(region) => region.is_shared(),
            None => !pages.absorbs(run),
        });
        self.runs.try_reserve(1).map_err(|_| PlatformError::OutOfMemory)?;
        self.runs.push((pages, None));
        Ok(())
    }

    /// Where a memory BAR is, and its size.
    fn bar(&self, index: u8) -> Result<(PhysAddr, u64), PlatformError> {
        match self.bars.get(usize::from(index)) {
            Some(Some(Bar::Memory { address: Some(start), size, .. })) => Ok((*start, *size)),
            _ => Err(PlatformError::BadRange),
        }
    }

    /// The pages that `part` lies in, as far as the BAR goes.
    fn pages(&self, part: &Part) -> Result<Part, PlatformError> {
        let (_, size) = self.bar(part.bar)?;
        let range = part.range.start / PAGE * PAGE..part.range.end.next_multiple_of(PAGE).min(size);
        Ok(Part { range, ..*part })
    }

    /// The registers of `part`, which is in the pages of those that [`new`](Self::new) was given, or in one
    /// page of its own.
    fn region(&mut self, part: &Part) -> Result<MmioRegion, VirtioPciError> {
        let (bar, _) = self.bar(part.bar)?;
        if !self.runs.iter().any(|(run, _)| run.holds(part)) {
            self.add(self.pages(part)?)?;
        }
        let run = self.runs.iter_mut().find(|(run, _)| run.holds(part));
        let (Part { range, .. }, region) = run.ok_or(PlatformError::BadRange)?;
        if region.is_none() {
            let start = bar.checked_add(range.start).ok_or(PlatformError::BadRange)?;
            let len = (range.end - range.start) as usize;
            *region = Some(MmioRegion::map(self.platform, Some(self.device), start, len)?);
        }
        let offset = part.range.start - range.start;
        let region = region.as_ref().ok_or(PlatformError::BadRange)?;
        Ok(region.part(offset as usize, (part.range.end - part.range.start) as usize)?)
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

    /// Finds and maps the structures: of each kind the first that can be used (4.1.4.1), and of it only the
    /// pages that are. Nothing is written to the device except that it answers at its memory BARs and does
    /// not raise its interrupt line.
    ///
    /// # Errors
    /// Any: the device was not told of anything.
    // What is as large as this is smaller to make in place than in the registers of a caller.
    #[inline(never)]
    pub fn new(platform: &'static dyn Platform, config: ConfigSpace) -> Result<Self, VirtioPciError> {
        let bars = config.bars();
        let find = |kind| {
            let mut of_kind = Structure::all(&config).filter(|found| found.kind == kind);
            of_kind.find_map(|found| Some((found.part(&bars)?, found.multiplier)))
        };
        let demand = |kind| find(kind).ok_or(VirtioPciError::MissingCapability(kind));
        let ((common, _), (notify, multiplier), (isr, _)) = (demand(COMMON)?, demand(NOTIFY)?, demand(ISR)?);
        let device = find(DEVICE).map(|(part, _)| part);
        let capability = MsixCapability::find(&config);
        let msix = capability.map(|found| (Part { bar: found.bar, range: found.table() }, found));
        // Only numbers of queues and positions go there, but they must not go where addresses are.
        let addresses = [Some(&common), msix.as_ref().map(|(table, _)| table)];
        if addresses.into_iter().flatten().any(|part| notify.overlaps(part)) {
            return Err(VirtioPciError::MissingCapability(NOTIFY));
        }
        let usable = |table: &Part| match bars.get(usize::from(table.bar)) {
            Some(Some(Bar::Memory { address: Some(_), size, .. })) => {
                table.range.end <= *size && !common.overlaps(table)
            }
            _ => false,
        };
        let msix = msix.filter(|(table, _)| usable(table));

        let table = msix.as_ref().map(|(table, _)| table.clone());
        let parts = [Some(common.clone()), Some(isr.clone()), device.clone(), table];
        let mut mapped = Mapped::new(platform, config.address().id(), bars, &parts)?;
        config.enable_memory();
        config.enable_intx(false);
        let msix = msix.and_then(|(table, found)| {
            let table = mapped.region(&table).ok()?;
            MsixTable::new(config, found, table).ok()
        });
        if msix.is_none()
            && let Some(capability) = capability
        {
            // Whatever firmware left in a table that is not used is sent nowhere.
            capability.turn_off(&config);
        }
        Ok(Self {
            common: CommonConfig::new(mapped.region(&common)?, config, platform)?,
            isr: mapped.region(&isr)?.register(0)?,
            device: device.map(|device| mapped.region(&device)).transpose()?,
            notify: NotifyConfig { mapped, part: notify, multiplier },
            msix,
        })
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioPci({:?})", self.common)
    }
}

/// The notification structure (4.1.4.4), which is mapped where queues have their registers.
pub struct NotifyConfig {
    mapped: Mapped,
    part: Part,
    multiplier: u32,
}

impl NotifyConfig {
    /// What notifies queue `queue`, whose [`QUEUE_NOTIFY_OFF`](common::QUEUE_NOTIFY_OFF) is `offset`;
    /// `with_data` if NOTIFICATION_DATA was accepted.
    ///
    /// # Errors
    /// If the device's register is not in the structure, not aligned, or cannot be claimed.
    pub fn notifier(&mut self, queue: u16, offset: u16, with_data: bool) -> Result<Notifier, VirtioPciError> {
        let len = if with_data { 4 } else { 2 };
        // Numbers of 32, 16 and 32 bits.
        let start = self.part.range.start + u64::from(offset) * u64::from(self.multiplier);
        if start + len > self.part.range.end {
            return Err(MmioError::OutOfBounds.into());
        }
        if !start.is_multiple_of(len) {
            return Err(MmioError::Misaligned.into());
        }
        // Aligned, so in one page.
        let region = self.mapped.region(&Part { range: start..start + len, ..self.part })?;
        let register = match with_data {
            true => NotifyRegister::WithData(region.register(0)?),
            false => NotifyRegister::Queue(region.register(0)?),
        };
        Ok(Notifier { register, queue })
    }
}

impl fmt::Debug for NotifyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part: Part { bar, range }, multiplier, .. } = self;
        write!(f, "NotifyConfig({range:#x?} of BAR {bar}, multiplier {multiplier})")
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
