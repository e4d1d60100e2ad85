//! Text and bytes on a request's path: whoever asks for memory there may be told that there is none.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// There is no memory for it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory")]
pub struct NoMemory;

/// A copy of `bytes`.
///
/// # Errors
/// [`NoMemory`].
pub fn bytes(bytes: &[u8]) -> Result<Vec<u8>, NoMemory> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| NoMemory)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Whether `bytes` bytes can be had at this moment, for what allocates without asking. It holds up to the
/// next await: nobody else runs before.
///
/// # Errors
/// [`NoMemory`].
pub fn room(bytes: usize) -> Result<(), NoMemory> {
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| NoMemory)
}

/// The digits of a number, for where `core::fmt` would cost more than all else: on each request's path.
pub struct Digits<const N: usize> {
    digits: [u8; N],
    start: usize,
}

impl<const N: usize> Digits<N> {
    /// The digits to the base `BASE` (2 to 16), the last `N` at most.
    #[allow(clippy::arithmetic_side_effects, reason = "a base is not 0")]
    pub fn new<const BASE: u64>(mut number: u64) -> Self {
        const { assert!(2 <= BASE && BASE <= 16) };
        let (mut digits, mut start) = ([b'0'; N], N);
        for (index, digit) in digits.iter_mut().enumerate().rev() {
            let value = u8::try_from(number % BASE).unwrap_or(0);
            *digit = value.saturating_add(if value < 10 { b'0' } else { b'a' - 10 });
            (start, number) = (index, number / BASE);
            if number == 0 {
                break;
            }
        }
        Self { digits, start }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let digits = self.digits.get(self.start..).unwrap_or_default();
        core::str::from_utf8(digits).unwrap_or_default()
    }
}

/// Text that is written piece by piece. Where memory is short a piece is left out, and so is all that
/// follows; [`whole`](Self::whole) then says so. Writing to it may therefore ignore its errors.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    is_cut: bool,
}

impl Text {
    /// Room for `bytes` bytes, so that shorter text is never cut.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn with_capacity(bytes: usize) -> Result<Self, NoMemory> {
        let mut text = String::new();
        text.try_reserve_exact(bytes).map_err(|_| NoMemory)?;
        Ok(Self { text, is_cut: false })
    }

    /// Makes room for `bytes` bytes more; without memory for them the text is cut here.
    pub fn reserve(&mut self, bytes: usize) {
        self.is_cut |= self.text.try_reserve_exact(bytes).is_err();
    }

    /// Appends `piece`.
    pub fn push_str(&mut self, piece: &str) {
        self.push_all([piece]);
    }

    /// Appends all of them, or none: for short ones, asking for memory costs more than copying.
    pub fn push_all<const N: usize>(&mut self, pieces: [&str; N]) {
        let bytes = pieces.iter().fold(0_usize, |bytes, piece| bytes.saturating_add(piece.len()));
        self.is_cut |= self.text.try_reserve(bytes).is_err();
        if !self.is_cut {
            pieces.iter().for_each(|piece| self.text.push_str(piece));
        }
    }

    /// Appends `number` in decimal.
    pub fn push_decimal(&mut self, number: u64) {
        self.push_str(Digits::<20>::new::<10>(number).as_str());
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Begins anew, with the memory that it has.
    pub fn clear(&mut self) {
        self.text.clear();
    }

    /// All that was written, and its memory.
    ///
    /// # Errors
    /// [`NoMemory`] if a piece was left out.
    pub fn into_bytes(self) -> Result<Vec<u8>, NoMemory> {
        if self.is_cut { Err(NoMemory) } else { Ok(self.text.into_bytes()) }
    }

    /// All that was written.
    ///
    /// # Errors
    /// [`NoMemory`] if a piece was left out.
    pub fn whole(&self) -> Result<&str, NoMemory> {
        if self.is_cut { Err(NoMemory) } else { Ok(&self.text) }
    }
}

/// In the same memory, without what was in it.
impl From<Vec<u8>> for Text {
    fn from(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        // Nothing is valid UTF-8.
        Self { text: String::from_utf8(bytes).unwrap_or_default(), is_cut: false }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.push_str(piece);
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;

    proptest! {
        #[test]
        fn digits_are_those_of_core(number: u64, shift in 0_u32..64) {
            for number in [number >> shift, 0, u64::MAX] {
                let (decimal, hex) = (Digits::<20>::new::<10>(number), Digits::<16>::new::<16>(number));
                prop_assert_eq!(decimal.as_str(), format!("{number}"));
                prop_assert_eq!(hex.as_str(), format!("{number:x}"));
            }
        }
    }
}
