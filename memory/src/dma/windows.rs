//! The table of what one device may reach, and the register of all such tables.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use super::registry::DmaRegistry;
use super::{DmaAddr, DmaError, DmaSnapshot, DmaWindow, Life, Quiet, ResetError};
use crate::lock::{Guard, Level, Lock};
use crate::platform::wait;
use crate::{
    AtomicU64, DeviceId, Direction, DmaMemory, Platform,
    rust_vmm::{GuestAddress, GuestRegionCollection, NewBitmap},
};

/// What is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// A device on a bus, which knows no memory but by what its registers and descriptors say.
    Bus,
    /// A device model in this program, which reaches memory through snapshots of the table.
    Model,
}

/// What one device may reach: its regions, and those that wait for the device to be quiet.
///
/// There is one table for each device of a platform, and one owner of it: this is a handle, cloning gives
/// another, and while there are handles or regions nobody else gets one. For a model the table is also the
/// model's memory: [`readable`](Self::readable) and [`writable`](Self::writable).
///
/// Any thread may use it. Not for interrupt handlers: calls that look at the table take its spin lock, and
/// dropping the last of it may give memory back to the platform.
///
/// ```
/// use ringfence_memory::{Bytes, DeviceId, Direction, DmaError, DmaWindows, host::HostPlatform};
///
/// let platform = Box::leak(Box::new(HostPlatform::new()));
/// let windows = DmaWindows::for_model(platform, DeviceId(0x18))?;
/// assert_eq!(DmaWindows::for_model(platform, DeviceId(0x18)).unwrap_err(), DmaError::Claimed);
/// let region = windows.allocate_for(100, Direction::ToDevice)?;
/// region.as_volatile_slice().write_slice(b"to the device", 8)?;
///
/// // The device's side: it was told an address, and reads what is there.
/// let address = windows.publish(region.address(8).unwrap())?;
/// let mut seen = [0; 13];
/// windows.readable()?.read_slice(&mut seen, address).unwrap();
/// assert_eq!(&seen, b"to the device");
/// assert!(windows.writable()?.write_slice(b"no", address).is_err());
///
/// // The device may still use it: until it was reset, the memory is not reused.
/// drop(region);
/// assert_eq!(windows.usage(), (0, 4096));
/// windows.reset_model().expect("nobody looks");
/// assert_eq!(windows.usage(), (0, 0));
/// # Ok::<(), DmaError>(())
/// ```
#[derive(Clone)]
pub struct DmaWindows(pub(super) Arc<TableClaim>);

/// What keeps a table from having another owner, shared by handles and regions.
pub(super) struct TableClaim(pub(super) Arc<WindowTable>);

impl Drop for TableClaim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Release);
    }
}

pub(crate) struct WindowTable {
    pub(super) platform: &'static dyn Platform,
    pub(super) device: DeviceId,
    side: Side,
    pub(super) claimed: AtomicBool,
    /// Counts the lives that have ended; changed while `state` is locked.
    life: AtomicU64,
    /// The same, but for [`LEAVING`] once the device was asked to reset.
    present: AtomicU64,
    pub(super) state: Lock<TableState>,
    /// The one of the registry that was made before it.
    pub(super) older: Option<Arc<WindowTable>>,
}

/// No life.
const LEAVING: u64 = u64::MAX;

pub(super) struct TableState {
    /// Whether the device may have been told of memory in this life.
    told: bool,
    /// By rising address.
    pub(super) windows: Vec<Window>,
    /// Live regions, counted where they are made and dropped.
    pub(super) regions: usize,
    /// Bytes of open windows.
    pub(super) open: usize,
    /// How many others there are, and their bytes.
    closed: usize,
    quarantined: usize,
    /// Counts openings and closings of windows.
    pub(super) generation: u64,
    /// Shared with every snapshot for a model.
    snapshots: Arc<()>,
}

