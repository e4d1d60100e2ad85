//! Memory that is mapped, owned by one value.

use super::{AddressSpace, MapError, Protection, Tag};
use crate::address::{PhysAddr, VirtAddr};
use crate::allocator::frames::AllocatedFrames;
use crate::allocator::owner::Owner;
use crate::allocator::pages::AllocatedPages;
use crate::range::{FrameRange, Page, PageRange};
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

mod sealed {
    use super::*;

    pub trait Kind {
        const TAG: Tag;
        /// What becomes of frames that were mapped, still booked as unmapped.
        fn release(space: &'static AddressSpace, frames: FrameRange);
    }
}

/// Who else may touch the memory. Closed, since each kind is a promise.
pub trait Kind: sealed::Kind {}
impl<K: sealed::Kind> Kind for K {}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, |$space:ident, $frames:ident| $release:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $kind {}
        impl sealed::Kind for $kind {
            const TAG: Tag = Tag::$kind;
            fn release($space: &'static AddressSpace, $frames: FrameRange) {
                $release
            }
        }
    )*};
}

kinds! {
    /// Memory that only the CPU touches, so that references to it are sound.
    Private, |space, frames| space.frames().put_back(Owner::Unmapped, &frames);
    /// Memory that a device may touch at any time: no references, volatile access only.
    Dma, |space, frames| space.frames().give_dma(Owner::Unmapped, &frames);
    /// Device registers, uncached: no references, volatile access only.
    Mmio, |space, frames| space.claims().lock().release(&frames);
}

/// Adjacent pages that are mapped, with the frames they are mapped to. The page table is where the frames are
/// written down; nothing else maps them.
///
/// Dropping unmaps the pages, flushes the TLB and gives back pages and frames.
///
/// Only [`Private`] memory can be seen through references:
///
/// ```
/// # use ringfence_memory::*;
/// # use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages, Immutable, Mutable};
/// fn first_byte(memory: &MappedPages<Private>) -> Option<u8> {
///     memory.as_slice::<u8>(0, 1).ok()?.first().copied()
/// }
/// ```
/// ```compile_fail,E0599
/// # use ringfence_memory::*;
/// fn first_byte(memory: &MappedPages<Dma>) -> Option<u8> {
///     memory.as_slice::<u8>(0, 1).ok()?.first().copied()
/// }
/// ```
/// Not every type can be seen in it: some have invalid bit patterns, some have padding.
///
/// ```compile_fail,E0277
/// # use ringfence_memory::*;
/// fn flag(memory: &MappedPages<Private>) -> Option<&bool> {
///     memory.as_type::<bool>(0).ok()
/// }
/// ```
/// ```compile_fail,E0277
/// # use ringfence_memory::*;
/// fn padded(memory: &mut MappedPages<Private>) -> Option<&mut (u8, u32)> {
///     memory.as_type_mut::<(u8, u32)>(0).ok()
/// }
/// ```
/// Memory of a device does not become private again, and a token is used once:
///
/// ```compile_fail,E0599
/// # use ringfence_memory::*;
/// fn steal(memory: MappedPages<Dma>) {
///     let _ = memory.unmap_into_parts();
/// }
/// ```
/// ```compile_fail,E0382
/// # use ringfence_memory::*;
/// fn twice(space: &'static AddressSpace, pages: AllocatedPages, frames: AllocatedFrames) {
///     let _ = space.map_allocated_pages_to(pages, frames, Protection::ReadWrite);
///     drop(frames);
/// }
/// ```
pub struct MappedPages<K: Kind> {
    pages: AllocatedPages,
    /// `None` only if there are no pages.
    space: Option<&'static AddressSpace>,
    protection: Protection,
    kind: PhantomData<K>,
}

static_assertions::assert_not_impl_any!(MappedPages<Private>: Clone, core::ops::DerefMut);
static_assertions::assert_not_impl_any!(MappedPages<Dma>: Clone, core::ops::DerefMut);
static_assertions::assert_not_impl_any!(MappedPages<Mmio>: Clone, core::ops::DerefMut);

/// Why memory cannot be seen as a value of some type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// It would reach past the end.
    OutOfBounds,
    /// The offset does not suit the type's alignment.
    Misaligned,
    /// The mapping is not writable.
    NotWritable,
}

crate::error::messages! { AccessError {
    OutOfBounds => "beyond the end of the mapping",
    Misaligned => "misaligned",
    NotWritable => "the mapping is not writable",
} }

impl<K: Kind> MappedPages<K> {
    pub(super) const fn new(
        pages: AllocatedPages,
        space: &'static AddressSpace,
        protection: Protection,
    ) -> Self {
        Self { pages, space: Some(space), protection, kind: PhantomData }
    }

    /// What the CPU may do here.
    #[doc(alias = "protection")]
    pub const fn flags(&self) -> Protection {
        self.protection
    }

