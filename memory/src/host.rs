//! A [`Platform`] on the host, for tests: device addresses differ from pointers and physical addresses, so that a
//! mix-up fails at once, and a fake device can reach exactly what was shared with it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::time::Duration;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::time::Instant;

use spin::Mutex;

use crate::{
    Backing, DeviceId, DmaMemory, DmaRegistry, PAGE_SIZE, PhysAddr, Platform, PlatformError, VolatileSlice,
    lock,
};

/// Whether this thread holds a lock of this crate: then nothing may be allocated. For the allocators of tests.
pub fn locks_held() -> bool {
    lock::held()
}

/// Runs `handler` as if it were an interrupt handler: it panics if it takes a lock of this crate.
pub fn interrupt<R>(handler: impl FnOnce() -> R) -> R {
    lock::interrupt(handler)
}

/// Where the first DMA page of every host platform appears to devices.
const FIRST_DEVICE_ADDRESS: u64 = 0x1_2345_6000;

/// Zeroed, page-aligned host memory.
struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Pages` is the unique owner of its allocation, which is only accessed volatile.
unsafe impl Send for Pages {}
// SAFETY: as for `Send`.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: the allocation lives as long as `Pages` and no reference to its bytes is made.
unsafe impl Backing for Pages {
    fn pointer(&self) -> NonNull<u8> {
        self.start
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
}

/// Memory that the fake device can still see; freed when the driver side and every device access are done.
#[derive(Clone)]
struct Shared(Arc<Pages>);

// SAFETY: as for `Pages`, which the `Arc` keeps alive.
unsafe impl Backing for Shared {
    fn pointer(&self) -> NonNull<u8> {
        self.0.start
    }
    fn len(&self) -> usize {
        self.0.layout.size()
    }
}

struct Window {
    device_address: u64,
    device: DeviceId,
    pages: Shared,
}

#[derive(Default)]
struct State {
    windows: Vec<Window>,
    next: u64,
    registers: Vec<(u64, Shared)>,
    advanced: Duration,
}

/// The host platform. Tests leak one each: `Box::leak(Box::new(HostPlatform::new()))`.
pub struct HostPlatform {
    start: Instant,
    state: Mutex<State>,
    registry: DmaRegistry,
}

impl HostPlatform {
    /// A platform that has given out nothing.
    #[expect(clippy::new_without_default, reason = "a clock starts here")]
    pub fn new() -> Self {
        Self { start: Instant::now(), state: Mutex::default(), registry: DmaRegistry::new() }
    }

    /// Moves the clock on, so that a test of a time limit need not wait.
    pub fn advance(&self, by: Duration) {
        self.state.lock().advanced += by;
    }

    /// Puts a block of `len` plain bytes at physical address `start`, for `mmio_map` to find: registers without a
    /// device behind them, which the test reads and writes as the device would.
    pub fn add_registers(&self, start: u64, len: usize) -> HostMemory {
        let pages = Shared(Arc::new(Pages::new(len.next_multiple_of(PAGE_SIZE)).unwrap()));
        self.state.lock().registers.push((start, pages.clone()));
        HostMemory(pages)
    }

    /// The bytes that `device` means by `address..address + len`, if all of them are in one block that is shared
    /// with it now.
    pub fn translate(&self, device: DeviceId, address: u64, len: usize) -> Option<HostBytes> {
        self.collect();
        let state = self.state.lock();
        let window = state.windows.iter().find(|window| {
            window.device == device
                && window.device_address <= address
                && address - window.device_address < window.pages.len() as u64
        })?;
        let offset = (address - window.device_address) as usize;
        let memory = HostMemory(window.pages.clone());
        memory.slice().subslice(offset, len).ok()?;
        Some(HostBytes { memory, offset, len })
    }

    /// How many bytes are given out as DMA memory now.
    pub fn dma_in_use(&self) -> usize {
        // Entries whose memory the driver side has dropped are only kept alive by this table.
        self.collect();
        self.state.lock().windows.iter().map(|window| window.pages.len()).sum()
    }

    fn collect(&self) {
        self.state.lock().windows.retain(|window| Arc::strong_count(&window.pages.0) > 1);
    }
}

/// A block of host memory as the fake device sees it.
pub struct HostMemory(Shared);

impl HostMemory {
    /// All bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the pages live as long as `self` and are only accessed volatile.
        unsafe { VolatileSlice::new(self.0.pointer(), self.0.len()) }
    }
}

/// A translated device address range; keeps the memory alive.
pub struct HostBytes {
    memory: HostMemory,
    offset: usize,
    len: usize,
}

impl HostBytes {
    /// The bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.memory.slice().subslice(self.offset, self.len).unwrap()
    }
}

// SAFETY: every allocation is fresh, zeroed, page-aligned host memory that lives until dropped; device addresses
// count up and are never reused; the clock is `Instant` plus a sum of positive steps.
unsafe impl Platform for HostPlatform {
    fn dma_allocate(&self, device: DeviceId, pages: NonZeroUsize) -> Result<DmaMemory, PlatformError> {
        self.collect();
        let len = pages.get().checked_mul(PAGE_SIZE).ok_or(PlatformError::BadRange)?;
        let pages = Shared(Arc::new(Pages::new(len).ok_or(PlatformError::OutOfMemory)?));
        let mut state = self.state.lock();
        let device_address = FIRST_DEVICE_ADDRESS + state.next;
        // A gap of one page: an overrun hits nothing.
        state.next += (len + PAGE_SIZE) as u64;
        state.windows.push(Window { device_address, device, pages: pages.clone() });
        // SAFETY: fresh zeroed pages; `translate` maps `device_address` to exactly these bytes.
        Ok(unsafe { DmaMemory::new(Box::new(pages), device_address) })
    }

    fn mmio_map(&self, start: PhysAddr, len: usize) -> Result<Box<dyn Backing>, PlatformError> {
        let state = self.state.lock();
        let found = state.registers.iter().find(|(at, pages)| *at == start.value() && len <= pages.len());
        match found {
            Some((_, pages)) if Arc::strong_count(&pages.0) > 2 => Err(PlatformError::Claimed),
            Some((_, pages)) => Ok(Box::new(pages.clone())),
            None => Err(PlatformError::BadRange),
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed() + self.state.lock().advanced
    }

    fn registry(&self) -> &DmaRegistry {
        &self.registry
    }
}
