//! Serving the tree of files: which response a path gets, and files themselves.

use alloc::vec::Vec;

use heapless::String;

use super::clock::Clock;
use super::conditions::{Outcome, Validators};
use super::date::fixdate;
use super::encoding::{Accepted, Coding};
use super::mime::content_type;
use super::path::{DiskPath, percent_encode};
use super::range::{Part, select};
use super::response::{Head, Length};
use super::{Connection, Exchange, Failure, Files, Method, Refusal, Routes, Status, body, listing};
use crate::fs::{FsError, Kind, Metadata};
use crate::text::{Digits, NoMemory, Text};

/// Answers GET or HEAD for a path on the disk.
pub(super) async fn send_path<F: Files, R: Routes, C: Connection>(
    files: &F,
    routes: &R,
    exchange: &mut Exchange<'_, '_, C>,
    path: &DiskPath,
) -> Result<(), Failure> {
    let node = files.lookup(&path.path).await?;
    match (files.metadata(&node).kind, path.slash) {
        (Kind::File, false) => send_file(files, exchange, &path.path, node).await,
        (Kind::Directory, false) => Err(redirect(exchange.request.query, path)),
        (Kind::Directory, true) => send_directory(files, routes, exchange, path, &node).await,
        _ => Err(Status::NotFound.into()),
    }
}

async fn send_directory<F: Files, R: Routes, C: Connection>(
    files: &F,
    routes: &R,
    exchange: &mut Exchange<'_, '_, C>,
    path: &DiskPath,
    dir: &F::Node,
) -> Result<(), Failure> {
    let index = path.child(b"index.html")?;
    match files.lookup(&index).await.map_err(Refusal::from) {
        Ok(node) if files.metadata(&node).kind == Kind::File => {
            return send_file(files, exchange, &index, node).await;
        }
        Ok(_) => {}
        Err(refusal) if refusal.status == Status::NotFound => {}
        Err(refusal) => return Err(refusal.into()),
    }
    // A listing is made anew for each request: it has no version.
    let version = Validators { etag: None, modified: None, clock: exchange.wire.clock };
    match version.check(exchange.request) {
        Outcome::Send => {}
        Outcome::Failed => return Err(Status::PreconditionFailed.into()),
        Outcome::NotModified => {
            let head = exchange.head(Status::NotModified);
            return Ok(exchange.wire.send_head(head, Length::None).await?);
        }
    }
    // Old clients know no chunked encoding: the close marks the end.
    exchange.keep &= exchange.request.http_1_1;
    let folder = listing::Folder { files, routes, path, dir };
    let page = folder.read_page(0).await?;
    Ok(folder.send(exchange, page).await?)
}

async fn send_file<F: Files, C: Connection>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    path: &[u8],
    node: F::Node,
) -> Result<(), Failure> {
    let (mime, is_text) = content_type(path);
    let accepted = Accepted::of(&exchange.request.accept_encoding);
    let coded = match is_text || !accepted.takes_plain() {
        true => find_coded(files, accepted, path).await?,
        false => None,
    };
    let (coding, node) = coded.unwrap_or((Coding::Identity, node));
    let metadata = files.metadata(&node);
    let etag = etag(&metadata, coding);
    send(files, exchange, &node, &Representation { mime, is_text, coding, etag, metadata }).await
}

async fn send<F: Files, C: Connection>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    node: &F::Node,
    file: &Representation,
) -> Result<(), Failure> {
    let request = exchange.request;
    let version = file.version(exchange.wire.clock);
    match version.check(request) {
        Outcome::Send => {}
        Outcome::Failed => return Err(Status::PreconditionFailed.into()),
        Outcome::NotModified => {
            let head = file.describe(exchange.head(Status::NotModified));
            return Ok(exchange.wire.send_head(head, Length::None).await?);
        }
    }
    let size = file.metadata.size;
    let Some(parts) = select(request.range.filter(|_| version.allows_range(request)), size) else {
        let size = format_args!("bytes */{size}");
        return Err(Refusal::from(Status::RangeNotSatisfiable).with("Content-Range", size).into());
    };
    let (status, part) = match parts[..] {
        [] => (Status::Ok, Part { start: 0, end: size }),
        [part] => (Status::PartialContent, part),
        _ => {
            let head = file.describe(exchange.head(Status::PartialContent));
            return body::send_parts(files, exchange.wire, node, head, &parts, file).await;
        }
    };
    let mut head = file.describe(exchange.head(status)).field("Accept-Ranges", "bytes");
    if status == Status::PartialContent {
        head = head.field("Content-Range", &content_range(part, size));
    }
    let head = head.field("Content-Type", file.mime);
    let length = Length::Known(part.end.saturating_sub(part.start));
    if request.method == Method::Head || length == Length::Known(0) {
        return Ok(exchange.wire.send_head(head, length).await?);
    }
    let (status, text) = head.finish(length);
    body::send_part(files, exchange.wire, node, Some(status), text, part).await
}

