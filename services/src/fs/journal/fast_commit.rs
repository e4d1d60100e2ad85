//! Fast commits: what has changed since the last transaction, in few words (`fs/ext4/fast_commit.c` of
//! Linux).
//!
//! They are in blocks of their own behind the log, as tags one after the other; each commit ends with a tag
//! that has its checksum. As in Linux, one pass finds how many tags count, and a second one follows them.
//! What is not as Linux writes it is refused, or ignored where Linux ignores it.

use super::layout::Format;
use crate::block::{BlockSource, MAX_READ};
use crate::fs::changes::{Changes, Span};
use crate::fs::find::Budget;
use crate::fs::inode::{FLAG_CASEFOLD, FLAG_EXTENTS, FLAG_INLINE_DATA};
use crate::fs::layout::{ExtentEntry, INODE_BASE_SIZE, Inode, crc32c};
use crate::fs::{FileSystem, FsError, NAME_MAX, Node, corrupt, zeroed};
use crate::text;
use alloc::vec::Vec;
use core::ops::Range;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What is looked through for names in all.
const LOOK_UPS: usize = 1 << 30;

const WRONG: FsError = corrupt("a fast commit in the journal is wrong");

mod tag {
    pub const ADD_RANGE: u16 = 1;
    pub const DEL_RANGE: u16 = 2;
    pub const CREAT: u16 = 3;
    pub const LINK: u16 = 4;
    pub const UNLINK: u16 = 5;
    pub const INODE: u16 = 6;
    pub const PAD: u16 = 7;
    pub const TAIL: u16 = 8;
    pub const HEAD: u16 = 9;
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TagHead {
    tag: U16,
    len: U16,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    features: U32,
    transaction: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Tail {
    transaction: U32,
    checksum: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AddRange {
    inode: U32,
    extent: ExtentEntry,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DelRange {
    inode: U32,
    first: U32,
    blocks: U32,
}

/// The name follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Link {
    folder: U32,
    inode: U32,
}

/// The inode follows, as far as it is in use.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NewInode {
    number: U32,
}

/// A tag, and its value.
struct Tag<'a> {
    tag: u16,
    whole: &'a [u8],
    value: &'a [u8],
}

impl<'a> Tag<'a> {
    /// The next one in a block, which has a length that its kind can have.
    fn next(rest: &mut &'a [u8], inode_size: usize) -> Result<Option<Self>, FsError> {
        let Ok((head, behind)) = TagHead::ref_from_prefix(rest) else { return Ok(None) };
        let (tag, len) = (head.tag.get(), usize::from(head.len.get()));
        let beyond = |fixed: usize, range: Range<usize>| {
            len.checked_sub(fixed).is_some_and(|len| range.contains(&len))
        };
        let is_right = match tag {
            tag::ADD_RANGE => len == size_of::<AddRange>(),
            tag::DEL_RANGE => len == size_of::<DelRange>(),
            tag::CREAT | tag::LINK | tag::UNLINK => beyond(size_of::<Link>(), 1..NAME_MAX.saturating_add(1)),
            tag::INODE => beyond(size_of::<NewInode>(), INODE_BASE_SIZE..inode_size.saturating_add(1)),
            tag::PAD => true,
            tag::TAIL => len >= size_of::<Tail>(),
            tag::HEAD => len == size_of::<Head>(),
            _ => false,
        };
        let (value, following) = behind.split_at_checked(len).filter(|_| is_right).ok_or(WRONG)?;
        let whole = rest.get(..size_of::<TagHead>().saturating_add(len)).ok_or(WRONG)?;
        *rest = following;
        Ok(Some(Self { tag, whole, value }))
    }

    fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> Result<(&'a T, &'a [u8]), FsError> {
        T::ref_from_prefix(self.value).map_err(|_| WRONG)
    }
}

/// Fast commits that count.
pub struct Fast {
    journal: Node,
    blocks: Range<u32>,
    /// How many tags count, and how many commits these are.
    tags: usize,
    commits: usize,
}

/// What the first pass has found.
struct Scan {
    transaction: u32,
    sum: u32,
    passed: usize,
    tags: usize,
    commits: usize,
}

impl Scan {
    /// Passes a tag, and says whether others can follow.
    fn pass(&mut self, tag: &Tag<'_>) -> Result<bool, FsError> {
        match tag.tag {
            tag::HEAD => {
                let (head, _) = tag.read::<Head>()?;
                if head.features.get() != 0 {
                    return Err(FsError::Unsupported("an unknown feature of fast commits in its journal"));
                }
                if head.transaction.get() != self.transaction {
                    return Ok(false);
                }
            }
            tag::TAIL => return self.pass_tail(tag),
            _ => {}
        }
        self.passed = self.passed.saturating_add(1);
        self.sum = crc32c(self.sum, &[tag.whole]);
        Ok(true)
    }

