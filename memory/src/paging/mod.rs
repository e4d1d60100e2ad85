//! Page tables, and the values that own what they map.

mod borrowed;
mod claims;
mod mapped_pages;
mod mapper;
mod pool;
mod pte;
mod space;
pub(crate) mod tlb;

pub use borrowed::{
    BorrowedMappedPages, BorrowedSliceMappedPages, Immutable, Mutability, Mutable, PagesOwner,
};
pub use mapped_pages::{AccessError, Dma, Kind, MappedPages, Mmio, Private};
pub use mapper::Mapper;
pub use pool::TablePool;
pub use pte::Protection;
pub use space::{AddressSpace, Stack};
pub use tlb::{Cpu, Stale};

pub(crate) use mapper::TOP;
pub(crate) use pool::{ENTRIES, Table, Unlinked};
pub(crate) use pte::{LOW_PAGES, Pte, Tag, leaf_pages};

use crate::allocator::AllocError;

/// Why nothing was mapped. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// Nothing was asked for.
    ZeroLength,
    /// As many pages as frames are needed.
    SizeMismatch,
    /// The pages or frames are of another allocator than this address space uses.
    WrongAllocator,
    /// Some page is mapped.
    AlreadyMapped,
    /// The pool of page tables is exhausted, or too small.
    NoTables,
    /// No room for another mapping made at boot.
    TooManyBootMappings,
    /// No such frames.
    Frames(AllocError),
    /// No such pages.
    Pages(AllocError),
}

crate::error::messages! { MapError {
    ZeroLength => "nothing to map",
    SizeMismatch => "not as many pages as frames",
    WrongAllocator => "pages or frames of another allocator",
    AlreadyMapped => "a page is mapped already",
    NoTables => "out of page tables",
    TooManyBootMappings => "too many mappings made at boot",
    Frames(error) => "no frames: {error}",
    Pages(error) => "no pages: {error}",
} }

/// So that `?` works where what was refused is not needed any more.
impl<T> From<(Self, T)> for MapError {
    fn from((error, _): (Self, T)) -> Self {
        error
    }
}

impl<T, U> From<(Self, T, U)> for MapError {
    fn from((error, ..): (Self, T, U)) -> Self {
        error
    }
}
