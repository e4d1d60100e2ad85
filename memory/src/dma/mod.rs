//! Memory shared with one device: regions, pools of equal buffers, and the table of what the device may reach.
//!
//! Who owns what: a driver holds one [`DmaWindows`] per device; each [`DmaRegion`] cut from it is a contiguous run
//! of zeroed bytes with a device address; a [`DmaPool`] takes a region and lends its slots as [`DmaBuf`]s, by
//! value. A buffer moves into a queue and comes back with its completion, so no lifetime can be got wrong, and
//! `mem::forget` only shrinks the capacity.
//!
//! A region that is dropped while its device may still write is *quarantined*: it goes back to the platform only
//! after [`DmaWindows::reset_device`] has seen the device's status read 0. If that never happens it is leaked.

mod array;
mod pool;
mod region;
mod snapshot;
mod windows;

use core::fmt;

pub use array::{DescriptorArray, DmaArray};
pub use pool::{DmaBuf, DmaPool};
pub use region::DmaRegion;
pub(crate) use region::Shared;
pub use snapshot::{DmaSnapshot, DmaWindow};
pub use windows::{DmaRegistry, DmaWindows};

use crate::{Access, DeviceId, PlatformError, Register, VolatileError};

/// Why a DMA call was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The platform has no memory for it.
    Platform(PlatformError),
    /// A length of zero, or one that overflows when rounded up.
    BadLength,
    /// The address belongs to another device.
    WrongDevice,
    /// The access does not fit the memory.
    Access(VolatileError),
}

impl From<VolatileError> for DmaError {
    fn from(error: VolatileError) -> Self {
        Self::Access(error)
    }
}

/// An address as one device uses it. Only the owners of DMA memory mint it, there is no way to build one from an
/// integer or to read the integer out, and it is accepted only in memory and registers of the same device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DmaAddr {
    value: u64,
    device: DeviceId,
}

impl fmt::Debug for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d:{:#x}", self.value)
    }
}

/// Which way bytes go between the driver and its device. The CPU's side may always read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
    /// The device does both.
    Both,
}

impl Direction {
    /// Whether the device may do this; `ReadWrite` asks for both.
    pub fn allows(self, access: Access) -> bool {
        match self {
            Self::ToDevice => access == Access::ReadOnly,
            Self::FromDevice => access == Access::WriteOnly,
            Self::Both => true,
        }
    }
}

/// The device status did not read 0 in time: the device may still use its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetTimeout;

/// The device status field, through which a device is reset.
///
/// # Safety
/// When `read` returns 0 after `write(0)`, the device must have stopped: it accesses no memory it was told of
/// before. A [`Register<u8>`] is one if it is the `device_status` of a virtio device (virtio 1.4, 2.4.2).
pub unsafe trait DeviceStatus {
    /// The status byte.
    fn read(&self) -> u8;
    /// Sets the status byte; 0 asks for a reset.
    fn write(&self, value: u8);
}

// SAFETY: whoever names a register the device status vouches for it; `drivers` does so in one place, from the
// common configuration that the device's own capability points to.
unsafe impl DeviceStatus for Register<u8> {
    fn read(&self) -> u8 {
        Register::read(self)
    }

    fn write(&self, value: u8) {
        Register::write(self, value)
    }
}
