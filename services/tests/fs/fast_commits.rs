//! Fast commits in journals cut at any moment, against a mounted Linux that replays them.

use crate::allocations::peak_of;
use crate::disks::MemDisk;
use crate::journal::{Way, Work, journal_blocks, make};
use crate::mounted::Mount;
use crate::support::{CACHE, e2fsprogs, names, noise, read_all, run};
use crc::{Algorithm, CRC_32_ISCSI, Crc};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockSource;
use ringfence_services::fs::{FileSystem, FsError, Kind, ROOT_INODE};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

macro_rules! ways {
    ($($name:literal, $size:literal, $features:literal, $options:expr;)*) => {
        &[$(Way {
            name: $name,
            mkfs: &[
                "-b", $size, "-J", "size=8,fast_commit_size=512", "-O", concat!("fast_commit", $features),
            ],
            mount: $options,
        }),*]
    };
}

/// None with `bigalloc`: the replay of Linux 6.18 gives new folders blocks that files have.
const WAYS: &[Way] = ways! {
    "1k", "1024", "", "";
    "2k", "2048", "", "";
    "4k", "4096", "", "";
    "no checksums", "1024", ",^metadata_csum,^64bit", "";
    "no trees", "1024", ",^dir_index", "";
    "no types", "1024", ",^filetype", "";
    "written at once", "2048", "", ",nodelalloc";
};

/// Cuts of each.
const CUTS: usize = 8;

#[derive(Debug, PartialEq)]
enum Thing {
    Folder,
    /// When it changed, and what is in it.
    File(i64, Vec<u8>),
    Link(Vec<u8>),
}

/// All that is in a file system, by paths.
type Tree = BTreeMap<Vec<u8>, Thing>;

fn ours<B: BlockSource>(fs: &FileSystem<B>, path: &[u8], tree: &mut Tree) -> Result<(), FsError> {
    let folder = block_on(fs.lookup(path))?;
    for (name, (inode, _)) in names(fs, &folder)? {
        let path = [path, &name, b"/"].concat();
        let node = block_on(fs.node(inode))?;
        let thing = match node.metadata().kind {
            Kind::Directory => {
                ours(fs, &path, tree)?;
                Thing::Folder
            }
            Kind::Symlink => Thing::Link(block_on(fs.read_link(&node))?),
            _ => {
                let found = block_on(fs.lookup(&path[..path.len() - 1]))?;
                assert_eq!(found.metadata(), node.metadata());
                Thing::File(node.metadata().mtime, read_all(fs, &found, 7000)?)
            }
        };
        tree.insert(path, thing);
    }
    Ok(())
}

fn linux(folder: &Path, path: &[u8], tree: &mut Tree) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = [path, entry.file_name().as_bytes(), b"/"].concat();
        let metadata = entry.metadata().unwrap();
        let thing = match metadata.file_type() {
            kind if kind.is_dir() => {
                linux(&entry.path(), &path, tree);
                Thing::Folder
            }
            kind if kind.is_symlink() => {
                Thing::Link(fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec())
            }
            _ => Thing::File(metadata.mtime(), fs::read(entry.path()).unwrap()),
        };
        tree.insert(path, thing);
    }
}

/// What the mounted Linux shows.
fn shown(mount: &Mount) -> Tree {
    let mut tree = Tree::new();
    linux(&mount.point, b"/", &mut tree);
    tree
}

/// What we show, and how many fast commits count.
fn read(bytes: Vec<u8>) -> Result<(Tree, FileSystem<MemDisk>), FsError> {
    let fs = block_on(FileSystem::open(MemDisk::new(bytes), CACHE))?;
    let mut tree = Tree::new();
    ours(&fs, b"/", &mut tree)?;
    Ok((tree, fs))
}

