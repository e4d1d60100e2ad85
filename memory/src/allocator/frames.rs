//! Physical memory: who owns each frame.
//!
//! Where a frame is in its life is a type: each of these owns adjacent frames, none is `Clone`, and dropping
//! one is the step to the left.
//!
//! ```text
//!            allocate                 map                     unmap         flush
//! (allocator) ──────► AllocatedFrames ────► MappedPages<Private> ──► Flush ──────► AllocatedFrames
//! (DMA arena) ──────► DmaFrames ──────────► MappedPages<Dma> ──────► Flush ──────► (DMA arena)
//! ```
//!
//! Theseus's `FreeFrames`, `MappedFrames` and `UnmappedFrames` are the allocator, the page tables and
//! `Flush`.

use super::buddy::{AllocError, Buddy, MAX_ALIGN, Request};
use super::owner::Owner;
use crate::address::{PAGE_SHIFT, PhysAddr};
use crate::allocator::bits;
use crate::audit::progress::Progress;
use crate::lock::{Guard, Level, Lock};
use crate::paging::Tag;
use crate::range::FrameRange;
use core::mem::ManuallyDrop;

pub(crate) struct Inner {
    pub private: Buddy,
    /// Type-stable memory: what has once been given to a device comes back here and goes to devices only.
    pub dma: Buddy,
    /// One bit for each frame that is RAM.
    pub ram: &'static mut [u64],
    /// One bit for each frame, for the audit.
    pub scratch: &'static mut [u64],
    /// The books: frames of each owner. Changed only together with what they count.
    counts: [usize; Owner::ALL.len()],
    pub audit: Progress,
}

impl Inner {
    pub const fn count(&self, owner: Owner) -> usize {
        self.counts[owner as usize]
    }

    pub fn counts(&self) -> [(Owner, usize); Owner::ALL.len()] {
        Owner::ALL.map(|owner| (owner, self.count(owner)))
    }

    /// Moves frames from one owner to another: as many as there are, so that the sum stays what it is.
    pub(crate) fn transfer(&mut self, from: Owner, to: Owner, count: usize) {
        let count = count.min(self.count(from));
        self.counts[from as usize] -= count;
        self.counts[to as usize] += count;
    }

    /// Adds frames to the DMA arena, for good.
    pub fn keep(&mut self, from: Owner, start: usize, count: usize) {
        self.dma.free(start, count);
        self.transfer(from, Owner::DmaIdle, count);
    }
}

/// The allocator of physical memory, over one span of frames.
///
/// Needs no heap: its storage is handed in. Not for interrupt handlers (it takes a spin lock).
///
/// ```
/// use ringfence_memory::{FrameAllocator, FrameRange, FrameRequest, Owner, PhysAddr};
///
/// // 64 MiB from address 0, of which the first 4 KiB are the firmware's.
/// let frames = |at, count| FrameRange::new(PhysAddr::new(at).unwrap(), count).unwrap();
/// let storage = vec![0; FrameAllocator::storage_words(16384)].leak();
/// let allocator: &'static _ = Box::leak(Box::new(FrameAllocator::new(frames(0, 16384), storage).unwrap()));
/// // SAFETY: these frames are but numbers here.
/// unsafe {
///     allocator.add(frames(0, 1), Owner::Reserved);
///     allocator.add(frames(0, 16384), Owner::Free);
/// }
///
/// let request = FrameRequest { align: 512, below: PhysAddr::new(16 << 20), ..FrameRequest::new(3) };
/// let token = allocator.allocate(request).unwrap();
/// assert!(token.start_address().value().is_multiple_of(2 << 20) && token.size_in_frames() == 3);
/// assert_eq!(allocator.count(Owner::Allocated), 3);
/// let (head, tail) = token.split_at(1).unwrap();
/// drop((head, tail));
/// assert_eq!((allocator.count(Owner::Free), allocator.total()), (16383, 16384));
/// ```
pub struct FrameAllocator {
    span: FrameRange,
    inner: Lock<Inner>,
}

/// Which frames are wanted.
#[derive(Clone, Copy, Debug)]
pub struct FrameRequest {
    /// How many, adjacent.
    pub count: usize,
    /// In frames; a power of two, at most 1 GiB.
    pub align: usize,
    /// The last byte must lie below this address.
    pub below: Option<PhysAddr>,
    /// Exactly here.
    pub at: Option<PhysAddr>,
}

impl FrameRequest {
    /// `count` adjacent frames anywhere.
    pub const fn new(count: usize) -> Self {
        Self { count, align: 1, below: None, at: None }
    }
}

/// The locked books, while page tables change.
pub(crate) struct Books<'a> {
    allocator: &'a FrameAllocator,
    inner: Guard<'a, Inner>,
}

