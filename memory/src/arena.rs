//! The arena of memory for devices.

use crate::allocator::{AllocError, Request};
use crate::frames::{FrameAllocator, FrameRequest, Owner};
use crate::range::FrameRange;

/// Frames on their way into a DMA mapping.
pub(crate) struct DmaFrames {
    pub range: FrameRange,
    /// The rest of the block by which the arena grows for them, if it does. No device has seen any of it.
    spare: Option<FrameRange>,
}

impl FrameAllocator {
    /// Takes frames for devices: from the DMA arena, which grows out of free memory when no idle run of frames is long
    /// enough, and never shrinks. To be followed by [`Self::keep_dma`] or [`Self::undo_dma`]; until then they are booked
    /// as allocated.
    pub(crate) fn take_dma(&self, request: &FrameRequest) -> Result<DmaFrames, AllocError> {
        let wanted = self.request(request)?;
        let inner = &mut *self.inner().lock();
        match inner.dma.allocate_joined(&wanted) {
            Err(AllocError::OutOfMemory) => {}
            result => {
                let range = self.range(result?, wanted.count);
                inner.transfer(Owner::DmaIdle, Owner::Allocated, wanted.count);
                return Ok(DmaFrames { range, spare: None });
            }
        }
        // Whole 2 MiB blocks keep the arena in few places; when there is none, a block that is just enough.
        let block = if wanted.at.is_some() { wanted.count } else { wanted.count.next_power_of_two() };
        let large = Request { count: block.max(512), align: wanted.align.max(512), ..wanted };
        let small = Request { count: block, ..wanted };
        let (start, count) = match inner.private.allocate(&large) {
            Ok(start) => (start, large.count),
            Err(_) => (inner.private.allocate(&small)?, block),
        };
        inner.transfer(Owner::Free, Owner::Allocated, count);
        let spare = Some(self.range(start + wanted.count, count - wanted.count));
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
        match frames.spare {
            None => self.give_dma(Owner::Allocated, &frames.range),
            Some(spare) => {
                [frames.range, spare].iter().for_each(|part| self.put_back(Owner::Allocated, part))
            }
        }
    }

    /// Gives frames that are unmapped and flushed to the DMA arena.
    pub(crate) fn give_dma(&self, from: Owner, range: &FrameRange) {
        if let Some((start, end)) = self.indices(range) {
            self.inner().lock().keep(from, start, end - start);
        }
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
