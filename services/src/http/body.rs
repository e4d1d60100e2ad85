//! Bodies made of a file's bytes.

use embassy_time::Instant;
use heapless::String;

use super::file::{Representation, content_range};
use super::range::Part;
use super::response::{Broken, Head, Length, Wire};
use super::{Connection, Failure, Files, Status};
use crate::fs::FsError;
use crate::text::{Digits, NoMemory, Text};

/// Bytes read from a file and sent at a time. Reading ahead is the file system's business, and while the next
/// piece is read the socket's transmit buffer still holds the last one.
const PIECE: usize = 32 << 10;
/// Fewer bytes are copied to those before them, more are sent from where they are.
const LEAST: usize = 1 << 10;

/// Sends `text` and behind it a part of a file. With `status` this is the start of a response: the first
/// piece is read before that, so that a disk that cannot be read is still an error page.
pub(super) async fn send_part<F: Files, C: Connection>(
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
    // What is before the room is sent with the first piece.
    let head = buffer.len();
    let (mut offset, mut unsent) = (start, 0);
    while offset < end {
        let left = left(offset);
        let shared = if left < LEAST { Ok(None) } else { files.share_at(node, offset, left).await };
        let shared = shared.map_err(|error| fails(error, status))?;
        let n = match &shared {
            Some(bytes) => bytes.bytes().len(),
            None => {
                if buffer.len() < head.saturating_add(left) {
                    buffer.try_reserve_exact(left).map_err(|_| fails(FsError::NoMemory, status))?;
                    buffer.resize(head.saturating_add(left), 0);
                }
                let piece =
                    buffer.get_mut(head..).and_then(|room| room.get_mut(..left)).ok_or(Broken::Lost)?;
                files.read_at(node, offset, piece).await.map_err(|error| fails(error, status))?
            }
        };
        if n == 0 {
            return Err(fails(FsError::Corrupt("a file is shorter than its inode says"), status));
        }
        if let Some(status) = status.take() {
            wire.respond_with(status);
        }
        let copied = if shared.is_some() { 0 } else { n };
        let piece = buffer.get(unsent..head.saturating_add(copied)).ok_or(Broken::Lost)?;
        if !piece.is_empty() {
            wire.send(piece).await?;
        }
        if let Some(bytes) = &shared {
            wire.share(bytes).await?;
        }
        (offset, unsent) = (offset.saturating_add(n as u64), head);
    }
    wire.reuse(buffer);
    Ok(())
}

/// Sends several parts of a file, as `multipart/byteranges` (RFC 9110 section 14.6).
pub(super) async fn send_parts<F: Files, C: Connection>(
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
