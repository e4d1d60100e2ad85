//! PCI functions: finding them and naming them. What is written to their configuration space is in
//! [`ConfigSpace`], since it decides what memory they touch.

use core::fmt;

use ringfence_memory::{ConfigAccess, ConfigSpace, PciAddress};

pub use ringfence_memory::{BAR_COUNT, Bar, Capability};

const VENDOR: u16 = 0x00;
const DEVICE: u16 = 0x02;
const REVISION: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
const SECONDARY_BUS: u16 = 0x19;
const SUBSYSTEM_VENDOR: u16 = 0x2c;
const SUBSYSTEM: u16 = 0x2e;
const INTERRUPT_LINE: u16 = 0x3c;
const INTERRUPT_PIN: u16 = 0x3d;

const MULTIFUNCTION: u8 = 1 << 7;
/// What a vendor id reads as where there is no function.
const NOBODY: u16 = 0xffff;

/// What a function's configuration space describes (PCI 3.0, 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An ordinary device.
    Device,
    /// A bridge to the bus with this number.
    Bridge(u8),
    /// A CardBus bridge, or something unknown.
    Other,
}

/// One PCI function, with the read-only part of its header.
#[derive(Clone, Copy)]
pub struct Function {
    config: ConfigSpace,
    /// Who made it.
    pub vendor: u16,
    /// What it is, among the vendor's devices.
    pub device: u16,
    /// Who made the board; 0 for a bridge.
    pub subsystem_vendor: u16,
    /// Which board; 0 for a bridge.
    pub subsystem: u16,
    /// Base class, subclass and programming interface, from high to low.
    pub class: [u8; 3],
    /// Revision.
    pub revision: u8,
    /// Kind of header.
    pub header: Header,
    multifunction: bool,
}

impl Function {
    /// The function at `config`, or `None` if nobody answers.
    pub fn read(config: ConfigSpace) -> Option<Self> {
        let vendor = config.read_u16(VENDOR);
        if vendor == NOBODY {
            return None;
        }
        let [revision, interface, subclass, base] = config.read_u32(REVISION).to_le_bytes();
        let header_type = config.read_u8(HEADER_TYPE);
        let header = match header_type & !MULTIFUNCTION {
            0 => Header::Device,
            1 => Header::Bridge(config.read_u8(SECONDARY_BUS)),
            _ => Header::Other,
        };
        let board = |offset| if header == Header::Device { config.read_u16(offset) } else { 0 };
        Some(Self {
            config,
            vendor,
            device: config.read_u16(DEVICE),
            subsystem_vendor: board(SUBSYSTEM_VENDOR),
            subsystem: board(SUBSYSTEM),
            class: [base, subclass, interface],
            revision,
            header,
            multifunction: header_type & MULTIFUNCTION != 0,
        })
    }

    /// Its configuration space.
    pub fn config(&self) -> ConfigSpace {
        self.config
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.config.address()
    }

    /// Its base address registers: see [`ConfigSpace::bars`].
    pub fn bars(&self) -> [Option<Bar>; BAR_COUNT] {
        self.config.bars()
    }

    /// Walks its capability list.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> + use<> {
        self.config.capabilities()
    }

    /// The input of the interrupt controller that firmware says the function's line is wired to, and the pin
    /// (1 = INTA#). `None` if it has no line or firmware does not know (PCI 3.0, 6.2.4).
    pub fn interrupt_line(&self) -> Option<(u8, u8)> {
        let (line, pin) = (self.config.read_u8(INTERRUPT_LINE), self.config.read_u8(INTERRUPT_PIN));
        (matches!(pin, 1..=4) && line != 0xff).then_some((line, pin))
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{:04x}:{:04x}] {}", self.address(), self.vendor, self.device, self.name())
    }
}

/// Walks all buses of `segment`, each once: those that bridges lead to from bus 0, then each other root bus
/// with all that bridges lead to from there. Bridges must have been numbered by firmware.
///
/// Root buses are looked for where no bridge leads to, with a read for each of 32 devices of a bus, unless
/// [`Functions::other_roots`] says how many there are. A bus that cannot be
/// [opened](ConfigAccess::open_bus) is passed over as if it were empty.
pub fn enumerate(access: &'static dyn ConfigAccess, segment: u16) -> Functions {
    let (seen, waiting) = ([1, 0, 0, 0], [0; 4]);
    Functions { access, segment, seen, waiting, bus: 0, next: 0, other_roots: usize::MAX, unprobed: 0 }
}

