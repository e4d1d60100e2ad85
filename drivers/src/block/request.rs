//! Block requests: what they are checked for, how they lie in the ring, and how they end.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ringfence_memory::{AtomicU64, Direction, DmaBuf, DmaWindows, Segment};

use super::error::RequestError;
use super::{Geometry, ID_LEN, SECTOR_SIZE};
use crate::virtio::{Buffers, Controls, Ends, Error, QueueError, UsedChain, sealed};

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

impl From<QueueError> for RequestError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full => Self::Full,
            QueueError::BadChain => Self::TooLong,
            QueueError::OutOfMemory => Self::OutOfMemory,
            QueueError::WrongDevice => Self::WrongDevice,
            QueueError::Broken | QueueError::Unresponsive => Self::Broken,
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

    /// Its parts: kind, sector and length, and the buffer.
    #[inline(always)]
    pub(super) fn split(self) -> ((Kind, u64, usize), InFlight) {
        let (command, buffer) = match self {
            Self::Read { sector, buffer, len } => ((Kind::In, sector, len), Some(buffer)),
            Self::Write { sector, buffer, len } => ((Kind::Out, sector, len), Some(buffer)),
            Self::Flush => ((Kind::Flush, 0, 0), None),
            Self::Identify { buffer } => ((Kind::GetId, 0, ID_LEN), Some(buffer)),
        };
        (command, InFlight(buffer))
    }
}

/// Whether `len` bytes from `sector` on are whole blocks.
#[inline(always)]
fn is_aligned(sector: u64, len: usize, common: &Common) -> bool {
    (sector << SECTOR_SIZE.trailing_zeros() | len as u64) & common.in_block == 0
}

/// Whether they are all on the disk.
#[inline(always)]
fn is_in_range(sector: u64, len: usize, common: &Common) -> bool {
    let end = sector.checked_add((len / SECTOR_SIZE) as u64);
    end.is_some_and(|end| end <= common.sectors.load(Ordering::Relaxed))
}

/// The most bytes of any request: header and status take some of the 4 GiB that a chain can have (2.7.5).
const LONGEST: u64 = u32::MAX as u64 & !0xfffff;

/// What the requests of a queue have in common.
pub(super) struct Common {
    /// By slot.
    controls: Controls,
    pub(super) geometry: Geometry,
    /// The most bytes of a request, and of a segment: less than 4 GiB.
    longest: u64,
    one: usize,
    /// The bits of an offset that are within a block.
    in_block: u64,
    /// The capacity, which can change.
    pub(super) sectors: Arc<AtomicU64>,
}

impl Common {
    /// What is for the requests of a queue of `slots` slots.
    pub(super) fn new(
        windows: &DmaWindows,
        slots: usize,
        geometry: Geometry,
        sectors: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let longest = u64::from(geometry.segment_size).saturating_mul(geometry.segments.into()).min(LONGEST);
        let one = u64::from(geometry.segment_size).min(longest) as usize;
        let in_block = u64::from(geometry.block_size).wrapping_sub(1);
        Ok(Self { controls: Controls::new(windows, slots)?, geometry, longest, one, in_block, sectors })
    }

    /// How a request ended. The status byte is read once.
    #[inline(always)]
    pub(super) fn outcome(&self, used: UsedChain) -> Result<(), RequestError> {
        let status = self.controls.status(used.ticket);
        // The data and the status, all of them.
        if status == 0 && used.written == used.writable { Ok(()) } else { failure(status, used) }
    }
}

/// How a request ended that did not simply succeed.
#[inline(always)]
fn failure(status: u8, used: UsedChain) -> Result<(), RequestError> {
    if used.written(1).is_none() {
        return Err(RequestError::BadLength);
    }
    Err(match status {
        0 => RequestError::BadLength,
        1 => RequestError::Io,
        2 => RequestError::Unsupported,
        other => RequestError::BadStatus(other),
    })
}

/// Request types (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    In = 0,
    Out = 1,
    Flush = 4,
    GetId = 8,
}

/// A request without its buffer.
#[derive(Clone, Copy)]
pub(super) struct Command {
    pub(super) kind: Kind,
    pub(super) sector: u64,
    /// Bytes of data.
    pub(super) len: usize,
}

