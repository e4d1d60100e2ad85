//! Damage in one place: it costs what is there, and nothing else. Never are bytes served that are not the
//! file's.

use crate::disks::MemDisk;
use crate::support::{
    CACHE, Names, change_image, debugfs, make_image, noise, read_all, with_hash_trees, write, write_sparse,
};
use futures::executor::block_on;
use ringfence_services::fs::{DirEntry, FileSystem, FsError};
use ringfence_services::http::Files;
use tempfile::TempDir;

fn open(image: Vec<u8>) -> FileSystem<MemDisk> {
    block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap()
}

fn read(fs: &FileSystem<MemDisk>, path: &str) -> Result<Vec<u8>, FsError> {
    read_all(fs, &block_on(fs.lookup(path.as_bytes()))?, 4096)
}

/// The physical block of a block of a file.
fn block_of(image: &[u8], path: &str, block: u64) -> usize {
    debugfs(image, &format!("bmap \"{path}\" {block}")).trim().parse().unwrap()
}

/// Extents that contradict themselves, in the inode: Linux refuses each of them.
#[test]
fn contradictory_extents() {
    let folder = TempDir::new().unwrap();
    // A, hole, B, hole
    write_sparse(folder.path(), "f", 16 << 10, &[(0, b"A"), (8 << 10, b"B")]);
    write(folder.path(), "other", b"other");
    let image = make_image(folder.path(), &["-b", "1024"], 4096);
    let (a, b) = (block_of(&image, "f", 0), block_of(&image, "f", 8));
    let table: u32 = debugfs(&image, "imap f").split_once("located at block ").unwrap().1[..4]
        .trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap();
    let journal = block_of(&image, "<8>", 9) as u32;
    let whole = read(&open(image.clone()), "f").unwrap();
    assert!(whole[0] == b'A' && whole[8 << 10] == b'B');
    for (changes, what) in [
        (vec![(3, 8), (6, 0)], "an extent tree is out of order"),
        (vec![(6, 0)], "an extent tree is out of order"),
        (vec![(4, 9)], "an extent tree is out of order"),
        (vec![(4, 0)], "an extent tree is out of order"),
        (vec![(7, 4000)], "a block number is outside the file system"),
        (vec![(8, 4096)], "a block number is outside the file system"),
        (vec![(7, 1 << 16 | 1)], "a block number is outside the file system"),
        (vec![(8, table)], "a block of the file system's own is in a file"),
        (vec![(5, 2)], "a block of the file system's own is in a file"),
        (vec![(8, journal)], "a block of the file system's own is in a file"),
        (vec![(0, 0xf30a), (1, 0x1_0004)], "an extent tree has an empty node"),
        (vec![(0, 0x5_f30a)], "an extent tree node has a wrong header"),
        (vec![(0, 0x2_f30b)], "an extent tree node has a wrong header"),
        (vec![(1, 0)], "an extent tree node has a wrong header"),
        (vec![(1, 9 << 16 | 4)], "an extent tree is too deep"),
    ] {
        let commands: Vec<_> =
            changes.iter().map(|(n, value)| format!("set_inode_field f block[{n}] {value}")).collect();
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        let fs = open(change_image(&image, &commands));
        assert_eq!(read(&fs, "f"), Err(FsError::Corrupt(what)), "{changes:?}");
        assert_eq!(read(&fs, "other"), Ok(b"other".to_vec()));
    }
    // In order again, and both in the same place: strange, but no contradiction.
    let fs = open(change_image(&image, &[&format!("set_inode_field f block[8] {a}")]));
    assert_eq!(read(&fs, "f").unwrap()[8 << 10], b'A');
    assert_ne!(a, b);
}

