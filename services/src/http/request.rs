//! Reading a request head: what this server needs of it, or the status that refuses it.

use alloc::string::String;
use httparse::{Error, Header};

use super::Status;
use crate::text;

/// Most header fields in a request.
const MAX_HEADERS: usize = 64;
/// Longest request target in bytes.
pub const MAX_TARGET: usize = 4 << 10;
/// Longest request head in bytes.
pub const MAX_HEAD: usize = 8 << 10;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The resource.
    Get,
    /// Its header fields only.
    Head,
    /// A method of RFC 9110 or 5789 that this server does not offer: 405.
    NotAllowed,
    /// A method nobody has heard of: 501.
    Unknown,
}

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes, possibly none. They can be skipped.
    Length(u64),
    /// Something that this server does not read (chunked, or the client waits for `100 Continue`): the
    /// connection closes after the response.
    Unread,
}

/// A request head, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path part of the target as sent, percent-encoded.
    pub path: String,
    /// Query part with its `?`, or empty.
    pub query: String,
    /// Whether the client speaks HTTP/1.1, and so knows chunked encoding.
    pub http_1_1: bool,
    /// Whether the client lets the connection live on.
    pub keep_alive: bool,
    /// What follows the head.
    pub body: Body,
    /// `Range`, only for GET.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
    /// `If-None-Match`, all fields joined.
    pub if_none_match: Option<String>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<String>,
}

impl Request {
    /// Stands for one that could not be read.
    pub(super) const fn unread() -> Self {
        Self {
            method: Method::Get,
            path: String::new(),
            query: String::new(),
            http_1_1: true,
            keep_alive: false,
            body: Body::Unread,
            range: None,
            if_range: None,
            if_none_match: None,
            if_modified_since: None,
        }
    }
}

/// The state of the bytes received so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head is not complete.
    Partial,
    /// A request, and the length of its head in bytes.
    Complete(Request, usize),
    /// To be answered with this status and closed.
    Refused(Status),
}

/// Parses the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(bytes) {
        Ok(httparse::Status::Partial) => partial(&head, bytes),
        Ok(httparse::Status::Complete(length)) => match check(&head) {
            Ok(request) => Parsed::Complete(request, length),
            Err(status) => Parsed::Refused(status),
        },
        Err(Error::TooManyHeaders) => Parsed::Refused(Status::HeadersTooLarge),
        Err(Error::Version) if names_http_version(bytes) => Parsed::Refused(Status::VersionNotSupported),
        Err(_) => Parsed::Refused(Status::BadRequest),
    }
}

/// An incomplete head is refused as soon as it cannot become an acceptable one.
fn partial(head: &httparse::Request<'_, '_>, bytes: &[u8]) -> Parsed {
    let target = match head.path {
        Some(path) => path.len(),
        // The target is still arriving: everything after the method is part of it.
        None => bytes.len().saturating_sub(head.method.map_or(bytes.len(), str::len)),
    };
    match bytes.len() {
        _ if target > MAX_TARGET => Parsed::Refused(Status::UriTooLong),
        MAX_HEAD.. => Parsed::Refused(Status::HeadersTooLarge),
        _ => Parsed::Partial,
    }
}

/// Whether the first line ends in `HTTP/` and a version, so that the version is all that is wrong.
fn names_http_version(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    let line = start.split(|&b| b == b'\r' || b == b'\n').next().unwrap_or(start);
    let word = line.rsplit(|&b| b == b' ').next().unwrap_or(line);
    matches!(word, [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit())
}

fn check(head: &httparse::Request<'_, '_>) -> Result<Request, Status> {
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(Status::BadRequest);
    };
    if target.len() > MAX_TARGET {
        return Err(Status::UriTooLong);
    }
    let method = method_of(method);
    let http_1_1 = version == 1;
    check_host(head.headers, http_1_1)?;
    let (path, query) = match method {
        Method::Get | Method::Head => split_target(target)?,
        // Answered without looking at the target, which may be `*` or `host:port`.
        _ => ("/", ""),
    };
    Ok(Request {
        method,
        path: copy(path)?,
        query: copy(query)?,
        http_1_1,
        keep_alive: keep_alive(head.headers, http_1_1)?,
        body: body(head.headers)?,
        range: single(head.headers, "range")?.filter(|_| method == Method::Get),
        if_range: single(head.headers, "if-range")?,
        if_none_match: joined(head.headers, "if-none-match")?,
        if_modified_since: single(head.headers, "if-modified-since")?,
    })
}

