//! The journal of a file system that was not unmounted, replayed in memory: where the latest copy of a block
//! is in the journal, it is read there. Nothing is written, and no block is held. Fast commits follow.
//!
//! The log is read as Linux does (`fs/jbd2/recovery.c`), in three passes: where it ends, what was revoked,
//! and which copies count. What Linux would not mount is refused. The work is bounded by the length of the
//! log, which is gone round once in each pass, and the memory by the copies that fit in it.

mod fast_commit;
mod layout;
mod overlay;

pub use fast_commit::Fast;
pub use overlay::Overlay;

use super::{FileSystem, FsError, Node, corrupt};
use crate::block::{BlockSource, MAX_READ};
use crate::fs::zeroed;
use alloc::vec::Vec;
use core::cmp::Ordering;
use crc::{CRC_32_MPEG_2, Crc, Digest};
use layout::{Checks, Commit, Format, Header, MAGIC, kind};
use overlay::Moved;
use zerocopy::FromBytes;

/// A small table: only old journals are summed so, once.
static CRC32_BE: Crc<u32> = Crc::<u32>::new(&CRC_32_MPEG_2);

const FAILED: FsError = corrupt("a transaction of the journal fails its checksum");

impl<B: BlockSource> FileSystem<B> {
    /// Has all that is read from now on read as if the log in inode `journal` had been replayed. The super
    /// block is to be read again. Returns the fast commits that follow.
    pub(super) async fn replay(&mut self, journal: u32) -> Result<Option<Fast>, FsError> {
        if journal == 0 {
            return Err(FsError::Unsupported("its journal, which needs recovery, is on another disk"));
        }
        let node = self.node(journal).await?;
        let block_size = self.geometry.block_size;
        let blocks = node.metadata().size.checked_div(block_size as u64).unwrap_or(0);
        let start = self.journal_block(&node, 0, 0).await?;
        let format = Format::parse(&start, block_size, blocks)?;
        if format.start == 0 {
            return Ok(None);
        }
        let (moved, fast) = Log { fs: self, node, format }.replay().await?;
        self.cache.renew().set(moved, block_size);
        Ok(fast)
    }

    /// The contents of a block of the journal. Up to `ahead` bytes of what follows are read with it.
    async fn journal_block(&self, node: &Node, block: u32, ahead: u64) -> Result<Vec<u8>, FsError> {
        let (physical, blocks) = self.place(node, block).await?;
        let mut bytes = zeroed(self.geometry.block_size)?;
        self.pace(bytes.len()).await;
        let ahead = blocks.saturating_sub(1).saturating_mul(bytes.len() as u64).min(ahead) as usize;
        self.cache.read(self.geometry.byte_of(physical), &mut bytes, ahead).await?;
        Ok(bytes)
    }

    /// Where a block of the journal is, and how many blocks are in a row there.
    async fn place(&self, node: &Node, block: u32) -> Result<(u64, u64), FsError> {
        let run = self.run_at(node, block.into()).await?;
        Ok((run.physical.ok_or(corrupt("the journal has holes"))?, run.blocks))
    }
}

/// A journal with something in it.
struct Log<'a, B> {
    fs: &'a FileSystem<B>,
    node: Node,
    format: Format,
}

/// A place in the log.
struct Place {
    at: u32,
    /// The transaction that is expected there.
    sequence: u32,
    /// Blocks that were passed.
    passed: u32,
}