/// What is in one node of a tree is lost with it, and what its parent says must be true of it.
#[test]
fn nodes_of_extent_trees() {
    let folder = TempDir::new().unwrap();
    let piece = noise(2, 1024);
    let pieces: Vec<(u64, &[u8])> = (0..300).map(|n| (n * 2048, &piece[..])).collect();
    write_sparse(folder.path(), "f", 300 * 2048, &pieces);
    for options in [&["-b", "1024"][..], &["-b", "1024", "-O", "^metadata_csum"]] {
        let image = make_image(folder.path(), options, 4096);
        let whole = read(&open(image.clone()), "f").unwrap();
        let nodes = debugfs(&image, "ex f");
        // " 0/ 1   2/  4   168 - 335   1234   168": an entry of the root names the block of a leaf.
        let line = nodes.lines().filter(|line| line.trim_start().starts_with("0/")).nth(1).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (leaf, first, last) = (
            numbers[numbers.len() - 2] as usize * 1024,
            numbers[numbers.len() - 4],
            numbers[numbers.len() - 3],
        );
        let check = |damage: &dyn Fn(&mut [u8]), case: &str| {
            let mut image = image.clone();
            damage(&mut image[leaf..][..1024]);
            let fs = open(image);
            let node = block_on(fs.lookup(b"f")).unwrap();
            for block in 0..600u64 {
                let mut buf = [0; 1024];
                let read = block_on(fs.read_at(&node, block * 1024, &mut buf));
                match (first..=last).contains(&block) {
                    true => assert!(matches!(read, Err(FsError::Corrupt(_))), "{case}: block {block}"),
                    false => assert!(buf == whole[block as usize * 1024..][..1024], "{case}: block {block}"),
                }
            }
        };
        check(&|leaf| leaf.fill(0), "zeros");
        check(&|leaf| leaf[12] ^= 1, "not what the parent says");
        check(&|leaf| leaf[6] = 1, "a wrong level");
        check(&|leaf| leaf[2] = 0, "empty");
        check(&|leaf| leaf[12 + 6 * 12 - 1] = 0xff, "a block outside");
        // The last extent reaches into what the next leaf has.
        check(&|leaf| leaf[12 * usize::from(leaf[2]) + 4] = 3, "longer than there is room for");
        check(&|leaf| leaf.copy_within(24..36, 36), "the same twice");
    }
}

/// Block maps lead to blocks of files only.
#[test]
fn block_maps() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "f", &noise(3, 400 << 10));
    let image = make_image(folder.path(), &["-t", "ext2", "-b", "1024"], 4096);
    let whole = read(&open(image.clone()), "f").unwrap();
    let indirect: usize = debugfs(&image, "stat f")
        .split_once("(IND):")
        .unwrap()
        .1
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let last = block_of(&image, "f", 12 + 255) as u32;
    for (number, is_right) in [(last, true), (2, false), (4096, false), (u32::MAX, false), (0, true)] {
        let mut image = image.clone();
        image[indirect * 1024 + 400..][..4].copy_from_slice(&number.to_le_bytes());
        let fs = open(image);
        let node = block_on(fs.lookup(b"f")).unwrap();
        for block in 0..400 {
            let mut buf = [0; 1024];
            let read = block_on(fs.read_at(&node, block * 1024, &mut buf));
            if is_right || !(12..12 + 256).contains(&block) {
                let is_changed = block == 112;
                assert!(read == Ok(1024) && (is_changed || buf == whole[block as usize * 1024..][..1024]));
            } else {
                assert!(matches!(read, Err(FsError::Corrupt(_))), "{number}: block {block}: {read:?}");
            }
        }
    }
}

/// What a listing finds, and how many parts of the folder it had to leave out.
fn list(fs: &FileSystem<MemDisk>, path: &str) -> Result<(Names, u32), FsError> {
    let folder = block_on(fs.lookup(path.as_bytes()))?;
    let (mut names, mut lost, mut cursor) = (Names::new(), 0, 0);
    loop {
        let before = cursor;
        let take = |entry: DirEntry<'_>| {
            assert!(names.insert(entry.name.to_vec(), (entry.inode, entry.kind)).is_none());
            Ok(true)
        };
        match block_on(Files::read_dir(fs, &folder, &mut cursor, take)) {
            Ok(true) => {}
            Ok(false) => return Ok((names, lost)),
            Err(error) if error.is_local() && cursor > before => lost += 1,
            Err(error) => return Err(error),
        }
    }
}

