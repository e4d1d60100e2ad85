//! Doubles for what the kernel provides: a folder of the host as the disk, and made-up devices.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod client;
pub mod host;
pub mod peer;
pub mod skip;
pub mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use ringfence_services::api::{Api, DeviceInfo, Heap, QueueInfo, Run, System, Window};
use ringfence_services::block::BlockError;
use ringfence_services::fs::{DirEntry, FsError, Kind, Metadata};
use ringfence_services::http::{Files, Limits, Mount, Server};

/// Files in memory, with faults on demand.
#[derive(Default)]
pub struct Tree {
    files: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Made-up long files: every byte is a function of its offset.
    generated: BTreeMap<Vec<u8>, u64>,
    /// Every call fails with this.
    pub fault: RefCell<Option<FsError>>,
    /// An entry of directories that is lost, by its place.
    pub lost_entry: Cell<Option<u64>>,
    /// Reads from this offset on fail.
    pub read_fault: Cell<Option<(u64, FaultKind)>>,
    /// Reads take this long.
    pub delay: Cell<Duration>,
    /// The largest buffer anybody read into.
    pub largest_read: Cell<usize>,
}

#[derive(Clone, Copy)]
pub enum FaultKind {
    Io,
    Corrupt,
}

pub struct TreeNode {
    path: Vec<u8>,
    kind: Kind,
    size: u64,
}

