//! What one device may reach, as a driver and a model see it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;

use super::registry::DmaRegistry;
use super::table::{LEAVING, Side, TableClaim, Window, WindowTable};
use super::{DmaAddr, DmaError, DmaSnapshot, DmaWindow, Life, Quiet, ResetError};
use crate::platform::wait;
use crate::{
    DeviceId, Direction, Platform,
    rust_vmm::{GuestAddress, GuestRegionCollection, NewBitmap},
};

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

impl DmaWindows {
    /// Claims the table of `device`, which is on a bus.
    ///
    /// # Errors
    /// [`DmaError::Claimed`] while somebody else has handles or regions of it.
    pub fn new(platform: &'static dyn Platform, device: DeviceId) -> Result<Self, DmaError> {
        DmaRegistry::claim(platform, device, Side::Bus).map(Self)
    }

    /// Claims a table for a device model in this program, which goes by `device` among models: it is no
    /// device's on a bus, whatever the number, and no register will take its addresses.
    ///
    /// # Errors
    /// [`DmaError::Claimed`] while somebody else has handles or regions of it.
    pub fn for_model(platform: &'static dyn Platform, device: DeviceId) -> Result<Self, DmaError> {
        DmaRegistry::claim(platform, device, Side::Model).map(Self)
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

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
