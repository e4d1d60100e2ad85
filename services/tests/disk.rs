//! The server on a real ext4 image, and on disks that cannot be used.

mod common;

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;

use common::client::{Client, Then, responses};
use common::{Machine, byte_at, quick_limits};
use embassy_time::Timer;
use futures::executor::block_on;
use futures::future::join;
use ringfence_services::api::Api;
use ringfence_services::block::{BlockError, BlockSource, Part, SECTOR_SIZE};
use ringfence_services::fs::{FileSystem, open_first};
use ringfence_services::http::{Mount, Server};

/// A disk in memory that can be pulled out.
struct Image {
    bytes: Vec<u8>,
    gone: Cell<bool>,
}

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        Timer::after_micros(20).await;
        if self.gone.get() {
            return Err(BlockError::Gone);
        }
        let mut at = sector as usize * SECTOR_SIZE;
        for buf in bufs {
            buf.copy_from_slice(self.bytes.get(at..at + buf.len()).ok_or(BlockError::OutOfRange)?);
            at += buf.len();
        }
        Ok(())
    }
}

type Files = FileSystem<Part<&'static Image>>;
type App = Server<Files, Api<Machine>>;

fn app() -> (App, Rc<Mount<Files>>) {
    let files = Rc::new(Mount::new());
    (Server::new(files.clone(), Api(Machine::default()), quick_limits()), files)
}

async fn open<'a>(files: &'a Mount<Files>, image: Option<&'static Image>) -> Result<&'a Files, &'a str> {
    let disks: Vec<_> = image.map(|image| ("disk", image)).into_iter().collect();
    files.open(async { Ok(open_first(&disks, None, 1 << 20, &mut |_| {}).await?.files) }).await
}

/// Status and body of an HTTP/1.0 request.
async fn get(server: &App, path: &str) -> (u16, Vec<u8>) {
    let mut client = Client::new(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(), Then::Finish);
    server.serve(&mut client, || false).await;
    let response = responses(&client.output, &[]).remove(0);
    (response.status, response.body)
}

fn leak(bytes: Vec<u8>) -> &'static Image {
    Box::leak(Box::new(Image { bytes, gone: Cell::new(false) }))
}

fn ext4() -> &'static Image {
    let dir = tempfile::TempDir::new().unwrap();
    let site = dir.path().join("site");
    std::fs::create_dir_all(site.join("dir/sub")).unwrap();
    std::fs::write(site.join("index.html"), "<h1>hello</h1>").unwrap();
    std::fs::write(site.join("dir/big.bin"), (0..3_000_000).map(byte_at).collect::<Vec<_>>()).unwrap();
    std::os::unix::fs::symlink("dir/big.bin", site.join("link.bin")).unwrap();
    std::os::unix::fs::symlink("loop", site.join("loop")).unwrap();
    std::os::unix::fs::symlink("../../../etc/passwd", site.join("outside")).unwrap();
    let image = dir.path().join("image");
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let made = Command::new("mkfs.ext4")
        .env("PATH", path)
        .args(["-q", "-F", "-d"])
        .args([&site, &image])
        .arg("16M")
        .status()
        .expect("mkfs.ext4 is missing: install the package e2fsprogs");
    assert!(made.success());
    leak(std::fs::read(image).unwrap())
}

#[test]
fn files_of_an_ext4_image() {
    let ((server, files), image) = (app(), ext4());
    block_on(async {
        open(&files, Some(image)).await.unwrap();
        assert_eq!(get(&server, "/").await, (200, b"<h1>hello</h1>".to_vec()));
        for path in ["/dir/big.bin", "/link.bin"] {
            let (status, body) = get(&server, path).await;
            assert_eq!(status, 200);
            assert!(body.iter().copied().eq((0..3_000_000).map(byte_at)), "{path}");
        }
        assert_eq!(get(&server, "/dir").await.0, 301);
        let listing = String::from_utf8(get(&server, "/dir/").await.1).unwrap();
        let (sub, big) = (listing.find("href=\"./sub/\""), listing.find("href=\"./big.bin\""));
        assert!(sub.is_some() && sub < big, "{listing}");
        for path in ["/none", "/index.html/x", "/loop", "/outside", &format!("/{}", "n".repeat(300))] {
            assert_eq!(get(&server, path).await.0, 404, "{path}");
        }
        // The disk is pulled out: what was not read yet cannot be had, the rest of the server goes on.
        image.gone.set(true);
        assert_eq!(get(&server, "/lost+found/").await.0, 503);
        assert_eq!(get(&server, "/metrics").await.0, 200);
    });
}

#[test]
fn no_disk_and_unusable_disks_are_said_to_be_so() {
    let mut broken = ext4().bytes.clone();
    broken.truncate(100_000);
    for (disk, why) in [
        (None, "There is no disk."),
        (Some(leak(vec![0; 1 << 20])), "not an ext4 file system"),
        (Some(leak(vec![0; 512])), "not an ext4 file system"),
        (Some(leak(vec![])), "not an ext4 file system"),
        (Some(leak(broken)), "The disk cannot be used: "),
    ] {
        let (server, files) = app();
        block_on(async {
            let said = open(&files, disk).await.err().expect("not usable").to_string();
            assert!(said.contains(why), "{said}");
            let (status, body) = get(&server, "/").await;
            assert_eq!(status, 503);
            assert!(String::from_utf8(body).unwrap().contains(&said));
            assert_eq!(get(&server, "/api/memory").await.0, 200);
        });
    }
}

#[test]
fn who_asks_before_the_disk_is_open_waits() {
    let ((server, files), image) = (app(), ext4());
    block_on(async {
        assert_eq!(get(&server, "/metrics").await.0, 200);
        let opening = async {
            Timer::after_millis(100).await;
            open(&files, Some(image)).await.unwrap();
        };
        assert_eq!(join(get(&server, "/"), opening).await.0.0, 200);
    });
}

#[test]
fn the_future_is_small() {
    let (server, _) = app();
    let mut client = Client::new(b"", Then::Finish);
    let size = size_of_val(&server.serve(&mut client, || false));
    println!("serve on ext4: {size} bytes");
    assert!(size < 5120);
}
