//! Virtio block devices (section 5.2): read, write, flush and identify, as many at once as the ring holds.

mod request;

use alloc::vec::Vec;
use core::time::Duration;

use ringfence_memory::{DmaBuf, DmaGrant, DmaPool, DmaWindows};

use crate::virtio::{Counters, Device, DeviceType, Error, Queue, QueueError, Transport, features};

use request::{CONTROL_LEN, Control, InFlight, outcome};
pub use request::{Request, RequestError};

/// Bytes in a sector: the unit of [`Request`]'s `sector` and of the capacity, whatever the block size.
pub const SECTOR_SIZE: usize = 512;
/// Length of a disk's id in bytes.
pub const ID_LEN: usize = 20;

const FEATURES: u64 = features::block::SIZE_MAX
    | features::block::SEG_MAX
    | features::block::RO
    | features::block::BLK_SIZE
    | features::block::FLUSH;

/// Offsets in the device configuration (5.2.4).
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;

/// A request is at least a header, one segment of data, and a status.
const DESCRIPTORS_PER_REQUEST: u16 = 3;
const DEFAULT_QUEUE_SIZE: u16 = 256;

/// What the disk is like, as far as the driver honours it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of [`SECTOR_SIZE`] bytes.
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

/// Identifies a request while it is in flight: a number below [`Block::depth`], to find its owner in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u16);

impl Ticket {
    /// The number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// What [`Block::submit`] returned for it. The next request may get the same one at once: move the result to
    /// its owner now, or keep it under a number of your own.
    pub ticket: Ticket,
    /// Whether it was carried out. If not, the contents of a buffer to read into are unspecified.
    pub result: Result<(), RequestError>,
    /// The request's buffer; a flush has none.
    pub buffer: Option<DmaBuf>,
}

/// A virtio block device.
///
/// Dropping it resets the device and waits (up to [`RESET_LIMIT`](crate::virtio::RESET_LIMIT)) for that; requests
/// in flight are then lost and their buffers free. If the device does not reset, its memory is never used again.
pub struct Block<T: Transport> {
    // First, so that it is dropped first.
    device: Device<T>,
    queue: Queue<InFlight, T::Notifier>,
    /// Header and status of requests that could be submitted.
    controls: Vec<Control>,
    depth: usize,
    geometry: Geometry,
}

impl<T: Transport> Block<T> {
    /// Brings the device up with a queue of up to 256 descriptors.
    ///
    /// # Errors
    /// Any; the device is left reset and marked as failed.
    pub fn new(transport: T, grant: &DmaGrant, windows: DmaWindows) -> Result<Self, Error> {
        Self::with_queue_size(transport, grant, windows, DEFAULT_QUEUE_SIZE)
    }

    /// Like [`new`](Self::new), with up to `size` descriptors: the largest power of two that both sides allow.
    pub fn with_queue_size(
        transport: T,
        grant: &DmaGrant,
        windows: DmaWindows,
        size: u16,
    ) -> Result<Self, Error> {
        let mut device = Device::begin(transport, DeviceType::BLOCK, grant, windows)?;
        device.negotiate(FEATURES)?;
        let mut geometry = read_geometry(&device)?;
        let mut queue: Queue<InFlight, _> = device.queue(0, size, DESCRIPTORS_PER_REQUEST)?;
        // Header and status take two descriptors.
        geometry.segments = geometry.segments.min(queue.size().saturating_sub(2).into());
        // The shortest requests take two descriptors.
        let depth = usize::from(queue.size() / 2);
        let pool = DmaPool::new(device.windows(), depth, CONTROL_LEN)?;
        let controls = (0..).map_while(|ticket| Control::new(Ticket(ticket), &pool)).collect();
        let started = device.driver_ok()?;
        queue.start(&started);
        Ok(Self { device, queue, controls, depth, geometry })
    }

