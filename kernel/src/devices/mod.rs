//! Finds the PCI functions, and devices over MMIO, and brings up those that there is a driver for. The others
//! are listed and left alone.

pub mod bus;
pub mod disk;
pub mod mmio;
pub mod nic;
pub mod rng;
pub mod second_look;
pub mod slots;
pub mod status;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::ops::RangeInclusive;

use ringfence_drivers::pci::{self, Bar, Function};
use ringfence_drivers::probe::{Match, probe};
use ringfence_drivers::virtio::{Counters, DeviceType, Error, PciTransport, features};
use ringfence_memory::{ConfigAccess, DeviceId, DmaGrant, DmaWindows, Ecam, FrameRange, PhysAddr};
use ringfence_services::api::{DeviceInfo, QueueInfo};

use crate::acpi;
use crate::boot::pvh;
use crate::devices::bus::BusTransport;
use crate::devices::disk::Disk;
use crate::devices::nic::Nic;
use crate::devices::rng::Entropy;
use crate::devices::slots::Slot;
use crate::executor::Task;
use crate::fw_cfg;
use crate::interrupts::device::{DeviceInterrupts, InterruptStats};
use crate::memory;
use crate::platform::{CONFIG_PORTS, KERNEL};

/// The drivers.
const DRIVERS: &[&dyn Driver] = &[&disk::Disks, &nic::Nics, &rng::Rngs];

/// Queues, or pairs of queues, that a device is given at most.
const MAX_QUEUES: u16 = 16;

/// What brings up the devices of one kind: a line in the table of them.
pub trait Driver: Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// The kind of its devices.
    fn kind(&self) -> DeviceType;

    /// Names of the features that only they have.
    fn feature_names(&self) -> &'static [(u32, &'static str)];

    /// How many of them are brought up at most.
    fn most(&self) -> usize;

    /// Brings a device up. What is to be run, or used by others, is left in `started`.
    ///
    /// # Errors
    /// Whatever kept it from starting; it is listed as not used then.
    fn start(&self, home: &Home, started: &mut Started) -> Result<(InterruptStats, Box<dyn InUse>), Error>;
}

/// A device that a driver has, as far as others see it.
pub trait InUse {
    /// The features in use.
    fn features(&self) -> u64;

    /// The number of descriptors of each queue, and what it has done.
    fn queues(&self) -> Vec<(u16, Counters)>;

    /// Gives the device up in good order: what it keeps back is written, and it is reset, as far as it
    /// answers. Nothing can be asked of it from then on.
    fn leave(&self) -> Task;
}

/// What became of a device.
enum State {
    /// There is no driver for it, or it failed: why.
    Idle(Option<String>),
    InUse {
        driver: &'static dyn Driver,
        interrupts: InterruptStats,
        device: Box<dyn InUse>,
    },
}

struct Device {
    address: String,
    /// Its name for the memory system, if it has one.
    home: Option<DeviceId>,
    /// The bus that it is on, if it is on one.
    bus: Option<u8>,
    id: String,
    name: String,
    state: State,
    /// Whether it was given up in good order.
    has_left: Cell<bool>,
}

/// Where a driver's device is.
pub enum Home {
    /// A function.
    Pci(Function),
    /// A device that the command line names.
    Mmio(mmio::Found),
}

/// All devices that were found.
pub struct Devices(Vec<Device>);

/// What is to be run or used: each disk with its interrupts, the network cards, and a source of entropy.
pub struct Started {
    /// How many request queues a disk, and pairs of queues a network card, shall have.
    queues: u16,
    /// Disks in the order of their addresses.
    pub disks: Vec<(&'static Disk, DeviceInterrupts)>,
    /// Network cards in the order of their addresses.
    pub nics: Vec<Nic>,
    /// If there is one.
    pub entropy: Option<Rc<Entropy>>,
    /// Slots that a device may have to leave.
    pub slots: Vec<Slot>,
}

impl Devices {
    /// Walks configuration space, reads the command line, and brings devices up.
    pub fn start(tables: &acpi::Tables) -> (Self, Started) {
        let access = config_access(tables);
        let queues = wanted_queues();
        let mut started =
            Started { queues, disks: Vec::new(), nics: Vec::new(), entropy: None, slots: Vec::new() };
        let mut functions = pci::enumerate(access, 0);
        // Some 8,000 reads are saved where this is known.
        if let Some(count) = fw_cfg::other_pci_roots() {
            functions = functions.other_roots(count);
        }
        let mut devices = Self(Vec::new());
        functions.for_each(|function| {
            started.slots.extend(Slot::of(access, &function));
            devices.start_function(function, &mut started);
        });
        let found = mmio::find(pvh::command_line());
        found.into_iter().for_each(|found| devices.start_mmio(found, &mut started));
        (devices, started)
    }

