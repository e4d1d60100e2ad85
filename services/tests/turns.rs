//! How much a request does before other tasks get a turn: little, also where the disk claims to be without
//! end and everything is in the cache.

mod common;

use std::cell::Cell;
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};

use common::client::{Client, Then};
use common::{Machine, quick_limits};
use futures::executor::block_on;
use ringfence_services::api::Api;
use ringfence_services::block::{BlockError, BlockSource, SECTOR_SIZE};
use ringfence_services::fs::{DirEntry, FileSystem, FsError, Metadata, Node};
use ringfence_services::http::{Files, Server};

/// A disk that always answers at once, as a cache does.
struct Image(File, u64);

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.1
    }

    async fn read(&self, sector: u64, bufs: &mut [&mut [u8]]) -> Result<(), BlockError> {
        let mut at = sector * SECTOR_SIZE as u64;
        for buf in bufs {
            self.0.read_exact_at(buf, at).map_err(|_| BlockError::OutOfRange)?;
            at += buf.len() as u64;
        }
        Ok(())
    }
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// An image of `size` bytes with a folder `dir`, made by `mkfs.ext4` and changed by `debugfs`.
fn image(size: u64, options: &[&str], names: impl Iterator<Item = String>, commands: &[String]) -> Image {
    let temporary = tempfile::TempDir::new().unwrap();
    let (site, path) = (temporary.path().join("site"), temporary.path().join("image"));
    std::fs::create_dir_all(site.join("dir")).unwrap();
    names.for_each(|name| std::fs::write(site.join("dir").join(name), "").unwrap());
    File::create(&path).unwrap().set_len(size).unwrap();
    let mut mkfs = tool("mkfs.ext4");
    mkfs.args(["-q", "-F", "-E", "nodiscard", "-d"]).arg(&site).args(options).arg(&path);
    assert!(mkfs.output().expect("mkfs.ext4 is missing: install the package e2fsprogs").status.success());
    let script = temporary.path().join("script");
    std::fs::write(&script, commands.join("\n")).unwrap();
    assert!(
        tool("debugfs")
            .arg("-w")
            .arg("-f")
            .args([&script as &Path, &path])
            .output()
            .unwrap()
            .status
            .success()
    );
    Image(File::open(&path).unwrap(), size)
}

/// A folder of 64 KiB blocks that claims `size` bytes. Behind the first block there are only holes.
fn holes(size: u64) -> Image {
    let options = ["-b", "65536", "-N", "64", "-O", "^metadata_csum,^has_journal,large_dir"];
    image(size + (1 << 30), &options, std::iter::empty(), &[format!("set_inode_field dir size {size}")])
}

/// Counts the pieces of folders that are read.
struct Counted(FileSystem<Image>, Cell<u64>);

impl Files for Counted {
    type Node = Node;

    async fn lookup(&self, path: &[u8]) -> Result<Node, FsError> {
        if path.ends_with(b"/index.html") {
            return Err(FsError::NotFound);
        }
        self.0.lookup(path).await
    }

    fn metadata(&self, node: &Node) -> Metadata {
        node.metadata()
    }

    async fn read_at(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        self.0.read_at(node, offset, buf).await
    }