/// The byte at `offset` of a generated file; not periodic in any buffer size.
pub fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The inode number of a path.
fn number(path: &[u8]) -> u32 {
    path.iter().fold(2_166_136_261, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

impl Tree {
    pub fn with(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.insert(path.into(), content.as_ref().to_vec());
        self
    }

    pub fn with_raw(mut self, path: &[u8], content: &[u8]) -> Self {
        self.files.insert(path.into(), content.to_vec());
        self
    }

    pub fn with_generated(mut self, path: &str, size: u64) -> Self {
        self.generated.insert(path.into(), size);
        self
    }

    fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.files.keys().chain(self.generated.keys())
    }

    /// Every path there is.
    fn paths(&self) -> BTreeSet<Vec<u8>> {
        let mut paths = BTreeSet::from([b"/".to_vec()]);
        for name in self.names() {
            paths.extend((1..name.len()).filter(|&at| name[at] == b'/').map(|at| name[..at].to_vec()));
            paths.insert(name.clone());
        }
        paths
    }

    fn check(&self) -> Result<(), FsError> {
        self.fault.borrow().map_or(Ok(()), Err)
    }
}

impl Files for Tree {
    type Node = TreeNode;

    async fn lookup(&self, path: &[u8]) -> Result<TreeNode, FsError> {
        assert!(path.starts_with(b"/") && (path == b"/" || !path.ends_with(b"/")), "{}", path.escape_ascii());
        assert!(!path.windows(2).any(|w| w == b"//") && !path.contains(&0));
        self.check()?;
        let size = self.files.get(path).map(|c| c.len() as u64).or(self.generated.get(path).copied());
        let node = |kind, size| Ok(TreeNode { path: path.to_vec(), kind, size });
        if let Some(size) = size {
            return node(if path.ends_with(b".dev") { Kind::Other } else { Kind::File }, size);
        }
        let prefix = [path, if path == b"/" { b"" } else { b"/" }].concat();
        if path == b"/" || self.names().any(|name| name.starts_with(&prefix)) {
            return node(Kind::Directory, 4096);
        }
        Err(FsError::NotFound)
    }

    async fn node(&self, inode: u32) -> Result<TreeNode, FsError> {
        let path = self.paths().into_iter().find(|path| number(path) == inode).unwrap();
        self.lookup(&path).await
    }

    fn metadata(&self, node: &TreeNode) -> Metadata {
        let inode = number(&node.path);
        Metadata { inode, kind: node.kind, size: node.size, mtime: 784_111_777 }
    }

    async fn read_at(&self, node: &TreeNode, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        self.check()?;
        self.largest_read.set(self.largest_read.get().max(buf.len()));
        let delay = self.delay.get();
        if !delay.is_zero() {
            embassy_time::Timer::after_micros(delay.as_micros() as u64).await;
        }
        match self.read_fault.get() {
            Some((from, FaultKind::Io)) if offset >= from => return Err(FsError::Io(BlockError::Device)),
            Some((from, FaultKind::Corrupt)) if offset >= from => {
                return Err(FsError::Corrupt("as asked for"));
            }
            _ => {}
        }
        let n = node.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        match self.files.get(&node.path) {
            Some(content) => buf[..n].copy_from_slice(&content[offset as usize..][..n]),
            None => (offset..).zip(&mut buf[..n]).for_each(|(at, byte)| *byte = byte_at(at)),
        }
        Ok(n)
    }

    async fn read_dir(
        &self,
        dir: &TreeNode,
        cursor: &mut u64,
        mut take: impl FnMut(DirEntry<'_>) -> Result<bool, FsError>,
    ) -> Result<bool, FsError> {
        self.check()?;
        let prefix = [&dir.path[..], if dir.path == b"/" { b"" } else { b"/" }].concat();
        let mut children = BTreeMap::new();
        for name in self.names().filter_map(|name| name.strip_prefix(&prefix[..])) {
            let mut parts = name.splitn(2, |&b| b == b'/');
            let child = parts.next().unwrap().to_vec();
            children.insert(child, if parts.next().is_some() { Kind::Directory } else { Kind::File });
        }
        let mut left = children.into_iter().skip(*cursor as usize).take(7).peekable();
        let more = left.peek().is_some();
        for (name, kind) in left {
            let inode = number(&[&prefix[..], &name].concat());
            if !take(DirEntry { name: &name, inode, kind: Some(kind), next: *cursor + 1 })? {
                break;
            }
            *cursor += 1;
            if self.lost_entry.get() == Some(*cursor) {
                *cursor += 1;
                return Err(FsError::Corrupt("a part of a folder"));
            }
        }
        Ok(more)
    }
}

/// A machine with names that need escaping.
#[derive(Default)]
pub struct Machine {
    pub findings: Vec<String>,
    pub many: usize,
    /// Counters besides the usual one.
    pub counters: Vec<(&'static str, &'static str, u64)>,
}

impl System for Machine {
    fn device(&self, index: usize) -> Option<DeviceInfo> {
        let queue = QueueInfo {
            index: 0,
            size: 256,
            vector: Some(1),
            in_flight: 4,
            kicks: 3,
            interrupts: 2,
            completions: 5,
            rejected: 1,
            given_up: 6,
        };
        let device = |address: &str, driver: Option<&str>, name: &str, queues| DeviceInfo {
            address: address.into(),
            id: "1af4:1042".into(),
            name: name.into(),
            driver: driver.map(Into::into),
            features: if driver.is_some() { vec!["VIRTIO_F_VERSION_1"] } else { vec![] },
            queues,
        };
        match index {
            0 => Some(device("0000:00:01.0", None, "a \"quoted\\\"\nname <\u{1}>", vec![])),
            1 => Some(device("0000:00:02.0", Some("virtio-blk"), "disk", vec![queue])),
            n if n < self.many => {
                Some(device(&format!("0000:00:{:02x}.0", n + 2), Some("x"), "d", vec![queue]))
            }
            _ => None,
        }
    }

    fn frames(&self) -> Vec<(&'static str, u64)> {
        vec![("free", 1000), ("dma", 24), ("od\"d\n", 1)]
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        let runs = [
            (0, 1, "od"),
            (1, 10, "free"),
            (11, 985, "free"),
            (1000, 5, "free"),
            (1008, 24, "dma"),
            (1032, 1, "dma"),
        ];
        let many = (0..self.many as u64).map(|at| (2000 + at, 1, if at % 2 == 0 { "free" } else { "dma" }));
        runs.into_iter().chain(many).map(|(start, count, owner)| Run { start, count, owner })
    }

    fn windows(&self) -> impl Iterator<Item = Window> {
        [(1008, false), (1010, true)].into_iter().map(|(frame, quarantined)| Window {
            device: "0000:00:\"02\".0".into(),
            start: frame << 12,
            bytes: 4096,
            quarantined,
        })
    }

    fn audit(&self) -> impl FnMut() -> Option<Vec<String>> {
        let mut steps = 0..3;
        move || steps.next().is_none().then(|| self.findings.clone())
    }

    fn heap(&self) -> Heap {
        Heap { used: 123, size: 456 }
    }

    fn counters(&self, emit: &mut dyn FnMut(&'static str, &str, u64)) {
        emit("cache_hits_total", "Reads answered from the cache.", 7);
        self.counters.iter().for_each(|(name, help, value)| emit(name, help, *value));
    }
}

/// Short limits, so that tests of slowness are quick.
pub fn quick_limits() -> Limits {
    Limits {
        head: embassy_time::Duration::from_millis(900),
        idle: embassy_time::Duration::from_millis(1500),
        crowded: embassy_time::Duration::from_millis(300),
        stall: embassy_time::Duration::from_millis(700),
        grace: embassy_time::Duration::from_millis(1000),
        rate: 4 << 10,
    }
}

/// Files that are there from the start.
pub fn mounted<F>(files: F) -> Rc<Mount<F>> {
    Rc::new(Mount::from(Ok(files)))
}

pub fn server(tree: Tree) -> Server<Tree, Api<Machine>> {
    Server::new(mounted(tree), Api(Machine::default()), quick_limits())
}
