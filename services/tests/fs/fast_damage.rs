//! Fast commits that are damaged, or made to do harm.

use crate::allocations::peak_of;
use crate::disks::MemDisk;
use crate::fast_commits::{append, assert_same, cut_after, read, replayed, write};
use crate::journal::journal_blocks;
use crate::support::{CACHE, names};
use crc::{Algorithm, CRC_32_ISCSI, Crc};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockSource;
use ringfence_services::fs::{FileSystem, FsError, Kind, ROOT_INODE};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use tempfile::TempDir;

/// Where the parts of fast commits are in an image, by what they say themselves.
pub struct Area {
    /// The place of each tag's head, the tag, and the length of its value.
    pub tags: Vec<(usize, u16, usize)>,
}

impl Area {
    pub fn of(image: &Path, bytes: &[u8]) -> Self {
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
        Err(why) => return crate::skip::skip("fast_damage::one_wrong_bit", &format!("no mount: {why}")),
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
        Err(why) => return crate::skip::skip("fast_damage::damaged", &format!("no mount: {why}")),
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
        Err(why) => return crate::skip::skip("fast_damage::many_names", &format!("no mount: {why}")),
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
        Err(why) => return crate::skip::skip("fast_damage::ranges_of_others", &format!("no mount: {why}")),
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
        Err(why) => return crate::skip::skip("fast_damage::names_of_others", &format!("no mount: {why}")),
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
        Err(why) => return crate::skip::skip("fast_damage::unknown_features", &format!("no mount: {why}")),
    };
    cut[area.tags[0].0 + 4] = 1;
    area.mend(&mut cut);
    let refused = read(cut).err();
    assert!(matches!(refused, Some(FsError::Unsupported(why)) if why.contains("feature")), "{refused:?}");
}
