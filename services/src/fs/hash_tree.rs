//! Hash trees: which block of a large folder a name is in.

use super::checks::HASH_TREE;
use super::find::Budget;
use super::inode::Node;
use super::{FileSystem, FsError, NAME_MAX, corrupt};
use crate::block::BlockSource;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Levels of nodes above the blocks with names; two without the feature large_dir.
const LEVELS: usize = 3;
/// What the root has before its entries: those for `.` and `..`, and 8 bytes about the tree.
const ROOT_HEAD: usize = 32;
/// What other nodes have there: an entry without a name.
const NODE_HEAD: usize = 8;

/// An entry of a node: names from this hash on are in this block, or below it. Bit 0 of the hash: those with
/// the same hash begin in the block before. The first entry has the node's size in place of a hash.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    hash: U32,
    block: U32,
}

impl Entry {
    fn block(&self) -> u64 {
        u64::from(self.block.get() & 0x0fff_ffff)
    }
}

/// A way from the root to a leaf, on which the next leaf can be found.
struct Way {
    hash: u32,
    /// A node and one of its entries on each level.
    places: [Place; LEVELS],
    levels: usize,
}

#[derive(Clone, Copy, Default)]
struct Place {
    node: u64,
    entry: usize,
}

impl<B: BlockSource> FileSystem<B> {
    /// The inode number of a name, or why there is none. `None` if the tree cannot tell: it is damaged, or of
    /// an unknown kind.
    pub(super) async fn find_by_hash(
        &self,
        folder: &Node,
        name: &[u8],
        budget: &Budget,
    ) -> Option<Result<u32, FsError>> {
        let (kind, levels) = self.view_folder(folder, 0, HASH_TREE, tree_of).await.ok()??;
        if levels > if self.geometry.has_large_dir { LEVELS } else { 2 } {
            return None;
        }
        let mut small = [0; NAME_MAX];
        let hashed = if folder.ignores_case { in_small_letters(name, &mut small)? } else { name };
        let hash = self.geometry.hasher.hash(kind, hashed)?;
        let mut way = Way { hash, places: Default::default(), levels };
        let mut leaf = self.descend(folder, &mut way, 0, 0, Some(hash), budget).await.ok()?;
        loop {
            if let Some(found) = self.find_in_block(folder, leaf, name, budget).await.transpose() {
                return Some(found);
            }
            match self.next_leaf(folder, &mut way, budget).await.ok()? {
                Some(next) => leaf = next,
                None => return Some(Err(FsError::NotFound)),
            }
        }
    }

    /// Goes from a node down to the leaf that is responsible for a hash, or to the first one.
    async fn descend(
        &self,
        folder: &Node,
        way: &mut Way,
        level: usize,
        mut block: u64,
        hash: Option<u32>,
        budget: &Budget,
    ) -> Result<u64, FsError> {
        for place in way.places.iter_mut().take(way.levels).skip(level) {
            let look = |entries: &[Entry]| {
                let later = entries.get(1..).unwrap_or_default();
                let at = hash.map_or(0, |hash| later.partition_point(|entry| entry.hash.get() <= hash));
                (at, entries.get(at).map_or(0, Entry::block))
            };
            let (entry, child) = self.view_node(folder, block, budget, look).await?;
            *place = Place { node: block, entry };
            block = child;
        }
        Ok(block)
    }

    /// The next leaf, if it too can hold names with the same hash.
    async fn next_leaf(&self, folder: &Node, way: &mut Way, budget: &Budget) -> Result<Option<u64>, FsError> {
        for level in (0..way.levels).rev() {
            let Some(place) = way.places.get_mut(level) else { break };
            place.entry = place.entry.saturating_add(1);
            let look = |entries: &[Entry]| {
                entries.get(place.entry).map(|entry| (entry.hash.get() & !1, entry.block()))
            };
            match self.view_node(folder, place.node, budget, look).await? {
                None => {}
                Some((hash, block)) if hash == way.hash => {
                    let level = level.saturating_add(1);
                    return self.descend(folder, way, level, block, None, budget).await.map(Some);
                }
                Some(_) => break,
            }
        }
        Ok(None)
    }

    async fn view_node<T>(
        &self,
        folder: &Node,
        block: u64,
        budget: &Budget,
        look: impl FnOnce(&[Entry]) -> T,
    ) -> Result<T, FsError> {
        budget.take(self.geometry.block_size)?;
        let with_sum = self.geometry.checksum_seed.is_some();
        let look = |bytes: &[u8]| entries_of(bytes, block == 0, with_sum).map(look);
        self.view_folder(folder, block, HASH_TREE, look).await?
    }
}

/// The name that stands for a name in a hash if case is ignored. Beyond ASCII that needs the decomposition of
/// letters, which is not known here.
fn in_small_letters<'a>(name: &[u8], small: &'a mut [u8; NAME_MAX]) -> Option<&'a [u8]> {
    let small = small.get_mut(..name.len()).filter(|_| name.is_ascii())?;
    small.copy_from_slice(name);
    small.make_ascii_lowercase();
    Some(small)
}

/// The kind of hash and the number of levels, from the root.
fn tree_of(root: &[u8]) -> Option<(u8, usize)> {
    match *root.get(..ROOT_HEAD)?.last_chunk::<8>()? {
        [0, 0, 0, 0, kind, 8, above, flags] if flags & 1 == 0 => {
            Some((kind, usize::from(above).saturating_add(1)))
        }
        _ => None,
    }
}

/// Checks what is no matter of a checksum: the entries are in order, in a node that has the right size.
pub(super) fn check_node(bytes: &[u8], is_root: bool, with_sum: bool) -> Result<(), FsError> {
    let entries = entries_of(bytes, is_root, with_sum)?.get(1..).unwrap_or_default();
    match entries.is_sorted_by_key(|entry| entry.hash.get()) {
        true => Ok(()),
        false => Err(corrupt("a folder's hash tree is out of order")),
    }
}

fn entries_of(bytes: &[u8], is_root: bool, with_sum: bool) -> Result<&[Entry], FsError> {
    let wrong = corrupt("a folder's hash tree has a wrong node");
    let rest = bytes.get(if is_root { ROOT_HEAD } else { NODE_HEAD }..).ok_or(wrong)?;
    let [a, b, c, d] = *rest.first_chunk().ok_or(wrong)?;
    let (limit, count) = (u16::from_le_bytes([a, b]).into(), u16::from_le_bytes([c, d]).into());
    let slots = usize::saturating_add(limit, usize::from(with_sum));
    if slots.saturating_mul(size_of::<Entry>()) != rest.len() || count == 0 || count > limit {
        return Err(wrong);
    }
    let (entries, _) = <[Entry]>::ref_from_prefix_with_elems(rest, count).map_err(|_| wrong)?;
    Ok(entries)
}
