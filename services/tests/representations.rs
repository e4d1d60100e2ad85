//! Which representation of a file is sent, and which of its bytes: conditions, ranges, codings, dates.

mod common;

use common::client::{Client, Response, Then, responses};
use common::{Machine, Tree, byte_at, mounted, quick_limits, server};
use futures::executor::block_on;
use ringfence_services::api::Api;
use ringfence_services::http::Server;

type App = Server<Tree, Api<Machine>>;

fn get(server: &App, target: &str, fields: &str) -> Response {
    let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let mut client = Client::new(request.as_bytes(), Then::Finish);
    block_on(server.serve(&mut client, || false));
    let mut all = responses(&client.output, &[]);
    assert_eq!(all.len(), 1, "{request:?} -> {all:?}");
    all.remove(0)
}

fn status(server: &App, target: &str, fields: &[&str]) -> u16 {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    get(server, target, &fields).status
}

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// The rows of RFC 9110 section 13.2.2, each condition alone and with those that come after it.
#[test]
fn conditions_in_their_order() {
    let server = server(Tree::default().with("/a.txt", "0123456789").with("/b.txt", "0123456789"));
    let first = get(&server, "/a.txt", "");
    let etag = first.field("ETag").unwrap();
    assert_ne!(get(&server, "/b.txt", "").field("ETag"), Some(etag));
    let [same, other, weak, list] =
        [etag.into(), "\"x\"".into(), format!("W/{etag}"), format!("\"x\" , {etag},W/\"y\"")];
    let (before, after) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
    let (rfc850, asctime) = ("Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994");
    let case = |fields: &[(&str, &str)], expected: u16| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        assert_eq!(status(&server, "/a.txt", &fields), expected, "{fields:?}");
    };
    const MATCH: &str = "If-Match";
    const NONE: &str = "If-None-Match";
    const SINCE: &str = "If-Modified-Since";
    const UNMODIFIED: &str = "If-Unmodified-Since";
    for (value, holds) in [
        (&same, true),
        (&list, true),
        (&"*".into(), true),
        (&other, false),
        (&weak, false),
        (&"x".into(), false),
    ] {
        case(&[(MATCH, value)], if holds { 200 } else { 412 });
        // What comes after it in the order is looked at only if it holds; If-Unmodified-Since not at all.
        case(&[(NONE, &same), (MATCH, value)], if holds { 304 } else { 412 });
        case(&[(UNMODIFIED, before), (MATCH, value)], if holds { 200 } else { 412 });
        case(&[("Range", "bytes=0-1"), (MATCH, value)], if holds { 206 } else { 412 });
        case(&[("Range", "bytes=99-"), (MATCH, value)], if holds { 416 } else { 412 });
    }
    // Spread over two fields.
    case(&[(MATCH, &other), (MATCH, &same)], 200);
    case(&[(NONE, &other), (NONE, &same)], 304);
    for (date, holds) in [
        (DATE, true),
        (after, true),
        (rfc850, true),
        (asctime, true),
        (before, false),
        ("x", true),
        ("0", true),
    ] {
        case(&[(UNMODIFIED, date)], if holds { 200 } else { 412 });
        case(&[(UNMODIFIED, date), (NONE, &same)], if holds { 304 } else { 412 });
    }
    for (value, known) in [
        (&same, true),
        (&weak, true),
        (&list, true),
        (&"*".into(), true),
        (&other, false),
        (&"x".into(), false),
    ] {
        case(&[(NONE, value)], if known { 304 } else { 200 });
        case(&[(NONE, value), ("Range", "bytes=0-1")], if known { 304 } else { 206 });
        // A date does not count beside a tag.
        case(&[(SINCE, DATE), (NONE, value)], if known { 304 } else { 200 });
        case(&[(SINCE, before), (NONE, value)], if known { 304 } else { 200 });
    }
    for (date, known) in [
        (DATE, true),
        (after, true),
        ("Fri, 27 Nov 2026 11:20:03 GMT", true),
        (rfc850, true),
        (asctime, true),
        (before, false),
        ("Sunday, 06-Nov-93 08:49:37 GMT", false),
        ("x", false),
    ] {
        case(&[(SINCE, date)], if known { 304 } else { 200 });
    }
    for (value, same) in [
        (same.as_str(), true),
        (DATE, true),
        (asctime, true),
        (after, false),
        (before, false),
        (&other, false),
        (&weak, false),
        ("*", false),
    ] {
        case(&[("Range", "bytes=1-2"), ("If-Range", value)], if same { 206 } else { 200 });
        case(&[("If-Range", value)], 200);
        case(&[("Range", "bytes=99-"), ("If-Range", value)], if same { 416 } else { 200 });
    }
    // What is not there, or is elsewhere, has no version.
    for (target, code) in [("/none", 404), ("/dir", 404), ("/%zz", 400)] {
        assert_eq!(status(&server, target, &["If-Match: \"x\"", "If-None-Match: *"]), code, "{target}");
    }
    // A listing has none either, but it is there.
    assert_eq!(status(&server, "/", &["If-Match: \"x\""]), 412);
    assert_eq!(status(&server, "/", &["If-Match: *"]), 200);
    assert_eq!(status(&server, "/", &["If-None-Match: *"]), 304);
    assert_eq!(status(&server, "/", &[&format!("If-Unmodified-Since: {before}")]), 200);
}

