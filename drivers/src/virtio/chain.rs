//! What goes into a queue, and how it is told in descriptors.

use ringfence_memory::{DmaError, Segment, SegmentArray, SegmentPairs};

use super::QueueError;
use super::ring::Layout;

/// Keeps [`Buffers`] among the types of this crate.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// What can be put in a queue: a value that owns every buffer that it tells the device about, and shares none
/// with anybody. Closed, since nothing but reading it shows that a type is like this;
/// [`BufferList`](super::BufferList) is one for everybody.
///
/// A chain is the [fixed segments](Self::fixed) of its slot, if slots have such, around the value's own. The
/// default owns nothing: it is what a free slot holds.
pub trait Buffers: sealed::Sealed + Default {
    /// What belongs to the queue as a whole: memory for headers, say. `()` if nothing does.
    type Context;

    /// What a chain is made for, as far as the value itself does not say it. It is not kept.
    type Request: Copy;

    /// Whether a value that goes again in its slot has the same segment as before, so that it need not be
    /// told anew. Then its buffer must not be exchanged meanwhile.
    const SAME_AGAIN: bool = false;

    /// If slots can have [fixed segments](Self::fixed): the length of the last one.
    const LAST: Option<u32> = None;

    /// The first segments of the chains of all slots, for the device to read, and the last, for it to write.
    /// Asked once, when the queue is set up, of values that can [have them](Self::LAST).
    fn fixed(_context: &Self::Context) -> Option<[&SegmentArray; 2]> {
        None
    }

    /// Its own segment, if there is exactly one.
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

    /// Writes what the chain needs in its context, where `slot` is its own until it comes back. `None` if
    /// that is not possible.
    fn prepare(&self, _request: Self::Request, _context: &Self::Context, _slot: u16) -> Option<()> {
        Some(())
    }

    /// The fewest bytes that the device must have written for a completion to be true.
    fn least_written(&self) -> u32;

    /// Gives up the buffers while the device may still use them:
    /// [`DmaBuf::abandon`](ringfence_memory::DmaBuf::abandon) for each.
    fn abandon(self);
}

/// A value on its way into the ring.
pub(super) struct Entry<'a, B: Buffers> {
    pub(super) buffers: &'a B,
    pub(super) request: B::Request,
    pub(super) context: &'a B::Context,
    pub(super) slot: u16,
    /// How many descriptors of no slot it may take.
    pub(super) spare: u16,
}

impl<B: Buffers> Clone for Entry<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Buffers> Copy for Entry<'_, B> {}

/// What a chain takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
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

impl<'a, B: Buffers> Entry<'a, B> {
    /// How many segments the chain has, with the fixed ones, if there can be such a chain now.
    pub(super) fn count(self, fixed: &Fixed, layout: &Layout) -> Result<u16, QueueError> {
        let ends = if fixed.are_there() { 2 } else { 0 };
        let count = self.buffers.count(self.request, self.context).checked_add(ends);
        let count = count.filter(|count| (1..=layout.longest).contains(count)).ok_or(QueueError::BadChain)?;
        let fits = layout.indirect || count.saturating_sub(layout.reserved) <= self.spare;
        if fits { Ok(count) } else { Err(QueueError::Full) }
    }

    /// Tells `write` the segments of a chain of `count`, each with its place and whether more follow.
    #[inline]
    pub(super) fn write<'s>(
        self,
        fixed: Option<[Segment<'s>; 2]>,
        count: u16,
        mut write: impl FnMut(u16, &Segment<'s>, bool) -> Result<(), QueueError>,
    ) -> Result<Chain, QueueError>
    where
        'a: 's,
    {
        let Self { buffers, request, context, .. } = self;
        let own = if fixed.is_some() { count.saturating_sub(2) } else { count };
        let (mut total, mut writable, mut place) = (0_u32, 0_u32, 0_u16);
        let mut put = |segment: &Segment<'s>| {
            // What the device reads comes before what it writes (2.7.4.2); all of it is less than 4 GiB
            // (2.7.5).
            total = total.saturating_add(segment.len());
            if total == u32::MAX || writable > 0 && !segment.is_writable() {
                return Err(QueueError::BadChain);
            }
            if segment.is_writable() {
                writable = writable.wrapping_add(segment.len());
            }
            let more = place.wrapping_add(1) < count;
            write(place, segment, more)?;
            place = place.wrapping_add(1);
            Ok(())
        };
        fixed.map_or(Ok(()), |[first, _]| put(&first))?;
        (0..own).try_for_each(|index| {
            put(&buffers.segment(request, context, index).ok_or(QueueError::BadChain)?)
        })?;
        fixed.map_or(Ok(()), |[_, last]| put(&last))?;
        Ok(Chain { count, writable })
    }
}

/// The fixed segments of a queue's slots: the first of each chain, and the last.
#[derive(Debug, Default)]
pub(super) struct Fixed {
    pairs: Option<SegmentPairs>,
    /// Whether all that can be in the queue is known from its type.
    known: bool,
}

impl Fixed {
    /// Those of `slots` slots.
    ///
    /// # Errors
    /// [`QueueError::BadChain`] if they are not as [`Buffers::fixed`] says.
    pub(super) fn new<B: Buffers>(context: &B::Context, slots: usize) -> Result<Self, QueueError> {
        let fixed = B::LAST.zip(B::fixed(context));
        let Some((last_len, [first, last])) = fixed else {
            return Ok(Self { pairs: None, known: B::LAST.is_none() });
        };
        let pairs = SegmentPairs::new(first, last).filter(|pairs| {
            let [first, last] = pairs.segment_lens();
            pairs.count() >= slots && first <= FIXED_LONGEST && last == last_len && last <= FIXED_LONGEST
        });
        Ok(Self { pairs: Some(pairs.ok_or(QueueError::BadChain)?), known: true })
    }

    /// Whether slots have such.
    #[inline]
    pub(super) fn are_there(&self) -> bool {
        self.pairs.is_some()
    }

    /// How many segments the shortest chain with one of its own has, if all chains have as many more as its
    /// type [says](Buffers::LAST).
    pub(super) fn one(&self) -> Option<u16> {
        self.known.then_some(if self.are_there() { 3 } else { 1 })
    }

    /// Those of `slot`.
    #[inline(always)]
    pub(super) fn get(&self, slot: u16) -> Option<[Segment<'_>; 2]> {
        self.pairs.as_ref()?.get(slot.into())
    }
}

/// The most bytes of each fixed segment, so that with any other a chain is less than 4 GiB (2.7.5).
const FIXED_LONGEST: u32 = 1 << 16;
