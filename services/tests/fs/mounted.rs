//! Folders written by a mounted Linux. It leaves traces that `mkfs.ext4 -d` never does: the tail of the block
//! from which a folder grew into a hash tree, blocks that were emptied, entries merged into their neighbours.

use crate::disks::MemDisk;
use crate::support::{CACHE, compare, e2fsprogs, names, run};
use futures::executor::block_on;
use ringfence_services::fs::{FileSystem, FsError};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A mounted image; dropping it takes it off.
pub struct Mount {
    pub point: PathBuf,
}

impl Mount {
    pub fn new(image: &Path, point: PathBuf, options: &str) -> Result<Self, String> {
        fs::create_dir_all(&point).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", &format!("loop,{options}")]).args([image, &point]);
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(Self { point });
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    fn touch(&self, folder: &str, name: &str, content: &str) {
        let folder = self.point.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }

    /// `count` files whose names have `length` bytes.
    fn fill(&self, folder: &str, count: usize, length: usize) {
        for number in 0..count {
            self.touch(folder, &name(number, length), "");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Programs that other tests start have our files, too, until they are those programs.
        let done = (0..100).any(|_| {
            let output = Command::new("umount").arg(&self.point).output();
            let done = output.is_ok_and(|output| output.status.success());
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            done
        });
        assert!(std::thread::panicking() || done, "cannot unmount");
    }
}

fn name(number: usize, length: usize) -> String {
    format!("{number:0>6}{}", "-".repeat(length - 6))
}

/// Everything that a folder can go through: its name, and how many levels its hash tree must have got.
const FOLDERS: [(&str, Option<u32>); 8] = [
    ("one block", None),
    ("just converted", Some(0)),
    ("one level", Some(0)),
    ("two levels", Some(1)),
    ("thinned out", Some(0)),
    ("emptied", Some(0)),
    ("renamed", Some(0)),
    ("moved away", Some(0)),
];

fn write_folders(mount: &Mount, block_size: usize) {
    let short = block_size / 20; // more than fit one block
    mount.fill("one block", block_size / 64, 12);
    // Beside `.` and `..` (and a tail of 12 bytes, which decides nothing here).
    let fits = (block_size - 24) / 32;
    mount.fill("just converted", fits + 1, 24);
    for number in 0..10 * short {
        mount.touch("one level", &format!("file-{number}"), &number.to_string());
    }
    // More than fit under one root, however the hashes fall: it has less than a block's eighth of
    // index entries, and a leaf a block's 264th of names.
    mount.fill("two levels", (block_size / 8) * (block_size / 264), 255);
    mount.fill("thinned out", 10 * short, 16);
    (0..10 * short).filter(|number| number % 7 != 0).for_each(|number| {
        fs::remove_file(mount.point.join("thinned out").join(name(number, 16))).unwrap();
    });
    mount.fill("emptied", 10 * short, 16);
    (0..10 * short).for_each(|n| fs::remove_file(mount.point.join("emptied").join(name(n, 16))).unwrap());
    mount.fill("renamed", 5 * short, 16);
    for number in 0..5 * short {
        let at = |length| mount.point.join("renamed").join(name(number, length));
        fs::rename(at(16), at(16 + number % 200)).unwrap();
    }
    mount.fill("moved away", 10 * short, 40);
    fs::create_dir(mount.point.join("target")).unwrap();
    for number in (0..10 * short).step_by(2) {
        let (from, to) = (mount.point.join("moved away"), mount.point.join("target"));
        fs::rename(from.join(name(number, 40)), to.join(name(number, 30))).unwrap();
    }
    fs::create_dir(mount.point.join("one level/folder")).unwrap();
    std::os::unix::fs::symlink("file-1", mount.point.join("one level/link")).unwrap();
}

/// The first block of a folder, by `debugfs`.
fn first_block(image: &Path, folder: &str, block_size: usize) -> Vec<u8> {
    let said = run(e2fsprogs("debugfs").args(["-R", &format!("bmap \"{folder}\" 0")]).arg(image));
    let block: usize = String::from_utf8(said).unwrap().trim().parse().unwrap();
    fs::read(image).unwrap()[block * block_size..][..block_size].to_vec()
}

fn levels(image: &Path, folder: &str) -> Option<u32> {
    let said = run(e2fsprogs("debugfs").args(["-R", &format!("htree_dump \"{folder}\"")]).arg(image));
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Indirect levels: "))?;
    Some(line.parse().unwrap())
}

fn check(image: &Path, dir: &Path, block_size: usize, with_checksums: bool) -> Result<(), String> {
    let features = if with_checksums { "metadata_csum" } else { "^metadata_csum" };
    fs::File::create(image).unwrap().set_len(48 << 20).unwrap();
    run(e2fsprogs("mkfs.ext4")
        .args(["-q", "-F", "-N", "16384", "-b", &block_size.to_string(), "-O", features])
        .arg(image));
    write_folders(&Mount::new(image, dir.join("mounted"), "rw")?, block_size);
    // Linux' own checker has nothing to say.
    run(e2fsprogs("e2fsck").args(["-f", "-n"]).arg(image));
    for (folder, expected) in FOLDERS {
        assert_eq!(levels(image, folder), expected, "{folder}, blocks of {block_size}");
    }
    let ends_like_a_leaf = |folder: &&str| {
        let block = first_block(image, folder, block_size);
        block[block_size - 12..block_size - 4] == [0, 0, 0, 0, 12, 0, 0, 0xde]
    };
    let trees = FOLDERS.iter().filter(|(_, levels)| levels.is_some()).map(|(folder, _)| *folder);
    assert_eq!(trees.filter(ends_like_a_leaf).count() > 3, with_checksums, "no tails are left behind");

    let fs = block_on(FileSystem::open(MemDisk::new(fs::read(image).unwrap()), CACHE)).unwrap();
    let mount = Mount::new(image, dir.join("mounted"), "ro")?;
    let listed = |folder: &str| -> BTreeSet<OsString> {
        fs::read_dir(mount.point.join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    // Looking each of so many names up would take minutes.
    let large = "two levels";
    let node = block_on(fs.lookup(large.as_bytes())).unwrap();
    let ours = names(&fs, &node).unwrap();
    assert!(ours.keys().map(Vec::as_slice).eq(listed(large).iter().map(|name| name.as_bytes())));
    for name in ours.keys().step_by(97) {
        let found = block_on(fs.lookup(&[large.as_bytes(), b"/", name].concat())).unwrap();
        assert_eq!(found.metadata().inode, ours[name].0);
    }
    for folder in listed("").iter().filter(|name| *name != large) {
        let inside = format!("/{}/", folder.to_str().unwrap());
        compare(&fs, &mount.point.join(folder), &inside, true);
    }
    Ok(())
}

/// Every entry and every byte as the mounted Linux shows it.
#[test]
fn folders_written_by_a_mounted_linux() {
    let dir = TempDir::new().unwrap();
    for (block_size, with_checksums) in
        [(1024, true), (1024, false), (2048, true), (4096, true), (4096, false)]
    {
        let image = dir.path().join(format!("image of {block_size} {with_checksums}"));
        if let Err(why) = check(&image, dir.path(), block_size, with_checksums) {
            return crate::skip::skip(
                "mounted::folders_written_by_a_mounted_linux",
                &format!("no mount: {why}"),
            );
        }
    }
}

/// In a folder of 100,000 files, in a tree of three levels, each is found in a few pages, and no other.
#[test]
fn look_ups_among_100_000_files() {
    const FILES: usize = 100_000;
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(160 << 20).unwrap();
    let options = ["-q", "-F", "-b", "1024", "-N", "110000", "-O", "large_dir,^has_journal"];
    run(e2fsprogs("mkfs.ext4").args(options).arg(&image));
    let mount = match Mount::new(&image, dir.path().join("mounted"), "rw") {
        Ok(mount) => mount,
        Err(why) => {
            return crate::skip::skip("mounted::look_ups_among_100_000_files", &format!("no mount: {why}"));
        }
    };
    mount.fill("many", FILES, 250);
    let entries = fs::read_dir(mount.point.join("many")).unwrap().map(Result::unwrap);
    let inodes: Vec<_> = entries.map(|entry| (entry.file_name(), entry.ino())).collect();
    assert_eq!(inodes.len(), FILES);
    drop(mount);
    assert_eq!(levels(&image, "many"), Some(2));
    let fs = block_on(FileSystem::open(MemDisk::new(fs::read(&image).unwrap()), CACHE)).unwrap();
    let pages = || fs.cache_stats().hits + fs.cache_stats().misses;
    let (mut all, mut most) = (0, 0);
    for (name, inode) in &inodes {
        let before = pages();
        let found = block_on(fs.lookup(&[b"many/", name.as_bytes()].concat())).unwrap();
        assert_eq!(u64::from(found.metadata().inode), *inode);
        let none = block_on(fs.lookup(&[b"many/-", &name.as_bytes()[1..]].concat()));
        assert!(matches!(none, Err(FsError::NotFound)));
        all += pages() - before;
        most = most.max(pages() - before);
    }
    println!("{} pages for two look-ups, {most} at most", all as f64 / FILES as f64);
    assert!(most <= 40 && all <= 28 * FILES as u64);
}