    fn start_function(&mut self, function: Function, started: &mut Started) {
        let home = Some(function.address().id());
        let state = match probe(&function) {
            Match::Unknown => State::Idle(None),
            Match::LegacyOnly => State::Idle(Some(Error::LegacyOnly.to_string())),
            Match::Virtio(kind) => self.start_one(kind, &Home::Pci(function), started),
        };
        let (address, name) = (function.address().to_string(), function.name().to_string());
        let id = alloc::format!("{:04x}:{:04x}", function.vendor, function.device);
        let bus = Some(function.address().bus);
        self.0.push(Device { address, home, bus, id, name, state, has_left: Cell::default() });
    }

    fn start_mmio(&mut self, found: Result<mmio::Found, (mmio::Place, Error)>, started: &mut Started) {
        let (place, kind, home, state) = match found {
            Ok(found) => {
                let (place, kind, home) = (found.place, found.kind, Some(found.id()));
                (place, kind, home, self.start_one(kind, &Home::Mmio(found), started))
            }
            Err((place, error)) => (place, DeviceType(0), None, State::Idle(Some(error.to_string()))),
        };
        let (address, id) = (place.to_string(), alloc::format!("virtio:{:04x}", kind.0));
        let name = kind.name().to_string();
        self.0.push(Device { address, home, bus: None, id, name, state, has_left: Cell::default() });
    }

    /// Brings a device of this kind up with the driver for it.
    fn start_one(&self, kind: DeviceType, home: &Home, started: &mut Started) -> State {
        let Some(&driver) = DRIVERS.iter().find(|driver| driver.kind() == kind) else {
            return State::Idle(None);
        };
        let most = driver.most();
        let is_alike = |other: &&Device| other.driver().is_some_and(|driver| driver.kind() == kind);
        if self.0.iter().filter(is_alike).count() >= most {
            return State::Idle(Some(alloc::format!("there are {most} others")));
        }
        match driver.start(home, started) {
            Ok((interrupts, device)) => State::InUse { driver, interrupts, device },
            Err(error) => State::Idle(Some(error.to_string())),
        }
    }

    /// What `/api/devices` shows of the device with this index.
    pub fn info(&self, index: usize) -> Option<DeviceInfo> {
        self.0.get(index).map(Device::info)
    }

    /// Where the device of this name is.
    pub fn address_of(&self, id: DeviceId) -> String {
        let device = self.0.iter().find(|device| device.home == Some(id));
        device.map(|device| device.address.clone()).unwrap_or_default()
    }

    /// Gives all devices, or those on these `buses`, up in good order.
    pub async fn leave(&self, buses: Option<RangeInclusive<u8>>) {
        let is_meant = |device: &&Device| {
            buses.as_ref().is_none_or(|buses| device.bus.is_some_and(|bus| buses.contains(&bus)))
        };
        for device in self.0.iter().filter(is_meant) {
            if let State::InUse { device: in_use, .. } = &device.state
                && !device.has_left.replace(true)
            {
                in_use.leave().await;
                log::info!("{} {} is no longer used", device.address, device.name);
            }
        }
    }

    /// Prints the table of devices.
    pub fn log(&self) {
        for device in &self.0 {
            let info = device.info();
            let state = match &device.state {
                State::Idle(None) => "-".to_string(),
                State::Idle(Some(why)) => alloc::format!("not used: {why}"),
                State::InUse { driver, interrupts, .. } => {
                    let queues: Vec<String> =
                        info.queues.iter().map(|queue| queue.size.to_string()).collect();
                    alloc::format!(
                        "{}, {}, queues of {}, {}",
                        driver.name(),
                        interrupts.name(),
                        queues.join(" + "),
                        info.features.join(" ")
                    )
                }
            };
            log::info!("  {}  {}  {:<22} {state}", info.address, info.id, info.name);
        }
    }
}

impl Device {
    fn driver(&self) -> Option<&'static dyn Driver> {
        match self.state {
            State::InUse { driver, .. } if !self.has_left.get() => Some(driver),
            _ => None,
        }
    }

    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo {
            address: self.address.clone(),
            id: self.id.clone(),
            name: self.name.clone(),
            driver: self.driver().map(|driver| driver.name().to_string()),
            features: Vec::new(),
            queues: Vec::new(),
        };
        if let State::InUse { driver, interrupts, device } = &self.state {
            info.features = features::names(driver.feature_names(), device.features()).collect();
            let queues = device.queues().into_iter().zip(0..).map(|((size, counters), index)| QueueInfo {
                index,
                size,
                vector: interrupts.vector(index),
                in_flight: counters.submitted.wrapping_sub(counters.completions),
                kicks: counters.kicks,
                interrupts: interrupts.count(index),
                completions: counters.completions,
                rejected: counters.rejected,
                given_up: counters.given_up,
            });
            info.queues = queues.collect();
        }
        info
    }
}

impl Home {
    /// The device's name for the memory system.
    pub fn id(&self) -> DeviceId {
        match self {
            Self::Pci(function) => function.address().id(),
            Self::Mmio(found) => found.id(),
        }
    }

