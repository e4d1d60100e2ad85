//! Clients that people use, on the server on a real TCP socket of the host. One that is not on this machine
//! is skipped, and says so.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::skip::skip;
use common::{Tree, byte_at};
use tempfile::TempDir;

const BIG: u64 = 5_000_000;

fn site() -> Tree {
    Tree::default()
        .with("/index.html", "<!DOCTYPE html><title>hello</title><p>hello<a href=\"dir/\">dir</a>")
        .with("/dir/a b.txt", "0123456789")
        .with("/dir/sub/<é>.txt", "deep")
        .with("/dir/page.html", "<p>plain")
        // Made by gzip -n.
        .with(
            "/dir/page.html.gz",
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\
              \xb3\x29\xb0\x4b\xaf\xca\x2c\x28\x00\x00\x6d\x3c\xf4\x72\x08\x00\x00\x00",
        )
        .with_generated("/dir/big.bin", BIG)
}

fn big() -> Vec<u8> {
    (0..BIG).map(byte_at).collect()
}

/// The first of these programs that is there; else `test` is skipped.
fn have(test: &str, programs: &[&'static str]) -> Option<&'static str> {
    let runs = |program: &str| {
        let version =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    let found = programs.iter().copied().find(|program| runs(program));
    if found.is_none() {
        skip(test, &format!("there is no {} on this machine", programs[0]));
    }
    found
}

fn run(program: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn wget_mirrors_a_folder() {
    let Some(wget) = have("wget_mirrors_a_folder", &["wget"]) else { return };
    let (folder, base) = (TempDir::new().unwrap(), format!("http://{}/dir/", common::host::start(site())));
    let options = ["-q", "-r", "-np", "-nH", "--restrict-file-names=nocontrol", "-T", "20", "-t", "1"];
    run(wget, folder.path(), &[&options[..], &[&base]].concat());
    let read = |name: &str| fs::read(folder.path().join("dir").join(name)).unwrap_or_default();
    assert_eq!(read("a b.txt"), b"0123456789");
    assert_eq!(read("sub/<é>.txt"), b"deep");
    assert!(read("big.bin") == big());
    // Begun before, and then nothing new: by If-Modified-Since.
    fs::write(folder.path().join("part"), &big()[..1_234_567]).unwrap();
    run(wget, folder.path(), &["-q", "-c", "-O", "part", &format!("{base}big.bin")]);
    assert!(fs::read(folder.path().join("part")).unwrap() == big());
    let file = folder.path().join("dir/big.bin");
    let time = |file: &Path| fs::metadata(file).unwrap().modified().unwrap();
    assert_eq!(time(&file), std::time::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777));
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(BIG).unwrap();
    run(wget, folder.path(), &[&options[..], &["-N", &base]].concat());
    assert!(read("big.bin") == big());
}

#[test]
fn aria2_takes_a_file_in_parts() {
    let Some(aria2) = have("aria2_takes_a_file_in_parts", &["aria2c"]) else { return };
    let (folder, base) = (TempDir::new().unwrap(), format!("http://{}/dir/", common::host::start(site())));
    let options =
        ["-q", "--no-conf", "-x8", "-s8", "-k1M", "--timeout=20", "--max-tries=1", "--http-accept-gzip"];
    run(aria2, folder.path(), &[&options[..], &[&format!("{base}big.bin")]].concat());
    assert!(fs::read(folder.path().join("big.bin")).unwrap() == big());
    run(aria2, folder.path(), &[&options[..], &[&format!("{base}page.html")]].concat());
    assert_eq!(fs::read_to_string(folder.path().join("page.html")).unwrap(), "<p>gzipp");
}

/// The script checks, and says what it has checked.
#[test]
fn python_speaks_with_it() {
    let Some(python) = have("python_speaks_with_it", &["python3"]) else { return };
    let (folder, address) = (TempDir::new().unwrap(), common::host::start(site()));
    let script = include_str!("clients.py");
    let said =
        run(python, folder.path(), &["-c", script, &address.ip().to_string(), &address.port().to_string()]);
    assert_eq!(said.trim(), "8 checks");
}

#[test]
fn curl_gets_what_is_compressed() {
    let Some(curl) = have("curl_gets_what_is_compressed", &["curl"]) else { return };
    let (folder, base) = (TempDir::new().unwrap(), format!("http://{}/dir/", common::host::start(site())));
    let get =
        |arguments: &[&str]| run(curl, folder.path(), &[&["-s", "--max-time", "20"], arguments].concat());
    assert_eq!(get(&[&format!("{base}page.html")]), "<p>plain");
    assert_eq!(get(&["--compressed", &format!("{base}page.html")]), "<p>gzipp");
    let code = |arguments: &[&str]| get(&[&["-o", "/dev/null", "-w", "%{http_code}"], arguments].concat());
    // -z: If-Modified-Since, and with a dash If-Unmodified-Since.
    let url = format!("{base}a%20b.txt");
    assert_eq!(code(&["-z", "1 Jan 2020 00:00:00 GMT", &url]), "304");
    assert_eq!(code(&["-z", "6 Nov 1994 08:49:36 GMT", &url]), "200");
    assert_eq!(code(&["-z", "-6 Nov 1994 08:49:36 GMT", &url]), "412");
    assert_eq!(code(&["-H", "If-Match: \"x\"", "-r", "0-9", &url]), "412");
    let parts = get(&["-r", "0-1,-2", &url]);
    assert!(
        parts.contains("bytes 0-1/10\r\n\r\n01\r\n") && parts.contains("bytes 8-9/10\r\n\r\n89\r\n"),
        "{parts}"
    );
}

/// A page and a listing, without a script of their own, as a browser sees them.
#[test]
fn a_browser_shows_pages_and_listings() {
    let Some(browser) =
        have("a_browser_shows_pages_and_listings", &["chromium", "chromium-browser", "google-chrome"])
    else {
        return;
    };
    let (folder, base) = (TempDir::new().unwrap(), format!("http://{}/", common::host::start(site())));
    let profile = format!("--user-data-dir={}", folder.path().display());
    let show = |path: &str| {
        let options =
            ["--headless", "--no-sandbox", "--disable-gpu", "--timeout=20000", &profile, "--dump-dom"];
        run(browser, folder.path(), &[&options[..], &[&format!("{base}{path}")]].concat())
    };
    assert!(show("").contains("<p>hello<a href=\"dir/\">"));
    assert!(show("dir/page.html").contains("gzipp"));
    let listing = show("dir/");
    assert!(
        listing.contains("<a href=\"./a%20b.txt\">a b.txt</a></td><td>10 B</td><td>1994-11-06 08:49"),
        "{listing}"
    );
}
