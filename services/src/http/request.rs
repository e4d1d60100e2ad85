//! Reading a request head: what this server needs of it, or the status that refuses it.

use core::mem::MaybeUninit;

use httparse::{Error, Header};

use super::Status;
use super::few::Few;

/// Most header fields in a request.
const MAX_HEADERS: usize = 64;
/// Longest request target in bytes.
pub const MAX_TARGET: usize = 4 << 10;
/// Longest request head in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// A list may be spread over so many fields.
const MAX_REPEATS: usize = 4;

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

/// The values of a field that is a list, in their order; empty if there is no such field.
pub type List<'a> = Few<&'a str, MAX_REPEATS>;

/// A request head, checked. All text is where it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// Path part of the target as sent, percent-encoded.
    pub path: &'a str,
    /// Query part with its `?`, or empty.
    pub query: &'a str,
    /// Whether the client speaks HTTP/1.1, and so knows chunked encoding.
    pub http_1_1: bool,
    /// Whether the client lets the connection live on.
    pub keep_alive: bool,
    /// What follows the head.
    pub body: Body,
    /// `Range`, only for GET.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-Match`.
    pub if_match: List<'a>,
    /// `If-None-Match`.
    pub if_none_match: List<'a>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<&'a str>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<&'a str>,
    /// `Accept-Encoding`.
    pub accept_encoding: List<'a>,
}

impl Request<'_> {
    /// Stands for one that could not be read.
    pub(super) const fn unread() -> Self {
        Self {
            method: Method::Get,
            path: "",
            query: "",
            http_1_1: true,
            keep_alive: false,
            body: Body::Unread,
            range: None,
            if_range: None,
            if_match: List::new(""),
            if_none_match: List::new(""),
            if_modified_since: None,
            if_unmodified_since: None,
            accept_encoding: List::new(""),
        }
    }
}

/// The state of the bytes received so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and lives on the stack")]
pub enum Parsed<'a> {
    /// The head is not complete.
    Partial,
    /// A request, and the length of its head in bytes.
    Complete(Request<'a>, usize),
    /// To be answered with this status and closed.
    Refused(Status),
}

/// Parses the beginning of `bytes`. What it says of a beginning that is not [`Partial`](Parsed::Partial) it
/// says of all that begins so: the answer does not depend on the pieces in which a request arrives.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    match attempt(bytes) {
        Parsed::Refused(status) => Parsed::Refused(first_refusal(bytes, status)),
        parsed => parsed,
    }
}

/// The status of the shortest beginning that is refused: what comes later may be wrong in other ways.
fn first_refusal(bytes: &[u8], mut status: Status) -> Status {
    let (mut partial, mut refused) = (0, bytes.len());
    while refused.saturating_sub(partial) > 1 {
        let middle = partial.midpoint(refused);
        match bytes.get(..middle).map(attempt) {
            Some(Parsed::Refused(earlier)) => (refused, status) = (middle, earlier),
            _ => partial = middle,
        }
    }
    status
}

fn attempt(bytes: &[u8]) -> Parsed<'_> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    match head.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Partial) => partial(&head, bytes),
        Ok(httparse::Status::Complete(length)) => match check(&head) {
            Ok(request) => Parsed::Complete(request, length),
            Err(status) => Parsed::Refused(status),
        },
        Err(Error::TooManyHeaders) => Parsed::Refused(Status::HeadersTooLarge),
        Err(Error::Version) => match first_line(bytes) {
            // The rest of the line decides what is wrong with it.
            None => partial(&head, bytes),
            Some(line) if names_http_version(line) => Parsed::Refused(Status::VersionNotSupported),
            Some(_) => Parsed::Refused(Status::BadRequest),
        },
        Err(_) => Parsed::Refused(Status::BadRequest),
    }
}

