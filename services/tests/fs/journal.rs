//! Journals cut at any moment, against a mounted Linux that replays them, and e2fsprogs.

use crate::disks::MemDisk;
use crate::mounted::Mount;
use crate::support::{CACHE, compare, e2fsprogs, names, noise, run};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::fs::FileSystem;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What copies in a journal must not start with.
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// A way to make and to mount.
struct Way {
    name: &'static str,
    mkfs: &'static [&'static str],
    mount: &'static str,
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

fn make(image: &Path, way: &Way) {
    File::create(image).unwrap().set_len(20 << 20).unwrap();
    let fixed = ["-q", "-F", "-N", "2048", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    run(e2fsprogs("mkfs.ext4").args(fixed).args(way.mkfs).arg(image));
}

/// What some program does to its files.
struct Work {
    random: StdRng,
    root: PathBuf,
    next: u32,
}

impl Work {
    fn some_file(&mut self) -> Option<PathBuf> {
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

    fn bytes(&mut self) -> Vec<u8> {
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

/// The bytes of the blocks of the journal, in their order.
fn journal_blocks(image: &Path) -> Vec<std::ops::Range<usize>> {
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
