//! A device's lives, and the proof that one has ended.

use alloc::sync::Arc;
use core::fmt;

use super::table::WindowTable;

/// One life of a device: the time from a reset that was seen to the next. It names the window table, so that
/// lives of different devices, or of one id on two platforms, are never taken for each other.
#[derive(Clone)]
pub struct Life {
    pub(super) table: Arc<WindowTable>,
    pub(super) number: u64,
}

impl Life {
    /// Whether it goes on, as far as the caller's CPU has seen: it has not ended, and the device was not
    /// [asked](crate::CommonConfig::begin_reset) to reset.
    #[inline]
    pub fn is_present(&self) -> bool {
        self.table.is_present(self.number)
    }
}

impl PartialEq for Life {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table) && self.number == other.number
    }
}

impl Eq for Life {}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({:?}, {})", self.table.device(), self.number)
    }
}

/// Proof that a device was seen reset, and that it was told of no memory since its status read 0: whatever it
/// was given before is its no more.
///
/// Made by [`CommonConfig::reset`](crate::CommonConfig::reset), from the device's own registers, and for a
/// model by [`DmaWindows::reset_model`](super::DmaWindows::reset_model).
#[derive(Debug)]
pub struct Quiet {
    pub(super) ended: Life,
}

impl Quiet {
    /// Whether `life` is over: it is the one that this reset ended, or an earlier one of the same device.
    pub fn ends(&self, life: &Life) -> bool {
        Arc::ptr_eq(&self.ended.table, &life.table) && life.number <= self.ended.number
    }
}

/// Why a reset is not proved: the device may still use its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The status did not read 0 in time, while the device answered; or the device was told of memory
    /// meanwhile; or somebody still looks at a model's memory.
    Timeout,
    /// These are not the windows of the device.
    WrongDevice,
}

crate::error::messages! { ResetError {
    Timeout => "the device was not seen to reset in time",
    WrongDevice => "another device's windows",
} }