fn method_of(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS" | "TRACE" | "CONNECT" => Method::NotAllowed,
        _ => Method::Unknown,
    }
}

/// The values of a field, in order. A value that is not ASCII is a bad request.
fn values<'a>(
    headers: &'a [Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = Result<&'a str, Status>> {
    headers
        .iter()
        .filter(move |h| h.name.eq_ignore_ascii_case(name))
        .map(|h| core::str::from_utf8(h.value).map(str::trim).map_err(|_| Status::BadRequest))
}

/// The value of a field that makes sense only once; repeated or unreadable ones are as good as absent.
fn single(headers: &[Header<'_>], name: &'static str) -> Result<Option<String>, Status> {
    let mut values = values(headers, name);
    match (values.next(), values.next()) {
        (Some(Ok(value)), None) => copy(value).map(Some),
        _ => Ok(None),
    }
}

fn joined(headers: &[Header<'_>], name: &'static str) -> Result<Option<String>, Status> {
    let mut all: Option<String> = None;
    for value in values(headers, name).flatten() {
        match &mut all {
            Some(all) => {
                all.try_reserve(value.len().saturating_add(2)).map_err(|_| Status::Unavailable)?;
                all.push_str(", ");
                all.push_str(value);
            }
            None => all = Some(copy(value)?),
        }
    }
    Ok(all)
}

/// A copy of a part of the head; without memory for it the request is refused.
fn copy(part: &str) -> Result<String, Status> {
    text::string(part).map_err(|_| Status::Unavailable)
}

/// RFC 9112 section 3.2: exactly one `Host` with a valid value in HTTP/1.1, at most one in HTTP/1.0.
fn check_host(headers: &[Header<'_>], http_1_1: bool) -> Result<(), Status> {
    let mut hosts = values(headers, "host");
    let valid =
        |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&b));
    match (hosts.next(), hosts.next()) {
        (None, _) if !http_1_1 => Ok(()),
        (Some(Ok(host)), None) if valid(host) => Ok(()),
        _ => Err(Status::BadRequest),
    }
}

/// Origin form, or absolute form without its scheme and authority (RFC 9112 section 3.2).
fn split_target(target: &str) -> Result<(&str, &str), Status> {
    let origin = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Status::BadRequest);
        }
        rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/")
    };
    let (path, query) = origin.split_at(origin.find('?').unwrap_or(origin.len()));
    Ok((if path.is_empty() { "/" } else { path }, query))
}

fn keep_alive(headers: &[Header<'_>], http_1_1: bool) -> Result<bool, Status> {
    let mut keep = http_1_1;
    for value in values(headers, "connection") {
        for option in value?.split(',').map(str::trim) {
            if option.eq_ignore_ascii_case("close") {
                return Ok(false);
            }
            keep |= option.eq_ignore_ascii_case("keep-alive");
        }
    }
    Ok(keep)
}

/// RFC 9112 section 6. Anything two programs could read differently (request smuggling) is a bad request.
fn body(headers: &[Header<'_>]) -> Result<Body, Status> {
    let mut length: Option<u64> = None;
    for value in values(headers, "content-length") {
        for number in value?.split(',').map(str::trim) {
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|_| digits).ok_or(Status::BadRequest)?;
            if length.is_some_and(|length| length != number) {
                return Err(Status::BadRequest);
            }
            length = Some(number);
        }
    }
    let chunked = values(headers, "transfer-encoding").next().is_some();
    match (chunked, length) {
        (true, Some(_)) => Err(Status::BadRequest),
        (true, None) => Ok(Body::Unread),
        (false, Some(1..)) if values(headers, "expect").next().is_some() => Ok(Body::Unread),
        (false, length) => Ok(Body::Length(length.unwrap_or(0))),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
