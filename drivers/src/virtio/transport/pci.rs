//! Virtio over PCI, the modern interface (section 4.1). Transitional devices are driven through it too.

use core::time::Duration;

use ringfence_memory::{
    BegunReset, CommonConfig, DeviceId, DmaGrant, DmaWindows, MmioError, MsiMessage, MsixTable, Notifier,
    Platform, Quiet, Register, ResetError, VirtioPci, common,
};

use super::{ConfigField, DeviceType, Error, Notify, QueueSetup, Transport, status};
use crate::pci::Function;
use crate::virtio::features;

impl DeviceType {
    /// What a PCI function is, if it is a virtio device (4.1.2): modern ids say it themselves, transitional
    /// ones by a table or by the subsystem id.
    pub fn of(function: &Function) -> Option<Self> {
        const VENDOR: u16 = 0x1af4;
        const MODERN: u16 = 0x1040;
        const TRANSITIONAL: [u16; 10] = [1, 2, 5, 3, 8, 4, 0, 0, 0, 9];
        if function.vendor != VENDOR {
            return None;
        }
        let kind = match function.device {
            id @ MODERN..=0x107f => id.checked_sub(MODERN)?,
            id @ 0x1000..MODERN => {
                let known = TRANSITIONAL.get(usize::from(id & 0x3f)).copied().filter(|&kind| kind != 0);
                known.unwrap_or(function.subsystem)
            }
            _ => return None,
        };
        Some(Self(kind))
    }
}

/// The capability type of the device configuration (4.1.4).
const DEVICE: u8 = 4;

/// No vector (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// A virtio device behind PCI. Its calls take locks: not for interrupt handlers, which have [`IsrStatus`] for
/// the line, and nothing to acknowledge with MSI-X.
#[derive(Debug)]
pub struct PciTransport {
    function: Function,
    kind: DeviceType,
    registers: VirtioPci,
    /// Number of MSI-X vectors in use; 0 means the interrupt line.
    vectors: u16,
    /// The features that the driver accepted.
    features: u64,
    begun_reset: Option<BegunReset>,
}

impl PciTransport {
    /// Finds and maps the device's structures. Nothing is written to the device except that it answers at its
    /// memory BARs; its interrupt line is turned off.
    ///
    /// # Errors
    /// [`Error::LegacyOnly`] if none of the structures of virtio 1.x is there: then the device was left
    /// alone.
    pub fn new(platform: &'static dyn Platform, function: &Function) -> Result<Self, Error> {
        let kind = DeviceType::of(function).ok_or(Error::WrongType)?;
        if !is_modern(function) {
            return Err(Error::LegacyOnly);
        }
        let registers = VirtioPci::new(platform, function.config())?;
        Ok(Self { function: *function, kind, registers, vectors: 0, features: 0, begun_reset: None })
    }

    /// The function behind the transport.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Names the device to the memory system.
    pub fn device_id(&self) -> DeviceId {
        self.function.address().id()
    }

    /// How many MSI-X vectors the device has; 0 if it has no MSI-X.
    pub fn msix_vectors(&self) -> u16 {
        self.registers.msix.as_ref().map_or(0, MsixTable::size)
    }

    /// Uses MSI-X: `messages[0]` for changes of the configuration, `messages[1 + n]` for queue n; the last
    /// one given serves all that are beyond the end. Call it before the driver takes the transport.
    ///
    /// # Errors
    /// [`Error::NoVector`] if `messages` is empty, longer than [`msix_vectors`](Self::msix_vectors), or the
    /// device does not turn MSI-X on. The interrupt line can be used instead.
    pub fn use_msix(&mut self, messages: &[MsiMessage]) -> Result<(), Error> {
        let table = self.registers.msix.as_ref().ok_or(Error::NoVector)?;
        let count = u16::try_from(messages.len()).map_err(|_| Error::NoVector)?;
        if count == 0 || count > table.size() {
            return Err(Error::NoVector);
        }
        for (vector, message) in (0..).zip(messages) {
            table.set(vector, *message)?;
        }
        if !table.enable(true) {
            let _ = table.enable(false);
            return Err(Error::NoVector);
        }
        self.vectors = count;
        Ok(())
    }

    /// Uses the interrupt line. The handler must call [`IsrStatus::acknowledge`] for each interrupt.
    pub fn use_intx(&mut self) -> IsrStatus {
        self.vectors = 0;
        if let Some(table) = &self.registers.msix {
            let _ = table.enable(false);
        }
        self.function.config().enable_intx(true);
        IsrStatus(self.registers.isr.clone())
    }

    /// The vector of `source` (0 is the configuration, 1 + n queue n), or [`NO_VECTOR`] without MSI-X.
    fn vector(&self, source: u16) -> u16 {
        self.vectors.checked_sub(1).map_or(NO_VECTOR, |last| source.min(last))
    }

