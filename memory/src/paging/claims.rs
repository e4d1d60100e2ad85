//! Device registers: each range is offered once, and each page of it claimed by one owner at a time.

use super::{AddressSpace, MapError, MappedPages, Mmio, Protection};
use crate::DeviceId;
use crate::allocator::pages::PageRequest;
use crate::range::FrameRange;

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
    /// Somebody has a page of it, or another device one of the range that was offered.
    AlreadyClaimed,
    /// It could not be mapped.
    Map(MapError),
}

/// Ranges of frames by rising address, no two of which overlap, and what there is to say of each.
struct Ranges<T, const N: usize> {
    entries: [(FrameRange, T); N],
    count: usize,
}

impl<T: Copy, const N: usize> Ranges<T, N> {
    const fn new(none: T) -> Self {
        Self { entries: [(FrameRange::empty(), none); N], count: 0 }
    }

    /// Where the first range that ends after frame number `frame` is, or would be.
    fn place(&self, frame: u64) -> usize {
        self.entries[..self.count].partition_point(|(frames, ..)| frames.past() <= frame)
    }

    /// The first range that ends after frame number `frame`.
    fn at(&self, frame: u64) -> Option<&(FrameRange, T)> {
        self.entries[..self.count].get(self.place(frame))
    }

    /// Whether another range, `frames`, can be inserted; `taken` if it shares a frame with one.
    fn check(&self, frames: &FrameRange, taken: ClaimError) -> Result<(), ClaimError> {
        match self.at(frames.first()) {
            Some((next, ..)) if next.first() < frames.past() => Err(taken),
            _ if self.count == N => Err(ClaimError::Full),
            _ => Ok(()),
        }
    }

    /// After [`check`](Self::check).
    fn insert(&mut self, frames: FrameRange, value: T) {
        let place = self.place(frames.first());
        self.entries.copy_within(place..self.count, place + 1);
        self.entries[place] = (frames, value);
        self.count += 1;
    }

    fn remove(&mut self, frames: &FrameRange) {
        let place = self.place(frames.first());
        if self.at(frames.first()).is_some_and(|(found, ..)| found == frames) {
            self.entries.copy_within(place + 1..self.count, place);
            self.count -= 1;
        }
    }
}

/// The ranges that device registers may be claimed from, and the parts of them that somebody has.
pub(crate) struct Claims {
    offered: Ranges<(), OFFERS>,
    /// The number of the first page that each is mapped at, and whose registers it has.
    claimed: Ranges<(u64, Option<DeviceId>), CLAIMS>,
}

impl Claims {
    pub const fn new() -> Self {
        // A constant, or the boot stack would hold several of it.
        const NONE: Claims = Claims { offered: Ranges::new(()), claimed: Ranges::new((0, None)) };
        NONE
    }

    /// Whether a claim maps page number `page` to frame number `frame`.
    pub fn maps(&self, page: u64, frame: u64) -> bool {
        self.claimed.at(frame).is_some_and(|(frames, (first, _))| {
            let offset = page.checked_sub(*first);
            offset.is_some() && offset == frame.checked_sub(frames.first())
        })
    }

    /// Whether `frames` can be claimed for `device`.
    fn check(&self, frames: &FrameRange, device: Option<DeviceId>) -> Result<(), ClaimError> {
        let offer = self.offered.at(frames.first()).filter(|_| !frames.is_empty());
        let inside = |offer: &&FrameRange| offer.first() <= frames.first() && frames.past() <= offer.past();
        let offer = offer.map(|(offer, ..)| offer).filter(inside).ok_or(ClaimError::NotOffered)?;
        // All that is claimed in one offer is one device's.
        let other = self.claimed.at(offer.first()).filter(|(found, ..)| found.first() < offer.past());
        if other.is_some_and(|(_, (_, whose))| *whose != device) {
            return Err(ClaimError::AlreadyClaimed);
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
        offered.insert(frames, ());
        Ok(())
    }

    /// Maps a range of registers, all of it in one that was offered, uncached, for one owner. Dropping the
    /// mapping gives the claim back. Until then nothing in the same offer is claimed for any other `device`,
    /// whatever that says of where its registers are.
    pub fn claim_mmio(
        &'static self,
        frames: FrameRange,
        device: Option<DeviceId>,
    ) -> Result<MappedPages<Mmio>, ClaimError> {
        let mut claims = self.claims.lock();
        claims.check(&frames, device)?;
        let pages = self.pages().allocate(PageRequest::new(frames.size_in_frames()));
        let pages = pages.map_err(|error| ClaimError::Map(MapError::Pages(error)))?;
        // Claimed before it is mapped: the processors may have to be told, without a lock.
        claims.claimed.insert(frames, (pages.first(), device));
        drop(claims);
        self.map::<Mmio>(pages, &frames, Protection::ReadWrite).map_err(|(error, _)| {
            self.claims.lock().release(&frames);
            ClaimError::Map(error)
        })
    }
}