/// Memory that a device may reach, or may still access.
pub(crate) struct Window {
    pub(super) memory: Arc<DmaMemory>,
    pub(super) direction: Direction,
    /// The life in which the region was dropped, after the device may have been told of it: in quarantine.
    pub(super) closed: Option<u64>,
}

impl Window {
    fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Whether its region is gone without having closed it.
    pub(crate) fn is_dead(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }
}

impl Deref for Window {
    type Target = DmaMemory;

    fn deref(&self) -> &DmaMemory {
        &self.memory
    }
}

impl DmaWindows {
    /// Claims the table of `device`, which is on a bus.
    ///
    /// # Errors
    /// [`DmaError::Claimed`] while somebody else has handles or regions of it.
    pub fn new(platform: &'static dyn Platform, device: DeviceId) -> Result<Self, DmaError> {
        DmaRegistry::claim(platform, device, Side::Bus)
    }

    /// Claims a table for a device model in this program, which goes by `device` among models: it is no
    /// device's on a bus, whatever the number, and no register will take its addresses.
    ///
    /// # Errors
    /// [`DmaError::Claimed`] while somebody else has handles or regions of it.
    pub fn for_model(platform: &'static dyn Platform, device: DeviceId) -> Result<Self, DmaError> {
        DmaRegistry::claim(platform, device, Side::Model)
    }

    /// The device that this table is for.
    pub fn device(&self) -> DeviceId {
        self.table().device
    }

    pub(crate) fn side(&self) -> Side {
        self.table().side
    }

    /// The life that the device is in.
    pub fn life(&self) -> Life {
        Life { table: self.table().clone(), number: self.table().life() }
    }

    /// What the device may read now. Nothing can be written through it.
    pub fn readable(&self) -> Result<DmaSnapshot, DmaError> {
        self.snapshot(Direction::ToDevice)
    }

    /// What the device may write now. Nothing can be read through it.
    pub fn writable(&self) -> Result<DmaSnapshot, DmaError> {
        self.snapshot(Direction::FromDevice)
    }

    /// The windows that the device may use in this direction, as they are now, with new dirty bitmaps of kind
    /// `B`. The memory can be reached through it if the device is a [model](Self::for_model); of a device on
    /// a bus it only tells the addresses, for an IOMMU.
    ///
    /// The snapshot holds the regions: their memory stays until it is dropped.
    ///
    /// # Errors
    /// [`DmaError::Platform`] if there is no memory for the list.
    pub fn snapshot<B: NewBitmap>(&self, direction: Direction) -> Result<DmaSnapshot<B>, DmaError> {
        let mut regions = Vec::new();
        let token = loop {
            let state = self.table().state.lock();
            if regions.capacity() < state.windows.len() {
                let wanted = state.windows.len();
                drop(state);
                regions = super::list(wanted)?;
                continue;
            }
            let shown = |window: &&Window| window.is_open() && window.direction.allows(direction);
            regions.extend(state.windows.iter().filter(shown).map(|window| window.memory.clone()));
            break state.snapshots.clone();
        };
        let token = (self.table().side == Side::Model).then_some(token);
        let mut windows = super::list(regions.len())?;
        windows.extend(regions.into_iter().map(|region| DmaWindow::new(region, direction, token.clone())));
        Ok(GuestRegionCollection { regions: windows })
    }

    /// Changes whenever a window is opened or closed: a snapshot of the same generation is still accurate.
    pub fn generation(&self) -> u64 {
        self.table().state.lock().generation
    }

    /// Ends the life of a device model: it must have forgotten what it was told. The proof is that nobody
    /// holds a snapshot of its memory, so that nothing can reach what it was given.
    ///
    /// # Errors
    /// [`ResetError::Timeout`] while a snapshot of some memory exists, [`ResetError::WrongDevice`] if the
    /// device is on a bus.
    pub fn reset_model(&self) -> Result<Quiet, ResetError> {
        let table = self.table();
        if table.side != Side::Model {
            return Err(ResetError::WrongDevice);
        }
        let state = table.state.lock();
        if Arc::strong_count(&state.snapshots) > 1 {
            return Err(ResetError::Timeout);
        }
        Ok(table.end_life(state))
    }

