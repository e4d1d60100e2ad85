//! Serving the tree of files: which response a path gets, and files themselves.

use alloc::vec::Vec;
use core::fmt::Write as _;

use embedded_io_async::{Read, Write};
use heapless::String;

use super::date::http_date;
use super::mime::content_type;
use super::path::{DiskPath, percent_encode};
use super::range::{Selection, select};
use super::response::{Broken, Head, Length, Wire};
use super::{Exchange, Failure, Files, Method, Refusal, Request, Status, listing};
use crate::fs::{FsError, Kind, Metadata};
use crate::text::{NoMemory, Text};

/// Bytes read from a file and sent at a time. Reading ahead is the file system's business, and while the next
/// piece is read the socket's transmit buffer still holds the last one.
const PIECE: usize = 32 << 10;

/// Answers GET or HEAD for a path on the disk.
pub(super) async fn send_path<F: Files, C: Read + Write>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    path: &DiskPath,
) -> Result<(), Failure> {
    let node = files.lookup(&path.path).await?;
    match (files.metadata(&node).kind, path.slash) {
        (Kind::File, false) => send_file(files, exchange, &path.path, &node).await,
        (Kind::Directory, false) => Err(redirect(exchange.request.query, path)),
        (Kind::Directory, true) => send_directory(files, exchange, path, &node).await,
        _ => Err(Status::NotFound.into()),
    }
}

async fn send_directory<F: Files, C: Read + Write>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    path: &DiskPath,
    dir: &F::Node,
) -> Result<(), Failure> {
    let index = path.child(b"index.html")?;
    match files.lookup(&index).await.map_err(Refusal::from) {
        Ok(node) if files.metadata(&node).kind == Kind::File => {
            return send_file(files, exchange, &index, &node).await;
        }
        Ok(_) => {}
        Err(refusal) if refusal.status == Status::NotFound => {}
        Err(refusal) => return Err(refusal.into()),
    }
    // Old clients know no chunked encoding: the close marks the end.
    exchange.keep &= exchange.request.http_1_1;
    let page = listing::read_page(files, dir, 0).await?;
    Ok(listing::send(files, exchange, path, dir, page).await?)
}

async fn send_file<F: Files, C: Read + Write>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    path: &[u8],
    node: &F::Node,
) -> Result<(), Failure> {
    let (metadata, request) = (files.metadata(node), exchange.request);
    let version = Version::of(&metadata);
    if version.is_held_by(request) {
        let head = version.describe(exchange.head(Status::NotModified));
        return Ok(exchange.wire.send_head(head, Length::None).await?);
    }
    let range = request.range.filter(|_| version.allows_range(request));
    let (status, start, length) = match select(range, metadata.size) {
        Selection::Whole => (Status::Ok, 0, metadata.size),
        Selection::Part { start, length } => (Status::PartialContent, start, length),
        Selection::Unsatisfiable => {
            let size = format_args!("bytes */{}", metadata.size);
            return Err(Refusal::from(Status::RangeNotSatisfiable).with("Content-Range", size).into());
        }
    };
    let end = start.saturating_add(length);
    let mut head = version.describe(exchange.head(status)).field("Accept-Ranges", "bytes");
    if status == Status::PartialContent {
        let (last, size) = (end.saturating_sub(1), metadata.size);
        head = head.field("Content-Range", format_args!("bytes {start}-{last}/{size}"));
    }
    let head = head.field("Content-Type", content_type(path));
    if request.method == Method::Head || length == 0 {
        return Ok(exchange.wire.send_head(head, Length::Known(length)).await?);
    }
    send_body(files, exchange.wire, node, head, start..end).await
}

/// Reads the first piece before the head is sent, so that a disk that cannot be read is still an error
/// page.
async fn send_body<F: Files, C: Read + Write>(
    files: &F,
    wire: &mut Wire<'_, C>,
    node: &F::Node,
    head: Head,
    bytes: core::ops::Range<u64>,
) -> Result<(), Failure> {
    let length = bytes.end.saturating_sub(bytes.start);
    let mut buffer = Vec::new();
    let size = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
    buffer.try_reserve_exact(size).map_err(|_| NoMemory)?;
    buffer.resize(size, 0);
    let mut offset = bytes.start;
    let mut head = Some(head);
    while offset < bytes.end {
        let left = usize::try_from(bytes.end.saturating_sub(offset)).unwrap_or(PIECE);
        let piece = buffer.get_mut(..left.min(size)).ok_or(Broken::Lost)?;
        let read = match files.read_at(node, offset, piece).await {
            // Shorter than its inode says.
            Ok(0) => Err(FsError::Corrupt("a file is shorter than its inode says")),
            other => other,
        };
        match (read, head.take()) {
            (Ok(n), head) => {
                if let Some(head) = head {
                    wire.send_head(head, Length::Known(length)).await?;
                }
                wire.send(piece.get(..n).ok_or(Broken::Lost)?).await?;
                offset = offset.saturating_add(n as u64);
            }
            (Err(error), Some(_)) => return Err(error.into()),
            (Err(error), None) => return Err(Broken::Cut(error).into()),
        }
    }
    Ok(())
}

/// To the address with a slash. It is made from the decoded path, so it starts with exactly one slash and
/// holds nothing that a browser could take for another host.
fn redirect(query: &str, path: &DiskPath) -> Failure {
    let mut location = Text::default();
    percent_encode(&path.path, &mut location);
    location.push_str("/");
    location.push_str(query);
    match location.whole() {
        Ok(location) => Refusal::from(Status::MovedPermanently).with("Location", location).into(),
        Err(error) => error.into(),
    }
}

/// What tells one version of a file from another.
struct Version {
    /// Three numbers in hexadecimal.
    etag: String<64>,
    modified: Option<String<32>>,
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        let mut etag = String::new();
        let Metadata { inode, size, mtime, .. } = *metadata;
        let seconds = u64::try_from(mtime).ok();
        let _ = write!(etag, "\"{inode:x}-{size:x}-{:x}\"", seconds.unwrap_or(0));
        let modified = seconds.map(|seconds| {
            let mut text = String::new();
            http_date(seconds, &mut text);
            text
        });
        Self { etag, modified }
    }

    fn describe(&self, head: Head) -> Head {
        let head = head.field("ETag", &self.etag);
        match &self.modified {
            Some(modified) => head.field("Last-Modified", modified),
            None => head,
        }
    }

    /// Whether the client already has this version (RFC 9110 section 13.2.2). A date counts only if it is the
    /// very one that was sent.
    fn is_held_by(&self, request: &Request<'_>) -> bool {
        match (&request.if_none_match[..], request.if_modified_since) {
            ([], None) => false,
            ([], Some(date)) => self.modified.as_deref() == Some(date),
            (lists, _) => lists
                .iter()
                .flat_map(|list| list.split(','))
                .map(str::trim)
                .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag),
        }
    }

    /// Whether a range may be served: no `If-Range`, or one that names this version.
    fn allows_range(&self, request: &Request<'_>) -> bool {
        request
            .if_range
            .is_none_or(|known| known == self.etag.as_str() || Some(known) == self.modified.as_deref())
    }
}
