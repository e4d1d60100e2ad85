//! Where a device is in a queue.

use ringfence_memory::virtqueue::packed;

/// How far a device has come in a queue: enough to go on with another [`Queue`](super::queue::Queue) over the
/// same rings.
///
/// In a split virtqueue these are free running indexes. In a packed one they are descriptors' indexes, with
/// the wrap counter in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The next chain to take.
    pub next: u16,
    /// The next element to use.
    pub used: u16,
    /// What `used` was when it was last decided whether to notify the driver.
    pub signalled: u16,
}

impl Position {
    /// Where a split virtqueue starts.
    pub const SPLIT: Self = Self::at(0);
    /// Where a packed virtqueue starts: with wrap counters of 1 (2.8.1).
    pub const PACKED: Self = Self::at(packed::Position::START.to_word());

    /// Nothing taken that was not returned, and next is `next`.
    pub const fn at(next: u16) -> Self {
        Self { next, used: next, signalled: next }
    }
}
