//! The arena of memory for devices: what has once been lent to a device comes back here, and is lent to
//! devices only.
//!
//! # How large it grows
//! The arena lends whole blocks: `2^k` frames at a multiple of `2^k`, where `k`, the order of a request, is
//! the least that is enough. Of the idle blocks it takes a smallest, and it grows, by a block of at least 2
//! MiB, only if there is none. So its size follows the largest use, not the sum of all requests. Let `M` be
//! the most frames lent at a time, in whole blocks (less than twice what was asked for), and `K` the largest
//! order asked for. Whatever is taken and given back, in whatever order: while `K <= 9` (2 MiB) and there is
//! free memory in blocks of 2 MiB, the arena has at most `(K + 1) * M + 1024` frames. In any case, with `K`
//! being 9 at least, it has `(K + 1) * (K + 2) / 2 * M + 2^(K + 2)`.
//!
//! For say that a block is *dotted* if a smaller one that is lent lies in it, and let `D(k)` be how many
//! frames the dotted blocks of order `k` have. A request of order `j` dots another block of order `k` only if
//! all of that was idle, and so no block of the orders from `j` up to `k - 1` was: each block of order `j` in
//! those dotted before is lent, or part of a block that is, or dotted itself. Thus `D(k) <= M + D(j) + 2^k`
//! at the most, and as nothing can dot a single frame, `D(k) <= k * M + 2^(k + 1)`.
//!
//! The arena grows for a request of order `k` if no block of that order is idle: those that it has are lent
//! (all but the request's own part of `M`) or dotted, which makes at most `(k + 1) * M + 2^k` frames; and it
//! grows by `2^k`, or by 512. That is the first bound, as all that came in blocks of 2 MiB consists of blocks
//! of order `k`. For the second one, this is so for what came in blocks of each size, when the last of them
//! came; their sum over all sizes is the bound.
//!
//! Nothing that cannot move what is lent does much better: `M * (1 + K / 2)` can be forced upon any allocator
//! (Robson, Journal of the ACM 18, 1971). A fixed place, an alignment above the size, and an upper limit may
//! cost more. What two processors take at the same time is lent, with all that comes with it, until
//! [`FrameAllocator::keep_dma`].

use super::buddy::{AllocError, Request};
use crate::allocator::frames::{FrameAllocator, FrameRequest};
use crate::allocator::owner::Owner;
use crate::range::FrameRange;

/// Frames on their way into a DMA mapping: the first ones of a block.
pub(crate) struct DmaFrames {
    pub range: FrameRange,
    /// The rest of what the arena grows by for them, if it does. No device has seen any of it.
    spare: Option<FrameRange>,
}

/// How many frames are lent to whoever asks for `count`.
fn block(count: usize) -> usize {
    count.next_power_of_two()
}

impl FrameAllocator {
    /// Takes frames for devices: from the DMA arena, which grows out of free memory when it has no idle block
    /// that is large enough, and never shrinks. To be followed by [`Self::keep_dma`] or [`Self::undo_dma`];
    /// until then they are booked as allocated. The rest of their block is as long as they are lent. A fixed
    /// place must be a block's.
    pub(crate) fn take_dma(&self, request: &FrameRequest) -> Result<DmaFrames, AllocError> {
        let wanted = self.request(request)?;
        if wanted.count == 0 {
            return Err(AllocError::ZeroLength);
        }
        let count = wanted.count.checked_next_power_of_two().ok_or(AllocError::OutOfRange)?;
        if wanted.at.is_some_and(|at| !at.is_multiple_of(count)) {
            return Err(AllocError::Misaligned);
        }
        let small = Request { count, ..wanted };
        let inner = &mut *self.inner().lock();
        // What was given back last would otherwise be taken first, though there may be a smaller block.
        inner.dma.settle();
        match inner.dma.allocate(&small) {
            Err(AllocError::OutOfMemory) => {}
            result => {
                let range = self.range(result?, wanted.count);
                inner.transfer(Owner::DmaIdle, Owner::Allocated, count);
                return Ok(DmaFrames { range, spare: None });
            }
        }
        // Blocks of 2 MiB keep the arena in few places; when there is none, a block that is just enough.
        let large = Request { count: count.max(512), align: wanted.align.max(512), ..wanted };
        let (start, grown) = match inner.private.allocate(&large) {
            Ok(start) => (start, large.count),
            Err(_) => (inner.private.allocate(&small)?, count),
        };
        inner.transfer(Owner::Free, Owner::Allocated, grown);
        let spare = Some(self.range(start + count, grown - count));
        Ok(DmaFrames { range: self.range(start, wanted.count), spare })
    }

    /// The frames are mapped: from here on they, and those that came with them, belong to the arena.
    pub(crate) fn keep_dma(&self, frames: DmaFrames) {
        if let Some((start, end)) = frames.spare.and_then(|spare| self.indices(&spare)) {
            self.inner().lock().keep(Owner::Allocated, start, end - start);
        }
    }

    /// The frames were not mapped: they go where they came from.
    pub(crate) fn undo_dma(&self, frames: DmaFrames) {
        let Some(spare) = frames.spare else { return self.give_dma(Owner::Allocated, &frames.range) };
        if let Some((start, end)) = self.indices(&frames.range) {
            self.put_back(Owner::Allocated, &self.range(start, block(end - start)));
            self.put_back(Owner::Allocated, &spare);
        }
    }

    /// Gives frames that were taken together, and are unmapped and flushed, to the DMA arena, with the rest
    /// of their block.
    pub(crate) fn give_dma(&self, from: Owner, range: &FrameRange) {
        if let Some((start, end)) = self.indices(range) {
            let (count, inner) = (end - start, &mut *self.inner().lock());
            inner.transfer(Owner::Allocated, from, block(count) - count);
            inner.keep(from, start, block(count));
        }
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
