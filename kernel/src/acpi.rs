//! The ACPI tables that the kernel uses, copied out of firmware memory (ACPI 6.5, chapter 5.2): MCFG says
//! where PCI configuration space is, MADT where the local APIC is, FADT where the power button and the way
//! off are.
//!
//! By hand, because the `acpi` crate has no way to refuse an address that a bad table asks it to map.
//! Firmware is not trusted: lengths and checksums are verified, and whatever does not fit is as if it were
//! absent.

use alloc::vec::Vec;

/// Longest table that is read.
const MAX_TABLE: usize = 64 * 1024;
const HEADER: usize = 36;
/// Where the local APIC is unless firmware moved it.
const LOCAL_APIC: u64 = 0xfee0_0000;

/// A range of memory-mapped PCI configuration space: one entry of the MCFG (PCI Firmware Specification 3.3,
/// 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Physical address of bus 0, even if `first_bus` is another.
    pub base: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus decoded.
    pub first_bus: u8,
    /// Last bus decoded; not below `first_bus`.
    pub last_bus: u8,
}

/// The power button and the way off: registers at I/O ports (4.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Interrupt line of events.
    pub line: u8,
    /// The port and the value that turn ACPI on, if something must.
    pub turn_on: Option<(u16, u8)>,
    /// Port of the status of events.
    pub status: u16,
    /// Port of the register that lets them interrupt.
    pub enable: u16,
    /// Port of the control register.
    pub control: u16,
    /// What the control register's sleep type is for off, if the DSDT says so.
    pub off: Option<u8>,
}

/// Where tables are read from.
pub trait Memory {
    /// A copy of `len` bytes at physical address `address`; `None` if they are not all readable.
    fn read(&self, address: u64, len: usize) -> Option<Vec<u8>>;
}

/// What the kernel needs of ACPI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Memory-mapped configuration space; empty where there is only the I/O port kind.
    pub ecam: Vec<Ecam>,
    /// Physical address of the local APIC's registers.
    pub local_apic: u64,
    /// Where there is a power button that needs no interpreter.
    pub power: Option<Power>,
}

