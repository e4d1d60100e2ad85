//! 2,000 damaged images: opening them, walking the whole tree and reading everything never panics, never runs
//! away and never needs more memory than the cache and a few blocks.

use crate::allocations::peak_of;
use crate::disks::MemDisk;
use crate::support::{make_image, sample_folder, with_hash_trees};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::fs::{FileSystem, FsError, Kind, ROOT_INODE};
use std::collections::BTreeSet;
use std::rc::Rc;

const CASES: u64 = 2000;
const CACHE: usize = 128 << 10;
/// Pages that one call may visit; the images have at most 512.
const VISITS_PER_CALL: u64 = 20_000;
/// What a case may hold at most: the cache, blocks under way, and the walk's own lists.
const MEMORY: usize = CACHE + (512 << 10);

#[derive(Default)]
struct Outcome {
    opened: bool,
    files: u32,
    corrupt: u32,
}

/// Calls `$call`, and checks what it cost.
macro_rules! bounded {
    ($fs:expr, $call:expr) => {{
        let before = $fs.cache_stats();
        let result = block_on($call);
        let after = $fs.cache_stats();
        let visits = after.hits + after.misses - before.hits - before.misses;
        assert!(visits <= VISITS_PER_CALL, "one call visited {visits} pages");
        result
    }};
}

fn walk(image: Vec<u8>) -> Outcome {
    let mut outcome = Outcome::default();
    let fs = match block_on(FileSystem::open(MemDisk::new(image), CACHE)) {
        Ok(fs) => fs,
        Err(error) => {
            assert!(!matches!(error, FsError::Io(_) | FsError::NoMemory), "{error:?}");
            return outcome;
        }
    };
    outcome.opened = true;
    let (mut seen, mut left) = (BTreeSet::new(), vec![ROOT_INODE]);
    while let Some(inode) = left.pop() {
        if !seen.insert(inode) || seen.len() > 1000 {
            continue;
        }
        let Ok(node) = bounded!(fs, fs.node(inode)) else {
            outcome.corrupt += 1;
            continue;
        };
        match node.metadata().kind {
            Kind::Directory => outcome.corrupt += u32::from(list(&fs, &node, &mut left).is_err()),
            Kind::File => {
                outcome.files += 1;
                outcome.corrupt += u32::from(read(&fs, &node).is_err());
            }
            _ => drop(bounded!(fs, fs.read_link(&node))),
        }
    }
    for path in [
        "many/entry number 00077",
        "link of 1000",
        "loop-a",
        "sizes/escape",
        "absolute",
        "nothing",
        "level0/level1/x",
        "dirlink/../dirlink/./4096.bin",
    ] {
        outcome.corrupt +=
            u32::from(matches!(bounded!(fs, fs.lookup(path.as_bytes())), Err(FsError::Corrupt(_))));
    }
    outcome
}

fn list(
    fs: &FileSystem<MemDisk>,
    node: &ringfence_services::fs::Node,
    left: &mut Vec<u32>,
) -> Result<(), FsError> {
    let mut cursor = 0;
    while let Some(block) = bounded!(fs, fs.read_dir(node, &mut cursor))? {
        assert!(cursor <= 2 << 20, "a folder is larger than the disk");
        for entry in block.entries() {
            let entry = entry?;
            assert!(!entry.name.is_empty() && entry.name.len() <= 255);
            if left.len() < 5000 {
                left.push(entry.inode);
            }
        }
    }
    Ok(())
}

fn read(fs: &FileSystem<MemDisk>, node: &ringfence_services::fs::Node) -> Result<(), FsError> {
    let mut buf = vec![0; 16 << 10];
    // The start, the end and some of the middle: sizes may be anything.
    for offset in (0..40).map(|n| n << 14).chain([
        node.metadata().size / 2,
        node.metadata().size.saturating_sub(5000),
        u64::MAX - 3,
    ]) {
        let len = bounded!(fs, fs.read_at(node, offset, &mut buf))?;
        assert_eq!(len as u64, node.metadata().size.saturating_sub(offset).min(buf.len() as u64));
    }
    Ok(())
}

