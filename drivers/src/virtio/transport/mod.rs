//! What a driver needs of the bus between it and its device.

mod mmio;
mod pci;

use core::time::Duration;

use ringfence_memory::{AtomicAccess, DmaGrant, DmaWindows, QueueAddresses, Quiet, ResetError};

use super::{DeviceType, Error};

pub use mmio::{MmioIsr, MmioTransport};
pub(crate) use pci::is_modern;
pub use pci::{InterruptStatus, IsrStatus, PciNotifier, PciTransport};

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The choice of features is final.
    pub const FEATURES_OK: u8 = 8;
    /// The device failed and must be reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
    /// Nobody answers.
    pub const GONE: u8 = 0xff;
}

/// A queue's index, size and its three addresses (2.6, 4.1.4.3).
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup<'a> {
    /// Which queue.
    pub index: u16,
    /// How large it is, and where: the descriptor table, or packed ring; what the driver writes: the
    /// available ring, or the driver event suppression structure; and what the device writes: the used ring,
    /// or the device event suppression structure.
    pub addresses: QueueAddresses<'a>,
}

/// Tells a device that one of its queues has new buffers. On any CPU, in interrupt handlers too: it takes no
/// lock.
pub trait Notify {
    /// One register write, or its like. `position` says where the driver is: the available index or, in a
    /// packed ring, the index of the next descriptor with the wrap counter as bit 15. It goes with the
    /// notification if [`NOTIFICATION_DATA`](super::features::NOTIFICATION_DATA) was accepted.
    fn notify(&self, position: u16);
}

/// A configuration field that is read in one access: `u8`, `u16` or `u32`. One of 64 bits is read in two
/// halves, by [`Device::config_u64`](super::Device::config_u64) (4.1.3.1).
pub trait ConfigField: AtomicAccess {}

impl ConfigField for u8 {}
impl ConfigField for u16 {}
impl ConfigField for u32 {}

/// A bus binding of virtio: PCI ([`PciTransport`](super::PciTransport)), registers in memory
/// ([`MmioTransport`](super::MmioTransport)), or a device model in the same kernel.
///
/// Calls are single steps; [`Device`](super::Device) puts them in order, reads them back and bounds them. Any
/// answer may be a lie.
///
/// Not for interrupt handlers: they may take locks. Only [`reset`](Transport::reset) waits.
pub trait Transport {
    /// Notifies one queue.
    type Notifier: Notify;

    /// Kind of the device.
    fn device_type(&self) -> DeviceType;

    /// The device status; [`status::GONE`] if nobody answers.
    fn status(&self) -> u8;

    /// Writes the device status; `status` is not 0 (see [`reset`](Transport::reset)).
    fn set_status(&mut self, status: u8);

    /// Resets the device within `limit`. The proof is that of
    /// [`CommonConfig::reset`](ringfence_memory::CommonConfig::reset) or, for a model, of
    /// [`DmaWindows::reset_model`].
    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError>;

    /// Asks the device to reset, and does not wait: [`poll_reset`](Self::poll_reset) does not either.
    fn begin_reset(&mut self, _windows: &DmaWindows) -> Result<(), ResetError> {
        Ok(())
    }

    /// The proof that the device has reset since it was asked, if it has. Models reset at once, so by default
    /// they do it here.
    fn poll_reset(&mut self, windows: &DmaWindows) -> Option<Quiet> {
        self.reset(windows, Duration::ZERO).ok()
    }

    /// Lets the device access memory and send interrupts. Called after a reset; configuration-change
    /// interrupts are set up here, since a reset undoes them.
    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error>;

    /// Takes the permission away again.
    fn stop(&mut self);

    /// Feature bits 0..=63 that the device offers.
    fn device_features(&mut self) -> u64;

    /// Writes the feature bits that the driver accepts.
    fn set_driver_features(&mut self, features: u64);

    /// Changes whenever the device configuration does.
    fn config_generation(&self) -> u32;

    /// Reads the device configuration field at `offset` in one access.
    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error>;

    /// The largest size that queue `index` can have; 0 if there is no such queue.
    fn queue_max_size(&mut self, index: u16) -> u16;

    /// Sets the queue's registers, its interrupt among them, reads them back, and enables it. Addresses are
    /// told by [`CommonConfig::set_queue`](ringfence_memory::CommonConfig::set_queue) or, to a model, by
    /// [`DmaWindows::publish`].
    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>)
    -> Result<Self::Notifier, Error>;

    /// Asks for a reset of queue `index` alone, and does not wait. Called only with
    /// [`RING_RESET`](super::features::RING_RESET), and when the queue is idle: it proves nothing about
    /// buffers in flight.
    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error>;

    /// Whether queue `index` has reset since it was asked: then it can be set up again.
    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error>;
}
