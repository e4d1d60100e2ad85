//! The locks of this crate, and the order in which they are taken.
//!
//! Three rules, all of them checked on the host, where breaking one panics:
//! - a lock is taken only by who holds none of the same or a later [`Level`];
//! - nothing is allocated on the heap and no foreign code runs while a lock is held: a heap that must grow
//!   takes [`Level::Mapper`] and what follows it (checked by the tests' allocator, through
//!   [`host::locks_held`](crate::host::locks_held));
//! - an interrupt handler takes none: what it interrupted may hold it
//!   ([`host::interrupt`](crate::host::interrupt)).
//!
//! No lock disables interrupts. What takes none, and so may be called from a handler: everything on slices,
//! arrays, buffers in hand, registers and messages.

use core::fmt;
use core::ops::{Deref, DerefMut};

/// The locks, in the order in which they may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The window tables of a platform: which there are.
    Registry,
    /// One device's windows and life.
    Windows,
    /// The registers of one device that go together: a selector and what it selects.
    Registers,
    /// Configuration space: read-modify-write, and what must not see decoding off.
    Config,
    /// What device registers are offered and claimed.
    Claims,
    /// The page tables.
    Mapper,
    /// Free frames and the books.
    Frames,
    /// Free pages.
    Pages,
}

/// A spin lock with its place in the order.
pub(crate) struct Lock<T> {
    level: Level,
    inner: spin::Mutex<T>,
}

impl<T> Lock<T> {
    pub const fn new(level: Level, value: T) -> Self {
        Self { level, inner: spin::Mutex::new(value) }
    }

    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        order::take(self.level);
        Guard { level: self.level, inner: self.inner.lock() }
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({:?})", self.level)
    }
}

/// Holds a [`Lock`].
pub(crate) struct Guard<'a, T> {
    level: Level,
    inner: spin::MutexGuard<'a, T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        order::give(self.level);
    }
}

#[cfg(not(any(test, feature = "host")))]
mod order {
    pub(super) const fn take(_: super::Level) {}
    pub(super) const fn give(_: super::Level) {}
}

/// What each thread holds.
#[cfg(any(test, feature = "host"))]
pub(crate) mod order {
    use super::Level;
    use core::cell::Cell;
    use std::thread_local;

    thread_local! {
        /// One bit for each level.
        static HELD: Cell<u32> = const { Cell::new(0) };
        static IN_INTERRUPT: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn take(level: Level) {
        assert!(!IN_INTERRUPT.get(), "an interrupt handler takes the lock {level:?}");
        let (held, bit) = (HELD.get(), 1 << level as u32);
        assert!(held < bit, "the lock {level:?} is taken after locks {held:#b}");
        HELD.set(held | bit);
    }

    pub(super) fn give(level: Level) {
        HELD.set(HELD.get() & !(1 << level as u32));
    }

    /// Whether this thread holds a lock of this crate: then nothing may be allocated. For the allocators of
    /// tests.
    pub fn locks_held() -> bool {
        HELD.get() != 0
    }

    /// Runs `handler` as if it were an interrupt handler: it panics if it takes a lock of this crate.
    pub fn interrupt<R>(handler: impl FnOnce() -> R) -> R {
        struct Return;
        impl Drop for Return {
            fn drop(&mut self) {
                IN_INTERRUPT.set(false);
            }
        }
        IN_INTERRUPT.set(true);
        let _return = Return;
        handler()
    }
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
