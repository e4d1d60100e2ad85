//! A bounded cache of disk pages, shared by all readers.
//!
//! Pages are loaded in runs: one device request fills up to [`MAX_READ`] bytes. Tasks that miss the same page share one
//! request; when the task that drives it goes away, another takes over. Nothing here spawns or blocks: a reader that
//! misses awaits the device, everybody else goes on.

use super::FsError;
use crate::block::{BlockSource, MAX_READ, SECTOR_SIZE};
use alloc::rc::Rc;
use alloc::vec::Vec;
use async_lock::OnceCell;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use lru::LruCache;

/// Bytes in one page of the cache.
pub const PAGE_SIZE: usize = 4096;

const PAGE: u64 = PAGE_SIZE as u64;
const SECTOR: u64 = SECTOR_SIZE as u64;
const SECTORS_PER_PAGE: u64 = PAGE / SECTOR;
const MAX_PAGES: usize = MAX_READ / PAGE_SIZE;
/// A reader tries this often before it reports an error: with others' read-ahead, then alone.
const ATTEMPTS: usize = 3;

/// The contents of one page, shorter than [`PAGE_SIZE`] only at the end of the device.
type Page = Rc<Vec<u8>>;

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

/// A page cache over a [`BlockSource`]. For one executor: it is not `Sync`.
pub struct PageCache<B> {
    source: B,
    size: u64,
    capacity: usize,
    state: RefCell<State>,
    stats: Cell<CacheStats>,
}

struct State {
    pages: LruCache<u64, Page>,
    fills: Vec<Rc<Fill>>,
}

/// One device request, for `count` pages from page `first` on.
struct Fill {
    first: u64,
    count: usize,
    pages: OnceCell<Result<Vec<Page>, FsError>>,
}

impl Fill {
    /// Position of a page in this request.
    fn index(&self, page: u64) -> Option<usize> {
        let index = usize::try_from(page.checked_sub(self.first)?).ok()?;
        (index < self.count).then_some(index)
    }
}

impl State {
    fn fill_of(&self, page: u64) -> Option<&Rc<Fill>> {
        self.fills.iter().find(|fill| fill.index(page).is_some())
    }

    /// Pages in all requests under way.
    fn under_way(&self) -> usize {
        self.fills.iter().fold(0, |sum, fill| sum.saturating_add(fill.count))
    }

    /// Drops the pages that were not used for longest.
    fn trim(&mut self, keep: usize) {
        while self.pages.len() > keep {
            self.pages.pop_lru();
        }
    }

    /// Starts a request for `page` and up to `want` pages in all, as far as nobody has them yet and there is room:
    /// the pages held and the pages under way together stay within `capacity`, but one page is always granted.
    fn start(&mut self, page: u64, want: usize, capacity: usize) -> Rc<Fill> {
        let under_way = self.under_way();
        let room = capacity.saturating_sub(under_way).max(1);
        let following = (1u64..).take(want.min(room).min(MAX_PAGES).saturating_sub(1));
        let wanted = following
            .take_while(|&n| {
                let next = page.saturating_add(n);
                !self.pages.contains(&next) && self.fill_of(next).is_none()
            })
            .count();
        let count = wanted.saturating_add(1);
        self.trim(capacity.saturating_sub(under_way.saturating_add(count)));
        let fill = Rc::new(Fill { first: page, count, pages: OnceCell::new() });
        self.fills.push(fill.clone());
        fill
    }
}

/// A task's share in a request. The last one to go takes an unfinished request off the list.
struct Share<'a> {
    state: &'a RefCell<State>,
    fill: Rc<Fill>,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        // The list and this share.
        if !self.fill.pages.is_initialized() && Rc::strong_count(&self.fill) == 2 {
            self.state.borrow_mut().fills.retain(|fill| !Rc::ptr_eq(fill, &self.fill));
        }
    }
}

impl<B: BlockSource> PageCache<B> {
    /// A cache that holds at most `capacity` bytes of pages, those being read included. Each task that waits while
    /// the cache is full may hold one page more.
    pub fn new(source: B, capacity: usize) -> Self {
        let sectors = source.size_bytes() / SECTOR;
        let size = sectors.saturating_mul(SECTOR);
        let state = State { pages: LruCache::unbounded(), fills: Vec::new() };
        let capacity = (capacity / PAGE_SIZE).max(1);
        Self { size, source, capacity, state: RefCell::new(state), stats: Cell::default() }
    }

    /// Size of the device in bytes, in whole sectors.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// What the cache has done so far.
    pub fn stats(&self) -> CacheStats {
        let state = self.state.borrow();
        let (pages, under_way) = (state.pages.len() as u64, state.fills.len() as u64);
        CacheStats { pages, under_way, ..self.stats.get() }
    }

