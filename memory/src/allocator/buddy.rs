//! The one allocator under frames and pages: a binary buddy system over the numbers `0..units`.
//!
//! Free blocks of each order are one bit each in a bitmap with 64-ary summaries, so every step costs the same
//! with ten live allocations as with a hundred thousand, needs no heap, and always prefers the lowest
//! address. The most recently freed block of each order is kept apart, unmerged: taking and returning the
//! same size again and again would otherwise split and merge all orders each time, at a price that depends on
//! what lies around the block.

/// Orders of blocks: 1 to 2^24 units (64 GiB).
const ORDERS: usize = 25;
/// Levels of a bitmap: 64^6 bits.
const LEVELS: usize = 6;
/// No block.
const NONE: usize = usize::MAX;

/// Largest alignment that may be asked for, in units: 1 GiB. Index spaces begin at a multiple of it.
pub(crate) const MAX_ALIGN: usize = 1 << 18;

/// Why nothing was allocated. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// Nothing was asked for.
    ZeroLength,
    /// The alignment is not a power of two, or above 1 GiB.
    BadAlignment,
    /// A fixed address is not a multiple of 4 KiB or of the alignment.
    Misaligned,
    /// The request lies (partly) outside what the allocator manages, or is larger than that.
    OutOfRange,
    /// There is no free block that fits, or the fixed range is not free.
    OutOfMemory,
    /// The storage handed to `new` is smaller than `storage_words`.
    StorageTooSmall,
}

crate::error::messages! { AllocError {
    ZeroLength => "nothing to allocate",
    BadAlignment => "not an alignment that there is",
    Misaligned => "a fixed address that is misaligned",
    OutOfRange => "outside what there is to allocate",
    OutOfMemory => "out of memory",
    StorageTooSmall => "too little storage for the books",
} }

/// What to look for, in units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// How many units.
    pub count: usize,
    /// A power of two, at most [`MAX_ALIGN`].
    pub align: usize,
    /// Exactly here.
    pub at: Option<usize>,
    /// Lowest unit allowed.
    pub from: usize,
    /// One past the highest unit allowed.
    pub below: usize,
}

/// Adjacent free units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreeUnits {
    pub start: usize,
    pub count: usize,
    /// Whether they are in one block only, as they must be.
    pub alone: bool,
}

/// A bitmap inside the allocator's storage with its summaries: level n + 1 has a bit for each word of level n
/// that is not zero.
#[derive(Clone, Copy)]
struct BitTree {
    bits: usize,
    depth: usize,
    base: [usize; LEVELS],
}

impl BitTree {
    /// A bitmap that begins at word `at`, and the word after it.
    const fn layout(bits: usize, mut at: usize) -> (Self, usize) {
        let (mut base, mut depth, mut words) = ([0; LEVELS], 0, bits);
        while depth < LEVELS {
            words = words.div_ceil(64);
            base[depth] = at;
            at += words;
            depth += 1;
            if words <= 1 {
                break;
            }
        }
        (Self { bits, depth, base }, at)
    }

    fn get(&self, words: &[u64], bit: usize) -> bool {
        bit < self.bits && words[self.base[0] + bit / 64] & (1 << (bit % 64)) != 0
    }

    fn set(&self, words: &mut [u64], mut bit: usize) {
        for base in &self.base[..self.depth] {
            let word = &mut words[base + bit / 64];
            let before = *word;
            *word |= 1 << (bit % 64);
            if before != 0 {
                return;
            }
            bit /= 64;
        }
    }

    fn clear(&self, words: &mut [u64], mut bit: usize) {
        for base in &self.base[..self.depth] {
            let word = &mut words[base + bit / 64];
            *word &= !(1 << (bit % 64));
            if *word != 0 {
                return;
            }
            bit /= 64;
        }
    }

    fn is_empty(&self, words: &[u64]) -> bool {
        words[self.base[self.depth - 1]] == 0
    }

