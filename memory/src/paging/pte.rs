//! Page table entries (Intel SDM volume 3, 4.5; AMD64 APM volume 2, 5.4).

use crate::address::PAGE_SHIFT;

/// What the CPU may do with a mapping. Writable *and* executable cannot be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Data that is only read.
    ReadOnly,
    /// Data.
    ReadWrite,
    /// Code.
    ReadExecute,
}

/// Why a leaf exists; kept in its software bits for the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Made before there was an allocator.
    Boot = 0,
    /// [`Private`](super::Private).
    Private = 1,
    /// [`Dma`](super::Dma).
    Dma = 2,
    /// [`Mmio`](super::Mmio).
    Mmio = 3,
}

/// An entry of a table at any level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pte(pub u64);

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// PWT and PCD together select entry 3 of the PAT, which must be uncached, as it is at reset. Firmware may
/// have changed it: our kernel sets it at start, before anything is mapped with this.
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// In a table above the lowest level: a leaf of 2 MiB or 1 GiB.
const LARGE: u64 = 1 << 7;
const TAG_SHIFT: u32 = 9;
const TAG: u64 = 3 << TAG_SHIFT;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = (1 << 52) - (1 << PAGE_SHIFT);

/// The bits of a page number that select entries; those above repeat the highest of them.
pub(crate) const LOW_PAGES: u64 = (1 << 36) - 1;

/// Pages in a leaf at `level`: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.
pub(crate) const fn leaf_pages(level: usize) -> u64 {
    // Without checks that nothing overflows: a level is at most 3, and this is asked for each page.
    1_u64.wrapping_shl((level as u32).wrapping_mul(9))
}

impl Pte {
    pub const EMPTY: Self = Self(0);

    /// A link to the table in frame number `frame`: the leaves alone decide the protection.
    pub const fn table(frame: u64) -> Self {
        Self(frame << PAGE_SHIFT | PRESENT | WRITABLE)
    }

    pub const fn leaf(frame: u64, level: usize, protection: Protection, tag: Tag) -> Self {
        let large = if level > 0 { LARGE } else { 0 };
        let cache = if matches!(tag, Tag::Mmio) { UNCACHED } else { 0 };
        let access = match protection {
            Protection::ReadOnly => NO_EXECUTE,
            Protection::ReadWrite => NO_EXECUTE | WRITABLE,
            Protection::ReadExecute => 0,
        };
        Self(frame << PAGE_SHIFT | PRESENT | large | cache | access | (tag as u64) << TAG_SHIFT)
    }

    /// What is added to a leaf at `level` to make it map the frames that follow.
    pub const fn step(level: usize) -> u64 {
        leaf_pages(level) << PAGE_SHIFT
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether an entry of a table at `level` maps memory rather than links a table.
    pub const fn is_leaf(self, level: usize) -> bool {
        self.is_present() && (level == 0 || self.0 & LARGE != 0)
    }

    /// Number of the frame mapped or linked.
    pub const fn frame(self) -> u64 {
        (self.0 & ADDRESS) >> PAGE_SHIFT
    }

    pub const fn tag(self) -> Tag {
        match (self.0 & TAG) >> TAG_SHIFT {
            0 => Tag::Boot,
            1 => Tag::Private,
            2 => Tag::Dma,
            _ => Tag::Mmio,
        }
    }

    /// `None` if the leaf is writable and executable.
    pub const fn protection(self) -> Option<Protection> {
        match (self.0 & WRITABLE != 0, self.0 & NO_EXECUTE != 0) {
            (false, true) => Some(Protection::ReadOnly),
            (true, true) => Some(Protection::ReadWrite),
            (false, false) => Some(Protection::ReadExecute),
            (true, false) => None,
        }
    }

    /// The entry without what the CPU itself records in it.
    pub const fn without_history(self) -> Self {
        Self(self.0 & !ACCESSED_DIRTY)
    }
}
