//! Block requests: what they are checked for, how they lie in the ring, and how they end.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use ringfence_memory::{Direction, DmaArray, DmaBuf, DmaWindows, Segment, SegmentArray};

use super::{Geometry, ID_LEN, SECTOR_SIZE};
use crate::virtio::{Buffers, Completion, Error, QueueError, QueueShape, sealed};

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
    /// There is no memory to wait for room in the ring.
    OutOfMemory,
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
    /// The buffer is not for this direction.
    WrongDirection,
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
    #[inline]
    pub fn into_buffer(self) -> Option<DmaBuf> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Identify { buffer } => {
                Some(buffer)
            }
            Self::Flush => None,
        }
    }

    #[inline(always)]
    pub(super) fn check(&self, controls: &Controls) -> Result<(), RequestError> {
        let disk = &controls.geometry;
        let (sector, buffer, len) = match self {
            Self::Write { .. } if disk.read_only => return Err(RequestError::ReadOnly),
            Self::Read { sector, buffer, len } | Self::Write { sector, buffer, len } => {
                (*sector, buffer, *len)
            }
            _ => return self.check_other(controls),
        };
        if buffer.len() < len {
            return Err(RequestError::BufferTooShort);
        }
        if len as u64 > controls.longest {
            return Err(RequestError::TooLong);
        }
        let in_block = u64::from(disk.block_size.wrapping_sub(1));
        if len == 0 || (sector << SECTOR_SIZE.trailing_zeros() | len as u64) & in_block != 0 {
            return Err(RequestError::Misaligned);
        }
        let end = sector.checked_add((len / SECTOR_SIZE) as u64);
        if end.is_some_and(|end| end <= controls.sectors.load(Ordering::Relaxed)) {
            Ok(())
        } else {
            Err(RequestError::OutOfRange)
        }
    }

    #[cold]
    fn check_other(&self, controls: &Controls) -> Result<(), RequestError> {
        match self {
            Self::Flush if !controls.geometry.flush => Err(RequestError::Unsupported),
            Self::Identify { buffer } if buffer.len() < ID_LEN => Err(RequestError::BufferTooShort),
            Self::Identify { .. } if controls.longest < ID_LEN as u64 => Err(RequestError::TooLong),
            _ => Ok(()),
        }
    }
}

/// The most bytes of any request: header and status take some of the 4 GiB that a chain can have (2.7.5).
const LONGEST: u64 = u32::MAX as u64 & !0xfffff;
/// Not a status that a device reports.
const NO_STATUS: u8 = 0xff;
/// Words of a request's header: type and reserved in one, and the sector.
const HEADER_WORDS: usize = 2;

/// What the requests of a queue have in common: memory for their headers and status bytes, and what they are
/// checked for.
pub(super) struct Controls {
    /// By slot.
    headers: DmaArray<u64>,
    statuses: DmaArray<u8>,
    /// The same as segments.
    frames: [SegmentArray; 2],
    pub(super) geometry: Geometry,
    /// The most bytes of a request: less than 4 GiB.
    longest: u64,
    /// The capacity, which can change.
    pub(super) sectors: Arc<AtomicU64>,
}

impl Controls {
    /// Memory for the requests of a queue like `shape`.
    pub(super) fn new(
        windows: &DmaWindows,
        shape: &QueueShape,
        geometry: Geometry,
        sectors: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let words = shape.slots.saturating_mul(HEADER_WORDS);
        let headers = windows.allocate_for(words.saturating_mul(size_of::<u64>()), Direction::ToDevice)?;
        let statuses = windows.allocate_for(shape.slots, Direction::FromDevice)?;
        let (headers, statuses) = (headers.array(0, words)?, statuses.array(0, shape.slots)?);
        let frames = headers.segments(HEADER_WORDS, false).zip(statuses.segments(1, true));
        let (first, last) = frames.ok_or(Error::BadConfig)?;
        Ok(Self {
            headers,
            statuses,
            frames: [first, last],
            geometry,
            longest: u64::from(geometry.segment_size).saturating_mul(geometry.segments.into()).min(LONGEST),
            sectors,
        })
    }

    /// Writes the header of the request in `slot` and clears its status. All slots have both.
    #[inline]
    fn prepare(&self, slot: u16, kind: Kind, sector: u64) -> Option<()> {
        let slot = usize::from(slot);
        let at = slot.wrapping_mul(HEADER_WORDS);
        self.headers.store(at.wrapping_add(1), sector.to_le(), Ordering::Relaxed)?;
        self.headers.store(at, u64::from(kind as u32).to_le(), Ordering::Relaxed)?;
        self.statuses.store(slot, NO_STATUS, Ordering::Relaxed)
    }

