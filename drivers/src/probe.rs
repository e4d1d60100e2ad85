//! Which driver serves which function.

use crate::pci::Function;
use crate::virtio::{DeviceType, is_modern};

/// The driver for a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `block::Block`.
    #[cfg(feature = "blk")]
    Block,
    /// `net::Net`.
    #[cfg(feature = "net")]
    Net,
}

impl Driver {
    /// The driver's name.
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "blk")]
            Self::Block => "virtio-blk",
            #[cfg(feature = "net")]
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
        #[cfg(feature = "blk")]
        Some(DeviceType::BLOCK) => Some(Driver::Block),
        #[cfg(feature = "net")]
        Some(DeviceType::NET) => Some(Driver::Net),
        Some(_) => None,
        None => return Match::Unknown,
    };
    match driver {
        _ if !is_modern(function) => Match::LegacyOnly,
        Some(driver) => Match::Driver(driver),
        None => Match::Unknown,
    }
}
