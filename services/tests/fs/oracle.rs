//! 2,000 images with damaged metadata against the whole one: where there are checksums, nothing wrong is ever
//! told. A byte, a name, a link, a size are right, or there is an error.

use crate::disks::MemDisk;
use crate::support::{make_image, noise, with_hash_trees, write, write_sparse};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::fs::{DirEntry, FileSystem, FsError, Kind, Node};
use ringfence_services::http::Files;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const CASES: u64 = 2000;
const CACHE: usize = 256 << 10;

#[derive(Debug, PartialEq)]
enum Thing {
    File(Vec<u8>),
    Link(Vec<u8>),
    /// Names and inode numbers.
    Folder(BTreeMap<Vec<u8>, u32>),
}

/// Everything on a disk, by path, and its inode number.
type Truth = BTreeMap<Vec<u8>, (u32, Thing)>;

fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    for number in 0..60 {
        write(root, format!("many/{number:0>90}"), &noise(number, number as usize % 7));
    }
    for len in [0usize, 1, 59, 61, 150, 1024, 5000, 20_000] {
        write(root, format!("a/b/c/{len}"), &noise(len as u64, len));
    }
    let piece = noise(9, 1024);
    let pieces: Vec<(u64, &[u8])> = (0..90).map(|n| (n * 3072, &piece[..])).collect();
    write_sparse(root, "pieces", 90 * 3072, &pieces);
    symlink("../pieces", root.join("a/link")).unwrap();
    symlink("./".repeat(60) + "pieces", root.join("long link")).unwrap();
    dir
}

fn list(fs: &FileSystem<&MemDisk>, folder: &Node) -> (BTreeMap<Vec<u8>, u32>, Option<FsError>) {
    let (mut names, mut lost, mut cursor) = (BTreeMap::new(), None, 0);
    loop {
        let before = cursor;
        let take = |entry: DirEntry<'_>| {
            assert!(names.insert(entry.name.to_vec(), entry.inode).is_none(), "listed twice");
            Ok(true)
        };
        match block_on(Files::read_dir(fs, folder, &mut cursor, take)) {
            Ok(true) => {}
            Ok(false) => return (names, lost),
            Err(error) => {
                lost = Some(error);
                if cursor == before {
                    return (names, lost);
                }
            }
        }
    }
}

/// The whole tree below a folder.
fn learn(fs: &FileSystem<&MemDisk>, path: &[u8], inode: u32, truth: &mut Truth) {
    let node = block_on(fs.node(inode)).unwrap();
    let thing = match node.metadata().kind {
        Kind::Directory => {
            let (names, lost) = list(fs, &node);
            assert_eq!(lost, None);
            for (name, inode) in &names {
                learn(fs, &[path, b"/", name].concat(), *inode, truth);
            }
            Thing::Folder(names)
        }
        Kind::Symlink => Thing::Link(block_on(fs.read_link(&node)).unwrap()),
        _ => {
            let mut bytes = vec![0; node.metadata().size as usize];
            assert_eq!(block_on(fs.read_at(&node, 0, &mut bytes)), Ok(bytes.len()));
            Thing::File(bytes)
        }
    };
    truth.insert(path.to_vec(), (inode, thing));
}

#[derive(Default)]
struct Counts {
    opened: u64,
    right: u64,
    lost: u64,
}

/// Compares a damaged disk with the truth.
fn compare(disk: &MemDisk, truth: &Truth, counts: &mut Counts) {
    let Ok(fs) = block_on(FileSystem::open(disk, CACHE)) else { return };
    counts.opened += 1;
    for (path, (inode, thing)) in truth {
        let node = match (block_on(fs.lookup(path)), thing) {
            // A look-up follows links: this one is opened by its number.
            (_, Thing::Link(_)) => block_on(fs.node(*inode)),
            (node, _) => node,
        };
        let shown = String::from_utf8_lossy(path);
        let node = match node {
            Ok(node) => node,
            Err(FsError::Corrupt(_)) => {
                counts.lost += 1;
                continue;
            }
            Err(error) => panic!("{shown}: {error:?}"),
        };
        assert_eq!(node.metadata().inode, *inode, "{shown}");
        match thing {
            Thing::Folder(names) => {
                let (listed, lost) = list(&fs, &node);
                assert!(listed.iter().all(|(name, inode)| names.get(name) == Some(inode)), "{shown}");
                assert!(lost.is_some() || listed.len() == names.len(), "{shown}: names are missing");
                let none = block_on(fs.lookup(&[path, &b"/none"[..]].concat())).map(|_| ());
                assert!(matches!(none, Err(FsError::NotFound | FsError::Corrupt(_))), "{shown}: {none:?}");
                counts.lost += u64::from(lost.is_some());
            }
            Thing::Link(target) => match block_on(fs.read_link(&node)) {
                Ok(found) => assert!(found == *target, "{shown}"),
                Err(error) => assert!(matches!(error, FsError::Corrupt(_)), "{shown}: {error:?}"),
            },
            Thing::File(bytes) => {
                assert_eq!(node.metadata().size, bytes.len() as u64, "{shown}");
                for (at, piece) in (0..).step_by(1024).zip(bytes.chunks(1024)) {
                    let mut buf = [0xcc; 1024];
                    match block_on(fs.read_at(&node, at, &mut buf)) {
                        Ok(len) => {
                            assert!(&buf[..len] == piece, "{shown}: wrong bytes at {at}");
                            counts.right += 1;
                        }
                        Err(FsError::Corrupt(_)) => counts.lost += 1,
                        Err(error) => panic!("{shown}: {error:?}"),
                    }
                }
            }
        }
    }
}

