//! Header and status: what the requests of many devices begin and end with.

use core::sync::atomic::Ordering;

use ringfence_memory::{DmaBlock, DmaBlocks, DmaWindows, Segment};

use super::{Ends, Error, Ticket};

/// A header of 16 bytes, a status byte, and what is left of 32 bytes, so that the address of a block is made
/// by a shift.
const WORDS: usize = 4;
const HEADER: usize = 0;
const STATUS: usize = 2;
const LONGEST_HEADER: u32 = 16;

/// For each slot of a queue a header of `LEN` bytes, 1 to 16, which the device reads first, and a status
/// byte, which it writes last.
///
/// ```
/// # use ringfence_drivers::virtio::Controls;
/// let _longest = Controls::<16>::new as fn(_, _) -> _;
/// ```
///
/// The status comes right after 16 bytes: in a longer header the device would read it, and in one of none
/// there is nothing to read.
///
/// ```compile_fail,E0080
/// # use ringfence_drivers::virtio::Controls;
/// let _too_long = Controls::<17>::new as fn(_, _) -> _;
/// ```
///
/// ```compile_fail,E0080
/// # use ringfence_drivers::virtio::Controls;
/// let _none = Controls::<0>::new as fn(_, _) -> _;
/// ```
#[derive(Debug)]
pub struct Controls<const LEN: u32 = 16>(DmaBlocks<WORDS>);

impl<const LEN: u32> Controls<LEN> {
    /// A status that no device reports.
    pub const NO_STATUS: u8 = 0xff;

    /// Those of `slots` slots.
    ///
    /// # Errors
    /// If there is no memory for them, or no slots.
    pub fn new(windows: &DmaWindows, slots: usize) -> Result<Self, Error> {
        const { assert!(LEN > 0 && LEN <= LONGEST_HEADER, "bytes of the header") }
        Ok(Self(DmaBlocks::new(windows, slots)?))
    }

    /// Header and status of `slot` as segments; `None` if there is no such slot.
    #[inline(always)]
    pub(crate) fn ends(&self, slot: u16) -> Option<[Segment<'_>; 2]> {
        self.0.get(slot.into()).map(Self::ends_of)
    }

    #[inline(always)]
    fn ends_of(block: DmaBlock<'_, WORDS>) -> [Segment<'_>; 2] {
        [block.segment::<HEADER, LEN>(false), block.segment::<STATUS, 1>(true)]
    }

    /// The same, when the header was written, little-endian, and the status cleared.
    #[inline(always)]
    pub(crate) fn prepare(&self, slot: u16, [first, second]: [u64; 2]) -> Ends<'_> {
        let block = self.0.get_wrapping(slot.into());
        block.store::<HEADER>(first.to_le(), Ordering::Relaxed);
        block.store::<{ HEADER + 1 }>(second.to_le(), Ordering::Relaxed);
        block.store::<STATUS>(u64::from(Self::NO_STATUS).to_le(), Ordering::Relaxed);
        Ok(Some(Self::ends_of(block)))
    }

    /// What the device wrote last to the status byte of a chain that came back.
    #[inline(always)]
    pub fn status(&self, ticket: Ticket) -> u8 {
        u64::from_le(self.0.get_wrapping(ticket.index()).load::<STATUS>(Ordering::Relaxed)) as u8
    }
}