    /// How the request in `slot` ended. The status byte is read once.
    #[inline]
    pub(super) fn outcome(&self, completion: &Completion<InFlight>) -> Result<(), RequestError> {
        let status = self.statuses.load(completion.slot.into(), Ordering::Relaxed).unwrap_or(NO_STATUS);
        let written = completion.written.ok_or(RequestError::BadLength)?;
        match status {
            // The data and the status.
            0 if written > completion.buffers.data_written() => Ok(()),
            0 => Err(RequestError::BadLength),
            1 => Err(RequestError::Io),
            2 => Err(RequestError::Unsupported),
            other => Err(RequestError::BadStatus(other)),
        }
    }
}

/// Request types (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    In = 0,
    Out = 1,
    Flush = 4,
    GetId = 8,
}

/// A request in the ring.
pub(super) struct InFlight {
    buffer: Option<DmaBuf>,
    sector: u64,
    /// Bytes of data.
    len: u32,
    kind: Kind,
}

impl InFlight {
    /// A request that was checked.
    #[inline(always)]
    pub(super) fn new(request: Request) -> Self {
        match request {
            Request::Read { sector, buffer, len } => {
                Self { buffer: Some(buffer), sector, len: len as u32, kind: Kind::In }
            }
            Request::Write { sector, buffer, len } => {
                Self { buffer: Some(buffer), sector, len: len as u32, kind: Kind::Out }
            }
            Request::Flush => Self { buffer: None, sector: 0, len: 0, kind: Kind::Flush },
            Request::Identify { buffer } => {
                Self { buffer: Some(buffer), sector: 0, len: ID_LEN as u32, kind: Kind::GetId }
            }
        }
    }

    /// Why the queue refused it.
    #[cold]
    pub(super) fn refused(&self, error: QueueError) -> RequestError {
        let wrong = if self.kind == Kind::Out { Direction::FromDevice } else { Direction::ToDevice };
        let is_wrong = self.buffer.as_ref().is_some_and(|buffer| buffer.direction() == wrong);
        if is_wrong { RequestError::WrongDirection } else { error.into() }
    }

    /// The request as it was.
    pub(super) fn into_request(self) -> Request {
        let (sector, len) = (self.sector, self.len as usize);
        match (self.kind, self.buffer) {
            (Kind::In, Some(buffer)) => Request::Read { sector, buffer, len },
            (Kind::Out, Some(buffer)) => Request::Write { sector, buffer, len },
            (Kind::GetId, Some(buffer)) => Request::Identify { buffer },
            (_, None) | (Kind::Flush, _) => Request::Flush,
        }
    }

    /// Its buffer, if it has one.
    #[inline]
    pub(super) fn into_buffer(self) -> Option<DmaBuf> {
        self.buffer
    }

    /// How many bytes of its data the device writes.
    #[inline]
    fn data_written(&self) -> u32 {
        if matches!(self.kind, Kind::In | Kind::GetId) { self.len } else { 0 }
    }
}

impl sealed::Sealed for InFlight {}

impl Buffers for InFlight {
    type Context = Controls;

    const FRAMED: bool = true;

    /// Header and status.
    fn frames(controls: &Controls) -> Option<[&SegmentArray; 2]> {
        Some(controls.frames.each_ref())
    }

    #[inline]
    fn only<'a>(&'a self, controls: &'a Controls) -> Option<Segment<'a>> {
        let buffer = self.buffer.as_ref().filter(|_| self.len <= controls.geometry.segment_size)?;
        buffer.segment(0, self.len as usize, self.kind != Kind::Out)
    }

    fn count(&self, controls: &Controls) -> u16 {
        // Not 0: the geometry was checked.
        let most = controls.geometry.segment_size.max(1);
        self.len.div_ceil(most).try_into().unwrap_or(u16::MAX)
    }

    fn segment<'a>(&'a self, controls: &'a Controls, index: u16) -> Option<Segment<'a>> {
        let most = controls.geometry.segment_size;
        // Both are below 4 GiB.
        let start = (u64::from(most).wrapping_mul(index.into())) as usize;
        let len = (self.len as usize).checked_sub(start)?.min(most as usize);
        self.buffer.as_ref()?.segment(start, len, self.kind != Kind::Out)
    }

    #[inline]
    fn prepare(&self, controls: &Controls, slot: u16) -> Option<()> {
        controls.prepare(slot, self.kind, self.sector)
    }

    #[inline]
    fn least_written(&self) -> u32 {
        // The status. Whether a read also needs its data depends on that.
        1
    }

    fn abandon(self) {
        if let Some(buffer) = self.buffer {
            buffer.abandon();
        }
    }
}