    async fn read_dir(
        &self,
        dir: &Node,
        cursor: &mut u64,
        take: impl FnMut(DirEntry<'_>) -> Result<bool, FsError>,
    ) -> Result<bool, FsError> {
        self.1.set(self.1.get() + 1);
        Files::read_dir(&self.0, dir, cursor, take).await
    }
}

/// Polls `work` up to `limit` times. Returns its result, how often it was polled, and by how much `done` grew
/// in one poll at most.
fn steps<T>(work: impl Future<Output = T>, limit: u64, done: impl Fn() -> u64) -> (Option<T>, u64, u64) {
    let (mut work, mut largest) = (pin!(work), 0);
    for polls in 1..=limit {
        let before = done();
        let result = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        largest = largest.max(done() - before);
        if let Poll::Ready(result) = result {
            return (Some(result), polls, largest);
        }
    }
    (None, limit, largest)
}

fn list(image: Image, limit: u64) -> (bool, u64, u64) {
    let files = block_on(FileSystem::open(image, 16 << 20)).unwrap();
    let server =
        Server::new(common::mounted(Counted(files, Cell::new(0))), Api(Machine::default()), quick_limits());
    let mut client = Client::new(b"GET /dir/ HTTP/1.0\r\n\r\n", Then::Finish);
    let (end, polls, largest) = {
        let serve = server.serve(&mut client, || false);
        steps(serve, limit, || server.files().unwrap().1.get())
    };
    println!("{polls} polls, at most {largest} blocks in one, {} in all", server.files().unwrap().1.get());
    (end.is_some() && client.output.ends_with(b"</html>\n"), server.files().unwrap().1.get(), largest)
}

/// A folder that claims 20 GiB of holes, each of which is a valid empty block: nobody notices while it is
/// listed.
#[test]
fn listing_holes_leaves_others_their_turn() {
    let (_, seen, largest) = list(holes(20 << 30), 4000);
    assert!(seen > 1000, "{seen} blocks were seen");
    assert!(largest <= 16, "{largest} blocks of 64 KiB in one turn");
    let (done, seen, largest) = list(holes(1 << 26), u64::MAX);
    assert!(done && seen > 1 << 10 && largest <= 16, "{seen} blocks, {largest} in one turn");
}

/// The same with blocks that are there and in the cache, and whose entries were all deleted.
#[test]
fn listing_empty_blocks_leaves_others_their_turn() {
    let name = |n: u32| format!("{n:0>200}");
    let remove: Vec<String> = (0..1200).map(|n| format!("rm dir/{}", name(n))).collect();
    let options = ["-b", "1024", "-N", "2000", "-O", "^dir_index"];
    let (done, seen, largest) = list(image(16 << 20, &options, (0..1200).map(name), &remove), u64::MAX);
    assert!(done && seen > 250, "{seen} blocks were seen");
    assert!(largest <= 64, "{largest} blocks of 1 KiB in one turn");
}

/// Looking a name up, and walking a long path.
#[test]
fn lookups_leave_others_their_turn() {
    let fs = block_on(FileSystem::open(holes(1 << 26), 1 << 20)).unwrap();
    let (result, polls, _) = steps(fs.lookup(b"/dir/nothing"), u64::MAX, || 0);
    assert!(matches!(result, Some(Err(FsError::NotFound))));
    assert!(polls >= (1 << 26) / (16 << 16), "1024 blocks in {polls} turns");

    let name = |n: u32| format!("{n:0>200}");
    let links = ["symlink dir/sub .".to_owned()];
    let options = ["-b", "1024", "-N", "4000"];
    let fs =
        block_on(FileSystem::open(image(16 << 20, &options, (0..500).map(name), &links), 4 << 20)).unwrap();
    let visited = || fs.cache_stats().hits + fs.cache_stats().misses;
    for path in [format!("dir/{}", "sub/".repeat(40)), "dir/../".repeat(500), "/".repeat(4000)] {
        let (result, _, largest) = steps(fs.lookup(path.as_bytes()), u64::MAX, visited);
        assert!(result.is_some_and(|node| node.is_ok()), "{path}");
        assert!(largest <= 128, "{largest} pages in one turn, for {path}");
    }
}

/// Many requests at once, all of them cheap.
#[test]
fn pipelined_requests_leave_others_their_turn() {
    let server = common::server(common::Tree::default().with("/a", "a"));
    let requests = b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    let mut client = Client::new(&requests, Then::Finish);
    let served = || server.stats().responses(ringfence_services::http::Status::NotFound);
    let (_, _, largest) = steps(server.serve(&mut client, || false), u64::MAX, served);
    assert_eq!(served(), 1000);
    assert!(largest <= 1, "{largest} requests in one turn");
}
