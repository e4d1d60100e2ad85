//! HTTP by the byte: what goes in, what must come out.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::client::{Client, Response, Then, responses};
use common::{FaultKind, Machine, Tree, byte_at, quick_limits, server};
use embassy_time::Timer;
use futures::executor::block_on;
use ringfence_services::api::Api;
use ringfence_services::block::BlockError;
use ringfence_services::fs::FsError;
use ringfence_services::http::{End, Limits, Mount, Server};

fn run(server: &Server<Tree, Api<Machine>>, client: &mut Client) -> End {
    block_on(server.serve(client, || false))
}

/// One request on a connection of its own.
fn ask(server: &Server<Tree, Api<Machine>>, request: &str) -> Response {
    let mut client = Client::new(request.as_bytes(), Then::Finish);
    run(server, &mut client);
    let mut all = responses(&client.output, &[request.starts_with("HEAD ")]);
    assert_eq!(all.len(), 1, "{request:?} -> {all:?}");
    all.remove(0)
}

fn get(server: &Server<Tree, Api<Machine>>, target: &str, fields: &str) -> Response {
    ask(server, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n"))
}

fn site() -> Tree {
    Tree::default()
        .with("/index.html", "<h1>hello</h1>")
        .with("/a.txt", "0123456789")
        .with("/empty.txt", "")
        .with("/x.dev", "device")
        .with("/dir/b.css", "b")
        .with("/dir/<i>&\"'.js", "c")
        .with("/dir/sub/deep.png", "d")
        .with("/sp ace/é#?.txt", "e")
        .with("/evil.com/f", "f")
        .with_raw(b"/dir/\xff\xfe", b"not utf-8")
        .with_generated("/big.bin", 5_000_000)
        .with_generated("/huge.bin", 1 << 30)
}

#[test]
fn files_and_folders() {
    let server = server(site());
    for (target, status, mime, body) in [
        ("/", 200, "text/html; charset=utf-8", "<h1>hello</h1>"),
        ("/index.html", 200, "text/html; charset=utf-8", "<h1>hello</h1>"),
        ("//a.txt", 200, "text/plain; charset=utf-8", "0123456789"),
        ("/a.txt?query=1", 200, "text/plain; charset=utf-8", "0123456789"),
        ("http://other/a.txt", 200, "text/plain; charset=utf-8", "0123456789"),
        ("/empty.txt", 200, "text/plain; charset=utf-8", ""),
        ("/%61.txt", 200, "text/plain; charset=utf-8", "0123456789"),
        ("/sp%20ace/%C3%A9%23%3F.txt", 200, "text/plain; charset=utf-8", "e"),
        ("/dir/%ff%fe", 200, "application/octet-stream", "not utf-8"),
    ] {
        let got = get(&server, target, "");
        assert_eq!((got.status, got.text().as_str()), (status, body), "{target}");
        assert_eq!(got.field("Content-Type"), Some(mime), "{target}");
        assert_eq!(got.field("Content-Length"), Some(body.len().to_string().as_str()), "{target}");
        assert_eq!(got.field("Accept-Ranges"), Some("bytes"));
        assert_eq!(got.field("Last-Modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }
    for target in ["/none", "/a.txt/", "/a.txt/x", "/x.dev", "/dir/none/", "/dashboard/x"] {
        assert_eq!(get(&server, target, "").status, 404, "{target}");
    }
    for target in ["/..", "/%2e%2e/a.txt", "/dir/%2E./a.txt", "/..%2fa.txt", "/a%00", "/%zz", "/%"] {
        assert_eq!(get(&server, target, "").status, 400, "{target}");
    }
}

#[test]
fn a_missing_slash_is_a_redirect_within_this_host() {
    let server = server(site());
    for (target, location) in [
        ("/dir", "/dir/"),
        ("/dir?a=b&c=/d", "/dir/?a=b&c=/d"),
        ("/dir/sub", "/dir/sub/"),
        ("/sp%20ace", "/sp%20ace/"),
        ("//evil.com", "/evil.com/"),
        ("///evil.com?x", "/evil.com/?x"),
        ("/.//evil.com", "/evil.com/"),
        ("/%2fevil.com", "/evil.com/"),
        ("http://x//evil.com", "/evil.com/"),
    ] {
        let got = get(&server, target, "");
        assert_eq!((got.status, got.field("Location")), (301, Some(location)), "{target}");
    }
    // No header can be smuggled into the answer.
    let got = get(&server, "/dir%0d%0aSet-Cookie:%20x", "");
    assert_eq!((got.status, got.field("Set-Cookie")), (404, None));
}

#[test]
fn a_folder_without_index_is_listed() {
    let server = server(site());
    let got = get(&server, "/dir/", "");
    assert_eq!((got.status, got.field("Content-Type")), (200, Some("text/html; charset=utf-8")));
    let page = got.text();
    assert!(page.contains("<a href=\"../\">../</a>"));
    assert!(page.contains("/sub/\">sub/</a><td><td>1994-11-06 08:49\n"), "{page}");
    assert!(page.contains(".js</a><td>1 B<td>1994-11-06 08:49\n"), "{page}");
    assert!(page.contains("<a href=\"./sub/\">sub/</a>"));
    assert!(page.contains("<a href=\"./%3Ci%3E%26%22%27.js\">&lt;i&gt;&amp;&quot;&#39;.js</a>"), "{page}");
    assert!(page.contains("<a href=\"./%FF%FE\">"), "{page}");
    assert!(!page.contains("<i>"));
    assert!(page.ends_with("</html>\n"));
    // Every link leads somewhere.
    for link in page.split("href=\"./").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert_eq!(get(&server, &format!("/dir/{link}"), "").status, 200, "{link}");
    }
    assert_eq!(get(&server, "/sp%20ace/", "").status, 200);
    let head = ask(&server, "HEAD /dir/ HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
    // An old client gets it without chunks, ended by the close.
    let mut old = Client::new(b"GET /dir/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Then::Silence);
    assert_eq!(run(&server, &mut old), End::Drain);
    assert_eq!(responses(&old.output, &[])[0].text(), page);
}

#[test]
fn a_folder_of_many_files_is_listed_whole() {
    let mut tree = Tree::default();
    for n in 0..5000 {
        tree = tree.with(&format!("/many/file-{n:05}"), "");
    }
    let page = get(&server(tree), "/many/", "").text();
    for n in 0..5000 {
        assert_eq!(page.matches(&format!(">file-{n:05}<")).count(), 1, "{n}");
    }
}

#[test]
fn head_is_get_without_body() {
    let server = server(site());
    for target in ["/", "/a.txt", "/empty.txt", "/big.bin", "/none", "/dir", "/%zz", "/api/none"] {
        let request = |method: &str| format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (get, head) = (ask(&server, &request("GET")), ask(&server, &request("HEAD")));
        assert_eq!(get.head, head.head, "{target}");
        assert!(head.body.is_empty());
    }
    // Range means nothing to HEAD.
    let head = ask(&server, "HEAD /a.txt HTTP/1.1\r\nHost: h\r\nRange: bytes=1-2\r\n\r\n");
    assert_eq!((head.status, head.field("Content-Length")), (200, Some("10")));
}

#[test]
fn ranges() {
    let server = server(site());
    for (range, status, content_range, body) in [
        ("bytes=0-0", 206, Some("bytes 0-0/10"), "0"),
        ("bytes=2-5", 206, Some("bytes 2-5/10"), "2345"),
        ("bytes=7-", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("bytes=5-99", 206, Some("bytes 5-9/10"), "56789"),
        ("bytes=0-1,99-", 206, Some("bytes 0-1/10"), "01"),
        ("bytes=0-5,5-6", 200, None, "0123456789"),
        ("bytes=5-2", 200, None, "0123456789"),
        ("junk", 200, None, "0123456789"),
    ] {
        let got = get(&server, "/a.txt", &format!("Range: {range}\r\n"));
        assert_eq!((got.status, got.text().as_str()), (status, body), "{range}");
        assert_eq!(got.field("Content-Range"), content_range, "{range}");
    }
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
        let got = get(&server, "/a.txt", &format!("Range: {range}\r\n"));
        assert_eq!((got.status, got.field("Content-Range")), (416, Some("bytes */10")), "{range}");
    }
    let got = get(&server, "/empty.txt", "Range: bytes=0-\r\n");
    assert_eq!((got.status, got.field("Content-Range")), (416, Some("bytes */0")));
    // Across the edges of the buffer.
    for (first, last) in
        [(0, 4_999_999), (32_767, 32_768), (32_768, 65_535), (1, 98_304), (4_999_999, 4_999_999)]
    {
        let got = get(&server, "/big.bin", &format!("Range: bytes={first}-{last}\r\n"));
        assert_eq!(got.status, 206);
        assert!(got.body.iter().copied().eq((first..=last).map(byte_at)), "{first}-{last}");
    }
}

#[test]
fn methods_and_versions() {
    let server = server(site());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"] {
        for target in ["/", "*", "/none", "/metrics"] {
            let got = ask(&server, &format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!((got.status, got.field("Allow")), (405, Some("GET, HEAD")), "{method}");
        }
    }
    for method in ["BREW", "get", "X"] {
        assert_eq!(ask(&server, &format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n")).status, 501, "{method}");
    }
    assert_eq!(ask(&server, "GET / HTTP/1.1\r\n\r\n").status, 400);
    assert_eq!(ask(&server, "GET / HTTP/1.0\r\n\r\n").status, 200);
    assert_eq!(ask(&server, "GET / HTTP/2.0\r\nHost: h\r\n\r\n").status, 505);
    assert_eq!(ask(&server, "GET /\r\n\r\n").status, 400);
    assert_eq!(ask(&server, &format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(5000))).status, 414);
    assert_eq!(
        ask(&server, &format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "x".repeat(9000))).status,
        431
    );
}

#[test]
fn connections_live_and_end_as_asked() {
    let server = server(site());
    let line = "GET /a.txt HTTP/1.1\r\nHost: h\r\n";
    // Three in one go, the third asks to close, the fourth is never looked at.
    let input = format!("{line}\r\n{line}Range: bytes=0-1\r\n\r\n{line}Connection: close\r\n\r\n{line}\r\n");
    let mut client = Client::new(input.as_bytes(), Then::Silence);
    assert_eq!(run(&server, &mut client), End::Drain);
    let all = responses(&client.output, &[]);
    assert_eq!(all.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 206, 200]);
    assert_eq!(all[2].field("Connection"), Some("close"));
    assert_eq!(all[0].field("Connection"), None);

    let old = "GET /a.txt HTTP/1.0\r\n";
    let mut client = Client::new(format!("{old}\r\n{old}\r\n").as_bytes(), Then::Silence);
    assert_eq!(run(&server, &mut client), End::Drain);
    assert_eq!(responses(&client.output, &[]).len(), 1);
    let alive = format!("{old}Connection: keep-alive\r\n\r\n");
    let mut client = Client::new(alive.repeat(3).as_bytes(), Then::Finish);
    assert_eq!(run(&server, &mut client), End::Close);
    let all = responses(&client.output, &[]);
    assert_eq!(all.iter().filter_map(|r| r.field("Connection")).collect::<Vec<_>>(), ["keep-alive"; 3]);

    // HEAD, errors and redirects keep the connection too.
    let input = format!(
        "HEAD /big.bin HTTP/1.1\r\nHost: h\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n\
         GET /dir HTTP/1.1\r\nHost: h\r\n\r\nGET /dir/ HTTP/1.1\r\nHost: h\r\n\r\n\
         GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n{line}\r\n"
    );
    let mut client = Client::new(input.as_bytes(), Then::Finish);
    assert_eq!(run(&server, &mut client), End::Close);
    let all = responses(&client.output, &[true]);
    assert_eq!(all.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 404, 301, 200, 200, 200]);
}

/// A request that has come is answered, and no other after it.
#[test]
fn an_end_that_is_asked_for() {
    let server = server(site());
    server.stop();
    let mut client = Client::new(&b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2), Then::Finish);
    assert_eq!(run(&server, &mut client), End::Drain);
    let all = responses(&client.output, &[false]);
    assert_eq!((all.len(), all[0].text().as_str()), (1, "0123456789"));
    assert_eq!(all[0].field("Connection"), Some("close"));
}

#[test]
fn requests_in_any_pieces() {
    let server = server(site());
    let text = b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n";
    for size in 1..text.len() {
        let pieces = text.chunks(size).map(|piece| (Duration::ZERO, piece.to_vec()));
        let mut client = Client::pieces(pieces, Then::Finish);
        run(&server, &mut client);
        let codes: Vec<_> = responses(&client.output, &[]).iter().map(|r| r.status).collect();
        assert_eq!(codes, [200, 404], "pieces of {size}");
    }
}

#[test]
fn bodies_of_requests_are_skipped_or_close() {
    let server = server(site());
    let next = "GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    let case = |fields: &str, body: &str, method: &str| {
        let input = format!("{method} /a.txt HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}{next}");
        let mut client = Client::new(input.as_bytes(), Then::Finish);
        let end = run(&server, &mut client);
        (end, responses(&client.output, &[]).iter().map(|r| r.status).collect::<Vec<_>>())
    };
    assert_eq!(case("Content-Length: 5\r\n", "hello", "GET"), (End::Close, vec![200, 200]));
    let long = "x".repeat(60_000);
    assert_eq!(case("Content-Length: 60000\r\n", &long, "POST"), (End::Close, vec![405, 200]));
    assert_eq!(case("Content-Length: 100000\r\n", &long, "POST"), (End::Drain, vec![405]));
    assert_eq!(case("Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "POST"), (End::Drain, vec![405]));
    assert_eq!(case("Content-Length: 5\r\nExpect: 100-continue\r\n", "", "PUT"), (End::Drain, vec![405]));
    assert_eq!(
        case("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "", "POST"),
        (End::Drain, vec![400])
    );
    // Promised and never sent: answered at once, then cut off.
    let mut client =
        Client::new(b"GET /a.txt HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx", Then::Silence);
    assert_eq!(run(&server, &mut client), End::Abort);
    assert_eq!(responses(&client.output, &[])[0].status, 200);
}

#[test]
fn slow_clients_are_let_go_in_time() {
    let server = server(site());
    let timed = |mut client: Client| {
        let start = Instant::now();
        let end = run(&server, &mut client);
        let codes: Vec<_> = responses(&client.output, &[]).iter().map(|r| r.status).collect();
        (end, codes, start.elapsed().as_millis())
    };
    // Silent from the start: closed without a word after the idle time.
    let (end, codes, ms) = timed(Client::new(b"", Then::Silence));
    assert_eq!((end, codes), (End::Close, vec![]));
    assert!((1400..4000).contains(&ms), "{ms} ms");
    // A byte now and then: 408 after the head time, counted from the first byte.
    let drip = |first: u64| {
        let bytes = b"GET / HTTP/1.1\r\nHost: hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh";
        let pause = |n: usize| Duration::from_millis(if n == 0 { first } else { 60 });
        let pieces: Vec<_> = bytes.iter().enumerate().map(|(n, b)| (pause(n), vec![*b])).collect();
        timed(Client::pieces(pieces, Then::Silence))
    };
    for (first, expected) in [(0, 850..2000), (1200, 2050..4000)] {
        let (end, codes, ms) = drip(first);
        assert_eq!((end, codes), (End::Drain, vec![408]));
        assert!(expected.contains(&ms), "{ms} ms");
    }
    // Stops taking in the middle of a body.
    let mut client = Client::new(b"GET /big.bin HTTP/1.1\r\nHost: h\r\n\r\n", Then::Silence);
    client.takes = 100_000;
    let start = Instant::now();
    assert_eq!(run(&server, &mut client), End::Abort);
    assert!((650..3000).contains(&start.elapsed().as_millis()));
    // Idle after a request, while others wait: makes room early.
    let mut client = Client::new(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", Then::Silence);
    let crowded = Cell::new(false);
    let start = Instant::now();
    let end = block_on(futures::future::join(server.serve(&mut client, || crowded.get()), async {
        Timer::after_millis(400).await;
        crowded.set(true);
    }));
    assert_eq!(end.0, End::Close);
    assert!((400..1400).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    // The same in the middle of a body.
    let mut client = Client::new(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx", Then::Silence);
    let start = Instant::now();
    assert_eq!(block_on(server.serve(&mut client, || true)), End::Abort);
    assert!((250..800).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

/// While others wait for a place, who takes a response slowly has to go after a while; else nobody does.
#[test]
fn slow_readers_give_way() {
    let limits = Limits { stall: embassy_time::Duration::from_secs(30), ..quick_limits() };
    let server = Server::new(common::mounted(site()), Api(Machine::default()), limits);
    let take = |gulp: usize, size: u64, crowded: bool| {
        let request = format!("GET /big.bin HTTP/1.1\r\nHost: h\r\nRange: bytes=1-{size}\r\n\r\n");
        let mut client = Client::new(request.as_bytes(), Then::Finish);
        client.gulp = (gulp, Duration::from_millis(50));
        let start = Instant::now();
        (block_on(server.serve(&mut client, || crowded)), start.elapsed().as_millis())
    };
    // 2 KB/s, which is too little from the end of the grace on.
    let (end, ms) = take(100, 100_000, true);
    assert_eq!((end, server.stats().gave_way.get()), (End::Abort, 1));
    assert!((1000..2500).contains(&ms), "{ms} ms");
    // Within the grace anything goes; then 20 KB/s is enough; without others anything goes.
    assert!([End::Drain, End::Close].contains(&take(100, 1000, true).0));
    assert!([End::Drain, End::Close].contains(&take(1000, 40_000, true).0));
    assert_eq!(take(100, 3000, false).0, End::Close);
    assert_eq!(server.stats().gave_way.get(), 1);
}

/// Who asks again and again makes room as well, with an answer, once others have waited for a while.
#[test]
fn connections_end_while_others_wait() {
    let server = server(site());
    let one = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n";
    let ask = |crowded: bool| {
        let pieces = (0..10).map(|n| (Duration::from_millis(if n == 0 { 0 } else { 100 }), one.to_vec()));
        let mut client = Client::pieces(pieces, Then::Finish);
        let end = block_on(server.serve(&mut client, || crowded));
        let all = responses(&client.output, &[true; 10]);
        let closes = all.iter().map(|response| response.field("Connection") == Some("close"));
        (end, all.len(), closes.filter(|closes| *closes).count())
    };
    assert_eq!(ask(false), (End::Close, 10, 0));
    assert_eq!(server.stats().made_room.get(), 0);
    let (end, answered, closed) = ask(true);
    assert_eq!((end, closed, server.stats().made_room.get()), (End::Drain, 1, 1));
    assert!((3..8).contains(&answered), "{answered}");
}

#[test]
fn cut_off_requests() {
    let server = server(site());
    let text = b"GET /a.txt HTTP/1.1\r\nHost: h\r\n\r\n";
    for end in 1..text.len() {
        let mut client = Client::new(&text[..end], Then::Finish);
        assert_eq!(run(&server, &mut client), End::Drain);
        assert_eq!(responses(&client.output, &[])[0].status, 400, "{end}");
    }
}

#[test]
fn a_disk_that_fails() {
    let fails = |error: FsError| {
        let tree = site();
        *tree.fault.borrow_mut() = Some(error);
        server(tree)
    };
    let none = Rc::new(Mount::<Tree>::from(Err("There is no disk.".into())));
    let server_without = Server::new(none, Api(Machine::default()), quick_limits());
    for target in ["/", "/a.txt", "/dir/"] {
        let got = get(&server_without, target, "");
        assert_eq!(got.status, 503);
        assert!(got.text().contains("There is no disk."));
    }
    assert_eq!(get(&server_without, "/metrics", "").status, 200);
    assert_eq!(get(&fails(FsError::Corrupt("it")), "/a.txt", "").status, 500);
    assert_eq!(get(&fails(FsError::Io(BlockError::Device)), "/dir/", "").status, 500);
    assert_eq!(get(&fails(FsError::NoMemory), "/a.txt", "").status, 503);

    for kind in [FaultKind::Io, FaultKind::Corrupt] {
        // At the first byte: an error page, and the connection lives on.
        let tree = site();
        tree.read_fault.set(Some((0, kind)));
        let server = common::server(tree);
        assert_eq!(get(&server, "/big.bin", "").status, 500);
        // In the middle: what was promised cannot be kept, so the connection is reset.
        server.files().unwrap().read_fault.set(Some((1_000_000, kind)));
        let mut client = Client::new(b"GET /big.bin HTTP/1.1\r\nHost: h\r\n\r\n", Then::Silence);
        assert_eq!(run(&server, &mut client), End::Abort);
        assert!(client.output.len() > 900_000 && client.output.len() < 1_100_000);
    }
}

#[test]
fn a_gigabyte_in_small_pieces() {
    let server = server(site());
    let mut client =
        Client::new(b"GET /huge.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", Then::Silence);
    client.discard = true;
    assert_eq!(run(&server, &mut client), End::Drain);
    assert!(client.written > 1 << 30 && client.written < (1 << 30) + 400);
    assert!(server.files().unwrap().largest_read.get() <= 32 << 10);
}

#[test]
fn random_bytes_never_panic_and_always_end() {
    let server = server(site());
    let mut seed = 0x9e37_79b9_97f4_a7c5_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let template = b"GET /dir/?x HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\nContent-Length: 2\r\n\r\nab";
    for _ in 0..10_000 {
        let bytes: Vec<u8> = if random() % 2 == 0 {
            (0..random() % 200).map(|_| random() as u8).collect()
        } else {
            let mut bytes = template.repeat(2);
            for _ in 0..random() % 6 + 1 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() as usize % bytes.len() + 1);
            bytes
        };
        let mut client = Client::new(&bytes, Then::Finish);
        let end = run(&server, &mut client);
        let said_something = !client.output.is_empty();
        assert!(said_something || end != End::Drain, "{}", bytes.escape_ascii());
        assert!(said_something || bytes.iter().all(|b| b"\r\n".contains(b)), "{}", bytes.escape_ascii());
        if said_something {
            assert!(client.output.starts_with(b"HTTP/1.1 "), "{}", client.output.escape_ascii());
        }
    }
}

#[test]
fn the_future_is_small() {
    let server = server(site());
    let mut client = Client::new(b"", Then::Finish);
    let future = server.serve(&mut client, || false);
    let size = size_of_val(&future);
    println!("serve: {size} bytes");
    assert!(size < 4096, "{size}");
}
