//! Virtio block devices (section 5.2): read, write, flush and identify, as many at once as the rings hold.

mod calls;
pub(crate) mod error;
pub mod features;
mod queue;
mod request;
mod shared;
#[cfg(any(
    feature = "embedded-storage",
    feature = "embedded-storage-async",
    feature = "block-device-driver"
))]
mod storage;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::iter;
use core::sync::atomic::Ordering;
use core::time::Duration;

use ringfence_memory::{AtomicU64, DmaBuf, DmaGrant, DmaWindows, Quiet, ResetError};

use crate::virtio::features::QUEUES;
use crate::virtio::{Device, DeviceType, Error, LOOK_AGAIN, Offer, QueueOptions, Transport};

use request::Common;

pub use crate::virtio::Ticket;
pub use error::RequestError;
pub use queue::BlockQueue;
pub use request::Request;
pub use shared::{Patience, SharedQueue, Transfer};
#[cfg(any(feature = "embedded-storage-async", feature = "block-device-driver"))]
pub use storage::SharedStorage;
#[cfg(feature = "embedded-storage")]
pub use storage::Storage;

/// Bytes in a sector: the unit of [`Request`]'s `sector` and of the capacity, whatever the block size.
pub const SECTOR_SIZE: usize = 512;
/// Length of a disk's id in bytes.
pub const ID_LEN: usize = 20;

const FEATURES: u64 = features::SIZE_MAX
    | features::SEG_MAX
    | features::RO
    | features::BLK_SIZE
    | features::FLUSH
    | features::MQ;

/// Offsets in the device configuration (5.2.4).
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const NUM_QUEUES: usize = 34;

/// A request has a header and a status besides its segments of data: one, unless the device limits them.
const CONTROLS: u16 = 2;
const SEGMENTS: u16 = 3;
/// Where the device limits segments, requests of this many bytes are made possible, and at least of a block.
const LONGEST_SEGMENTED: u32 = 1 << 20;

/// How a disk is to be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most request queues, 1 or more; as many are used as the device has.
    pub queues: u16,
    /// The most descriptors of each queue, from 3 on.
    pub queue_size: u16,
    /// The most requests in flight in each queue. Each takes 3 descriptors; where that is too many and the
    /// device offers [`INDIRECT_DESC`](crate::virtio::features::INDIRECT_DESC), all take one and a table,
    /// which costs the device more time.
    pub depth: u16,
    /// Which of the [`QUEUES`] features may be accepted.
    pub features: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1, queue_size: 256, depth: 64, features: QUEUES }
    }
}

/// What the disk is like, as far as the driver honours it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of [`SECTOR_SIZE`] bytes: those of whole blocks.
    pub sectors: u64,
    /// Requests start and end at multiples of this many bytes: a power of two from 512 up.
    pub block_size: u32,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether there is a flush command. If not, writes need none.
    pub flush: bool,
    /// The longest segment, in bytes.
    pub segment_size: u32,
    /// The most segments of data in a request.
    pub segments: u32,
}

impl Geometry {
    /// Whether a block goes into a request.
    fn has_requests(&self) -> bool {
        self.block_size.div_ceil(self.segment_size.max(1)) <= self.segments
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// What [`BlockQueue::submit`] returned for it. The next request may get the same
    /// [`index`](Ticket::index) at once: move the result to its owner now.
    pub ticket: Ticket,
    /// Whether it was carried out. If not, the contents of a buffer to read into are unspecified.
    pub result: Result<(), RequestError>,
    /// The request's buffer; a flush has none.
    pub buffer: Option<DmaBuf>,
}

/// A virtio block device.
///
/// Dropping it resets the device and waits (up to [`RESET_LIMIT`](crate::virtio::RESET_LIMIT)) for that;
/// requests in flight are then lost and their buffers free. If the device does not reset, its memory is never
/// used again.
///
/// Its parts are used apart: requests go through a queue while somebody else has the control. A
/// [`BlockQueue`] takes no lock. What is about the device does: bringing it up, its configuration, resets,
/// dropping it, and so they are not for interrupt handlers; nor are [`call`](Self::call) and
/// [`identify`](Self::identify), which wait.
pub struct Block<T: Transport> {
    // First, so that it is dropped first.
    /// What its queues have in common: features, configuration, resets.
    pub control: BlockControl<T>,
    /// The queue that every disk has. If there are more, [`split`](Self::split) gives each of them.
    pub queue: BlockQueue<T::Notifier>,
    others: Vec<BlockQueue<T::Notifier>>,
}

/// What a disk's queues have in common. It takes locks: not for interrupt handlers.
pub struct BlockControl<T: Transport> {
    device: Device<T>,
    /// As the device said when it was brought up. Of that only the capacity may change.
    geometry: Geometry,
    sectors: Arc<AtomicU64>,
}

impl<T: Transport> BlockControl<T> {
    /// The features in use.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// After a configuration interrupt, or when a request is overdue: checks the device's health and reads
    /// its capacity again. `true` if that changed. Requests in flight were checked against the old one.
    ///
    /// # Errors
    /// [`Error::BadConfig`] if anything but the capacity changed, or any: drop the driver.
    pub fn config_changed(&mut self) -> Result<bool, Error> {
        self.device.check()?;
        let (geometry, _) = read_config(&self.device)?;
        let sectors = geometry.sectors;
        if (Geometry { sectors, ..self.geometry }) != geometry {
            return Err(Error::BadConfig);
        }
        Ok(self.sectors.swap(sectors, Ordering::Relaxed) != sectors)
    }

