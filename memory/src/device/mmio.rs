//! Device registers: a claimed range, and typed registers in it that are read and written exactly once per call.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::{AtomicAccess, Backing, DmaAddr, DmaWindows, PhysAddr, Platform, PlatformError};

/// Why a register was refused. Nothing was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioError {
    /// The register does not lie in the region.
    OutOfBounds,
    /// The offset is not a multiple of the register's size.
    Misaligned,
    /// The address belongs to another device.
    WrongDevice,
}

/// A range of device registers that this value, and the parts cut from it, own together.
///
/// The range is released when the region, its parts and its registers are all gone.
#[derive(Clone)]
pub struct MmioRegion {
    claim: Arc<Box<dyn Backing>>,
    offset: usize,
    len: usize,
}

impl MmioRegion {
    /// Claims and maps `start..start + len` from the platform.
    pub fn map(platform: &dyn Platform, start: PhysAddr, len: usize) -> Result<Self, PlatformError> {
        let claim = platform.mmio_map(start, len)?;
        if claim.len() < len {
            Err(PlatformError::BadRange)
        } else {
            Ok(Self { claim: Arc::new(claim), offset: 0, len })
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes that start at `offset`, sharing this region's claim.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, MmioError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok(Self { claim: self.claim.clone(), offset: self.offset + offset, len })
            }
            _ => Err(MmioError::OutOfBounds),
        }
    }

    /// The register of type `T` at `offset`, checked once so that its use cannot fail.
    pub fn register<T: AtomicAccess>(&self, offset: usize) -> Result<Register<T>, MmioError> {
        let part = self.part(offset, size_of::<T>())?;
        // SAFETY: `part` lies in the claim, so its offset is within the backing's bytes.
        let at = unsafe { self.claim.pointer().add(part.offset) }.cast::<T>();
        if at.is_aligned() { Ok(Register { at, claim: part.claim }) } else { Err(MmioError::Misaligned) }
    }

    /// Reads the register of type `T` at `offset`.
    pub fn read<T: AtomicAccess>(&self, offset: usize) -> Result<T, MmioError> {
        Ok(self.register(offset)?.read())
    }

    /// Writes the register of type `T` at `offset`.
    pub fn write<T: AtomicAccess>(&self, offset: usize, value: T) -> Result<(), MmioError> {
        self.register(offset)?.write(value);
        Ok(())
    }

    /// Writes a device address to a 64-bit register as two 32-bit halves, low half first (virtio 1.4, 4.1.3.1).
    ///
    /// From here on the device of `windows` may access its memory: what is dropped is quarantined until
    /// [`DmaWindows::reset_device`] succeeds.
    pub fn write_dma_addr(
        &self,
        offset: usize,
        windows: &DmaWindows,
        address: DmaAddr,
    ) -> Result<(), MmioError> {
        let high = offset.checked_add(4).ok_or(MmioError::OutOfBounds)?;
        let (low, high) = (self.register::<u32>(offset)?, self.register::<u32>(high)?);
        let value = windows.publish(address).ok_or(MmioError::WrongDevice)?.raw_value();
        low.write(value as u32);
        high.write((value >> 32) as u32);
        Ok(())
    }
}

impl fmt::Debug for MmioRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MmioRegion({:?}, {} bytes)",
            self.claim.pointer().as_ptr().wrapping_add(self.offset),
            self.len
        )
    }
}

/// One device register; keeps its claim alive.
pub struct Register<T> {
    at: NonNull<T>,
    claim: Arc<Box<dyn Backing>>,
}

// SAFETY: device registers may be accessed from any CPU; each access is one volatile instruction.
unsafe impl<T: AtomicAccess> Send for Register<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: AtomicAccess> Sync for Register<T> {}

impl<T: AtomicAccess> Register<T> {
    /// One volatile read. Reading may change device state.
    pub fn read(&self) -> T {
        // SAFETY: in bounds and aligned since `MmioRegion::register`; `claim` keeps it mapped.
        unsafe { ptr::read_volatile(self.at.as_ptr()) }
    }

    /// One volatile write.
    pub fn write(&self, value: T) {
        // SAFETY: as in `read`.
        unsafe { ptr::write_volatile(self.at.as_ptr(), value) }
    }
}

impl<T> Clone for Register<T> {
    fn clone(&self) -> Self {
        Self { at: self.at, claim: self.claim.clone() }
    }
}

impl<T> fmt::Debug for Register<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({:?})", self.at)
    }
}
