use super::*;
use proptest::prelude::*;
use std::format;
use std::vec::Vec;

fn request(text: &str) -> Request {
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
    assert_eq!((got.path.as_str(), got.query.as_str()), ("/a/b", "?x=1&y=/"));
    assert_eq!(got.range.as_deref(), Some("bytes=0-3"));
    assert_eq!(got.if_none_match.as_deref(), Some("\"a\", W/\"b\""));
    assert_eq!(got.if_modified_since.as_deref(), Some("now"));
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
        let got = request(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!((got.path.as_str(), got.query.as_str()), (path, query), "{target}");
    }
    for target in ["*", "a", "h:80", "ftp://h/a", "://"] {
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
        let got = request(&format!("GET / HTTP/{version}\r\nHost: h\r\n{header}\r\n"));
        assert_eq!(got.keep_alive, keep, "{version} {header}");
    }
}

#[test]
fn bodies() {
    for (header, body) in [
        ("Content-Length: 5\r\n", Body::Length(5)),
        ("Content-Length: 5, 5\r\n", Body::Length(5)),
        ("Transfer-Encoding: chunked\r\n", Body::Unread),
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
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: h\r\nBad Header: x\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n folded\r\n\r\n".into(), BadRequest),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n".into(), BadRequest),
        ("GET /\r\n\r\n".into(), BadRequest),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into(), BadRequest),
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Any bytes: no panic, and a full buffer is never left waiting for more.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse(&bytes);
    }

    /// A good head with a few bytes changed, cut or repeated.
    #[test]
    fn damaged_heads(edits in proptest::collection::vec((0_usize..200, any::<u8>(), 0_u8..3), 1..6)) {
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
