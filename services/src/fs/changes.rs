//! What fast commits in the journal have changed, and no block on the disk or in the journal says: whole
//! inodes, where some blocks of a file are, and names in folders. Asked wherever the disk would be.
//!
//! All tables are sorted, and bounded together: a disk cannot have more of the memory.

use super::FsError;
use super::dir::Entries;
use super::run::Run;
use crate::text;
use alloc::vec::Vec;
use zerocopy::IntoBytes;

/// How much of the memory all of it may take, about: what 10,000 new files do.
const MOST: usize = 8 << 20;
/// What an item takes beside its bytes.
const ITEM: usize = 128;

const TOO_MUCH: FsError =
    FsError::Unsupported("so much in fast commits of its journal: mount and unmount it once");

/// What is other than on the disk.
#[derive(Default)]
pub struct Changes {
    /// In the order of their numbers.
    inodes: Vec<ChangedInode>,
    /// In the order of inodes and blocks; none overlaps another.
    spans: Vec<Span>,
    /// In the order of folders and names.
    names: Vec<Name>,
    /// Bytes of inodes and names.
    bytes: usize,
    /// How many fast commits said it.
    pub commits: usize,
}

struct ChangedInode {
    number: u32,
    bytes: Vec<u8>,
}

/// Where some blocks of a file are.
#[derive(Clone, Copy)]
pub struct Span {
    pub inode: u32,
    pub start: u64,
    pub end: u64,
    /// First block on the disk; `None` reads as zeros.
    pub physical: Option<u64>,
}

impl Span {
    fn run_from(&self, logical: u64) -> Option<Run> {
        let blocks = self.end.saturating_sub(self.start);
        Run { logical: self.start, blocks, physical: self.physical }.from(logical)
    }

    /// What is left of it from a block on.
    fn from(&self, start: u64) -> Option<Self> {
        self.run_from(start).map(|run| Self { start, physical: run.physical, ..*self })
    }
}

/// A name that is new in its folder, or gone.
pub struct Name {
    folder: u32,
    name: Vec<u8>,
    /// What it names, and the type byte of its entry; `None` if it is gone.
    pub target: Option<(u32, u8)>,
}

impl Name {
    fn key(&self) -> (u32, &[u8]) {
        (self.folder, &self.name)
    }
}

impl Changes {
    /// The bytes of an inode.
    pub fn inode(&self, number: u32) -> Option<&[u8]> {
        let at = self.inodes.binary_search_by_key(&number, |inode| inode.number).ok()?;
        self.inodes.get(at).map(|inode| inode.bytes.as_slice())
    }

    /// The run that starts at a block of a file, or up to which block there is nothing to say.
    pub fn run_at(&self, inode: u32, logical: u64) -> Result<Run, u64> {
        let at = self.spans.partition_point(|span| (span.inode, span.end) <= (inode, logical));
        let next = self.spans.get(at).filter(|span| span.inode == inode);
        let run = next.and_then(|span| span.run_from(logical));
        run.ok_or(next.map_or(u64::MAX, |span| span.start))
    }

    /// What is said of a name in a folder.
    pub fn name(&self, folder: u32, name: &[u8]) -> Option<&Name> {
        let at = self.names.binary_search_by(|known| known.key().cmp(&(folder, name))).ok()?;
        self.names.get(at)
    }

