//! Counters of 64 bits, which must not wrap, on every CPU.

/// An atomic `u64`: that of `core` where the CPU has such.
///
/// Elsewhere (RISC-V and Arm of 32 bits) `portable-atomic` stands in with a lock. Then a kernel whose
/// interrupt handlers take buffers from a pool or look at tables turns on its feature `critical-section`.
/// Nothing that a device can reach is one of these.
#[cfg(target_has_atomic = "64")]
pub type AtomicU64 = core::sync::atomic::AtomicU64;
/// An atomic `u64`: the CPU has none, so that it is one with a lock. A kernel whose interrupt handlers take
/// buffers from a pool or look at tables turns on the feature `critical-section` of `portable-atomic`.
/// Nothing that a device can reach is one of these.
#[cfg(not(target_has_atomic = "64"))]
pub type AtomicU64 = portable_atomic::AtomicU64;
