//! Bodies made of a file's bytes.

use embedded_io_async::{Read, Write};

use super::response::{Broken, Wire};
use super::{Failure, Files, Status};
use crate::fs::FsError;
use crate::text::{NoMemory, Text};

/// Bytes read from a file and sent at a time. Reading ahead is the file system's business, and while the next
/// piece is read the socket's transmit buffer still holds the last one.
const PIECE: usize = 32 << 10;

/// Bytes of a file: never empty and within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

/// Sends `text` and behind it a part of a file. With `status` this is the start of a response: the first
/// piece is read before that, so that a disk that cannot be read is still an error page.
pub(super) async fn send_part<F: Files, C: Read + Write>(
    files: &F,
    wire: &mut Wire<'_, C>,
    node: &F::Node,
    mut status: Option<Status>,
    text: Text,
    Part { start, end }: Part,
) -> Result<(), Failure> {
    let fails = |error: FsError, status: Option<Status>| match status {
        Some(_) => Failure::from(error),
        None => Broken::Cut(error).into(),
    };
    let left = |offset: u64| usize::try_from(end.saturating_sub(offset)).unwrap_or(PIECE).min(PIECE);
    let mut buffer = text.into_bytes().map_err(|NoMemory| fails(FsError::NoMemory, status))?;
    let room = left(start);
    // What is before the room is sent with the first piece.
    let head = buffer.len();
    buffer.try_reserve_exact(room).map_err(|_| fails(FsError::NoMemory, status))?;
    buffer.resize(head.saturating_add(room), 0);
    let (mut offset, mut unsent) = (start, 0);
    while offset < end {
        let (_, piece) = buffer.split_at_mut_checked(head).unwrap_or_default();
        let piece = piece.get_mut(..left(offset)).ok_or(Broken::Lost)?;
        let read = match files.read_at(node, offset, piece).await {
            Ok(0) => Err(FsError::Corrupt("a file is shorter than its inode says")),
            read => read,
        };
        let n = read.map_err(|error| fails(error, status))?;
        if let Some(status) = status.take() {
            wire.respond_with(status);
        }
        wire.send(buffer.get(unsent..head.saturating_add(n)).ok_or(Broken::Lost)?).await?;
        (offset, unsent) = (offset.saturating_add(n as u64), head);
    }
    wire.reuse(buffer);
    Ok(())
}
