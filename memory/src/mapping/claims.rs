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

/// The ranges that device registers may be claimed from.
pub(crate) struct Claims([Option<Claim>; CLAIMS]);

impl Claims {
    pub const fn new() -> Self {
        Self([None; CLAIMS])
    }

    /// The frame that a claim maps page number `page` to.
    pub fn frame_at(&self, page: u64) -> Option<u64> {
        self.0.iter().flatten().find_map(|claim| {
            let offset = page.checked_sub(claim.pages?.first())?;
            (offset < claim.frames.size_in_frames() as u64).then_some(claim.frames.first() + offset)
        })
    }

    fn find(&mut self, frames: &FrameRange) -> Option<&mut Claim> {
        self.0.iter_mut().flatten().find(|claim| claim.frames == *frames)
    }

    /// Ends the claim that begins with these frames: the first run of leaves, when all of them are unmapped.
    pub fn release(&mut self, frames: &FrameRange) {
        if let Some(claim) = self.0.iter_mut().flatten().find(|claim| claim.frames.start() == frames.start())
        {
            claim.pages = None;
        }
    }
}

impl AddressSpace {
    /// Puts device registers on offer: a BAR, or a range from MCFG or MADT. Whole pages: of two ranges in the same page
    /// only the first can be offered.
    ///
    /// # Safety
    /// The range is what the firmware says, and whoever claims it may use every register in it: nothing there lets its
    /// user reach memory behind the owner's back, unless the claimant answers for that.
    pub unsafe fn offer_mmio(&self, frames: FrameRange) -> Result<(), ClaimError> {
        if frames.is_empty() {
            return Err(ClaimError::ZeroLength);
        }
        if self.frames().is_ram(frames) {
            return Err(ClaimError::Ram);
        }
        let claims = &mut self.claims.lock().0;
        if claims.iter().flatten().any(|claim| claim.frames.overlap(&frames).is_some()) {
            return Err(ClaimError::Overlap);
        }
        let place = claims.iter_mut().find(|place| place.is_none()).ok_or(ClaimError::Full)?;
        *place = Some(Claim { frames, pages: None });
        Ok(())
    }

    /// Maps exactly one offered range, uncached, for one owner. Dropping the mapping gives the claim back.
    pub fn claim_mmio(&'static self, frames: FrameRange) -> Result<MappedPages<Mmio>, ClaimError> {
        let mut claims = self.claims.lock();
        let claim = claims.find(&frames).ok_or(ClaimError::NotOffered)?;
        if claim.pages.is_some() {
            return Err(ClaimError::AlreadyClaimed);
        }
        let (count, map_error) = (frames.size_in_frames(), |error| ClaimError::Map(MapError::Pages(error)));
        let request = PageRequest { align: self.natural_alignment(count), ..PageRequest::new(count) };
        let pages = self.pages().allocate(request).map_err(map_error)?;
        let mapped = self.map::<Mmio>(pages, &frames, Protection::ReadWrite);
        let mapped = mapped.map_err(|(error, _)| ClaimError::Map(error))?;
        claim.pages = Some(*mapped);
        Ok(mapped)
    }
}
