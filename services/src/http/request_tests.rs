use super::*;
use proptest::prelude::*;
use std::format;
use std::vec::Vec;

fn request(text: &str) -> Request<'_> {
    match parse(text.as_bytes()) {
        Parsed::Complete(request, length) => {
            assert_eq!(length, text.len(), "{text:?}");
            request
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

fn refused(bytes: &[u8]) -> Status {
    match parse(bytes) {
        Parsed::Refused(status) => status,
        other => panic!("{:?}: {other:?}", bytes.escape_ascii()),
    }
}

#[test]
fn a_browsers_request() {
    let got = request(
        "GET /a/b?x=1&y=/ HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: x\r\nrange: bytes=0-3\r\n\
         If-None-Match: \"a\"\r\nIf-None-Match: W/\"b\"\r\nIf-Modified-Since: now\r\n\r\n",
    );
    assert_eq!((got.method, got.http_1_1, got.keep_alive), (Method::Get, true, true));
    assert_eq!((got.path, got.query), ("/a/b", "?x=1&y=/"));
    assert_eq!(got.range, Some("bytes=0-3"));
    assert_eq!(got.if_none_match[..], ["\"a\"", "W/\"b\""]);
    assert_eq!((got.if_modified_since, got.if_unmodified_since), (Some("now"), None));
    assert!(got.if_match.is_empty() && got.accept_encoding.is_empty());
    assert_eq!(got.body, Body::Length(0));
}

#[test]
fn targets() {
    for (target, path, query) in [
        ("/", "/", ""),
        ("/?", "/", "?"),
        ("http://h/a?b", "/a", "?b"),
        ("HTTP://h:80", "/", ""),
        ("http://h?q", "/", "?q"),
        ("//h/a", "//h/a", ""),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let got = request(&text);
        assert_eq!((got.path, got.query), (path, query), "{target}");
    }
    for target in ["*", "a", "h:80", "ftp://h/a", "://", "/a#b", "/#", "/?a#b"] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), Status::BadRequest, "{target}");
    }
}

#[test]
fn methods() {
    for (name, method) in [
        ("GET", Method::Get),
        ("HEAD", Method::Head),
        ("POST", Method::NotAllowed),
        ("OPTIONS", Method::NotAllowed),
        ("CONNECT", Method::NotAllowed),
        ("get", Method::Unknown),
        ("BREW", Method::Unknown),
    ] {
        assert_eq!(request(&format!("{name} / HTTP/1.0\r\n\r\n")).method, method, "{name}");
    }
}

#[test]
fn connections() {
    for (version, header, keep) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: keep-alive, Close\r\n", false),
        ("1.1", "Connection: upgrade\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let text = format!("GET / HTTP/{version}\r\nHost: h\r\n{header}\r\n");
        let got = request(&text);
        assert_eq!(got.keep_alive, keep, "{version} {header}");
    }
}

#[test]
fn bodies() {
    for (header, body) in [
        ("Content-Length: 5\r\n", Body::Length(5)),
        ("Content-Length: 5, 5\r\n", Body::Length(5)),
        ("Transfer-Encoding: chunked\r\n", Body::Unread),
        ("Transfer-Encoding: gzip, Chunked\r\n", Body::Unread),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Body::Unread),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n", Body::Unread),
    ] {
        assert_eq!(request(&format!("GET / HTTP/1.1\r\nHost: h\r\n{header}\r\n")).body, body, "{header}");
    }
    for header in [
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: ",
        "Content-Length: 1x",
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding:",
    ] {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), Status::BadRequest, "{header}");
    }
}

