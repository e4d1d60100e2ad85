//! Requests while memory is short. Whatever allocation finds none: the client gets all of the answer, a 503,
//! or a reset, the log says why, and the next request is served as if nothing had been.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::sync::Once;
use std::task::{Context, Poll, Waker};

use common::{Machine, byte_at};
use embedded_io_async::{ErrorType, Read, Write};
use ringfence_services::api::Api;
use ringfence_services::block::{BlockError, BlockSource, SECTOR_SIZE};
use ringfence_services::fs::FileSystem;
use ringfence_services::http::{End, Limits, Server};

/// Fails on demand; each test runs on a thread of its own.
struct Short;

#[global_allocator]
static ALLOCATOR: Short = Short;

thread_local! {
    /// Allocations so far, and the one that fails; 0 for none.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static FAILS: Cell<u64> = const { Cell::new(0) };
    /// Bytes held, and how many may be.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static BUDGET: Cell<isize> = const { Cell::new(isize::MAX) };
    /// The test's own doing does not count.
    static EXEMPT: Cell<bool> = const { Cell::new(true) };
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: what is not refused is passed on unchanged to the system allocator; counting does not allocate.
unsafe impl GlobalAlloc for Short {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The thread's storage may be gone at its very end.
        let size = layout.size() as isize;
        if !EXEMPT.try_with(Cell::get).unwrap_or(true) {
            COUNT.set(COUNT.get() + 1);
            if COUNT.get() == FAILS.get() || HELD.get() + size > BUDGET.get() {
                return std::ptr::null_mut();
            }
        }
        let _ = HELD.try_with(|held| held.set(held.get() + size));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let _ = HELD.try_with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn exempt<T>(work: impl FnOnce() -> T) -> T {
    let before = EXEMPT.replace(true);
    let result = work();
    EXEMPT.set(before);
    result
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        exempt(|| LOG.with_borrow_mut(|lines| lines.push(record.args().to_string())));
    }

    fn flush(&self) {}
}

/// Says all of `input`, then finishes.
struct Client<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl ErrorType for Client<'_> {
    type Error = Infallible;
}

impl Read for Client<'_> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        self.input.read(buf).await
    }
}

impl Write for Client<'_> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        exempt(|| self.output.extend_from_slice(buf));
        Ok(buf.len())
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

#[derive(Clone)]
struct Image(Rc<Vec<u8>>);

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let mut at = sector as usize * SECTOR_SIZE;
        for buf in bufs {
            buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or(BlockError::OutOfRange)?);
            at += buf.len();
        }
        Ok(())
    }
}

const NAMES: u32 = 700;
/// For the longest answer.
const ROOM: usize = 200 << 10;

fn image(options: &[&str]) -> Image {
    static LOGGING: Once = Once::new();
    LOGGING.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    let dir = tempfile::TempDir::new().unwrap();
    let (site, path) = (dir.path().join("site"), dir.path().join("image"));
    std::fs::create_dir_all(site.join("dir/sub")).unwrap();
    std::fs::create_dir_all(site.join("page")).unwrap();
    (0..NAMES).for_each(|n| std::fs::write(site.join(format!("dir/file <é> {n:04}")), "").unwrap());
    std::fs::write(site.join("page/index.html"), "<h1>hello</h1>").unwrap();
    std::fs::write(site.join("page/index.html.gz"), "no gzip, but who knows").unwrap();
    std::fs::write(site.join("big.bin"), (0..150_000).map(byte_at).collect::<Vec<_>>()).unwrap();
    let target = format!("{}big.bin", "./".repeat(500));
    std::os::unix::fs::symlink(target, site.join("link")).unwrap();
    let made = Command::new("mkfs.ext4")
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .args(["-q", "-F", "-O", "^has_journal", "-N", "2000"])
        .args(options)
        .arg("-d")
        .args([&site, &path])
        .arg("4M")
        .output()
        .expect("mkfs.ext4 is missing: install the package e2fsprogs");
    assert!(made.status.success());
    Image(Rc::new(std::fs::read(path).unwrap()))
}

type App = Server<FileSystem<Image>, Api<Machine>>;

/// A server with an empty cache.
fn app(image: &Image, cache: usize) -> App {
    let files = block_on(FileSystem::open(image.clone(), cache)).unwrap();
    Server::new(common::mounted(files), Api(Machine::default()), Limits::default())
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Nothing here waits for anything but its turn.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = poll(future.as_mut()) {
            return result;
        }
    }
}

/// What comes back for `request`, while allocations count.
fn ask(server: &App, request: &[u8]) -> (End, Vec<u8>) {
    let mut client = Client { input: request, output: Vec::with_capacity(ROOM) };
    COUNT.set(0);
    EXEMPT.set(false);
    let end = block_on(server.serve(&mut client, || false));
    EXEMPT.set(true);
    (end, without_boundary(client.output))
}

/// The boundary between parts is another each time.
fn without_boundary(output: Vec<u8>) -> Vec<u8> {
    const BEFORE: &[u8] = b"boundary=ringfence-";
    let Some(at) = output.windows(BEFORE.len()).position(|window| window == BEFORE) else { return output };
    let digits = &output[at + BEFORE.len()..];
    let digits = digits.split(|byte| !byte.is_ascii_hexdigit()).next().unwrap().to_vec();
    let mut rest = output;
    while let Some(at) = rest.windows(digits.len()).position(|window| window == digits) {
        rest[at..at + digits.len()].fill(b'-');
    }
    rest
}

fn get(path: &str, fields: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
}

const REFUSED: &[u8] = b"HTTP/1.1 503 ";

