//! Access to bytes by address, as rust-vmm's `vm-memory` names it.

use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::AtomicAccess;

/// A container of bytes that are reached by copies and same-size atomic accesses, never by reference.
///
/// `A` is how a byte is named: an offset, an address in a region, a guest address.
pub trait Bytes<A> {
    /// Why an access was refused.
    type E;

    /// Copies as much of `buf` to `addr` as there is room for, and says how much that was.
    ///
    /// # Errors
    /// If `addr` is not in the container: nothing was written.
    fn write(&self, buf: &[u8], addr: A) -> Result<usize, Self::E>;

    /// Copies as much from `addr` on as there is and fits `buf`, and says how much that was.
    ///
    /// # Errors
    /// If `addr` is not in the container: nothing was read.
    fn read(&self, buf: &mut [u8], addr: A) -> Result<usize, Self::E>;

    /// Copies all of `buf` to `addr`.
    ///
    /// # Errors
    /// If not all of it fits: nothing was written.
    fn write_slice(&self, buf: &[u8], addr: A) -> Result<(), Self::E>;

    /// Fills `buf` from `addr` on.
    ///
    /// # Errors
    /// If there is not as much: nothing was read.
    fn read_slice(&self, buf: &mut [u8], addr: A) -> Result<(), Self::E>;

    /// Copies `val` to `addr`: no alignment needed, not one atomic access.
    fn write_obj<T: IntoBytes + Immutable>(&self, val: T, addr: A) -> Result<(), Self::E> {
        self.write_slice(val.as_bytes(), addr)
    }

    /// Copies a `T` out from `addr` on: no alignment needed, not one atomic access.
    fn read_obj<T: FromBytes + IntoBytes>(&self, addr: A) -> Result<T, Self::E> {
        let mut value = T::new_zeroed();
        self.read_slice(value.as_mut_bytes(), addr)?;
        Ok(value)
    }

    /// One atomic store of a whole `T`; `addr` must be a multiple of its size.
    fn store<T: AtomicAccess>(&self, val: T, addr: A, order: Ordering) -> Result<(), Self::E>;

    /// One atomic load of a whole `T`; `addr` must be a multiple of its size.
    fn load<T: AtomicAccess>(&self, addr: A, order: Ordering) -> Result<T, Self::E>;
}
