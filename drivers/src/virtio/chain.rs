//! What goes into a queue, and how it is told in descriptors.

use ringfence_memory::{DmaError, Segment, SegmentArray, SegmentPairs};

use super::QueueError;

/// Keeps [`Buffers`] among the types of this crate.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// What can be put in a queue: a value that owns every buffer that it tells the device about, and shares none
/// with anybody. Closed, since nothing but reading it shows that a type is like this;
/// [`BufferList`](super::BufferList) is one for everybody.
///
/// A chain is the [frame](Self::frames) of its slot, if slots have one, around the value's own segments.
pub trait Buffers: sealed::Sealed {
    /// What belongs to the queue as a whole: memory for headers, say. `()` if nothing does.
    type Context;

    /// Whether a value that goes again in its slot has the same segment as before, so that it need not be
    /// told anew. Then its buffer must not be exchanged meanwhile.
    const SAME_AGAIN: bool = false;

    /// Whether slots can have [frames](Self::frames).
    const FRAMED: bool = false;

    /// The first segments of the chains of all slots, for the device to read, and the last, for it to write.
    /// Asked once, when the queue is set up, of values that can be [framed](Self::FRAMED).
    fn frames(_context: &Self::Context) -> Option<[&SegmentArray; 2]> {
        None
    }

    /// Its own segment, if there is exactly one.
    fn only<'a>(&'a self, context: &'a Self::Context) -> Option<Segment<'a>>;

    /// How many segments of its own it has. Asked if there is not exactly one.
    fn count(&self, context: &Self::Context) -> u16 {
        self.only(context).is_some().into()
    }

    /// The segment with this index; `None` if there is none. Readable ones come before writable ones. Asked
    /// if there is not exactly one.
    fn segment<'a>(&'a self, context: &'a Self::Context, index: u16) -> Option<Segment<'a>> {
        if index == 0 { self.only(context) } else { None }
    }

    /// Writes what the chain needs in its context, where `slot` is its own until it comes back. `None` if
    /// that is not possible.
    fn prepare(&self, _context: &Self::Context, _slot: u16) -> Option<()> {
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
    pub(super) context: &'a B::Context,
    pub(super) slot: u16,
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
    /// What the device will call it.
    pub(super) id: u16,
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
    /// Writes a chain of any number of segments, with those of `frame` at most `most`: calls `write` with the
    /// place of each, and whether more follow.
    #[inline]
    pub(super) fn write<'s>(
        self,
        frame: Option<[Segment<'s>; 2]>,
        most: u16,
        mut write: impl FnMut(u16, &Segment<'s>, bool) -> Result<(), QueueError>,
    ) -> Result<Chain, QueueError>
    where
        'a: 's,
    {
        let Self { buffers, context, slot } = self;
        let framed = u16::from(frame.is_some());
        let own = buffers.count(context);
        let count = own.checked_add(2_u16.wrapping_mul(framed)).filter(|count| (1..=most).contains(count));
        let count = count.ok_or(QueueError::BadChain)?;
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
        frame.map_or(Ok(()), |[first, _]| put(&first))?;
        (0..own)
            .try_for_each(|index| put(&buffers.segment(context, index).ok_or(QueueError::BadChain)?))?;
        frame.map_or(Ok(()), |[_, last]| put(&last))?;
        Ok(Chain { count, writable, id: slot })
    }
}

/// The frames of a queue's slots: the first segments, and the last.
#[derive(Debug, Default)]
pub(super) struct Frames(Option<SegmentPairs>);

impl Frames {
    /// The frames of `slots` slots.
    ///
    /// # Errors
    /// [`QueueError::BadChain`] if they are not as [`Buffers::frames`] says.
    pub(super) fn new<B: Buffers>(context: &B::Context, slots: usize) -> Result<Self, QueueError> {
        let Some([first, last]) = B::frames(context).filter(|_| B::FRAMED) else { return Ok(Self(None)) };
        let pairs = SegmentPairs::new(first, last).filter(|pairs| {
            pairs.count() >= slots && pairs.segment_lens().iter().all(|&len| len <= FRAME_LONGEST)
        });
        Ok(Self(Some(pairs.ok_or(QueueError::BadChain)?)))
    }

    /// Whether slots have frames.
    #[inline]
    pub(super) fn are_there(&self) -> bool {
        self.0.is_some()
    }

    /// Length of the last segments; 0 without.
    pub(super) fn last_len(&self) -> u32 {
        self.0.as_ref().map_or(0, |pairs| pairs.segment_lens()[1])
    }

    /// The frame of `slot`.
    #[inline(always)]
    pub(super) fn get(&self, slot: u16) -> Option<[Segment<'_>; 2]> {
        let Self(Some(pairs)) = self else { return None };
        pairs.get(slot.into())
    }
}

/// The most bytes of each segment of a frame, so that with any other a chain is less than 4 GiB (2.7.5).
const FRAME_LONGEST: u32 = 1 << 16;