    /// Hides entries of a block of a folder of whose names something else is said.
    pub fn hide(&self, folder: u32, block: &mut [u8]) {
        let mut at = 0;
        loop {
            let mut entries = Entries(block.get(at..).unwrap_or_default());
            let Ok(Some((_, name))) = entries.next() else { return };
            let next = block.len().saturating_sub(entries.0.len());
            let is_hidden = self.name(folder, name).is_some();
            if let Some(inode) =
                block.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>).filter(|_| is_hidden)
            {
                *inode = [0; 4];
            }
            at = next;
        }
    }

    /// Entries for new names of a folder, of about `most` bytes, and where they start: those that are not
    /// before `from` if all entries follow each other.
    pub fn added(&self, folder: u32, from: u64, most: usize) -> Result<(u64, Vec<u8>), FsError> {
        let first = self.names.partition_point(|name| name.folder < folder);
        let names = self.names.get(first..).unwrap_or_default();
        let (mut start, mut bytes) = (0u64, Vec::new());
        for name in names.iter().take_while(|name| name.folder == folder) {
            let Some((inode, file_type)) = name.target else { continue };
            let len = name.name.len().saturating_add(8).next_multiple_of(4);
            if start < from {
                start = start.saturating_add(len as u64);
                continue;
            }
            if bytes.len() >= most {
                break;
            }
            bytes.try_reserve(len).map_err(|_| FsError::NoMemory)?;
            let end = bytes.len().saturating_add(len);
            bytes.extend_from_slice(inode.as_bytes());
            bytes.extend_from_slice(&(len as u16).to_le_bytes());
            bytes.extend_from_slice(&[name.name.len() as u8, file_type]);
            bytes.extend_from_slice(&name.name);
            bytes.resize(end, 0);
        }
        Ok((start, bytes))
    }

    /// Has an inode be `bytes`.
    pub fn set_inode(&mut self, number: u32, bytes: Vec<u8>) -> Result<(), FsError> {
        match self.inodes.binary_search_by_key(&number, |inode| inode.number) {
            Ok(at) => {
                if let Some(inode) = self.inodes.get_mut(at) {
                    inode.bytes = bytes;
                }
            }
            Err(at) => {
                self.take(bytes.len())?;
                self.inodes.try_reserve(1).map_err(|_| FsError::NoMemory)?;
                self.inodes.insert(at, ChangedInode { number, bytes });
            }
        }
        Ok(())
    }

    /// Forgets where blocks of a file are.
    pub fn forget_spans(&mut self, inode: u32) {
        let start = self.spans.partition_point(|span| span.inode < inode);
        let end = self.spans.partition_point(|span| span.inode <= inode);
        self.spans.drain(start..end.max(start));
    }

    /// Has some blocks of a file be where `new` says.
    pub fn set_span(&mut self, new: Span) -> Result<(), FsError> {
        self.take(0)?;
        self.spans.try_reserve(2).map_err(|_| FsError::NoMemory)?;
        let first = self.spans.partition_point(|span| (span.inode, span.end) <= (new.inode, new.start));
        let end =
            self.spans.partition_point(|span| (span.inode, span.start) < (new.inode, new.end)).max(first);
        let covered = self.spans.get(first..end).unwrap_or_default();
        let before = covered.first().filter(|span| span.start < new.start);
        let before = before.map(|span| Span { end: new.start, ..*span });
        let after = covered.last().and_then(|span| span.from(new.end));
        self.spans.drain(first..end);
        for span in [after, Some(new), before].into_iter().flatten() {
            self.spans.insert(first, span);
        }
        Ok(())
    }

    /// Has a name lead to `target`, or be gone.
    pub fn set_name(&mut self, folder: u32, name: &[u8], target: Option<(u32, u8)>) -> Result<(), FsError> {
        match self.names.binary_search_by(|known| known.key().cmp(&(folder, name))) {
            Ok(at) => {
                if let Some(known) = self.names.get_mut(at) {
                    known.target = target;
                }
            }
            Err(at) => {
                self.take(name.len())?;
                self.names.try_reserve(1).map_err(|_| FsError::NoMemory)?;
                let name = text::bytes(name)?;
                self.names.insert(at, Name { folder, name, target });
            }
        }
        Ok(())
    }

    /// Takes room for one more item, and for what it holds.
    fn take(&mut self, bytes: usize) -> Result<(), FsError> {
        self.bytes = self.bytes.saturating_add(bytes);
        let items = self.inodes.len().saturating_add(self.spans.len()).saturating_add(self.names.len());
        if items.saturating_mul(ITEM).saturating_add(self.bytes) < MOST { Ok(()) } else { Err(TOO_MUCH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// Where spans overlap, the last one counts: against a list of all blocks of three files.
    #[test]
    fn the_last_span_counts() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            let mut changes = Changes::default();
            let mut blocks = [[None; 40]; 3];
            for _ in 0..30 {
                let (inode, start, len) =
                    (random.random_range(0..3), random.random_range(0..32), random.random_range(1..9));
                let physical = random.random_ratio(2, 3).then(|| random.random_range(1..1000));
                let end = start + len;
                changes.set_span(Span { inode: inode as u32, start, end, physical }).unwrap();
                for (block, place) in blocks[inode][start as usize..end as usize].iter_mut().zip(0..) {
                    *block = Some(physical.map(|first| first + place));
                }
                if random.random_ratio(1, 20) {
                    changes.forget_spans(inode as u32);
                    blocks[inode] = [None; 40];
                }
            }
            for (blocks, inode) in blocks.iter().zip(0..) {
                for (at, block) in blocks.iter().enumerate() {
                    match (changes.run_at(inode, at as u64), block) {
                        (Ok(run), Some(physical)) => {
                            assert_eq!((run.logical, run.physical), (at as u64, *physical));
                            let known = &blocks[at..at + run.blocks as usize];
                            assert!(known.iter().all(|block| block.is_some()));
                        }
                        (Err(next), None) => {
                            let following = blocks[at..].iter().position(|block| block.is_some());
                            assert_eq!(next, following.map_or(u64::MAX, |count| (at + count) as u64));
                        }
                        (found, expected) => panic!("{at}: {found:?} for {expected:?}"),
                    }
                }
            }
        }
    }
}
