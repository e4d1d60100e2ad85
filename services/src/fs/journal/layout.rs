//! The on-disk structures of jbd2, field by field (`Documentation/filesystems/ext4/journal.rst` of Linux;
//! big-endian), and the checksums over them. Only what a reader needs is named.

use crate::fs::layout::{CRC_START, crc32c};
use crate::fs::{FsError, corrupt};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What each block of the log starts with that is no copy. A copy that starts with it has zeros there.
pub const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// Kinds of blocks.
pub mod kind {
    pub const DESCRIPTOR: u32 = 1;
    pub const COMMIT: u32 = 2;
    pub const SUPER_BLOCK_V1: u32 = 3;
    pub const SUPER_BLOCK_V2: u32 = 4;
    pub const REVOKE: u32 = 5;
}

const COMPAT_CHECKSUM: u32 = 0x1;

mod incompat {
    pub const REVOKE: u32 = 0x1;
    pub const BIT64: u32 = 0x2;
    pub const ASYNC_COMMIT: u32 = 0x4;
    pub const CSUM_V2: u32 = 0x8;
    pub const CSUM_V3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
    pub const KNOWN: u32 = REVOKE | BIT64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

/// The head of each block of the log that is no copy.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    pub magic: [u8; 4],
    pub kind: U32,
    pub sequence: U32,
}

/// Bytes in a [`Header`].
pub const HEADER: usize = size_of::<Header>();

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SuperBlock {
    header: Header,
    block_size: U32,
    blocks: U32,
    first: U32,
    sequence: U32,
    start: U32,
    _errno: U32,
    compat: U32,
    incompat: U32,
    _ro_compat: U32,
    uuid: [u8; 16],
    _users_and_limits: [u8; 16],
    checksum_type: u8,
    _padding: [u8; 3],
    fast_blocks: U32,
    _head_and_padding: [u8; 164],
    checksum: U32,
    _users: [u8; 768],
}

/// Where [`SuperBlock::checksum`] lies.
const SUPER_BLOCK_CHECKSUM: usize = 0xfc;

const _: () = assert!(
    size_of::<SuperBlock>() == 1024 && core::mem::offset_of!(SuperBlock, checksum) == SUPER_BLOCK_CHECKSUM
);

/// A commit block; its checksum is the first of eight.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Commit {
    _header: Header,
    pub checksum_type: u8,
    pub checksum_size: u8,
    _padding: [u8; 2],
    pub checksum: U32,
    _more: [U32; 7],
    pub seconds: U64,
}

/// Where [`Commit::checksum`] lies.
pub const COMMIT_CHECKSUM: usize = core::mem::offset_of!(Commit, checksum);

/// The head of a revoke block; block numbers follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Revoke {
    _header: Header,
    /// Bytes used, this head included.
    pub used: U32,
}

/// How transactions are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Not at all.
    None,
    /// A sum over all blocks in the commit block.
    Commit,
    /// A sum in each block, and 16 bits for each copy.
    V2,
    /// A sum in each block and for each copy.
    V3,
}

/// What the super block says, checked.
pub struct Format {
    pub block_size: usize,
    /// Blocks in the journal.
    pub blocks: u32,
    /// The first block of the log, and the one behind its last.
    pub first: u32,
    pub end: u32,
    /// Where the oldest transaction starts, and its number; 0 if there is nothing to do.
    pub start: u32,
    pub sequence: u32,
    pub checks: Checks,
    pub is_64bit: bool,
    /// A commit block may be there before what it commits.
    pub is_async: bool,
    /// Where fast commits are.
    pub fast: Option<u32>,
    seed: u32,
}

/// A copy of a block, as a descriptor block names it.
pub struct Tag {
    /// The block of the file system.
    pub home: u64,
    /// Its first four bytes are not [`MAGIC`] here, as they should be.
    pub is_escaped: bool,
    checksum: u32,
}

impl Format {
    /// From the first block of a journal of `blocks` blocks of `block_size`.
    pub fn parse(bytes: &[u8], block_size: usize, blocks: u64) -> Result<Self, FsError> {
        let (sb, _) = SuperBlock::ref_from_prefix(bytes).map_err(|_| corrupt("the journal is cut off"))?;
        let has_features = match sb.header.kind.get() {
            kind::SUPER_BLOCK_V1 if sb.header.magic == MAGIC => false,
            kind::SUPER_BLOCK_V2 if sb.header.magic == MAGIC => true,
            _ => return Err(corrupt("the journal has no super block")),
        };
        let (compat, incompat) =
            if has_features { (sb.compat.get(), sb.incompat.get()) } else { Default::default() };
        if incompat & !incompat::KNOWN != 0 {
            return Err(FsError::Unsupported("an unknown feature of the journal"));
        }
        let has = |feature| incompat & feature != 0;
        let checks = match (compat & COMPAT_CHECKSUM != 0, has(incompat::CSUM_V2), has(incompat::CSUM_V3)) {
            (false, false, false) => Checks::None,
            (true, false, false) => Checks::Commit,
            (false, true, false) => Checks::V2,
            (false, false, true) => Checks::V3,
            _ => return Err(corrupt("the journal has checksums of several kinds")),
        };
        if checks.in_blocks() {
            let whole = bytes.get(..size_of::<SuperBlock>()).unwrap_or_default();
            if sb.checksum_type != 4 {
                return Err(FsError::Unsupported("an unknown checksum type of the journal"));
            }
            if without(whole, SUPER_BLOCK_CHECKSUM, CRC_START) != sb.checksum.get() {
                return Err(corrupt("the journal's super block fails its checksum"));
            }
        }
        let mut format = Self {
            block_size,
            blocks: sb.blocks.get(),
            first: sb.first.get(),
            end: sb.blocks.get(),
            start: sb.start.get(),
            sequence: sb.sequence.get(),
            checks,
            is_64bit: has(incompat::BIT64),
            is_async: has(incompat::ASYNC_COMMIT),
            fast: None,
            seed: crc32c(CRC_START, &[&sb.uuid]),
        };
        if has(incompat::FAST_COMMIT) {
            format.leave_room(sb.fast_blocks.get());
        }
        let is_sound = sb.block_size.get() as usize == block_size
            && u64::from(format.blocks) <= blocks
            && (1..format.end).contains(&format.first)
            && (format.start == 0 || (format.first..format.end).contains(&format.start));
        if is_sound { Ok(format) } else { Err(corrupt("the journal's super block is wrong")) }
    }

