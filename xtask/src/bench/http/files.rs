//! What both guests serve: an ext4 image whose bytes need not be kept to be known.

use std::fs::{self, File as Target};
use std::io::Write;
use std::path::Path;

use anyhow::Result;

use crate::image::{Image, make_ext4};
use crate::work_folder;

/// Bytes after which random content comes again. A prime, so that pieces of files differ.
const PERIOD: usize = 1_048_583;
/// How many files of middle size there are.
const MIDDLES: usize = 64;
/// How many small files there are, and how many of them in each folder.
const SMALL: usize = 10_000;
const IN_FOLDER: usize = 100;
const MIB: usize = 1 << 20;

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    name: &'static str,
    /// Bytes of the large file.
    large: usize,
    /// Bytes of the large file that is asked for again.
    again: usize,
    /// Bytes of a file of middle size.
    middle: usize,
}

pub const FULL: Size = Size { name: "full", large: 1024 * MIB, again: 256 * MIB, middle: 16 * MIB };
pub const QUICK: Size = Size { name: "quick", large: 64 * MIB, again: 16 * MIB, middle: MIB };

/// One file, which differs from all others.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub length: usize,
    number: usize,
}

impl Size {
    /// One byte.
    pub fn byte() -> File {
        File { path: "/one".into(), length: 1, number: 0 }
    }

    pub fn large(self) -> File {
        File { path: "/large".into(), length: self.large, number: 1 }
    }

    /// Fits the memory that the guests have for files.
    pub fn again(self) -> File {
        File { path: "/again".into(), length: self.again, number: 2 }
    }

    /// One of 64.
    pub fn middle(self, number: usize) -> File {
        let number = number % MIDDLES;
        File { path: format!("/middle/{number:02}"), length: self.middle, number: 3 + number }
    }

    /// One of 10,000, of 4 KiB.
    pub fn small(number: usize) -> File {
        let number = number % SMALL;
        let path = format!("/small/{:02}/{:02}", number / IN_FOLDER, number % IN_FOLDER);
        File { path, length: 4096, number: 3 + MIDDLES + number }
    }

    fn files(self) -> impl Iterator<Item = File> {
        let single = [Self::byte(), self.large(), self.again()];
        let middle = (0..MIDDLES).map(move |number| self.middle(number));
        single.into_iter().chain(middle).chain((0..SMALL).map(Self::small))
    }

    /// The image, made the first time.
    pub fn image(self) -> Result<Image> {
        let folder = work_folder("http")?;
        let image = folder.join(format!("{}.ext4", self.name));
        if !image.exists() {
            let content = Content::new();
            let root = folder.join(format!("{}.{}", self.name, std::process::id()));
            let made = self.files().try_for_each(|file| content.write(&file, &root)).and_then(|()| {
                let bytes: usize = self.files().map(|file| file.length).sum();
                make_ext4(&root, &image, (bytes / MIB * 21 / 20 + 32) as u32)
            });
            fs::remove_dir_all(&root)?;
            made?;
        }
        Image::open(&image)
    }
}

/// What is in the files.
pub struct Content(Vec<u8>);

impl Content {
    pub fn new() -> Self {
        let mut bytes = vec![0; PERIOD];
        fastrand::Rng::with_seed(12).fill(&mut bytes);
        Self(bytes)
    }

    /// The bytes of `file` in pieces.
    pub fn pieces(&self, file: &File) -> impl Iterator<Item = &[u8]> {
        let (mut at, mut left) = (file.number * 65_537 % PERIOD, file.length);
        std::iter::from_fn(move || {
            let piece = &self.0[at..PERIOD.min(at + left)];
            (at, left) = (0, left - piece.len());
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Whether `body` is what `file` has.
    pub fn matches(&self, file: &File, body: &[u8]) -> bool {
        let mut rest = Some(body);
        self.pieces(file).for_each(|piece| rest = rest.and_then(|rest| rest.strip_prefix(piece)));
        rest.is_some_and(<[u8]>::is_empty)
    }

    fn write(&self, file: &File, root: &Path) -> Result<()> {
        let path = root.join(file.path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        let mut target = Target::create(path)?;
        Ok(self.pieces(file).try_for_each(|piece| target.write_all(piece))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_apart() {
        let content = Content::new();
        let file = QUICK.large();
        let mut body: Vec<u8> = content.pieces(&file).flatten().copied().collect();
        assert_eq!(body.len(), file.length);
        assert!(content.matches(&file, &body) && !content.matches(&QUICK.again(), &body[..16 * MIB]));
        body[40 * MIB] ^= 1;
        assert!(!content.matches(&file, &body));
        body[40 * MIB] ^= 1;
        assert!(!content.matches(&file, &body[..body.len() - 1]));
        body.push(0);
        assert!(!content.matches(&file, &body));
        assert!(content.matches(&Size::byte(), &content.0[..1]) && !content.matches(&Size::byte(), &[]));
    }

    #[test]
    fn no_two_files_have_one_path() {
        let mut paths: Vec<_> = FULL.files().map(|file| file.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!((count, paths.len()), (3 + 64 + 10_000, count));
    }
}
