//! A virtio device brought up for a ring that is written by hand, for a benchmark's ceiling.

use core::ptr::NonNull;

use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{Error, PciTransport, QueueSetup, RESET_LIMIT, Transport, features, status};
use ringfence_kernel::devices::bring_up;
use ringfence_kernel::irq::DeviceInterrupts;
use ringfence_memory::{DmaAddr, DmaGrant, DmaRegion, DmaWindows};

/// A device without a driver; reset when dropped.
pub struct Raw {
    transport: PciTransport,
    windows: DmaWindows,
    features: u64,
    // Given back only when the device was reset.
    _interrupts: Option<DeviceInterrupts>,
}

impl Raw {
    /// Resets the device and accepts what it offers of `wanted`, and VERSION_1. Queues may be set up then.
    pub fn start(function: &Function, wanted: u64) -> Result<Self, Error> {
        let wanted = wanted | features::VERSION_1;
        let begin = |transport, grant: &DmaGrant, windows| Self::begin(transport, grant, windows, wanted);
        let (mut raw, interrupts, _) = bring_up(function, 1, begin)?;
        raw._interrupts = Some(interrupts);
        Ok(raw)
    }

    fn begin(
        mut transport: PciTransport,
        grant: &DmaGrant,
        windows: DmaWindows,
        wanted: u64,
    ) -> Result<Self, Error> {
        transport.reset(&windows, RESET_LIMIT)?;
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
        transport.start(grant)?;
        let features = transport.device_features() & wanted;
        transport.set_driver_features(features);
        transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        Ok(Self { transport, windows, features, _interrupts: None })
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Where to get memory that the device can reach.
    pub fn windows(&self) -> &DmaWindows {
        &self.windows
    }

    /// The largest size of queue `index`; 0 if there is none.
    pub fn queue_size(&mut self, index: u16) -> u16 {
        self.transport.queue_max_size(index)
    }

    /// Tells the device where a queue's rings are.
    pub fn queue(&mut self, setup: &QueueSetup) -> Result<<PciTransport as Transport>::Notifier, Error> {
        self.transport.set_up_queue(&self.windows, setup)
    }

    /// Tells the device to start.
    pub fn run(&mut self) {
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.transport.set_status(bits);
    }

    /// `address` as the number that the device knows it by.
    pub fn number(&self, address: DmaAddr) -> u64 {
        self.windows.publish(address).expect("the address is this device's").0
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.transport.reset(&self.windows, RESET_LIMIT).expect("the device resets");
        self.transport.stop();
    }
}

/// The first byte of a region.
pub fn start_of(region: &DmaRegion) -> NonNull<u8> {
    region.as_volatile_slice().as_ptr()
}
