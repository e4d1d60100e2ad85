//! What a connection is to send: bytes of its own, and pages that it shares with the cache.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::shared::Shared;
use crate::text::NoMemory;

/// Bytes of its own are gathered in pieces of this size, unless more are written at once.
const PIECE: usize = 1024;
/// The pieces that one segment may be made of.
pub const PIECES: usize = 4;

#[derive(Debug)]
enum Piece {
    Own(Vec<u8>),
    Shared(Shared),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(shared) => shared.bytes(),
        }
    }

    fn holds(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.capacity(),
            Self::Shared(shared) => shared.holds(),
        }
    }
}

/// The bytes from the first that is not acknowledged.
#[derive(Debug, Default)]
pub struct SendQueue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are acknowledged.
    done: usize,
    length: usize,
    holds: usize,
    /// A piece, and how many bytes of the queue are before it, `done` included: the next to be sent is near.
    near: (usize, usize),
}

impl SendQueue {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// How many bytes of memory it holds.
    pub fn holds(&self) -> usize {
        self.holds
    }

    /// Appends a copy of `bytes`.
    ///
    /// # Errors
    /// If there is no memory for it: nothing is appended.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NoMemory> {
        // No piece is empty.
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(Piece::Own(last)) = self.pieces.back_mut()
            && last.capacity().saturating_sub(last.len()) >= bytes.len()
        {
            last.extend_from_slice(bytes);
        } else {
            let mut own = Vec::new();
            own.try_reserve_exact(bytes.len().max(PIECE)).map_err(|_| NoMemory)?;
            own.extend_from_slice(bytes);
            self.append(Piece::Own(own))?;
        }
        self.length = self.length.saturating_add(bytes.len());
        Ok(())
    }

    /// Appends bytes that others hold as well.
    ///
    /// # Errors
    /// If there is no memory for the books: nothing is appended.
    pub fn share(&mut self, shared: Shared) -> Result<(), NoMemory> {
        let length = shared.bytes().len();
        if length > 0 {
            self.append(Piece::Shared(shared))?;
            self.length = self.length.saturating_add(length);
        }
        Ok(())
    }

    fn append(&mut self, piece: Piece) -> Result<(), NoMemory> {
        self.pieces.try_reserve(1).map_err(|_| NoMemory)?;
        self.holds = self.holds.saturating_add(piece.holds());
        self.pieces.push_back(piece);
        Ok(())
    }

    /// Drops the first `count` bytes: they are acknowledged.
    pub fn drop_first(&mut self, count: usize) {
        self.length = self.length.saturating_sub(count);
        self.done = self.done.saturating_add(count);
        while let Some(first) = self.pieces.front() {
            let length = first.bytes().len();
            if self.done < length {
                break;
            }
            self.done = self.done.saturating_sub(length);
            self.holds = self.holds.saturating_sub(first.holds());
            self.pieces.pop_front();
            let (index, before) = self.near;
            self.near = index.checked_sub(1).map_or((0, 0), |index| (index, before.saturating_sub(length)));
        }
        if self.pieces.is_empty() {
            self.done = 0;
        }
    }

    /// Drops everything, and gives all memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Up to `most` bytes that start at the byte `offset`, in pieces. There may be fewer, if they are of many
    /// pieces.
    pub fn slices(&mut self, offset: usize, most: usize) -> ([&[u8]; PIECES], usize) {
        let at = self.done.saturating_add(offset);
        let (mut index, mut before) = if self.near.1 <= at { self.near } else { (0, 0) };
        while let Some(piece) = self.pieces.get(index) {
            let end = before.saturating_add(piece.bytes().len());
            if at < end {
                break;
            }
            (index, before) = (index.saturating_add(1), end);
        }
        // The last piece may grow: what is behind it now may be in it then.
        if index < self.pieces.len() {
            self.near = (index, before);
        }
        let (mut slices, mut skip) = ([&[][..]; PIECES], at.saturating_sub(before));
        let mut left = most;
        for slice in &mut slices {
            let Some(piece) = self.pieces.get(index).filter(|_| left > 0) else { break };
            let bytes = piece.bytes().get(skip..).unwrap_or_default();
            *slice = bytes.get(..left).unwrap_or(bytes);
            left = left.saturating_sub(slice.len());
            (index, skip) = (index.saturating_add(1), 0);
        }
        (slices, most.saturating_sub(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use proptest::prelude::*;
    use std::vec;

    /// An empty piece would end a segment, to its sum.
    #[test]
    fn an_empty_write_is_nothing() {
        let mut queue = SendQueue::default();
        let shared = || Shared::new(Rc::new(vec![7; 100]), 0..100);
        queue.share(shared()).unwrap();
        queue.push(b"").unwrap();
        queue.share(Shared::new(Rc::new(vec![7; 100]), 50..50)).unwrap();
        queue.share(shared()).unwrap();
        assert_eq!(queue.slices(0, 200), ([&[7; 100][..], &[7; 100], &[], &[]], 200));
    }

    /// The last piece grows behind the place that was asked for last.
    #[test]
    fn what_is_appended_is_found() {
        let mut queue = SendQueue::default();
        queue.push(b"first").unwrap();
        assert_eq!(queue.slices(5, 100).1, 0);
        queue.push(b"second").unwrap();
        assert_eq!(queue.slices(5, 100), ([&b"second"[..], &[], &[], &[]], 6));
    }

    proptest! {
        /// As a plain vector of bytes, whatever is appended, read and dropped in between.
        #[test]
        fn as_one_vector(steps in proptest::collection::vec((0..4, 0usize..3000, 0usize..3000), 1..100)) {
            let (mut queue, mut model, mut next) = (SendQueue::default(), vec![], 0u32);
            for (step, a, b) in steps {
                let mut bytes = |count| -> Vec<u8> {
                    (0..count)
                        .map(|_| {
                            next = next.wrapping_mul(0x915f_77f5).wrapping_add(1);
                            (next >> 24) as u8
                        })
                        .collect()
                };
                match step {
                    0 => {
                        let bytes = bytes(a);
                        queue.push(&bytes).unwrap();
                        model.extend(bytes);
                    }
                    1 => {
                        let bytes = bytes(a.max(b));
                        queue.share(Shared::new(Rc::new(bytes.clone()), a.min(b)..a.max(b))).unwrap();
                        model.extend(&bytes[a.min(b)..]);
                    }
                    2 => {
                        let count = a.min(model.len());
                        queue.drop_first(count);
                        model.drain(..count);
                    }
                    _ => {
                        let offset = a % (model.len() + 1);
                        let (slices, length) = queue.slices(offset, b);
                        let got = slices.concat();
                        prop_assert_eq!(length, got.len());
                        prop_assert_eq!(&got[..], &model[offset..][..length]);
                        let all = b.min(model.len() - offset);
                        prop_assert!(length == all || slices.iter().all(|slice| !slice.is_empty()));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert!(queue.holds() >= model.len());
            }
            queue.drop_first(model.len());
            prop_assert_eq!((queue.len(), queue.holds()), (0, 0));
        }
    }
}
