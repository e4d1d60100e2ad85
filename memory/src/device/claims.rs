//! Device registers: each range is offered once, and each page of it claimed by one owner at a time.

use alloc::boxed::Box;
use core::fmt;
use core::ops::Range;
use core::ptr::{self, NonNull};

use super::{Bar, ConfigSpace};
#[cfg(feature = "mapper")]
use crate::MapError;
use crate::lock::{Level, Lock};
use crate::{DeviceId, FrameRange, MmioMemory, PhysAddr, PlatformError};

/// How many ranges can be offered, and how many parts of them be claimed at a time.
const OFFERS: usize = 128;
const CLAIMS: usize = 256;

/// Why a range of registers was not offered or claimed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimError {
    /// No bytes at all.
    ZeroLength,
    /// The range is (partly) RAM.
    Ram,
    /// The range is not (all) in the one that holds registers.
    OutOfRange,
    /// The range shares a page with one offered before.
    Overlap,
    /// No room for another range.
    Full,
    /// Not in a range that was offered.
    NotOffered,
    /// Somebody has a page of it, or another device one of the range that was offered.
    AlreadyClaimed,
    /// It could not be mapped.
    #[cfg(feature = "mapper")]
    Map(MapError),
}

crate::error::messages! { ClaimError {
    ZeroLength => "no registers",
    Ram => "RAM, not registers",
    OutOfRange => "not where this platform has registers",
    Overlap => "shares a page with registers that were offered before",
    Full => "too many ranges of registers",
    NotOffered => "not among the registers that were offered",
    AlreadyClaimed => "somebody holds them already",
    #[cfg(feature = "mapper")]
    Map(error) => "cannot be mapped: {error}",
} }

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

/// A device or none, in half of the room that an `Option<DeviceId>` takes: boot stacks hold the table while
/// it is made. The last number is no device's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Whose(u64);

impl Whose {
    fn of(device: Option<DeviceId>) -> Self {
        Self(device.map_or(u64::MAX, |device| device.0))
    }
}

/// The ranges that device registers may be claimed from, and the parts of them that somebody has.
pub(crate) struct Claims {
    offered: Ranges<(), OFFERS>,
    /// The number of the first page that each is mapped at, and whose registers it has.
    claimed: Ranges<(u64, Whose), CLAIMS>,
}

impl Claims {
    pub const fn new() -> Self {
        // A constant, or the boot stack would hold several of it.
        const NONE: Claims = Claims { offered: Ranges::new(()), claimed: Ranges::new((0, Whose(0))) };
        NONE
    }

    /// Whether a claim maps page number `page` to frame number `frame`.
    #[cfg(feature = "mapper")]
    pub fn maps(&self, page: u64, frame: u64) -> bool {
        self.claimed.at(frame).is_some_and(|(frames, (first, _))| {
            let offset = page.checked_sub(*first);
            offset.is_some() && offset == frame.checked_sub(frames.first())
        })
    }

    /// Puts `frames`, which are no RAM, on offer.
    pub fn offer(&mut self, frames: FrameRange) -> Result<(), ClaimError> {
        if frames.is_empty() {
            return Err(ClaimError::ZeroLength);
        }
        self.offered.check(&frames, ClaimError::Overlap)?;
        self.offered.insert(frames, ());
        Ok(())
    }

    /// After [`check`](Self::check): `frames` are mapped from page number `page` on.
    pub fn claim(&mut self, frames: FrameRange, page: u64, device: Option<DeviceId>) {
        self.claimed.insert(frames, (page, Whose::of(device)));
    }

    /// Whether `frames` can be claimed for `device`.
    pub fn check(&self, frames: &FrameRange, device: Option<DeviceId>) -> Result<(), ClaimError> {
        let offer = self.offered.at(frames.first()).filter(|_| !frames.is_empty());
        let inside = |offer: &&FrameRange| offer.first() <= frames.first() && frames.past() <= offer.past();
        let offer = offer.map(|(offer, ..)| offer).filter(inside).ok_or(ClaimError::NotOffered)?;
        // All that is claimed in one offer is one device's.
        let other = self.claimed.at(offer.first()).filter(|(found, ..)| found.first() < offer.past());
        if other.is_some_and(|(_, (_, whose))| *whose != Whose::of(device)) {
            return Err(ClaimError::AlreadyClaimed);
        }
        self.claimed.check(frames, ClaimError::AlreadyClaimed)
    }

    /// Ends the claim of exactly these frames, which are unmapped.
    pub fn release(&mut self, frames: &FrameRange) {
        self.claimed.remove(frames);
    }
}