#[test]
fn what_a_304_tells() {
    let server = server(Tree::default().with("/a.txt", "0123456789"));
    let whole = get(&server, "/a.txt", "");
    let got = get(&server, "/a.txt", &format!("If-Modified-Since: {DATE}\r\n"));
    for name in ["ETag", "Last-Modified", "Vary"] {
        assert_eq!(got.field(name), whole.field(name), "{name}");
        assert!(got.field(name).is_some(), "{name}");
    }
    assert_eq!((got.status, got.body.len(), got.field("Content-Length")), (304, 0, None));
}

#[test]
fn every_response_has_a_date_where_there_is_a_clock() {
    let tree = || Tree::default().with("/a.txt", "0123456789");
    let with = Server::new(mounted(tree()), Api(Machine::default()), quick_limits())
        .with_clock(|| Some(784_111_777));
    let without = server(tree());
    for target in ["/a.txt", "/", "/none", "/%", "/metrics", "/a.txt?x\r\nIf-Match: x"] {
        assert_eq!(get(&with, target, "").field("Date"), Some(DATE), "{target}");
        assert_eq!(get(&without, target, "").field("Date"), None, "{target}");
    }
    let mut client = Client::new(b"junk\r\n\r\n", Then::Finish);
    block_on(with.serve(&mut client, || false));
    assert_eq!(responses(&client.output, &[])[0].field("Date"), Some(DATE));
    // The year 76 is over 50 years ahead of 1994, and within 50 years of 2026.
    let date = "If-Modified-Since: Wednesday, 01-Jan-76 00:00:00 GMT\r\n";
    assert_eq!(get(&with, "/a.txt", date).status, 200);
    let later = Server::new(mounted(tree()), Api(Machine::default()), quick_limits())
        .with_clock(|| Some(1_795_000_000));
    assert_eq!(get(&later, "/a.txt", date).status, 304);
}

/// Takes a `multipart/byteranges` body apart: the `Content-Range` and the bytes of each part.
fn parts(response: &Response) -> Vec<(String, Vec<u8>)> {
    let mime = response.field("Content-Type").unwrap();
    let boundary = mime.strip_prefix("multipart/byteranges; boundary=").expect(mime);
    assert!(boundary.len() < 70 && boundary.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = response.body.strip_prefix(delimiter.as_bytes()).expect("a delimiter");
    let mut parts = Vec::new();
    loop {
        if rest == b"--\r\n" {
            return parts;
        }
        let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let text = String::from_utf8(rest[..head].to_vec()).unwrap();
        assert!(text.contains("\r\nContent-Type: application/octet-stream\r\n"), "{text}");
        let range = text.split("Content-Range: ").nth(1).unwrap().lines().next().unwrap().to_string();
        let end = rest.windows(delimiter.len()).position(|w| w == delimiter.as_bytes()).unwrap();
        parts.push((range, rest[head..end].to_vec()));
        rest = &rest[end + delimiter.len()..];
    }
}

#[test]
fn several_ranges() {
    let size = 300_000;
    let server = server(Tree::default().with_generated("/big.bin", size));
    for (range, expected) in [
        ("0-0,2-2", vec![0..1, 2..3]),
        ("5-9, 0-3", vec![5..10, 0..4]),
        ("0-99999,-100000", vec![0..100_000, 200_000..300_000]),
        ("32767-32768,100000-299999,0-32766", vec![32_767..32_769, 100_000..size, 0..32_767]),
        ("0-0,299999-,400000-", vec![0..1, 299_999..size]),
    ] {
        let got = get(&server, "/big.bin", &format!("Range: bytes={range}\r\n"));
        assert_eq!((got.status, got.field("Content-Range")), (206, None), "{range}");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|range| (format!("bytes {}-{}/{size}", range.start, range.end - 1), range))
            .map(|(text, range)| (text, range.map(byte_at).collect::<Vec<_>>()))
            .collect();
        assert!(parts(&got) == expected, "{range}");
        assert_eq!(
            get(&server, "/big.bin", &format!("Range: bytes={range}\r\nIf-Range: \"x\"\r\n")).status,
            200
        );
    }
    // The first piece is read before anything is said; later the connection is all there is to tell by.
    server.files().unwrap().read_fault.set(Some((0, common::FaultKind::Io)));
    assert_eq!(get(&server, "/big.bin", "Range: bytes=0-0,2-2\r\n").status, 500);
    server.files().unwrap().read_fault.set(Some((2, common::FaultKind::Io)));
    let mut client =
        Client::new(b"GET /big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes=0-0,2-2\r\n\r\n", Then::Finish);
    assert_eq!(block_on(server.serve(&mut client, || false)), ringfence_services::http::End::Abort);
    // Who asks for too much, or for the same twice, gets the whole.
    for range in ["0-10,5-6", "-5,-6", &"0-0,2-2,4-4,".repeat(6)] {
        server.files().unwrap().read_fault.set(None);
        let got = get(&server, "/big.bin", &format!("Range: bytes={range}\r\n"));
        assert_eq!((got.status, got.body.len()), (200, size as usize), "{range}");
    }
}

