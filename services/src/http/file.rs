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
use super::{FileError, Files, Kind, Metadata, Method, Next, Request, Server, Status, listing, next};
use crate::api::System;
use crate::block::BlockError;
use crate::text::Text;

/// Bytes read from a file and sent at a time. Reading ahead is the file system's business, and while the next
/// piece is read the socket's transmit buffer still holds the last one.
const PIECE: usize = 32 << 10;

impl<F: Files, S: System> Server<F, S> {
    /// Answers GET or HEAD for a path on the disk.
    pub(super) async fn send_path<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        path: &DiskPath,
        keep: bool,
    ) -> Result<Next, Broken> {
        let node = match self.files.lookup(&path.path).await {
            Ok(node) => node,
            Err(error) => return self.send_error(wire, request, keep, error).await,
        };
        match (self.files.metadata(&node).kind, path.slash) {
            (Kind::File, false) => self.send_file(wire, request, &path.path, &node, keep).await,
            (Kind::Directory, false) => self.redirect(wire, request, path, keep).await,
            (Kind::Directory, true) => self.send_directory(wire, request, path, &node, keep).await,
            _ => self.send_error(wire, request, keep, FileError::NotFound).await,
        }
    }

    /// Tells the client as much as it needs to know, and the log why.
    pub(super) async fn send_error<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        keep: bool,
        error: FileError,
    ) -> Result<Next, Broken> {
        let status = match &error {
            FileError::NotFound => Status::NotFound,
            FileError::Unavailable(_) | FileError::Unsupported(_) | FileError::OutOfMemory => {
                Status::Unavailable
            }
            FileError::Io(BlockError::Gone) => Status::Unavailable,
            FileError::Corrupt(_) | FileError::Io(_) => Status::InternalError,
        };
        if error != FileError::NotFound {
            self.failures.note(&request.path, &status, &error);
        }
        let sentence: &dyn core::fmt::Display = match &error {
            FileError::Corrupt(_) => &"The file system on the disk is damaged here.",
            FileError::Unavailable(_) | FileError::Unsupported(_) | FileError::Io(BlockError::Gone) => &error,
            _ => &status.sentence(),
        };
        let head = self.head(request, status, keep);
        self.error_page(wire, head, status, sentence, request.with_body()).await?;
        Ok(next(keep))
    }

    /// The address with a slash. It is made from the decoded path, so it starts with exactly one slash and
    /// holds nothing that a browser could take for another host.
    async fn redirect<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        path: &DiskPath,
        keep: bool,
    ) -> Result<Next, Broken> {
        let mut location = Text::default();
        percent_encode(&path.path, &mut location);
        location.push_str("/");
        location.push_str(&request.query);
        let location = match location.whole() {
            Ok(location) => location,
            Err(error) => return self.send_error(wire, request, keep, error.into()).await,
        };
        let head = self.head(request, Status::MovedPermanently, keep).field("Location", location);
        self.error(wire, request, keep, head, Status::MovedPermanently).await
    }

    async fn send_directory<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        path: &DiskPath,
        dir: &F::Node,
        keep: bool,
    ) -> Result<Next, Broken> {
        let index = match path.child(b"index.html") {
            Ok(index) => index,
            Err(error) => return self.send_error(wire, request, keep, error.into()).await,
        };
        match self.files.lookup(&index).await {
            Ok(node) if self.files.metadata(&node).kind == Kind::File => {
                return self.send_file(wire, request, &index, &node, keep).await;
            }
            Ok(_) | Err(FileError::NotFound) => {}
            Err(error) => return self.send_error(wire, request, keep, error).await,
        }
        // Old clients know no chunked encoding: the close marks the end.
        let keep = keep && request.http_1_1;
        match listing::read_page(&self.files, dir, 0).await {
            Ok(page) => listing::send(&self.files, wire, request, path, dir, page, keep).await?,
            Err(error) => return self.send_error(wire, request, keep, error).await,
        }
        Ok(next(keep))
    }

    async fn send_file<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        path: &[u8],
        node: &F::Node,
        keep: bool,
    ) -> Result<Next, Broken> {
        let metadata = self.files.metadata(node);
        let version = Version::of(&metadata);
        if version.is_held_by(request) {
            let head = version.describe(self.head(request, Status::NotModified, keep));
            wire.send_head(head, Length::None).await?;
            return Ok(next(keep));
        }
        let range = request.range.as_deref().filter(|_| version.allows_range(request));
        let (status, start, length) = match select(range, metadata.size) {
            Selection::Whole => (Status::Ok, 0, metadata.size),
            Selection::Part { start, length } => (Status::PartialContent, start, length),
            Selection::Unsatisfiable => {
                let status = Status::RangeNotSatisfiable;
                let size = format_args!("bytes */{}", metadata.size);
                let head = self.head(request, status, keep).field("Content-Range", size);
                return self.error(wire, request, keep, head, status).await;
            }
        };
        let end = start.saturating_add(length);
        let mut head = version.describe(self.head(request, status, keep)).field("Accept-Ranges", "bytes");
        if status == Status::PartialContent {
            let (last, size) = (end.saturating_sub(1), metadata.size);
            head = head.field("Content-Range", format_args!("bytes {start}-{last}/{size}"));
        }
        let head = head.field("Content-Type", content_type(path));
        if request.method == Method::Head || length == 0 {
            wire.send_head(head, Length::Known(length)).await?;
            return Ok(next(keep));
        }
        self.send_body(wire, request, node, head, start..end, keep).await
    }

    /// Reads the first piece before the head is sent, so that a disk that cannot be read is still an error
    /// page.
    async fn send_body<C: Read + Write>(
        &self,
        wire: &mut Wire<'_, C>,
        request: &Request,
        node: &F::Node,
        head: Head,
        bytes: core::ops::Range<u64>,
        keep: bool,
    ) -> Result<Next, Broken> {
        let length = bytes.end.saturating_sub(bytes.start);
        let mut buffer = Vec::new();
        let size = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
        if buffer.try_reserve_exact(size).is_err() {
            return self.send_error(wire, request, keep, FileError::OutOfMemory).await;
        }
        buffer.resize(size, 0);
        let mut offset = bytes.start;
        let mut head = Some(head);
        while offset < bytes.end {
            let left = usize::try_from(bytes.end.saturating_sub(offset)).unwrap_or(PIECE);
            let piece = buffer.get_mut(..left.min(size)).ok_or(Broken::Lost)?;
            let read = match self.files.read_at(node, offset, piece).await {
                // Shorter than its inode says.
                Ok(0) => Err(FileError::Corrupt("a file is shorter than its inode says")),
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
                (Err(error), Some(_)) => return self.send_error(wire, request, keep, error).await,
                (Err(error), None) => return Err(Broken::Cut(error)),
            }
        }
        Ok(next(keep))
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
        let (id, size) = (metadata.id, metadata.size);
        let _ = write!(etag, "\"{id:x}-{size:x}-{:x}\"", metadata.modified.unwrap_or(0));
        let modified = metadata.modified.map(|seconds| {
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
    fn is_held_by(&self, request: &Request) -> bool {
        match (&request.if_none_match, &request.if_modified_since) {
            (Some(tags), _) => tags
                .split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag),
            (None, Some(date)) => self.modified.as_deref() == Some(date.as_str()),
            (None, None) => false,
        }
    }

    /// Whether a range may be served: no `If-Range`, or one that names this version.
    fn allows_range(&self, request: &Request) -> bool {
        request.if_range.as_ref().is_none_or(|known| {
            known.as_str() == self.etag.as_str() || Some(known.as_str()) == self.modified.as_deref()
        })
    }
}