    /// The first bit set at or after `from`.
    fn find(&self, words: &[u64], mut from: usize) -> Option<usize> {
        let mut level = 0;
        // Up until a word has a bit at or after `from`, …
        let mut bit = loop {
            let index = from / 64;
            if level == self.depth || index >= self.bits.div_ceil(1 << (6 * (level + 1))) {
                return None;
            }
            let word = words[self.base[level] + index] & (u64::MAX << (from % 64));
            if word != 0 {
                break index * 64 + word.trailing_zeros() as usize;
            }
            from = index + 1;
            level += 1;
        };
        // … then down along the first bits.
        while level > 0 {
            level -= 1;
            bit = bit * 64 + words[self.base[level] + bit].trailing_zeros() as usize;
        }
        Some(bit)
    }
}

/// The allocator.
pub(crate) struct Buddy {
    words: &'static mut [u64],
    units: usize,
    orders: usize,
    maps: [BitTree; ORDERS],
    /// Bit k: the bitmap of order k is not empty.
    filled: u32,
    /// The most recently freed block of each order, not in its bitmap.
    recent: [usize; ORDERS],
    free: usize,
    /// Of the units below this one, …
    counted: usize,
    /// … so many are free by the bitmaps.
    found: usize,
}

/// The order of the smallest block of at least `units`.
const fn order_of(units: usize) -> usize {
    units.next_power_of_two().trailing_zeros() as usize
}

impl Buddy {
    /// Words of storage for `units` units.
    pub const fn storage_words(units: usize) -> usize {
        let (mut at, mut order) = (0, 0);
        while order < ORDERS {
            at = BitTree::layout(units >> order, at).1;
            order += 1;
        }
        at
    }

    /// An allocator with nothing free. `None` if the storage is too small.
    pub fn new(units: usize, words: &'static mut [u64]) -> Option<Self> {
        if words.len() < Self::storage_words(units) {
            return None;
        }
        words.fill(0);
        let (mut at, mut maps) = (0, [BitTree { bits: 0, depth: 0, base: [0; LEVELS] }; ORDERS]);
        for (order, map) in maps.iter_mut().enumerate() {
            (*map, at) = BitTree::layout(units >> order, at);
        }
        let orders = units.checked_ilog2().map_or(0, |log| log as usize + 1).min(ORDERS);
        Some(Self {
            words,
            units,
            orders,
            maps,
            filled: 0,
            recent: [NONE; ORDERS],
            free: 0,
            counted: 0,
            found: 0,
        })
    }

    /// How many units are free.
    pub const fn free_units(&self) -> usize {
        self.free
    }

    /// Takes adjacent units and returns the first.
    ///
    /// Succeeds whenever a free, naturally aligned block of `max(count, align)` rounded up to a power of two
    /// exists within the bounds; at a fixed place whenever all units there are free.
    pub fn allocate(&mut self, request: &Request) -> Result<usize, AllocError> {
        let below = request.below.min(self.units);
        if request.count == 0 {
            return Err(AllocError::ZeroLength);
        }
        if !request.align.is_power_of_two() || request.align > MAX_ALIGN {
            return Err(AllocError::BadAlignment);
        }
        if request.count > below.saturating_sub(request.from) {
            return Err(AllocError::OutOfRange);
        }
        let Some(start) = request.at else {
            return self.allocate_within(request, below).ok_or(AllocError::OutOfMemory);
        };
        if !start.is_multiple_of(request.align) {
            return Err(AllocError::Misaligned);
        }
        if start < request.from || start > below - request.count {
            return Err(AllocError::OutOfRange);
        }
        if self.allocate_at(start, request.count) { Ok(start) } else { Err(AllocError::OutOfMemory) }
    }