/// Blocks of 1 KiB that were read to learn all this, other than those of files.
fn metadata(image: &[u8], disk: &MemDisk, truth: &Truth) -> Vec<usize> {
    let mut contents = BTreeSet::new();
    for (_, thing) in truth.values() {
        if let Thing::File(bytes) | Thing::Link(bytes) = thing {
            contents.extend(bytes.chunks(1024).map(|piece| [piece, &[0; 1024][piece.len()..]].concat()));
        }
    }
    let blocks: BTreeSet<usize> =
        disk.sectors_read.borrow().iter().map(|sector| *sector as usize / 2).collect();
    let is_metadata = |block: &usize| {
        let bytes = &image[block * 1024..][..1024];
        // In the first two is what no disk can do without.
        *block > 1 && bytes.iter().any(|byte| *byte != 0) && !contents.contains(bytes)
    };
    blocks.into_iter().filter(is_metadata).collect()
}

fn damage(image: &mut [u8], blocks: &[usize], random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let at = blocks.choose(random).unwrap() * 1024;
        let other = blocks.choose(random).unwrap() * 1024;
        let block = &mut image[at..][..1024];
        let within = random.random_range(0..1024);
        let len = random.random_range(1..=1024 - within);
        match random.random_range(0..8) {
            0 => block.fill(0),
            1 => block.fill(0xff),
            2 => random.fill(block),
            3 => random.fill(&mut block[within..][..len]),
            4 => block[within..][..len].fill(0),
            5 => image.copy_within(other + within..other + within + len.min(512), at + within),
            _ => (0..random.random_range(1..9)).for_each(|_| {
                let at = random.random_range(0..1024);
                block[at] ^= 1 << random.random_range(0..8);
            }),
        }
    }
}

#[test]
fn damaged_metadata_never_gives_wrong_answers() {
    let folder = folder();
    let images: Vec<_> = [
        &["-b", "1024"][..],
        &["-b", "1024", "-O", "inline_data,metadata_csum_seed"],
        &["-b", "2048", "-g", "256", "-O", "meta_bg,^resize_inode"],
        &["-b", "4096", "-O", "^64bit"],
        &["-b", "1024", "-g", "512", "-O", "^flex_bg"],
    ]
    .into_iter()
    .map(|options| {
        let options = [options, &["-N", "200", "-O", "^has_journal"]].concat();
        let image = with_hash_trees(&make_image(folder.path(), &options, 2048));
        let (disk, mut truth) = (MemDisk::new(image.clone()), Truth::new());
        learn(&block_on(FileSystem::open(&disk, CACHE)).unwrap(), b"", 2, &mut truth);
        assert!(truth.len() > 70);
        let blocks = metadata(&image, &disk, &truth);
        (image, truth, blocks)
    })
    .collect();
    let mut counts = Counts::default();
    for case in 0..CASES {
        let mut random = StdRng::seed_from_u64(case);
        let (image, truth, blocks) = images.choose(&mut random).unwrap();
        let mut image = image.clone();
        damage(&mut image, blocks, &mut random);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compare(&MemDisk::new(image), truth, &mut counts)
        }));
        result.unwrap_or_else(|_| panic!("case {case} failed"));
    }
    let Counts { opened, right, lost } = counts;
    println!("{opened} opened, {right} pieces right, {lost} errors");
    assert!(opened > CASES / 2 && right > 100 * opened && lost > 2 * opened);
}