fn assert_same(name: &str, ours: &Tree, expected: &Tree) {
    let missing_in = |tree: &Tree, other: &Tree| -> Vec<String> {
        let missing = other.keys().filter(|path| !tree.contains_key(*path));
        missing.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    let (lost, invented) = (missing_in(ours, expected), missing_in(expected, ours));
    assert!(lost.is_empty() && invented.is_empty(), "{name}: lost {lost:?}, invented {invented:?}");
    for (path, thing) in ours {
        let is_same = *thing == expected[path];
        assert!(is_same, "{name}: {}", String::from_utf8_lossy(path));
    }
}

/// What Linux shows after it has replayed the journal of a copy.
fn replayed(dir: &Path, bytes: &[u8]) -> Result<Tree, String> {
    let image = dir.join("copy");
    fs::write(&image, bytes).unwrap();
    Ok(shown(&Mount::new(&image, dir.join("replayed"), "rw")?))
}

fn sync(mount: &Mount) {
    run(Command::new("sync").arg("-f").arg(&mount.point));
}

/// A small change, of those for which Linux makes fast commits.
fn step(work: &mut Work, mount: &Mount) -> std::io::Result<()> {
    work.next += 1;
    let folder = work.some_file().map_or(work.root.clone(), |file| file.parent().unwrap().to_owned());
    let new = folder.join(format!("{}-{}", work.next, "name".repeat(work.next as usize % 9)));
    let some = work.some_file();
    let place = work.random.random_range(0..60_000);
    let touched = match (work.random.random_range(0..17), some) {
        (0..4, _) | (_, None) => fs::write(&new, work.bytes()).map(|()| new)?,
        (4, Some(file)) => fs::rename(file, &new).map(|()| new)?,
        (5, Some(file)) => {
            let over = work.some_file().unwrap();
            fs::rename(file, &over).map(|()| over)?
        }
        (6, Some(file)) => fs::hard_link(file, &new).map(|()| new)?,
        (7, Some(file)) => fs::remove_file(file).map(|()| work.some_file().unwrap_or(folder))?,
        (8, Some(file)) => {
            File::options().write(true).open(&file)?.set_len(place)?;
            file
        }
        (9, _) => {
            // Linux loses a new folder whose inode another one had since the last transaction.
            sync(mount);
            fs::create_dir(&new)?;
            (0..12).try_for_each(|n| fs::write(new.join(format!("{n:050}")), [n; 10]))?;
            new.join(format!("{:050}", 3))
        }
        (10, _) if folder != work.root => {
            fs::remove_dir_all(&folder)?;
            sync(mount);
            work.root.clone()
        }
        (11, Some(file)) => {
            let range = ["-o", &place.to_string(), "-l", "20000"];
            run(Command::new("fallocate").args(range).arg(&file));
            File::options().write(true).open(&file)?.write_all_at(b"within", place + 9000)?;
            file
        }
        // More extents than the inode has room for.
        (12, Some(file)) => {
            let open = File::options().write(true).open(&file)?;
            (0..9).try_for_each(|n| open.write_all_at(b"piece", place + n * 20_000))?;
            file
        }
        (_, Some(file)) => {
            File::options().write(true).open(&file)?.write_all_at(&work.bytes(), place)?;
            file
        }
    };
    if work.random.random_ratio(2, 3) {
        File::open(touched)?.sync_all()?;
    }
    Ok(())
}

/// The bytes of a file system at some moments of its life.
fn cuts(dir: &Path, way: &Way) -> Result<Vec<Vec<u8>>, String> {
    let image = dir.join("image");
    make(&image, way);
    let mount = Mount::new(&image, dir.join("mounted"), &format!("rw,commit=1000{}", way.mount))?;
    let root = mount.point.join("work");
    fs::create_dir(&root).unwrap();
    let mut work = Work { random: StdRng::seed_from_u64(5), root, next: 0 };
    (0..10).for_each(|_| step(&mut work, &mount).unwrap());
    sync(&mount);
    let mut cuts = Vec::new();
    for _ in 0..CUTS {
        (0..12).for_each(|_| step(&mut work, &mount).unwrap());
        if let Some(file) = work.some_file() {
            File::open(file).unwrap().sync_all().unwrap();
        }
        cuts.push(fs::read(&image).unwrap());
    }
    Ok(cuts)
}

#[test]
fn cut_at_any_moment() {
    let mut replays = 0;
    for way in WAYS {
        let dir = TempDir::new().unwrap();
        let cuts = match cuts(dir.path(), way) {
            Ok(cuts) => cuts,
            Err(why) => {
                let name = "fast_commits::cut_at_any_moment";
                return crate::skip::skip(name, &format!("no mount: {why}"));
            }
        };
        let mut ever = BTreeSet::new();
        for (number, cut) in cuts.into_iter().enumerate() {
            let name = format!("{}, cut {number}", way.name);
            let expected = replayed(dir.path(), &cut).expect(&name);
            let (tree, fs) = read(cut).expect(&name);
            println!("{name}: {} fast commits, {} things", fs.fast_commits(), tree.len());
            assert_same(&name, &tree, &expected);
            ever.extend(tree.into_keys());
            for path in ever.iter().filter(|path| !expected.contains_key(*path)) {
                let found = block_on(fs.lookup(path)).err();
                assert!(
                    matches!(found, Some(FsError::NotFound | FsError::NotADirectory)),
                    "{name}: {found:?}"
                );
            }
            replays += usize::from(fs.fast_commits() > 0);
        }
    }
    assert!(replays >= 40, "only {replays} journals had fast commits in them");
}

/// An image that is cut off after `work` on what `before` made, and what the live file system showed then.
fn cut_after(
    dir: &Path,
    features: &str,
    before: impl FnOnce(&Path),
    work: impl FnOnce(&Path),
) -> Result<(Vec<u8>, Tree), String> {
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(20 << 20).unwrap();
    let options = ["-q", "-F", "-b", "1024", "-I", "256", "-J", "size=4,fast_commit_size=16"];
    run(e2fsprogs("mkfs.ext4").args(options).args(["-O", features]).arg(&image));
    let mount = Mount::new(&image, dir.join("mounted"), "rw,commit=1000")?;
    before(&mount.point);
    sync(&mount);
    work(&mount.point);
    Ok((fs::read(&image).unwrap(), shown(&mount)))
}

fn write(path: impl AsRef<Path>, len: usize) {
    fs::write(&path, noise(len as u64, len)).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

fn append(path: impl AsRef<Path>, len: usize) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    file.write_all(&noise(len as u64, len)).unwrap();
    file.sync_all().unwrap();
}

/// Where Linux loses what it has promised to keep, or does not mount, the files are as they were.
#[test]
fn what_linux_loses() {
    type Work = fn(&Path);
    let cases: [(&str, Work, Work); 3] = [
        (
            "a file that is deleted and open",
            |root| write(root.join("open"), 5000),
            |root| {
                let open = File::options().write(true).open(root.join("open")).unwrap();
                open.write_all_at(&noise(2, 9000), 0).unwrap();
                fs::remove_file(root.join("open")).unwrap();
                write(root.join("other"), 3000);
                drop(open);
            },
        ),
        (
            "a folder whose inode another one had",
            |root| {
                fs::create_dir_all(root.join("top/old")).unwrap();
                write(root.join("top/old/file"), 3000);
                write(root.join("kept"), 3000);
            },
            |root| {
                fs::remove_dir_all(root.join("top/old")).unwrap();
                append(root.join("kept"), 4000);
                fs::create_dir(root.join("top/new")).unwrap();
                write(root.join("top/new/another"), 2000);
            },
        ),
        (
            "an area that is full",
            |_| {},
            |root| (0..16).for_each(|n| append(root.join(format!("{n}")), 2000)),
        ),
    ];
    for (name, before, work) in cases {
        let dir = TempDir::new().unwrap();
        let (cut, live) = match cut_after(dir.path(), "fast_commit", before, work) {
            Ok(cut) => cut,
            Err(why) => {
                return crate::skip::skip("fast_commits::what_linux_loses", &format!("no mount: {why}"));
            }
        };
        println!("{name}: {:?}", replayed(dir.path(), &cut).map(|tree| tree == live));
        let (tree, fs) = read(cut).expect(name);
        assert!(fs.fast_commits() > 0, "{name}");
        assert_same(name, &tree, &live);
    }
}

/// A new file has nothing of a deleted one whose inode it has, where it has holes.
#[test]
fn a_reused_inode() {
    let dir = TempDir::new().unwrap();
    let cut = cut_after(
        dir.path(),
        "fast_commit",
        |root| (write(root.join("old"), 9000), write(root.join("kept"), 10)).1,
        |root| {
            append(root.join("old"), 9000);
            fs::remove_file(root.join("old")).unwrap();
            append(root.join("kept"), 10);
            File::create(root.join("new")).unwrap().write_all_at(b"end", 20_000).unwrap();
            append(root.join("new"), 10);
        },
    );
    let (cut, live) = match cut {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::a_reused_inode", &format!("no mount: {why}")),
    };
    let area = Area::of(&dir.path().join("image"), &cut);
    let inode_of = |wanted: u16| {
        let at = area.tags.iter().find(|(_, tag, _)| *tag == wanted).unwrap().0;
        &cut[at + 8..at + 12]
    };
    assert_eq!(inode_of(5), inode_of(3), "deleted, and created");
    assert_same("Linux", &replayed(dir.path(), &cut).unwrap(), &live);
    let (tree, fs) = read(cut.clone()).unwrap();
    assert_eq!(fs.fast_commits(), 3);
    assert_same("ours", &tree, &live);
}

/// Small files and folders that have no blocks.
#[test]
fn in_inodes() {
    let dir = TempDir::new().unwrap();
    let cut = cut_after(
        dir.path(),
        "fast_commit,inline_data",
        |root| write(root.join("before"), 30),
        |root| {
            write(root.join("tiny"), 20);
            write(root.join("small"), 100);
            fs::create_dir(root.join("folder")).unwrap();
            write(root.join("folder/blocks"), 4000);
            fs::rename(root.join("before"), root.join("folder/after")).unwrap();
            write(root.join("folder/tiny"), 10);
        },
    );
    let (cut, live) = match cut {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::in_inodes", &format!("no mount: {why}")),
    };
    assert_same("Linux", &replayed(dir.path(), &cut).unwrap(), &live);
    let (tree, fs) = read(cut).unwrap();
    assert_eq!(fs.fast_commits(), 4);
    assert_same("ours", &tree, &live);
}

/// Linux 6.18 takes such files' contents for block numbers: no such image may be mounted here.
#[test]
fn files_without_extents_are_refused() {
    for features in ["fast_commit,^extents,^64bit", "fast_commit,inline_data"] {
        let dir = TempDir::new().unwrap();
        let before = |root: &Path| write(root.join("grows"), 30);
        let cut = cut_after(dir.path(), features, before, |root| append(root.join("grows"), 9000));
        let (cut, _) = match cut {
            Ok(cut) => cut,
            Err(why) => {
                let name = "fast_commits::files_without_extents_are_refused";
                return crate::skip::skip(name, &format!("no mount: {why}"));
            }
        };
        let refused = read(cut).err();
        assert!(
            matches!(refused, Some(FsError::Unsupported(why)) if why.contains("without extents")),
            "{features}: {refused:?}"
        );
    }
}

/// Where the parts of fast commits are in an image, by what they say themselves.
struct Area {
    /// The place of each tag's head, the tag, and the length of its value.
    tags: Vec<(usize, u16, usize)>,
}

impl Area {
    fn of(image: &Path, bytes: &[u8]) -> Self {
        let journal = journal_blocks(image);
        let number = |at: usize| u32::from_be_bytes(bytes[journal[0].start + at..][..4].try_into().unwrap());
        let end = number(16) as usize;
        let blocks = journal[end - number(0x54) as usize + 1..end].to_vec();
        let mut tags = Vec::new();
        'all: for block in &blocks {
            let mut at = block.start;
            while at + 4 <= block.end {
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let (tag, len) = (half(at), usize::from(half(at + 2)));
                if !(1..=9).contains(&tag) {
                    break 'all;
                }
                tags.push((at, tag, len));
                at += 4 + len;
            }
        }
        Self { tags }
    }

    /// Makes the checksums right, as far as the tags make sense.
    fn mend(&self, bytes: &mut [u8]) {
        const CRC: Crc<u32> = Crc::<u32>::new(&Algorithm { init: 0, xorout: 0, ..CRC_32_ISCSI });
        let mut sum = CRC.digest();
        for &(at, tag, len) in &self.tags {
            if tag == 8 {
                sum.update(&bytes[at..at + 8]);
                let found = std::mem::replace(&mut sum, CRC.digest()).finalize();
                bytes[at + 8..at + 12].copy_from_slice(&found.to_le_bytes());
            } else {
                sum.update(&bytes[at..at + 4 + len]);
            }
        }
    }
}

