//! Block requests: what they are checked for, how they lie in the ring, and how they end.

use core::sync::atomic::Ordering;

use ringfence_memory::{Bytes, DmaBuf, DmaPool};

use super::{Geometry, ID_LEN, SECTOR_SIZE, Ticket};
use crate::virtio::{Buffers, Completion, Part, QueueError};

/// Something to do, with the buffer to do it with.
#[derive(Debug)]
pub enum Request {
    /// Reads `len` bytes from the disk into the start of `buffer`.
    Read {
        /// First sector, in units of [`SECTOR_SIZE`].
        sector: u64,
        /// Where to.
        buffer: DmaBuf,
        /// A multiple of the block size, up to the buffer's length; not 0.
        len: usize,
    },
    /// Writes the first `len` bytes of `buffer` to the disk.
    Write {
        /// First sector, in units of [`SECTOR_SIZE`].
        sector: u64,
        /// Where from.
        buffer: DmaBuf,
        /// A multiple of the block size, up to the buffer's length; not 0.
        len: usize,
    },
    /// Makes all writes that have completed durable.
    Flush,
    /// Writes the disk's id to the first [`ID_LEN`] bytes of `buffer`.
    Identify {
        /// Where to.
        buffer: DmaBuf,
    },
}

/// Why a request was not accepted, or not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The ring or the supply of control blocks is used up for now.
    Full,
    /// It reaches beyond the end of the disk.
    OutOfRange,
    /// The start or the length is not a multiple of the block size, or the length is 0.
    Misaligned,
    /// The buffer is shorter than the data.
    BufferTooShort,
    /// More segments than the device takes in one request.
    TooLong,
    /// The disk is read-only.
    ReadOnly,
    /// The buffer is memory of another device.
    WrongDevice,
    /// The device has no such command.
    Unsupported,
    /// The device reports an input or output error.
    Io,
    /// The device reports a status that the specification does not know.
    BadStatus(u8),
    /// The device says that it wrote more than fits, or less than the request needs.
    BadLength,
    /// The device broke the rules of the ring. Drop the driver.
    Broken,
}

impl From<QueueError> for RequestError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full => Self::Full,
            QueueError::BadChain => Self::TooLong,
            QueueError::WrongDevice => Self::WrongDevice,
            QueueError::Broken => Self::Broken,
        }
    }
}

impl Request {
    /// Its buffer, if it has one.
    pub fn into_buffer(self) -> Option<DmaBuf> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Identify { buffer } => {
                Some(buffer)
            }
            Self::Flush => None,
        }
    }

    /// Request type, sector, data and its length in bytes (5.2.6).
    fn describe(&self) -> (u32, u64, Option<&DmaBuf>, usize) {
        match self {
            Self::Read { sector, buffer, len } => (0, *sector, Some(buffer), *len),
            Self::Write { sector, buffer, len } => (1, *sector, Some(buffer), *len),
            Self::Flush => (4, 0, None, 0),
            Self::Identify { buffer } => (8, 0, Some(buffer), ID_LEN),
        }
    }

    pub(super) fn check(&self, disk: &Geometry) -> Result<(), RequestError> {
        let (_, sector, buffer, len) = self.describe();
        if buffer.is_some_and(|buffer| buffer.len() < len) {
            return Err(RequestError::BufferTooShort);
        }
        let segments = len.div_ceil(disk.segment_size as usize);
        if segments > disk.segments as usize {
            return Err(RequestError::TooLong);
        }
        match self {
            Self::Flush if !disk.flush => return Err(RequestError::Unsupported),
            Self::Flush | Self::Identify { .. } => return Ok(()),
            Self::Write { .. } if disk.read_only => return Err(RequestError::ReadOnly),
            Self::Write { .. } | Self::Read { .. } => {}
        }
        let sectors_per_block = u64::from(disk.block_size >> SECTOR_SIZE.trailing_zeros());
        if len == 0
            || !len.is_multiple_of(disk.block_size as usize)
            || !sector.is_multiple_of(sectors_per_block)
        {
            return Err(RequestError::Misaligned);
        }
        let end = sector.checked_add((len / SECTOR_SIZE) as u64);
        if end.is_some_and(|end| end <= disk.sectors) { Ok(()) } else { Err(RequestError::OutOfRange) }
    }
}

