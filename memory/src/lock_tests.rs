//! The order of locks.

use super::order::{interrupt, locks_held};
use super::*;

#[test]
fn locks_are_taken_in_their_order() {
    let (windows, frames) = (Lock::new(Level::Windows, 1), Lock::new(Level::Frames, 2));
    let sum = *windows.lock() + *frames.lock();
    assert_eq!(sum, 3);
    let first = windows.lock();
    assert!(locks_held());
    drop(frames.lock());
    drop(first);
    assert!(!locks_held());
}

#[test]
#[should_panic = "the lock Windows is taken after"]
fn the_wrong_order_panics() {
    let (windows, frames) = (Lock::new(Level::Windows, ()), Lock::new(Level::Frames, ()));
    let _later = frames.lock();
    let _earlier = windows.lock();
}

#[test]
#[should_panic = "the lock Frames is taken after"]
fn a_lock_is_not_taken_twice() {
    let (one, other) = (Lock::new(Level::Frames, ()), Lock::new(Level::Frames, ()));
    let _one = one.lock();
    let _other = other.lock();
}

#[test]
#[should_panic = "an interrupt handler takes the lock Pages"]
fn a_handler_takes_no_lock() {
    let lock = Lock::new(Level::Pages, ());
    interrupt(|| drop(lock.lock()));
}