    /// Resets the device for good. With the proof, what its queues still hold can be used again: dropping the
    /// [`Block`] gives the buffers back to their pools, or [`SharedQueue::close`] does for its queue.
    ///
    /// The queues do not notice: they take requests as before, which nobody answers. Submit no more.
    ///
    /// # Errors
    /// [`ResetError::Timeout`] after [`RESET_LIMIT`](crate::virtio::RESET_LIMIT): the memory is not used
    /// again.
    pub fn shut_down(&mut self) -> Result<Quiet, ResetError> {
        self.device.shut_down()
    }

    /// The same without waiting: asks for the reset.
    ///
    /// # Errors
    /// As for [`Device::begin_shut_down`].
    pub fn begin_shut_down(&mut self) -> Result<(), ResetError> {
        self.device.begin_shut_down()
    }

    /// The proof, when there is one; see [`Device::poll_shut_down`].
    pub fn poll_shut_down(&mut self) -> Option<Quiet> {
        self.device.poll_shut_down()
    }

    /// Resets a queue in which nothing is in flight, and sets it up again.
    ///
    /// # Errors
    /// As for [`Device::reset_queue`].
    pub fn reset_queue(&mut self, queue: &mut BlockQueue<T::Notifier>) -> Result<(), Error> {
        self.device.reset_queue(queue.inner())
    }

    /// The same without waiting: asks for the reset.
    ///
    /// # Errors
    /// As for [`Device::begin_reset_queue`].
    pub fn begin_reset_queue(&mut self, queue: &mut BlockQueue<T::Notifier>) -> Result<(), Error> {
        self.device.begin_reset_queue(queue.inner())
    }

    /// Sets the queue up again, if it has reset; see [`Device::poll_reset_queue`].
    ///
    /// # Errors
    /// As there.
    pub fn poll_reset_queue(&mut self, queue: &mut BlockQueue<T::Notifier>) -> Option<Result<(), Error>> {
        self.device.poll_reset_queue(queue.inner())
    }
}

impl<T: Transport> Block<T> {
    /// Brings the device up with the default [`Options`].
    ///
    /// # Errors
    /// Any; the device is left asked to reset and marked as failed; see [`Device`] for how long that may
    /// take.
    pub fn new(transport: T, grant: &DmaGrant, windows: DmaWindows) -> Result<Self, Error> {
        Self::with_options(transport, grant, windows, &Options::default())
    }

    /// Brings the device up.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_options(
        transport: T,
        grant: &DmaGrant,
        windows: DmaWindows,
        options: &Options,
    ) -> Result<Self, Error> {
        Self::take(Device::begin(transport, DeviceType::BLOCK, grant, windows)?, options)
    }

