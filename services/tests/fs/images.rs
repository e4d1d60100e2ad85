//! Every kind of image that mkfs.ext4 makes, compared with the folder it was made from.

use crate::disks::MemDisk;
use crate::support::{
    CACHE, change_image, compare, e2fsprogs, make_image, names, read_all, run, sample_folder,
    with_hash_trees, write,
};
use crate::{allocations::peak_of, support::noise};
use futures::executor::block_on;
use ringfence_services::fs::{FileSystem, FsError, Kind, Node};
use std::{fs, iter};
use tempfile::TempDir;

fn check(options: &[&str], kib: usize, many: usize) {
    let folder = sample_folder(many, 100);
    run(std::process::Command::new("mkfifo").arg(folder.path().join("pipe")));
    let image = make_image(folder.path(), options, kib);
    let with_trees =
        options.iter().any(|option| option.starts_with("dir_index")).then(|| with_hash_trees(&image));
    for image in iter::once(image).chain(with_trees) {
        let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
        assert_eq!(fs.label(), b"ringfence test");
        assert_eq!(fs.uuid(), 0x0123_4567_89ab_cdef_0123_4567_89ab_cdefu128.to_be_bytes());
        assert!(fs.size_bytes() <= kib as u64 * 1024 && fs.size_bytes() > kib as u64 * 1000);
        compare(&fs, folder.path(), "/", !options.iter().any(|option| option.contains("^filetype")));
        links(&fs);
        // The same from what is remembered of the paths.
        links(&fs);
        assert!(fs.cache_stats().pages <= (CACHE / 4096) as u64);
    }
}

/// A path that was walked once, wherever it leads, is not walked again soon; each reader reads on its own.
#[test]
fn a_path_is_walked_once() {
    let folder = sample_folder(100, 10);
    let inline = ["-O", "inline_data", "-I", "256"];
    for options in [&[][..], &inline] {
        let fs = block_on(FileSystem::open(MemDisk::new(make_image(folder.path(), options, 8192)), CACHE));
        let fs = fs.unwrap();
        let pages = || fs.cache_stats().hits + fs.cache_stats().misses;
        for path in ["/index.html", "/sizes/100.bin", "/link", "/sizes", "/sizes/none", "/none/none"] {
            let find = || block_on(fs.lookup(path.as_bytes()));
            let content = |node: &Node| match node.metadata().kind {
                Kind::File => read_all(&fs, node, 4096),
                _ => names(&fs, node).map(|names| format!("{names:?}").into_bytes()),
            };
            let first = find().map(|node| (node.metadata(), content(&node)));
            let before = pages();
            let second = find();
            assert_eq!(pages(), before, "{path}");
            assert_eq!(second.map(|node| (node.metadata(), content(&node))), first, "{path}");
        }
    }
}

fn links(fs: &FileSystem<MemDisk>) {
    let index = block_on(fs.lookup(b"index.html")).unwrap().metadata().inode;
    let found = |path: &str| block_on(fs.lookup(path.as_bytes())).map(|node| node.metadata().inode);
    for path in
        ["link", "/link", "//./link", "link of 58", "link of 59", "link of 60", "link of 61", "link of 150"]
    {
        assert_eq!(found(path), Ok(index), "{path}");
    }
    for path in
        ["link of 200", "link of 1000", "sizes/escape", "dirlink/escape", "../../link", "sizes/../index.html"]
    {
        assert_eq!(found(path), Ok(index), "{path}");
    }
    assert_eq!(found("absolute"), found("sizes/100.bin"));
    assert_eq!(found("dirlink/"), found("/sizes"));
    assert_eq!(found("dirlink/.."), Ok(2));
    assert_eq!(found(""), Ok(2));
    assert_eq!(found("level0/level1/level2/.."), found("level0/level1"));
    assert_eq!(found("level0/level1/../level1/level2/../../../sizes/escape"), Ok(index));
    assert_eq!(found("level0/level1/../../.."), Ok(2));
    for path in ["loop-a", "loop-b/x", "self"] {
        assert_eq!(found(path), Err(FsError::TooManyLinks), "{path}");
    }
    for path in ["dangling", "nothing", "index.htm", "index.html2", "sizes/nothing/more", "many/entry"] {
        assert_eq!(found(path), Err(FsError::NotFound), "{path}");
    }
    for path in ["index.html/", "link/", "index.html/x", "link/..", "pipe/x"] {
        assert_eq!(found(path), Err(FsError::NotADirectory), "{path}");
    }
    assert_eq!(found(&"n".repeat(256)), Err(FsError::NameTooLong));
    assert_eq!(found(&"n".repeat(255)), Err(FsError::NotFound));
    assert_eq!(found(&"./".repeat(2049)), Err(FsError::NameTooLong));
    let root = block_on(fs.lookup(b"/")).unwrap();
    assert_eq!(block_on(fs.read_at(&root, 0, &mut [0])), Err(FsError::IsADirectory));
    let file = block_on(fs.lookup(b"link")).unwrap();
    assert_eq!(block_on(fs.read_dir(&file, &mut 0)).err(), Some(FsError::NotADirectory));
}