/// An incomplete head is refused as soon as it cannot become an acceptable one.
fn partial<'a>(head: &httparse::Request<'_, '_>, bytes: &[u8]) -> Parsed<'a> {
    let target = match (head.method, head.path) {
        (_, Some(path)) => path.len(),
        // The target is still arriving: everything after the method and a space is part of it.
        (Some(method), None) => skip_empty_lines(bytes).len().saturating_sub(method.len()).saturating_sub(1),
        (None, None) => 0,
    };
    match bytes.len() {
        _ if target > MAX_TARGET => Parsed::Refused(Status::UriTooLong),
        MAX_HEAD.. => Parsed::Refused(Status::HeadersTooLarge),
        _ => Parsed::Partial,
    }
}

/// Empty lines before a request are none of it (RFC 9112 section 2.2).
fn skip_empty_lines(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}

/// The request line, once it is complete.
pub fn first_line(bytes: &[u8]) -> Option<&[u8]> {
    let start = skip_empty_lines(bytes);
    let line = start.get(..start.iter().position(|&byte| byte == b'\n')?)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// Whether a request line has the three parts that it should have, so that the version is all that is wrong.
fn names_http_version(line: &[u8]) -> bool {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(_), Some(_), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return false;
    };
    matches!(version, [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit())
}

fn check<'a>(head: &httparse::Request<'_, 'a>) -> Result<Request<'a>, Status> {
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(Status::BadRequest);
    };
    if target.len() > MAX_TARGET {
        return Err(Status::UriTooLong);
    }
    let method = method_of(method);
    let http_1_1 = version == 1;
    let fields = Fields::of(head.headers)?;
    // RFC 9112 section 3.2: exactly one in HTTP/1.1, at most one in HTTP/1.0.
    if fields.hosts > 1 || (http_1_1 && fields.hosts == 0) {
        return Err(Status::BadRequest);
    }
    let (path, query) = match method {
        Method::Get | Method::Head => split_target(target)?,
        // Answered without looking at the target, which may be `*` or `host:port`.
        _ => ("/", ""),
    };
    Ok(Request {
        method,
        path,
        query,
        http_1_1,
        keep_alive: !fields.close && (http_1_1 || fields.keep_alive),
        body: fields.body()?,
        range: fields.range.value.filter(|_| method == Method::Get),
        if_range: fields.if_range.value,
        if_match: fields.if_match,
        if_none_match: fields.if_none_match,
        if_modified_since: fields.if_modified_since.value,
        if_unmodified_since: fields.if_unmodified_since.value,
        accept_encoding: fields.accept_encoding,
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

/// The value of a field that makes sense only once; repeated or unreadable ones are as good as absent.
#[derive(Default)]
struct Single<'a> {
    value: Option<&'a str>,
    repeated: bool,
}

impl<'a> Single<'a> {
    fn add(&mut self, value: &'a [u8]) {
        self.value = text(value).ok().filter(|_| !self.repeated);
        self.repeated = true;
    }
}

/// The fields that matter here, from one look at all there are.
struct Fields<'a> {
    hosts: usize,
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
    /// Whether there is a transfer coding, and the last is `chunked`.
    is_chunked: Option<bool>,
    expects: bool,
    range: Single<'a>,
    if_range: Single<'a>,
    if_match: List<'a>,
    if_none_match: List<'a>,
    if_modified_since: Single<'a>,
    if_unmodified_since: Single<'a>,
    accept_encoding: List<'a>,
}

impl<'a> Fields<'a> {
    fn of(headers: &[Header<'a>]) -> Result<Self, Status> {
        let mut fields = Self {
            hosts: 0,
            close: false,
            keep_alive: false,
            length: None,
            is_chunked: None,
            expects: false,
            range: Single::default(),
            if_range: Single::default(),
            if_match: List::new(""),
            if_none_match: List::new(""),
            if_modified_since: Single::default(),
            if_unmodified_since: Single::default(),
            accept_encoding: List::new(""),
        };
        headers.iter().try_for_each(|header| fields.add(header))?;
        Ok(fields)
    }

    fn add(&mut self, &Header { name, value }: &Header<'a>) -> Result<(), Status> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => {
                check_host(text(value)?)?;
                self.hosts = self.hosts.saturating_add(1);
            }
            5 if is("range") => self.range.add(value),
            6 if is("expect") => self.expects = true,
            8 if is("if-range") => self.if_range.add(value),
            8 if is("if-match") => push(&mut self.if_match, value)?,
            10 if is("connection") => self.connection(text(value)?),
            13 if is("if-none-match") => push(&mut self.if_none_match, value)?,
            14 if is("content-length") => self.content_length(text(value)?)?,
            15 if is("accept-encoding") => push(&mut self.accept_encoding, value)?,
            17 if is("transfer-encoding") => self.transfer_encoding(text(value)?),
            17 if is("if-modified-since") => self.if_modified_since.add(value),
            19 if is("if-unmodified-since") => self.if_unmodified_since.add(value),
            _ => {}
        }
        Ok(())
    }

    fn connection(&mut self, options: &str) {
        for option in options.split(',').map(str::trim) {
            self.close |= option.eq_ignore_ascii_case("close");
            self.keep_alive |= option.eq_ignore_ascii_case("keep-alive");
        }
    }

    /// RFC 9112 section 6. Anything two programs could read differently (request smuggling) is a bad request.
    fn content_length(&mut self, numbers: &str) -> Result<(), Status> {
        for number in numbers.split(',').map(str::trim) {
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|_| digits).ok_or(Status::BadRequest)?;
            if self.length.is_some_and(|length| length != number) {
                return Err(Status::BadRequest);
            }
            self.length = Some(number);
        }
        Ok(())
    }

    fn transfer_encoding(&mut self, codings: &str) {
        let last = codings.rsplit(',').next().unwrap_or_default().trim();
        self.is_chunked = Some(last.eq_ignore_ascii_case("chunked"));
    }

    fn body(&self) -> Result<Body, Status> {
        match (self.is_chunked, self.length) {
            (Some(_), Some(_)) | (Some(false), None) => Err(Status::BadRequest),
            (Some(true), None) => Ok(Body::Unread),
            (None, Some(1..)) if self.expects => Ok(Body::Unread),
            (None, length) => Ok(Body::Length(length.unwrap_or(0))),
        }
    }
}

