//! Device registers that an address space maps when they are claimed.

use super::{AddressSpace, MapError, MappedPages, Mmio, Protection};
use crate::allocator::pages::PageRequest;
use crate::{ClaimError, DeviceId, FrameRange};

impl AddressSpace {
    /// Puts device registers on offer: a BAR, or a range from MCFG or MADT. Whole pages: of two ranges in the
    /// same page only the first can be offered.
    ///
    /// # Safety
    /// The range is what the firmware says, and whoever claims it may use every register in it: nothing there
    /// lets its user reach memory behind the owner's back, unless the claimant answers for that.
    pub unsafe fn offer_mmio(&self, frames: FrameRange) -> Result<(), ClaimError> {
        if self.frames().is_ram(frames) {
            return Err(ClaimError::Ram);
        }
        self.claims.lock().offer(frames)
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
        claims.claim(frames, pages.first(), device);
        drop(claims);
        self.map::<Mmio>(pages, &frames, Protection::ReadWrite).map_err(|(error, _)| {
            self.claims.lock().release(&frames);
            ClaimError::Map(error)
        })
    }
}