/// An image with all sorts of tags, and where they are.
fn with_all_tags(dir: &Path) -> Result<(Vec<u8>, Area), String> {
    let before = |root: &Path| {
        write(root.join("a"), 30_000);
        write(root.join("b"), 3000);
        write(root.join("c"), 3000);
    };
    let (cut, _) = cut_after(dir, "fast_commit", before, |root| {
        write(root.join("new"), 5000);
        File::options().write(true).open(root.join("a")).unwrap().set_len(10_500).unwrap();
        write(root.join("b"), 7000);
        fs::rename(root.join("c"), root.join("d")).unwrap();
        fs::hard_link(root.join("d"), root.join("e")).unwrap();
        write(root.join("d"), 3000);
        fs::create_dir(root.join("folder")).unwrap();
        (0..7).for_each(|n| fs::write(root.join(format!("folder/{n}")), [n; 100]).unwrap());
        write(root.join("folder/file"), 3000);
        write(root.join("last"), 3000);
    })?;
    let area = Area::of(&dir.join("image"), &cut);
    let kinds: BTreeSet<u16> = area.tags.iter().map(|(_, tag, _)| *tag).collect();
    assert!(kinds.into_iter().eq(1..=9), "not all tags are there");
    Ok((cut, area))
}

/// One bit of each kind of field, in each commit: what Linux replays of it, or that both refuse it.
#[test]
fn one_wrong_bit() {
    let dir = TempDir::new().unwrap();
    let (cut, area) = match with_all_tags(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::one_wrong_bit", &format!("no mount: {why}")),
    };
    let (mut served, mut refused) = (0, 0);
    for (number, &(at, tag, len)) in area.tags.iter().enumerate() {
        let within: &[usize] = match tag {
            8 => &[0, 2, 4, 8, 12],
            9 => &[0, 2, 4, 8],
            _ => &[number % 2 * 2, 4 + number % len.max(1)],
        };
        for within in within {
            let name = format!("tag {number} of kind {tag}, byte {within}");
            let mut bytes = cut.clone();
            bytes[at + within] ^= 1 << (number % 8);
            match (read(bytes.clone()), replayed(dir.path(), &bytes)) {
                (Ok((tree, _)), Ok(linux)) => {
                    assert_same(&name, &tree, &linux);
                    served += 1;
                }
                (Err(_), Err(_)) => refused += 1,
                (ours, linux) => panic!("{name}: {:?}, Linux: {:?}", ours.err(), linux.err()),
            }
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 30 && refused > 10);
}

/// Lists and reads a bit of all that can be found.
fn look_around<B: BlockSource>(fs: &FileSystem<B>) {
    let (mut found, mut next) = (vec![ROOT_INODE], 0);
    while let Some(&inode) = found.get(next).filter(|_| next < 100) {
        next += 1;
        let Ok(node) = block_on(fs.node(inode)) else { continue };
        let _ = block_on(fs.read_at(&node, 0, &mut [0; 40_000]));
        let mut cursor = 0;
        while let Ok(Some(block)) = block_on(fs.read_dir(&node, &mut cursor)) {
            for entry in block.entries().flatten() {
                let _ = block_on(fs.lookup(entry.name));
                found.push(entry.inode);
            }
        }
    }
}

/// Whatever the tags say, with checksums that are right: no panic, an end, and bounded memory. Linux is not
/// asked: it does not bear all of it.
#[test]
fn damaged() {
    let dir = TempDir::new().unwrap();
    let (cut, area) = match with_all_tags(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::damaged", &format!("no mount: {why}")),
    };
    let (mut served, mut refused) = (0, 0);
    for case in 0..1000 {
        let mut random = StdRng::seed_from_u64(case);
        let mut bytes = cut.clone();
        for _ in 0..random.random_range(1..5) {
            let &(at, _, len) = area.tags.choose(&mut random).unwrap();
            // Mostly the first fields.
            let reach = *[4, 16, 4 + len].choose(&mut random).unwrap();
            let place = at + random.random_range(0..reach.min(4 + len));
            match random.random_range(0..3) {
                0 => bytes[place] ^= 1 << random.random_range(0..8),
                1 => bytes[place] = *[0, 1, 2, 8, 11, 12, 0x7f, 0x80, 0xff].choose(&mut random).unwrap(),
                _ => {
                    let &(from, _, other) = area.tags.choose(&mut random).unwrap();
                    bytes.copy_within(from + 4..from + 4 + other.min(len), at + 4);
                }
            }
        }
        area.mend(&mut bytes);
        let disk = MemDisk::new(bytes);
        let (opened, peak) = peak_of(|| block_on(FileSystem::open(&disk, CACHE)));
        assert!(peak < CACHE + (512 << 10), "case {case} took {peak} bytes");
        assert!(disk.requests.get() < 5000, "case {case}: {} requests", disk.requests.get());
        match opened {
            Ok(fs) => {
                served += 1;
                look_around(&fs);
            }
            Err(error) => {
                refused += 1;
                assert!(!matches!(error, FsError::Io(_) | FsError::NoMemory), "case {case}: {error:?}");
            }
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 300 && refused > 200, "{served} served, {refused} refused");
}

/// Replaces all fast commits by one with these tags, in as many blocks of the journal as are needed.
fn replace(image: &Path, bytes: &mut [u8], tags: impl Iterator<Item = (u16, Vec<u8>)>) {
    const CRC: Crc<u32> = Crc::<u32>::new(&Algorithm { init: 0, xorout: 0, ..CRC_32_ISCSI });
    const BLOCK: usize = 1024;
    let head = Area::of(image, bytes).tags[0].0;
    let mut area = bytes[head..head + 12].to_vec();
    let transaction = bytes[head + 8..head + 12].to_vec();
    let tail = std::iter::once((8, [&transaction[..], &[0; 4]].concat()));
    for (tag, value) in tags.chain(tail) {
        let left = BLOCK - area.len() % BLOCK;
        if left < value.len() + 8 {
            area.extend_from_slice(&[7, 0]);
            area.extend_from_slice(&(left as u16 - 4).to_le_bytes());
            area.resize(area.len() + left - 4, 0);
        }
        area.extend_from_slice(&tag.to_le_bytes());
        area.extend_from_slice(&(value.len() as u16).to_le_bytes());
        area.extend_from_slice(&value);
    }
    let end = area.len() - 4;
    let sum = CRC.checksum(&area[..end]);
    area[end..].copy_from_slice(&sum.to_le_bytes());
    let journal = journal_blocks(image);
    let blocks = area.len().div_ceil(BLOCK) + 1;
    let all = u32::from_be_bytes(bytes[journal[0].start + 16..][..4].try_into().unwrap()) as usize;
    bytes[journal[0].start + 0x54..][..4].copy_from_slice(&(blocks as u32).to_be_bytes());
    for (block, part) in journal[all - blocks + 1..all].iter().zip(area.chunks(BLOCK)) {
        bytes[block.clone()].fill(0);
        bytes[block.start..block.start + part.len()].copy_from_slice(part);
    }
}

/// An image with a file `a`, its inode, and a fast commit, without checksums.
fn with_one_file(dir: &Path) -> Result<(Vec<u8>, u32), String> {
    let features = "fast_commit,^metadata_csum,^64bit";
    let (cut, _) =
        cut_after(dir, features, |root| write(root.join("a"), 3000), |root| append(root.join("a"), 1))?;
    let fs = block_on(FileSystem::open(MemDisk::new(cut.clone()), CACHE)).unwrap();
    let inode = block_on(fs.lookup(b"a")).unwrap().metadata().inode;
    Ok((cut, inode))
}

/// What is said is held up to a limit, and refused beyond it.
#[test]
fn many_names() {
    let dir = TempDir::new().unwrap();
    let (cut, inode) = match with_one_file(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::many_names", &format!("no mount: {why}")),
    };
    let name = |n: usize| format!("{:05x}", n * 7919 % 100_003).into_bytes();
    let link = |n| (4, [&ROOT_INODE.to_le_bytes(), &inode.to_le_bytes(), &name(n)[..]].concat());
    for count in [20_000, 100_000] {
        let mut bytes = cut.clone();
        replace(&dir.path().join("image"), &mut bytes, (0..count).map(link));
        let start = std::time::Instant::now();
        let (opened, peak) = peak_of(|| block_on(FileSystem::open(MemDisk::new(bytes), CACHE)));
        println!("{count} names: {peak} bytes, {:?}", start.elapsed());
        assert!(peak < CACHE + (9 << 20), "{peak} bytes");
        if count > 50_000 {
            let refused = opened.err();
            assert!(
                matches!(refused, Some(FsError::Unsupported(why)) if why.contains("so much")),
                "{refused:?}"
            );
            continue;
        }
        let fs = opened.unwrap();
        let root = block_on(fs.lookup(b"/")).unwrap();
        let listed = names(&fs, &root).unwrap();
        assert_eq!(listed.len(), count + 2);
        for n in 0..count {
            assert_eq!(listed[&name(n)], (inode, Some(Kind::File)));
            assert_eq!(block_on(fs.lookup(&name(n))).unwrap().metadata().inode, inode);
        }
        assert_eq!(block_on(fs.lookup(&name(count))).err(), Some(FsError::NotFound));
    }
}

/// A range that is not a file's is refused.
#[test]
fn ranges_of_others() {
    let dir = TempDir::new().unwrap();
    let (cut, inode) = match with_one_file(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::ranges_of_others", &format!("no mount: {why}")),
    };
    let try_out = |start: u32, len: u16, physical: u32| {
        let mut bytes = cut.clone();
        let extent =
            [&start.to_le_bytes()[..], &len.to_le_bytes(), &[0; 2], &physical.to_le_bytes()].concat();
        let add = (1, [&inode.to_le_bytes()[..], &extent].concat());
        replace(&dir.path().join("image"), &mut bytes, std::iter::once(add));
        block_on(FileSystem::open(MemDisk::new(bytes), CACHE)).err()
    };
    assert_eq!(try_out(0, 1, 19_000), None);
    for (start, len, physical) in
        [(0, 1, 1), (0, 1, 2), (0, 2, 20_479), (0, 1, 20_480), (0, 0, 19_000), (u32::MAX, 2, 19_000)]
    {
        let refused = try_out(start, len, physical);
        assert!(matches!(refused, Some(FsError::Corrupt(_))), "{start} {len} {physical}: {refused:?}");
    }
}

/// Names that are there stay what they are, and those of others are not removed.
#[test]
fn names_of_others() {
    let dir = TempDir::new().unwrap();
    let (cut, inode) = match with_one_file(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::names_of_others", &format!("no mount: {why}")),
    };
    let found = |tag: u16, inode: u32, name: &str| {
        let mut bytes = cut.clone();
        let link = (tag, [&ROOT_INODE.to_le_bytes(), &inode.to_le_bytes(), name.as_bytes()].concat());
        replace(&dir.path().join("image"), &mut bytes, std::iter::once(link));
        let fs = block_on(FileSystem::open(MemDisk::new(bytes), CACHE))?;
        block_on(fs.lookup(name.as_bytes())).map(|node| node.metadata().inode)
    };
    assert_eq!(found(4, ROOT_INODE, "a"), Ok(inode));
    assert_eq!(found(5, ROOT_INODE, "a"), Ok(inode));
    assert_eq!(found(5, inode, "a"), Err(FsError::NotFound));
    // An inode that is free is not found: the tag is ignored.
    assert_eq!(found(4, 1000, "b"), Err(FsError::NotFound));
    assert_eq!(found(5, 1000, "a"), Ok(inode));
    for (tag, number, name) in
        [(3, 1000, "b"), (4, 50_000, "b"), (4, 0, "b"), (4, inode, "b/c"), (4, inode, "\0")]
    {
        let refused = found(tag, number, name);
        assert!(matches!(refused, Err(FsError::Corrupt(_))), "{tag} {number} {name}: {refused:?}");
    }
}

/// Features of fast commits that nobody knows yet.
#[test]
fn unknown_features() {
    let dir = TempDir::new().unwrap();
    let (mut cut, area) = match with_all_tags(dir.path()) {
        Ok(cut) => cut,
        Err(why) => return crate::skip::skip("fast_commits::unknown_features", &format!("no mount: {why}")),
    };
    cut[area.tags[0].0 + 4] = 1;
    area.mend(&mut cut);
    let refused = read(cut).err();
    assert!(matches!(refused, Some(FsError::Unsupported(why)) if why.contains("feature")), "{refused:?}");
}