impl<B: BlockSource> Log<'_, B> {
    /// The blocks that have copies, and fast commits.
    async fn replay(self) -> Result<(Vec<Moved>, Option<Fast>), FsError> {
        let (mut moved, end) = self.scan().await?;
        put_in_order(&mut moved);
        self.revoke(&mut moved, end).await?;
        self.find_copies(&mut moved, end).await?;
        moved.retain(|moved| moved.copy.is_some());
        Ok((moved, self.fs.find_fast(self.node, &self.format, end).await?))
    }

    fn start(&self) -> Place {
        Place { at: self.format.start, sequence: self.format.sequence, passed: 0 }
    }

    /// Passes a block, and says which one.
    fn pass(&self, place: &mut Place) -> Result<u32, FsError> {
        let at = place.at;
        place.passed = place.passed.saturating_add(1);
        place.at = Some(at.saturating_add(1)).filter(|&at| at < self.format.end).unwrap_or(self.format.first);
        let len = self.format.end.saturating_sub(self.format.first);
        if place.passed > len { Err(corrupt("the journal has no end")) } else { Ok(at) }
    }

    /// The next block, and its kind, if it is of the transaction that is expected.
    async fn next(&self, place: &mut Place) -> Result<Option<(u32, Vec<u8>)>, FsError> {
        let block = self.fs.journal_block(&self.node, self.pass(place)?, 0).await?;
        let (header, _) = Header::ref_from_prefix(&block).map_err(|_| corrupt("the journal is cut off"))?;
        let (kind, is_expected) =
            (header.kind.get(), header.magic == MAGIC && header.sequence.get() == place.sequence);
        Ok(is_expected.then_some((kind, block)))
    }

    /// A block among many that are read one after the other.
    async fn copy(&self, at: u32) -> Result<Vec<u8>, FsError> {
        self.fs.journal_block(&self.node, at, MAX_READ as u64 / 2).await
    }

    /// The first pass: all blocks that have copies, some several times, and the first transaction that is
    /// not whole.
    async fn scan(&self) -> Result<(Vec<Moved>, u32), FsError> {
        let (mut moved, mut place) = (Vec::new(), self.start());
        let mut end = None;
        // A block failed its checksum: it is damaged, or left from an earlier life of the journal.
        let mut is_doubtful = false;
        let mut last_time = 0;
        let mut sum = CRC32_BE.digest();
        while let Some((kind, block)) = self.next(&mut place).await? {
            match kind {
                kind::DESCRIPTOR => {
                    is_doubtful |= !self.format.is_whole(&block);
                    let is_summed = self.format.checks == Checks::Commit && end.is_none();
                    self.pass_copies(&mut place, &block, &mut moved, is_summed.then_some(&mut sum)).await?;
                }
                kind::REVOKE => is_doubtful |= !self.format.is_whole(&block),
                kind::COMMIT => {
                    let (commit, _) = Commit::ref_from_prefix(&block).map_err(|_| FAILED)?;
                    let time = commit.seconds.get();
                    let sum = core::mem::replace(&mut sum, CRC32_BE.digest()).finalize();
                    if end.is_some() && self.format.checks == Checks::Commit {
                        return Err(FAILED);
                    }
                    if is_doubtful || !self.is_committed(&block, commit, sum) {
                        if time < last_time {
                            break;
                        }
                        if is_doubtful || !self.format.is_async {
                            return Err(FAILED);
                        }
                        end = end.or(Some(place.sequence));
                    }
                    last_time = time;
                    place.sequence = place.sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        Ok((moved, end.unwrap_or(place.sequence)))
    }

    /// Passes the copies that a descriptor block describes, notes them, and sums them up if that is wanted.
    async fn pass_copies(
        &self,
        place: &mut Place,
        block: &[u8],
        moved: &mut Vec<Moved>,
        mut sum: Option<&mut Digest<'_, u32>>,
    ) -> Result<(), FsError> {
        sum.iter_mut().for_each(|sum| sum.update(block));
        for tag in self.format.tags(block) {
            let at = self.pass(place)?;
            note(moved, tag.home)?;
            if let Some(sum) = &mut sum {
                sum.update(&self.copy(at).await?);
            }
        }
        Ok(())
    }

    /// Whether a commit block's checksum is right; `sum` is that of its transaction.
    fn is_committed(&self, block: &[u8], commit: &Commit, sum: u32) -> bool {
        const CRC32: (u8, u8) = (1, 4);
        match (self.format.checks, (commit.checksum_type, commit.checksum_size)) {
            (Checks::Commit, CRC32) => commit.checksum.get() == sum,
            (Checks::Commit, sort) => sort == (0, 0) && commit.checksum.get() == 0,
            _ => self.format.is_whole_commit(block, commit),
        }
    }

    /// The second pass: notes of each block up to which transaction its copies do not count.
    async fn revoke(&self, moved: &mut [Moved], end: u32) -> Result<(), FsError> {
        let mut place = self.start();
        while let Some((kind, block)) = self.before(end, &mut place).await? {
            match kind {
                kind::REVOKE => {
                    for home in self.format.revoked(&block)? {
                        if let Some(moved) = find(moved, home) {
                            let later = |by: &u32| compare(*by, place.sequence) == Ordering::Greater;
                            moved.revoked = moved.revoked.filter(later).or(Some(place.sequence));
                        }
                    }
                }
                kind::DESCRIPTOR => {
                    for _ in self.format.tags(&block) {
                        self.pass(&mut place)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The third pass: notes of each block its last copy that counts.
    async fn find_copies(&self, moved: &mut [Moved], end: u32) -> Result<(), FsError> {
        let mut place = self.start();
        while let Some((kind, block)) = self.before(end, &mut place).await? {
            if kind != kind::DESCRIPTOR {
                continue;
            }
            for tag in self.format.tags(&block) {
                let at = self.pass(&mut place)?;
                let Some(moved) = find(moved, tag.home) else { continue };
                if moved.revoked.is_some_and(|by| compare(place.sequence, by) != Ordering::Greater) {
                    continue;
                }
                if self.format.checks.in_blocks()
                    && !self.format.is_copy(&tag, place.sequence, &self.copy(at).await?)
                {
                    return Err(corrupt("a block in the journal fails its checksum"));
                }
                moved.copy = Some((self.fs.place(&self.node, at).await?.0, tag.is_escaped));
            }
        }
        Ok(())
    }

    /// The next block of a transaction before `end`. That there is one, the first pass has found.
    async fn before(&self, end: u32, place: &mut Place) -> Result<Option<(u32, Vec<u8>)>, FsError> {
        if compare(place.sequence, end) != Ordering::Less {
            return Ok(None);
        }
        let next = self.next(place).await?.ok_or(corrupt("the journal changes while it is read"))?;
        if next.0 == kind::COMMIT {
            place.sequence = place.sequence.wrapping_add(1);
        }
        Ok(Some(next))
    }
}

/// Transactions' numbers wrap.
fn compare(one: u32, other: u32) -> Ordering {
    one.wrapping_sub(other).cast_signed().cmp(&0)
}

/// Notes a block. Most come again in each transaction, and take no more room then.
fn note(moved: &mut Vec<Moved>, home: u64) -> Result<(), FsError> {
    if moved.len() == moved.capacity() {
        put_in_order(moved);
        moved.try_reserve(moved.len().max(64)).map_err(|_| FsError::NoMemory)?;
    }
    moved.push(Moved { home, copy: None, revoked: None });
    Ok(())
}

fn put_in_order(moved: &mut Vec<Moved>) {
    moved.sort_unstable_by_key(|moved| moved.home);
    moved.dedup_by_key(|moved| moved.home);
}

fn find(moved: &mut [Moved], home: u64) -> Option<&mut Moved> {
    let index = moved.binary_search_by_key(&home, |moved| moved.home).ok()?;
    moved.get_mut(index)
}
