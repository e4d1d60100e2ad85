//! The disks that system tests serve: made once, kept in the target folder.

use std::fs::{File, create_dir_all, remove_dir_all, write};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::image::{Image, make_ext4};
use crate::test::client::content;
use crate::work_folder;

/// Changes with what is on the disks, so that older ones are not used.
const VERSION: u32 = 1;

/// Files of random bytes: the name is the path, the content is that of the seed.
pub const FILES: [(&str, u64, u64); 8] = [
    ("/empty.bin", 1, 0),
    ("/1k.bin", 2, 1 << 10),
    ("/4095.bin", 3, 4095),
    ("/4097.bin", 4, 4097),
    ("/64k1.bin", 5, (64 << 10) + 1),
    ("/1m.bin", 6, 1 << 20),
    ("/5m3.bin", 7, (5 << 20) + 3),
    ("/16m.bin", 8, 16 << 20),
];

/// The big file.
pub const BIG: (&str, u64, u64) = ("/1g.bin", 9, 1 << 30);

/// Names in `/folder/`, which has no index page.
pub const FOLDER: [&str; 5] = ["a.txt", "name with spaces.txt", "gr\u{fc}n & <b>.txt", "100%.txt", "sub"];

/// How many files are in `/many/`: too many for one block of names.
pub const MANY: usize = 500;

static MAKING: Mutex<()> = Mutex::new(());

/// The disk with [`FILES`], folders and pages.
pub fn files() -> Result<PathBuf> {
    made_once("files", 64, |folder| {
        for (path, seed, size) in FILES {
            write(folder.join(&path[1..]), content(seed, 0, size))?;
        }
        write(folder.join("index.html"), "<!doctype html><title>front page</title>")?;
        write(folder.join("page.html"), "<!doctype html><title>page</title>")?;
        write(folder.join("style.css"), "body {}")?;
        write(folder.join("picture.svg"), "<svg xmlns=\"http://www.w3.org/2000/svg\"/>")?;
        write(folder.join("notes.txt"), "0123456789")?;
        for name in ["docs", "folder/sub", "many", "api", "deep/er/still"] {
            create_dir_all(folder.join(name))?;
        }
        write(folder.join("docs/index.html"), "docs page")?;
        write(folder.join("deep/er/still/leaf.txt"), "leaf")?;
        write(folder.join("api/devices"), "a file that the reserved path hides")?;
        for name in FOLDER.iter().filter(|name| **name != "sub") {
            write(folder.join("folder").join(name), name)?;
        }
        for index in 0..MANY {
            write(
                folder.join(format!("many/a-file-with-a-rather-long-name-{index:04}.txt")),
                index.to_string(),
            )?;
        }
        std::os::unix::fs::symlink("notes.txt", folder.join("link.txt"))?;
        Ok(())
    })
}

/// A small site, ready for a guest: a front page, one that is there compressed as well, a file, and a folder
/// without a page.
pub fn web_disk() -> Result<Option<Image>> {
    let image = made_once("web", 16, |folder| {
        create_dir_all(folder.join("folder/sub"))?;
        let page = format!("<!doctype html><title>page</title>{}", "<p>A paragraph.\n".repeat(100));
        write(folder.join("index.html"), &page)?;
        write(folder.join("page.html"), &page)?;
        write(folder.join("folder/notes.txt"), "0123456789".repeat(100))?;
        write(folder.join("1m.bin"), content(6, 0, 1 << 20))?;
        let packed = Command::new("gzip").args(["-9nk", "page.html"]).current_dir(folder).status()?;
        ensure!(packed.success(), "gzip ended with {packed}");
        Ok(())
    })?;
    Ok(Some(Image::open(&image)?))
}

/// The disk with [`BIG`].
pub fn big() -> Result<PathBuf> {
    made_once("big", 1100, |folder| {
        let mut file = File::create(folder.join(&BIG.0[1..]))?;
        for mebibyte in 0..BIG.2 >> 20 {
            file.write_all(&content(BIG.1, mebibyte << 20, (mebibyte + 1) << 20))?;
        }
        Ok(())
    })
}

/// `files` as qcow2, under a name that says otherwise.
pub fn qcow2() -> Result<PathBuf> {
    let raw = files()?;
    let _making = MAKING.lock();
    let image = raw.with_extension("raw");
    if !image.exists() {
        let unfinished = image.with_extension("new");
        let converted = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &unfinished])
            .output()
            .context("cannot start qemu-img")?;
        ensure!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
        std::fs::rename(unfinished, &image)?;
    }
    Ok(image)
}

/// The disk with [`FILES`], ready for a guest.
pub fn files_disk() -> Result<Option<Image>> {
    Ok(Some(Image::open(&files()?)?))
}

fn made_once(name: &str, mebibytes: u32, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let _making = MAKING.lock();
    let image = work_folder("images")?.join(format!("{name}-{VERSION}.ext4"));
    if !image.exists() {
        let folder = work_folder("staging")?.join(name);
        let _ = remove_dir_all(&folder);
        create_dir_all(&folder)?;
        fill(&folder)?;
        make_ext4(&folder, &image, mebibytes)?;
        remove_dir_all(&folder)?;
    }
    Ok(image)
}
