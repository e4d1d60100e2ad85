//! For tests of ring protocols: shared memory that somebody else keeps. Only with `--cfg ringfence_loom`.
//!
//! The tests' helpers have one over loom's atomics, so that this crate has no dependency on loom.

use core::sync::atomic::Ordering;

/// What keeps some bytes of shared memory in place of the memory itself. Each access says whether it was
/// one of those bytes: if not, it goes to the memory.
pub trait Shadow: Sync {
    /// Loads an integer.
    fn load(&self, at: *const u8, to: &mut [u8], order: Ordering) -> bool;
    /// Stores an integer.
    fn store(&self, at: *mut u8, from: &[u8], order: Ordering) -> bool;
    /// Copies from shared memory.
    fn read(&self, at: *const u8, to: &mut [u8]) -> bool;
    /// Copies to shared memory.
    fn write(&self, at: *mut u8, from: &[u8]) -> bool;
    /// A fence between such accesses.
    fn fence(&self, order: Ordering) -> bool;
}

static SHADOW: spin::Once<&'static dyn Shadow> = spin::Once::new();

/// All accesses are shown to `shadow` from now on; only the first one counts.
pub fn install(shadow: &'static dyn Shadow) {
    SHADOW.call_once(|| shadow);
}

pub(crate) fn ask(access: impl FnOnce(&dyn Shadow) -> bool) -> bool {
    SHADOW.get().is_some_and(|shadow| access(*shadow))
}
