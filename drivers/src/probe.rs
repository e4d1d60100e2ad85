//! Which functions a driver may take.

use crate::pci::Function;
use crate::virtio::{DeviceType, is_modern};

/// What is to be done with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// A device of this kind. Whoever has a driver for it brings it up over a
    /// [`PciTransport`](crate::virtio::PciTransport).
    Virtio(DeviceType),
    /// A virtio device with only the legacy interface: leave it alone.
    LegacyOnly,
    /// Something else: leave it alone.
    Unknown,
}

/// Finds out what `function` is. Only its configuration space is read.
pub fn probe(function: &Function) -> Match {
    match DeviceType::of(function) {
        Some(kind) if is_modern(function) => Match::Virtio(kind),
        Some(_) => Match::LegacyOnly,
        None => Match::Unknown,
    }
}
