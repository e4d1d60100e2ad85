//! What goes into a queue, and how it is told in descriptors.

use alloc::vec::Vec;

use ringfence_memory::{AtomicAccess, DmaAddr, DmaArray, DmaBuf, DmaError};

use super::QueueError;

/// A piece of memory for the device to read or to write: not empty, and shorter than 4 GiB by at least 256 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub(super) address: DmaAddr,
    pub(super) len: u32,
    pub(super) writable: bool,
}

impl Part {
    /// `len` bytes from `offset` on, for the device to read. `None` beyond the end of the buffer.
    #[inline]
    pub fn readable(buffer: &DmaBuf, offset: usize, len: usize) -> Option<Self> {
        Self::new(buffer, offset, len, false)
    }

    /// `len` bytes from `offset` on, for the device to write. `None` beyond the end of the buffer.
    #[inline]
    pub fn writable(buffer: &DmaBuf, offset: usize, len: usize) -> Option<Self> {
        Self::new(buffer, offset, len, true)
    }

    /// `len` bytes from `offset` on, for the device to write or to read. `None` beyond the end of the buffer.
    #[inline]
    pub fn new(buffer: &DmaBuf, offset: usize, len: usize, writable: bool) -> Option<Self> {
        let address = buffer.address_of(offset, len)?;
        Some(Self { address, len: checked(len)?, writable })
    }

    /// `count` values of an array from `index` on, for the device to read. `None` beyond the end.
    #[inline]
    pub fn readable_values<T: AtomicAccess>(array: &DmaArray<T>, index: usize, count: usize) -> Option<Self> {
        let len = checked(count.checked_mul(size_of::<T>())?)?;
        Some(Self { address: array.address_of(index, count)?, len, writable: false })
    }

    /// `count` values of an array from `index` on, for the device to write. `None` beyond the end.
    #[inline]
    pub fn writable_values<T: AtomicAccess>(array: &DmaArray<T>, index: usize, count: usize) -> Option<Self> {
        Some(Self { writable: true, ..Self::readable_values(array, index, count)? })
    }
}

/// The length of a part, if it can be one.
#[inline]
fn checked(len: usize) -> Option<u32> {
    // Neither 0 nor too long.
    if len.wrapping_sub(1) < LONGEST as usize { Some(len as u32) } else { None }
}

/// What can be put in a queue: a value that owns every buffer that it tells the device about.
///
/// A chain is the [frame](Self::frame) of its slot, if slots have one, around the value's own parts.
pub trait Buffers {
    /// What belongs to the queue as a whole: memory for headers, say. `()` if nothing does.
    type Context;

    /// Whether a value that goes [again](super::Queue::renew) has the same part as before, so that it need not be told
    /// anew. Then its buffer must not be exchanged meanwhile.
    const SAME_AGAIN: bool = false;

    /// The first part of every chain in `slot`, for the device to read, and the last, for it to write. Asked once, when
    /// the queue is set up. The lengths are the same for all slots, or none has a frame.
    fn frame(_context: &Self::Context, _slot: u16) -> Option<(Part, Part)> {
        None
    }

    /// Its own part, if there is exactly one.
    fn only(&self, context: &Self::Context) -> Option<Part>;

    /// How many parts of its own it has. Asked if there is not exactly one.
    fn count(&self, context: &Self::Context) -> u16 {
        self.only(context).is_some().into()
    }

    /// The part with this index; `None` if there is none. Readable parts come before writable ones. Asked if there is not
    /// exactly one.
    fn part(&self, context: &Self::Context, index: u16) -> Option<Part> {
        if index == 0 { self.only(context) } else { None }
    }

    /// Writes what the chain needs in its context, where `slot` is its own until it comes back. `None` if that is not
    /// possible.
    fn prepare(&self, _context: &Self::Context, _slot: u16) -> Option<()> {
        Some(())
    }

    /// The fewest bytes that the device must have written for a completion to be true.
    fn least_written(&self) -> u32;

    /// Gives up the buffers while the device may still use them: [`DmaBuf::abandon`] for each.
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

impl<B: Buffers> Entry<'_, B> {
    /// Writes a chain of any number of parts, with those of `frame` at most `most`: calls `write` with the place of each,
    /// and whether more follow.
    #[inline]
    pub(super) fn write(
        self,
        frame: Option<&(Part, Part)>,
        most: u16,
        mut write: impl FnMut(u16, &Part, bool) -> Result<(), QueueError>,
    ) -> Result<Chain, QueueError> {
        let Self { buffers, context, slot } = self;
        let framed = u16::from(frame.is_some());
        let own = buffers.count(context);
        let count = own.checked_add(2_u16.wrapping_mul(framed)).filter(|count| (1..=most).contains(count));
        let count = count.ok_or(QueueError::BadChain)?;
        let (mut total, mut writable, mut place) = (0_u32, 0_u32, 0_u16);
        let mut put = |part: &Part| {
            // What the device reads comes before what it writes (2.7.4.2); all of it is less than 4 GiB (2.7.5).
            total = total.saturating_add(part.len);
            if total == u32::MAX || writable > 0 && !part.writable {
                return Err(QueueError::BadChain);
            }
            if part.writable {
                writable = writable.wrapping_add(part.len);
            }
            let more = place.wrapping_add(1) < count;
            write(place, part, more)?;
            place = place.wrapping_add(1);
            Ok(())
        };
        frame.map_or(Ok(()), |(first, _)| put(first))?;
        (0..own).try_for_each(|index| put(&buffers.part(context, index).ok_or(QueueError::BadChain)?))?;
        frame.map_or(Ok(()), |(_, last)| put(last))?;
        Ok(Chain { count, writable, id: slot })
    }
}

/// The frames of a queue's slots.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// By slot.
    pub(super) list: Vec<(Part, Part)>,
    /// Lengths of the first parts and of the last.
    pub(super) lens: Option<(u32, u32)>,
}

impl Frames {
    /// The frames of `slots` slots.
    ///
    /// # Errors
    /// [`QueueError::BadChain`] if they are not as [`Buffers::frame`] says.
    pub(super) fn new<B: Buffers>(context: &B::Context, slots: usize) -> Result<Self, QueueError> {
        let list: Vec<_> = (0..slots).map_while(|slot| B::frame(context, slot as u16)).collect();
        let lens = list.first().map(|(first, last)| (first.len, last.len));
        let fits = |(first, last): &(Part, Part)| {
            let small = first.len <= FRAME_LONGEST && last.len <= FRAME_LONGEST;
            small && !first.writable && last.writable && Some((first.len, last.len)) == lens
        };
        let complete = list.is_empty() || list.len() == slots;
        if complete && list.iter().all(fits) { Ok(Self { list, lens }) } else { Err(QueueError::BadChain) }
    }

    /// The frame of `slot`.
    #[inline]
    pub(super) fn get(&self, slot: u16) -> Option<&(Part, Part)> {
        self.list.get(usize::from(slot))
    }
}

/// The most bytes of each part of a frame.
const FRAME_LONGEST: u32 = 1 << 16;
/// The most bytes of a part, so that with a frame it is less than 4 GiB (2.7.5).
const LONGEST: u32 = u32::MAX - 4 * FRAME_LONGEST;
