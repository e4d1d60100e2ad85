//! Fast commits in journals cut at any moment, against a mounted Linux that replays them.

use crate::disks::MemDisk;
use crate::fast_damage::Area;
use crate::journal::{Way, Work, make};
use crate::mounted::Mount;
use crate::support::{CACHE, e2fsprogs, names, noise, read_all, run};
use futures::executor::block_on;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockSource;
use ringfence_services::fs::{FileSystem, FsError, Kind};
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
pub enum Thing {
    Folder,
    /// When it changed, and what is in it.
    File(i64, Vec<u8>),
    Link(Vec<u8>),
}

/// All that is in a file system, by paths.
pub type Tree = BTreeMap<Vec<u8>, Thing>;

pub fn ours<B: BlockSource>(fs: &FileSystem<B>, path: &[u8], tree: &mut Tree) -> Result<(), FsError> {
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
pub fn read(bytes: Vec<u8>) -> Result<(Tree, FileSystem<MemDisk>), FsError> {
    let fs = block_on(FileSystem::open(MemDisk::new(bytes), CACHE))?;
    let mut tree = Tree::new();
    ours(&fs, b"/", &mut tree)?;
    Ok((tree, fs))
}

pub fn assert_same(name: &str, ours: &Tree, expected: &Tree) {
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
pub fn replayed(dir: &Path, bytes: &[u8]) -> Result<Tree, String> {
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
pub fn cut_after(
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

pub fn write(path: impl AsRef<Path>, len: usize) {
    fs::write(&path, noise(len as u64, len)).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

pub fn append(path: impl AsRef<Path>, len: usize) {
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