    /// The platform's monotonic clock, for time limits.
    pub fn now(&self) -> Duration {
        self.table().platform.now()
    }

    /// Asks `poll` until it has an answer, or until `limit` has passed by the platform's clock; at least
    /// once. A single stop of the machine counts as half of `limit`. For what is waited for seldom, and not
    /// in interrupt handlers.
    pub fn wait<T>(&self, limit: Duration, poll: impl FnMut() -> Option<T>) -> Option<T> {
        wait(|| self.now(), limit, poll)
    }

    /// Bytes of this device's open windows, and bytes in quarantine.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.table().state.lock();
        (state.open, state.quarantined)
    }

    /// Tells a device model an address, as [`CommonConfig::set_queue`](crate::CommonConfig::set_queue) tells
    /// a device its queues: the way in which a [`DmaAddr`] becomes a number, from which there is no way back.
    ///
    /// From here on what is dropped is quarantined until the device's life has ended.
    ///
    /// # Errors
    /// [`DmaError::WrongDevice`] if it is another device's or this one is not a model,
    /// [`DmaError::WrongLife`].
    pub fn publish(&self, address: DmaAddr<'_>) -> Result<GuestAddress, DmaError> {
        if self.table().side != Side::Model {
            return Err(DmaError::WrongDevice);
        }
        self.tell([address], |[address]| GuestAddress(address))
    }

    /// Calls `write`, which tells the device these addresses, if they are its own and of this life; books it
    /// before.
    pub(crate) fn tell<const N: usize, R>(
        &self,
        addresses: [DmaAddr<'_>; N],
        write: impl FnOnce([u64; N]) -> R,
    ) -> Result<R, DmaError> {
        let table = self.table();
        if addresses.iter().any(|address| !Arc::ptr_eq(address.region.table(), table)) {
            return Err(DmaError::WrongDevice);
        }
        let mut state = table.state.lock();
        if addresses.iter().any(|address| address.life != table.life()) {
            return Err(DmaError::WrongLife);
        }
        state.told = true;
        Ok(write(addresses.map(|address| address.value)))
    }

    /// Ends the device's life if it is still `life`, and if `is_quiet`, which is asked while nobody can tell
    /// the device anything.
    pub(crate) fn end_life_if(
        &self,
        life: &Life,
        is_quiet: impl FnOnce() -> bool,
    ) -> Result<Quiet, ResetError> {
        let state = self.table().state.lock();
        if self.table().life() == life.number && is_quiet() {
            Ok(self.table().end_life(state))
        } else {
            Err(ResetError::Timeout)
        }
    }

    /// The device was asked to reset in `life`, which goes on until that is proved.
    pub(crate) fn leave(&self, life: &Life) {
        // If it has ended meanwhile there is another.
        let _ =
            self.table().present.compare_exchange(life.number, LEAVING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether these are the windows of `device` on a bus, by this registry.
    pub(crate) fn are_of(&self, device: DeviceId, registry: &DmaRegistry) -> bool {
        let table = self.table();
        let same = core::ptr::eq(table.platform.registry(), registry);
        same && table.side == Side::Bus && table.device == device
    }

    pub(super) fn table(&self) -> &Arc<WindowTable> {
        &self.0.0
    }
}

impl fmt::Debug for DmaWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, quarantined) = self.usage();
        write!(f, "DmaWindows({:?}, {open} bytes open, {quarantined} quarantined)", self.device())
    }
}

