//! The rules of HTTP, with curl as the client and bare connections for what curl would not send.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::served::{FOLDER, MANY, files_disk};
use super::{Kernel, Run, Server};
use crate::test::client::{Reply, connect, content, curl, read_until_silent};

/// The tests here.
pub const TESTS: &[(&str, Run)] = &[
    ("http::head", head),
    ("http::range", range),
    ("http::statuses", statuses),
    ("http::content_types", content_types),
    ("http::date", date),
    ("http::folders", folders),
    ("http::nothing_outside_the_disk", nothing_outside_the_disk),
    ("http::keep_alive", keep_alive),
    ("http::pipelined", pipelined),
    ("http::malformed", malformed),
    ("http::oversized", oversized),
    ("http::slow_and_cut_off", slow_and_cut_off),
    ("http::random_bytes", random_bytes),
];

fn server(kernel: &Kernel) -> Result<Server> {
    Server::with_disk(kernel, files_disk()?)
}

fn head(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    for (path, status) in [
        ("/1m.bin", 200),
        ("/", 200),
        ("/folder/", 200),
        ("/none", 404),
        ("/metrics", 200),
        ("/api/memory", 200),
    ] {
        let reply = server.get(path, &["--head"])?.expect(status).context(path)?;
        ensure!(reply.body.is_empty(), "{path}: HEAD was answered with a body");
    }
    let length = server.get("/1m.bin", &["--head"])?.header("content-length").to_owned();
    ensure!(length == "1048576", "content-length {length:?}");
    // On one connection with what follows: a body after HEAD would be taken for the next answer.
    let replies = server.raw(
        b"HEAD /notes.txt HTTP/1.1\r\nHost: x\r\n\r\nGET /notes.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )?;
    let second = Reply::parse(&Reply::parse(&replies)?.body)?.expect(200)?;
    ensure!(second.text() == "0123456789", "after HEAD: {:?}", second.text());
    server.finish()
}

fn range(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let size = (5 << 20) + 3;
    let good = [
        ("0-0", 0, 1),
        ("0-", 0, size),
        ("4095-4096", 4095, 4097),
        ("-3", size - 3, size),
        ("1000000-9999999", 1_000_000, size),
        ("-99999999", 0, size),
    ];
    for (range, from, to) in good {
        let reply = server.get("/5m3.bin", &["-r", range])?.expect(206).context(range)?;
        let expected = format!("bytes {from}-{}/{size}", to - 1);
        ensure!(reply.header("content-range") == expected, "{range}: {:?}", reply.header("content-range"));
        ensure!(reply.body == content(7, from, to), "{range}: wrong bytes, {} of them", reply.body.len());
    }
    for range in [format!("{size}-"), "99999999-".into(), "-0".into()] {
        let reply = server.get("/5m3.bin", &["-r", &range])?.expect(416).context(range)?;
        let found = reply.header("content-range");
        ensure!(found == format!("bytes */{size}"), "content-range {found:?}");
    }
    for header in ["Range: bytes=2-1", "Range: lines=1-2", "Range: bytes=a-b", "Range: bytes="] {
        server.get("/notes.txt", &["-H", header])?.expect(200).context(header)?; // RFC 9110: invalid means ignored
    }
    server.get("/empty.bin", &["-r", "0-"])?.expect(416)?;
    server.finish()
}

fn statuses(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    for path in ["/none", "/folder/none", "/notes.txt/", "/notes.txt/x", "/index.html/..", "/Notes.txt"] {
        let status = server.get(path, &[])?.status;
        ensure!([404, 400, 403].contains(&status), "{path}: {status}");
    }
    server.get("/none", &[])?.expect(404)?;
    for method in ["POST", "PUT", "DELETE"] {
        let reply = server.get("/notes.txt", &["-X", method, "-d", "x"])?.expect(405).context(method)?;
        let allow = reply.header("allow");
        ensure!(allow.contains("GET") && allow.contains("HEAD"), "Allow: {allow:?}");
    }
    for method in ["BREW", "get"] {
        server.get("/notes.txt", &["-X", method])?.expect(501).context(method)?;
    }
    server.finish()
}

fn content_types(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let types = [
        ("/", "text/html"),
        ("/page.html", "text/html"),
        ("/style.css", "text/css"),
        ("/picture.svg", "image/svg+xml"),
        ("/notes.txt", "text/plain"),
        ("/folder/", "text/html"),
        ("/1k.bin", "application/octet-stream"),
        ("/api/memory", "application/json"),
        ("/metrics", "text/plain"),
    ];
    for (path, expected) in types {
        let reply = server.get(path, &[])?.expect(200).context(path)?;
        let found = reply.header("content-type");
        ensure!(found.starts_with(expected), "{path}: content-type {found:?}");
        let length = reply.header("content-length");
        ensure!(
            length.is_empty() || length == reply.body.len().to_string(),
            "{path}: content-length {length}"
        );
    }
    server.finish()
}

/// The guest's time of day is the host's.
fn date(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    for path in ["/notes.txt", "/none", "/metrics"] {
        let reply = server.get(path, &[])?;
        let told = Command::new("date").args(["-u", "+%s", "-d", reply.header("date")]).output()?;
        let told: u64 = String::from_utf8(told.stdout)?.trim().parse().context("there is no date")?;
        let off = UNIX_EPOCH.elapsed()?.as_secs().abs_diff(told);
        ensure!(off <= 5, "{path}: {} is {off} s off", reply.header("date"));
    }
    server.finish()
}

fn folders(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let text = |path: &str| anyhow::Ok(server.get(path, &[])?.expect(200)?.text());
    ensure!(
        text("/")?.contains("front page") && text("/docs/")? == "docs page",
        "the index page is not served"
    );
    for (path, expected) in
        [("/docs", "/docs/"), ("/folder/sub", "/folder/sub/"), ("/deep/er?a=b", "/deep/er/")]
    {
        let reply = server.get(path, &[])?.expect(301).context(path)?;
        ensure!(
            reply.header("location").contains(expected),
            "{path}: location {:?}",
            reply.header("location")
        );
    }
    let listing = text("/folder/")?;
    ensure!(!listing.contains("<b>"), "a file's name is not escaped in {listing}");
    for target in links(&listing).iter().filter(|link| !link.starts_with("..") && *link != "/") {
        server
            .get(&format!("/folder/{target}"), &[])?
            .expect(200)
            .with_context(|| format!("link {target}"))?;
    }
    ensure!(links(&listing).len() >= FOLDER.len(), "links missing in {listing}");
    for (path, body) in [
        ("/folder/name%20with%20spaces.txt", "name with spaces.txt"),
        ("/folder/100%25.txt", "100%.txt"),
        ("/folder/gr%C3%BCn%20%26%20%3Cb%3E.txt", "gr\u{fc}n & <b>.txt"),
        ("/deep/er/still/leaf.txt", "leaf"),
    ] {
        ensure!(text(path)? == body, "{path}: {:?}", text(path));
    }
    let many = text("/many/")?;
    let count = many.matches("a-file-with-a-rather-long-name-").count();
    ensure!(count >= MANY, "{count} mentions of {MANY} files in a listing");
    ensure!(
        text(&format!("/many/a-file-with-a-rather-long-name-{:04}.txt", MANY - 1))? == (MANY - 1).to_string()
    );
    server.finish()
}

fn links(page: &str) -> Vec<String> {
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    links.map(|link| link.replace("&amp;", "&")).collect()
}

fn nothing_outside_the_disk(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let paths = [
        "/..",
        "/../",
        "/../notes.txt",
        "/docs/../../notes.txt",
        "/%2e%2e/notes.txt",
        "/%2E./notes.txt",
        "/docs/%2e%2e/%2e%2e/notes.txt",
        "/..%2fnotes.txt",
        "/docs/..%2f..%2fnotes.txt",
        "/%2e%2e%2fnotes.txt",
        "/docs/..%5cnotes.txt",
        "/%252e%252e/notes.txt",
        "/notes.txt%00",
        "/notes.txt%00.html",
        "/%c0%ae%c0%ae/notes.txt",
        "/%",
        "/%zz",
        "/%2",
        "/docs%2findex.html%00",
        "//etc/passwd",
    ];
    for path in paths {
        let status = server.get(path, &[])?.status;
        ensure!([400, 403, 404].contains(&status), "{path}: {status}");
    }
    server.finish()
}

fn keep_alive(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let format = "%{num_connects} %{http_code} %{size_download}\n";
    let urls = ["/notes.txt", "/1m.bin", "/none", "/folder/", "/notes.txt"].map(|path| server.url(path));
    let output =
        curl(30).args(["-w", format]).args(urls.iter().flat_map(|url| ["-o", "/dev/null", url])).output()?;
    let lines = String::from_utf8(output.stdout)?;
    let connects: u32 = lines.lines().filter_map(|line| line.split(' ').next()?.parse::<u32>().ok()).sum();
    ensure!(
        lines.lines().count() == 5 && connects == 1,
        "five requests, connections made for each:\n{lines}"
    );
    let old = server.raw(b"GET /notes.txt HTTP/1.0\r\n\r\n")?;
    ensure!(String::from_utf8_lossy(&old).ends_with("0123456789"), "HTTP/1.0 is not answered");
    server.finish()
}

fn pipelined(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let mut request = b"GET /notes.txt HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20);
    request.extend_from_slice(b"GET /docs/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let replies = String::from_utf8(server.raw(&request)?)?;
    let (notes, docs) = (replies.matches("0123456789").count(), replies.matches("docs page").count());
    ensure!((notes, docs) == (20, 1), "20 + 1 requests in one go were answered {notes} + {docs} times");
    server.finish()
}

/// The status that answers `request`; `None` if the server just hangs up.
fn status_of(server: &Server, request: &[u8]) -> Result<Option<u16>> {
    let bytes = server.raw(request)?;
    if bytes.is_empty() { Ok(None) } else { Ok(Some(Reply::parse(&bytes)?.status)) }
}

fn malformed(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let requests: [&[u8]; 14] = [
        b"\r\n\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 extra\r\nHost: x\r\n\r\n",
        b"GET notes.txt HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS \r\n\r\n",
        b"\xff\xfe\xfd\xfc\r\n\r\n",
    ];
    for request in requests {
        let status =
            status_of(&server, request).with_context(|| String::from_utf8_lossy(request).into_owned())?;
        let refused = status.is_none_or(|status| [400, 408, 413, 431, 501, 505].contains(&status));
        ensure!(refused, "{:?} was answered with {status:?}", String::from_utf8_lossy(request));
    }
    server.get("/notes.txt", &[])?.expect(200)?;
    server.finish()
}

fn oversized(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let before = heap(&server)?;
    let long = "a".repeat(1 << 20);
    let requests = [
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(50_000)),
        format!("{long} / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ];
    for request in &requests {
        let status = status_of(&server, request.as_bytes())?;
        let refused = status.is_none_or(|status| [400, 414, 431, 501].contains(&status));
        ensure!(refused, "{:.40}... was answered with {status:?}", request);
    }
    server.get("/notes.txt", &[])?.expect(200)?;
    let after = heap(&server)?;
    ensure!(after < before + (1 << 20), "the heap grew from {before} to {after} bytes");
    server.finish()
}

/// Bytes of the guest's heap in use.
fn heap(server: &Server) -> Result<u64> {
    let memory = server.json("/api/memory")?;
    memory["heap"]["used"].as_u64().context("/api/memory tells no heap.used")
}

/// 40 clients that send a byte at a time, or hang up halfway, and one that wants to be served meanwhile.
fn slow_and_cut_off(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let request = b"GET /notes.txt HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut slow: Vec<_> =
        (0..40).map(|_| connect(server.port, Duration::from_secs(2))).collect::<Result<_>>()?;
    for byte in &request[..20] {
        for connection in &mut slow {
            let _ = connection.write_all(&[*byte]);
        }
        let start = Instant::now();
        server.get("/notes.txt", &[])?.expect(200)?;
        ensure!(start.elapsed() < Duration::from_secs(2), "another client waited {:?}", start.elapsed());
    }
    let mut last = slow.pop().context("there are 40")?;
    drop(slow); // cut off
    last.write_all(&request[20..])?;
    last.set_read_timeout(Some(Duration::from_secs(5)))?;
    let reply = Reply::parse(&read_until_silent(&mut last)?).context("the slow client that went on")?;
    ensure!(reply.expect(200)?.text() == "0123456789");
    let _cut_off =
        connect(server.port, Duration::from_secs(1))?.write_all(b"GET /16m.bin HTTP/1.1\r\nHost: x\r\n\r\n");
    server.get("/notes.txt", &[])?.expect(200)?;
    server.finish()
}

fn random_bytes(kernel: &Kernel) -> Result<()> {
    let server = server(kernel)?;
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..100 {
        let mut bytes =
            b"GET /notes.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes=0-3\r\n\r\n".to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let mut connection = connect(server.port, Duration::from_millis(300))?;
        connection.write_all(&bytes)?;
        let reply = read_until_silent(&mut connection)?;
        ensure!(reply.is_empty() || Reply::parse(&reply).is_ok(), "{:?}", String::from_utf8_lossy(&reply));
    }
    server.get("/notes.txt", &[])?.expect(200)?;
    server.finish()
}
