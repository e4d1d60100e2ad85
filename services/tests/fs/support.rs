//! Source folders and images made from them.

use futures::executor::block_on;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockSource;
use ringfence_services::fs::{FileSystem, FsError, Kind, Node};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub const CACHE: usize = 1 << 20;

/// A program that may be anywhere where root's programs are.
pub fn find_tool(name: &str) -> Option<Command> {
    let places =
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/opt/homebrew/opt/e2fsprogs/sbin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists()).map(Command::new)
}

/// Such a program; fails with a clear message where it is missing.
pub fn tool(name: &str, package: &str) -> Command {
    find_tool(name).unwrap_or_else(|| panic!("{name} is missing: install the package {package}"))
}

/// A command of e2fsprogs.
pub fn e2fsprogs(name: &str) -> Command {
    let mut command = tool(name, "e2fsprogs");
    command.env("E2FSPROGS_FAKE_TIME", "1700000000");
    command
}

pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Pseudo-random bytes: no two blocks are alike.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Makes an image of `kib` KiB from a folder. The free space is not zero, so that whoever reads it is found
/// out.
pub fn make_image(folder: &Path, options: &[&str], kib: usize) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, vec![0xa5; kib * 1024]).unwrap();
    run(e2fsprogs("mkfs.ext4")
        .args(["-q", "-F", "-L", "ringfence test", "-U", "01234567-89ab-cdef-0123-456789abcdef"])
        .args(["-E", "nodiscard,hash_seed=01234567-89ab-cdef-0123-456789abcdef"])
        .args(options)
        .arg("-d")
        .arg(folder)
        .arg(&path));
    fs::read(path).unwrap()
}

/// Runs `debugfs` commands that change an image.
pub fn change_image(image: &[u8], commands: &[&str]) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    for command in commands {
        run(e2fsprogs("debugfs").args(["-w", "-R", command]).arg(&path));
    }
    fs::read(path).unwrap()
}

/// What `debugfs` says to a question about an image.
pub fn debugfs(image: &[u8], question: &str) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    String::from_utf8(run(e2fsprogs("debugfs").args(["-R", question]).arg(&path))).unwrap()
}

/// Gives all folders hash trees, which mkfs.ext4 does not.
pub fn with_hash_trees(image: &[u8]) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    let status = e2fsprogs("e2fsck").args(["-fyD"]).arg(&path).output().unwrap().status;
    // 1 says that something was changed.
    assert!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
    fs::read(path).unwrap()
}

