//! The virtio core: transports, feature negotiation, and virtqueues.

mod device;
pub mod features;
mod queue;
mod transport;

use core::fmt;

use ringfence_memory::{
    DmaError, MmioError, PlatformError, ResetError, SetQueueError, VirtioMmioError, VirtioPciError,
    VolatileError,
};

#[cfg(feature = "blk")]
use crate::block::error::RequestError;

pub use device::{Device, DriverOk, Offer, QueueShape, RESET_LIMIT, Starting};
pub use queue::{
    BufferList, Buffers, Completion, Controls, Counters, Ends, Hybrid, LOOK_AGAIN, Queue, QueueError,
    QueueOptions, Ticket,
};
pub(crate) use queue::{LEAST_SILENCE, UsedChain, longest_gap, sealed};
pub(crate) use transport::is_modern;
pub use transport::{
    ConfigField, InterruptStatus, IsrStatus, MmioIsr, MmioTransport, Notify, PciNotifier, PciTransport,
    QueueSetup, Transport, status,
};

/// The kind of a virtio device (section 5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceType(pub u16);

impl DeviceType {
    /// Network card.
    pub const NET: Self = Self(1);
    /// Block device.
    pub const BLOCK: Self = Self(2);
    /// Source of entropy.
    pub const ENTROPY: Self = Self(4);

    /// A short name for a person.
    pub const fn name(self) -> &'static str {
        match self.0 {
            1 => "virtio network",
            2 => "virtio block",
            3 => "virtio console",
            4 => "virtio entropy",
            5 => "virtio balloon",
            8 => "virtio SCSI",
            9 => "virtio 9P",
            16 => "virtio GPU",
            18 => "virtio input",
            19 => "virtio socket",
            20 => "virtio crypto",
            23 => "virtio IOMMU",
            24 => "virtio memory",
            25 => "virtio sound",
            26 => "virtio file system",
            27 => "virtio persistent memory",
            _ => "virtio device",
        }
    }
}

impl fmt::Debug for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.name())
    }
}

/// Why a device could not be brought up, or is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Not a virtio device, or of another type than the driver is for.
    WrongType,
    /// It has only the legacy interface, which is not spoken here.
    LegacyOnly,
    /// One of the structures that virtio 1.x demands is missing, malformed or out of its BAR: the type of its
    /// capability (4.1.4).
    MissingCapability(u8),
    /// Registers could not be claimed.
    Platform(PlatformError),
    /// A register does not lie where the device says.
    Mmio(MmioError),
    /// DMA memory could not be had, or it or the grant does not belong to this device.
    Dma(DmaError),
    /// The device did not show itself quiet after a reset.
    ResetTimeout,
    /// The device answers nothing but ones: it was unplugged.
    Gone,
    /// The device demands a reset: an error that it cannot recover from.
    NeedsReset,
    /// A status bit did not stick.
    StatusRefused(u8),
    /// The device does not offer a feature without which nothing works: the number of its bit.
    MissingFeature(u8),
    /// The device refused the features that were chosen from its own offer.
    FeaturesRefused,
    /// The configuration kept changing while it was read.
    ConfigUnstable,
    /// The configuration holds a value that cannot be.
    BadConfig,
    /// There is no queue with this index, it is in use, or it is too small.
    QueueUnavailable(u16),
    /// A queue register did not keep what was written to it.
    QueueRefused(u16),
    /// The device could not assign an interrupt vector.
    NoVector,
    /// A queue was found broken.
    Queue(QueueError),
    /// The disk refused a request, or did not carry it out.
    #[cfg(feature = "blk")]
    Request(RequestError),
    /// Nothing came back in time.
    Timeout,
    /// Requests are in flight.
    Busy,
    /// The device is not in the state for this: queues are set up before DRIVER_OK, and nothing is done after
    /// it was shut down.
    WrongState,
}

ringfence_memory::messages! { Error {
    WrongType => "not the device that the driver is for",
    LegacyOnly => "legacy interface only",
    MissingCapability(kind) => "virtio structure {kind} is missing or malformed",
    Platform(error: PlatformError) => "its registers cannot be claimed: {error}",
    Mmio(error: MmioError) => "a register is not where the device says: {error}",
    Dma(error: DmaError) => "{error}",
    ResetTimeout => "does not reset in time",
    Gone => "unplugged",
    NeedsReset => "failed and needs a reset",
    StatusRefused(bit) => "refuses status bit {bit}",
    MissingFeature(bit) => "lacks feature {bit}",
    FeaturesRefused => "refuses features that it offered",
    ConfigUnstable => "its configuration never holds still",
    BadConfig => "its configuration makes no sense",
    QueueUnavailable(index) => "queue {index} is not available",
    QueueRefused(index) => "queue {index} does not keep its settings",
    NoVector => "cannot assign an interrupt vector",
    Queue(error: QueueError) => "a queue failed: {error}",
    #[cfg(feature = "blk")]
    Request(error) => "a request failed: {error}",
    Timeout => "no answer in time",
    Busy => "requests are in flight",
    WrongState => "not in this state of the device",
} }

impl From<ResetError> for Error {
    fn from(error: ResetError) -> Self {
        match error {
            ResetError::Timeout => Self::ResetTimeout,
            ResetError::WrongDevice => Self::Dma(DmaError::WrongDevice),
        }
    }
}

impl Error {
    /// Why queue `index` was not set up.
    fn of_queue(index: u16, error: SetQueueError) -> Self {
        match error {
            SetQueueError::Dma(error) => error.into(),
            SetQueueError::NotGranted | SetQueueError::WrongFormat => Self::WrongState,
            SetQueueError::Unavailable => Self::QueueUnavailable(index),
            SetQueueError::Refused => Self::QueueRefused(index),
        }
    }
}

/// So that `?` works after copying from a buffer.
impl From<VolatileError> for Error {
    fn from(error: VolatileError) -> Self {
        Self::Dma(DmaError::Access(error))
    }
}

impl From<VirtioMmioError> for Error {
    fn from(error: VirtioMmioError) -> Self {
        match error {
            VirtioMmioError::Unknown | VirtioMmioError::Empty => Self::WrongType,
            VirtioMmioError::Legacy => Self::LegacyOnly,
            VirtioMmioError::Mmio(error) => Self::Mmio(error),
        }
    }
}

impl From<VirtioPciError> for Error {
    fn from(error: VirtioPciError) -> Self {
        match error {
            VirtioPciError::MissingCapability(kind) => Self::MissingCapability(kind),
            VirtioPciError::Platform(error) => Self::Platform(error),
            VirtioPciError::Mmio(error) => Self::Mmio(error),
        }
    }
}

/// So that `?` works where what was refused is not needed any more.
impl<T, E> From<(E, T)> for Error
where
    Self: From<E>,
{
    fn from((error, _): (E, T)) -> Self {
        error.into()
    }
}

#[cfg(feature = "blk")]
impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}
