//! Bodies made of a file's bytes.

use embassy_time::Instant;
use embedded_io_async::{Read, Write};
use heapless::String;

use super::file::{Representation, content_range};
use super::range::Part;
use super::response::{Broken, Head, Length, Wire};
use super::{Failure, Files, Status};
use crate::fs::FsError;
use crate::text::{Digits, NoMemory, Text};

/// Bytes read from a file and sent at a time. Reading ahead is the file system's business, and while the next
/// piece is read the socket's transmit buffer still holds the last one.
const PIECE: usize = 32 << 10;

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

/// Sends several parts of a file, as `multipart/byteranges` (RFC 9110 section 14.6).
pub(super) async fn send_parts<F: Files, C: Read + Write>(
    files: &F,
    wire: &mut Wire<'_, C>,
    node: &F::Node,
    head: Head,
    parts: &[Part],
    file: &Representation,
) -> Result<(), Failure> {
    // Files do not have it in them, unless somebody knows at which microsecond they will be asked for.
    let mut boundary = String::<26>::new();
    for piece in ["ringfence-", Digits::<16>::new::<16>(Instant::now().as_ticks()).as_str()] {
        let _ = boundary.push_str(piece);
    }
    let mut text = Text::default();
    let mut length = 0_u64;
    for part in parts {
        begin_part(&mut text, &boundary, file, *part);
        length = length.saturating_add(part.end.saturating_sub(part.start));
    }
    end_parts(&mut text, &boundary);
    length = length.saturating_add(text.whole()?.len() as u64);
    text.clear();
    text.push_all(["multipart/byteranges; boundary=", &boundary]);
    let (status, mut before) = head.field("Content-Type", text.whole()?).finish(Length::Known(length));
    let mut status = Some(status);
    for part in parts {
        begin_part(&mut before, &boundary, file, *part);
        send_part(files, wire, node, status.take(), core::mem::take(&mut before), *part).await?;
    }
    end_parts(&mut before, &boundary);
    let end = before.into_bytes().map_err(|NoMemory| Broken::Cut(FsError::NoMemory))?;
    Ok(wire.send(&end).await?)
}

fn begin_part(out: &mut Text, boundary: &str, file: &Representation, part: Part) {
    let range = content_range(part, file.metadata.size);
    out.push_all(["\r\n--", boundary, "\r\nContent-Type: ", file.mime, "\r\nContent-Range: ", &range]);
    out.push_str("\r\n\r\n");
}

fn end_parts(out: &mut Text, boundary: &str) {
    out.push_all(["\r\n--", boundary, "--\r\n"]);
}