impl WindowTable {
    /// Opens a window, if there is none to any of its addresses. Never allocates while the lock is held.
    pub(super) fn open(&self, window: Window) -> Result<(), DmaError> {
        let mut larger = Vec::new();
        loop {
            let mut state = self.state.lock();
            let len = state.windows.len();
            if len == state.windows.capacity() {
                if larger.capacity() <= len {
                    drop(state);
                    larger = super::list((2 * len).max(8))?;
                    continue;
                }
                larger.append(&mut state.windows);
                core::mem::swap(&mut state.windows, &mut larger);
            }
            return state.insert(window);
        }
    }

    pub(super) fn new(platform: &'static dyn Platform, device: DeviceId, side: Side) -> Self {
        let state = TableState {
            told: false,
            windows: Vec::new(),
            regions: 0,
            open: 0,
            closed: 0,
            quarantined: 0,
            generation: 0,
            snapshots: Arc::new(()),
        };
        let (claimed, state) = (AtomicBool::new(false), Lock::new(Level::Windows, state));
        let (life, present) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { platform, device, side, claimed, life, present, state, older: None }
    }

    pub(crate) fn device(&self) -> DeviceId {
        self.device
    }

    #[inline]
    pub(super) fn life(&self) -> u64 {
        self.life.load(Ordering::Relaxed)
    }

    /// Whether that life goes on, and the device was not asked to reset.
    #[inline]
    pub(super) fn is_present(&self, life: u64) -> bool {
        self.present.load(Ordering::Relaxed) == life
    }

    /// The device may be told, from here on, of memory that it is not told of by [`DmaWindows::tell`]: there
    /// is a descriptor table. Says in which life.
    pub(super) fn open_descriptors(&self) -> u64 {
        let mut state = self.state.lock();
        state.told = true;
        self.life()
    }

    /// The region at `device_address` is dropped: nobody on this side holds its memory any more but
    /// snapshots; the device may. The memory itself is not dropped here, where that would call the platform
    /// under a lock: the region still has it.
    pub(super) fn close_window(&self, device_address: u64) {
        let state = &mut *self.state.lock();
        state.regions -= 1;
        let place = state.windows.binary_search_by_key(&device_address, |window| window.device_address);
        let Ok(at) = place else { return };
        let window = &mut state.windows[at];
        state.open -= window.len;
        state.generation += 1;
        if state.told {
            window.memory.book(true);
            state.closed += 1;
            state.quarantined += window.len;
            window.closed = Some(self.life());
        } else {
            state.windows.remove(at);
        }
    }

    /// Its place in the registry.
    pub(crate) fn key(&self) -> u64 {
        self.device.0 << 1 | self.side as u64
    }

    /// Shows the windows from `device_address` on until `see` wants no more, and says how many regions and
    /// how many windows there are. None is opened or closed meanwhile.
    pub(crate) fn look(&self, device_address: u64, see: impl FnMut(&Window) -> bool) -> (usize, usize) {
        let state = self.state.lock();
        let first = state.windows.partition_point(|window| window.device_address < device_address);
        let _all = state.windows[first..].iter().filter(|window| window.is_open()).all(see);
        (state.regions, state.windows.len() - state.closed)
    }

    /// The device holds nothing any more that it was told of.
    fn end_life(self: &Arc<Self>, mut state: Guard<'_, TableState>) -> Quiet {
        let ended = Life { table: self.clone(), number: self.life.fetch_add(1, Ordering::Relaxed) };
        self.present.store(self.life(), Ordering::Relaxed);
        state.told = false;
        drop(state);
        // Each is dropped outside the lock: this calls the platform.
        while let Some(memory) = self.take_quarantined(ended.number) {
            memory.book(false);
        }
        Quiet { ended }
    }

    /// Some memory that was put in quarantine in this life or before.
    fn take_quarantined(&self, ended: u64) -> Option<Arc<DmaMemory>> {
        let mut state = self.state.lock();
        let at = state.windows.iter().rposition(|window| window.closed.is_some_and(|life| life <= ended))?;
        let window = state.windows.remove(at);
        state.closed -= 1;
        state.quarantined -= window.len;
        Some(window.memory)
    }
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
