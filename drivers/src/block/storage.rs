//! Disks as other crates' storage: addressed by the byte, or in blocks, and copied through DMA buffers.
#![allow(dead_code, unused_imports, reason = "each of the crates wants a part of it")]

use core::time::Duration;

use ringfence_memory::{Bytes, DmaBuf, DmaPool};

use super::{Block, CallResult, Geometry, Request, RequestError, SECTOR_SIZE, SharedQueue};
use crate::virtio::{Error, Notify, Transport};

/// Part of a transfer: whole blocks, as many as go through a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    sector: u64,
    /// Bytes of whole blocks.
    len: usize,
    /// The first byte of those that is meant, and how many are.
    skip: usize,
    bytes: usize,
}

impl Part {
    /// The first part of `left` bytes from byte `offset` on, through a buffer of `room` bytes. `None` if that
    /// has no room for a block.
    fn first(offset: u64, left: usize, room: usize, geometry: &Geometry) -> Option<Self> {
        let block = geometry.block_size as usize;
        let room = room.checked_sub(room.checked_rem(block)?)?;
        let skip = offset.checked_rem(block as u64)? as usize;
        let bytes = left.min(room.checked_sub(skip).filter(|&bytes| bytes > 0)?);
        let len = skip.checked_add(bytes)?.checked_next_multiple_of(block)?;
        let sector = offset.checked_sub(skip as u64)?.checked_div(SECTOR_SIZE as u64)?;
        Some(Self { sector, len, skip, bytes })
    }

    /// Whether something in the blocks is not meant.
    fn is_partial(&self) -> bool {
        self.bytes != self.len
    }

    fn read(&self, buffer: DmaBuf) -> Request {
        Request::Read { sector: self.sector, buffer, len: self.len }
    }

    fn write(&self, buffer: DmaBuf) -> Request {
        Request::Write { sector: self.sector, buffer, len: self.len }
    }
}

/// The buffer of a request that was carried out.
fn carried_out((result, buffer): CallResult) -> Result<DmaBuf, RequestError> {
    result?;
    buffer.ok_or(RequestError::Broken)
}

/// The bytes of the disk, as many as can be counted.
fn capacity(geometry: &Geometry) -> u64 {
    geometry.sectors.saturating_mul(SECTOR_SIZE as u64)
}

/// Copies all of `bytes` from the disk, part by part; `$call` carries a request out.
macro_rules! read {
    ($offset:expr, $bytes:expr, $buffers:expr, $geometry:expr, $call:expr $(, $await:tt)?) => {{
        let (mut offset, mut left): (u64, &mut [u8]) = ($offset, $bytes);
        while !left.is_empty() {
            let buffer = $buffers.take().ok_or(RequestError::Full)?;
            let part = Part::first(offset, left.len(), buffer.len(), &$geometry);
            let part = part.ok_or(RequestError::BufferTooShort)?;
            let buffer = carried_out($call(part.read(buffer))$(.$await)??)?;
            let (now, rest) = left.split_at_mut_checked(part.bytes).ok_or(RequestError::OutOfRange)?;
            buffer.read_slice(now, part.skip).map_err(|_| RequestError::BufferTooShort)?;
            (left, offset) = (rest, offset.saturating_add(part.bytes as u64));
        }
        Ok(())
    }};
}

/// Copies all of `bytes` to the disk, part by part; the rest of a block is read first.
macro_rules! write {
    ($offset:expr, $bytes:expr, $buffers:expr, $geometry:expr, $call:expr $(, $await:tt)?) => {{
        let (mut offset, mut left): (u64, &[u8]) = ($offset, $bytes);
        while !left.is_empty() {
            let mut buffer = $buffers.take().ok_or(RequestError::Full)?;
            let part = Part::first(offset, left.len(), buffer.len(), &$geometry);
            let part = part.ok_or(RequestError::BufferTooShort)?;
            if part.is_partial() {
                buffer = carried_out($call(part.read(buffer))$(.$await)??)?;
            }
            let (now, rest) = left.split_at_checked(part.bytes).ok_or(RequestError::OutOfRange)?;
            buffer.write_slice(now, part.skip).map_err(|_| RequestError::BufferTooShort)?;
            carried_out($call(part.write(buffer))$(.$await)??)?;
            (left, offset) = (rest, offset.saturating_add(part.bytes as u64));
        }
        Ok(())
    }};
}

/// A disk as storage of embedded-storage: each call waits for the device. Only the first 4 GiB can be
/// addressed.
#[cfg(feature = "embedded-storage")]
pub struct Storage<T: Transport> {
    disk: Block<T>,
    buffers: DmaPool,
    limit: Duration,
}

