//! A bounded cache of disk pages, shared by all readers.
//!
//! Pages are loaded in runs: one device request fills up to [`MAX_READ`] bytes. Tasks that miss the same page
//! share one request; when the task that drives it goes away, another begins anew. Nothing here spawns or
//! blocks: a reader that misses awaits the device, everybody else goes on. Nor does anything fail but the
//! read that finds no memory.

use super::FsError;
use super::checks::Owner;
use super::free_pages::FreePages;
use super::pages::Pages;
use super::super_block::Geometry;
use crate::block::{BlockSource, MAX_READ, SECTOR_SIZE};
use crate::shared::Shared;
use crate::text::NoMemory;
use crate::wakers::Wakers;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll};

/// Bytes in one page of the cache.
pub const PAGE_SIZE: usize = 4096;

const PAGE: u64 = PAGE_SIZE as u64;
const SECTOR: u64 = SECTOR_SIZE as u64;
const SECTORS_PER_PAGE: u64 = PAGE / SECTOR;
const MAX_PAGES: usize = MAX_READ / PAGE_SIZE;
/// So many requests fail before a reader reports an error: with others' read-ahead, then alone.
const ATTEMPTS: usize = 3;
const PAST_END: FsError = FsError::Corrupt("a block lies past the end of the disk");

/// What the cache has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Pages found in the cache.
    pub hits: u64,
    /// Pages waited for.
    pub misses: u64,
    /// Requests sent to the device.
    pub requests: u64,
    /// Pages asked for by these requests.
    pub pages_requested: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Pages held now.
    pub pages: u64,
    /// Requests under way now.
    pub under_way: u64,
}

/// A piece of metadata: where on the device it starts, a multiple of 32 bytes, and its length, both as they
/// are for all that its owner has in a part of the disk.
pub struct Piece {
    pub offset: u64,
    pub len: usize,
    /// Bytes behind it to load with it.
    pub ahead: usize,
    pub owner: Owner,
}

impl Piece {
    /// A block of the file system.
    pub fn block(geometry: &Geometry, block: u64, owner: Owner) -> Self {
        Self { offset: geometry.byte_of(block), len: geometry.block_size, ahead: 0, owner }
    }
}

/// A page cache over a [`BlockSource`]. For one executor: it is not `Sync`.
pub struct PageCache<B> {
    source: B,
    size: u64,
    capacity: usize,
    state: RefCell<State>,
    stats: Cell<CacheStats>,
}

#[derive(Default)]
struct State {
    pages: Pages,
    free: FreePages,
    /// Requests under way, and those that are over but for tasks that have not looked yet.
    fills: Vec<Fill>,
    next_id: u64,
}

/// One device request, for `count` pages from page `first` on.
struct Fill {
    id: u64,
    first: u64,
    count: usize,
    outcome: Option<Outcome>,
    /// Tasks that wait for the outcome.
    waiting: usize,
    wakers: Wakers,
}

/// How a request ended.
#[derive(Clone, Copy)]
enum Outcome {
    /// The pages are in the cache, unless they had to leave already or the request was given up: look again.
    Over,
    Failed(FsError),
}

impl Fill {
    fn holds(&self, page: u64) -> bool {
        page.checked_sub(self.first).is_some_and(|index| index < self.count as u64)
    }
}

impl State {
    fn under_way(&self) -> impl Iterator<Item = &Fill> {
        self.fills.iter().filter(|fill| fill.outcome.is_none())
    }

    /// Pages in all requests under way.
    fn pages_under_way(&self) -> usize {
        self.under_way().fold(0, |sum, fill| sum.saturating_add(fill.count))
    }

    fn is_under_way(&self, page: u64) -> bool {
        self.under_way().any(|fill| fill.holds(page))
    }

    /// Drops the pages that were not used for longest.
    fn trim(&mut self, keep: usize) {
        for _ in keep..self.pages.len() {
            if let Some(page) = self.pages.drop_oldest() {
                self.free.give_back(page);
            }
        }
    }

