//! Whole trees written by a mounted Linux on file systems of all kinds, compared byte for byte with what it
//! reads back: parts of this machine's `/usr`, and what random work leaves behind.

use crate::disks::MemDisk;
use crate::mounted::Mount;
use crate::support::{CACHE, compare, e2fsprogs, noise, run};
use futures::executor::block_on;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::fs::FileSystem;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Options of `mkfs.ext4`, and whether a Linux may be unable to mount such a file system.
const KINDS: [(&str, bool); 39] = [
    ("-b 1024", false),
    ("-b 2048", false),
    ("-b 4096", false),
    ("-b 1024 -O ^metadata_csum", false),
    ("-b 2048 -O ^metadata_csum", false),
    ("-b 4096 -O ^metadata_csum", false),
    ("-b 1024 -O ^metadata_csum,uninit_bg", false),
    ("-b 4096 -O ^metadata_csum,uninit_bg,^64bit", false),
    ("-t ext2 -b 1024", false),
    ("-t ext2 -b 4096", false),
    ("-t ext2 -b 1024 -r 0 -O none", false),
    ("-t ext2 -b 1024 -O ^dir_index,^filetype", false),
    ("-t ext3 -b 1024", false),
    ("-t ext3 -b 2048 -I 128", false),
    ("-t ext3 -b 4096", false),
    ("-b 1024 -O ^extents,^64bit", false),
    ("-b 4096 -O ^extents,^64bit,^flex_bg", false),
    ("-b 1024 -O ^dir_index", false),
    ("-b 4096 -O ^dir_index,^metadata_csum", false),
    ("-b 1024 -O inline_data", false),
    ("-b 4096 -I 1024 -O inline_data", false),
    ("-b 1024 -O inline_data,^metadata_csum", false),
    ("-b 4096 -I 512 -O inline_data,large_dir", false),
    ("-b 1024 -O bigalloc -C 16384", false),
    ("-b 4096 -O bigalloc -C 65536", false),
    ("-b 1024 -g 1024 -O meta_bg,^resize_inode", false),
    ("-b 2048 -g 2048 -O meta_bg,^resize_inode,^flex_bg", false),
    ("-b 1024 -g 1024 -O ^flex_bg", false),
    ("-b 1024 -g 8192 -O sparse_super2", false),
    ("-b 4096 -O ^sparse_super,^64bit,^resize_inode", false),
    ("-b 1024 -O metadata_csum_seed", false),
    ("-b 1024 -O large_dir,ea_inode", false),
    ("-b 4096 -O quota,project", true),
    ("-b 1024 -I 128", false),
    ("-b 4096 -I 128 -O ^metadata_csum", false),
    ("-b 4096 -O mmp,^has_journal", false),
    ("-b 1024 -O orphan_file", true),
    ("-b 4096 -O stable_inodes,encrypt", true),
    ("-b 4096 -O verity", true),
];

/// Copies some of a folder's files: at most `left` of them, none of which is large.
fn copy_some(from: &Path, to: &Path, left: &mut usize) {
    fs::create_dir_all(to).unwrap();
    let Ok(entries) = fs::read_dir(from) else { return };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (Ok(kind), target) = (entry.file_type(), to.join(entry.file_name())) else { continue };
        if *left == 0 {
            return;
        }
        *left -= 1;
        if kind.is_dir() {
            copy_some(&entry.path(), &target, left);
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() < 200_000) {
            let _ = fs::copy(entry.path(), target);
        }
    }
}

/// Files and folders come, grow, shrink, move and go.
fn work(root: &Path, random: &mut StdRng) {
    let folders: Vec<PathBuf> = (0..4).map(|n| root.join(format!("folder {n}"))).collect();
    folders.iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    let mut files: Vec<PathBuf> = Vec::new();
    for step in 0..700u32 {
        let folder = folders.choose(random).unwrap();
        let length = *[1, 8, 30, 200].choose(random).unwrap();
        let new = folder.join(format!("{step}{}", "n".repeat(length)));
        let at = random.random_range(0..files.len().max(1));
        match random.random_range(0..12) {
            _ if files.len() < 20 => {
                fs::write(&new, noise(step.into(), random.random_range(0..5000))).unwrap();
                files.push(new);
            }
            0..4 => {
                fs::write(&new, noise(step.into(), random.random_range(0..300))).unwrap();
                files.push(new);
            }
            4 | 5 => fs::remove_file(files.swap_remove(at)).unwrap(),
            6 | 7 => {
                fs::rename(&files[at], &new).unwrap();
                files[at] = new;
            }
            8 => {
                let mut file = File::options().append(true).open(&files[at]).unwrap();
                file.write_all(&noise(step.into(), random.random_range(0..9000))).unwrap();
            }
            9 => {
                let file = File::options().write(true).open(&files[at]).unwrap();
                file.set_len(random.random_range(0..30_000)).unwrap();
                file.write_all_at(b"here", random.random_range(0..200_000)).unwrap();
            }
            10 => symlink("../".repeat(random.random_range(0..60)) + "x", &new).unwrap(),
            _ => {
                fs::hard_link(&files[at], &new).unwrap();
                files.push(new);
            }
        }
    }
}

