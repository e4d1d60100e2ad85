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

    /// Appends `piece`.
    pub fn push_str(&mut self, piece: &str) {
        self.is_cut |= self.text.try_reserve(piece.len()).is_err();
        if !self.is_cut {
            self.text.push_str(piece);
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Begins anew, with the memory that it has.
    pub fn clear(&mut self) {
        self.text.clear();
    }

    /// All that was written.
    ///
    /// # Errors
    /// [`NoMemory`] if a piece was left out.
    pub fn whole(&self) -> Result<&str, NoMemory> {
        if self.is_cut { Err(NoMemory) } else { Ok(&self.text) }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.push_str(piece);
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}
