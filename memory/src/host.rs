//! A [`Platform`] on the host, for tests: device addresses differ from pointers and physical addresses, so
//! that a mix-up fails at once, and a fake device can reach exactly what was shared with it.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::num::NonZeroUsize;
use core::ops::Range;
use core::ptr::NonNull;
use core::time::Duration;
use std::alloc::{Layout, alloc_zeroed};
use std::time::Instant;

use spin::Mutex;

use crate::{
    DeviceId, Direction, DmaMemory, DmaRegistry, MmioMemory, PAGE_SIZE, PhysAddr, Platform, PlatformError,
    VolatileSlice,
};

pub use crate::lock::order::{interrupt, locks_held};

/// Where the first DMA page of every host platform appears to devices.
const FIRST_DEVICE_ADDRESS: u64 = 0x1_2345_6000;

/// Zeroed, page-aligned host memory. It is never freed: DMA memory is type-stable.
#[derive(Clone, Copy)]
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes live as long as the program, and are only accessed as shared memory.
unsafe impl Send for Pages {}
// SAFETY: as for `Send`.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, len })
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the bytes live as long as the program, and are only accessed as shared memory.
        unsafe { VolatileSlice::new(self.start, self.len) }
    }
}

/// Memory that a fake device may be looking at. When the driver side and every device access are done with
/// it, it goes where the next DMA memory is taken from.
struct Lent {
    pages: Pages,
    idle: Arc<Mutex<Vec<Pages>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.idle.lock().push(self.pages);
    }
}

struct HostWindow {
    device_address: u64,
    device: DeviceId,
    /// Kept alive by whoever uses it.
    lent: Weak<Lent>,
}

/// A block of registers: where it is, and the pages of it that somebody has claimed.
/// Claimed addresses, whose registers they are, and what lives as long as the claim.
type Claim = (Range<u64>, Option<DeviceId>, Weak<()>);

struct Registers {
    start: u64,
    memory: HostMemory,
    claims: Vec<Claim>,
}

#[derive(Default)]
struct HostState {
    windows: Vec<HostWindow>,
    next: u64,
    registers: Vec<Registers>,
    advanced: Duration,
}

/// The host platform. Tests leak one each: `Box::leak(Box::new(HostPlatform::new()))`.
pub struct HostPlatform {
    start: Instant,
    state: Mutex<HostState>,
    idle: Arc<Mutex<Vec<Pages>>>,
    registry: DmaRegistry,
}

impl HostPlatform {
    /// A platform that has given out nothing.
    #[expect(clippy::new_without_default, reason = "a clock starts here")]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::default(),
            idle: Arc::default(),
            registry: DmaRegistry::new(),
        }
    }

    /// Moves the clock on, so that a test of a time limit need not wait.
    pub fn advance(&self, by: Duration) {
        self.state.lock().advanced += by;
    }

    /// Puts a block of `len` plain bytes at physical address `start`, for `mmio_map` to find: registers
    /// without a device behind them, which the test reads and writes as the device would.
    pub fn add_registers(&self, start: u64, len: usize) -> HostMemory {
        let len = len.next_multiple_of(PAGE_SIZE);
        let pages = Pages::new(len).expect("a block has bytes");
        let lent = Arc::new(Lent { pages, idle: Arc::default() });
        let memory = HostMemory { lent, offset: 0, len };
        let block = Registers { start, memory: memory.clone(), claims: Vec::new() };
        self.state.lock().registers.push(block);
        memory
    }

    /// The bytes that `device` means by `address..address + len`, if all of them are in one block that is
    /// shared with it now.
    pub fn translate(&self, device: DeviceId, address: u64, len: usize) -> Option<HostMemory> {
        let state = self.state.lock();
        state.windows.iter().filter(|window| window.device == device).find_map(|window| {
            let offset = address.checked_sub(window.device_address)? as usize;
            let lent = window.lent.upgrade().filter(|lent| offset < lent.pages.len)?;
            lent.pages.slice().subslice(offset, len).ok()?;
            Some(HostMemory { lent, offset, len })
        })
    }

    /// How many bytes are given out as DMA memory now.
    pub fn dma_in_use(&self) -> usize {
        let state = self.state.lock();
        state.windows.iter().filter_map(|window| window.lent.upgrade()).map(|lent| lent.pages.len).sum()
    }

    /// `len` bytes of memory that only devices have had.
    fn take(&self, len: usize) -> Option<Pages> {
        let idle = &mut *self.idle.lock();
        let Some(at) = idle.iter().position(|pages| pages.len == len) else { return Pages::new(len) };
        let pages = idle.swap_remove(at);
        pages.slice().fill(0).ok()?;
        Some(pages)
    }
}

