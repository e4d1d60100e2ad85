//! What can be wrong with what a driver makes available.

/// The driver broke the rules of the ring. No more chains can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueError {
    /// More was made available than there is room for: an index that jumped, went back, or a chain without
    /// end.
    Overrun,
    /// A chain starts beyond the descriptor table, at this index.
    InvalidHead(u16),
    /// A notification told of chains up to this position, which are not there.
    InvalidNotification(u16),
}

ringfence_memory::messages! { QueueError {
    Overrun => "more was made available than there is room for",
    InvalidHead(index) => "a chain begins at descriptor {index}, which is not there",
    InvalidNotification(position) => "a notification of chains up to {position}, which are not there",
} }

/// Why a chain has no further descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescError {
    /// It goes on beyond the descriptor table, at this index.
    InvalidIndex(u16),
    /// It has more descriptors than its table: it runs in a circle (2.7.5.2).
    Endless,
    /// A buffer of this address and length would end beyond the address space.
    BadRange(u64, u32),
}

ringfence_memory::messages! { DescError {
    InvalidIndex(index) => "a chain goes on at descriptor {index}, which is not there",
    Endless => "a chain runs in a circle",
    BadRange(address, len) => "a buffer of {len} bytes at {address:#x} is beyond the address space",
} }