    fn pass_tail(&mut self, tag: &Tag<'_>) -> Result<bool, FsError> {
        let (tail, _) = tag.read::<Tail>()?;
        let summed = size_of::<TagHead>().saturating_add(core::mem::offset_of!(Tail, checksum));
        let sum = crc32c(self.sum, &[tag.whole.get(..summed).ok_or(WRONG)?]);
        if tail.transaction.get() != self.transaction || tail.checksum.get() != sum {
            return self.end(corrupt("a fast commit in the journal fails its checksum"));
        }
        self.passed = self.passed.saturating_add(1);
        (self.tags, self.sum) = (self.passed, 0);
        self.commits = self.commits.saturating_add(1);
        Ok(true)
    }

    /// What makes no sense is the end, behind a commit that does.
    fn end(&self, error: FsError) -> Result<bool, FsError> {
        if self.commits > 0 { Ok(false) } else { Err(error) }
    }
}

impl<B: BlockSource> FileSystem<B> {
    /// The first pass over fast commits that follow the transaction before `transaction`.
    pub(super) async fn find_fast(
        &self,
        journal: Node,
        format: &Format,
        transaction: u32,
    ) -> Result<Option<Fast>, FsError> {
        let Some(first) = format.fast else { return Ok(None) };
        let blocks = first..format.blocks;
        let mut scan = Scan { transaction, sum: 0, passed: 0, tags: 0, commits: 0 };
        'all: for at in blocks.clone() {
            let block = self.fast_block(&journal, at).await?;
            if at == first && !block.starts_with(&tag::HEAD.to_le_bytes()) {
                break;
            }
            let mut rest = block.as_slice();
            loop {
                let goes_on = match Tag::next(&mut rest, self.geometry.inode_size) {
                    Ok(None) => break,
                    Ok(Some(tag)) => scan.pass(&tag)?,
                    Err(error) => scan.end(error)?,
                };
                if !goes_on {
                    break 'all;
                }
            }
        }
        let Scan { tags, commits, .. } = scan;
        Ok((commits > 0).then_some(Fast { journal, blocks, tags, commits }))
    }

    async fn fast_block(&self, journal: &Node, at: u32) -> Result<Vec<u8>, FsError> {
        self.journal_block(journal, at, MAX_READ as u64 / 2).await
    }

    /// The second pass: has all that is read from now on read as if the commits had been replayed.
    pub(in crate::fs) async fn replay_fast(&mut self, fast: Fast) -> Result<(), FsError> {
        let Fast { journal, blocks, mut tags, commits } = fast;
        self.changes().commits = commits;
        let budget = Budget::of(LOOK_UPS);
        for at in blocks {
            let block = self.fast_block(&journal, at).await?;
            let mut rest = block.as_slice();
            while tags > 0
                && let Some(tag) = Tag::next(&mut rest, self.geometry.inode_size)?
            {
                tags = tags.saturating_sub(1);
                self.follow(&tag, &budget).await?;
            }
            if tags == 0 {
                break;
            }
        }
        Ok(())
    }

    async fn follow(&mut self, tag: &Tag<'_>, budget: &Budget) -> Result<(), FsError> {
        match tag.tag {
            tag::ADD_RANGE => {
                let (AddRange { inode, extent }, _) = tag.read()?;
                let (start, blocks) = (extent.first(), extent.len());
                let physical = extent.is_written().then_some(extent.physical());
                if let Some(physical) = physical {
                    self.check_data(physical, blocks)?;
                }
                let end = start.saturating_add(blocks);
                self.set_span(Span { inode: inode.get(), start, end, physical }).await
            }
            tag::DEL_RANGE => {
                let (DelRange { inode, first, blocks }, _) = tag.read()?;
                let start = u64::from(first.get());
                let end = start.saturating_add(blocks.get().into());
                self.set_span(Span { inode: inode.get(), start, end, physical: None }).await
            }
            tag::CREAT | tag::LINK | tag::UNLINK => {
                let (link, name) = tag.read::<Link>()?;
                self.relink(tag.tag, link.folder.get(), link.inode.get(), name, budget).await
            }
            tag::INODE => {
                let (inode, bytes) = tag.read::<NewInode>()?;
                self.set_inode(inode.number.get(), bytes).await
            }
            _ => Ok(()),
        }
    }

    /// The bytes of an inode, whether it is free or not.
    async fn inode_bytes(&self, number: u32) -> Result<Vec<u8>, FsError> {
        if let Some(bytes) = self.changes.as_ref().and_then(|changes| changes.inode(number)) {
            return Ok(text::bytes(bytes)?);
        }
        let piece = self.inode_piece(number).await?;
        let mut bytes = zeroed(piece.len)?;
        self.pace(piece.len).await;
        self.cache.read(piece.offset, &mut bytes, 0).await?;
        if is_in_use(&bytes)? {
            Node::check(&self.geometry, number, &bytes)?;
        }
        Ok(bytes)
    }