    /// Starts a request for `page` and up to `want` pages in all, as far as nobody has them yet and there is
    /// room: the pages held and the pages under way together stay within `capacity`, but one page is always
    /// granted.
    fn start(&mut self, page: u64, want: usize, capacity: usize) -> Result<Part, FsError> {
        self.fills.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        let under_way = self.pages_under_way();
        let room = capacity.saturating_sub(under_way).max(1);
        let following = (1u64..).take(want.min(room).min(MAX_PAGES).saturating_sub(1));
        let wanted = following
            .take_while(|&n| {
                let next = page.saturating_add(n);
                !self.pages.contains(next) && !self.is_under_way(next)
            })
            .count();
        let count = wanted.saturating_add(1);
        self.trim(capacity.saturating_sub(under_way.saturating_add(count)));
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.fills.push(Fill {
            id,
            first: page,
            count,
            outcome: None,
            waiting: 0,
            wakers: Wakers::default(),
        });
        Ok(Part { id, count, drives: true })
    }

    fn fill(&mut self, id: u64) -> Option<&mut Fill> {
        self.fills.iter_mut().find(|fill| fill.id == id)
    }

    /// Notes how a request ended, once.
    fn finish(&mut self, id: u64, outcome: Outcome) {
        if let Some(fill) = self.fill(id).filter(|fill| fill.outcome.is_none()) {
            fill.outcome = Some(outcome);
            fill.wakers.wake_all();
            self.forget_seen();
        }
    }

    /// Forgets the requests whose outcome everybody has seen.
    fn forget_seen(&mut self) {
        self.fills.retain(|fill| fill.outcome.is_none() || fill.waiting > 0);
    }

    /// The outcome of a request that this task waits for.
    fn poll_outcome(&mut self, id: u64, cx: &Context<'_>) -> Poll<Outcome> {
        let Some(fill) = self.fill(id) else { return Poll::Ready(Outcome::Over) };
        if let Some(outcome) = fill.outcome {
            return Poll::Ready(outcome);
        }
        match fill.wakers.try_add(cx.waker()) {
            Ok(()) => Poll::Pending,
            Err(NoMemory) => Poll::Ready(Outcome::Failed(FsError::NoMemory)),
        }
    }
}

/// Pages on their way from the device: they are given back, unless they arrive.
struct Loading<'a> {
    state: &'a RefCell<State>,
    pages: Vec<Rc<Vec<u8>>>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        self.pages.drain(..).for_each(|page| state.free.give_back(page));
    }
}

/// A task's part in a request: it drives it, or waits for it.
#[derive(Clone, Copy)]
struct Part {
    id: u64,
    count: usize,
    drives: bool,
}

/// Gives a part up, also when the task goes away.
struct Share<'a> {
    state: &'a RefCell<State>,
    part: Part,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if self.part.drives {
            state.finish(self.part.id, Outcome::Over);
        } else if let Some(fill) = state.fill(self.part.id) {
            fill.waiting = fill.waiting.saturating_sub(1);
            state.forget_seen();
        }
    }
}

impl<B: BlockSource> PageCache<B> {
    /// A cache that holds at most `capacity` bytes of pages, those being read included. Each task that reads
    /// while the cache is full may hold one page more.
    pub fn new(source: B, capacity: usize) -> Self {
        let sectors = source.size_bytes() / SECTOR;
        let size = sectors.saturating_mul(SECTOR);
        let capacity = (capacity / PAGE_SIZE).max(1);
        // As many as it may hold, as many that are still sent when they had to go, and some on their way.
        let count = capacity.saturating_add(MAX_PAGES).saturating_mul(2);
        let free = FreePages::new(count, MAX_PAGES.min(capacity / 8));
        let state = State { free, ..State::default() };
        Self { size, source, capacity, state: RefCell::new(state), stats: Cell::default() }
    }

    /// The device.
    pub fn source(&self) -> &B {
        &self.source
    }