    fn allocate_within(&mut self, request: &Request, below: usize) -> Option<usize> {
        let order = order_of(request.count.max(request.align));
        let start = self
            .take_recent(order, request, below)
            .or_else(|| self.take(order, request, below))
            .or_else(|| self.settle().then(|| self.take(order, request, below)).flatten())?;
        self.book_taken(start, request.count);
        Some(start)
    }

    fn allocate_at(&mut self, start: usize, count: usize) -> bool {
        let end = start + count;
        self.settle();
        let mut unit = start;
        while unit < end {
            let Some((order, block)) = self.block_of(unit) else { return false };
            unit = (block + 1) << order;
        }
        unit = start;
        while let Some((order, block)) = self.block_of(unit).filter(|_| unit < end) {
            let past = end.min((block + 1) << order);
            self.carve(order, block, unit, past);
            unit = past;
        }
        self.book_taken(start, count);
        true
    }

    fn book_taken(&mut self, start: usize, count: usize) {
        self.free -= count;
        self.found = self.found.wrapping_sub(self.among_counted(start, count));
    }

    /// How many of these units [`count_on`](Self::count_on) has behind it.
    fn among_counted(&self, start: usize, count: usize) -> usize {
        self.counted.saturating_sub(start).min(count)
    }

    /// Gives units back (or in for the first time).
    pub fn free(&mut self, mut start: usize, count: usize) {
        let end = start + count;
        assert!(end <= self.units && self.free + count <= self.units, "more freed than there is");
        debug_assert!(count == 0 || !(self.is_free(start) || self.is_free(end - 1)), "freed twice");
        self.free += count;
        self.found = self.found.wrapping_add(self.among_counted(start, count));
        while start < end {
            let order = self.largest_order(start, end);
            let before = core::mem::replace(&mut self.recent[order], start);
            if before != NONE {
                self.merge(order, before >> order);
            }
            start += 1 << order;
        }
    }

    /// Whether a unit is free.
    pub fn is_free(&self, unit: usize) -> bool {
        self.block_of(unit).is_some() || self.any_recent(unit, unit + 1)
    }

    /// Whether any unit of a range is free.
    pub fn any_free(&self, start: usize, count: usize) -> bool {
        // Either a block holds the first unit or one begins after it: of a single unit, which the audit asks
        // for most often, the first says everything.
        let begins = |order: usize| {
            let block = self.maps[order].find(self.words, start >> order);
            block.is_some_and(|block| block << order < start + count)
        };
        self.block_of(start).is_some()
            || self.any_recent(start, start + count)
            || (count > 1 && (0..self.orders).any(begins))
    }

    fn any_recent(&self, start: usize, end: usize) -> bool {
        let mut recent = self.recent.iter().enumerate().filter(|(_, at)| **at != NONE);
        recent.any(|(order, at)| *at < end && start < at + (1 << order))
    }

    /// Begins to count the free units anew.
    pub const fn count_anew(&mut self) {
        (self.counted, self.found) = (0, 0);
    }

    /// How many units below those that [`count_on`](Self::count_on) comes to next are free now.
    pub const fn found(&self) -> usize {
        self.found
    }

    /// Counts the next free units of one block, at most `most`, and returns where they are; `None` when all
    /// have been counted. Units may be taken and freed between the calls.
    pub fn count_on(&mut self, most: usize) -> Option<FreeUnits> {
        self.settle();
        let Some((start, end, alone)) = self.next_free(self.counted) else {
            self.counted = self.units;
            return None;
        };
        let count = most.min(end - start);
        self.counted = start + count;
        self.found = self.found.wrapping_add(count);
        Some(FreeUnits { start, count, alone })
    }

    /// First and past-the-last unit of the first free block from `from` on, as far as it lies there.
    pub fn free_run(&mut self, from: usize) -> Option<(usize, usize)> {
        self.settle();
        self.next_free(from).map(|(start, end, _)| (start, end))
    }

