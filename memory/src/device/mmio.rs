//! Device registers: a claimed range, and typed registers in it that are read and written exactly once per
//! call. They are little-endian (virtio 1.4, 4.1.3 and 4.2.2; PCI 3.0, 6.1), values are as the CPU has them.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
#[cfg(ringfence_tsan)]
use core::sync::atomic::Ordering;

use crate::{AtomicAccess, DeviceId, MmioMemory, PhysAddr, Platform, PlatformError};

/// Why a register was refused. Nothing was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioError {
    /// The register does not lie in the region.
    OutOfBounds,
    /// The offset is not a multiple of the register's size.
    Misaligned,
}

crate::error::messages! { MmioError {
    OutOfBounds => "beyond the end of the registers",
    Misaligned => "not aligned",
} }

/// A range of device registers that this value, and the parts cut from it, own together.
///
/// Registers can be read. Writing needs `unsafe`, since what is written may be an address: the registers of
/// virtio devices have types of their own ([`VirtioPci`](crate::VirtioPci)). The range is released when the
/// region, its parts and its registers are all gone. Nothing here takes a lock: interrupt handlers may use
/// it.
#[derive(Clone)]
pub struct MmioRegion {
    claim: Arc<MmioMemory>,
    /// In the claim.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: device registers may be accessed from any CPU; each access is one volatile instruction.
unsafe impl Send for MmioRegion {}
// SAFETY: as for `Send`.
unsafe impl Sync for MmioRegion {}

impl MmioRegion {
    /// Claims and maps `start..start + len` from the platform: registers of `device`, or of no device with a
    /// name.
    pub fn map(
        platform: &dyn Platform,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<Self, PlatformError> {
        let claim = platform.mmio_map(device, start, len)?;
        if claim.len < len {
            Err(PlatformError::BadRange)
        } else {
            Ok(Self { start: claim.start, claim: Arc::new(claim), len })
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

    /// Whether something else shares this region's claim.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.claim) > 1
    }

    /// The `len` bytes that start at `offset`, sharing this region's claim.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, MmioError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len);
        end.ok_or(MmioError::OutOfBounds)?;
        // SAFETY: `offset` is at most the region's length.
        let start = unsafe { self.start.add(offset) };
        Ok(Self { claim: self.claim.clone(), start, len })
    }

    /// The register of type `T` at `offset`, checked once so that its use cannot fail.
    pub fn register<T: AtomicAccess>(&self, offset: usize) -> Result<Register<T>, MmioError> {
        Ok(Register { at: self.at(offset)?, _claim: self.claim.clone() })
    }

    /// Reads the register of type `T` at `offset`: one volatile read, which may change device state.
    #[inline]
    pub fn read<T: AtomicAccess>(&self, offset: usize) -> Result<T, MmioError> {
        let at = self.at::<T>(offset)?;
        // SAFETY: in bounds, aligned, and mapped as long as `claim` is.
        Ok(unsafe { read(at) })
    }

    /// Writes the register of type `T` at `offset`: one volatile write.
    ///
    /// # Safety
    /// The caller answers for what the device does: `value` must not lead it to memory that somebody else
    /// owns.
    #[inline]
    pub unsafe fn write<T: AtomicAccess>(&self, offset: usize, value: T) -> Result<(), MmioError> {
        let at = self.at::<T>(offset)?;
        // SAFETY: as in `read`; the caller answers for the rest.
        unsafe { write(at, value) };
        Ok(())
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> Result<NonNull<T>, MmioError> {
        let end = offset.checked_add(size_of::<T>()).filter(|&end| end <= self.len);
        end.ok_or(MmioError::OutOfBounds)?;
        // SAFETY: in the region by the line above.
        let at = unsafe { self.start.add(offset) }.cast::<T>();
        if at.is_aligned() { Ok(at) } else { Err(MmioError::Misaligned) }
    }
}

/// # Safety
/// `at` must be valid for reads, and aligned.
#[inline]
unsafe fn read<T: AtomicAccess>(at: NonNull<T>) -> T {
    // In tests a thread plays the device, and registers are memory: ThreadSanitizer would take a volatile
    // access for a plain one.
    #[cfg(ringfence_tsan)]
    // SAFETY: this function's contract.
    return unsafe { T::load(at, Ordering::Relaxed) }.le();
    #[cfg(not(ringfence_tsan))]
    // SAFETY: this function's contract.
    unsafe { at.read_volatile() }.le()
}

/// # Safety
/// `at` must be valid for writes, and aligned.
#[inline]
unsafe fn write<T: AtomicAccess>(at: NonNull<T>, value: T) {
    #[cfg(ringfence_tsan)]
    // SAFETY: this function's contract.
    return unsafe { T::store(at, value.le(), Ordering::Relaxed) };
    #[cfg(not(ringfence_tsan))]
    // SAFETY: this function's contract.
    unsafe {
        at.write_volatile(value.le())
    }
}

impl fmt::Debug for MmioRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmioRegion({:?}, {} bytes)", self.start, self.len)
    }
}

/// One device register; keeps its claim alive.
#[derive(Clone)]
pub struct Register<T> {
    at: NonNull<T>,
    _claim: Arc<MmioMemory>,
}

// SAFETY: device registers may be accessed from any CPU; each access is one volatile instruction.
unsafe impl<T: AtomicAccess> Send for Register<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: AtomicAccess> Sync for Register<T> {}

impl<T: AtomicAccess> Register<T> {
    /// One volatile read. Reading may change device state.
    #[inline]
    pub fn read(&self) -> T {
        // SAFETY: in bounds and aligned since `MmioRegion::register`; `_claim` keeps it mapped.
        unsafe { read(self.at) }
    }

    /// One volatile write.
    ///
    /// # Safety
    /// As for [`MmioRegion::write`].
    #[inline]
    pub unsafe fn write(&self, value: T) {
        // SAFETY: as in `read`; the caller answers for the rest.
        unsafe { write(self.at, value) }
    }
}

impl<T> fmt::Debug for Register<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({:?})", self.at)
    }
}
