//! The server on a real TCP socket of the host, asked by curl. Without curl these tests say that they were
//! skipped.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::skip::skip;
use common::{Tree, byte_at};

fn start() -> SocketAddr {
    common::host::start(
        Tree::default()
            .with("/index.html", "<h1>hello</h1>")
            .with("/a.txt", "0123456789")
            .with("/dir/b c.css", "b")
            .with_generated("/big.bin", 50_000_000),
    )
}

/// Whether there is a curl; else `test` is skipped.
fn have_curl(test: &str) -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        skip(test, "there is no curl on this machine");
    }
    found
}

fn curl(arguments: &[&str]) -> Output {
    Command::new("curl").args(["-s", "--max-time", "20", "--path-as-is"]).args(arguments).output().unwrap()
}

fn ok(arguments: &[&str]) -> Vec<u8> {
    let output = curl(arguments);
    assert!(output.status.success(), "curl {arguments:?}: {}", output.status);
    output.stdout
}

fn text(arguments: &[&str]) -> String {
    String::from_utf8(ok(arguments)).unwrap()
}

fn big(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte_at).collect()
}

#[test]
fn curl_gets_what_is_there() {
    if !have_curl("curl_gets_what_is_there") {
        return;
    }
    let base = format!("http://{}", start());
    let url = |path: &str| format!("{base}{path}");
    assert_eq!(text(&[&url("/")]), "<h1>hello</h1>");
    assert!(ok(&[&url("/big.bin")]) == big(0..50_000_000));
    assert!(ok(&["-r", "1000000-1999999", &url("/big.bin")]) == big(1_000_000..2_000_000));
    assert!(ok(&["-r", "-12345", &url("/big.bin")]) == big(49_987_655..50_000_000));
    assert!(ok(&["-C", "49000000", &url("/big.bin")]) == big(49_000_000..50_000_000));
    assert_eq!(ok(&["--http1.0", &url("/a.txt")]), b"0123456789");
    assert_eq!(ok(&["-L", &url("/dir")]), ok(&[&url("/dir/")]));
    assert!(text(&[&url("/dir/")]).contains("./b%20c.css"));
    assert_eq!(text(&[&url("/dir/b%20c.css")]), "b");
    let head = text(&["-I", &url("/big.bin")]);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 50000000\r\n"));
    // One connection for all three.
    let format = ["-w", "%{http_code} %{num_connects}\n", "-o", "/dev/null"];
    let codes = text(
        &[&format[..], &[&url("/a.txt")], &format, &[&url("/none")], &["-o", "/dev/null", &url("/metrics")]]
            .concat(),
    );
    assert_eq!(codes, "200 1\n404 0\n200 0\n");
    // Only if changed.
    let etag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
    let status =
        |arguments: &[&str]| text(&[&["-o", "/dev/null", "-w", "%{http_code}"][..], arguments].concat());
    assert_eq!(status(&["-H", &format!("If-None-Match: {etag}"), &url("/big.bin")]), "304");
    for (arguments, code) in [
        (vec!["-X", "DELETE", &url("/a.txt")], "405"),
        (vec!["-X", "BREW", &url("/a.txt")], "501"),
        (vec!["-d", "x=1", &url("/a.txt")], "405"),
        (vec!["-F", "file=@/proc/self/exe", &url("/a.txt")], "405"),
        (vec!["-T", "/proc/self/exe", &url("/a.txt")], "405"),
        (vec!["-H", "Host:", &url("/a.txt")], "400"),
        (vec!["-H", &format!("X: {}", "x".repeat(9000)), &url("/a.txt")], "431"),
        (vec![&url(&format!("/{}", "x".repeat(5000)))], "414"),
        (vec![&url("/../a.txt")], "400"),
        (vec![&url("/%2e%2e/a.txt")], "400"),
        (vec!["-r", "99-", &url("/a.txt")], "416"),
    ] {
        assert_eq!(status(&arguments), code, "{arguments:?}");
    }
}

#[test]
fn slow_and_idle_clients_harm_nobody() {
    if !have_curl("slow_and_idle_clients_harm_nobody") {
        return;
    }
    let address = start();
    let idle: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut slow: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap());
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(text(&[&format!("http://{address}/a.txt")]), "0123456789");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // The slow ones hear why they are sent away.
    let mut said = String::new();
    slow[0].set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    slow[0].read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    drop(idle);
}
