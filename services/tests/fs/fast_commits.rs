//! Fast commits in journals cut at any moment, against a mounted Linux that replays them.

use crate::disks::MemDisk;
use crate::journal::{Way, Work, make};
use crate::mounted::Mount;
use crate::support::{CACHE, names, read_all, run};
use futures::executor::block_on;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockSource;
use ringfence_services::fs::{FileSystem, FsError, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

macro_rules! ways {
    ($($name:literal, $size:literal, $features:literal, $options:expr;)*) => {
        &[$(Way {
            name: $name,
            mkfs: &["-b", $size, "-J", "size=8,fast_commit_size=512", "-O", concat!("fast_commit", $features)],
            mount: $options,
        }),*]
    };
}

const WAYS: &[Way] = ways! {
    "1k", "1024", "", "";
    "2k", "2048", "", "";
    "4k", "4096", "", "";
    "no checksums", "1024", ",^metadata_csum,^64bit", "";
    "no trees", "1024", ",^dir_index", "";
    "clusters", "4096", ",bigalloc", "";
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
    let paths = |tree: &Tree| -> Vec<String> {
        tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    assert_eq!(paths(ours), paths(expected), "{name}");
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
    let touched = match (work.random.random_range(0..14), some) {
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
            fs::create_dir(&new)?;
            (0..12).try_for_each(|n| fs::write(new.join(format!("{n:050}")), [n; 10]))?;
            new.join(format!("{:050}", 3))
        }
        (10, _) if folder != work.root => {
            fs::remove_dir_all(&folder)?;
            // Linux loses a new folder whose inode another one had since the last transaction.
            sync(mount);
            work.root.clone()
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
