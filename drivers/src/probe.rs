//! Which driver serves which function.

use crate::pci::Function;
use crate::virtio::{DeviceType, is_modern};

/// The driver for a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// [`block::Block`](crate::block::Block).
    Block,
    /// [`net::Net`](crate::net::Net).
    Net,
}

impl Driver {
    /// The driver's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "virtio-blk",
            Self::Net => "virtio-net",
        }
    }
}

/// What is to be done with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Bring it up with this driver, over a [`PciTransport`](crate::virtio::PciTransport).
    Driver(Driver),
    /// A virtio device with only the legacy interface: leave it alone.
    LegacyOnly,
    /// Nothing here drives it: leave it alone.
    Unknown,
}

/// Finds the driver for `function`. Only its configuration space is read.
pub fn probe(function: &Function) -> Match {
    let driver = match DeviceType::of(function) {
        Some(DeviceType::BLOCK) => Driver::Block,
        Some(DeviceType::NET) => Driver::Net,
        Some(_) if !is_modern(function) => return Match::LegacyOnly,
        _ => return Match::Unknown,
    };
    if is_modern(function) { Match::Driver(driver) } else { Match::LegacyOnly }
}
