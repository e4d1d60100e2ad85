//! What is between a driver here and its device: PCI, or registers in memory.

use core::time::Duration;

use ringfence_drivers::virtio::{
    ConfigField, DeviceType, Error, MmioTransport, Notify, PciNotifier, PciTransport, QueueSetup, Transport,
};
use ringfence_memory::{DmaGrant, DmaWindows, MmioNotifier, Quiet, ResetError};

/// One of the transports.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each device, and hardly any is the smaller")]
pub enum BusTransport {
    /// A function.
    Pci(PciTransport),
    /// A device that the command line names.
    Mmio(MmioTransport),
}

/// The notifier of a [`BusTransport`].
#[derive(Debug)]
#[expect(missing_docs, reason = "as there")]
pub enum BusNotifier {
    Pci(PciNotifier),
    Mmio(MmioNotifier),
}

macro_rules! either {
    ($of:expr, $it:ident => $do:expr) => {
        match $of {
            Self::Pci($it) => $do,
            Self::Mmio($it) => $do,
        }
    };
}

impl Notify for BusNotifier {
    #[inline]
    fn notify(&self, position: u16) {
        either!(self, it => it.notify(position));
    }
}

impl Transport for BusTransport {
    type Notifier = BusNotifier;

    fn device_type(&self) -> DeviceType {
        either!(self, it => it.device_type())
    }

    fn status(&self) -> u8 {
        either!(self, it => it.status())
    }

    fn set_status(&mut self, status: u8) {
        either!(self, it => it.set_status(status));
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        either!(self, it => it.reset(windows, limit))
    }

    fn begin_reset(&mut self, windows: &DmaWindows) -> Result<(), ResetError> {
        either!(self, it => it.begin_reset(windows))
    }

    fn poll_reset(&mut self, windows: &DmaWindows) -> Option<Quiet> {
        either!(self, it => it.poll_reset(windows))
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        either!(self, it => it.start(grant))
    }

    fn stop(&mut self) {
        either!(self, it => it.stop());
    }

    fn device_features(&mut self) -> u64 {
        either!(self, it => it.device_features())
    }

    fn set_driver_features(&mut self, features: u64) {
        either!(self, it => it.set_driver_features(features));
    }

    fn config_generation(&self) -> u32 {
        either!(self, it => it.config_generation())
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        either!(self, it => it.read_config(offset))
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        either!(self, it => it.queue_max_size(index))
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<BusNotifier, Error> {
        match self {
            Self::Pci(it) => it.set_up_queue(windows, queue).map(BusNotifier::Pci),
            Self::Mmio(it) => it.set_up_queue(windows, queue).map(BusNotifier::Mmio),
        }
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        either!(self, it => it.begin_reset_queue(index))
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        either!(self, it => it.poll_reset_queue(index))
    }
}
