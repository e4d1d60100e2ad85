//! What the mapper needs of the processor.

use crate::address::{PhysAddr, VirtAddr};
use crate::mapping::leaf_pages;
use crate::range::{FrameRange, PageRange};

/// The translation hardware of one processor.
///
/// There is one implementation per kernel; tests implement it with a cache that keeps stale entries until told.
///
/// # Safety
/// The memory safety of every [`MappedPages`](crate::MappedPages) rests on these functions doing what they say.
pub unsafe trait Cpu: Sync {
    /// Forgets whatever is cached about the page at `page` (of any size) and every paging-structure cache: `INVLPG`
    /// (Intel SDM volume 3, 4.10.4.1).
    fn flush(&self, page: VirtAddr);

    /// Forgets everything about the current address space: a reload of `CR3`.
    fn flush_all(&self);

    /// Makes the table at `root` the top-level table.
    ///
    /// # Safety
    /// The tables must map all that is still in use: the running code, its stack, its data.
    unsafe fn load_root(&self, root: PhysAddr);

    /// The top-level table in use: `CR3`.
    fn root(&self) -> PhysAddr;
}

/// Adjacent leaves of one size that were cleared: what the tables said.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub page: u64,
    pub frame: u64,
    pub leaves: u64,
    pub level: usize,
}

/// How many runs are flushed at a time.
const RUNS: usize = 8;
/// From so many leaves on, forgetting everything is cheaper.
const FLUSH_ALL: u64 = 64;

/// Frames that are no longer mapped but may still be cached as such. They come out through [`Flush::flush`] only;
/// without it they are lost.
#[must_use = "the frames come out through `flush`"]
pub(crate) struct Flush {
    runs: [Run; RUNS],
    len: usize,
}

impl Flush {
    pub const fn new() -> Self {
        Self { runs: [Run { page: 0, frame: 0, leaves: 0, level: 0 }; RUNS], len: 0 }
    }

    /// Adds leaves, joined to the last run where possible; `false` if there is no room.
    pub fn push(&mut self, run: Run) -> bool {
        if let Some(last) = self.runs[..self.len].last_mut()
            && last.level == run.level
            && last.frame + last.leaves * leaf_pages(last.level) == run.frame
            && last.page + last.leaves * leaf_pages(last.level) == run.page
        {
            last.leaves += run.leaves;
            return true;
        }
        let Some(place) = self.runs.get_mut(self.len) else { return false };
        *place = run;
        self.len += 1;
        true
    }

    /// Makes the processor forget the leaves, then yields the frames.
    pub fn flush(self, cpu: &dyn Cpu) -> impl Iterator<Item = FrameRange> {
        if self.runs[..self.len].iter().map(|run| run.leaves).sum::<u64>() >= FLUSH_ALL {
            cpu.flush_all();
        } else {
            for run in &self.runs[..self.len] {
                for leaf in 0..run.leaves {
                    let page = PageRange::from_numbers(run.page + leaf * leaf_pages(run.level), 1);
                    page.iter().for_each(|page| cpu.flush(page.start_address()));
                }
            }
        }
        let frames = |run: Run| FrameRange::from_numbers(run.frame, run.leaves * leaf_pages(run.level)).ok();
        self.runs.into_iter().take(self.len).filter_map(frames)
    }
}
