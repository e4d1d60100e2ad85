//! What the mapper needs of the processors, and what waits until they have forgotten.

use crate::address::PhysAddr;
use crate::paging::Unlinked;
use crate::range::{FrameRange, Page, PageRange};

/// The translation hardware: one implementation per kernel, for all of its processors together.
///
/// # Safety
/// The memory safety of every [`MappedPages`](crate::MappedPages) rests on these functions doing what they
/// say.
pub unsafe trait Cpu: Sync {
    /// Makes every processor that uses the tables forget what it has cached of the `stale` pages (of any
    /// size), and all of its paging-structure caches, and returns when the last one has acknowledged that. On
    /// one processor: `INVLPG` of each page, which forgets paging structures as well, or a reload of `CR3`
    /// (Intel SDM volume 3, 4.10.4.1).
    ///
    /// Called with no lock of this crate held: a processor that spins for one with interrupts off
    /// acknowledges when it has it. Who waits here must answer the others' requests meanwhile.
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
const MOST: usize = 32;

/// What the processors must forget: pages that the tables do not map any more, or map otherwise.
#[derive(Clone, Debug)]
#[must_use = "the processors must be told"]
pub struct Stale {
    pages: PageRange,
    /// Pages in the smallest leaf among them.
    leaf: usize,
    /// There are more pages than these.
    all: bool,
}

impl Stale {
    pub(crate) const fn new() -> Self {
        Self { pages: PageRange::empty(), leaf: usize::MAX, all: false }
    }

    /// One page.
    pub(crate) fn of(page: Page) -> Self {
        let pages = PageRange::empty().to_extended(page);
        Self { pages: pages.unwrap_or_default(), leaf: 1, all: pages.is_err() }
    }

    /// Adds pages that were mapped by leaves of `leaf` pages each. They should follow those added before:
    /// else all is to be forgotten.
    pub(crate) fn add(&mut self, pages: &PageRange, leaf: usize) {
        match self.pages.join(pages) {
            Some(both) => (self.pages, self.leaf) = (both, self.leaf.min(leaf)),
            None => self.all = true,
        }
    }

    /// A page of each leaf, or more, or `None` if there are so many that the processors should forget all
    /// that they know.
    pub fn pages(&self) -> Option<impl Iterator<Item = Page> + use<>> {
        let (mut rest, leaf) = (self.pages, self.leaf);
        let next = move || {
            let page = rest.start()?;
            rest = rest.split_at(leaf).map_or(PageRange::empty(), |(_, rest)| rest);
            Some(page)
        };
        let few = rest.size_in_pages() <= leaf.saturating_mul(MOST);
        (few && !self.all).then(|| core::iter::from_fn(next))
    }

    /// Tells the processors, if there is something to tell.
    pub(crate) fn shoot_down(&self, cpu: &dyn Cpu) {
        if self.all || !self.pages.is_empty() {
            cpu.shoot_down(self);
        }
    }
}

/// How many runs of frames are flushed at a time.
const RUNS: usize = 8;

/// Frames that are no longer mapped and tables that are no longer linked, which a processor may still have
/// cached. They come out through [`Flush::flush`] only; without it they are lost, never reused.
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
    pub fn push(&mut self, pages: &PageRange, leaf: usize, frames: &FrameRange) -> bool {
        let joined = self.frames.iter_mut().find_map(|run| Some((run.join(frames)?, run)));
        let Some((both, run)) = joined else { return false };
        *run = both;
        self.stale.add(pages, leaf);
        true
    }

    /// Makes the processors forget, then passes the runs of frames on and yields the tables. To be called
    /// without a lock.
    #[inline]
    pub fn flush(self, cpu: &dyn Cpu, take: impl FnMut(Flushed<FrameRange>)) -> Option<Flushed<Unlinked>> {
        self.stale.shoot_down(cpu);
        self.frames.iter().take_while(|run| !run.is_empty()).copied().map(Flushed).for_each(take);
        (!self.tables.is_empty()).then_some(Flushed(self.tables))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn stale(leaves: &[(u64, u64, usize)]) -> Option<Vec<u64>> {
        let mut stale = Stale::new();
        for (first, count, leaf) in leaves {
            stale.add(&PageRange::from_numbers(*first, *count).unwrap(), *leaf);
        }
        stale.pages().map(|pages| pages.map(Page::number).collect())
    }

    #[test]
    fn a_page_of_each_leaf_or_all() {
        assert_eq!(stale(&[]), Some(Vec::new()));
        assert_eq!(stale(&[(7, 2, 1), (9, 1, 1)]), Some(Vec::from([7, 8, 9])));
        assert_eq!(stale(&[(512, 1024, 512)]), Some(Vec::from([512, 1024])));
        assert_eq!(stale(&[(1, 31, 1), (32, 1, 1)]).map(|pages| pages.len()), Some(MOST));
        assert_eq!(stale(&[(1, 31, 1), (32, 2, 1)]), None);
        assert_eq!(stale(&[(511, 1, 1), (512, 512, 512)]), None);
        assert_eq!(stale(&[(7, 2, 1), (10, 1, 1)]), None, "not adjacent");
        let page = PageRange::from_numbers(7, 1).unwrap().start().unwrap();
        assert_eq!(Stale::of(page).pages().unwrap().collect::<Vec<_>>(), [page]);
    }
}