    /// The first byte; null if there are no pages. Valid for as many bytes as the range says while this value
    /// lives, under the rules of its kind.
    pub fn as_ptr(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.pages.start_address().value() as usize)
    }

    fn contiguous_address(&self) -> PhysAddr {
        let address = self.space.and_then(|space| space.translate(self.pages.start_address()));
        // These kinds are constructed mapped, never empty, and only dropping unmaps them.
        address.expect("a mapping that is owned has lost its leaf")
    }
}

impl MappedPages<Private> {
    /// No pages.
    pub const fn empty() -> Self {
        Self {
            pages: AllocatedPages::empty(),
            space: None,
            protection: Protection::ReadOnly,
            kind: PhantomData,
        }
    }

    /// Joins `other` to this mapping. Gives it back unless it follows directly, in the same address space and
    /// with the same flags. An empty mapping joins with any.
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if other.pages.is_empty() {
            return Ok(());
        }
        if self.pages.is_empty() {
            *self = other;
            return Ok(());
        }
        let same = match (self.space, other.space) {
            (Some(a), Some(b)) => core::ptr::eq(a, b) && self.protection == other.protection,
            _ => false,
        };
        if !same {
            return Err(other);
        }
        self.pages.merge(core::mem::take(&mut other.pages)).map_err(|pages| {
            other.pages = pages;
            other
        })
    }

    /// The pages before `at` and those from `at` on; either may be empty. A larger leaf that reaches across
    /// is broken first. Gives the mapping back, unchanged, if `at` is not a multiple of 4 KiB, lies outside,
    /// or no page table is left for breaking.
    pub fn split(mut self, at: VirtAddr) -> Result<(Self, Self), Self> {
        let inside = at.is_page_aligned() && self.pages.contains_address(at);
        if inside && self.space.is_some_and(|space| space.break_at(Page::containing_address(at)).is_err()) {
            return Err(self);
        }
        match core::mem::take(&mut self.pages).split(at) {
            Ok((head, tail)) => {
                let (space, protection) = (self.space, self.protection);
                let part = |pages| Self { pages, space, protection, kind: PhantomData };
                Ok((part(head), part(tail)))
            }
            Err(pages) => {
                self.pages = pages;
                Err(self)
            }
        }
    }

    /// The same bytes in new memory, with `flags` or the same ones. Never writable and executable in between.
    pub fn deep_copy(&self, flags: Option<Protection>) -> Result<Self, MapError> {
        let Some(space) = self.space else { return Ok(Self::empty()) };
        let mut copy = space.allocate_stale(self.pages.size_in_pages())?;
        if let (Ok(to), from) = (copy.bytes_mut(), self.bytes()) {
            to.copy_from_slice(from);
        }
        copy.remap(flags.unwrap_or(self.protection));
        Ok(copy)
    }

    /// Changes what the CPU may do here. Cannot fail: a mapping always consists of whole leaves, since
    /// [`split`](Self::split) breaks the larger ones. For a part of a mapping: split, remap, merge.
    pub fn remap(&mut self, flags: Protection) {
        if let Some(space) = self.space.filter(|_| flags != self.protection) {
            space.protect(&self.pages, flags);
            self.protection = flags;
        }
    }

    /// Unmaps and returns the pages and all frames, as one token for each run of adjacent ones. Gives the
    /// mapping back if the heap has no room for the list. What the memory held is lost: it is zeroed when the
    /// frames are mapped.
    pub fn unmap_into_parts(self) -> Result<(AllocatedPages, Vec<AllocatedFrames>), Self> {
        let mut list: Vec<AllocatedFrames> = Vec::new();
        let Some(space) = self.space else { return Ok((AllocatedPages::empty(), list)) };
        if list.try_reserve_exact(space.runs(&self.pages)).is_err() {
            return Err(self);
        }
        let pages = self.unmap_with(|space, frames| {
            space.frames().transfer(Owner::Unmapped, Owner::Allocated, frames.size_in_frames());
            let frames = AllocatedFrames::new(space.frames(), frames);
            let rest = match list.last_mut() {
                Some(last) => last.merge(frames).err(),
                None => Some(frames),
            };
            list.extend(rest);
        });
        Ok((pages, list))
    }

    /// Joins what is known to follow directly.
    pub(super) fn append(&mut self, next: Self) {
        let rest = self.merge(next);
        debug_assert!(rest.is_ok(), "not adjacent");
    }

    /// Frees the frames and keeps the pages.
    pub(super) fn into_pages(self) -> AllocatedPages {
        self.unmap_with(<Private as sealed::Kind>::release)
    }

    fn unmap_with(mut self, mut take: impl FnMut(&'static AddressSpace, FrameRange)) -> AllocatedPages {
        let pages = core::mem::take(&mut self.pages);
        if let Some(space) = self.space {
            space.unmap(*pages, |frames| take(space, frames));
        }
        pages
    }

    /// Writes zeros to all of it, which is writable: nobody reads what the frames' last owner left there.
    #[inline(never)] // so that a benchmark can tell its cost from the rest
    pub(super) fn zero(&mut self) {
        if let Ok(bytes) = self.bytes_mut() {
            bytes.fill(0);
        }
    }

    fn bytes(&self) -> &[u8] {
        let len = self.pages.size_in_bytes() as usize;
        if len == 0 {
            return &[];
        }
        // SAFETY: the pages are mapped and readable while `self` lives, and not null, as no allocator has
        // page 0; nothing else maps the frames and no device is told of them, so they only change through
        // `&mut self`, or through what was borrowed from it and excludes this; any bytes are valid; a half of
        // the address space is below `isize::MAX`.
        unsafe { core::slice::from_raw_parts(self.as_ptr(), len) }
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8], AccessError> {
        let len = self.pages.size_in_bytes() as usize;
        if len == 0 {
            return Ok(&mut []);
        }
        if self.protection != Protection::ReadWrite {
            return Err(AccessError::NotWritable);
        }
        // SAFETY: as in `bytes`, the pages are writable, and `&mut self` excludes every other reference.
        Ok(unsafe { core::slice::from_raw_parts_mut(self.as_ptr(), len) })
    }

    /// The bytes at `offset` as a `T`.
    pub fn as_type<T: FromBytes + zerocopy::Immutable + KnownLayout>(
        &self,
        offset: usize,
    ) -> Result<&T, AccessError> {
        let bytes = part(self.bytes().len(), offset, Some(size_of::<T>()))?;
        T::ref_from_bytes(&self.bytes()[bytes]).map_err(|_| AccessError::Misaligned)
    }

    /// The bytes at `offset` as a `T` to be changed; without padding, which would leave bytes uninitialised.
    pub fn as_type_mut<T: FromBytes + IntoBytes + KnownLayout>(
        &mut self,
        offset: usize,
    ) -> Result<&mut T, AccessError> {
        let all = self.bytes_mut()?;
        let bytes = part(all.len(), offset, Some(size_of::<T>()))?;
        T::mut_from_bytes(&mut all[bytes]).map_err(|_| AccessError::Misaligned)
    }

    /// `length` elements from `offset` (in bytes) on.
    pub fn as_slice<T: FromBytes + zerocopy::Immutable>(
        &self,
        offset: usize,
        length: usize,
    ) -> Result<&[T], AccessError> {
        let bytes = part(self.bytes().len(), offset, length.checked_mul(size_of::<T>()))?;
        <[T]>::ref_from_bytes_with_elems(&self.bytes()[bytes], length).map_err(|_| AccessError::Misaligned)
    }

    /// `length` elements from `offset` (in bytes) on, to be changed.
    pub fn as_slice_mut<T: FromBytes + IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        length: usize,
    ) -> Result<&mut [T], AccessError> {
        let all = self.bytes_mut()?;
        let bytes = part(all.len(), offset, length.checked_mul(size_of::<T>()))?;
        <[T]>::mut_from_bytes_with_elems(&mut all[bytes], length).map_err(|_| AccessError::Misaligned)
    }
}