    /// Sets the vector of `source` by `set`, which reads it back (4.1.5.1.2.2).
    fn set_vector(
        &self,
        source: u16,
        set: impl FnOnce(&CommonConfig, u16) -> Result<u16, MmioError>,
    ) -> Result<(), Error> {
        let vector = self.vector(source);
        if self.registers.msix.is_none() || set(&self.registers.common, vector)? == vector {
            Ok(())
        } else {
            Err(Error::NoVector)
        }
    }

    fn check_queue(&self, index: u16) -> Result<(), Error> {
        let there = index < self.registers.common.read::<u16>(common::NUM_QUEUES)?;
        if there { Ok(()) } else { Err(Error::QueueUnavailable(index)) }
    }
}

/// Whether a virtio function announces the interface of virtio 1.x. One that does not is legacy-only.
pub(crate) fn is_modern(function: &Function) -> bool {
    VirtioPci::is_modern(&function.config())
}

impl Transport for PciTransport {
    type Notifier = PciNotifier;

    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn status(&self) -> u8 {
        self.registers.common.status()
    }

    fn set_status(&mut self, status: u8) {
        self.registers.common.set_status(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        self.registers.common.reset(windows, limit)
    }

    fn begin_reset(&mut self, windows: &DmaWindows) -> Result<(), ResetError> {
        self.begun_reset = None;
        self.begun_reset = Some(self.registers.common.begin_reset(windows)?);
        Ok(())
    }

    fn poll_reset(&mut self, windows: &DmaWindows) -> Option<Quiet> {
        self.registers.common.poll_reset(windows, self.begun_reset.as_ref()?)
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        self.function.config().enable_bus_master(grant)?;
        self.set_vector(0, CommonConfig::set_config_vector)
    }

    fn stop(&mut self) {
        self.function.config().disable_bus_master();
        self.function.config().enable_intx(false);
        if let Some(table) = &self.registers.msix {
            let _ = table.enable(false);
        }
    }

    fn device_features(&mut self) -> u64 {
        self.registers.common.device_features()
    }

    fn set_driver_features(&mut self, features: u64) {
        if self.registers.common.set_driver_features(features) {
            self.features = features;
        }
    }

    fn config_generation(&self) -> u32 {
        self.registers.common.read(common::CONFIG_GENERATION).unwrap_or(status::GONE).into()
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        Ok(self.registers.device.as_ref().ok_or(Error::MissingCapability(DEVICE))?.read(offset)?)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        let size = || Ok::<u16, Error>(self.registers.common.read_queue(index, common::QUEUE_SIZE)?);
        self.check_queue(index).and_then(|()| size()).unwrap_or(0)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<PciNotifier, Error> {
        let index = queue.index;
        self.check_queue(index)?;
        self.set_vector(index.saturating_add(1), |common, vector| common.set_queue_vector(index, vector))?;
        let VirtioPci { common, notify, .. } = &mut self.registers;
        let offset = common.read_queue(index, common::QUEUE_NOTIFY_OFF)?;
        let with_data = self.features & features::NOTIFICATION_DATA != 0;
        let notifier = notify.notifier(index, offset, with_data)?;
        let told = common.set_queue(windows, index, &queue.addresses);
        told.map_err(|error| Error::of_queue(index, error))?;
        Ok(PciNotifier(notifier))
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        self.check_queue(index)?;
        Ok(self.registers.common.reset_queue(index)?)
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        let reads_0 = |offset| Ok::<_, Error>(self.registers.common.read_queue::<u16>(index, offset)? == 0);
        // It reads 1 until the reset is done, and the queue is disabled then (4.1.4.3.1).
        Ok(reads_0(common::QUEUE_RESET)? && reads_0(common::QUEUE_ENABLE)?)
    }
}

/// The notification register of one queue (4.1.5.2).
#[derive(Debug)]
pub struct PciNotifier(Notifier);

impl Notify for PciNotifier {
    #[inline]
    fn notify(&self, position: u16) {
        self.0.notify(position);
    }
}

/// The ISR status register: what an interrupt on the line was about (4.1.4.5). Takes no lock: made for
/// interrupt handlers.
#[derive(Clone, Debug)]
pub struct IsrStatus(Register<u8>);

/// What the device wanted with an interrupt. Neither means that another device shares the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptStatus {
    /// A queue may have completions.
    pub queue: bool,
    /// The configuration or the device status changed.
    pub config: bool,
}

impl IsrStatus {
    /// Reads the register, which also releases the line. An unplugged device reads as all ones: then both are
    /// set.
    pub fn acknowledge(&self) -> InterruptStatus {
        let bits = self.0.read();
        InterruptStatus { queue: bits & 1 != 0, config: bits & 2 != 0 }
    }
}