macro_rules! images {
    ($($name:ident: $options:expr, $kib:expr, $many:expr;)*) => {
        $(#[test] fn $name() { check(&$options, $kib, $many); })*
    };
}

images! {
    default_features: ["-b", "4096"], 16 << 10, 300;
    default_1k: ["-b", "1024", "-N", "6000"], 24 << 10, 5000;
    default_2k: ["-b", "2048"], 16 << 10, 300;
    blocks_of_64k: ["-b", "65536"], 48 << 10, 300;
    no_extents: ["-b", "1024", "-O", "^extents,^64bit"], 16 << 10, 300;
    no_extents_4k: ["-b", "4096", "-O", "^extents,^64bit"], 16 << 10, 300;
    no_64bit: ["-b", "1024", "-O", "^64bit"], 16 << 10, 300;
    no_checksums: ["-b", "1024", "-O", "^metadata_csum"], 16 << 10, 300;
    old_group_checksums: ["-b", "1024", "-O", "^metadata_csum,uninit_bg"], 16 << 10, 300;
    old_group_checksums_32bit: ["-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg"], 16 << 10, 300;
    checksum_seed: ["-b", "1024", "-O", "metadata_csum_seed"], 16 << 10, 300;
    inline_data: ["-b", "1024", "-O", "inline_data"], 16 << 10, 300;
    inline_data_4k: ["-b", "4096", "-I", "1024", "-O", "inline_data,^metadata_csum"], 16 << 10, 300;
    hash_trees: ["-b", "1024", "-N", "6000", "-O", "dir_index"], 24 << 10, 5000;
    hash_trees_4k: ["-b", "4096", "-N", "3000", "-O", "dir_index"], 24 << 10, 2000;
    hash_trees_64k: ["-b", "65536", "-N", "6000", "-O", "dir_index,inline_data"], 64 << 10, 5000;
    no_hash_trees: ["-b", "1024", "-O", "^dir_index"], 16 << 10, 300;
    no_file_types: ["-b", "1024", "-O", "^filetype"], 16 << 10, 300;
    no_flex_groups: ["-b", "1024", "-g", "1024", "-O", "^flex_bg"], 16 << 10, 300;
    meta_groups: ["-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode"], 16 << 10, 300;
    meta_groups_4k: ["-b", "4096", "-g", "256", "-O", "meta_bg,^resize_inode,^flex_bg"], 80 << 10, 300;
    meta_groups_32bit: ["-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^64bit,^sparse_super"], 16 << 10, 300;
    sparse_super2: ["-b", "1024", "-g", "1024", "-O", "sparse_super2,meta_bg,^resize_inode"], 16 << 10, 300;
    large_clusters: ["-b", "4096", "-O", "bigalloc", "-C", "65536"], 64 << 10, 300;
    small_inodes: ["-b", "1024", "-I", "128"], 16 << 10, 300;
    small_inodes_no_checksums: ["-b", "1024", "-I", "128", "-O", "^metadata_csum"], 16 << 10, 300;
    no_journal: ["-b", "4096", "-O", "^has_journal"], 16 << 10, 300;
    more_features: ["-b", "4096", "-O", "ea_inode,large_dir,mmp,encrypt,quota,project,verity"], 24 << 10, 300;
    ext2: ["-b", "1024", "-t", "ext2"], 16 << 10, 300;
    ext3: ["-b", "4096", "-t", "ext3"], 16 << 10, 300;
    revision_0: ["-b", "1024", "-t", "ext2", "-r", "0", "-O", "none,^filetype"], 16 << 10, 300;
}

/// Blocks that are allocated but not written read as zeros, as `debugfs` says too.
#[test]
fn unwritten_extents() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "file", &noise(7, 9000));
    let image = make_image(folder.path(), &["-b", "1024"], 2048);
    let image = change_image(&image, &["fallocate file 4 40", "set_inode_field file size 40000"]);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("image"), &image).unwrap();
    let expected = run(e2fsprogs("debugfs").args(["-R", "cat file"]).arg(dir.path().join("image")));
    assert_eq!(expected.len(), 40000);
    let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
    let node = block_on(fs.lookup(b"file")).unwrap();
    assert!(read_all(&fs, &node, 3333).unwrap() == expected);
}