impl Books<'_> {
    /// The pages from number `page` on are now mapped to these frames, which were in the caller's hands.
    pub fn mapped(&mut self, tag: Tag, page: u64, frames: &FrameRange) {
        if let Some(owner) = tag.owner() {
            self.inner.transfer(Owner::Allocated, owner, frames.size_in_frames());
            self.audit(tag, page, frames, true);
        }
    }

    /// They are not mapped any more, though the processor may not know.
    pub fn unmapped(&mut self, tag: Tag, page: u64, frames: &FrameRange) {
        if let Some(owner) = tag.owner() {
            self.inner.transfer(owner, Owner::Unmapped, frames.size_in_frames());
            self.audit(tag, page, frames, false);
        }
    }

    fn audit(&mut self, tag: Tag, page: u64, frames: &FrameRange, mapped: bool) {
        let Inner { scratch, audit, .. } = &mut *self.inner;
        if let Some((start, end)) = self.allocator.indices(frames) {
            audit.change(scratch, tag, page, start..end, mapped);
        }
    }
}

impl Tag {
    /// Who has the frames that a leaf maps, if that is not settled for good before there are leaves.
    pub(crate) const fn owner(self) -> Option<Owner> {
        match self {
            Self::Private => Some(Owner::Private),
            Self::Dma => Some(Owner::Dma),
            Self::Boot | Self::Mmio => None,
        }
    }
}

impl FrameAllocator {
    /// How many words of storage a span of `frames` needs (about 0.8 bytes for each frame).
    pub const fn storage_words(frames: usize) -> usize {
        2 * Buddy::storage_words(frames) + 2 * frames.div_ceil(64)
    }

    /// An allocator that knows of no RAM yet. `span` should reach from address 0 to the end of RAM; it must
    /// begin at a multiple of 1 GiB.
    pub fn new(span: FrameRange, storage: &'static mut [u64]) -> Result<Self, AllocError> {
        let frames = span.size_in_frames();
        if !span.first().is_multiple_of(MAX_ALIGN as u64) {
            return Err(AllocError::Misaligned);
        }
        if storage.len() < Self::storage_words(frames) {
            return Err(AllocError::StorageTooSmall);
        }
        let (private, rest) = storage.split_at_mut(Buddy::storage_words(frames));
        let (dma, rest) = rest.split_at_mut(Buddy::storage_words(frames));
        let (ram, rest) = rest.split_at_mut(frames.div_ceil(64));
        ram.fill(0);
        let inner = Inner {
            private: Buddy::new(frames, private).ok_or(AllocError::StorageTooSmall)?,
            dma: Buddy::new(frames, dma).ok_or(AllocError::StorageTooSmall)?,
            ram,
            scratch: &mut rest[..frames.div_ceil(64)],
            counts: [0; Owner::ALL.len()],
            audit: Progress::new(),
        };
        Ok(Self { span, inner: Lock::new(Level::Frames, inner) })
    }

    /// Tells the allocator about RAM, as far as it lies in the span. Frames that were added before are
    /// skipped, so what is in use goes in first and whole usable regions follow. Returns how many frames were
    /// taken.
    ///
    /// # Safety
    /// The range is RAM. What is added as [`Owner::Free`] is used by nobody else, now or later.
    pub unsafe fn add(&self, range: FrameRange, owner: Owner) -> usize {
        let Some((mut at, end)) = self.indices(&range) else { return 0 };
        let inner = &mut *self.inner.lock();
        let mut taken = 0;
        while at < end {
            let start = bits::find(inner.ram, at, end, false);
            at = bits::find(inner.ram, start, end, true);
            bits::set(inner.ram, start, at);
            if owner == Owner::Free {
                inner.private.free(start, at - start);
            }
            taken += at - start;
        }
        inner.counts[owner as usize] += taken;
        inner.audit.restart();
        taken
    }

    /// Takes frames for the CPU's own use.
    pub fn allocate(&'static self, request: FrameRequest) -> Result<AllocatedFrames, AllocError> {
        let wanted = self.request(&request)?;
        let inner = &mut *self.inner.lock();
        let start = inner.private.allocate(&wanted)?;
        inner.transfer(Owner::Free, Owner::Allocated, request.count);
        Ok(AllocatedFrames::new(self, self.range(start, request.count)))
    }

    /// Frees frames that are unmapped, flushed, and in nobody's hands but `from`'s.
    pub(crate) fn put_back(&self, from: Owner, range: &FrameRange) {
        if let Some((start, end)) = self.indices(range) {
            let inner = &mut *self.inner.lock();
            inner.private.free(start, end - start);
            inner.transfer(from, Owner::Free, end - start);
        }
    }

    /// How many frames `owner` has.
    pub fn count(&self, owner: Owner) -> usize {
        self.inner.lock().count(owner)
    }

    /// How many frames every owner has, at one moment: their sum is always [`total`](Self::total).
    pub fn counts(&self) -> [(Owner, usize); Owner::ALL.len()] {
        self.inner.lock().counts()
    }

    /// How many frames of RAM there are: the sum over all owners.
    pub fn total(&self) -> usize {
        self.inner.lock().counts.iter().sum()
    }

