//! What the mapper needs of the processors, and what waits until they have forgotten.

use crate::address::PhysAddr;
use crate::mapping::Unlinked;
use crate::range::{FrameRange, Page, PageRange};

/// The translation hardware: one implementation per kernel, for all of its processors together.
///
/// # Safety
/// The memory safety of every [`MappedPages`](crate::MappedPages) rests on these functions doing what they say.
pub unsafe trait Cpu: Sync {
    /// Makes every processor that uses the tables forget what it has cached of the `stale` pages (of any size), and all
    /// of its paging-structure caches, and returns when the last one has acknowledged that. On one processor: `INVLPG`
    /// of each page, which forgets paging structures as well, or a reload of `CR3` (Intel SDM volume 3, 4.10.4.1).
    ///
    /// Called with no lock of this crate held: a processor that spins for one with interrupts off acknowledges when it
    /// has it. Who waits here must answer the others' requests meanwhile.
    fn shoot_down(&self, stale: &Stale);

    /// Makes the table at `root` the top-level table.
    ///
    /// # Safety
    /// The tables must map all that is still in use: the running code, its stack, its data.
    unsafe fn load_root(&self, root: PhysAddr);

    /// The top-level table in use: `CR3`.
    fn root(&self) -> PhysAddr;
}

/// From more leaves on, forgetting everything is cheaper.
const PAGES: usize = 32;

/// What the processors must forget: pages that the tables do not map any more, or map otherwise.
#[derive(Clone, Debug)]
#[must_use = "the processors must be told"]
pub struct Stale {
    pages: [Page; PAGES],
    count: usize,
}

impl Stale {
    pub(crate) const fn new() -> Self {
        Self { pages: [Page::containing_address(PageRange::empty().start_address()); PAGES], count: 0 }
    }

    pub(crate) const fn add_page(&mut self, page: Page) {
        if self.count < PAGES {
            self.pages[self.count] = page;
        }
        self.count += 1;
    }

    /// Adds the leaves of `leaf` pages each that `pages` consist of.
    pub(crate) fn add(&mut self, pages: PageRange, leaf: usize) {
        let mut rest = pages;
        while let Some(page) = rest.start() {
            self.add_page(page);
            rest = rest.split_at(leaf).map_or(PageRange::empty(), |(_, rest)| rest);
        }
    }

    /// A page of each leaf, or `None` if there are so many that the processors should forget all that they know.
    pub fn pages(&self) -> Option<&[Page]> {
        self.pages.get(..self.count)
    }

    /// Tells the processors, if there is something to tell.
    pub(crate) fn shoot_down(&self, cpu: &dyn Cpu) {
        if self.count > 0 {
            cpu.shoot_down(self);
        }
    }
}

/// How many runs of frames are flushed at a time.
const RUNS: usize = 8;

/// Frames that are no longer mapped and tables that are no longer linked, which a processor may still have cached. They
/// come out through [`Flush::flush`] only; without it they are lost, never reused.
#[must_use = "frames and tables come out through `flush`"]
pub(crate) struct Flush {
    stale: Stale,
    frames: [FrameRange; RUNS],
    pub tables: Unlinked,
}

/// What no processor can reach any more: only [`Flush::flush`] makes it.
pub(crate) struct Flushed<T>(T);

impl<T> Flushed<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Flush {
    pub const fn new() -> Self {
        Self { stale: Stale::new(), frames: [FrameRange::empty(); RUNS], tables: Unlinked::new() }
    }

    /// Adds the leaves of `leaf` pages each that map `frames` at `pages`; `false` if there is no room.
    pub fn push(&mut self, pages: PageRange, leaf: usize, frames: &FrameRange) -> bool {
        let joined = self.frames.iter_mut().find_map(|run| Some((run.join(frames)?, run)));
        let Some((both, run)) = joined else { return false };
        *run = both;
        self.stale.add(pages, leaf);
        true
    }

    /// Makes the processors forget, then yields the frames and the tables. To be called without a lock.
    pub fn flush(
        self,
        cpu: &dyn Cpu,
    ) -> (impl Iterator<Item = Flushed<FrameRange>>, Option<Flushed<Unlinked>>) {
        self.stale.shoot_down(cpu);
        let frames = self.frames.into_iter().filter(|run| !run.is_empty()).map(Flushed);
        (frames, (!self.tables.is_empty()).then_some(Flushed(self.tables)))
    }
}
