//! A short list that is plain data: unlike one of `heapless`, which must be dropped, it may borrow from what
//! is changed later.

use core::ops::Deref;

/// At most `N` items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Few<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    /// None, with something to fill the places.
    pub const fn new(filler: T) -> Self {
        Self { items: [filler; N], len: 0 }
    }

    /// Adds an item; false if there is no more room.
    pub fn push(&mut self, item: T) -> bool {
        let place = self.items.get_mut(self.len);
        self.len = self.len.saturating_add(usize::from(place.is_some()));
        place.map(|place| *place = item).is_some()
    }
}

impl<T, const N: usize> Deref for Few<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}
