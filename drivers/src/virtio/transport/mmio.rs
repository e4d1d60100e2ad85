//! Virtio over MMIO, version 2 (section 4.2).

use core::time::Duration;

use ringfence_memory::{
    BegunReset, DeviceId, DmaGrant, DmaWindows, MmioInterrupts, MmioNotifier, Quiet, ResetError, VirtioMmio,
};

use super::{ConfigField, DeviceType, Error, InterruptStatus, Notify, QueueSetup, Transport};
use crate::virtio::features;

/// A virtio device behind registers in memory, which somebody in the kernel vouches for. Its calls take
/// locks: not for interrupt handlers, which have [`MmioIsr`].
#[derive(Debug)]
pub struct MmioTransport {
    registers: VirtioMmio,
    kind: DeviceType,
    /// The features that the driver accepted.
    features: u64,
    begun_reset: Option<BegunReset>,
}

impl MmioTransport {
    /// The device behind `registers`. Nothing is written to it.
    ///
    /// # Errors
    /// [`Error::WrongType`] if it is of a kind that cannot be.
    pub fn new(registers: VirtioMmio) -> Result<Self, Error> {
        let kind = registers.device_type().try_into().map_err(|_| Error::WrongType)?;
        Ok(Self { registers, kind: DeviceType(kind), features: 0, begun_reset: None })
    }

    /// Names the device to the memory system.
    pub fn device_id(&self) -> DeviceId {
        self.registers.device()
    }

    /// What the handler of its interrupt calls for each.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn interrupts(&self) -> Result<MmioIsr, Error> {
        Ok(MmioIsr(self.registers.interrupts()?))
    }
}

impl Transport for MmioTransport {
    type Notifier = MmioNotifier;

    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn status(&self) -> u8 {
        self.registers.status()
    }

    fn set_status(&mut self, status: u8) {
        self.registers.set_status(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        self.registers.reset(windows, limit)
    }

    fn begin_reset(&mut self, windows: &DmaWindows) -> Result<(), ResetError> {
        self.begun_reset = None;
        self.begun_reset = Some(self.registers.begin_reset(windows)?);
        Ok(())
    }

    fn poll_reset(&mut self, windows: &DmaWindows) -> Option<Quiet> {
        self.registers.poll_reset(windows, self.begun_reset.as_ref()?)
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        Ok(self.registers.grant(grant)?)
    }

    fn stop(&mut self) {
        self.registers.revoke();
    }

    fn device_features(&mut self) -> u64 {
        self.registers.device_features()
    }

    fn set_driver_features(&mut self, features: u64) {
        if self.registers.set_driver_features(features) {
            self.features = features;
        }
    }

    fn config_generation(&self) -> u32 {
        self.registers.config_generation()
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        Ok(self.registers.config().read(offset)?)
    }

    /// A size is a number of 16 bits (2.6), whatever a register could say.
    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.registers.queue_max_size(index).try_into().unwrap_or(u16::MAX)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<MmioNotifier, Error> {
        let with_data = self.features & features::NOTIFICATION_DATA != 0;
        let notifier = self.registers.notifier(queue.index, with_data)?;
        let told = self.registers.set_queue(windows, queue.index, &queue.addresses);
        told.map_err(|error| Error::of_queue(queue.index, error))?;
        Ok(notifier)
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        if self.registers.queue_max_size(index) == 0 {
            return Err(Error::QueueUnavailable(index));
        }
        self.registers.reset_queue(index);
        Ok(())
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        Ok(self.registers.is_queue_reset(index))
    }
}

impl Notify for MmioNotifier {
    #[inline]
    fn notify(&self, position: u16) {
        self.notify(position);
    }
}

/// The interrupt registers (4.2.3.4). Takes no lock: made for interrupt handlers.
#[derive(Clone, Debug)]
pub struct MmioIsr(MmioInterrupts);

impl MmioIsr {
    /// What the device wanted; the line is released. An unplugged device wants everything.
    pub fn acknowledge(&self) -> InterruptStatus {
        let events = self.0.acknowledge();
        InterruptStatus {
            queue: events & MmioInterrupts::QUEUE != 0,
            config: events & MmioInterrupts::CONFIG != 0,
        }
    }
}