/// The bytes `offset..offset + len` of `total`.
fn part(total: usize, offset: usize, len: Option<usize>) -> Result<core::ops::Range<usize>, AccessError> {
    let end = len.and_then(|len| offset.checked_add(len)).filter(|end| *end <= total);
    Ok(offset..end.ok_or(AccessError::OutOfBounds)?)
}

impl MappedPages<Dma> {
    /// Where the memory lies; it is adjacent.
    pub fn physical_address(&self) -> PhysAddr {
        self.contiguous_address()
    }

    /// Writes zeros to all of it.
    #[inline(never)] // so that a benchmark can tell its cost from the rest
    pub fn zero(&mut self) {
        const UNROLLED: usize = 8;
        let mut words: *mut u64 = self.as_ptr().cast();
        // Booting is to a good part this, and the compiler unrolls the inner loop only.
        for _ in 0..self.pages.size_in_bytes() as usize / size_of::<[u64; UNROLLED]>() {
            for word in 0..UNROLLED {
                // SAFETY: inside the mapping, which is whole pages and always writable for this kind;
                // volatile since a device that has, or had, this memory may write to it meanwhile.
                unsafe { words.add(word).write_volatile(0) };
            }
            words = words.wrapping_add(UNROLLED);
        }
    }

    /// Where the frames are booked.
    pub(crate) fn frame_allocator(&self) -> Option<&'static crate::FrameAllocator> {
        self.space.map(AddressSpace::frames)
    }
}

impl MappedPages<Mmio> {
    /// Where the registers lie; they are adjacent.
    pub fn physical_address(&self) -> PhysAddr {
        self.contiguous_address()
    }
}

impl<K: Kind> Deref for MappedPages<K> {
    type Target = PageRange;

    fn deref(&self) -> &PageRange {
        &self.pages
    }
}

impl<K: Kind> Drop for MappedPages<K> {
    fn drop(&mut self) {
        if let Some(space) = self.space {
            // The pages go back to their allocator after this, when the field is dropped.
            space.unmap(*self.pages, |frames| K::release(space, frames));
        }
    }
}

impl<K: Kind> fmt::Debug for MappedPages<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({:?}, {:?})", *self.pages, K::TAG, self.protection)
    }
}
