//! Journals cut at any moment, against a mounted Linux that replays them, and e2fsprogs.

use crate::allocations::peak_of;
use crate::disks::MemDisk;
use crate::mounted::Mount;
use crate::support::{CACHE, compare, e2fsprogs, names, noise, read_all, run};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::fs::{FileSystem, FsError};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What copies in a journal must not start with.
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// A way to make and to mount.
pub struct Way {
    pub name: &'static str,
    pub mkfs: &'static [&'static str],
    pub mount: &'static str,
}

const WAYS: [Way; 9] = [
    Way { name: "default", mkfs: &["-b", "4096"], mount: "data=ordered" },
    Way { name: "1k", mkfs: &["-b", "1024", "-J", "size=1"], mount: "data=ordered" },
    Way { name: "data", mkfs: &["-b", "1024", "-J", "size=2"], mount: "data=journal" },
    Way { name: "data of 4k", mkfs: &["-b", "4096"], mount: "data=journal" },
    Way {
        name: "no checksums",
        mkfs: &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"],
        mount: "data=journal",
    },
    Way {
        name: "sums of commits",
        mkfs: &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,64bit"],
        mount: "data=ordered,journal_checksum",
    },
    Way {
        name: "asynchronous",
        mkfs: &["-b", "1024", "-J", "size=1"],
        mount: "data=writeback,journal_async_commit",
    },
    Way {
        name: "sums, asynchronous",
        mkfs: &["-b", "2048", "-O", "^metadata_csum,^64bit"],
        mount: "data=writeback,journal_async_commit",
    },
    Way {
        name: "ext3",
        mkfs: &["-b", "1024", "-J", "size=1", "-O", "^extents,^64bit,^metadata_csum"],
        mount: "",
    },
];

/// Cuts of each.
const CUTS: usize = 6;

pub fn make(image: &Path, way: &Way) {
    File::create(image).unwrap().set_len(20 << 20).unwrap();
    let fixed = ["-q", "-F", "-N", "2048", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    run(e2fsprogs("mkfs.ext4").args(fixed).args(way.mkfs).arg(image));
}

/// What some program does to its files.
pub struct Work {
    pub random: StdRng,
    pub root: PathBuf,
    pub next: u32,
}

impl Work {
    pub fn some_file(&mut self) -> Option<PathBuf> {
        let mut folders = vec![self.root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => folders.push(entry.path()),
                    kind if kind.is_file() => files.push(entry.path()),
                    _ => {}
                }
            }
        }
        files.sort();
        files.choose(&mut self.random).cloned()
    }

    pub fn bytes(&mut self) -> Vec<u8> {
        let len = self.random.random_range(1..30_000);
        let mut bytes = noise(self.random.random(), len);
        for block in bytes.chunks_mut(1024) {
            if self.random.random_ratio(1, 4) && block.len() > 4 {
                block[..4].copy_from_slice(&MAGIC);
            }
        }
        bytes
    }

    fn step(&mut self) -> std::io::Result<()> {
        self.next += 1;
        let new = self.root.join(format!("{}-{}", self.next, "name".repeat(self.next as usize % 9)));
        let some = self.some_file();
        match (self.random.random_range(0..12), some) {
            (0..3, _) | (_, None) => fs::write(new, self.bytes()),
            (3, Some(file)) => fs::rename(file, new),
            (4, Some(file)) => fs::remove_file(file),
            (5, Some(file)) => fs::hard_link(file, new),
            (6, _) => std::os::unix::fs::symlink(format!("target of {}", self.next).repeat(9), new),
            (7, Some(file)) => {
                let mut file = File::options().write(true).open(file)?;
                file.seek(SeekFrom::Start(self.random.random_range(0..60_000)))?;
                file.write_all(&self.bytes())
            }
            (8, Some(file)) => {
                File::options().write(true).open(file)?.set_len(self.random.random_range(0..40_000))
            }
            // Folders of several blocks that come, and go: their blocks are revoked, and used for files.
            (9, _) => {
                fs::create_dir(&new)?;
                (0..40).try_for_each(|n| fs::write(new.join(format!("{n:0100}")), [n; 10]))
            }
            (10, Some(file)) => match file.parent().unwrap() {
                parent if parent == self.root => Ok(()),
                parent => fs::remove_dir_all(parent),
            },
            (_, Some(file)) => File::open(file)?.sync_all(),
        }
    }
}