    /// Brings the device up, as [`bring_up`] does a function, for somebody who has its windows already.
    ///
    /// # Errors
    /// As for [`bring_up`].
    pub fn bring_up<D>(
        &self,
        windows: &DmaWindows,
        queues: u16,
        new: impl Fn(BusTransport, &DmaGrant, DmaWindows) -> Result<D, Error>,
    ) -> Result<(D, DeviceInterrupts), Error> {
        let found = match self {
            Self::Pci(function) => return bring_up_with(windows, function, queues, new),
            Self::Mmio(found) => found,
        };
        let transport = found.transport()?;
        let interrupts = DeviceInterrupts::mmio(&transport, found.place.line);
        let driver = new(BusTransport::Mmio(transport), &grant(found.id()), windows.clone())?;
        Ok((driver, interrupts))
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(function) => function.address().fmt(f),
            Self::Mmio(found) => found.place.fmt(f),
        }
    }
}

/// Lets a device reach memory.
fn grant(device: DeviceId) -> DmaGrant {
    // SAFETY: without an IOMMU this is the promise that the devices of this machine access only what they
    // were told. Under a hypervisor it is the hypervisor's own.
    unsafe { DmaGrant::without_iommu(device) }
}

/// What the option `opt/org.ringfence/queues` says: how many queues (of a network card: pairs of queues) each
/// device shall have, from 1 to [`MAX_QUEUES`]. As many are used as the device has. Without the option it is
/// 1.
fn wanted_queues() -> u16 {
    let Some(text) = fw_cfg::option("queues") else { return 1 };
    match text.parse() {
        Ok(queues @ 1..=MAX_QUEUES) => queues,
        _ => {
            log::warn!("option queues={text} is ignored: a number from 1 to {MAX_QUEUES} is wanted");
            1
        }
    }
}

/// Memory-mapped configuration space where ACPI names one that can be claimed, else the I/O ports.
pub fn config_access(tables: &acpi::Tables) -> &'static dyn ConfigAccess {
    let ecam = tables.ecam.iter().filter(|ecam| ecam.segment == 0).find_map(|ecam| {
        let buses = u64::from(ecam.last_bus - ecam.first_bus) + 1;
        let start = PhysAddr::new(ecam.base)?.checked_add(u64::from(ecam.first_bus) << 20)?;
        offer(start, buses << 20);
        // SAFETY: the firmware's MCFG table says that configuration space of these buses of the segment is
        // there.
        unsafe { Ecam::new(&KERNEL, start, ecam.segment, ecam.first_bus, ecam.last_bus) }.ok()
    });
    match ecam {
        Some(ecam) => Box::leak(Box::new(ecam)),
        None => &CONFIG_PORTS,
    }
}

/// Puts registers on offer to be claimed. What is RAM, or was offered before, is not.
fn offer(start: PhysAddr, len: u64) {
    if let Ok(frames) = FrameRange::from_phys_addr(start, len) {
        // SAFETY: firmware says that these are the registers of a function or the configuration space, and
        // drivers reach memory through them only by the tokens of `memory`.
        if let Err(error) = unsafe { memory::space().offer_mmio(frames) } {
            log::debug!("{frames:?} is not offered: {error}");
        }
    }
}

/// Brings a device with `queues` queues up with the best interrupts that it has. `new` makes the driver.
///
/// # Errors
/// Whatever kept it from starting; it can be tried again.
pub fn bring_up<D>(
    function: &Function,
    queues: u16,
    new: impl Fn(BusTransport, &DmaGrant, DmaWindows) -> Result<D, Error>,
) -> Result<(D, DeviceInterrupts, DmaWindows), Error> {
    let windows = DmaWindows::new(&KERNEL, function.address().id())?;
    let (driver, interrupts) = bring_up_with(&windows, function, queues, new)?;
    Ok((driver, interrupts, windows))
}

/// The same for somebody who has the device's windows already.
fn bring_up_with<D>(
    windows: &DmaWindows,
    function: &Function,
    queues: u16,
    new: impl Fn(BusTransport, &DmaGrant, DmaWindows) -> Result<D, Error>,
) -> Result<(D, DeviceInterrupts), Error> {
    for bar in function.bars().into_iter().flatten() {
        if let Bar::Memory { address: Some(start), size, .. } = bar {
            offer(start, size);
        }
    }
    let grant = grant(function.address().id());
    let attempt = |line_only| {
        let mut transport = PciTransport::new(&KERNEL, function)?;
        let interrupts = match line_only {
            true => DeviceInterrupts::line(&mut transport, function),
            false => DeviceInterrupts::set_up(&mut transport, function, queues),
        };
        Ok((new(BusTransport::Pci(transport), &grant, windows.clone())?, interrupts))
    };
    match attempt(false) {
        Err(Error::NoVector) => attempt(true),
        result => result,
    }
}