/// Space that is set aside and not written, in the middle of a file.
fn set_space_aside(root: &Path) {
    let file = root.join("set aside");
    fs::write(&file, noise(5, 40_000)).unwrap();
    let range = ["--offset", "20000", "--length", "100000"];
    // Block maps know no such space.
    let _ = Command::new("fallocate").args(range).arg(&file).output();
    File::options().write(true).open(&file).unwrap().write_all_at(&noise(6, 3000), 70_000).unwrap();
}

fn check(dir: &Path, kind: &str, seed: u64) -> Result<(), String> {
    let image = dir.join(format!("image {seed}"));
    // Each small file takes a whole cluster.
    let size = if kind.contains("bigalloc") { 96 << 20 } else { 24 << 20 };
    File::create(&image).unwrap().set_len(size).unwrap();
    run(e2fsprogs("mkfs.ext4").args(["-q", "-F", "-N", "3000"]).args(kind.split(' ')).arg(&image));
    let mount = Mount::new(&image, dir.join("mounted"), "rw")?;
    if kind.contains("casefold") {
        let folder = mount.point.join("folder 0");
        fs::create_dir(&folder).unwrap();
        run(Command::new("chattr").arg("+F").arg(folder));
    }
    let mut left = 150;
    for part in ["/usr/include", "/usr/lib/python3", "/usr/share/perl5", "/usr/bin", "/usr/share"] {
        copy_some(Path::new(part), &mount.point.join(part.replace('/', " ").trim()), &mut left);
    }
    work(&mount.point, &mut StdRng::seed_from_u64(seed));
    set_space_aside(&mount.point);
    drop(mount);

    let mount = Mount::new(&image, dir.join("mounted"), "ro")?;
    let fs = block_on(FileSystem::open(MemDisk::new(fs::read(&image).unwrap()), CACHE)).unwrap();
    let has_file_type = !kind.contains("^filetype") && !kind.contains("-O none");
    for entry in fs::read_dir(&mount.point).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() && name != "lost+found" {
            compare(&fs, &entry.path(), &format!("/{name}/"), has_file_type);
        }
    }
    drop(mount);
    fs::remove_file(image).unwrap();
    Ok(())
}

#[test]
fn trees_written_by_a_mounted_linux() {
    const NAME: &str = "trees::trees_written_by_a_mounted_linux";
    let dir = TempDir::new().unwrap();
    let mut checked = 0;
    for (seed, (kind, may_be_unknown)) in (0..).zip(KINDS) {
        println!("{kind}");
        match check(dir.path(), kind, seed) {
            Ok(()) => checked += 1,
            Err(why) if checked == 0 => return crate::skip::skip(NAME, &format!("no mount: {why}")),
            Err(why) => {
                assert!(may_be_unknown, "{kind}: {why}");
                println!("this Linux cannot mount {kind}: {why}");
            }
        }
    }
    println!("{checked} of {} kinds", KINDS.len());
    assert!(checked >= 36);
}

/// The same with a folder that ignores case, for which a Linux needs Unicode.
#[test]
fn trees_that_ignore_case() {
    let dir = TempDir::new().unwrap();
    for (seed, kind) in [
        (100, "-b 1024 -O casefold -E encoding=utf8"),
        (101, "-b 4096 -O casefold,^metadata_csum -E encoding=utf8"),
    ] {
        if let Err(why) = check(dir.path(), kind, seed) {
            return crate::skip::skip("trees::trees_that_ignore_case", &format!("no mount: {why}"));
        }
    }
}