    /// Fills `buf` with the bytes of the device from `offset` on. Where a page is missing, the same device request
    /// also loads what follows, up to `ahead` bytes behind `buf`. Returns from where to
    /// where that was, or `None` if no page was missing.
    ///
    /// # Errors
    /// [`FsError::Io`], [`FsError::NoMemory`], and [`FsError::Corrupt`] for a range that is not on the device.
    pub async fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        ahead: usize,
    ) -> Result<Option<Range<u64>>, FsError> {
        const PAST_END: FsError = FsError::Corrupt("a block lies past the end of the disk");
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size).ok_or(PAST_END)?;
        let last_wanted = end.saturating_add(ahead as u64).min(self.size).saturating_sub(1) / PAGE;
        let (mut at, mut rest, mut loaded) = (offset, buf, None);
        while !rest.is_empty() {
            let number = at / PAGE;
            let want =
                usize::try_from(last_wanted.saturating_sub(number)).unwrap_or(MAX_PAGES).saturating_add(1);
            let page = match self.cached(number) {
                Some(page) => page,
                None => {
                    let (page, end) = self.page(number, want).await?;
                    let first = loaded.map_or(at, |loaded: Range<u64>| loaded.start);
                    loaded = Some(first..end.saturating_mul(PAGE));
                    page
                }
            };
            let from = page.get((at % PAGE) as usize..).unwrap_or_default();
            let len = from.len().min(rest.len());
            let (Some(from), Some((to, tail)), 1..) = (from.get(..len), rest.split_at_mut_checked(len), len)
            else {
                return Err(PAST_END);
            };
            to.copy_from_slice(from);
            rest = tail;
            at = at.saturating_add(len as u64);
        }
        Ok(loaded)
    }

    fn cached(&self, number: u64) -> Option<Page> {
        let page = self.state.borrow_mut().pages.get(&number).cloned()?;
        self.count(|stats| stats.hits = stats.hits.wrapping_add(1));
        Some(page)
    }

    /// One page from the device, together with up to `want` pages; and the page behind those.
    async fn page(&self, number: u64, mut want: usize) -> Result<(Page, u64), FsError> {
        self.count(|stats| stats.misses = stats.misses.wrapping_add(1));
        let mut error = FsError::NoMemory;
        for _ in 0..ATTEMPTS {
            let share = self.share(number, want);
            let fill = &*share.fill;
            match fill.pages.get_or_init(|| self.load(fill)).await {
                Ok(pages) => {
                    let page = fill.index(number).and_then(|index| pages.get(index));
                    let end = fill.first.saturating_add(fill.count as u64);
                    return page.cloned().map(|page| (page, end)).ok_or(FsError::NoMemory);
                }
                Err(e) => error = *e,
            }
            if fill.count == 1 {
                break;
            }
            // The bad sector may be one that was only read ahead.
            want = 1;
        }
        Err(error)
    }

    fn share(&self, number: u64, want: usize) -> Share<'_> {
        let mut state = self.state.borrow_mut();
        let fill = match state.fill_of(number) {
            Some(fill) => fill.clone(),
            None => state.start(number, want, self.capacity),
        };
        Share { state: &self.state, fill }
    }

    async fn load(&self, fill: &Fill) -> Result<Vec<Page>, FsError> {
        let result = self.load_pages(fill).await;
        let mut state = self.state.borrow_mut();
        state.fills.retain(|other| !core::ptr::eq(&**other, fill));
        match &result {
            Ok(pages) => {
                for (number, page) in (fill.first..).zip(pages) {
                    state.pages.put(number, page.clone());
                }
                let room = self.capacity.saturating_sub(state.under_way());
                state.trim(room.max(1));
            }
            Err(_) => self.count(|stats| stats.errors = stats.errors.wrapping_add(1)),
        }
        result
    }

    async fn load_pages(&self, fill: &Fill) -> Result<Vec<Page>, FsError> {
        let mut pages = Vec::with_capacity(fill.count);
        for number in (fill.first..).take(fill.count) {
            let left = self.size.saturating_sub(number.saturating_mul(PAGE));
            pages.push(super::zeroed(left.min(PAGE) as usize)?);
        }
        self.count(|stats| {
            stats.requests = stats.requests.wrapping_add(1);
            stats.pages_requested = stats.pages_requested.wrapping_add(pages.len() as u64);
        });
        let mut bufs: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
        let sector = fill.first.saturating_mul(SECTORS_PER_PAGE);
        self.source.read(sector, &mut bufs).await.map_err(FsError::Io)?;
        Ok(pages.into_iter().map(Rc::new).collect())
    }

    fn count(&self, change: impl FnOnce(&mut CacheStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}
