//! Tasks that wait for the same thing.

use alloc::collections::VecDeque;
use core::task::Waker;

use crate::text::NoMemory;

/// Tasks to wake, each once, in the order in which they came.
#[derive(Debug, Default)]
pub struct Wakers(VecDeque<Waker>);

impl Wakers {
    /// Nobody, with room for so many.
    pub fn with_capacity(count: usize) -> Self {
        Self(VecDeque::with_capacity(count))
    }

    /// Adds a task, unless it is there.
    ///
    /// # Errors
    /// That there is no memory.
    pub fn try_add(&mut self, waker: &Waker) -> Result<(), NoMemory> {
        if !self.0.iter().any(|other| other.will_wake(waker)) {
            self.0.try_reserve(1).map_err(|_| NoMemory)?;
            self.0.push_back(waker.clone());
        }
        Ok(())
    }

    /// Adds a task, unless it is there. Without memory for it, it is woken at once, and looks again in its
    /// next turn.
    pub fn add(&mut self, waker: &Waker) {
        if self.try_add(waker).is_err() {
            waker.wake_by_ref();
        }
    }

    /// Wakes the first `count`, or all if there are not so many.
    pub fn wake(&mut self, count: usize) {
        let count = count.min(self.0.len());
        self.0.drain(..count).for_each(Waker::wake);
    }

    /// Wakes the first. Returns whether there is one.
    pub fn wake_one(&mut self) -> bool {
        self.0.pop_front().map(Waker::wake).is_some()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes all.
    pub fn wake_all(&mut self) {
        self.wake(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn each_once_and_in_order() {
        let counts = [(); 3].map(|()| Arc::new(Count(AtomicUsize::new(0))));
        let woken = || counts.each_ref().map(|count| count.0.load(Relaxed));
        let wakers = counts.each_ref().map(|count| Waker::from(count.clone()));
        let mut list = Wakers::with_capacity(1);
        wakers.iter().chain(&wakers).for_each(|waker| list.add(waker));
        list.wake(2);
        assert_eq!(woken(), [1, 1, 0]);
        list.add(&wakers[0]);
        list.wake_all();
        assert_eq!(woken(), [2, 1, 1]);
        list.wake_all();
        assert_eq!(woken(), [2, 1, 1]);
    }
}