/// A block of a folder that is damaged or missing costs the names in it.
#[test]
fn blocks_of_folders() {
    let folder = TempDir::new().unwrap();
    for number in 100..400 {
        write(folder.path(), format!("dir/name-{number}-{}", "x".repeat(60)), number.to_string().as_bytes());
    }
    for (options, with_sums) in [
        (&["-b", "1024"][..], true),
        (&["-b", "1024", "-O", "^metadata_csum"], false),
        (&["-t", "ext2", "-b", "1024"], false),
    ] {
        let image = make_image(folder.path(), options, 4096);
        for image in [image.clone(), with_hash_trees(&image)] {
            let (whole, lost) = list(&open(image.clone()), "dir").unwrap();
            assert!(whole.len() == 300 && lost == 0);
            let blocks = debugfs(&image, "stat dir")
                .split_once("Size: ")
                .unwrap()
                .1
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                / 1024;
            assert!(blocks > 12);
            for number in 1..blocks {
                let at = block_of(&image, "dir", number) * 1024;
                let mut damaged = image.clone();
                damaged[at..][..1024].fill(0);
                folder_lost_a_block(damaged, &whole, &format!("zeros in {number}"));
                if with_sums {
                    let mut damaged = image.clone();
                    damaged[at + 8] ^= 1;
                    folder_lost_a_block(damaged, &whole, &format!("a wrong letter in {number}"));
                }
            }
            let punched = change_image(&image, &["punch dir 3 4"]);
            folder_lost_a_block(punched, &whole, "a hole");
        }
    }
}

fn folder_lost_a_block(image: Vec<u8>, whole: &Names, case: &str) {
    let fs = open(image);
    let (left, lost) = list(&fs, "dir").unwrap();
    assert_eq!(lost, 1, "{case}");
    // A block holds less than 1024 / 80 names; a hole here is two blocks, and a node of a tree has no names.
    assert!(left.len() >= 300 - 26, "{case}: {} are left", left.len());
    assert!(left.iter().all(|(name, entry)| whole.get(name) == Some(entry)), "{case}");
    for (name, (inode, _)) in whole {
        let found = block_on(fs.lookup(&[b"dir/", &name[..]].concat())).map(|node| node.metadata().inode);
        match left.contains_key(name) {
            true => assert_eq!(found, Ok(*inode), "{case}"),
            false => assert!(matches!(found, Err(FsError::Corrupt(_))), "{case}: {found:?}"),
        }
    }
}

/// Where the root of a hash tree is damaged, names are found by looking through the folder.
#[test]
fn damaged_hash_trees() {
    let folder = TempDir::new().unwrap();
    for number in 100..400 {
        write(folder.path(), format!("dir/name-{number}-{}", "x".repeat(60)), number.to_string().as_bytes());
    }
    let image = with_hash_trees(&make_image(folder.path(), &["-b", "1024", "-O", "^metadata_csum"], 4096));
    let root = block_of(&image, "dir", 0) * 1024;
    let (whole, _) = list(&open(image.clone()), "dir").unwrap();
    for (place, value) in
        [(28, 9), (28, 6), (29, 4), (30, 7), (31, 1), (32, 200), (34, 0), (34, 255), (43, 255), (36, 250)]
    {
        let mut image = image.clone();
        image[root + place] = value;
        let fs = open(image);
        let count = |name: &Vec<u8>| block_on(fs.lookup(&[b"dir/", &name[..]].concat())).is_ok();
        let found = whole.keys().filter(|name| count(name)).count();
        // A wrong number in place of a block's is not seen for what it is, but loses that block's names only.
        assert!(found == 300 || (place == 36 && found > 270), "{place} = {value}: {found} are found");
    }
}

/// A look-up in a large folder visits a few pages: the nodes on the way, one block of names and the inode. It
/// finds what is there, and nothing else.
#[test]
fn look_ups_by_hash_visit_few_pages() {
    let folder = TempDir::new().unwrap();
    for number in 0..3000 {
        write(folder.path(), format!("dir/{number:0>100}"), b"");
    }
    let options = ["-b", "1024", "-N", "4000", "-O", "large_dir"];
    let image = with_hash_trees(&make_image(folder.path(), &options, 16 << 10));
    assert!(debugfs(&image, "htree_dump dir").contains("Indirect levels: 1"));
    let fs = open(image);
    let pages = || fs.cache_stats().hits + fs.cache_stats().misses;
    for number in 0..4000 {
        let before = pages();
        let found = block_on(fs.lookup(format!("dir/{number:0>100}").as_bytes()));
        assert_eq!(found.is_ok(), number < 3000, "{number}");
        // In the root folder: two inodes and a block. Here: an extent, two nodes, a block (or two with the
        // same hash, and the nodes once more), and an inode.
        assert!(pages() - before <= 16, "{number}: {} pages", pages() - before);
    }
}
