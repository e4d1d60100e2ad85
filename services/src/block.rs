//! What the file system needs of a disk.

use core::future::Future;

use thiserror::Error;

/// Bytes in one sector, the unit in which a [`BlockSource`] is addressed (virtio 1.x, section 5.2.4).
pub const SECTOR_SIZE: usize = 512;

const SECTOR: u64 = SECTOR_SIZE as u64;

/// The largest read, in bytes, that the page cache asks of a [`BlockSource`] in one call.
pub const MAX_READ: usize = 128 * 1024;

/// Why a disk did not answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// The device reported an error, or answered with too few bytes.
    #[error("the disk reported an error")]
    Device,
    /// The sectors are not all on the device.
    #[error("read past the end of the disk")]
    OutOfRange,
    /// The device is gone, or was reset for good.
    #[error("the disk is gone")]
    Gone,
}

/// A disk that many tasks read at the same time.
///
/// A future that is dropped before it is ready must leave the source usable; what the device still writes
/// then goes to memory of the source, never to the caller's buffers.
pub trait BlockSource {
    /// Size of the device in bytes. It is read once, when the file system is opened.
    fn size_bytes(&self) -> u64;

    /// Bytes in the unit in which partition tables count: the logical block size, 512 or a larger power of
    /// two.
    fn block_size(&self) -> u64 {
        SECTOR
    }

    /// Reads consecutive sectors from `sector` on and fills `bufs` one after the other, like `preadv`.
    ///
    /// The length of each buffer is a multiple of [`SECTOR_SIZE`]; together they are at most [`MAX_READ`]
    /// bytes.
    ///
    /// # Errors
    /// [`BlockError`]; the contents of `bufs` are then unspecified.
    fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> impl Future<Output = Result<(), BlockError>>;
}

impl<B: BlockSource> BlockSource for &B {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn block_size(&self) -> u64 {
        (**self).block_size()
    }

    fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> impl Future<Output = Result<(), BlockError>> {
        (**self).read(sector, bufs)
    }
}

/// A part of a disk, as a disk of its own: a partition.
#[derive(Clone, Copy, Debug)]
pub struct Part<B> {
    disk: B,
    first: u64,
    sectors: u64,
}

impl<B: BlockSource> Part<B> {
    /// The whole of `disk`.
    pub fn whole(disk: B) -> Self {
        Self::new(disk, 0, u64::MAX)
    }

    /// At most `sectors` sectors of [`SECTOR_SIZE`] from sector `first` on: what of them is on the disk.
    pub fn new(disk: B, first: u64, sectors: u64) -> Self {
        let size = disk.size_bytes() / SECTOR;
        Self { disk, first, sectors: sectors.min(size.saturating_sub(first)) }
    }
}

impl<B: BlockSource> BlockSource for Part<B> {
    fn size_bytes(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR)
    }

    fn block_size(&self) -> u64 {
        self.disk.block_size()
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let len = bufs.iter().fold(0u64, |sum, buf| sum.saturating_add(buf.len() as u64));
        let end = sector.checked_add(len.div_ceil(SECTOR)).filter(|&end| end <= self.sectors);
        let first = end.and_then(|_| self.first.checked_add(sector)).ok_or(BlockError::OutOfRange)?;
        self.disk.read(first, bufs).await
    }
}
