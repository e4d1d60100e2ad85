//! Finds the PCI functions, and devices over MMIO, and brings up those that there is a driver for. The others
//! are listed and left alone.

pub mod bus;
pub mod disk;
pub mod mmio;
pub mod nic;
pub mod second_look;
pub mod status;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use ringfence_drivers::block::{self, Block};
use ringfence_drivers::net::{self, Net, Phy};
use ringfence_drivers::pci::{self, Bar, Function};
use ringfence_drivers::probe::{Driver, Match, probe};
use ringfence_drivers::virtio::{DeviceType, Error, PciTransport, features};
use ringfence_memory::{ConfigAccess, DeviceId, DmaGrant, DmaWindows, Ecam, FrameRange, PhysAddr};
use ringfence_services::api::{DeviceInfo, QueueInfo};

use crate::acpi;
use crate::boot::pvh;
use crate::devices::bus::BusTransport;
use crate::devices::disk::Disk;
use crate::devices::nic::{Nic, Shared};
use crate::fw_cfg;
use crate::interrupts::device::{DeviceInterrupts, InterruptStats};
use crate::memory;
use crate::platform::{CONFIG_PORTS, KERNEL};

/// Disks, and network cards, that are brought up at most.
const MAX_DISKS: usize = 32;
const MAX_NICS: usize = 4;
/// Queues, or pairs of queues, that a device is given at most.
const MAX_QUEUES: u16 = 16;

/// How a disk is driven, unless more queues are wished: as many requests at once as have all their
/// descriptors in the ring, since a table for each takes the device longer.
const DISK: block::Options =
    block::Options { queues: 1, queue_size: 256, depth: 64, features: features::QUEUES };
/// How a network card is driven, unless more pairs of queues are wished.
const CARD: net::Options = net::Options { pairs: 1, queue_size: 256, features: features::QUEUES };

/// What became of a device.
enum State {
    /// There is no driver for it, or it failed: why.
    Idle(Option<String>),
    Disk(&'static Disk),
    Nic(NicState),
}

struct NicState {
    shared: Rc<Shared>,
    features: u64,
}

struct Device {
    address: String,
    id: String,
    name: String,
    /// If it is in use.
    interrupts: Option<InterruptStats>,
    state: State,
}

/// Where a driver's device is.
enum Home {
    Pci(Function),
    Mmio(mmio::Found),
}

/// All devices that were found.
pub struct Devices(Vec<Device>);

/// What is to be run: each disk with its interrupts, and the network cards.
pub struct Started {
    /// How many request queues a disk, and pairs of queues a network card, shall have.
    queues: u16,
    /// Disks in the order of their addresses.
    pub disks: Vec<(&'static Disk, DeviceInterrupts)>,
    /// Network cards in the order of their addresses.
    pub nics: Vec<Nic>,
}

impl Devices {
    /// Walks configuration space, reads the command line, and brings devices up.
    pub fn start(tables: &acpi::Tables) -> (Self, Started) {
        let access = config_access(tables);
        let mut started = Started { queues: wanted_queues(), disks: Vec::new(), nics: Vec::new() };
        let mut functions = pci::enumerate(access, 0);
        // Some 8,000 reads are saved where this is known.
        if let Some(count) = fw_cfg::other_pci_roots() {
            functions = functions.other_roots(count);
        }
        let mut devices: Vec<_> = functions.map(|function| Device::start(function, &mut started)).collect();
        let found = mmio::find(pvh::command_line());
        devices.extend(found.into_iter().map(|found| Device::start_mmio(found, &mut started)));
        (Self(devices), started)
    }

    /// What `/api/devices` shows of the device with this index.
    pub fn info(&self, index: usize) -> Option<DeviceInfo> {
        self.0.get(index).map(Device::info)
    }

