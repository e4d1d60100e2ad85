//! What goes into a queue, and how it is told in descriptors.

use ringfence_memory::{DmaError, Segment};

use super::QueueError;
use super::layout::Layout;

/// Keeps [`Buffers`] among the types of this crate.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// What can be put in a queue: a value that owns every buffer that it tells the device about, and shares none
/// with anybody. Closed, since nothing but reading it shows that a type is like this;
/// [`BufferList`](super::BufferList) is one for everybody.
///
/// A chain is the [ends](Self::ends) of its slot, if slots have such, around the value's own segments. The
/// default owns nothing: it is what a free slot holds.
pub trait Buffers: sealed::Sealed + Default {
    /// What belongs to the queue as a whole: memory for headers, say. `()` if nothing does.
    type Context;

    /// What a chain is made for, as far as the value itself does not say it. It is not kept.
    type Request: Copy;

    /// Whether a value that goes again in its slot has the same segment as before, so that it need not be
    /// told anew. Then its buffer must not be exchanged meanwhile.
    const SAME_AGAIN: bool = false;

    /// Whether all values have one segment, in one direction and, where that is for the device to write, of
    /// one length.
    const SAME_SHAPE: bool = false;

    /// What each chain in `slot` begins with, for the device to read, and ends with, for it to write. All
    /// slots of a queue have such ends, always the same, or none has.
    fn ends(_context: &Self::Context, _slot: u16) -> Option<[Segment<'_>; 2]> {
        None
    }

    /// How long a segment may be.
    fn longest(_context: &Self::Context) -> u32 {
        u32::MAX
    }

    /// Its own segment, if there is exactly one, though it may be too long.
    fn only<'a>(&'a self, request: Self::Request, context: &'a Self::Context) -> Option<Segment<'a>>;

    /// How many segments of its own it has. Asked if there is not exactly one.
    fn count(&self, request: Self::Request, context: &Self::Context) -> u16 {
        self.only(request, context).is_some().into()
    }

    /// The segment with this index; `None` if there is none. Readable ones come before writable ones. Asked
    /// if there is not exactly one.
    fn segment<'a>(
        &'a self,
        request: Self::Request,
        context: &'a Self::Context,
        index: u16,
    ) -> Option<Segment<'a>> {
        if index == 0 { self.only(request, context) } else { None }
    }

    /// Writes what the chain needs to the [ends](Self::ends) of `slot`, which are its own until it comes
    /// back, and gives them.
    ///
    /// # Errors
    /// [`QueueError::Broken`] if there is no such slot.
    #[inline(always)]
    fn prepare<'a>(&self, _request: Self::Request, _context: &'a Self::Context, _slot: u16) -> Ends<'a> {
        Ok(None)
    }

    /// The fewest bytes that the device must have written for a completion to be true: for those queues whose
    /// completions are judged by that alone.
    fn least_written(&self) -> u32 {
        0
    }

    /// Gives up the buffers while the device may still use them:
    /// [`DmaBuf::abandon`](ringfence_memory::DmaBuf::abandon) for each.
    fn abandon(self);
}

/// What [`Buffers::prepare`] gives.
pub type Ends<'a> = Result<Option<[Segment<'a>; 2]>, QueueError>;

/// A chain on its way into the ring.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) slot: u16,
    /// How many chains were added before it.
    pub(super) number: u64,
    /// How many segments it has between its ends, and each of them.
    pub(super) own: u16,
    pub(super) segment: &'a dyn Fn(u16) -> Option<Segment<'a>>,
    /// What the slot has.
    pub(super) ends: Option<[Segment<'a>; 2]>,
    /// How many descriptors of no slot it may take.
    pub(super) spare: u16,
}

/// What a chain takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added {
    /// Number of descriptors in the ring.
    pub(super) count: u16,
    /// Bytes that the device may write.
    pub(super) writable: u32,
}

impl From<DmaError> for QueueError {
    fn from(error: DmaError) -> Self {
        match error {
            DmaError::WrongDevice => Self::WrongDevice,
            _ => Self::Broken,
        }
    }
}

impl<'a> Chain<'a> {
    /// How many segments the chain has, with its ends, if there can be such a chain now.
    pub(super) fn count(self, layout: &Layout) -> Result<u16, QueueError> {
        let ends = if self.ends.is_some() { 2 } else { 0 };
        let count = self.own.checked_add(ends);
        let count = count.filter(|count| (1..=layout.longest).contains(count)).ok_or(QueueError::BadChain)?;
        let fits = layout.indirect || count.saturating_sub(layout.reserved) <= self.spare;
        if fits { Ok(count) } else { Err(QueueError::Full) }
    }

    /// Tells `write` the segments of the chain, `count` in all, each with its number and whether more follow.
    #[inline]
    pub(super) fn write(
        self,
        count: u16,
        mut write: impl FnMut(u16, &Segment<'a>, bool) -> Result<(), QueueError>,
    ) -> Result<Added, QueueError> {
        let Self { segment, ends, .. } = self;
        let own = if ends.is_some() { count.saturating_sub(2) } else { count };
        let (mut total, mut writable, mut number) = (0_u32, 0_u32, 0_u16);
        let mut put = |segment: &Segment<'a>| {
            // What the device reads comes before what it writes (2.7.4.2); all of it is less than 4 GiB
            // (2.7.5).
            total = total.saturating_add(segment.len());
            if total == u32::MAX || writable > 0 && !segment.is_writable() {
                return Err(QueueError::BadChain);
            }
            if segment.is_writable() {
                writable = writable.wrapping_add(segment.len());
            }
            let more = number.wrapping_add(1) < count;
            write(number, segment, more)?;
            number = number.wrapping_add(1);
            Ok(())
        };
        ends.map_or(Ok(()), |[first, _]| put(&first))?;
        (0..own).try_for_each(|index| put(&segment(index).ok_or(QueueError::BadChain)?))?;
        ends.map_or(Ok(()), |[_, last]| put(&last))?;
        Ok(Added { count, writable })
    }
}