    /// Fast commits have the end of the journal, 256 blocks if nothing else is said.
    fn leave_room(&mut self, fast_blocks: u32) {
        const LEAST: u32 = 1024;
        let fast_blocks = if fast_blocks == 0 { 256 } else { fast_blocks };
        if let Some(end) = self.blocks.checked_sub(fast_blocks).filter(|&end| end >= LEAST) {
            self.end = end;
        }
        self.fast = Some(self.end.saturating_add(1));
    }

    /// Whether a descriptor or revoke block has the checksum that is at its end.
    pub fn is_whole(&self, block: &[u8]) -> bool {
        let at = self.block_size.saturating_sub(4);
        let stored = block.get(at..).and_then(|end| U32::read_from_bytes(end).ok());
        !self.checks.in_blocks() || stored.is_some_and(|stored| stored == without(block, at, self.seed))
    }

    /// Whether a commit block has its own checksum.
    pub fn is_whole_commit(&self, block: &[u8], commit: &Commit) -> bool {
        !self.checks.in_blocks() || without(block, COMMIT_CHECKSUM, self.seed) == commit.checksum.get()
    }

    /// Whether the copy in `block` is the one that was meant.
    pub fn is_copy(&self, tag: &Tag, sequence: u32, block: &[u8]) -> bool {
        let sum = || crc32c(self.seed, &[&sequence.to_be_bytes(), block]);
        match self.checks {
            Checks::V2 => sum() & 0xffff == tag.checksum,
            Checks::V3 => sum() == tag.checksum,
            Checks::None | Checks::Commit => true,
        }
    }

    /// What a descriptor block describes, block by block.
    pub fn tags<'a>(&'a self, block: &'a [u8]) -> impl Iterator<Item = Tag> + 'a {
        const FLAG_ESCAPED: u16 = 1;
        const FLAG_SAME_UUID: u16 = 2;
        const FLAG_LAST: u16 = 8;
        let size = match (self.checks, self.is_64bit) {
            (Checks::V3, _) => 16,
            (Checks::V2, true) => 14,
            (Checks::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        };
        let end = self.block_size.saturating_sub(if self.checks.in_blocks() { 4 } else { 0 });
        let mut rest = block.get(HEADER..end).unwrap_or_default();
        core::iter::from_fn(move || {
            let (tag, behind) = rest.split_at_checked(size)?;
            let word = |at: usize| tag.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            let half = |at: usize| tag.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
            let (low, flags) = (word(0)?, half(6)?);
            let high = if self.is_64bit { word(8)? } else { 0 };
            let uuid = if flags & FLAG_SAME_UUID == 0 { 16 } else { 0 };
            rest = behind.get(uuid..).filter(|_| flags & FLAG_LAST == 0).unwrap_or_default();
            Some(Tag {
                home: u64::from(high) << 32 | u64::from(low),
                is_escaped: flags & FLAG_ESCAPED != 0,
                checksum: if self.checks == Checks::V3 { word(12)? } else { half(4)?.into() },
            })
        })
    }

    /// The blocks that a revoke block names.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] if it says that it is longer than it is.
    pub fn revoked<'a>(&self, block: &'a [u8]) -> Result<impl Iterator<Item = u64> + 'a, FsError> {
        let wrong = corrupt("a revoke block of the journal is wrong");
        let (head, _) = Revoke::ref_from_prefix(block).map_err(|_| wrong)?;
        let end = self.block_size.saturating_sub(if self.checks.in_blocks() { 4 } else { 0 });
        let used = usize::try_from(head.used.get()).ok().filter(|&used| used <= end).ok_or(wrong)?;
        let numbers = block.get(size_of::<Revoke>()..used).unwrap_or_default();
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Ok(numbers.chunks_exact(if self.is_64bit { 8 } else { 4 }).map(number))
    }
}

impl Checks {
    /// Whether each block has a sum of its own.
    pub fn in_blocks(self) -> bool {
        matches!(self, Self::V2 | Self::V3)
    }
}

/// The sum over `bytes` with zeros for the four at `at`.
fn without(bytes: &[u8], at: usize, seed: u32) -> u32 {
    let (before, rest) = bytes.split_at_checked(at).unwrap_or_default();
    crc32c(seed, &[before, &[0; 4], rest.get(4..).unwrap_or_default()])
}
