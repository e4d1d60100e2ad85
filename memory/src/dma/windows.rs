//! The table of what one device may reach, and the register of all such tables.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use super::{DeviceStatus, Direction, DmaAddr, DmaError, DmaRegion, DmaSnapshot, ResetTimeout, Shared};
use crate::lock::{Level, Lock};
use crate::{Access, DeviceId, DmaMemory, GuestAddress, NewBitmap, PAGE_SIZE, Platform, VirtAddr};

/// All window tables of a platform: one for each device that a driver ever asked for. A table stays, so that what is in
/// quarantine can still be released by the device's next driver.
pub struct DmaRegistry {
    tables: Lock<Vec<Arc<Table>>>,
    /// Live [`DmaRegion`]s, counted apart from the tables.
    regions: AtomicUsize,
}

/// What an audit of the windows finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowAudit {
    /// Live regions, counted where they are made and dropped.
    pub regions: usize,
    /// Windows whose region is alive.
    pub windows: usize,
    /// Pages of all windows.
    pub pages: usize,
}

impl DmaRegistry {
    /// A register of no tables.
    pub const fn new() -> Self {
        Self { tables: Lock::new(Level::Registry, Vec::new()), regions: AtomicUsize::new(0) }
    }

    fn table(&self, platform: &'static dyn Platform, device: DeviceId) -> Arc<Table> {
        let mut tables = self.tables.lock();
        if let Some(table) = tables.iter().find(|table| table.device == device) {
            return table.clone();
        }
        let table = Arc::new(Table { platform, device, state: Lock::new(Level::Windows, State::default()) });
        tables.push(table.clone());
        table
    }

    /// Counts regions and windows, and shows each page of each window to `page`. `dead` is told of windows without a
    /// region.
    pub(crate) fn audit(
        &self,
        mut page: impl FnMut(VirtAddr),
        mut dead: impl FnMut(DeviceId),
    ) -> WindowAudit {
        let mut seen = WindowAudit { regions: self.regions.load(Ordering::Relaxed), windows: 0, pages: 0 };
        for table in self.tables.lock().iter() {
            for window in &table.state.lock().windows {
                let region = window.region.upgrade();
                let Some(region) = region.filter(|region| region.device_address() == window.device_address)
                else {
                    dead(table.device);
                    continue;
                };
                seen.windows += 1;
                let start = region.as_volatile_slice().as_ptr();
                for offset in (0..region.len()).step_by(PAGE_SIZE) {
                    seen.pages += 1;
                    if let Some(at) = VirtAddr::from_ptr(start.as_ptr().wrapping_add(offset)) {
                        page(at);
                    }
                }
            }
        }
        seen
    }

    /// The memory of all open windows.
    pub(crate) fn shared(&self) -> Vec<Arc<Shared>> {
        let tables = self.tables.lock();
        let states = tables.iter().map(|table| table.state.lock());
        states.flat_map(|state| state.regions(|_| true).collect::<Vec<_>>()).collect()
    }
}

impl Default for DmaRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DmaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tables.lock().iter().map(|table| DmaWindows(table.clone()))).finish()
    }
}

/// What one device may reach: its regions, and those that wait for the device to be quiet.
///
/// There is one table for each device of a platform; this is a handle to it, and cloning gives another. As seen from
/// the device it is memory at guest addresses: [`readable`](Self::readable) and [`writable`](Self::writable).
///
/// ```
/// use ringfence_memory::{Bytes, DeviceId, Direction, DmaWindows, host::HostPlatform};
///
/// let platform = Box::leak(Box::new(HostPlatform::new()));
/// let windows = DmaWindows::new(platform, DeviceId(0x18));
/// let region = windows.allocate_for(100, Direction::ToDevice)?;
/// region.as_volatile_slice().write_slice(b"to the device", 8)?;
///
/// // The device's side: it was told an address, and reads what is there.
/// let address = windows.publish(region.address(8).unwrap()).unwrap();
/// let mut seen = [0; 13];
/// windows.readable().read_slice(&mut seen, address).unwrap();
/// assert_eq!(&seen, b"to the device");
/// assert!(windows.writable().write_slice(b"no", address).is_err());
///
/// // The device may still use it: until it was reset, the memory is not reused.
/// drop(region);
/// assert_eq!(windows.usage(), (0, 4096));
/// # Ok::<(), ringfence_memory::DmaError>(())
/// ```
#[derive(Clone)]
pub struct DmaWindows(Arc<Table>);

pub(crate) struct Table {
    platform: &'static dyn Platform,
    device: DeviceId,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    /// Whether the device was given an address since the last proof that it is quiet.
    live: bool,
    windows: Vec<Window>,
    /// Regions whose memory was not given back, whether or not their window is still open.
    held: usize,
    quarantine: Vec<DmaMemory>,
    /// Counts openings and closings of windows.
    generation: u64,
    /// Counts resets of the device that were seen.
    resets: u64,
}

struct Window {
    device_address: u64,
    region: Weak<Shared>,
}

impl State {
    fn regions(&self, wanted: impl Fn(Direction) -> bool) -> impl Iterator<Item = Arc<Shared>> {
        let regions = self.windows.iter().filter_map(|window| window.region.upgrade());
        regions.filter(move |region| wanted(region.direction()))
    }
}