/// The bytes that were read to list and open everything, without the contents of files; zeros only now and
/// then.
fn metadata_bytes(image: &[u8]) -> Vec<usize> {
    let disk = MemDisk::new(image.to_vec());
    let fs = block_on(FileSystem::open(&disk, CACHE)).unwrap();
    let (mut left, mut files) = (vec![ROOT_INODE], 0);
    while let Some(inode) = left.pop() {
        let node = block_on(fs.node(inode)).unwrap();
        let mut cursor = 0;
        while let Ok(Some(block)) = block_on(fs.read_dir(&node, &mut cursor)) {
            left.extend(block.entries().map(|entry| entry.unwrap().inode));
        }
        // A read of one byte takes the way through the extents or the block map.
        files += u32::from(block_on(fs.read_at(&node, node.metadata().size / 2, &mut [0])).is_ok());
    }
    assert!(files > 50);
    let sectors = disk.sectors_read.borrow();
    let bytes = sectors.iter().flat_map(|sector| (0..512).map(move |byte| *sector as usize * 512 + byte));
    bytes.filter(|at| image[*at] != 0 || at % 13 == 0).collect()
}

fn damage(image: &mut Vec<u8>, metadata: &[usize], random: &mut StdRng) {
    if random.random_ratio(1, 20) {
        image.truncate(random.random_range(0..image.len()));
        return;
    }
    for _ in 0..random.random_range(1..30) {
        let anywhere = random.random_range(0..image.len());
        let in_metadata = *metadata.choose(random).unwrap();
        let in_super_block = 1024 + random.random_range(0..0x180);
        let at = match random.random_range(0..50) {
            0 => anywhere,
            1 => in_super_block,
            _ => in_metadata,
        };
        match random.random_range(0..4) {
            0 | 1 => image[at] ^= 1 << random.random_range(0..8),
            2 => {
                let value: u32 =
                    *[0, 1, 2, 0xf, 0xff, 0xfff, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, u32::MAX]
                        .choose(random)
                        .unwrap();
                let width = *[1, 2, 4].choose(random).unwrap();
                let at = (at & !(width - 1)).min(image.len() - 4);
                image[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            // A piece of another structure in the wrong place.
            _ => {
                let len = *[4, 12, 64, 256, 512].choose(random).unwrap();
                let from = (*metadata.choose(random).unwrap() & !3).min(image.len() - len);
                let to = (at & !3).min(image.len() - len);
                image.copy_within(from..from + len, to);
            }
        }
    }
}

#[test]
fn damaged_images() {
    let folder = sample_folder(100, 20);
    let images: Vec<_> = [
        &["-b", "1024", "-O", "^has_journal"][..],
        &["-b", "1024", "-O", "^has_journal,^metadata_csum"],
        &["-b", "1024", "-O", "^has_journal,^metadata_csum,^64bit,^extents"],
        &["-b", "1024", "-O", "^has_journal,^metadata_csum,inline_data"],
        &["-b", "4096", "-O", "^has_journal,^metadata_csum"],
        &["-b", "1024", "-g", "512", "-O", "^has_journal,^metadata_csum,meta_bg,^resize_inode"],
    ]
    .into_iter()
    .map(|options| {
        let image = with_hash_trees(&make_image(folder.path(), &[options, &["-N", "400"]].concat(), 2048));
        let metadata = metadata_bytes(&image);
        (Rc::new(image), metadata)
    })
    .collect();
    let (mut opened, mut noticed, mut files, mut most) = (0u64, 0u64, 0u64, 0);
    for case in 0..CASES {
        let mut random = StdRng::seed_from_u64(case);
        let (image, metadata) = images.choose(&mut random).unwrap();
        let mut image = image.to_vec();
        let whole = image.len();
        damage(&mut image, metadata, &mut random);
        let is_truncated = image.len() < whole;
        let (result, peak) = peak_of(|| std::panic::catch_unwind(|| walk(image)));
        let outcome = result.unwrap_or_else(|_| panic!("case {case} failed"));
        assert!(peak <= MEMORY, "case {case} took {peak} bytes");
        assert!(!is_truncated || !outcome.opened, "case {case}: a truncated image was opened");
        opened += u64::from(outcome.opened);
        noticed += u64::from(outcome.corrupt > 0);
        files += u64::from(outcome.files);
        most = most.max(peak);
    }
    println!(
        "{opened} opened, {noticed} of them with damage noticed, {files} files read, at most {most} bytes held"
    );
    assert!(opened > CASES / 2 && noticed > CASES / 4 && files > 50 * opened);
}