fn coded_site() -> Tree {
    Tree::default()
        .with("/a.html", "plain")
        .with("/a.html.br", "br")
        .with("/a.html.gz", "gzip")
        .with("/b.js", "plain")
        .with("/b.js.gz", "gzip")
        .with("/c.css", "plain")
        .with("/d/index.html", "plain")
        .with("/d/index.html.gz", "gzip")
        .with("/e.css", "plain")
        .with("/e.css.gz/file", "a folder")
        .with("/f.png", "plain")
        .with("/f.png.gz", "gzip")
}

#[test]
fn files_that_are_there_compressed() {
    let server = server(coded_site());
    for (target, accepted, body) in [
        ("/a.html", None, "plain"),
        ("/a.html", Some(""), "plain"),
        ("/a.html", Some("gzip, deflate, br"), "br"),
        ("/a.html", Some("gzip"), "gzip"),
        ("/a.html", Some("br;q=0.5, gzip;q=0.8"), "gzip"),
        ("/a.html", Some("br;q=0, gzip;q=0"), "plain"),
        ("/a.html", Some("*"), "br"),
        ("/a.html", Some("deflate, zstd"), "plain"),
        ("/a.html", Some("identity, gzip;q=0.5"), "plain"),
        ("/a.html", Some("identity;q=0, *"), "br"),
        ("/b.js", Some("br, gzip;q=0.1"), "gzip"),
        ("/b.js", Some("br, identity;q=0.1"), "plain"),
        ("/c.css", Some("br, gzip"), "plain"),
        ("/d/", Some("br, gzip"), "gzip"),
        ("/e.css", Some("gzip"), "plain"),
        // Not worth looking for, unless nothing else will do.
        ("/f.png", Some("gzip"), "plain"),
        ("/f.png", Some("gzip, identity;q=0"), "gzip"),
    ] {
        let fields = accepted.map(|list| format!("Accept-Encoding: {list}\r\n")).unwrap_or_default();
        let got = get(&server, target, &fields);
        assert_eq!((got.status, got.text().as_str()), (200, body), "{target} {accepted:?}");
        let plain = get(&server, target, "");
        assert_eq!(got.field("Content-Type"), plain.field("Content-Type"));
        assert_eq!(got.field("Content-Encoding"), Some(body).filter(|body| *body != "plain"));
        assert_eq!(got.field("ETag") == plain.field("ETag"), body == "plain");
        let varies = !target.ends_with(".png") || body != "plain";
        assert_eq!(got.field("Vary"), varies.then_some("Accept-Encoding"), "{target}");
    }
    for (target, accepted) in [("/c.css", "gzip, identity;q=0"), ("/f.png", "*;q=0"), ("/a.html", "*;q=0")] {
        let got = get(&server, target, &format!("Accept-Encoding: {accepted}\r\n"));
        assert_eq!((got.status, got.field("Vary")), (406, Some("Accept-Encoding")), "{target} {accepted}");
    }
    // By its own name such a file is one like others.
    let got = get(&server, "/a.html.gz", "Accept-Encoding: gzip\r\n");
    assert_eq!((got.field("Content-Type"), got.field("Content-Encoding")), (Some("application/gzip"), None));
}

