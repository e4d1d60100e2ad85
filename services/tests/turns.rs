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

/// An image of `size` bytes with a folder `dir`, made by `mkfs.ext4` and changed by `debugfs`, which is told
/// the first block of the folder.
fn image(
    size: u64,
    options: &[&str],
    names: impl Iterator<Item = String>,
    commands: impl FnOnce(u32) -> Vec<String>,
) -> Image {
    let temporary = tempfile::TempDir::new().unwrap();
    let (site, path) = (temporary.path().join("site"), temporary.path().join("image"));
    std::fs::create_dir_all(site.join("dir")).unwrap();
    names.for_each(|name| std::fs::write(site.join("dir").join(name), "").unwrap());
    File::create(&path).unwrap().set_len(size).unwrap();
    let mut mkfs = tool("mkfs.ext4");
    mkfs.args(["-q", "-F", "-E", "nodiscard", "-d"]).arg(&site).args(options).arg(&path);
    assert!(mkfs.output().expect("mkfs.ext4 is missing: install the package e2fsprogs").status.success());
    let first = tool("debugfs").args(["-R", "bmap dir 0"]).arg(&path).output().unwrap().stdout;
    let first = String::from_utf8(first).unwrap().trim().parse().unwrap();
    let script = temporary.path().join("script");
    std::fs::write(&script, commands(first).join("\n")).unwrap();
    let mut debugfs = tool("debugfs");
    debugfs.arg("-w").arg("-f").args([&script as &Path, &path]);
    assert!(debugfs.output().unwrap().status.success());
    Image(File::open(&path).unwrap(), size)
}

const LARGE: u64 = 64 << 10;