/// A value as text. One that is not UTF-8 is a bad request.
fn text(value: &[u8]) -> Result<&str, Status> {
    core::str::from_utf8(value).map(str::trim).map_err(|_| Status::BadRequest)
}

/// Adds to a list. An unreadable value is there, but names nothing.
fn push<'a>(list: &mut List<'a>, value: &'a [u8]) -> Result<(), Status> {
    if list.push(text(value).unwrap_or_default()) { Ok(()) } else { Err(Status::HeadersTooLarge) }
}

fn check_host(host: &str) -> Result<(), Status> {
    let valid = |b: u8| {
        let mark = matches!(b, b'%'..=b'.' | b':' | b';' | b'!' | b'$' | b'=' | b'[' | b']' | b'_' | b'~');
        b.is_ascii_alphanumeric() || mark
    };
    // An http address without a host is none (RFC 9110 section 4.2.1).
    if !host.is_empty() && host.bytes().all(valid) { Ok(()) } else { Err(Status::BadRequest) }
}

/// Origin form, or absolute form without its scheme and authority (RFC 9112 section 3.2). Fragments are for
/// clients alone.
fn split_target(target: &str) -> Result<(&str, &str), Status> {
    if target.bytes().any(|byte| byte == b'#') {
        return Err(Status::BadRequest);
    }
    let origin = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Status::BadRequest);
        }
        rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/")
    };
    let end = origin.bytes().position(|byte| byte == b'?').unwrap_or(origin.len());
    let (path, query) = origin.split_at_checked(end).unwrap_or((origin, ""));
    Ok((if path.is_empty() { "/" } else { path }, query))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