/// A file of more than 4 GiB, and one as large as 4 KiB blocks allow, both sparse.
#[test]
fn sizes_beyond_32_bits() {
    let folder = TempDir::new().unwrap();
    crate::support::write_sparse(folder.path(), "big", (5 << 30) + 3, &[((5 << 30) - 100, b"the end")]);
    let image = make_image(folder.path(), &["-b", "4096"], 8192);
    let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
    let node = block_on(fs.lookup(b"big")).unwrap();
    assert_eq!(node.metadata().size, (5 << 30) + 3);
    let mut buf = [1; 200];
    assert_eq!(block_on(fs.read_at(&node, (5 << 30) - 103, &mut buf)), Ok(106));
    assert_eq!(&buf[..10], b"\0\0\0the end");
    assert!(buf[10..106].iter().all(|byte| *byte == 0));
    assert_eq!(block_on(fs.read_at(&node, 1 << 32, &mut buf)), Ok(200));
    assert_eq!(buf, [0; 200]);
    assert_eq!(block_on(fs.read_at(&node, u64::MAX, &mut buf)), Ok(0));
}

/// A folder of 5,000 entries is listed with one block in memory.
#[test]
fn large_folders_need_little_memory() {
    let folder = TempDir::new().unwrap();
    for number in 0..5000 {
        write(
            folder.path(),
            format!("many/a rather long name, so that the folder has many blocks {number}"),
            b"",
        );
    }
    let image = make_image(folder.path(), &["-b", "4096", "-N", "6000"], 16 << 10);
    let fs = block_on(FileSystem::open(MemDisk::new(image), 64 << 10)).unwrap();
    let node = block_on(fs.lookup(b"many")).unwrap();
    assert!(node.metadata().size > 300_000);
    let (count, peak) = peak_of(|| {
        let (mut count, mut cursor) = (0, 0);
        while let Some(block) = block_on(fs.read_dir(&node, &mut cursor)).unwrap() {
            count += block.entries().filter(Result::is_ok).count();
        }
        count
    });
    assert_eq!(count, 5000);
    assert!(peak < 200 << 10, "listing took {peak} bytes");
}

/// What is refused, and what it is called.
#[test]
fn refused_images() {
    let open = |image: Vec<u8>| block_on(FileSystem::open(MemDisk::new(image), CACHE)).map(|_| ());
    assert_eq!(open(vec![]), Err(FsError::NotExt4));
    assert_eq!(open(vec![0; 1 << 20]), Err(FsError::NotExt4));
    assert_eq!(open(noise(1, 1 << 20)), Err(FsError::NotExt4));
    let folder = TempDir::new().unwrap();
    write(folder.path(), "file", b"x");
    let plain = make_image(folder.path(), &["-b", "1024", "-O", "^metadata_csum"], 1024);
    assert_eq!(open(plain.clone()), Ok(()));
    let mut dirty = plain.clone();
    // It has a journal, of no inode here, that needs recovery.
    dirty[1024 + 0x5c] |= 4;
    dirty[1024 + 0x60] |= 4;
    assert!(matches!(open(dirty), Err(FsError::Unsupported(why)) if why.contains("on another disk")));
    let mut unknown = plain.clone();
    unknown[1024 + 0x63] |= 0x80;
    assert_eq!(open(unknown), Err(FsError::Unsupported("an unknown incompatible feature")));
    let truncated = plain[..plain.len() - 1].to_vec();
    assert!(matches!(open(truncated), Err(FsError::Corrupt(why)) if why.contains("truncated")));
    let mut flipped = make_image(folder.path(), &["-b", "1024"], 1024);
    flipped[1024 + 0x88] ^= 1;
    assert!(matches!(open(flipped), Err(FsError::Corrupt(why)) if why.contains("checksum")));
    let journal = TempDir::new().unwrap();
    let path = journal.path().join("journal");
    fs::write(&path, vec![0; 4 << 20]).unwrap();
    run(e2fsprogs("mkfs.ext4").args(["-q", "-F", "-b", "1024", "-O", "journal_dev"]).arg(&path));
    assert!(matches!(open(fs::read(path).unwrap()), Err(FsError::Unsupported(_))));
}

