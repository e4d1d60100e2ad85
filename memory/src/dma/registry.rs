//! The window tables of a platform, by device.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use super::DmaError;
use super::windows::{DmaWindows, Side, TableClaim, WindowTable, with_room};
use crate::lock::{Level, Lock};
use crate::{DeviceId, Platform};

/// All window tables of a platform. The table of a device stays, so that what is in quarantine can still be
/// released by the device's next driver.
pub struct DmaRegistry {
    /// By device.
    tables: Lock<Vec<Arc<WindowTable>>>,
}

impl DmaRegistry {
    /// A register of no tables.
    pub const fn new() -> Self {
        Self { tables: Lock::new(Level::Registry, Vec::new()) }
    }

    /// The table of a device, which nobody else has from here on.
    pub(super) fn claim(
        platform: &'static dyn Platform,
        device: DeviceId,
        side: Side,
    ) -> Result<DmaWindows, DmaError> {
        let new = Arc::new(WindowTable::new(platform, device, side));
        let found = with_room(
            &platform.registry().tables,
            |tables| tables,
            |tables| match tables.binary_search_by_key(&new.key(), |table| table.key()) {
                Ok(at) => tables[at].clone(),
                Err(at) => {
                    tables.insert(at, new.clone());
                    new.clone()
                }
            },
        )?;
        if found.claimed.swap(true, Ordering::Acquire) {
            Err(DmaError::Claimed)
        } else {
            Ok(DmaWindows(Arc::new(TableClaim(found))))
        }
    }

    /// The first table whose [key](WindowTable::key) is at least `key`. Tables stay.
    pub(crate) fn table_from(&self, key: u64) -> Option<Arc<WindowTable>> {
        let tables = self.tables.lock();
        tables.get(tables.partition_point(|table| table.key() < key)).cloned()
    }
}

impl Default for DmaRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DmaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRegistry({} devices)", self.tables.lock().len())
    }
}
