//! Pages that the cache does not hold.
//!
//! What a page is shared by cannot be asked for without an answer to "there is no memory", so it is made in
//! advance, for as many pages as there may be; their bytes are allocated when they are needed.

use super::FsError;
use crate::text;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// What the heap needs for an `Rc` around a vector, at most.
const BOOKS: usize = 64;
/// Pages that are looked at for one that is back.
const LOOKS: usize = 8;

/// They are made once, and never more.
#[derive(Default)]
pub struct FreePages {
    /// Without bytes.
    cold: Vec<Rc<Vec<u8>>>,
    /// With bytes: the next request is for as many, most likely.
    warm: Vec<Rc<Vec<u8>>>,
    /// How many of these there may be.
    most: usize,
    /// Those that are still being sent.
    lent: VecDeque<Rc<Vec<u8>>>,
}

impl FreePages {
    /// Makes `count` pages, or none if there is no memory for them. Up to `most` keep their bytes.
    pub fn new(count: usize, most: usize) -> Self {
        let mut pages = Self { most, ..Self::default() };
        let has_room = pages.cold.try_reserve_exact(count).is_ok()
            && pages.warm.try_reserve_exact(most).is_ok()
            && pages.lent.try_reserve_exact(count).is_ok()
            && text::room(count.saturating_mul(BOOKS)).is_ok();
        if has_room {
            pages.cold.resize_with(count, Rc::default);
        }
        pages
    }

    /// A page of `len` bytes, with anything in it, which is nobody else's.
    ///
    /// # Errors
    /// [`FsError::NoMemory`], also if all pages are in use.
    pub fn take(&mut self, len: usize) -> Result<Rc<Vec<u8>>, FsError> {
        for _ in 0..LOOKS {
            let Some(page) = self.lent.pop_front() else { break };
            self.give_back(page);
        }
        let mut page = self.warm.pop().or_else(|| self.cold.pop()).ok_or(FsError::NoMemory)?;
        let bytes = Rc::get_mut(&mut page).ok_or(FsError::NoMemory)?;
        if bytes.len() != len {
            *bytes = Vec::new();
            match super::zeroed(len) {
                Ok(new) => *bytes = new,
                Err(error) => {
                    self.cold.push(page);
                    return Err(error);
                }
            }
        }
        Ok(page)
    }

    /// Takes a page back, which others may still hold.
    pub fn give_back(&mut self, mut page: Rc<Vec<u8>>) {
        match Rc::get_mut(&mut page) {
            None => self.lent.push_back(page),
            Some(_) if self.warm.len() < self.most => self.warm.push(page),
            Some(bytes) => {
                *bytes = Vec::new();
                self.cold.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_when_nobody_sends_them() {
        let mut pages = FreePages::new(3, 1);
        let taken: Vec<_> = (0..3).map(|_| pages.take(4096).unwrap()).collect();
        assert!(matches!(pages.take(4096), Err(FsError::NoMemory)));
        let sent = taken[0].clone();
        taken.into_iter().for_each(|page| pages.give_back(page));
        let both = [pages.take(512).unwrap(), pages.take(4096).unwrap()];
        assert_eq!(both.each_ref().map(|page| page.len()), [512, 4096]);
        assert!(matches!(pages.take(4096), Err(FsError::NoMemory)));
        drop(sent);
        assert!(pages.take(4096).is_ok());
    }
}
