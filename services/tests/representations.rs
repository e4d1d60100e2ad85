//! Which representation of a file is sent, and which of its bytes: conditions, ranges, codings, dates.

mod common;

use common::client::{Client, Response, Then, responses};
use common::{Machine, Tree, mounted, quick_limits, server};
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

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

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
}

/// Every answer is the same, byte by byte, however its request is cut into two, and in single bytes.
#[test]
fn answers_do_not_depend_on_the_pieces() {
    let server = server(Tree::default().with("/a.txt", "0123456789").with("/a.html", "b"));
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