impl Command {
    /// Whether the disk can do it. What there is to say of the buffer is left to the queue.
    #[inline(always)]
    pub(super) fn is_possible(self, common: &Common) -> bool {
        let Self { kind, sector, len } = self;
        let disk = &common.geometry;
        match kind {
            Kind::Flush => disk.flush,
            Kind::GetId => true,
            Kind::Out if disk.read_only => false,
            Kind::In | Kind::Out => is_aligned(sector, len, common) && is_in_range(sector, len, common),
        }
    }

    /// The request as it was.
    fn join(self, InFlight(buffer): InFlight) -> Request {
        let Self { kind, sector, len } = self;
        match (kind, buffer) {
            (Kind::In, Some(buffer)) => Request::Read { sector, buffer, len },
            (Kind::Out, Some(buffer)) => Request::Write { sector, buffer, len },
            (Kind::GetId, Some(buffer)) => Request::Identify { buffer },
            (_, None) | (Kind::Flush, _) => Request::Flush,
        }
    }

    /// What is wrong with the request that it was, since that was refused; with `error` if the queue did it.
    #[cold]
    #[inline(never)]
    pub(super) fn refused(
        (kind, sector, len): (Kind, u64, usize),
        buffer: InFlight,
        common: &Common,
        error: QueueError,
    ) -> (RequestError, Request) {
        let command = Self { kind, sector, len };
        (command.why_refused(&buffer, common, error), command.join(buffer))
    }

    fn why_refused(self, InFlight(buffer): &InFlight, common: &Common, error: QueueError) -> RequestError {
        let (Self { kind, sector, len }, disk) = (self, &common.geometry);
        let needs = match kind {
            Kind::Out if disk.read_only => return RequestError::ReadOnly,
            Kind::Flush if !disk.flush => return RequestError::Unsupported,
            Kind::Out => Direction::ToDevice,
            Kind::In | Kind::GetId | Kind::Flush => Direction::FromDevice,
        };
        let Some(buffer) = buffer else { return error.into() };
        if buffer.len() < len {
            RequestError::BufferTooShort
        } else if len as u64 > common.longest {
            RequestError::TooLong
        } else if kind != Kind::GetId && (len == 0 || !is_aligned(sector, len, common)) {
            RequestError::Misaligned
        } else if !is_in_range(sector, len, common) {
            RequestError::OutOfRange
        } else if buffer.direction() != Direction::Both && buffer.direction() != needs {
            RequestError::WrongDirection
        } else {
            error.into()
        }
    }
}

/// A request's buffer in the ring; a flush has none.
#[derive(Default)]
pub(super) struct InFlight(pub(super) Option<DmaBuf>);

impl sealed::Sealed for InFlight {}

impl Buffers for InFlight {
    type Context = Common;
    type Request = Command;

    /// Header and status.
    fn ends(common: &Common, slot: u16) -> Option<[Segment<'_>; 2]> {
        common.controls.ends(slot)
    }

    fn longest(common: &Common) -> u32 {
        common.one as u32
    }

    #[inline(always)]
    fn only<'a>(&'a self, command: Command, _: &'a Common) -> Option<Segment<'a>> {
        self.0.as_ref()?.segment(0, command.len, command.kind != Kind::Out)
    }

    fn count(&self, command: Command, common: &Common) -> u16 {
        match command.len {
            0 if self.0.is_none() => 0,
            0 => u16::MAX,
            len => len.div_ceil(common.one.max(1)).try_into().unwrap_or(u16::MAX),
        }
    }

    fn segment<'a>(&'a self, command: Command, common: &'a Common, index: u16) -> Option<Segment<'a>> {
        let start = common.one.checked_mul(index.into())?;
        let len = command.len.checked_sub(start)?.min(common.one);
        self.0.as_ref()?.segment(start, len, command.kind != Kind::Out)
    }

    #[inline(always)]
    fn prepare<'a>(&self, command: Command, common: &'a Common, slot: u16) -> Ends<'a> {
        common.controls.prepare(slot, [u64::from(command.kind as u32), command.sector])
    }

    fn abandon(self) {
        if let Some(buffer) = self.0 {
            buffer.abandon();
        }
    }
}