/// Length of a control block: the header (type, reserved, sector) and the status, padded so that none crosses a
/// cache line.
pub(super) const CONTROL_LEN: usize = 32;
const HEADER_LEN: usize = 16;
const STATUS_AT: usize = 16;

/// Memory for the header and the status of one request.
pub(super) struct Control {
    pub(super) ticket: Ticket,
    buffer: DmaBuf,
}

impl Control {
    /// `None` when the pool is empty.
    pub(super) fn new(ticket: Ticket, pool: &DmaPool) -> Option<Self> {
        Some(Self { ticket, buffer: pool.take()? })
    }
}

/// A request in the ring: everything that the device was told of.
pub(super) struct InFlight {
    control: Control,
    request: Request,
    segment_size: usize,
}

/// Not a status that a device reports.
const NO_STATUS: u8 = 0xff;

impl InFlight {
    pub(super) fn new(control: Control, request: Request, disk: &Geometry) -> Self {
        let (kind, sector, ..) = request.describe();
        // Type (32 bits), reserved (32 bits), sector.
        let header = [u64::from(kind).to_le(), sector.to_le()];
        let block = control.buffer.as_volatile_slice();
        // Cannot fail: both are within a control buffer.
        let _ = block.write_obj(header, 0);
        let _ = block.store(NO_STATUS, STATUS_AT, Ordering::Relaxed);
        Self { control, request, segment_size: disk.segment_size as usize }
    }

    pub(super) fn into_parts(self) -> (Control, Request) {
        (self.control, self.request)
    }
}

impl Buffers for InFlight {
    fn part(&self, index: u16) -> Option<Part> {
        let control = &self.control.buffer;
        let Some(index) = index.checked_sub(1) else { return Part::readable(control, 0, HEADER_LEN) };
        let (_, _, data, len) = self.request.describe();
        let start = usize::from(index).saturating_mul(self.segment_size);
        match data {
            Some(data) if start < len => {
                let segment = len.saturating_sub(start).min(self.segment_size);
                match self.request {
                    Request::Write { .. } => Part::readable(data, start, segment),
                    _ => Part::writable(data, start, segment),
                }
            }
            _ => {
                let segments = len.div_ceil(self.segment_size);
                (usize::from(index) == segments).then(|| Part::writable(control, STATUS_AT, 1))?
            }
        }
    }

    fn least_written(&self) -> u32 {
        // The status. Whether a read also needs its data depends on that.
        1
    }

    fn abandon(self) {
        let (control, request) = self.into_parts();
        control.buffer.abandon();
        if let Some(buffer) = request.into_buffer() {
            buffer.abandon();
        }
    }
}

/// How a request ended. The status byte is read once.
pub(super) fn outcome(completion: &Completion<InFlight>) -> Result<(), RequestError> {
    let InFlight { control, request, .. } = &completion.buffers;
    let status = control.buffer.as_volatile_slice().load(STATUS_AT, Ordering::Relaxed);
    let written = completion.written.ok_or(RequestError::BadLength)?;
    match status.unwrap_or(NO_STATUS) {
        0 => {
            let data = match request {
                Request::Read { len, .. } => *len,
                Request::Identify { .. } => ID_LEN,
                Request::Write { .. } | Request::Flush => 0,
            };
            let least = data.saturating_add(1);
            if written as usize >= least { Ok(()) } else { Err(RequestError::BadLength) }
        }
        1 => Err(RequestError::Io),
        2 => Err(RequestError::Unsupported),
        other => Err(RequestError::BadStatus(other)),
    }
}