/// The best of what is there and accepted, if that is not the file itself: one beside it has the same content
/// coded.
async fn find_coded<F: Files>(
    files: &F,
    accepted: Accepted,
    path: &[u8],
) -> Result<Option<(Coding, F::Node)>, Failure> {
    for coding in accepted.in_order() {
        if coding == Coding::Identity {
            return Ok(None);
        }
        match files.lookup(&beside(path, coding.suffix())?).await {
            Ok(node) if files.metadata(&node).kind == Kind::File => return Ok(Some((coding, node))),
            Err(error @ FsError::NoMemory) => return Err(error.into()),
            // Whatever is wrong with that one, there may be another.
            _ => {}
        }
    }
    Err(Refusal::from(Status::NotAcceptable).with("Vary", "Accept-Encoding").into())
}

fn beside(path: &[u8], suffix: &str) -> Result<Vec<u8>, NoMemory> {
    let mut beside = Vec::new();
    beside.try_reserve_exact(path.len().saturating_add(suffix.len())).map_err(|_| NoMemory)?;
    beside.extend_from_slice(path);
    beside.extend_from_slice(suffix.as_bytes());
    Ok(beside)
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

/// A file as it is sent.
pub(super) struct Representation {
    pub mime: &'static str,
    is_text: bool,
    coding: Coding,
    etag: String<64>,
    pub metadata: Metadata,
}

impl Representation {
    fn modified(&self) -> Option<u64> {
        u64::try_from(self.metadata.mtime).ok()
    }

    fn version<'a>(&'a self, clock: &'a Clock) -> Validators<'a> {
        Validators { etag: Some(&self.etag), modified: self.modified(), clock }
    }

    /// Says which version this is, and on what that depends.
    fn describe(&self, head: Head) -> Head {
        let mut head = head.field("ETag", &self.etag);
        if let Some(modified) = self.modified() {
            let date = fixdate(modified);
            head = head.field("Last-Modified", core::str::from_utf8(&date).unwrap_or_default());
        }
        if let Some(coding) = self.coding.name() {
            head = head.field("Content-Encoding", coding);
        }
        // Also where there is nothing to choose from: to know that costs two looks at the disk.
        if self.is_text || self.coding != Coding::Identity {
            head = head.field("Vary", "Accept-Encoding");
        }
        head
    }
}

/// Three numbers in hexadecimal, and the coding: another name may lead to the same file.
fn etag(metadata: &Metadata, coding: Coding) -> String<64> {
    let &Metadata { inode, size, mtime, .. } = metadata;
    let mut etag = String::new();
    // 55 bytes at most.
    for (before, number) in [("\"", inode.into()), ("-", size), ("-", u64::try_from(mtime).unwrap_or(0))] {
        let _ = etag.push_str(before);
        let _ = etag.push_str(Digits::<16>::new::<16>(number).as_str());
    }
    let _ = etag.push_str(coding.suffix());
    let _ = etag.push('"');
    etag
}

/// The value of `Content-Range`.
pub(super) fn content_range(Part { start, end }: Part, size: u64) -> String<72> {
    let [start, last, size] = [start, end.saturating_sub(1), size].map(Digits::<20>::new::<10>);
    let mut range = String::new();
    for piece in ["bytes ", start.as_str(), "-", last.as_str(), "/", size.as_str()] {
        // 68 bytes at most.
        let _ = range.push_str(piece);
    }
    range
}
