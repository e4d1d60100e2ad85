//! Which bytes of a page have been checked, and for whom: what was found right stays right while it is in
//! memory.

/// Who answers for a piece of metadata: a part of the file system, and which file's or folder's it is.
pub type Owner = u64;

/// The group descriptors, and the inode tables.
pub const GROUPS: Owner = 5 << 32;
pub const INODES: Owner = 1 << 32;
/// The blocks of a folder, the nodes of its hash tree, and those that say where its or a file's blocks are.
pub const FOLDER: Owner = 2 << 32;
pub const HASH_TREE: Owner = 3 << 32;
pub const MAP: Owner = 4 << 32;

/// Bytes of a page that have one owner: the smallest block.
const PART: usize = 1024;
/// What is checked starts at a multiple of so many bytes.
const UNIT: usize = 32;

/// The pieces of a page that were checked.
#[derive(Clone, Copy, Default)]
pub struct Checks([Part; 4]);

#[derive(Clone, Copy, Default)]
struct Part {
    owner: Owner,
    /// A bit for each unit at which such a piece starts.
    starts: u32,
}

impl Checks {
    /// Whether the piece that starts at a byte of the page was checked for this owner.
    pub fn hold(&self, within: usize, owner: Owner) -> bool {
        let part = self.0.get(within / PART);
        part.is_some_and(|part| part.owner == owner && part.starts & bit_of(within) != 0)
    }

    /// Notes that it was. What others had in the same part is forgotten.
    pub fn note(&mut self, within: usize, owner: Owner) {
        if let Some(part) = self.0.get_mut(within / PART) {
            let starts = if part.owner == owner { part.starts } else { 0 };
            *part = Part { owner, starts: starts | bit_of(within) };
        }
    }
}

fn bit_of(within: usize) -> u32 {
    1 << (within % PART / UNIT)
}