    /// The same of one that is not free. Where it is, Linux ignores what is to be done with it.
    async fn inode_in_use(&self, number: u32) -> Result<Option<Vec<u8>>, FsError> {
        let bytes = self.inode_bytes(number).await?;
        Ok(if is_in_use(&bytes)? { Some(bytes) } else { None })
    }

    fn changes(&mut self) -> &mut Changes {
        self.changes.get_or_insert_default()
    }

    async fn set_span(&mut self, span: Span) -> Result<(), FsError> {
        let Some(bytes) = self.inode_in_use(span.inode).await? else { return Ok(()) };
        let flags = of(&bytes)?.flags.get();
        if flags & FLAG_EXTENTS == 0 {
            // Linux loses the blocks of those, or its way.
            return Err(FsError::Unsupported("fast commits of a file without extents in its journal"));
        }
        if span.start >= span.end || span.end > 1 << 32 {
            return Err(WRONG);
        }
        self.changes().set_span(span)
    }

    /// Linux takes all from a new inode but where its blocks are.
    async fn set_inode(&mut self, number: u32, new: &[u8]) -> Result<(), FsError> {
        const EMPTY_TREE: &[u8] = &[0x0a, 0xf3, 0, 0, 4, 0];
        let mut bytes = self.inode_bytes(number).await?;
        let old = of(&bytes)?.block;
        bytes.get_mut(..new.len()).ok_or(WRONG)?.copy_from_slice(new);
        let inode = of_mut(&mut bytes)?;
        let flags = inode.flags.get();
        if flags & (FLAG_EXTENTS | FLAG_INLINE_DATA) != FLAG_INLINE_DATA {
            inode.block = old;
        }
        if flags & FLAG_EXTENTS != 0 && inode.block.get(..2) != EMPTY_TREE.get(..2) {
            inode.block = [0; 60];
            inode.block.iter_mut().zip(EMPTY_TREE).for_each(|(to, from)| *to = *from);
        }
        self.changes().set_inode(number, bytes)
    }

    /// Has a name in a folder lead to an inode, or not any more.
    async fn relink(
        &mut self,
        tag: u16,
        folder: u32,
        number: u32,
        name: &[u8],
        budget: &Budget,
    ) -> Result<(), FsError> {
        let mut bytes = match self.inode_in_use(number).await? {
            Some(bytes) => bytes,
            None if tag == tag::CREAT => return Err(WRONG),
            None => return Ok(()),
        };
        let Some(parent) = self.inode_in_use(folder).await? else { return Ok(()) };
        if of(&parent)?.flags.get() & FLAG_CASEFOLD != 0 {
            return Err(FsError::Unsupported(
                "fast commits in a folder that ignores case in its journal: mount and unmount it once",
            ));
        }
        if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(WRONG);
        }
        let known = match self.find(&self.node(folder).await?, name, budget).await {
            Ok(known) => Some(known),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let inode = of_mut(&mut bytes)?;
        let file_type = file_type(inode.mode.get());
        let links = inode.links_count.get();
        match (tag, known) {
            (tag::UNLINK, None) => return Ok(()),
            (tag::UNLINK, Some(known)) => {
                inode.links_count.set(links.saturating_sub(1));
                if links == 1 {
                    inode.block = [0; 60];
                    self.changes().forget_spans(number);
                }
                if known == number {
                    self.changes().set_name(folder, name, None)?;
                }
            }
            (_, known) => {
                inode.links_count.set(if tag == tag::CREAT { 1 } else { links.saturating_add(1) });
                if tag == tag::CREAT && file_type == 2 {
                    // The names in it follow, if there are any.
                    inode.size_lo.set(0);
                    inode.size_high.set(0);
                }
                if known.is_none() {
                    self.changes().set_name(folder, name, Some((number, file_type)))?;
                } else if tag == tag::LINK {
                    return Ok(());
                }
            }
        }
        self.changes().set_inode(number, bytes)
    }
}

fn is_in_use(bytes: &[u8]) -> Result<bool, FsError> {
    of(bytes).map(|inode| inode.mode.get() != 0 && inode.links_count.get() != 0)
}

fn of(bytes: &[u8]) -> Result<&Inode, FsError> {
    Inode::ref_from_prefix(bytes).map(|(inode, _)| inode).map_err(|_| WRONG)
}

fn of_mut(bytes: &mut [u8]) -> Result<&mut Inode, FsError> {
    Inode::mut_from_prefix(bytes).map(|(inode, _)| inode).map_err(|_| WRONG)
}

/// The type byte of a directory entry for an inode of this mode.
fn file_type(mode: u16) -> u8 {
    match mode >> 12 {
        0x8 => 1,
        0x4 => 2,
        0x2 => 3,
        0x6 => 4,
        0x1 => 5,
        0xc => 6,
        0xa => 7,
        _ => 0,
    }
}