/// The bytes of a file system at some moments of its life: after so many steps each, and a commit.
fn cuts(dir: &Path, way: &Way, steps: &[usize]) -> Result<Vec<Vec<u8>>, String> {
    let image = dir.join("image");
    make(&image, way);
    let mount = Mount::new(&image, dir.join("mounted"), &format!("rw,commit=1000,{}", way.mount))?;
    let root = mount.point.join("work");
    fs::create_dir(&root).unwrap();
    let mut work = Work { random: StdRng::seed_from_u64(7), root, next: 0 };
    let mut cuts = Vec::new();
    for steps in steps {
        (0..*steps).for_each(|_| work.step().unwrap());
        if let Some(file) = work.some_file() {
            File::open(file).unwrap().sync_all().unwrap();
        }
        cuts.push(fs::read(&image).unwrap());
    }
    Ok(cuts)
}

/// Compares what we read of an image with what Linux shows, or that both refuse it. Returns how many blocks
/// come from the journal.
fn same_as_linux(dir: &Path, name: &str, bytes: Vec<u8>) -> Option<usize> {
    let image = dir.join("copy");
    fs::write(&image, &bytes).unwrap();
    let opened = block_on(FileSystem::open(MemDisk::new(bytes), CACHE));
    let mount = Mount::new(&image, dir.join("replayed"), "rw");
    let (fs, mount) = match (opened, mount) {
        (Ok(fs), Ok(mount)) => (fs, mount),
        (Err(ours), Err(linux)) => {
            println!("{name}: {ours}; {linux}");
            return None;
        }
        (ours, linux) => panic!("{name}: {:?}, Linux: {:?}", ours.err(), linux.err()),
    };
    println!("{name}: {} blocks", fs.blocks_in_journal());
    let linux = fs::read_dir(&mount.point).unwrap().map(|entry| entry.unwrap().file_name());
    let linux: BTreeSet<_> = linux.collect();
    let root = block_on(fs.lookup(b"/")).unwrap();
    assert!(
        names(&fs, &root).unwrap().keys().map(Vec::as_slice).eq(linux.iter().map(|name| name.as_bytes()))
    );
    for folder in linux {
        compare(&fs, &mount.point.join(&folder), &format!("/{}/", folder.to_str().unwrap()), true);
    }
    Some(fs.blocks_in_journal())
}

#[test]
fn cut_at_any_moment() {
    let mut replayed = 0;
    for way in &WAYS {
        let dir = TempDir::new().unwrap();
        let cuts = match cuts(dir.path(), way, &[40; CUTS]) {
            Ok(cuts) => cuts,
            Err(why) => {
                let name = "journal::cut_at_any_moment";
                return crate::skip::skip(name, &format!("no mount: {why}"));
            }
        };
        for (number, cut) in cuts.into_iter().enumerate() {
            let name = format!("{}, cut {number}", way.name);
            let blocks = same_as_linux(dir.path(), &name, cut).expect(&name);
            println!("{name}: {blocks} blocks");
            replayed += usize::from(blocks > 0);
        }
    }
    assert!(replayed >= 40, "only {replayed} journals had something in them");
}

/// An image with `/f` of eight blocks, and a journal that `debugfs` has written: copies of all blocks but the
/// last; a revoke record for blocks 1 and 3; and copies of 2 and 3 anew. Also what is in `/f` then.
fn by_debugfs(dir: &Path, block_size: usize, features: &str, version: &str) -> (PathBuf, Vec<u8>) {
    let image = dir.join(format!("image {block_size} {features} {version}"));
    let content = dir.join("folder");
    fs::create_dir_all(&content).unwrap();
    let mut expected = noise(1, 8 * block_size);
    fs::write(content.join("f"), &expected).unwrap();
    File::create(&image).unwrap().set_len(if block_size > 4096 { 40 << 20 } else { 16 << 20 }).unwrap();
    let size = block_size.to_string();
    run(e2fsprogs("mkfs.ext4")
        .args(["-q", "-F", "-b", &size, "-O", features, "-d"])
        .args([&content, &image]));
    let said = run(e2fsprogs("debugfs").args(["-R", "blocks /f"]).arg(&image));
    let blocks: Vec<String> =
        String::from_utf8(said).unwrap().split_whitespace().map(str::to_owned).collect();
    let mut first = noise(2, 7 * block_size);
    [0, 2, 5].iter().for_each(|block| first[block * block_size..][..4].copy_from_slice(&MAGIC));
    let second = noise(3, 2 * block_size);
    fs::write(dir.join("first"), &first).unwrap();
    fs::write(dir.join("second"), &second).unwrap();
    let commands = format!(
        "jo {version}\njw -b {} {}\njw -r {},{}\njw -b {},{} {}\njc\n",
        blocks[..7].join(","),
        dir.join("first").display(),
        blocks[1],
        blocks[3],
        blocks[2],
        blocks[3],
        dir.join("second").display()
    );
    fs::write(dir.join("commands"), commands).unwrap();
    run(e2fsprogs("debugfs").arg("-w").arg("-f").arg(dir.join("commands")).arg(&image));
    for block in [0, 4, 5, 6] {
        let range = block * block_size..(block + 1) * block_size;
        expected[range.clone()].copy_from_slice(&first[range]);
    }
    expected[2 * block_size..4 * block_size].copy_from_slice(&second);
    (image, expected)
}

