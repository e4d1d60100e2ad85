//! Device registers: each range is offered once, and each page of it claimed by one owner at a time.

use super::{AddressSpace, MapError, MappedPages, Mmio, Protection};
use crate::pages::PageRequest;
use crate::range::{FrameRange, PageRange};

/// How many ranges can be offered, and how many parts of them be claimed at a time.
const OFFERS: usize = 128;
const CLAIMS: usize = 256;

/// Why a range of registers was not offered or claimed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// No bytes at all.
    ZeroLength,
    /// The range is (partly) RAM.
    Ram,
    /// The range shares a page with one offered before.
    Overlap,
    /// No room for another range.
    Full,
    /// Not in a range that was offered.
    NotOffered,
    /// Somebody has a page of it.
    AlreadyClaimed,
    /// It could not be mapped.
    Map(MapError),
}

/// Ranges of frames by rising address, no two of which overlap, and the pages that each is mapped at.
struct Ranges<const N: usize> {
    entries: [(FrameRange, PageRange); N],
    count: usize,
}

impl<const N: usize> Ranges<N> {
    const fn new() -> Self {
        Self { entries: [(FrameRange::empty(), PageRange::empty()); N], count: 0 }
    }

    /// Where the first range that ends after frame number `frame` is, or would be.
    fn place(&self, frame: u64) -> usize {
        self.entries[..self.count].partition_point(|(frames, _)| frames.past() <= frame)
    }

    /// The first range that ends after frame number `frame`.
    fn at(&self, frame: u64) -> Option<&(FrameRange, PageRange)> {
        self.entries[..self.count].get(self.place(frame))
    }

    /// Whether another range, `frames`, can be inserted; `taken` if it shares a frame with one.
    fn check(&self, frames: &FrameRange, taken: ClaimError) -> Result<(), ClaimError> {
        match self.at(frames.first()) {
            Some((next, _)) if next.first() < frames.past() => Err(taken),
            _ if self.count == N => Err(ClaimError::Full),
            _ => Ok(()),
        }
    }

    /// After [`check`](Self::check).
    fn insert(&mut self, frames: FrameRange, pages: PageRange) {
        let place = self.place(frames.first());
        self.entries.copy_within(place..self.count, place + 1);
        self.entries[place] = (frames, pages);
        self.count += 1;
    }

    fn remove(&mut self, frames: &FrameRange) {
        let place = self.place(frames.first());
        if self.at(frames.first()).is_some_and(|(found, _)| found == frames) {
            self.entries.copy_within(place + 1..self.count, place);
            self.count -= 1;
        }
    }
}

/// The ranges that device registers may be claimed from, and the parts of them that somebody has.
pub(crate) struct Claims {
    offered: Ranges<OFFERS>,
    claimed: Ranges<CLAIMS>,
}

impl Claims {
    pub const fn new() -> Self {
        Self { offered: Ranges::new(), claimed: Ranges::new() }
    }

    /// Whether a claim maps page number `page` to frame number `frame`.
    pub fn maps(&self, page: u64, frame: u64) -> bool {
        self.claimed.at(frame).is_some_and(|(frames, pages)| {
            let offset = page.checked_sub(pages.first());
            offset.is_some() && offset == frame.checked_sub(frames.first())
        })
    }

    /// Whether `frames` can be claimed.
    fn check(&self, frames: &FrameRange) -> Result<(), ClaimError> {
        let offer = self.offered.at(frames.first()).filter(|_| !frames.is_empty());
        let inside = |offer: &FrameRange| offer.first() <= frames.first() && frames.past() <= offer.past();
        if !offer.is_some_and(|(offer, _)| inside(offer)) {
            return Err(ClaimError::NotOffered);
        }
        self.claimed.check(frames, ClaimError::AlreadyClaimed)
    }

    /// Ends the claim of exactly these frames, which are unmapped.
    pub fn release(&mut self, frames: &FrameRange) {
        self.claimed.remove(frames);
    }
}

impl AddressSpace {
    /// Puts device registers on offer: a BAR, or a range from MCFG or MADT. Whole pages: of two ranges in the
    /// same page only the first can be offered.
    ///
    /// # Safety
    /// The range is what the firmware says, and whoever claims it may use every register in it: nothing there
    /// lets its user reach memory behind the owner's back, unless the claimant answers for that.
    pub unsafe fn offer_mmio(&self, frames: FrameRange) -> Result<(), ClaimError> {
        if frames.is_empty() {
            return Err(ClaimError::ZeroLength);
        }
        if self.frames().is_ram(frames) {
            return Err(ClaimError::Ram);
        }
        let offered = &mut self.claims.lock().offered;
        offered.check(&frames, ClaimError::Overlap)?;
        offered.insert(frames, PageRange::empty());
        Ok(())
    }

    /// Maps a range of registers, all of it in one that was offered, uncached, for one owner. Dropping the
    /// mapping gives the claim back.
    pub fn claim_mmio(&'static self, frames: FrameRange) -> Result<MappedPages<Mmio>, ClaimError> {
        let mut claims = self.claims.lock();
        claims.check(&frames)?;
        let pages = self.pages().allocate(PageRequest::new(frames.size_in_frames()));
        let pages = pages.map_err(|error| ClaimError::Map(MapError::Pages(error)))?;
        // Claimed before it is mapped: the processors may have to be told, without a lock.
        claims.claimed.insert(frames, *pages);
        drop(claims);
        self.map::<Mmio>(pages, &frames, Protection::ReadWrite).map_err(|(error, _)| {
            self.claims.lock().release(&frames);
            ClaimError::Map(error)
        })
    }
}