/// Host memory as the fake device sees it: a block, or the bytes of an address. Keeps it alive.
#[derive(Clone)]
pub struct HostMemory {
    lent: Arc<Lent>,
    offset: usize,
    len: usize,
}

impl HostMemory {
    /// All bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.lent.pages.slice().subslice(self.offset, self.len).unwrap()
    }
}

// SAFETY: DMA memory is zeroed, page-aligned host memory that was never anything else and is not freed;
// device addresses count up and are never reused. A page of registers is lent to one caller at a time. The
// clock is `Instant` plus a sum of positive steps. The registry is this platform's own, and so is all that it
// lends.
unsafe impl Platform for HostPlatform {
    fn dma_allocate(
        &self,
        device: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let len = pages.get().checked_mul(PAGE_SIZE).ok_or(PlatformError::BadRange)?;
        let pages = self.take(len).ok_or(PlatformError::OutOfMemory)?;
        let lent = Arc::new(Lent { pages, idle: self.idle.clone() });
        let mut state = self.state.lock();
        state.windows.retain(|window| window.lent.strong_count() > 0);
        let device_address = FIRST_DEVICE_ADDRESS + state.next;
        // A gap of one page: an overrun hits nothing.
        state.next += (len + PAGE_SIZE) as u64;
        state.windows.push(HostWindow { device_address, device, lent: Arc::downgrade(&lent) });
        // SAFETY: zeroed pages; `translate` maps `device_address` to exactly these bytes.
        Ok(unsafe { DmaMemory::new(pages.start, len, device_address, Box::new(lent)) })
    }

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        let state = &mut *self.state.lock();
        let inside = |block: &Registers| {
            let offset = start.value().checked_sub(block.start)? as usize;
            let there = len > 0 && block.memory.slice().subslice(offset, len).is_ok();
            there.then_some(offset)
        };
        let mut blocks = state.registers.iter_mut();
        let found = blocks.find_map(|block| Some((inside(block)?, block)));
        let (offset, block) = found.ok_or(PlatformError::BadRange)?;
        let page = PAGE_SIZE as u64;
        let end = (start.value() + len as u64).next_multiple_of(page);
        let pages = start.value() / page * page..end;
        block.claims.retain(|(.., claim)| claim.strong_count() > 0);
        let taken = |(other, whose, _): &Claim| {
            *whose != device || other.start < pages.end && pages.start < other.end
        };
        if block.claims.iter().any(taken) {
            return Err(PlatformError::Claimed);
        }
        let claim = Arc::new(());
        block.claims.push((pages, device, Arc::downgrade(&claim)));
        let memory = HostMemory { offset: block.memory.offset + offset, len, ..block.memory.clone() };
        let bytes = memory.slice();
        let owner = Box::new((claim, memory.clone()));
        // SAFETY: the block stays where it is, and holds nothing but what stands for registers.
        Ok(unsafe { MmioMemory::new(bytes.as_ptr(), bytes.len(), owner) })
    }

    fn now(&self) -> Duration {
        self.start.elapsed() + self.state.lock().advanced
    }

    fn registry(&self) -> &DmaRegistry {
        &self.registry
    }
}