impl Tables {
    /// Reads the tables that the RSDP at physical address `rsdp` leads to.
    pub fn read(memory: &impl Memory, rsdp: Option<u64>) -> Self {
        let mut tables = Self { ecam: Vec::new(), local_apic: LOCAL_APIC, power: None };
        match rsdp.and_then(|rsdp| root(memory, rsdp)) {
            Some(addresses) => {
                for table in addresses.into_iter().filter_map(|address| table(memory, address)) {
                    match table.get(..4) {
                        Some(b"MCFG") => tables.ecam.extend(ecam(&table)),
                        Some(b"APIC") => tables.local_apic = local_apic(&table).unwrap_or(LOCAL_APIC),
                        Some(b"FACP") => tables.power = power(memory, &table),
                        _ => {}
                    }
                }
            }
            None => log::warn!("firmware has no ACPI tables, or broken ones"),
        }
        tables
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The addresses in the root table: XSDT where there is one, else RSDT.
fn root(memory: &impl Memory, rsdp: u64) -> Option<Vec<u64>> {
    let first = memory.read(rsdp, 20)?;
    if !first.starts_with(b"RSD PTR ") || !sums_to_zero(&first) {
        return None;
    }
    let extended = memory.read(rsdp, 36).filter(|rsdp| rsdp[15] >= 2 && sums_to_zero(rsdp));
    let xsdt = extended
        .and_then(|rsdp| table(memory, u64_at(&rsdp, 24)?))
        .filter(|table| table.starts_with(b"XSDT"));
    if let Some(xsdt) = xsdt {
        return Some(xsdt[HEADER..].chunks_exact(8).filter_map(|entry| u64_at(entry, 0)).collect());
    }
    let rsdt = table(memory, u64::from(u32_at(&first, 16)?)).filter(|table| table.starts_with(b"RSDT"))?;
    Some(rsdt[HEADER..].chunks_exact(4).filter_map(|entry| u32_at(entry, 0)).map(u64::from).collect())
}

/// A copy of the table at `address`: at least a header, and with the right checksum.
fn table(memory: &impl Memory, address: u64) -> Option<Vec<u8>> {
    let header = memory.read(address, HEADER)?;
    let len = u32_at(&header, 4)? as usize;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    memory.read(address, len).filter(|table| sums_to_zero(table))
}

fn ecam(mcfg: &[u8]) -> impl Iterator<Item = Ecam> {
    mcfg.get(HEADER + 8..).unwrap_or_default().chunks_exact(16).filter_map(|entry| {
        let ecam = Ecam {
            base: u64_at(entry, 0)?,
            segment: u16::from_le_bytes([entry[8], entry[9]]),
            first_bus: entry[10],
            last_bus: entry[11],
        };
        (ecam.first_bus <= ecam.last_bus && ecam.base != 0 && ecam.base.is_multiple_of(1 << 20))
            .then_some(ecam)
    })
}

/// The address in the MADT's fixed part, or the 64-bit one that overrides it (structure type 5).
fn local_apic(madt: &[u8]) -> Option<u64> {
    let mut address = u64::from(u32_at(madt, HEADER)?);
    let mut rest = madt.get(HEADER + 8..).unwrap_or_default();
    while let [kind, len, ..] = *rest {
        let Some(structure) = rest.get(..usize::from(len)).filter(|structure| structure.len() >= 2) else {
            break;
        };
        if kind == 5 {
            address = u64_at(structure, 4).unwrap_or(address);
        }
        rest = &rest[structure.len()..];
    }
    (address != 0 && address.is_multiple_of(4096)).then_some(address)
}

/// What the FADT says (table 5.9), if the machine has the button as fixed hardware.
fn power(memory: &impl Memory, fadt: &[u8]) -> Option<Power> {
    /// The button is for an interpreter; so are all events.
    const BUTTON_IS_ELSEWHERE: u32 = 1 << 4;
    const REDUCED: u32 = 1 << 20;
    let port = |offset| u16::try_from(u32_at(fadt, offset)?).ok().filter(|port| *port != 0);
    let (flags, lengths) = (u32_at(fadt, 112)?, [*fadt.get(88)?, *fadt.get(89)?]);
    if flags & (BUTTON_IS_ELSEWHERE | REDUCED) != 0 || lengths[0] < 4 || lengths[1] < 2 {
        return None;
    }
    let status = port(56)?;
    let dsdt = u64_at(fadt, 140).filter(|address| *address != 0).or(u32_at(fadt, 40).map(u64::from));
    let dsdt = dsdt.and_then(|address| table(memory, address)).filter(|table| table.starts_with(b"DSDT"));
    Some(Power {
        line: u16_at(fadt, 46)?.try_into().ok()?,
        turn_on: port(48).zip(fadt.get(52).copied()),
        status,
        enable: status.checked_add(u16::from(lengths[0] / 2))?,
        control: port(64)?,
        off: dsdt.and_then(|dsdt| sleep_type(&dsdt)),
    })
}

/// The first element of the package `_S5_`, as every compiler writes it (chapter 20.2): without an
/// interpreter, which nothing else here needs.
fn sleep_type(dsdt: &[u8]) -> Option<u8> {
    /// A definition, of this name, of a package.
    const START: &[u8] = b"\x08_S5_\x12";
    let code = dsdt.get(HEADER..)?;
    let start = code.windows(START.len()).position(|window| window == START)?;
    let package = code.get(start + START.len()..)?;
    // Its length, of so many more bytes as the first two bits say, and how many elements there are.
    let elements = package.get(usize::from(package.first()? >> 6) + 2..)?;
    let value = match *elements {
        [0x0a, value, ..] => value, // a byte
        [value @ 0..=1, ..] => value,
        _ => return None,
    };
    (value < 8).then_some(value)
}