    /// Whether any of these frames is RAM.
    pub fn is_ram(&self, range: FrameRange) -> bool {
        self.indices(&range)
            .is_some_and(|(start, end)| bits::find(self.inner.lock().ram, start, end, true) < end)
    }

    /// Books frames for another owner, who has them in hand.
    pub(crate) fn transfer(&self, from: Owner, to: Owner, count: usize) {
        self.inner.lock().transfer(from, to, count);
    }

    /// The first run of RAM that begins at frame number `from` or later.
    pub(crate) fn next_ram_run(&self, from: u64) -> Option<FrameRange> {
        let (inner, frames) = (self.inner.lock(), self.span.size_in_frames());
        let from = usize::try_from(from.saturating_sub(self.span.first())).ok()?.min(frames);
        let start = bits::find(inner.ram, from, frames, true);
        let end = bits::find(inner.ram, start, frames, false);
        (start < end).then(|| self.range(start, end - start))
    }

    /// The next run of RAM from frame number `from` on, and whose it is: free ([`Owner::Free`]), idle in the
    /// DMA arena ([`Owner::DmaIdle`]), or in use (`None`). Runs that follow each other may be alike. For a
    /// picture: between two calls frames may be taken and given back.
    pub fn next_run(&self, from: u64) -> Option<(FrameRange, Option<Owner>)> {
        let (inner, frames) = (&mut *self.inner.lock(), self.span.size_in_frames());
        let from = usize::try_from(from.saturating_sub(self.span.first())).ok()?.min(frames);
        let start = bits::find(inner.ram, from, frames, true);
        let free = inner.private.free_run(start).map(|(start, end)| (start, end, Owner::Free));
        let idle = inner.dma.free_run(start).map(|(start, end)| (start, end, Owner::DmaIdle));
        let (end, owner) = match free.into_iter().chain(idle).min_by_key(|(start, ..)| *start) {
            Some((first, end, owner)) if first <= start => (end, Some(owner)),
            // What is free is RAM, so this looks no further than it returns.
            next => (bits::find(inner.ram, start, next.map_or(frames, |(first, ..)| first), false), None),
        };
        (start < end).then(|| (self.range(start, end - start), owner))
    }

    /// The books and the bitmaps, for a change of page tables: both under the mapper's lock and this one.
    pub(crate) fn books(&self) -> Books<'_> {
        Books { allocator: self, inner: self.inner.lock() }
    }

    pub(crate) fn inner(&self) -> &Lock<Inner> {
        &self.inner
    }

    /// First and past-the-last index of the part of `range` that lies in the span.
    pub(crate) fn indices(&self, range: &FrameRange) -> Option<(usize, usize)> {
        let part = self.span.overlap(range)?;
        Some(((part.first() - self.span.first()) as usize, (part.past() - self.span.first()) as usize))
    }

    pub(crate) fn range(&self, start: usize, count: usize) -> FrameRange {
        // Indices lie inside the span, which was constructed.
        FrameRange::from_numbers(self.span.first() + start as u64, count as u64)
            .unwrap_or(FrameRange::empty())
    }

    pub(crate) fn request(&self, request: &FrameRequest) -> Result<Request, AllocError> {
        let index = |frame: u64| frame.checked_sub(self.span.first()).map(|index| index as usize);
        let at = match request.at {
            Some(address) if !address.is_page_aligned() => return Err(AllocError::Misaligned),
            Some(address) => Some(index(address.value() >> PAGE_SHIFT).ok_or(AllocError::OutOfRange)?),
            None => None,
        };
        let below = match request.below {
            Some(address) => index(address.value() >> PAGE_SHIFT).ok_or(AllocError::OutOfRange)?,
            None => usize::MAX,
        };
        Ok(Request { count: request.count, align: request.align, at, from: 0, below })
    }
}

crate::token::token! {
    /// Adjacent frames that nobody else has and no page maps. Dropping makes them free.
    AllocatedFrames: FrameRange of FrameAllocator,
    /// Joins `other` to this token. Gives it back unless it lies directly before or after and is of the same
    /// allocator.
    merge |this, other| this.join(other).or_else(|| other.join(this)),
    drop |home, range| home.put_back(Owner::Allocated, range)
}

impl AllocatedFrames {
    /// Conjures a token. The caller has just taken these frames from elsewhere, and booked them as allocated.
    pub(crate) const fn new(home: &'static FrameAllocator, range: FrameRange) -> Self {
        Self { range, home: Some(home) }
    }

    /// The first `count` frames and the rest. Gives the token back if it has fewer.
    pub fn split_at(self, count: usize) -> Result<(Self, Self), Self> {
        let Some((head, tail)) = self.range.split_at(count) else { return Err(self) };
        let this = ManuallyDrop::new(self);
        let part = |range| Self { range, home: this.home };
        Ok((part(head), part(tail)))
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