/// A folder of blocks of `block` bytes that claims `size` bytes, with up to 84,000 blocks. All but the last
/// are of zeros, which of 64 KiB are good empty blocks, and lie in the same place on the disk. The last one
/// has the folder itself as `sub`.
fn endless(size: u64, block: u64) -> Image {
    let in_bytes = block.to_string();
    let options = ["-b", &in_bytes, "-N", "64", "-O", "^metadata_csum,^has_journal,large_dir"];
    let blocks = (size / block) as u32;
    let commands = |first| {
        let starts = (0..blocks - 1).step_by(28_000);
        let mut extents: Vec<[u32; 3]> =
            starts.map(|start| [start, (blocks - 1 - start).min(28_000), 4096]).collect();
        extents.push([blocks - 1, 1, first]);
        let mut words = vec![0xf30a | (extents.len() as u32) << 16, 4, 0];
        words.extend(extents.into_iter().flatten());
        let places = (0..12).map(|n| n.to_string()).chain(["IND", "DIND", "TIND"].map(String::from));
        let fields = places.zip(words);
        let fields = fields.map(|(place, word)| format!("set_inode_field dir block[{place}] {word}"));
        let link = std::iter::once("link dir dir/sub".to_owned());
        link.chain(fields).chain([format!("set_inode_field dir size {size}")]).collect()
    };
    image(size + (4 << 30), &options, std::iter::empty(), commands)
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

    async fn node(&self, inode: u32) -> Result<Node, FsError> {
        Files::node(&self.0, inode).await
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

/// A folder that claims 4 GiB of blocks without a name, or 6 GiB that are all lost since they need more
/// extents than there is room for: nobody notices while it is listed, and it comes to an end.
#[test]
fn listing_empty_space_leaves_others_their_turn() {
    for (size, most) in [(4 << 30, 16), (6 << 30, 64)] {
        let (done, seen, largest) = list(endless(size, LARGE), u64::MAX);
        assert!(!done && (1000..1100).contains(&seen), "{seen} blocks were seen");
        assert!(largest <= most, "{largest} blocks of 64 KiB in one turn");
    }
    // Smaller blocks of zeros are damaged.
    let (done, seen, largest) = list(endless(320 << 20, 4096), u64::MAX);
    assert!(
        !done && (16_000..17_000).contains(&seen) && largest <= 64,
        "{seen} blocks, {largest} in one turn"
    );
    let (done, seen, largest) = list(endless(1 << 26, LARGE), u64::MAX);
    assert!(done && seen > 1 << 10 && largest <= 16, "{seen} blocks, {largest} in one turn");
}

/// The same with blocks that are there and in the cache, and whose entries were all deleted.
#[test]
fn listing_empty_blocks_leaves_others_their_turn() {
    let name = |n: u32| format!("{n:0>200}");
    let remove: Vec<String> = (0..1200).map(|n| format!("rm dir/{}", name(n))).collect();
    let options = ["-b", "1024", "-N", "2000", "-O", "^dir_index"];
    let (done, seen, largest) = list(image(16 << 20, &options, (0..1200).map(name), |_| remove), u64::MAX);
    assert!(done && seen > 250, "{seen} blocks were seen");
    assert!(largest <= 64, "{largest} blocks of 1 KiB in one turn");
}

/// Looking a name up, and walking a long path.
#[test]
fn lookups_leave_others_their_turn() {
    let fs = block_on(FileSystem::open(endless(1 << 25, LARGE), 1 << 20)).unwrap();
    let (result, polls, _) = steps(fs.lookup(b"/dir/nothing"), u64::MAX, || 0);
    assert!(matches!(result, Some(Err(FsError::NotFound))));
    assert!(polls >= (1 << 25) / (16 << 16), "512 blocks in {polls} turns");

    let name = |n: u32| format!("{n:0>200}");
    let links = ["symlink dir/sub .".to_owned()];
    let options = ["-b", "1024", "-N", "4000"];
    let fs = block_on(FileSystem::open(
        image(16 << 20, &options, (0..500).map(name), |_| links.to_vec()),
        4 << 20,
    ))
    .unwrap();
    let visited = || fs.cache_stats().hits + fs.cache_stats().misses;
    for path in [format!("dir/{}", "sub/".repeat(40)), "dir/../".repeat(500), "/".repeat(4000)] {
        let (result, _, largest) = steps(fs.lookup(path.as_bytes()), u64::MAX, visited);
        assert!(result.is_some_and(|node| node.is_ok()), "{path}");
        assert!(largest <= 128, "{largest} pages in one turn, for {path}");
    }
}

/// However many steps a path has and however large the folders claim to be, one look-up looks through 64 MiB
/// of them and no more.
#[test]
fn a_look_up_comes_to_an_end() {
    for (size, steps, expected) in [
        (1 << 30, 1000, Err(FsError::TooMuch)),
        (1 << 22, 1000, Err(FsError::TooMuch)),
        (1 << 22, 14, Ok(())),
        (1 << 22, 16, Err(FsError::TooMuch)),
    ] {
        let fs = block_on(FileSystem::open(endless(size, LARGE), 1 << 20)).unwrap();
        let pages = || fs.cache_stats().hits + fs.cache_stats().misses;
        let before = pages();
        let path = format!("dir/{}", "sub/".repeat(steps));
        assert_eq!(block_on(fs.lookup(path.as_bytes())).map(|_| ()), expected, "{size}, {steps}");
        // A block of 64 KiB is 16 pages; a step costs one more, for the inode.
        let blocks = (pages() - before - steps as u64) / 16;
        assert!(blocks <= 1024, "{blocks} blocks for {steps} steps in {size} bytes");
    }
}

/// A client is told what keeps it from its file.
#[test]
fn too_much_is_said_to_be_so() {
    let files = block_on(FileSystem::open(endless(1 << 30, LARGE), 1 << 20)).unwrap();
    let server = Server::new(common::mounted(files), Api(Machine::default()), quick_limits());
    let mut client = Client::new(b"GET /dir/sub/ HTTP/1.0\r\n\r\n", Then::Finish);
    block_on(server.serve(&mut client, || false));
    let answer = String::from_utf8(client.output).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("too large"), "{answer}");
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
