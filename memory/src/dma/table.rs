//! The books of what one device may reach.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{DmaError, Life, Quiet};
use crate::lock::{Guard, Level, Lock};
use crate::{AtomicU64, DeviceId, Direction, DmaMemory, Platform};

/// What is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// A device on a bus, which knows no memory but by what its registers and descriptors say.
    Bus,
    /// A device model in this program, which reaches memory through snapshots of the table.
    Model,
}

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
    pub(super) side: Side,
    pub(super) claimed: AtomicBool,
    /// Counts the lives that have ended; changed while `state` is locked.
    life: AtomicU64,
    /// The same, but for [`LEAVING`] once the device was asked to reset.
    pub(super) present: AtomicU64,
    pub(super) state: Lock<TableState>,
    /// The one of the registry that was made before it.
    pub(super) older: Option<Arc<WindowTable>>,
}

/// No life.
pub(super) const LEAVING: u64 = u64::MAX;

pub(super) struct TableState {
    /// Whether the device may have been told of memory in this life.
    pub(super) told: bool,
    /// By rising address.
    pub(super) windows: Vec<Window>,
    /// Live regions, counted where they are made and dropped.
    pub(super) regions: usize,
    /// Bytes of open windows.
    pub(super) open: usize,
    /// How many others there are, and their bytes.
    closed: usize,
    pub(super) quarantined: usize,
    /// Counts openings and closings of windows.
    pub(super) generation: u64,
    /// Shared with every snapshot for a model.
    pub(super) snapshots: Arc<()>,
}

/// Memory that a device may reach, or may still access.
pub(crate) struct Window {
    pub(super) memory: Arc<DmaMemory>,
    pub(super) direction: Direction,
    /// The life in which the region was dropped, after the device may have been told of it: in quarantine.
    pub(super) closed: Option<u64>,
}

impl Window {
    pub(super) fn is_open(&self) -> bool {
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
    pub(super) fn end_life(self: &Arc<Self>, mut state: Guard<'_, TableState>) -> Quiet {
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
