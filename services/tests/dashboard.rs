//! `/dashboard`: its headers, and that the page needs nothing from elsewhere. That it works in a browser is
//! tested by `system::dashboard`.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use common::client::{Client, Response, Then, responses};
use common::{Tree, server};
use futures::executor::block_on;

fn ask(method: &str, fields: &str) -> Response {
    let files = Tree::default().with("/dashboard", "a file that is hidden");
    let request = format!("{method} /dashboard HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let mut client = Client::new(request.as_bytes(), Then::Finish);
    block_on(server(files).serve(&mut client, || false));
    responses(&client.output, &[method == "HEAD"]).remove(0)
}

fn page() -> String {
    ask("GET", "").text()
}

/// What is between these, each time.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| Some(rest.split_once(end)?.0))
}

/// What a content security policy calls a text, by Python; nothing where there is none.
fn hash(text: &str) -> Option<String> {
    const SCRIPT: &str = "import sys, hashlib, base64
print(base64.b64encode(hashlib.sha256(sys.stdin.buffer.read()).digest()).decode())";
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take()?.write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some(format!("'sha256-{}'", String::from_utf8(output.stdout).unwrap().trim()))
}

#[test]
fn headers() {
    let response = ask("GET", "");
    assert_eq!((response.status, response.field("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(response.field("Cache-Control"), Some("no-cache"));
    let policy = response.field("Content-Security-Policy").unwrap();
    let known = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ];
    for part in known.into_iter().chain(["frame-ancestors 'none'"]) {
        assert!(policy.split("; ").any(|found| found == part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let head = ask("HEAD", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.field("Content-Length"), Some(&*response.body.len().to_string()));
    assert_eq!(head.field("ETag"), response.field("ETag"));
}

/// Who has the page is told so.
#[test]
fn conditions() {
    let page = ask("GET", "");
    let tag = page.field("ETag").unwrap();
    let known = ask("GET", &format!("If-None-Match: \"x\", W/{tag}\r\n"));
    assert_eq!((known.status, known.field("ETag"), known.field("Content-Length")), (304, Some(tag), None));
    assert_eq!(known.field("Content-Security-Policy"), page.field("Content-Security-Policy"));
    assert_eq!(ask("GET", "If-None-Match: \"x\"\r\n").status, 200);
    assert_eq!(ask("GET", "If-Match: \"x\"\r\n").status, 412);
    assert_eq!(ask("GET", &format!("If-Match: {tag}\r\n")).status, 200);
}

/// The policy lets run what is in the page, and nothing else.
#[test]
fn the_policy_names_style_and_script() {
    let response = ask("GET", "");
    let (policy, page) = (response.field("Content-Security-Policy").unwrap(), response.text());
    for (directive, start, end) in
        [("style-src", "<style>", "</style>"), ("script-src", "<script>", "</script>")]
    {
        let inside: Vec<_> = between(&page, start, end).collect();
        assert_eq!((inside.len(), page.matches(&start[..start.len() - 1]).count()), (1, 1), "{start}");
        let Some(hash) = hash(inside[0]) else {
            return common::skip::skip("the_policy_names_style_and_script", "there is no python3 here");
        };
        let named = policy.split("; ").find_map(|part| part.strip_prefix(directive)).unwrap().trim();
        assert_eq!(named, hash, "the {directive} of a changed page");
    }
    for attribute in [" style=", " onload=", " onclick=", "javascript:"] {
        assert!(!page.contains(attribute), "{attribute} is against the policy");
    }
}

/// Nothing comes from elsewhere, and what others say goes to the page as text.
#[test]
fn the_page_is_alone() {
    let page = page();
    for part in [
        "http:/",
        "https:",
        "//www",
        "@import",
        "src=",
        "import(",
        "url(",
        "eval(",
        "Function(",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "<iframe",
        "<object",
        "<embed",
    ] {
        assert!(!page.contains(part), "{part}");
    }
    let addresses: BTreeSet<_> = between(&page, "href=\"", "\"").collect();
    assert_eq!(addresses, BTreeSet::from(["/api/devices", "/api/memory", "/metrics", "data:,"]));
    let asked: BTreeSet<_> = between(&page, "get(\"/", "\"").collect();
    assert_eq!(asked, BTreeSet::from(["api/devices", "api/memory", "metrics"]));
    assert!(page.len() <= 24 << 10, "{} bytes", page.len());
    assert!(page.is_ascii() || page.contains("charset=\"utf-8\""));
}

/// Each place that the script writes to is there, once.
#[test]
fn ids_exist() {
    let page = page();
    let ids: Vec<_> = between(&page, "id=\"", "\"").collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "{ids:?}");
    let used = ["$(\"", "fill(\"", "Plot(\""].into_iter().flat_map(|call| between(&page, call, "\""));
    let used: BTreeSet<_> = used.collect();
    assert!(used.len() > 15, "{used:?}");
    for id in &used {
        assert!(ids.contains(id), "{id} is not in the page");
    }
    for id in &ids {
        assert!(used.contains(id), "nothing is written to {id}");
    }
}