    /// The same with a device that has been reset, as [`Device::begin_reset`] does without waiting.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn take(offer: Offer<T>, options: &Options) -> Result<Self, Error> {
        if offer.device_type() != DeviceType::BLOCK {
            return Err(Error::WrongType);
        }
        let mut device = offer.negotiate(FEATURES | options.features & QUEUES)?;
        let (geometry, available) = read_config(&device)?;
        let sectors = Arc::new(AtomicU64::new(geometry.sectors));
        let longest = LONGEST_SEGMENTED.max(geometry.block_size);
        let segments = longest.div_ceil(geometry.segment_size).min(geometry.segments);
        let longest = u16::try_from(segments).unwrap_or(u16::MAX).saturating_add(CONTROLS);
        let (size, chains) = (options.queue_size, options.depth);
        let wish = QueueOptions { size, chains, segments: SEGMENTS, longest };
        let mut set_up = |index| {
            let windows = device.windows().clone();
            let queue = device.queue(index, &wish, SEGMENTS, |shape| {
                let segments = shape.segments.saturating_sub(CONTROLS).into();
                let geometry = Geometry { segments, ..geometry };
                if !geometry.has_requests() {
                    return Err(Error::QueueUnavailable(index));
                }
                Common::new(&windows, shape.slots, geometry, sectors.clone())
            });
            queue.map(BlockQueue::new)
        };
        let queue = set_up(0)?;
        let others = (1..options.queues.min(available)).map(set_up).collect::<Result<_, _>>()?;
        let started = device.driver_ok()?;
        let mut block = Self { control: BlockControl { device, geometry, sectors }, queue, others };
        block.split().1.for_each(|queue| queue.start(&started));
        Ok(block)
    }

    /// What the queues have in common, and each queue, so that each can be given to a CPU of its own.
    pub fn split(&mut self) -> (&mut BlockControl<T>, impl Iterator<Item = &mut BlockQueue<T::Notifier>>) {
        (&mut self.control, iter::once(&mut self.queue).chain(&mut self.others))
    }

    /// Submits a request to [`queue`](Self::queue) and waits for it, up to `limit`: for set-up, or where
    /// there is nothing else to do. A [`SharedQueue`] does not wait.
    ///
    /// `Ok` has the request's result and its buffer, also if it was refused: `Ok((Err(_), Some(buffer)))`.
    ///
    /// ```
    /// # use core::time::Duration;
    /// # use ringfence_drivers::block::{Block, Request};
    /// # use ringfence_drivers::virtio::{Error, Transport};
    /// # use ringfence_memory::DmaBuf;
    /// # fn read<T: Transport>(disk: &mut Block<T>, buffer: DmaBuf) -> Result<Option<DmaBuf>, Error> {
    /// let request = Request::Read { sector: 0, buffer, len: 512 };
    /// let (result, buffer) = disk.call(request, Duration::from_secs(1))?; // no answer
    /// result?; // refused, or failed
    /// # Ok(buffer)
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Busy`] if requests are in flight for which somebody waits, [`Error::Timeout`], after which
    /// the request is [given up](BlockQueue::give_up), or the queue's. Only where the device answered is the
    /// buffer free again.
    pub fn call(&mut self, request: Request, limit: Duration) -> Result<CallResult, Error> {
        if self.queue.in_flight() != self.queue.lost() {
            return Err(Error::Busy);
        }
        let ticket = match self.queue.submit(request) {
            Ok(ticket) => ticket,
            Err((error, request)) => return Ok((Err(error), request.into_buffer())),
        };
        self.queue.kick();
        let windows = self.control.device.windows().clone();
        let start = windows.now();
        let answer = windows.wait(limit, || {
            let mut answer = None;
            if windows.now().saturating_sub(start) > LOOK_AGAIN {
                self.queue.kick_again();
            }
            let reaped = self.queue.reap(|done| answer = Some(Ok((done.result, done.buffer))));
            reaped.err().map(|error| Err(error.into())).or(answer)
        });
        answer.unwrap_or_else(|| {
            self.queue.give_up(ticket);
            Err(self.control.device.check().err().unwrap_or(Error::Timeout))
        })
    }

    /// Asks for the disk's id (its serial number, padded with zeros) and waits for it, as
    /// [`call`](Self::call) does. `buffer` has at least [`ID_LEN`] bytes.
    ///
    /// # Errors
    /// As for [`call`](Self::call).
    pub fn identify(
        &mut self,
        buffer: DmaBuf,
        limit: Duration,
    ) -> Result<Result<[u8; ID_LEN], RequestError>, Error> {
        let (result, buffer) = self.call(Request::Identify { buffer }, limit)?;
        let mut id = [0; ID_LEN];
        let copied = buffer.is_some_and(|buffer| buffer.read_slice(&mut id, 0).is_ok());
        Ok(result.and(if copied { Ok(id) } else { Err(RequestError::BadLength) }))
    }
}

/// How a request ended, and its buffer.
pub type CallResult = (Result<(), RequestError>, Option<DmaBuf>);

impl<T: Transport> Drop for Block<T> {
    fn drop(&mut self) {
        if let Ok(quiet) = self.control.device.shut_down_at_last() {
            self.split().1.for_each(|queue| queue.reclaim(&quiet));
        }
    }
}

/// What the disk is like, and how many request queues it says that there are, at one moment; 0 if it says
/// nothing. The first is there in any case.
fn read_config<T: Transport>(device: &Device<T>) -> Result<(Geometry, u16), Error> {
    let has = |feature| device.features() & feature != 0;
    let (mut geometry, queues) = device.consistent_config(|device| {
        let optional =
            |feature, offset, default| if has(feature) { device.config(offset) } else { Ok(default) };
        let geometry = Geometry {
            sectors: device.config_u64(CAPACITY)?,
            block_size: optional(features::BLK_SIZE, BLK_SIZE, SECTOR_SIZE as u32)?,
            read_only: has(features::RO),
            flush: has(features::FLUSH),
            segment_size: optional(features::SIZE_MAX, SIZE_MAX, u32::MAX)?,
            segments: optional(features::SEG_MAX, SEG_MAX, 1)?,
        };
        let queues = has(features::MQ).then(|| device.config(NUM_QUEUES)).transpose()?;
        Ok((geometry, queues.unwrap_or_default()))
    })?;
    let sane = geometry.block_size.is_power_of_two() && geometry.block_size as usize >= SECTOR_SIZE;
    if !sane || geometry.segment_size == 0 || !geometry.has_requests() {
        return Err(Error::BadConfig);
    }
    let in_block = u64::from(geometry.block_size).div_ceil(SECTOR_SIZE as u64);
    geometry.sectors &= !in_block.wrapping_sub(1);
    Ok((geometry, queues))
}
