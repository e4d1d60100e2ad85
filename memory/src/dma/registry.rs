//! The window tables of a platform, by device.

use alloc::sync::Arc;
use core::fmt;
use core::iter;
use core::sync::atomic::Ordering;

use super::DmaError;
use super::table::{Side, TableClaim, WindowTable};
use crate::lock::{Level, Lock};
use crate::{DeviceId, Direction, Platform};

/// Memory that a device may reach: see [`DmaRegistry::windows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowInfo {
    /// Whose window it is.
    pub device: DeviceId,
    /// What the device calls its first byte.
    pub device_address: u64,
    /// Bytes.
    pub len: usize,
    /// Who writes there.
    pub direction: Direction,
    /// Whether its region lives; if not, it is in quarantine.
    pub is_open: bool,
}

/// All window tables of a platform. The table of a device stays, so that what is in quarantine can still be
/// released by the device's next driver.
pub struct DmaRegistry {
    /// The newest one, which leads to the others.
    newest: Lock<Option<Arc<WindowTable>>>,
}

impl DmaRegistry {
    /// A register of no tables.
    pub const fn new() -> Self {
        Self { newest: Lock::new(Level::Registry, None) }
    }

    /// The table of a device, which nobody else has from here on.
    pub(super) fn claim(
        platform: &'static dyn Platform,
        device: DeviceId,
        side: Side,
    ) -> Result<Arc<TableClaim>, DmaError> {
        // Not under the lock: it allocates.
        let mut new = Arc::new(WindowTable::new(platform, device, side));
        let found = {
            let mut newest = platform.registry().newest.lock();
            let found = all(&newest).find(|table| table.key() == new.key()).cloned();
            found.unwrap_or_else(|| {
                if let Some(new) = Arc::get_mut(&mut new) {
                    new.older = newest.take();
                }
                *newest = Some(new.clone());
                new.clone()
            })
        };
        if found.claimed.swap(true, Ordering::Acquire) {
            Err(DmaError::Claimed)
        } else {
            Ok(Arc::new(TableClaim(found)))
        }
    }

    /// Every window there is, by device and then by rising address: for a picture, as windows may be opened
    /// and closed meanwhile. Takes the lock of a device's table for each.
    pub fn windows(&self) -> impl Iterator<Item = WindowInfo> {
        let (mut key, mut from) = (0, 0);
        iter::from_fn(move || {
            loop {
                let table = self.table_from(key)?;
                if table.key() != key {
                    (key, from) = (table.key(), 0);
                }
                let state = table.state.lock();
                let at = state.windows.partition_point(|window| window.device_address < from);
                if let Some(window) = state.windows.get(at) {
                    from = window.device_address.saturating_add(1);
                    return Some(WindowInfo {
                        device: table.device(),
                        device_address: window.device_address,
                        len: window.len,
                        direction: window.direction,
                        is_open: window.is_open(),
                    });
                }
                (key, from) = (key + 1, 0);
            }
        })
    }

    /// The first table whose [key](WindowTable::key) is at least `key`. Tables stay.
    pub(crate) fn table_from(&self, key: u64) -> Option<Arc<WindowTable>> {
        let newest = self.newest.lock();
        all(&newest).filter(|table| table.key() >= key).min_by_key(|table| table.key()).cloned()
    }
}

/// All tables, the newest first.
fn all(newest: &Option<Arc<WindowTable>>) -> impl Iterator<Item = &Arc<WindowTable>> {
    iter::successors(newest.as_ref(), |table| table.older.as_ref())
}

impl Default for DmaRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DmaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegistry({} devices)", all(&self.newest.lock()).count())
    }
}