/// An answer is as it should be, refused, or cut off in a way that the client notices.
fn check(whole: &[u8], end: End, got: &[u8], case: &str) {
    let log = LOG.take();
    if got == whole {
        return;
    }
    assert!(got.starts_with(REFUSED) || got.is_empty() || end == End::Abort, "{case}: {end:?}");
    assert!(got.starts_with(REFUSED) || whole.starts_with(got), "{case}: wrong bytes");
    assert!(log.iter().any(|line| line.contains("no memory")), "{case}: the log says nothing: {log:?}");
}

/// Each allocation of a request fails once, alone.
#[test]
fn every_allocation_may_fail() {
    let page = get("/dir/", "");
    let images = [image(&["-b", "1024"]), image(&["-b", "4096", "-O", "inline_data,^extents,^64bit"])];
    for (request, least) in [
        (&page, 50),
        (&get("/big.bin", ""), 20),
        (&get("/big.bin", "Range: bytes=1-70000\r\nIf-Range: \"x\"\r\n"), 20),
        (&get("/link", "If-None-Match: \"x\"\r\nIf-None-Match: \"y\"\r\nIf-Modified-Since: z\r\n"), 20),
        (&get("/page/", ""), 20),
        (&get("/page/", "Accept-Encoding: br, gzip\r\n"), 25),
        (&get("/page/", "Accept-Encoding: br, identity;q=0\r\n"), 20),
        (&get("/page/", "If-Match: \"x\"\r\n"), 20),
        (&get("/page/", "If-None-Match: *\r\n"), 20),
        (&get("/big.bin", "Range: bytes=0-70000,-1\r\n"), 20),
        (&get("/page?a=b", ""), 10),
        (&get("/dir/none", ""), 10),
        (&get("/%zz", ""), 3),
        (&b"HEAD /dir/ HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 20),
        (&b"POST / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 3),
    ] {
        for image in &images {
            let (_, whole) = ask(&app(image, 64 << 10), request);
            let text = String::from_utf8_lossy(request).into_owned();
            assert!(whole.starts_with(b"HTTP/1.1 ") && !whole.starts_with(REFUSED), "{text}");
            let mut failing = 1;
            loop {
                let server = app(image, 64 << 10);
                FAILS.set(failing);
                let (end, got) = ask(&server, request);
                FAILS.set(0);
                if COUNT.get() < failing {
                    break;
                }
                check(&whole, end, &got, &format!("allocation {failing} of {text}"));
                assert_eq!(ask(&server, request).1, whole, "after allocation {failing} of {text}");
                failing += 1;
            }
            println!("{failing} allocations of {text}");
            assert!(failing > least, "{failing} allocations of {text}");
        }
    }
    let listing = ask(&app(&images[0], 64 << 10), &page).1;
    assert_eq!(String::from_utf8(listing).unwrap().matches("<tr><td>").count(), NAMES as usize + 2);
}

/// So much memory and no more, from nearly nothing to plenty; also for what the machine tells about itself.
#[test]
fn any_amount_of_memory() {
    let image = image(&["-b", "4096"]);
    for path in ["/dir/", "/big.bin", "/metrics", "/api/devices", "/api/memory", "/api/none"] {
        let request = get(path, "");
        let (_, whole) = ask(&app(&image, 64 << 10), &request);
        let mut served = 0;
        for budget in (0..400).map(|n| n * 512) {
            let server = app(&image, 64 << 10);
            let mut client = Client { input: &request, output: Vec::with_capacity(ROOM) };
            BUDGET.set(HELD.get() + budget);
            EXEMPT.set(false);
            let end = block_on(server.serve(&mut client, || false));
            EXEMPT.set(true);
            BUDGET.set(isize::MAX);
            let text = String::from_utf8_lossy(&client.output);
            let case = format!("{path} with {budget} bytes");
            match path.starts_with("/dir") || path.starts_with("/big") {
                true => check(&whole, end, &client.output, &case),
                false => assert!(text.starts_with("HTTP/1.1 ") || client.output.is_empty(), "{case}: {text}"),
            }
            served += u32::from(client.output.len() == whole.len());
        }
        assert!(served > 100, "{path} was served with {served} of 400 amounts of memory");
        LOG.take();
    }
}

/// 90 clients list a large folder of large blocks, in less memory than they would like.
#[test]
fn many_listings_at_once() {
    let image = image(&["-b", "65536", "-I", "128"]);
    let request = get("/dir/", "Connection: close\r\n");
    let (_, whole) = ask(&app(&image, 1 << 20), &request);
    for budget in [400 << 10, 1 << 20, 3 << 20] {
        let server = app(&image, 256 << 10);
        let mut clients: Vec<_> =
            (0..90).map(|_| Client { input: &request, output: Vec::with_capacity(ROOM) }).collect();
        let mut tasks: Vec<_> =
            clients.iter_mut().map(|client| Box::pin(server.serve(client, || false))).collect();
        let mut ends = vec![None; 90];
        BUDGET.set(HELD.get() + budget);
        EXEMPT.set(false);
        while ends.contains(&None) {
            for (task, end) in tasks.iter_mut().zip(&mut ends).filter(|(_, end)| end.is_none()) {
                if let Poll::Ready(ready) = poll(task.as_mut()) {
                    *end = Some(ready);
                }
            }
        }
        EXEMPT.set(true);
        BUDGET.set(isize::MAX);
        drop(tasks);
        let served = clients.iter().filter(|client| client.output == whole).count();
        println!("with {budget} bytes {served} of 90 were served");
        for (client, end) in clients.iter().zip(ends) {
            let refused = client.output.starts_with(REFUSED) || end == Some(End::Abort);
            assert!(client.output == whole || refused, "{end:?}");
        }
        assert!(served > 0, "nobody is served with {budget} bytes");
        assert_eq!(ask(&server, &request).1, whole);
        LOG.take();
    }
}