pub fn write(folder: &Path, name: impl AsRef<Path>, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A file with data at some offsets and holes between.
pub fn write_sparse(folder: &Path, name: &str, size: u64, data: &[(u64, &[u8])]) {
    let mut file = fs::File::create(folder.join(name)).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in data {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(bytes).unwrap();
    }
}

/// A small tree with a bit of everything: `many` files in one folder, and a file of `pieces` extents.
pub fn sample_folder(many: usize, pieces: u64) -> TempDir {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(root, "index.html", b"<!doctype html><title>Ringfence</title>");
    for len in
        [0, 1, 56, 59, 60, 61, 100, 155, 160, 200, 1023, 1024, 1025, 4095, 4096, 4097, 12 * 1024, 70_001]
    {
        write(root, format!("sizes/{len}.bin"), &noise(len as u64, len));
    }
    write(root, "large.bin", &noise(1, 7000 * pieces as usize + 3));
    for number in 0..many {
        write(root, format!("many/entry number {number:05}"), number.to_string().as_bytes());
    }
    write(root, "small dir/only", b"one");
    fs::create_dir(root.join("empty dir")).unwrap();
    let deep: PathBuf = (0..60).map(|level| format!("level{level}")).collect();
    write(root, deep.join("bottom"), b"deep");
    write(root, "long".repeat(63) + "abc", b"a name of 255 bytes");
    write(root, std::ffi::OsStr::from_bytes(b"not utf-8 \xff\xfe"), b"any bytes");
    // Every other 8 KiB is a hole: many extents, or a block map with many holes.
    let piece = noise(2, 8192);
    let pieces: Vec<(u64, &[u8])> = (1..=pieces).map(|n| (n * 16384, &piece[..])).collect();
    write_sparse(root, "sparse", pieces.len() as u64 * 16384 + 8192, &pieces);
    // With a block map of 1 KiB blocks this needs the triple indirect block.
    write_sparse(root, "far", 90 << 20, &[(0, b"near"), (300_000, b"double"), ((90 << 20) - 6, b"triple")]);
    sample_links(root);
    dir
}

fn sample_links(root: &Path) {
    symlink("index.html", root.join("link")).unwrap();
    symlink("/sizes/100.bin", root.join("absolute")).unwrap();
    symlink("sizes", root.join("dirlink")).unwrap();
    symlink("../../../../../index.html", root.join("sizes/escape")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("loop-b", root.join("loop-a")).unwrap();
    symlink("loop-a", root.join("loop-b")).unwrap();
    symlink("self/self", root.join("self")).unwrap();
    for len in [58, 59, 60, 61, 150, 200, 1000] {
        let target = "./".repeat(len / 2 - 5) + if len % 2 == 0 { "index.html" } else { "/index.html" };
        assert_eq!(target.len(), len);
        symlink(target, root.join(format!("link of {len}"))).unwrap();
    }
}

pub fn read_all<B: BlockSource>(fs: &FileSystem<B>, node: &Node, piece: usize) -> Result<Vec<u8>, FsError> {
    let (mut all, mut buf) = (Vec::new(), vec![0xdd; piece]);
    loop {
        let len = block_on(fs.read_at(node, all.len() as u64, &mut buf))?;
        all.extend_from_slice(&buf[..len]);
        if len < piece {
            assert_eq!(all.len() as u64, node.metadata().size);
            return Ok(all);
        }
    }
}

/// Name, inode number and kind of each entry of a folder.
pub type Names = BTreeMap<Vec<u8>, (u32, Option<Kind>)>;

pub fn names<B: BlockSource>(fs: &FileSystem<B>, node: &Node) -> Result<Names, FsError> {
    let (mut names, mut cursor) = (BTreeMap::new(), 0);
    while let Some(block) = block_on(fs.read_dir(node, &mut cursor))? {
        for entry in block.entries() {
            let entry = entry?;
            let before = names.insert(entry.name.to_vec(), (entry.inode, entry.kind));
            assert!(before.is_none(), "{:?} is listed twice", entry.name);
        }
    }
    Ok(names)
}

/// Compares a folder of the image with its source, and everything below it.
pub fn compare<B: BlockSource>(fs: &FileSystem<B>, source: &Path, inside: &str, has_file_type: bool) {
    let node = block_on(fs.lookup(inside.as_bytes())).unwrap();
    assert_eq!(node.metadata().kind, Kind::Directory);
    let mut listed = names(fs, &node).unwrap();
    if inside == "/" {
        assert_eq!(listed.remove(&b"lost+found"[..]).map(|found| found.1.is_some()), Some(has_file_type));
    }
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let (inode, listed_kind) =
            listed.remove(name.as_bytes()).unwrap_or_else(|| panic!("{name:?} is missing"));
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = match meta.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Other,
        };
        assert_eq!(listed_kind, has_file_type.then_some(kind), "{name:?}");
        let child = block_on(fs.node(inode)).unwrap();
        assert_eq!(child.metadata().kind, kind, "{name:?}");
        assert_eq!(child.metadata().mtime, meta.mtime(), "{name:?}");
        match kind {
            Kind::Directory => {
                compare(fs, &entry.path(), &format!("{inside}{}/", name.to_str().unwrap()), has_file_type)
            }
            Kind::Symlink => {
                let target = fs::read_link(entry.path()).unwrap();
                assert_eq!(block_on(fs.read_link(&child)).unwrap(), target.as_os_str().as_bytes());
            }
            Kind::File => {
                assert_eq!(child.metadata().size, meta.len(), "{name:?}");
                let path = [inside.as_bytes(), name.as_bytes()].concat();
                let found = block_on(fs.lookup(&path)).unwrap();
                assert_eq!(found.metadata().inode, inode);
                let expected = fs::read(entry.path()).unwrap();
                assert!(read_all(fs, &found, 64 * 1024).unwrap() == expected, "{name:?} differs");
            }
            Kind::Other => {
                assert_eq!(block_on(fs.read_at(&child, 0, &mut [0; 8])), Err(FsError::NotAFile));
            }
        }
    }
    assert!(listed.is_empty(), "not in the source: {listed:?}");
}
