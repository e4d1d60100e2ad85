//! What can be wrong with a request.

/// Why a request was not accepted, or not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The ring or the supply of control blocks is used up for now.
    Full,
    /// There is no memory for one request more.
    OutOfMemory,
    /// It reaches beyond the end of the disk.
    OutOfRange,
    /// The start or the length is not a multiple of the block size, or the length is 0.
    Misaligned,
    /// The buffer is shorter than the data.
    BufferTooShort,
    /// More segments than the device takes in one request.
    TooLong,
    /// The disk is read-only.
    ReadOnly,
    /// The buffer is memory of another device.
    WrongDevice,
    /// The buffer is not for this direction.
    WrongDirection,
    /// The device has no such command.
    Unsupported,
    /// The device reports an input or output error.
    Io,
    /// The device reports a status that the specification does not know.
    BadStatus(u8),
    /// The device says that it wrote more than fits, or less than the request needs.
    BadLength,
    /// Its time was up. If the device has its buffer, that stays with the queue.
    TimedOut,
    /// The device broke the rules of the ring. Drop the driver.
    Broken,
}

ringfence_memory::messages! { RequestError {
    Full => "the queue is full",
    OutOfMemory => "out of memory",
    OutOfRange => "beyond the end of the disk",
    Misaligned => "not whole blocks",
    BufferTooShort => "the buffer is shorter than the data",
    TooLong => "more than one request may have",
    ReadOnly => "the disk is read-only",
    WrongDevice => "a buffer of another device",
    WrongDirection => "a buffer for the other direction",
    Unsupported => "the disk has no such command",
    Io => "the disk reports an error",
    BadStatus(status) => "the disk reports status {status}, which there is not",
    BadLength => "the disk says that it wrote an impossible number of bytes",
    TimedOut => "no answer in time",
    Broken => "the queue is broken, or closed",
} }

impl<B> From<(Self, B)> for RequestError {
    fn from((error, _): (Self, B)) -> Self {
        error
    }
}