    /// Prints the table of devices.
    pub fn log(&self) {
        for device in &self.0 {
            let info = device.info();
            let state = match &device.state {
                State::Idle(None) => "-".to_string(),
                State::Idle(Some(why)) => alloc::format!("not used: {why}"),
                _ => {
                    let queues: Vec<String> =
                        info.queues.iter().map(|queue| queue.size.to_string()).collect();
                    alloc::format!(
                        "{}, {}, queues of {}, {}",
                        info.driver.as_deref().unwrap_or("-"),
                        device.interrupts.as_ref().map_or("-", InterruptStats::name),
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
    fn start(function: Function, started: &mut Started) -> Self {
        let (interrupts, state) = match probe(&function) {
            Match::Unknown => (None, State::Idle(None)),
            Match::LegacyOnly => (None, State::Idle(Some(Error::LegacyOnly.to_string()))),
            Match::Driver(driver) => State::start(driver, &Home::Pci(function), started),
        };
        let (address, name) = (function.address().to_string(), function.name().to_string());
        let id = alloc::format!("{:04x}:{:04x}", function.vendor, function.device);
        Self { address, id, name, interrupts, state }
    }

    fn start_mmio(found: Result<mmio::Found, (mmio::Place, Error)>, started: &mut Started) -> Self {
        let (place, kind, (interrupts, state)) = match found {
            Ok(found) => {
                let (place, kind) = (found.place, found.kind);
                let state = match kind {
                    DeviceType::BLOCK => State::start(Driver::Block, &Home::Mmio(found), started),
                    DeviceType::NET => State::start(Driver::Net, &Home::Mmio(found), started),
                    _ => (None, State::Idle(None)),
                };
                (place, kind, state)
            }
            Err((place, error)) => (place, DeviceType(0), (None, State::Idle(Some(error.to_string())))),
        };
        let (address, id) = (place.to_string(), alloc::format!("virtio:{:04x}", kind.0));
        Self { address, id, name: kind.name().to_string(), interrupts, state }
    }

    fn info(&self) -> DeviceInfo {
        let (driver, names, bits, queues) = match &self.state {
            State::Idle(_) => (None, &[][..], 0, Vec::new()),
            State::Disk(disk) => {
                let queues = disk.queues().iter().map(|queue| (queue.queue_size(), queue.counters()));
                (Some(Driver::Block), block::features::NAMES, disk.features(), queues.collect())
            }
            State::Nic(nic) => {
                let queues = nic.shared.sizes.iter().enumerate();
                let queues = queues.map(|(index, &size)| (size, nic.shared.counters(index)));
                (Some(Driver::Net), net::features::NAMES, nic.features, queues.collect())
            }
        };
        let queues = queues.into_iter().zip(0..).map(|((size, counters), index)| QueueInfo {
            index,
            size,
            vector: self.interrupts.as_ref().and_then(|interrupts| interrupts.vector(index)),
            kicks: counters.kicks,
            interrupts: self.interrupts.as_ref().map_or(0, |interrupts| interrupts.count(index)),
            completions: counters.completions,
            rejected: counters.rejected,
        });
        DeviceInfo {
            address: self.address.clone(),
            id: self.id.clone(),
            name: self.name.clone(),
            driver: driver.map(|driver| driver.name().to_string()),
            features: features::names(names, bits).collect(),
            queues: queues.collect(),
        }
    }
}

impl State {
    /// Brings a device up with `driver`; says how it calls, too.
    fn start(driver: Driver, home: &Home, started: &mut Started) -> (Option<InterruptStats>, Self) {
        let (others, most) = match driver {
            Driver::Block => (started.disks.len(), MAX_DISKS),
            Driver::Net => (started.nics.len(), MAX_NICS),
        };
        if others == most {
            return (None, Self::Idle(Some(alloc::format!("there are {most} others"))));
        }
        let up = match driver {
            Driver::Block => start_disk(home, started),
            Driver::Net => start_nic(home, started),
        };
        up.unwrap_or_else(|error| (None, Self::Idle(Some(error.to_string()))))
    }
}

impl Home {
    fn id(&self) -> DeviceId {
        match self {
            Self::Pci(function) => function.address().id(),
            Self::Mmio(found) => found.id(),
        }
    }

    /// Brings the device up, as [`bring_up`] does a function.
    fn bring_up<D>(
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

    fn open_disk(
        &self,
        windows: &DmaWindows,
        queues: u16,
    ) -> Result<(Block<BusTransport>, DeviceInterrupts), Error> {
        let options = block::Options { queues, ..DISK };
        self.bring_up(windows, queues, |transport, grant, windows| {
            Block::with_options(transport, grant, windows, &options)
        })
    }

    /// Each pair has two queues.
    fn open_card(&self, pairs: u16) -> Result<(Net<BusTransport>, DeviceInterrupts), Error> {
        let options = net::Options { pairs, ..CARD };
        let windows = DmaWindows::new(&KERNEL, self.id())?;
        self.bring_up(&windows, 2 * pairs, |transport, grant, windows| {
            Net::with_options(transport, grant, windows, &options)
        })
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
///
/// # Errors
/// As for [`bring_up`].
pub fn bring_up_with<D>(
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

/// Brings a disk up with at most `queues` queues, as all disks here, and as what is measured.
///
/// # Errors
/// As for [`bring_up`].
pub fn open_disk(
    windows: &DmaWindows,
    function: &Function,
    queues: u16,
) -> Result<(Block<BusTransport>, DeviceInterrupts), Error> {
    Home::Pci(*function).open_disk(windows, queues)
}

/// Brings a network card up with at most `pairs` pairs of queues, as all cards here, and as what is measured.
///
/// # Errors
/// As for [`bring_up`].
pub fn open_card(function: &Function, pairs: u16) -> Result<(Net<BusTransport>, DeviceInterrupts), Error> {
    Home::Pci(*function).open_card(pairs)
}

fn start_disk(home: &Home, started: &mut Started) -> Result<(Option<InterruptStats>, State), Error> {
    let windows = DmaWindows::new(&KERNEL, home.id())?;
    let (block, interrupts) = home.open_disk(&windows, started.queues)?;
    let (stats, disk) = (interrupts.stats(), Disk::new(block, windows, home)?);
    started.disks.push((disk, interrupts));
    Ok((Some(stats), State::Disk(disk)))
}

fn start_nic(home: &Home, started: &mut Started) -> Result<(Option<InterruptStats>, State), Error> {
    let (net, interrupts) = home.open_card(started.queues)?;
    let (stats, features) = (interrupts.stats(), net.features());
    let nic = Nic::new(Phy::new(net), interrupts);
    let shared = nic.shared();
    started.nics.push(nic);
    Ok((Some(stats), State::Nic(NicState { shared, features })))
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(function) => function.address().fmt(f),
            Self::Mmio(found) => found.place.fmt(f),
        }
    }
}