#[cfg(feature = "embedded-storage")]
impl<T: Transport> Storage<T> {
    /// Copies through `buffers`, of a block at least, which are of the disk and for both directions. Each
    /// request may take `limit`.
    pub fn new(disk: Block<T>, buffers: DmaPool, limit: Duration) -> Self {
        Self { disk, buffers, limit }
    }

    /// The disk.
    pub fn into_inner(self) -> Block<T> {
        self.disk
    }
}

#[cfg(feature = "embedded-storage")]
impl<T: Transport> embedded_storage::ReadStorage for Storage<T> {
    type Error = Error;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Error> {
        let Self { disk, buffers, limit } = self;
        read!(offset.into(), bytes, buffers, disk.queue.geometry(), |request| disk.call(request, *limit))
    }

    fn capacity(&self) -> usize {
        capacity(&self.disk.queue.geometry()).try_into().unwrap_or(usize::MAX)
    }
}

#[cfg(feature = "embedded-storage")]
impl<T: Transport> embedded_storage::Storage for Storage<T> {
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        let Self { disk, buffers, limit } = self;
        write!(offset.into(), bytes, buffers, disk.queue.geometry(), |request| disk.call(request, *limit))
    }
}

/// A disk's queue as asynchronous storage, beside its other users: of embedded-storage-async, by the byte and
/// up to 4 GiB, and of block-device-driver, in blocks. Somebody else [serves](SharedQueue::poll_serve) the
/// queue.
#[cfg(any(feature = "embedded-storage-async", feature = "block-device-driver"))]
pub struct SharedStorage<'q, 'a, N: Notify> {
    queue: &'q SharedQueue<'a, N>,
    buffers: DmaPool,
}

#[cfg(any(feature = "embedded-storage-async", feature = "block-device-driver"))]
impl<'q, 'a, N: Notify> SharedStorage<'q, 'a, N> {
    /// Copies through `buffers`, of a block at least, which are of the disk and for both directions.
    pub fn new(queue: &'q SharedQueue<'a, N>, buffers: DmaPool) -> Self {
        Self { queue, buffers }
    }

    async fn call(&self, request: Request) -> Result<CallResult, RequestError> {
        Ok(self.queue.request(request).await)
    }

    async fn read_bytes(&self, offset: u64, bytes: &mut [u8]) -> Result<(), RequestError> {
        read!(offset, bytes, self.buffers, self.queue.geometry(), |request| self.call(request), await)
    }

    async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), RequestError> {
        write!(offset, bytes, self.buffers, self.queue.geometry(), |request| self.call(request), await)
    }
}

#[cfg(feature = "embedded-storage-async")]
impl<N: Notify> embedded_storage_async::ReadStorage for SharedStorage<'_, '_, N> {
    type Error = RequestError;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), RequestError> {
        self.read_bytes(offset.into(), bytes).await
    }

    fn capacity(&self) -> usize {
        capacity(&self.queue.geometry()).try_into().unwrap_or(usize::MAX)
    }
}

#[cfg(feature = "embedded-storage-async")]
impl<N: Notify> embedded_storage_async::Storage for SharedStorage<'_, '_, N> {
    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), RequestError> {
        self.write_bytes(offset.into(), bytes).await
    }
}

/// Blocks of any size of which the disk's are a part, at any alignment.
#[cfg(feature = "block-device-driver")]
impl<N: Notify, const SIZE: usize> block_device_driver::BlockDevice<SIZE> for SharedStorage<'_, '_, N> {
    type Error = RequestError;
    type Align = aligned::A1;

    async fn read(
        &mut self,
        block_address: u32,
        data: &mut [aligned::Aligned<aligned::A1, [u8; SIZE]>],
    ) -> Result<(), RequestError> {
        let start = u64::from(block_address).saturating_mul(SIZE as u64);
        for (offset, block) in (start..).step_by(SIZE.max(1)).zip(data) {
            self.read_bytes(offset, &mut block[..]).await?;
        }
        Ok(())
    }

    async fn write(
        &mut self,
        block_address: u32,
        data: &[aligned::Aligned<aligned::A1, [u8; SIZE]>],
    ) -> Result<(), RequestError> {
        let start = u64::from(block_address).saturating_mul(SIZE as u64);
        for (offset, block) in (start..).step_by(SIZE.max(1)).zip(data) {
            self.write_bytes(offset, &block[..]).await?;
        }
        Ok(())
    }

    async fn size(&mut self) -> Result<u64, RequestError> {
        Ok(capacity(&self.queue.geometry()))
    }
}