#[test]
fn conditions_and_ranges_are_of_the_coded_file() {
    let server = server(coded_site());
    let [plain, gzip] = ["", "Accept-Encoding: gzip\r\n"]
        .map(|fields| get(&server, "/a.html", fields).field("ETag").unwrap().to_string());
    let with = |etag: &str, more: &str| {
        get(&server, "/a.html", &format!("Accept-Encoding: gzip\r\nIf-None-Match: {etag}\r\n{more}"))
    };
    assert_eq!((with(&plain, "").status, with(&gzip, "").status), (200, 304));
    let got = with("\"x\"", "Range: bytes=1-2\r\n");
    assert_eq!(
        (got.status, got.text().as_str(), got.field("Content-Range")),
        (206, "zi", Some("bytes 1-2/4"))
    );
    let got = get(&server, "/a.html", &format!("Range: bytes=1-2\r\nIf-Range: {gzip}\r\n"));
    assert_eq!((got.status, got.text().as_str()), (200, "plain"));
}

/// The machine's own addresses hide files, and nothing else: what is listed can be reached.
#[test]
fn nothing_listed_is_out_of_reach() {
    let server = server(
        Tree::default()
            .with("/metrics", "hidden")
            .with("/dashboard/index.html", "shown")
            .with("/api/devices", "hidden")
            .with("/api/memory/x", "shown")
            .with("/api/v1.json", "shown")
            .with("/metrics.txt", "shown")
            .with("/..\\up.txt", "shown")
            .with("/a\\..\\b", "shown")
            .with("/sp ace", "shown")
            .with("/a:b", "shown")
            .with("/%41?#&amp;\"'<", "shown")
            .with("/dev/null.dev", "a device")
            .with_raw(b"/\xff\x80\n\t\x7f", b"shown"),
    );
    let mut left = vec!["/".to_string()];
    let mut files = 0;
    while let Some(folder) = left.pop() {
        let page = get(&server, &folder, "");
        assert_eq!(page.status, 200, "{folder}");
        let page = page.text();
        assert_eq!(page.contains("are left out"), folder == "/" || folder == "/api/", "{folder}");
        for link in page.split("href=\"./").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let target = format!("{folder}{link}");
            if link.ends_with('/') && link != "dashboard/" {
                left.push(target);
                continue;
            }
            let got = get(&server, &target, "");
            assert_eq!((got.status, got.text().as_str()), (200, "shown"), "{target}");
            files += 1;
        }
    }
    assert_eq!(files, 10);
    for target in ["/metrics", "/api/devices", "/api/memory"] {
        assert_ne!(get(&server, target, "").text(), "hidden", "{target}");
        assert_eq!(get(&server, target, "").status, 200, "{target}");
    }
}

/// Every answer is the same, byte by byte, however its request is cut into two, and in single bytes.
#[test]
fn answers_do_not_depend_on_the_pieces() {
    let server = server(coded_site().with("/a.txt", "0123456789"));
    let next = "GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    for request in [
        "GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n",
        "HEAD /far HEAD /far HTTP/1.0\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.12\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /\r\n\r\n",
        "get / HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\n\r\nGET /a.html HTTP/1.1\r\nHost: h\r\nAccept-Encoding: br\r\nRange: bytes=0-0\r\n\r\n",
        "GET /a.txt HTTP/1.1\nHost: h\n\n",
        "GET /a.txt HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
        "GET /a.txt HTTP/1.1\r\nHost : h\r\n\r\n",
        "GET /a.txt HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "POST /a.txt HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world",
        "POST /a.txt HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\n\x00",
    ] {
        let text = format!("{request}{next}").into_bytes();
        let ask = |pieces: Vec<&[u8]>| {
            let pieces = pieces.into_iter().map(|piece| (std::time::Duration::ZERO, piece.to_vec()));
            let mut client = Client::pieces(pieces, Then::Finish);
            let end = block_on(server.serve(&mut client, || false));
            (end, String::from_utf8(client.output).unwrap())
        };
        let whole = ask(vec![&text]);
        assert!(whole.1.starts_with("HTTP/1.1 "), "{request:?}");
        for cut in 1..text.len() {
            assert_eq!(ask(vec![&text[..cut], &text[cut..]]), whole, "{request:?} cut at {cut}");
        }
        assert_eq!(ask(text.chunks(1).collect()), whole, "{request:?} in single bytes");
    }
}