/// Iterator over the functions of a segment: see [`enumerate`].
#[derive(Clone)]
pub struct Functions {
    access: &'static dyn ConfigAccess,
    segment: u16,
    /// One bit for each bus that was ever found.
    seen: [u64; 4],
    /// One bit for each bus still to be walked.
    waiting: [u64; 4],
    bus: u8,
    /// Device and function to look at next, packed; [`FUNCTIONS_PER_BUS`] when the bus is done.
    next: u16,
    /// How many root buses are still to be found.
    other_roots: usize,
    /// The first bus that may be one of them.
    unprobed: u16,
}

const FUNCTIONS_PER_BUS: u16 = 256;
const FUNCTIONS_PER_DEVICE: u16 = 8;
const DEVICES_PER_BUS: u8 = 32;

impl Functions {
    /// Looks for `count` root buses besides bus 0, where firmware or a hypervisor says how many there are,
    /// and no longer.
    pub fn other_roots(self, count: usize) -> Self {
        Self { other_roots: count, ..self }
    }

    fn add_bus(&mut self, bus: u8) {
        let (word, bit) = (usize::from(bus >> 6), 1_u64 << (bus & 63));
        let (Some(seen), Some(waiting)) = (self.seen.get_mut(word), self.waiting.get_mut(word)) else {
            return;
        };
        if *seen & bit == 0 {
            *seen |= bit;
            *waiting |= bit;
        }
    }

    /// The next bus to walk that was found and not walked yet, opened.
    fn take_bus(&mut self) -> Option<u8> {
        let bus = (0..=self.access.last_bus()).find(|&bus| has(&self.waiting, bus))?;
        if let Some(word) = self.waiting.get_mut(usize::from(bus >> 6)) {
            *word &= !(1 << (bus & 63));
        }
        self.access.open_bus(self.segment, bus);
        Some(bus)
    }

    /// Finds the next bus that no bridge led to and where a device answers: a root bus. That ACPI lists the
    /// host bridges is of no use here, as their bus numbers are in AML.
    fn find_root(&mut self) -> bool {
        if self.other_roots == 0 {
            return false;
        }
        let unprobed = self.unprobed..=self.access.last_bus().into();
        let found = unprobed.map(|bus| bus as u8).find(|&bus| {
            !has(&self.seen, bus) && {
                self.access.open_bus(self.segment, bus);
                (0..DEVICES_PER_BUS).any(|device| self.function(bus, device, 0).is_some())
            }
        });
        let Some(root) = found else { return false };
        self.other_roots = self.other_roots.saturating_sub(1);
        self.unprobed = u16::from(root).saturating_add(1);
        self.add_bus(root);
        true
    }

    /// The configuration space of a function, if one answers.
    fn function(&self, bus: u8, device: u8, number: u8) -> Option<ConfigSpace> {
        let address = PciAddress::new(self.segment, bus, device, number)?;
        let config = ConfigSpace::new(self.access, address);
        (config.read_u16(VENDOR) != NOBODY).then_some(config)
    }
}

fn has(buses: &[u64; 4], bus: u8) -> bool {
    buses.get(usize::from(bus >> 6)).is_some_and(|word| word & 1 << (bus & 63) != 0)
}

impl Iterator for Functions {
    type Item = Function;

    fn next(&mut self) -> Option<Function> {
        loop {
            if self.next >= FUNCTIONS_PER_BUS {
                match self.take_bus() {
                    Some(bus) => (self.bus, self.next) = (bus, 0),
                    None if self.find_root() => continue,
                    None => return None,
                }
            }
            let (device, number) = (self.next / FUNCTIONS_PER_DEVICE, self.next % FUNCTIONS_PER_DEVICE);
            let address = PciAddress::new(self.segment, self.bus, device as u8, number as u8)?;
            let function = Function::read(ConfigSpace::new(self.access, address));
            // Function 0 decides whether the others exist (PCI 3.0, 3.2.2.3.4).
            let alone = number == 0 && !function.is_some_and(|function| function.multifunction);
            self.next = self.next.saturating_add(if alone { FUNCTIONS_PER_DEVICE } else { 1 });
            if let Some(function) = function {
                if let Header::Bridge(bus) = function.header {
                    self.add_bus(bus);
                }
                return Some(function);
            }
        }
    }
}
