//! Device registers: each range is offered once and claimed by one owner at a time.

use super::{AddressSpace, MapError, MappedPages, Mmio, Protection};
use crate::pages::PageRequest;
use crate::range::{FrameRange, PageRange};

/// How many ranges can be offered.
const CLAIMS: usize = 128;

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
    /// Not exactly a range that was offered.
    NotOffered,
    /// Somebody has it.
    AlreadyClaimed,
    /// It could not be mapped.
    Map(MapError),
}

/// One offered range.
#[derive(Clone, Copy)]
struct Claim {
    frames: FrameRange,
    /// Where it is mapped, if it is claimed.
    pages: Option<PageRange>,
}

/// The ranges that device registers may be claimed from, by rising address; no two overlap.
pub(crate) struct Claims {
    ranges: [Claim; CLAIMS],
    count: usize,
}

impl Claims {
    pub const fn new() -> Self {
        Self { ranges: [Claim { frames: FrameRange::empty(), pages: None }; CLAIMS], count: 0 }
    }

    /// Where the first range that ends after frame number `frame` is, or would be.
    fn place(&self, frame: u64) -> usize {
        self.ranges[..self.count].partition_point(|claim| claim.frames.past() <= frame)
    }

    /// Whether a claim maps page number `page` to frame number `frame`.
    pub fn maps(&self, page: u64, frame: u64) -> bool {
        let claim = self.ranges[..self.count].get(self.place(frame));
        claim.is_some_and(|claim| {
            let pages = claim.pages.and_then(|pages| page.checked_sub(pages.first()));
            pages.is_some() && pages == frame.checked_sub(claim.frames.first())
        })
    }

    fn find(&mut self, frames: &FrameRange) -> Option<&mut Claim> {
        let place = self.place(frames.first());
        self.ranges[..self.count].get_mut(place).filter(|claim| claim.frames == *frames)
    }

    fn offer(&mut self, frames: FrameRange) -> Result<(), ClaimError> {
        let place = self.place(frames.first());
        if self.ranges[..self.count].get(place).is_some_and(|next| next.frames.first() < frames.past()) {
            return Err(ClaimError::Overlap);
        }
        if self.count == CLAIMS {
            return Err(ClaimError::Full);
        }
        self.ranges.copy_within(place..self.count, place + 1);
        self.ranges[place] = Claim { frames, pages: None };
        self.count += 1;
        Ok(())
    }

    /// Ends the claim of exactly these frames, which are unmapped.
    pub fn release(&mut self, frames: &FrameRange) {
        if let Some(claim) = self.find(frames) {
            claim.pages = None;
        }
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
        self.claims.lock().offer(frames)
    }

    /// Maps exactly one offered range, uncached, for one owner. Dropping the mapping gives the claim back.
    pub fn claim_mmio(&'static self, frames: FrameRange) -> Result<MappedPages<Mmio>, ClaimError> {
        let mut claims = self.claims.lock();
        let claim = claims.find(&frames).ok_or(ClaimError::NotOffered)?;
        if claim.pages.is_some() {
            return Err(ClaimError::AlreadyClaimed);
        }
        let pages = self.pages().allocate(PageRequest::new(frames.size_in_frames()));
        let pages = pages.map_err(|error| ClaimError::Map(MapError::Pages(error)))?;
        let mapped = self.map::<Mmio>(pages, &frames, Protection::ReadWrite);
        let mapped = mapped.map_err(|(error, _)| ClaimError::Map(error))?;
        claim.pages = Some(*mapped);
        Ok(mapped)
    }
}