fn content_of(bytes: Vec<u8>) -> Result<Vec<u8>, FsError> {
    let fs = block_on(FileSystem::open(MemDisk::new(bytes), CACHE))?;
    read_all(&fs, &block_on(fs.lookup(b"f"))?, 50_000)
}

/// Replayed by e2fsprogs.
fn replayed(image: &Path) -> Vec<u8> {
    let copy = image.with_extension("replayed");
    fs::copy(image, &copy).unwrap();
    run(e2fsprogs("e2fsck").args(["-y", "-E", "journal_only"]).arg(&copy));
    fs::read(copy).unwrap()
}

/// Every version of checksums, with block numbers of both sizes, and blocks larger than pages.
#[test]
fn written_by_debugfs() {
    let dir = TempDir::new().unwrap();
    for features in
        ["metadata_csum,64bit", "metadata_csum,^64bit", "^metadata_csum,64bit", "^metadata_csum,^64bit"]
    {
        for version in if features.starts_with('^') { &[""][..] } else { &["-c -v 2", "-c -v 3"] } {
            for block_size in [1024, 4096, 16384] {
                let (image, expected) = by_debugfs(dir.path(), block_size, features, version);
                let name = image.display();
                assert!(content_of(replayed(&image)) == Ok(expected.clone()), "{name}: e2fsck");
                let mut bytes = fs::read(&image).unwrap();
                assert!(content_of(bytes.clone()) == Ok(expected.clone()), "{name}");
                if features == "^metadata_csum,^64bit" {
                    // The first version of the super block, which has no features.
                    bytes[journal_blocks(&image)[0].start + 7] = 3;
                    assert!(content_of(bytes) == Ok(expected), "{name}, version 1");
                }
            }
        }
    }
}

/// The place of the block of the log with this sequence and kind, which is there once.
fn in_log(image: &Path, sequence: u8, kind: u8) -> usize {
    let bytes = fs::read(image).unwrap();
    let head = [&MAGIC[..], &[0, 0, 0, kind, 0, 0, 0, sequence]].concat();
    let found: Vec<usize> = journal_blocks(image)
        .into_iter()
        .map(|range| range.start)
        .filter(|at| bytes[*at..].starts_with(&head))
        .collect();
    assert_eq!(found.len(), 1);
    found[0]
}

/// A transaction that fails its checksums is damage; unless it is older than the one before it: then it is
/// left over from an earlier life of the journal, and the log has ended.
#[test]
fn what_is_left_over() {
    let dir = TempDir::new().unwrap();
    let (image, _) = by_debugfs(dir.path(), 1024, "metadata_csum,64bit", "-c -v 3");
    let mut bytes = fs::read(&image).unwrap();
    bytes[in_log(&image, 3, 1) + 20] ^= 1;
    assert_eq!(
        content_of(bytes.clone()).err(),
        Some(FsError::Corrupt("a transaction of the journal fails its checksum"))
    );
    let seconds = in_log(&image, 3, 2) + 48;
    bytes[seconds..seconds + 8].fill(0);
    let old = dir.path().join("old");
    fs::write(&old, &bytes).unwrap();
    let expected = content_of(replayed(&old)).unwrap();
    assert!(expected[..2048] == content_of(fs::read(&image).unwrap()).unwrap()[..2048]);
    assert!(content_of(bytes) == Ok(expected));
}