/// Blocks of the disk outside the file system, and the super block, belong to no file.
#[test]
fn blocks_outside_the_file_system() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "file", &noise(8, 100_000));
    let image = make_image(folder.path(), &["-b", "1024", "-O", "^extents,^64bit,^metadata_csum"], 1024);
    for (field, block, is_ok) in [
        ("block[0]", 1023, true),
        ("block[0]", 1024, false),
        ("block[0]", 1, false),
        ("block[3]", u32::MAX, false),
        ("block[IND]", 1024, false),
        ("block[IND]", 1, false),
    ] {
        let mut image = change_image(&image, &[&format!("set_inode_field file {field} {block}")]);
        // The disk goes on behind the file system.
        image.resize(2 << 20, 0);
        let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
        let node = block_on(fs.lookup(b"file")).unwrap();
        let result = read_all(&fs, &node, 4096).map(|_| ());
        let expected =
            if is_ok { Ok(()) } else { Err(FsError::Corrupt("a block number is outside the file system")) };
        assert_eq!(result, expected, "{field} = {block}");
    }
}

/// The inode table of the root folder lies behind the file system.
#[test]
fn an_inode_table_outside_the_file_system() {
    let folder = TempDir::new().unwrap();
    let mut image = make_image(folder.path(), &["-b", "1024", "-O", "^metadata_csum"], 1024);
    image.resize(2 << 20, 0);
    image[2048 + 8..2048 + 12].copy_from_slice(&1024u32.to_le_bytes());
    let result = block_on(FileSystem::open(MemDisk::new(image), CACHE)).map(|_| ());
    assert_eq!(result, Err(FsError::Corrupt("a block number is outside the file system")));
}

/// The descriptor of each group is found, wherever the format puts it: a wrong place would fail the checksum.
#[test]
fn descriptors_of_all_groups() {
    let folder = TempDir::new().unwrap();
    for features in [
        "^resize_inode",
        "^resize_inode,^64bit",
        "meta_bg,^resize_inode",
        "meta_bg,^resize_inode,^64bit",
        "meta_bg,^resize_inode,^sparse_super",
        "meta_bg,^resize_inode,^64bit,^sparse_super",
        "meta_bg,^resize_inode,^sparse_super,sparse_super2",
    ] {
        // 49 groups of 256 blocks: the last one, with a copy of the super block, starts a meta group.
        let image = make_image(folder.path(), &["-b", "1024", "-g", "256", "-O", features], 12_545);
        let per_group = u32::from_le_bytes(image[1024 + 0x28..][..4].try_into().unwrap());
        let inodes = u32::from_le_bytes(image[1024..][..4].try_into().unwrap());
        assert_eq!(inodes / per_group, 49);
        let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
        for group in 0..49 {
            match block_on(fs.node(1 + group * per_group)) {
                Err(FsError::Corrupt(why)) => {
                    assert!(!why.contains("group"), "{features}, group {group}: {why}")
                }
                other => assert!(other.is_ok()),
            }
        }
        assert_eq!(
            block_on(fs.node(1 + 49 * per_group)).map(|_| ()),
            Err(FsError::Corrupt("an inode number is out of range"))
        );
    }
}

/// Each kind of metadata is covered by a check: one wrong byte in it is noticed, wherever it is.
#[test]
fn checksums_are_checked() {
    let folder = sample_folder(5000, 100);
    let image = with_hash_trees(&make_image(folder.path(), &["-b", "1024", "-N", "6000"], 24 << 10));
    let places = places_of_metadata(&image);
    let check = |image| {
        let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE))?;
        let many = block_on(fs.lookup(b"many"))?;
        assert_eq!(names(&fs, &many)?.len(), 5000);
        let node = block_on(fs.lookup(b"sparse"))?;
        assert_eq!(node.metadata().kind, Kind::File);
        read_all(&fs, &node, 4096).map(|_| ())
    };
    assert_eq!(check(image.clone()), Ok(()));
    for (place, at, what) in places {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        let expected = Err(FsError::Corrupt(what));
        assert_eq!(check(damaged), expected, "after a wrong byte in the {place}");
    }
}