    /// The free units from `from` on that the first block has, and whether no other block has any of them.
    fn next_free(&self, from: usize) -> Option<(usize, usize, bool)> {
        let blocks = || {
            let orders = (0..self.orders).filter(|order| self.filled & 1 << order != 0);
            orders.filter_map(|order| {
                let block = self.maps[order].find(self.words, from >> order)?;
                Some((from.max(block << order), (block + 1) << order))
            })
        };
        let (start, end) = blocks().min()?;
        Some((start, end, blocks().filter(|(other, _)| *other < end).count() == 1))
    }

    /// Merges the blocks that were kept apart, so that nothing is preferred to a smaller block; whether there
    /// were any.
    pub fn settle(&mut self) -> bool {
        let mut any = false;
        for order in 0..self.orders {
            let start = core::mem::replace(&mut self.recent[order], NONE);
            if start != NONE {
                self.merge(order, start >> order);
                any = true;
            }
        }
        any
    }

    fn take_recent(&mut self, order: usize, request: &Request, below: usize) -> Option<usize> {
        let start = *self.recent.get(order)?;
        if request.count != 1 << order || start < request.from || start.checked_add(request.count)? > below {
            return None;
        }
        self.recent[order] = NONE;
        Some(start)
    }

    fn take(&mut self, order: usize, request: &Request, below: usize) -> Option<usize> {
        let fits = |start: usize| start.checked_add(request.count).is_some_and(|past| past <= below);
        let mut candidates = self.filled.checked_shr(order as u32).unwrap_or(0) << order.min(31);
        while candidates != 0 {
            let order = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            let found = self.maps[order].find(self.words, request.from.div_ceil(1 << order));
            if let Some(block) = found.filter(|block| fits(block << order)) {
                let start = block << order;
                self.carve(order, block, start, start + request.count);
                return Some(start);
            }
        }
        // What is left is a block that begins before the lowest unit allowed and reaches past it.
        let (order, block) = self.block_of(request.from).filter(|_| request.from > 0)?;
        let start = request.from.checked_next_multiple_of(request.align)?;
        let past = start.checked_add(request.count)?;
        if !fits(start) || past > (block + 1) << order {
            return None;
        }
        self.carve(order, block, start, past);
        Some(start)
    }

    /// Order and index of the free block that holds `unit`.
    fn block_of(&self, unit: usize) -> Option<(usize, usize)> {
        let mut candidates = self.filled;
        while candidates != 0 {
            let order = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            if self.maps[order].get(self.words, unit >> order) {
                return Some((order, unit >> order));
            }
        }
        None
    }

    /// Removes `start..past` from a free block; the rest stays free.
    fn carve(&mut self, order: usize, block: usize, start: usize, past: usize) {
        self.remove(order, block);
        self.keep(block << order, start);
        self.keep(past, (block + 1) << order);
    }

    /// Marks units free whose neighbours are known not to be.
    fn keep(&mut self, mut start: usize, end: usize) {
        while start < end {
            let order = self.largest_order(start, end);
            self.put(order, start >> order);
            start += 1 << order;
        }
    }

    /// The order of the largest block that begins at `start` and ends by `end`.
    fn largest_order(&self, start: usize, end: usize) -> usize {
        (start.trailing_zeros().min((end - start).ilog2()) as usize).min(self.orders - 1)
    }

    fn merge(&mut self, mut order: usize, mut block: usize) {
        while order + 1 < self.orders && self.maps[order].get(self.words, block ^ 1) {
            self.remove(order, block ^ 1);
            block /= 2;
            order += 1;
        }
        self.put(order, block);
    }

    fn put(&mut self, order: usize, block: usize) {
        self.maps[order].set(self.words, block);
        self.filled |= 1 << order;
    }

    fn remove(&mut self, order: usize, block: usize) {
        self.maps[order].clear(self.words, block);
        if self.maps[order].is_empty(self.words) {
            self.filled &= !(1 << order);
        }
    }
}

#[cfg(test)]
#[path = "buddy_tests.rs"]
mod tests;
