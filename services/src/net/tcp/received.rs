//! Received bytes that wait for the owner of a connection.

use alloc::vec::Vec;

use crate::text::NoMemory;

/// No more memory than about twice what waits at most, however long something always does.
#[derive(Debug, Default)]
pub struct Received {
    bytes: Vec<u8>,
    /// So many of them were taken.
    taken: usize,
}

impl Received {
    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting().len()
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// If there is no memory for it: nothing is appended.
    pub fn push(&mut self, data: &[u8]) -> Result<(), NoMemory> {
        if self.bytes.capacity().saturating_sub(self.bytes.len()) < data.len() {
            self.bytes.drain(..self.taken.min(self.bytes.len()));
            self.taken = 0;
        }
        self.bytes.try_reserve(data.len()).map_err(|_| NoMemory)?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Copies what waits to `to`, as far as there is room; returns how many bytes.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        let waiting = self.waiting();
        let count = waiting.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..count), waiting.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken = self.taken.saturating_add(count);
        if self.len() == 0 {
            self.clear();
        }
        count
    }

    /// Forgets all, and gives all memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sends so much that something always waits gets no more memory for it.
    #[test]
    fn what_was_taken_is_no_memory() {
        let (mut received, mut sent, mut got) = (Received::default(), 0_u32, 0_u32);
        for step in 0..10_000_usize {
            let data: Vec<u8> =
                (0..1460.min(8192 - received.len())).map(|n| (sent as usize + n) as u8).collect();
            received.push(&data).unwrap();
            sent += data.len() as u32;
            let mut to = [0; 1400];
            let length = (step * 7919 % 1400).min(received.len() - 1);
            let count = received.take(&mut to[..length]);
            assert!(to[..count].iter().all(|byte| {
                got += 1;
                *byte == (got - 1) as u8
            }));
            assert!(received.bytes.capacity() <= 16 << 10, "{} bytes", received.bytes.capacity());
        }
        assert!(got > 1_000_000);
        received.take(&mut [0; 8192]);
        assert_eq!((received.len(), received.bytes.capacity()), (0, 0));
    }
}