impl DmaWindows {
    /// The table of `device`.
    pub fn new(platform: &'static dyn Platform, device: DeviceId) -> Self {
        Self(platform.registry().table(platform, device))
    }

    /// The device that this table is for.
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// A new region of at least `len` bytes (rounded up to pages), zeroed, owned by the caller, that the device may
    /// read and write.
    pub fn allocate(&self, len: usize) -> Result<DmaRegion, DmaError> {
        self.allocate_for(len, Direction::Both)
    }

    /// The same, for one direction only.
    pub fn allocate_for(&self, len: usize, direction: Direction) -> Result<DmaRegion, DmaError> {
        let pages = NonZeroUsize::new(len.div_ceil(PAGE_SIZE)).ok_or(DmaError::BadLength)?;
        let platform = self.0.platform;
        let memory = platform.dma_allocate(self.0.device, pages).map_err(DmaError::Platform)?;
        let shared = Arc::new(Shared::new(memory, self.0.clone(), direction));
        let window = Window { device_address: shared.device_address(), region: Arc::downgrade(&shared) };
        let mut state = self.0.state.lock();
        state.held += 1;
        // Room for everything that is out, so that dropping never allocates.
        let held = state.held;
        let room = held.saturating_sub(state.quarantine.len());
        state.quarantine.reserve(room);
        let at = state.windows.partition_point(|other| other.device_address < window.device_address);
        state.windows.insert(at, window);
        state.generation += 1;
        platform.registry().regions.fetch_add(1, Ordering::Relaxed);
        Ok(DmaRegion(shared))
    }

    /// What the device may read now. A range of this view cannot be written through it.
    pub fn readable(&self) -> DmaSnapshot {
        self.snapshot(Access::ReadOnly)
    }

    /// What the device may write now. A range of this view cannot be read through it.
    pub fn writable(&self) -> DmaSnapshot {
        self.snapshot(Access::WriteOnly)
    }

    /// The windows that the device may use as `access` says, as they are now, with new dirty bitmaps of kind `B`.
    ///
    /// The snapshot holds the regions: their memory stays until it is dropped.
    pub fn snapshot<B: NewBitmap>(&self, access: Access) -> DmaSnapshot<B> {
        let state = self.0.state.lock();
        DmaSnapshot::new(state.regions(|direction| direction.allows(access)), access)
    }

    /// Changes whenever a window is opened or closed: a snapshot of the same generation is still accurate.
    pub fn generation(&self) -> u64 {
        self.0.state.lock().generation
    }

    /// Writes 0 to the device status and waits up to `limit` for it to read 0 (virtio 1.4, 2.4.2 and 4.1.4.3.2).
    /// Then the device holds no buffer, and the quarantine is released.
    pub fn reset_device(&self, status: &dyn DeviceStatus, limit: Duration) -> Result<(), ResetTimeout> {
        let start = self.0.platform.now();
        status.write(0);
        while status.read() != 0 {
            if self.0.platform.now().saturating_sub(start) > limit {
                return Err(ResetTimeout);
            }
            core::hint::spin_loop();
        }
        let quiet = {
            let mut state = self.0.state.lock();
            state.live = false;
            state.resets += 1;
            state.held = state.held.saturating_sub(state.quarantine.len());
            core::mem::take(&mut state.quarantine)
        };
        // Outside the lock: this calls the platform.
        for memory in quiet {
            memory.backing().set_quarantined(false);
        }
        Ok(())
    }

    /// How often the device was seen reset: [`reset_device`](Self::reset_device) succeeded. Tells a proof of a reset
    /// from one of an earlier life of the device.
    pub fn resets(&self) -> u64 {
        self.0.state.lock().resets
    }

    /// The platform's monotonic clock, for time limits.
    pub fn now(&self) -> Duration {
        self.0.platform.now()
    }

    /// Bytes of this device's live regions, and bytes in quarantine.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        let live = state.regions(|_| true).map(|region| region.len()).sum();
        (live, state.quarantine.iter().map(|memory| memory.backing().len()).sum())
    }

    /// Tells a device model an address, as [`MmioRegion::write_dma_addr`](crate::MmioRegion::write_dma_addr) tells a
    /// real device: the ways in which a [`DmaAddr`] becomes a number, from which there is no way back. `None` if it is
    /// another device's.
    ///
    /// From here on what is dropped is quarantined until [`reset_device`](Self::reset_device) succeeds.
    pub fn publish(&self, address: DmaAddr) -> Option<GuestAddress> {
        if address.device != self.0.device {
            return None;
        }
        self.0.state.lock().live = true;
        Some(GuestAddress(address.value))
    }
}

impl fmt::Debug for DmaWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (live, quarantined) = self.usage();
        write!(f, "DmaWindows({:?}, {live} bytes live, {quarantined} quarantined)", self.0.device)
    }
}

impl Table {
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// The region at `device_address` was dropped.
    pub(super) fn close_window(&self, device_address: u64) {
        let mut state = self.state.lock();
        state.windows.retain(|window| window.device_address != device_address);
        state.generation += 1;
        self.platform.registry().regions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Nobody on this side holds the memory any more; the device may.
    pub(super) fn give_back(&self, memory: DmaMemory) {
        let mut state = self.state.lock();
        if state.live {
            memory.backing().set_quarantined(true);
            state.quarantine.push(memory);
        } else {
            state.held -= 1;
            drop(state);
            drop(memory);
        }
    }
}