    /// What the disk is like.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// The most requests that can ever be in flight; requests with data need three descriptors each, so fewer of
    /// these fit.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight().into()
    }

    /// Number of descriptors of the queue.
    pub fn queue_size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the device broke the rules of its ring: drop the driver.
    pub fn is_broken(&self) -> bool {
        self.queue.is_broken()
    }

    /// What the queue has done.
    pub fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// Reports `count` interrupts of the queue, for the counters.
    pub fn count_interrupts(&mut self, count: u64) {
        self.queue.count_interrupts(count);
    }

    /// Puts a request into the ring. The device starts on it after the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// Gives the request back: see [`RequestError`]. After [`RequestError::Full`], reap and try again.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, (RequestError, Request)> {
        if let Err(error) = request.check(&self.geometry) {
            return Err((error, request));
        }
        let Some(control) = self.controls.pop() else { return Err((RequestError::Full, request)) };
        let ticket = control.ticket;
        match self.queue.submit(InFlight::new(control, request, &self.geometry)) {
            Ok(_) => Ok(ticket),
            Err((error, rejected)) => {
                let (control, request) = rejected.into_parts();
                self.controls.push(control);
                Err((error.into(), request))
            }
        }
    }

    /// Submits all of `requests` and kicks once; `each` learns how each one fared.
    pub fn submit_batch(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        mut each: impl FnMut(Result<Ticket, (RequestError, Request)>),
    ) {
        for request in requests {
            each(self.submit(request));
        }
        self.kick();
    }

    /// Tells the device about all submitted requests, by at most one notification.
    pub fn kick(&mut self) {
        self.queue.kick();
    }

    /// Hands all finished requests to `done`, and says how many there were.
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    pub fn reap(&mut self, mut done: impl FnMut(Done)) -> Result<usize, QueueError> {
        let controls = &mut self.controls;
        self.queue.reap(|completion| {
            let result = outcome(&completion);
            let (control, request) = completion.buffers.into_parts();
            let ticket = control.ticket;
            // Never beyond its capacity: the control came out of it.
            controls.push(control);
            done(Done { ticket, result, buffer: request.into_buffer() });
        })
    }

    /// Asks for no interrupts while polling. Interrupts may come anyway.
    pub fn disable_interrupts(&mut self) {
        self.queue.disable_interrupts();
    }

    /// Asks for an interrupt at the next completion. `true`: something is there already; reap instead of sleeping.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.queue.enable_interrupts()
    }

    /// After a configuration interrupt, or when a request is overdue: checks the device's health and reads its
    /// capacity again. `true` if that changed. Requests in flight were checked against the old one.
    ///
    /// # Errors
    /// Any: drop the driver.
    pub fn config_changed(&mut self) -> Result<bool, Error> {
        self.device.check()?;
        let sectors = self.device.config_u64(CAPACITY)?;
        Ok(core::mem::replace(&mut self.geometry.sectors, sectors) != sectors)
    }

    /// Asks for the disk's id (its serial number, padded with zeros) and waits for it, up to `limit`. `buffer`
    /// has at least [`ID_LEN`] bytes. For set-up only: it spins.
    ///
    /// # Errors
    /// [`Error::Busy`] if requests are in flight, [`Error::Timeout`], or the queue's. Only where the
    /// device answered is the buffer free again.
    pub fn identify(
        &mut self,
        buffer: DmaBuf,
        limit: Duration,
    ) -> Result<Result<[u8; ID_LEN], RequestError>, Error> {
        if self.queue.in_flight() != 0 {
            return Err(Error::Busy);
        }
        if let Err((error, _)) = self.submit(Request::Identify { buffer }) {
            return Ok(Err(error));
        }
        self.kick();
        let start = self.device.windows().now();
        let mut answer = None;
        loop {
            self.reap(|done| answer = Some(done))?;
            if let Some(Done { result, buffer, .. }) = answer {
                let mut id = [0; ID_LEN];
                let copied = buffer.is_some_and(|buffer| buffer.read_slice(&mut id, 0).is_ok());
                return Ok(result.and(if copied { Ok(id) } else { Err(RequestError::BadLength) }));
            }
            if self.device.windows().now().saturating_sub(start) > limit {
                self.device.check()?;
                return Err(Error::Timeout);
            }
            core::hint::spin_loop();
        }
    }
}

impl<T: Transport> Drop for Block<T> {
    fn drop(&mut self) {
        if let Ok(quiet) = self.device.shut_down() {
            self.queue.reclaim(&quiet).for_each(drop);
        }
    }
}

fn read_geometry<T: Transport>(device: &Device<T>) -> Result<Geometry, Error> {
    let has = |feature| device.features() & feature != 0;
    let optional =
        |feature, offset| if has(feature) { device.config::<u32>(offset).map(Some) } else { Ok(None) };
    let block_size = optional(features::block::BLK_SIZE, BLK_SIZE)?.unwrap_or(SECTOR_SIZE as u32);
    let segment_size = optional(features::block::SIZE_MAX, SIZE_MAX)?.unwrap_or(u32::MAX);
    let segments = optional(features::block::SEG_MAX, SEG_MAX)?.unwrap_or(1);
    let sane = block_size.is_power_of_two() && block_size as usize >= SECTOR_SIZE;
    if !sane || segment_size == 0 || segments == 0 {
        return Err(Error::BadConfig);
    }
    Ok(Geometry {
        sectors: device.config_u64(CAPACITY)?,
        block_size,
        read_only: has(features::block::RO),
        flush: has(features::block::FLUSH),
        segment_size,
        segments,
    })
}