/// Whatever is in the journal: no panic, an end, and no more memory than the journal has room for.
#[test]
fn damaged() {
    let dir = TempDir::new().unwrap();
    let images: Vec<(Vec<u8>, Vec<usize>)> =
        [("metadata_csum,64bit", "-c -v 3"), ("^metadata_csum,64bit", ""), ("^metadata_csum,^64bit", "")]
            .into_iter()
            .map(|(features, version)| {
                let (image, _) = by_debugfs(dir.path(), 1024, features, version);
                let blocks = journal_blocks(&image);
                (fs::read(image).unwrap(), blocks.into_iter().map(|range| range.start).collect())
            })
            .collect();
    let (mut served, mut refused) = (0, 0);
    for case in 0..1500 {
        let mut random = StdRng::seed_from_u64(case);
        let (image, journal) = images.choose(&mut random).unwrap();
        let mut bytes = image.clone();
        for _ in 0..random.random_range(1..12) {
            // The heads and tags of what was written, the super block, or a block that starts like another.
            let block = journal[random.random_range(0..20)];
            let reach = *[64, 1024].choose(&mut random).unwrap();
            let at = block + random.random_range(0..reach);
            match random.random_range(0..4) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = *[0, 1, 2, 5, 0x7f, 0xff].choose(&mut random).unwrap(),
                2 => bytes.copy_within(block..block + 64, journal[random.random_range(0..30)]),
                // A log without an end: the same head in each block.
                _ if case % 10 == 0 => {
                    journal[1..].iter().for_each(|at| bytes.copy_within(journal[1]..journal[1] + 64, *at))
                }
                _ => bytes[journal[0] + random.random_range(12..48)] ^= 1,
            }
        }
        let disk = MemDisk::new(bytes);
        let (opened, peak) = peak_of(|| block_on(FileSystem::open(&disk, CACHE)));
        assert!(peak < CACHE + (512 << 10), "case {case} took {peak} bytes");
        let most = 3 * journal.len() as u64 + 100;
        assert!(disk.requests.get() < most, "case {case}: {} requests", disk.requests.get());
        match opened {
            Ok(fs) => {
                served += 1;
                if let Ok(file) = block_on(fs.lookup(b"f")) {
                    let _ = block_on(fs.read_at(&file, 0, &mut [0; 8192]));
                }
            }
            Err(error) => {
                refused += 1;
                assert!(!matches!(error, FsError::Io(_) | FsError::NoMemory), "case {case}: {error:?}");
            }
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 200 && refused > 200, "{served} served, {refused} refused");
}

/// The bytes of the blocks of the journal, in their order.
pub fn journal_blocks(image: &Path) -> Vec<std::ops::Range<usize>> {
    let said = |command: &str| {
        String::from_utf8(run(e2fsprogs("debugfs").args(["-R", command]).arg(image))).unwrap()
    };
    let size =
        said("stats -h").lines().find_map(|line| line.strip_prefix("Block size:")?.trim().parse().ok());
    let size: usize = size.unwrap();
    let blocks = said("blocks <8>");
    let blocks = blocks.split_whitespace().map(|block| block.parse::<usize>().unwrap());
    blocks.map(|block| block * size..(block + 1) * size).collect()
}

/// Of a last write to the journal only some blocks have reached the disk.
#[test]
fn torn() {
    let mut random = StdRng::seed_from_u64(3);
    let (mut served, mut refused) = (0, 0);
    for way in &WAYS {
        let dir = TempDir::new().unwrap();
        let cuts = match cuts(dir.path(), way, &[60, 15]) {
            Ok(cuts) => cuts,
            Err(why) => return crate::skip::skip("journal::torn", &format!("no mount: {why}")),
        };
        let journal = journal_blocks(&dir.path().join("image"));
        let changed: Vec<_> =
            journal.into_iter().filter(|range| cuts[0][range.clone()] != cuts[1][range.clone()]).collect();
        assert!(changed.len() > 5, "{}: {} blocks", way.name, changed.len());
        // Without checksums a journal with the wrong blocks in it makes a damaged file system.
        let has_sums = !way.mkfs.concat().contains("^metadata_csum") || way.mount.contains("journal_");
        for case in 0..if has_sums { 8 } else { 3 } {
            let mut bytes = cuts[0].clone();
            let kept = random.random_range(0..changed.len());
            for (number, range) in changed.iter().enumerate() {
                // The first ones, all but one, or any.
                let is_there = match case {
                    0..3 => number < kept,
                    3..6 => number != kept,
                    _ => random.random(),
                };
                if is_there {
                    bytes[range.clone()].copy_from_slice(&cuts[1][range.clone()]);
                }
            }
            match same_as_linux(dir.path(), &format!("{}, case {case}", way.name), bytes) {
                Some(_) => served += 1,
                None => refused += 1,
            }
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 20 && refused > 3);
}
