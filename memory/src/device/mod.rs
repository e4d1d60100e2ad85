//! Devices on the bus, as far as their registers decide what memory is touched: configuration space, base
//! address registers, interrupt messages, and the registers of a virtio device through which it learns of its
//! queues and is reset.
//!
//! Everything that is an address in a device's eyes is written by a function of this module, from a token.
//! What is left for drivers are reads and the registers in which no address can be.

mod bar;
mod capability;
mod claims;
mod common_config;
mod config;
mod control;
mod mmio;
mod msix;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod ports;
mod virtio_mmio;
mod virtio_pci;

pub use bar::{BAR_COUNT, Bar};
pub use capability::Capability;
#[cfg(feature = "mapper")]
pub(crate) use claims::Claims;
pub use claims::{ClaimError, MmioClaims};
pub use common_config::{CommonConfig, common};
pub use config::{ConfigAccess, ConfigSpace, DmaGrant, Ecam, MsiMessage, PciAddress};
pub use control::{BegunReset, DeviceControl, SetQueueError};
pub use mmio::{MmioError, MmioRegion, Register};
pub use msix::MsixTable;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
pub use ports::ConfigPorts;
pub use virtio_mmio::{MmioInterrupts, MmioNotifier, VirtioMmio, VirtioMmioError};
pub use virtio_pci::{Notifier, NotifyConfig, VirtioPci, VirtioPciError};