    /// The device, which may change: no page is held any more.
    pub(super) fn renew(&mut self) -> &mut B {
        self.state.get_mut().trim(0);
        &mut self.source
    }

    /// Size of the device in bytes, in whole sectors.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// What the cache has done so far.
    pub fn stats(&self) -> CacheStats {
        let state = self.state.borrow();
        let (pages, under_way) = (state.pages.len() as u64, state.under_way().count() as u64);
        CacheStats { pages, under_way, ..self.stats.get() }
    }

    /// Fills `buf` with the bytes of the device from `offset` on. Where a page is missing, the same device
    /// request also loads what follows, up to `ahead` bytes behind `buf`. Returns from where to where that
    /// was, or `None` if no page was missing.
    ///
    /// # Errors
    /// [`FsError::Io`], [`FsError::NoMemory`], and [`FsError::Corrupt`] for a range that is not on the
    /// device.
    pub async fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        ahead: usize,
    ) -> Result<Option<Range<u64>>, FsError> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size).ok_or(PAST_END)?;
        let last_wanted = end.saturating_add(ahead as u64).min(self.size).saturating_sub(1) / PAGE;
        let (mut at, mut rest, mut loaded) = (offset, buf, None);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, (at % PAGE) as usize);
            let len = PAGE_SIZE.saturating_sub(within).min(rest.len());
            let (part, tail) = rest.split_at_mut_checked(len).ok_or(PAST_END)?;
            if self.copy(number, within, part)? {
                self.count(|stats| stats.hits = stats.hits.wrapping_add(1));
            } else {
                let want = usize::try_from(last_wanted.saturating_sub(number)).unwrap_or(MAX_PAGES);
                let end = self.fetch(number, want.saturating_add(1), within, part).await?;
                let first = loaded.map_or(at, |loaded: Range<u64>| loaded.start);
                loaded = Some(first..end.saturating_mul(PAGE));
            }
            rest = tail;
            at = at.saturating_add(len as u64);
        }
        Ok(loaded)
    }

    /// Shows metadata to `look`, once `check` has found it right: that is done only once while it is in
    /// memory. What lies within one page is looked at in place. Also returns what [`read`](Self::read) does.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and of `check`.
    pub async fn view<T>(
        &self,
        piece: &Piece,
        check: impl FnOnce(&[u8]) -> Result<(), FsError>,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<(T, Option<Range<u64>>), FsError> {
        let &Piece { offset, len, ahead, owner } = piece;
        let within = (offset % PAGE) as usize;
        let end = within.saturating_add(len);
        if end <= PAGE_SIZE {
            let mut state = self.state.borrow_mut();
            if let Some((page, checks)) = state.pages.look(offset / PAGE) {
                self.count(|stats| stats.hits = stats.hits.wrapping_add(1));
                let bytes = page.get(within..end).ok_or(PAST_END)?;
                if !checks.hold(within, owner) {
                    check(bytes)?;
                    checks.note(within, owner);
                }
                return Ok((look(bytes), None));
            }
        }
        let mut bytes = super::zeroed(len)?;
        let loaded = self.read(offset, &mut bytes, ahead).await?;
        let starts = (offset..offset.saturating_add(len as u64)).step_by(PAGE_SIZE);
        let mut state = self.state.borrow_mut();
        let mut pages = starts.clone().map(|start| (start / PAGE, (start % PAGE) as usize));
        let are_checked = pages.all(|(number, within)| {
            state.pages.look(number).is_some_and(|(_, checks)| checks.hold(within, owner))
        });
        if !are_checked {
            check(&bytes)?;
            for start in starts {
                if let Some((_, checks)) = state.pages.look(start / PAGE) {
                    checks.note((start % PAGE) as usize, owner);
                }
            }
        }
        Ok((look(&bytes), loaded))
    }

    /// The bytes from `offset` to the end of the page that they are in, but `most` at most, from where they
    /// are. Reads ahead as [`read`](Self::read). `None` if there is no memory to keep the page in.
    ///
    /// # Errors
    /// As there.
    pub async fn share(
        &self,
        offset: u64,
        most: usize,
        ahead: usize,
    ) -> Result<(Option<Shared>, Option<Range<u64>>), FsError> {
        let (number, within) = (offset / PAGE, (offset % PAGE) as usize);
        let len = PAGE_SIZE.saturating_sub(within).min(most);
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.size).ok_or(PAST_END)?;
        let last_wanted = end.saturating_add(ahead as u64).min(self.size).saturating_sub(1) / PAGE;
        let part = |page| Shared::new(page, within..within.saturating_add(len));
        if let Some(page) = self.state.borrow_mut().pages.share(number) {
            self.count(|stats| stats.hits = stats.hits.wrapping_add(1));
            return Ok((Some(part(page)), None));
        }
        let want = usize::try_from(last_wanted.saturating_sub(number)).unwrap_or(MAX_PAGES);
        let end = self.fetch(number, want.saturating_add(1), within, &mut []).await?;
        let page = self.state.borrow_mut().pages.share(number);
        Ok((page.map(part), Some(offset..end.saturating_mul(PAGE))))
    }

    /// Copies from a page if it is in the cache, and says whether it is.
    fn copy(&self, number: u64, within: usize, to: &mut [u8]) -> Result<bool, FsError> {
        let mut state = self.state.borrow_mut();
        state.pages.get(number).map_or(Ok(false), |page| copy_from(page, within, to).map(|()| true))
    }

    /// Copies from a page that the device is asked for, together with up to `want` pages; and returns the
    /// page behind those.
    async fn fetch(
        &self,
        number: u64,
        mut want: usize,
        within: usize,
        to: &mut [u8],
    ) -> Result<u64, FsError> {
        self.count(|stats| stats.misses = stats.misses.wrapping_add(1));
        let mut failures = 0usize;
        loop {
            let (part, end) = self.join(number, want)?;
            let share = Share { state: &self.state, part };
            let outcome = if part.drives {
                match self.load(number, part.count).await {
                    Ok(pages) => {
                        let copied = copy_from(pages.first().map_or(&[], |page| page.as_slice()), within, to);
                        self.keep(part, number, pages);
                        return copied.map(|()| end);
                    }
                    Err(error) => {
                        self.count(|stats| stats.errors = stats.errors.wrapping_add(1));
                        self.state.borrow_mut().finish(part.id, Outcome::Failed(error));
                        Outcome::Failed(error)
                    }
                }
            } else {
                poll_fn(|cx| self.state.borrow_mut().poll_outcome(part.id, cx)).await
            };
            drop(share);
            match outcome {
                Outcome::Failed(error) => {
                    failures = failures.saturating_add(1);
                    if part.count == 1 || failures == ATTEMPTS {
                        return Err(error);
                    }
                    // The bad sector may be one that was only read ahead.
                    want = 1;
                }
                Outcome::Over if self.copy(number, within, to)? => return Ok(end),
                Outcome::Over => {}
            }
        }
    }

    /// Takes part in the request that a page is in, or starts one; also returns the page behind it.
    fn join(&self, number: u64, want: usize) -> Result<(Part, u64), FsError> {
        let mut state = self.state.borrow_mut();
        let under_way = state.fills.iter_mut().find(|fill| fill.outcome.is_none() && fill.holds(number));
        let (part, first) = match under_way {
            Some(fill) => {
                fill.waiting = fill.waiting.saturating_add(1);
                (Part { id: fill.id, count: fill.count, drives: false }, fill.first)
            }
            None => (state.start(number, want, self.capacity)?, number),
        };
        Ok((part, first.saturating_add(part.count as u64)))
    }

    /// Puts what a request has loaded into the cache.
    fn keep(&self, part: Part, first: u64, pages: Vec<Rc<Vec<u8>>>) {
        let mut state = self.state.borrow_mut();
        for (number, page) in (first..).zip(pages) {
            if let Some(page) = state.pages.put(number, page) {
                state.free.give_back(page);
            }
        }
        state.finish(part.id, Outcome::Over);
        let room = self.capacity.saturating_sub(state.pages_under_way());
        state.trim(room.max(1));
    }

    async fn load(&self, first: u64, count: usize) -> Result<Vec<Rc<Vec<u8>>>, FsError> {
        let mut loading = Loading { state: &self.state, pages: Vec::new() };
        let pages = &mut loading.pages;
        pages.try_reserve_exact(count).map_err(|_| FsError::NoMemory)?;
        for number in (first..).take(count) {
            let left = self.size.saturating_sub(number.saturating_mul(PAGE));
            pages.push(self.state.borrow_mut().free.take(left.min(PAGE) as usize)?);
        }
        let mut bufs: Vec<&mut [u8]> = Vec::new();
        bufs.try_reserve_exact(count).map_err(|_| FsError::NoMemory)?;
        bufs.extend(pages.iter_mut().filter_map(Rc::get_mut).map(Vec::as_mut_slice));
        self.count(|stats| {
            stats.requests = stats.requests.wrapping_add(1);
            stats.pages_requested = stats.pages_requested.wrapping_add(count as u64);
        });
        self.source.read(first.saturating_mul(SECTORS_PER_PAGE), &mut bufs).await?;
        drop(bufs);
        Ok(core::mem::take(pages))
    }

    fn count(&self, change: impl FnOnce(&mut CacheStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

fn copy_from(page: &[u8], within: usize, to: &mut [u8]) -> Result<(), FsError> {
    let from = page.get(within..).and_then(|rest| rest.get(..to.len())).ok_or(PAST_END)?;
    to.copy_from_slice(from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockError;
    use embassy_futures::block_on;

    struct Zeros;

    impl BlockSource for Zeros {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }

        async fn read(&self, _: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
            bufs.iter_mut().for_each(|buf| buf.fill(0));
            Ok(())
        }
    }

    /// How often each view of a piece, by its place, length and owner, has checked it.
    #[test]
    fn what_was_right_is_checked_once_while_it_is_in_memory() {
        let cache = PageCache::new(Zeros, 8 * PAGE_SIZE);
        let checks = |offset, len, owner, result: Result<(), FsError>| {
            let (piece, mut checks) = (Piece { offset, len, ahead: 0, owner }, 0);
            let check = |bytes: &[u8]| {
                checks += 1;
                assert_eq!(bytes.len(), len);
                result
            };
            let seen = block_on(cache.view(&piece, check, |bytes| bytes.len()));
            assert_eq!(seen.map(|(seen, _)| seen), result.map(|()| len));
            checks
        };
        let wrong = FsError::Corrupt("as asked for");
        for (offset, len) in [(0, 256), (256, 256), (1024, 1024), (8192, 4096), (16384, 16384)] {
            assert_eq!(checks(offset, len, 1, Err(wrong)), 1, "{offset}");
            assert_eq!(checks(offset, len, 1, Err(wrong)), 1, "{offset}: wrong stays wrong");
            assert_eq!(checks(offset, len, 1, Ok(())), 1, "{offset}");
            assert_eq!(checks(offset, len, 1, Ok(())), 0, "{offset}");
            assert_eq!(checks(offset, len, 2, Ok(())), 1, "{offset}: for somebody else");
            assert_eq!(checks(offset, len, 1, Ok(())), 1, "{offset}");
        }
        assert_eq!(checks(512, 256, 1, Ok(())), 1);
        assert_eq!(checks(512, 256, 1, Ok(())), 0);
        // Eight other pages come, and what was there goes.
        assert_eq!(checks(1 << 19, 8 * PAGE_SIZE, 1, Ok(())), 1);
        assert_eq!(checks(512, 256, 1, Ok(())), 1);
    }
}
