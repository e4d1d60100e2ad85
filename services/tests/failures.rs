//! What the log says about requests, and how much.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use common::client::{Client, Then, responses};
use common::{FaultKind, Machine, Tree, quick_limits, server};
use futures::executor::block_on;
use log::{Level, LevelFilter, Log, Metadata, Record};
use ringfence_services::api::Api;
use ringfence_services::block::BlockError;
use ringfence_services::fs::FsError;
use ringfence_services::http::{Copied, Mount, Server};

thread_local! {
    /// Each test runs on a thread of its own.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The lines about all requests.
    static ACCESS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let access = record.target() == "access";
        assert_eq!(record.level(), if access { Level::Debug } else { Level::Warn });
        let lines = if access { &ACCESS } else { &LINES };
        lines.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// The status of one request, if there was an answer, and what the log said meanwhile.
fn ask(server: &Server<Tree, Api<Machine>>, target: &str) -> (Option<u16>, Vec<String>) {
    static LOGGING: Once = Once::new();
    LOGGING.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(LevelFilter::Debug);
    });
    let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut client = Client::new(request.as_bytes(), Then::Finish);
    block_on(server.serve(&mut client, || false));
    let is_whole = client.output.len() < 1000;
    (is_whole.then(|| responses(&client.output, &[])[0].status), LINES.take())
}

fn site() -> Tree {
    Tree::default().with("/dir/a b.txt", "0123456789").with_generated("/big.bin", 1_000_000)
}

fn failing(error: FsError) -> Server<Tree, Api<Machine>> {
    let tree = site();
    *tree.fault.borrow_mut() = Some(error);
    server(tree)
}

#[test]
fn a_failure_is_logged_with_its_reason() {
    let none = || {
        let files = Rc::new(Mount::from(Err("There is no disk.".into())));
        Server::new(files, Api(Machine::default()), quick_limits())
    };
    for (server, status, reason) in [
        (none(), 503, "There is no disk."),
        (failing(FsError::Corrupt("a folder fails its checksum")), 500, "a folder fails its checksum"),
        (failing(FsError::Io(BlockError::Device)), 500, "the disk reported an error"),
        (failing(FsError::Io(BlockError::Gone)), 503, "the disk is gone"),
        (failing(FsError::Unsupported("an encrypted file")), 503, "an encrypted file"),
        (failing(FsError::NoMemory), 503, "no memory"),
    ] {
        for target in ["/dir/", "/dir/a%20b.txt", "/"] {
            let (got, lines) = ask(&server, target);
            assert_eq!(got, Some(status));
            let [line] = &lines[..] else { panic!("{lines:?}") };
            let parts = [format!(" {target}: "), status.to_string(), reason.to_string()];
            assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} are not in {line:?}");
        }
    }
    // What is right, or the client's own mistake, is none.
    let server = server(site());
    for (target, status) in
        [("/dir/", 200), ("/none", 404), ("/%zz", 400), ("/dir", 301), ("/metrics/x", 404)]
    {
        assert_eq!(ask(&server, target), (Some(status), vec![]));
    }
}

/// A body that cannot be completed ends with a reset; only the log knows why.
#[test]
fn a_body_cut_short_is_logged() {
    for (kind, reason) in
        [(FaultKind::Io, "the disk reported an error"), (FaultKind::Corrupt, "as asked for")]
    {
        let server = server(site());
        server.files().unwrap().read_fault.set(Some((500_000, kind)));
        let (status, lines) = ask(&server, "/big.bin");
        assert_eq!((status, lines.len()), (None, 1));
        assert!(lines[0].contains("/big.bin") && lines[0].contains("cut short") && lines[0].contains(reason));
    }
}

/// A listing says that names are missing, and the log why.
#[test]
fn a_listing_with_a_gap_is_logged() {
    let tree = (0..30).fold(Tree::default(), |tree, n| tree.with(&format!("/dir/{n:02}"), "a"));
    let server = server(tree);
    assert_eq!(ask(&server, "/dir/").1, Vec::<String>::new());
    server.files().unwrap().lost_entry.set(Some(9));
    let (_, lines) = ask(&server, "/dir/");
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert!(["/dir/", "a part is missing", "a part of a folder"].iter().all(|part| line.contains(part)));
}

/// A client that causes failures on purpose does not fill the log, and cannot write into it what it likes.
#[test]
fn the_log_is_not_flooded() {
    let server = failing(FsError::Corrupt("it"));
    let lines: Vec<_> = (0..1000).flat_map(|n| ask(&server, &format!("/{n}")).1).collect();
    assert!((1..=10).contains(&lines.len()), "{} lines for 1,000 failures", lines.len());
    // Later it goes on, and says what was left out.
    std::thread::sleep(Duration::from_millis(10_100));
    let later = ask(&server, "/later").1;
    assert_eq!(later.len(), 2);
    assert!(later[0].contains(&format!("{} ", 1000 - lines.len())), "{later:?}");
    assert!(later[1].contains("/later"));
    let (status, lines) = ask(&failing(FsError::Corrupt("it")), &format!("/\u{9b}é{}", "x".repeat(3000)));
    assert_eq!(status, Some(500));
    let shown: String = lines.concat().replace('…', "");
    assert!(
        shown.len() < 300 && shown.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()),
        "{shown}"
    );
}

/// One line for each request, whatever became of it.
#[test]
fn all_requests_are_logged() {
    ask(&server(site()), "/");
    ACCESS.take();
    let server = server(site()).with_clock(|| Some(784_111_777));
    let input =
        b"GET /dir/a%20b.txt HTTP/1.1\r\nHost: h\r\n\r\n\r\nHEAD /none?x=\"y\" HTTP/1.1\r\nHost: h\r\n\r\n\
        GET /\x1b[1m HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut client = Client::new(input, Then::Finish);
    block_on(server.serve_peer(&mut Copied(&mut client), Some([10, 0, 2, 2].into()), || false));
    let lines = ACCESS.take();
    let sent = responses(&client.output, &[false, true]);
    let expected: Vec<_> = [
        ("GET /dir/a%20b.txt HTTP/1.1", 200),
        ("HEAD /none?x=\\\"y\\\" HTTP/1.1", 404),
        ("GET /\\x1b[1m HTTP/1.1", 400),
    ]
    .iter()
    .zip(sent)
    .map(|((line, code), response)| {
        let bytes = response.head.len() + response.body.len();
        format!("10.0.2.2 [1994-11-06 08:49:37] \"{line}\" {code} {bytes} ")
    })
    .collect();
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, start) in lines.iter().zip(expected) {
        let ms = line.strip_prefix(&start).and_then(|rest| rest.strip_suffix(" ms"));
        assert!(ms.is_some_and(|ms| ms.parse::<u32>().is_ok()), "{line} is not {start}");
    }
}

/// Many requests are not many lines, and what is left out is counted.
#[test]
fn the_access_log_is_not_flooded() {
    let server = server(site());
    for n in 0..2000 {
        ask(&server, &format!("/{n}"));
    }
    let told = ACCESS.take().len();
    assert!((200..1000).contains(&told), "{told}");
    std::thread::sleep(Duration::from_millis(100));
    ask(&server, "/later");
    let lines = ACCESS.take();
    assert!(lines[0].ends_with(" more requests are not told here"), "{lines:?}");
    assert!(lines[1].contains("GET /later HTTP/1.1"), "{lines:?}");
}