/// A byte in each kind of metadata, and what damage there is called.
fn places_of_metadata(image: &[u8]) -> Vec<(&'static str, usize, &'static str)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    let ask =
        |what: &str| String::from_utf8(run(e2fsprogs("debugfs").args(["-R", what]).arg(&path))).unwrap();
    let imap = ask("imap sparse");
    let (block, offset) = imap.split_once("located at block ").unwrap().1.split_once(", offset ").unwrap();
    let inode = block.parse::<usize>().unwrap() * 1024
        + usize::from_str_radix(offset.trim().trim_start_matches("0x"), 16).unwrap();
    // " 0/ 1   1/  2     0 - 150   1234   151": an entry of the root names the block of a leaf.
    let extents = ask("extents sparse");
    let line = extents.lines().find(|line| line.trim_start().starts_with("0/")).unwrap();
    let leaf: usize = line.split_once(" - ").unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The blocks of a folder with a tree of two levels. The first is one of its extent tree.
    // A node of the hash tree looks like one empty entry that fills the block.
    let all = ask("blocks many");
    let mut blocks = all.split_whitespace().skip(1).map(|block| block.parse::<usize>().unwrap() * 1024);
    let root = blocks.next().unwrap();
    let (nodes, entries): (Vec<usize>, Vec<usize>) =
        blocks.partition(|at| image[*at..*at + 6] == [0, 0, 0, 0, 0, 4]);
    const FOLDER: &str = "a folder fails its checksum";
    const INODE: &str = "an inode fails its checksum";
    vec![
        ("super block", 1024 + 0x7a, "the super block fails its checksum"),
        ("group descriptor", 2 * 1024 + 9, "a group descriptor fails its checksum"),
        ("inode's mode", inode, INODE),
        ("inode's time", inode + 0x88, INODE),
        ("inode's attributes", inode + 0xf0, INODE),
        ("extent tree", leaf * 1024 + 12 + 6, "an extent tree node fails its checksum"),
        ("root of the hash tree", root + 0x2c, FOLDER),
        ("node of the hash tree", nodes[0] + 0x14, FOLDER),
        ("names of a folder", entries[0] + 9, FOLDER),
        ("checksum of a folder", entries[0] + 1023, FOLDER),
    ]
}

/// In a folder with `chattr +F` a name is found in any case, also through its hash tree, and also beyond
/// ASCII.
#[test]
fn folders_that_ignore_case() {
    let folder = TempDir::new().unwrap();
    for number in 0..600 {
        write(
            folder.path(),
            format!("dir/A Name With Capitals {number:0>40}"),
            number.to_string().as_bytes(),
        );
    }
    for name in ["dir/GRÖSSE", "dir/Kelvin \u{212a}", "exact/File"] {
        write(folder.path(), name, name.as_bytes());
    }
    let options = ["-b", "1024", "-N", "1000", "-O", "casefold", "-E", "encoding=utf8"];
    let image = make_image(folder.path(), &options, 4096);
    // With extents, and ignoring case.
    let image = change_image(&image, &["set_inode_field dir flags 0x40080000"]);
    let with_tree = with_hash_trees(&image);
    assert!(crate::support::debugfs(&with_tree, "htree_dump dir").contains("Root node dump"));
    for (image, with_tree) in [(image, false), (with_tree, true)] {
        let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
        let found = |path: &str| {
            let node = block_on(fs.lookup(path.as_bytes()))?;
            read_all(&fs, &node, 4096)
        };
        let pages = || fs.cache_stats().hits + fs.cache_stats().misses;
        for number in 0..600 {
            let (before, content) = (pages(), number.to_string());
            for name in ["A Name With Capitals", "a name WITH capitals"] {
                assert_eq!(found(&format!("dir/{name} {number:0>40}")), Ok(content.clone().into()));
            }
            assert!(!with_tree || pages() - before < 40, "the tree is not used");
        }
        assert_eq!(found("dir/größe"), Ok("dir/GRÖSSE".into()));
        assert_eq!(found("dir/KELVIN k"), Ok("dir/Kelvin \u{212a}".into()));
        assert_eq!(found("dir/groesse"), Err(FsError::NotFound));
        assert_eq!(found("exact/File"), Ok("exact/File".into()));
        for path in ["exact/file", "DIR/GRÖSSE", "dir/a name"] {
            assert_eq!(found(path), Err(FsError::NotFound), "{path}");
        }
    }
}

/// The disk is served, and so is every file that is not encrypted.
#[test]
fn encrypted_files_are_refused_one_by_one() {
    let folder = TempDir::new().unwrap();
    for name in ["dir/secret", "dir/plain", "hidden/file"] {
        write(folder.path(), name, name.as_bytes());
    }
    let image = make_image(folder.path(), &["-b", "1024", "-O", "encrypt"], 2048);
    let image = change_image(
        &image,
        &["set_inode_field dir/secret flags 0x80800", "set_inode_field hidden flags 0x80800"],
    );
    let fs = block_on(FileSystem::open(MemDisk::new(image), CACHE)).unwrap();
    let found = |path: &str| read_all(&fs, &block_on(fs.lookup(path.as_bytes()))?, 4096);
    assert_eq!(found("dir/plain"), Ok("dir/plain".into()));
    for path in ["dir/secret", "hidden/file"] {
        assert_eq!(found(path), Err(FsError::Unsupported("an encrypted file")), "{path}");
    }
}