#[test]
fn bad_heads() {
    use Status::{BadRequest, HeadersTooLarge, UriTooLong, VersionNotSupported};
    let long = "x".repeat(MAX_TARGET + 1);
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    let big = "y".repeat(MAX_HEAD);
    for (text, status) in [
        ("GET / HTTP/1.1\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: h\r\nBad Header: x\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n folded\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n".into(), BadRequest),
        ("GET /\r\n\r\n".into(), BadRequest),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into(), BadRequest),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".into(), BadRequest),
        ("GET /a b HTTP/2.0\r\nHost: h\r\n\r\n".into(), BadRequest),
        ("HEAD /far HEAD /far HTTP/1.0\r\n\r\n".into(), BadRequest),
        ("/ HTTP/1.1\r\nHost: h\r\n\r\n".into(), BadRequest),
        ("\x16\x03\x01\x02".into(), BadRequest),
        ("GET / HTTP/2.0\r\n\r\n".into(), VersionNotSupported),
        ("GET / HTTP/1.2\r\n\r\n".into(), VersionNotSupported),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), VersionNotSupported),
        ("GET / HTTP/x.1\r\n\r\n".into(), BadRequest),
        ("GET / FTPX/1.1\r\n\r\n".into(), BadRequest),
        (format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"), UriTooLong),
        (format!("GET /{long}{long}"), UriTooLong),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), HeadersTooLarge),
        (format!("GET / HTTP/1.1\r\nHost: h\r\nA: {big}"), HeadersTooLarge),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{big}"), HeadersTooLarge),
    ] {
        assert_eq!(refused(text.as_bytes()), status, "{:.60?}", text);
    }
}

#[test]
fn every_beginning_of_a_good_head_is_partial() {
    let text = b"GET /a%20b HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(parse(&text[..end]), Parsed::Partial, "{end}");
    }
}

/// What is said of a beginning is said of all that begins so. An answer could otherwise depend on the pieces
/// in which a request arrives.
fn assert_beginnings_agree(bytes: &[u8]) {
    let whole = parse(bytes);
    for end in 0..bytes.len() {
        match parse(&bytes[..end]) {
            Parsed::Partial => {}
            beginning => assert_eq!(beginning, whole, "{end} bytes of {}", bytes.escape_ascii()),
        }
    }
}

#[test]
fn beginnings_agree() {
    let long = "x".repeat(MAX_TARGET - 8);
    for text in [
        "HEAD /far HEAD /far HTTP/1.0\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / HTTP/1.1x\r\n\r\n",
        "GET /\x01 HTTP/2.0\r\n\r\n",
        "GET / HTTP/2.0\nHost : h\r\n\r\n",
        &format!("{}GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\r\n".repeat(2500)),
        &format!("GET /{long}12345678 HTTP/1.1\r\nHost : h\r\n\r\n"),
        &format!("GET /{long}12345678 HTTP/3.0\r\nHost : h\r\n\r\n"),
        &format!("GET /{long} {long} HTTP/1.1\r\n"),
        &format!("GET / HTTP/1.1\r\nHost: h\r\nRange : h\r\n{}", "a: b\r\n".repeat(MAX_HEADERS)),
        &format!("GET / HTTP/1.1\r\nHost: h\r\n{}Range : h\r\n", "a: b\r\n".repeat(MAX_HEADERS)),
        &format!("GET /\r\nHost: h\r\n{}Range : h\r\n", "a: b\r\n".repeat(MAX_HEADERS)),
    ] {
        assert_beginnings_agree(text.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Any bytes: no panic, and a full buffer is never left waiting for more.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse(&bytes);
    }

    /// A good head with a few bytes changed, cut or repeated.
    #[test]
    fn damaged_heads(
        edits in proptest::collection::vec(
            (0_usize..200, prop_oneof![any::<u8>(), proptest::sample::select(&b" \r\n:"[..])], 0_u8..3),
            1..6,
        )
    ) {
        let mut bytes: Vec<u8> = b"GET /a/b?c HTTP/1.1\r\nHost: h\r\nRange: bytes=1-2\r\nContent-Length: 3\r\n\
            Connection: keep-alive\r\nIf-None-Match: \"x\"\r\n\r\nabc".to_vec();
        for (at, value, kind) in edits {
            let at = at % bytes.len();
            match kind {
                0 => bytes[at] = value,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, value),
            }
        }
        assert_beginnings_agree(&bytes);
        if let Parsed::Complete(request, length) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
            prop_assert!(request.path.starts_with('/'));
        }
    }

    #[test]
    fn a_full_buffer_is_decided(filler in proptest::collection::vec(0x20_u8..0x7f, MAX_HEAD)) {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: h\r\nX: ".to_vec();
        bytes.extend(filler);
        prop_assert_ne!(parse(&bytes[..MAX_HEAD]), Parsed::Partial);
    }
}
