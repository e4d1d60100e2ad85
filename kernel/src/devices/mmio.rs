//! Virtio devices over MMIO, which no bus shows: the loader names them on the command line, in Linux's words.

use alloc::vec::Vec;
use core::fmt;

use ringfence_drivers::virtio::{DeviceType, Error, MmioTransport, Transport};
use ringfence_memory::{DeviceId, MmioRegion, PAGE_SIZE, PhysAddr, VirtioMmio};

use super::offer;
use crate::platform::KERNEL;

/// What a device is named with: `virtio_mmio.device=SIZE@ADDRESS:LINE`.
const WORD: &str = "virtio_mmio.device=";
/// Devices that are looked at, at most.
const MAX: usize = 32;
/// Bytes of registers that a device has at most: what is said beyond is its configuration's.
const MAX_LEN: u64 = PAGE_SIZE as u64;

/// Where a device is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first register.
    pub start: u64,
    /// Bytes of registers.
    pub len: u64,
    /// The line that it interrupts by.
    pub line: u8,
}

impl Place {
    /// Reads a word of the command line; `None` if it names no device, or one that cannot be.
    pub fn parse(word: &str) -> Option<Self> {
        let (size, rest) = word.strip_prefix(WORD)?.split_once('@')?;
        let mut parts = rest.split(':');
        let (start, line) = (number(parts.next()?)?, number(parts.next()?)?);
        let len = match size.strip_suffix(['K', 'k']) {
            Some(thousands) => number(thousands)?.checked_mul(1024)?,
            None => number(size)?,
        };
        let place = Self { start, len: len.min(MAX_LEN), line: line.try_into().ok()? };
        (place.len != 0 && start.is_multiple_of(4))
            .then_some(place)
            .filter(|_| start.checked_add(len).is_some())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.start + other.len && other.start < self.start + self.len
    }

    /// The first page, and bytes of whole pages.
    fn pages(&self) -> (u64, u64) {
        let start = self.start & !(PAGE_SIZE as u64 - 1);
        (start, (self.start + self.len - start).next_multiple_of(PAGE_SIZE as u64))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mmio@{:x}", self.start)
    }
}

/// A number as C has it.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The places that a command line names. Of two that overlap the first counts.
pub fn places(command_line: &str) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    for place in command_line.split_whitespace().filter_map(Place::parse) {
        if found.len() < MAX && !found.iter().any(|other| other.overlaps(&place)) {
            found.push(place);
        }
    }
    found
}

/// A device that is there.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub place: Place,
    /// What.
    pub kind: DeviceType,
    id: DeviceId,
    registers: MmioRegion,
}

impl Found {
    /// Its name for the memory system.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// The way to the device, for one driver at a time.
    ///
    /// # Errors
    /// If it has changed into something else.
    pub fn transport(&self) -> Result<MmioTransport, Error> {
        // SAFETY: the loader says that the registers are there, which were claimed by `find` and are nobody
        // else's; no two places overlap, and each has its number. Who asked before has dropped what it got,
        // or still has the device's windows, without which there is no driver.
        MmioTransport::new(unsafe { VirtioMmio::new(&KERNEL, self.id, &self.registers) }?)
    }
}

/// What is at the places that `command_line` names, or why it cannot be used; nothing for a place where no
/// device is.
pub fn find(command_line: &str) -> Vec<Result<Found, (Place, Error)>> {
    let mut claimed: Vec<(u64, MmioRegion)> = Vec::new();
    let look = |(place, number): (Place, u32)| {
        let id = DeviceId::off_bus(number);
        let registers = match claim(&mut claimed, &place) {
            Ok(registers) => registers,
            Err(error) => return Some(Err((place, error))),
        };
        let mut found = Found { place, kind: DeviceType(0), id, registers };
        match found.transport().map(|transport| transport.device_type()) {
            Ok(kind) => {
                found.kind = kind;
                Some(Ok(found))
            }
            Err(Error::WrongType) => None,
            Err(error) => Some(Err((place, error))),
        }
    };
    places(command_line).into_iter().zip(0..).filter_map(look).collect()
}

/// The registers at `place`. Several devices may have theirs in one page, which is claimed once.
fn claim(claimed: &mut Vec<(u64, MmioRegion)>, place: &Place) -> Result<MmioRegion, Error> {
    let (start, len) = place.pages();
    let holds =
        |(first, region): &&(u64, MmioRegion)| *first <= start && start + len <= first + region.len() as u64;
    if !claimed.iter().any(|one| holds(&one)) {
        let address = PhysAddr::new(start).ok_or(Error::BadConfig)?;
        offer(address, len);
        claimed.push((start, MmioRegion::map(&KERNEL, None, address, len as usize)?));
    }
    let (first, region) = claimed.iter().find(holds).ok_or(Error::BadConfig)?;
    Ok(region.part((place.start - first) as usize, place.len as usize)?)
}
