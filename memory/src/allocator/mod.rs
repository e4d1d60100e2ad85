//! Who has which frames of physical memory and which pages of an address space: one buddy allocator under
//! both, whose tokens are linear.

pub(crate) mod arena;
pub(crate) mod bits;
pub(crate) mod buddy;
pub(crate) mod frames;
pub(crate) mod owner;
pub(crate) mod pages;

pub use buddy::AllocError;
pub use frames::{AllocatedFrames, FrameAllocator, FrameRequest};
pub use owner::Owner;
pub use pages::{AllocatedPages, PageAllocator, PageRequest};