/// Who has which device registers, for a [`Platform`](crate::Platform) whose kernel has them mapped.
///
/// Whole pages: of two ranges in the same page only the first can be offered, and each page has one owner at
/// a time. No call is for interrupt handlers; each takes a lock.
///
/// ```
/// # use std::time::Duration;
/// use ringfence_memory::{ClaimError, DeviceId, MmioClaims, PhysAddr, PlatformError};
///
/// # let _ = || {
/// // SAFETY: the machine has no RAM from 3 to 4 GiB, and this kernel maps all of it there, uncached.
/// static REGISTERS: MmioClaims = unsafe { MmioClaims::new(0xc000_0000..0x1_0000_0000, 0xc000_0000) };
///
/// // Once for each range, before any driver comes (and for all BARs of a function, `offer_bars`):
/// let bar = PhysAddr::new(0xfebd_0000).unwrap();
/// REGISTERS.offer(bar, 0x4000)?;
/// // In `Platform::mmio_map`:
/// let registers = REGISTERS.claim(Some(DeviceId(0x18)), bar, 0x1000);
/// # registers.map(drop).ok();
/// # Ok::<(), ClaimError>(())
/// # };
/// ```
pub struct MmioClaims {
    claims: Lock<Claims>,
    registers: Range<u64>,
    mapped: usize,
}

impl MmioClaims {
    /// Of the physical addresses `registers`, all of which are mapped in one piece from the virtual address
    /// `mapped` on. Nothing is on offer yet.
    ///
    /// # Safety
    /// None of it is RAM. As long as the value exists it is mapped uncached, readable and writable there, and
    /// used by nobody but who claims it.
    pub const unsafe fn new(registers: Range<u64>, mapped: usize) -> Self {
        Self { claims: Lock::new(Level::Claims, Claims::new()), registers, mapped }
    }

    /// Puts `len` bytes from `start` on on offer, which belong together: a BAR, or a range that the firmware
    /// names.
    ///
    /// # Errors
    /// [`ClaimError::OutOfRange`] if it is not among the registers. Others if it is empty, if it shares a
    /// page with a range that was offered, or if there are 128 already.
    pub fn offer(&self, start: PhysAddr, len: usize) -> Result<(), ClaimError> {
        let frames = FrameRange::from_phys_addr(start, len as u64).map_err(|_| ClaimError::ZeroLength)?;
        if !frames.is_empty() && self.virtual_address(&frames).is_none() {
            return Err(ClaimError::OutOfRange);
        }
        self.claims.lock().offer(frames)
    }

    /// Puts the BARs of a function on offer, as far as they are in memory and the firmware has placed them.
    /// What cannot be offered cannot be claimed, and the driver says so. As [`ConfigSpace::bars`], before any
    /// driver comes.
    pub fn offer_bars(&self, function: &ConfigSpace) {
        for bar in function.bars().into_iter().flatten() {
            if let Bar::Memory { address: Some(start), size, .. } = bar
                && let Ok(len) = size.try_into()
            {
                let _ = self.offer(start, len);
            }
        }
    }

    /// `len` bytes from `start` on for one caller, until the value is dropped. All of it must be in one range
    /// that was offered, of which no other `device` has any part.
    ///
    /// # Errors
    /// [`PlatformError::Claimed`] if somebody has some of it, or another device some of what was offered with
    /// it; [`PlatformError::BadRange`] if it was not offered.
    pub fn claim(
        &'static self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        let frames = FrameRange::from_phys_addr(start, len as u64).map_err(|_| PlatformError::BadRange)?;
        let first = self.virtual_address(&frames).ok_or(PlatformError::BadRange)?;
        let at = NonNull::new(ptr::with_exposed_provenance_mut(first + start.frame_offset()));
        let at = at.ok_or(PlatformError::BadRange)?;
        let mut claims = self.claims.lock();
        claims.check(&frames, device).map_err(|error| match error {
            ClaimError::AlreadyClaimed => PlatformError::Claimed,
            _ => PlatformError::BadRange,
        })?;
        claims.claim(frames, first as u64 / crate::PAGE_SIZE as u64, device);
        drop(claims);
        let owner = Box::new(Claimed { claims: self, frames });
        // SAFETY: whoever made `self` promised that registers are mapped there, which `virtual_address` found
        // these bytes to be; they are claimed, so they have no other owner before `owner` is dropped.
        Ok(unsafe { MmioMemory::new(at, len, owner) })
    }

    /// Where `frames` are mapped, if all of them are registers.
    fn virtual_address(&self, frames: &FrameRange) -> Option<usize> {
        let start = frames.start_address().value();
        let end = start.checked_add(frames.size_in_bytes())?;
        let inside = self.registers.start <= start && end <= self.registers.end;
        inside.then_some(())?;
        let end = usize::try_from(end.checked_sub(self.registers.start)?).ok()?;
        self.mapped.checked_add(end)?;
        self.mapped.checked_add(usize::try_from(start.checked_sub(self.registers.start)?).ok()?)
    }
}

impl fmt::Debug for MmioClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmioClaims({:#x?} at {:#x})", self.registers, self.mapped)
    }
}

/// Gives a claim back.
struct Claimed {
    claims: &'static MmioClaims,
    frames: FrameRange,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.claims.claims.lock().release(&self.frames);
    }
}
