//! Disk images: which format a given one has, and making ext4 ones.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{root, setup, work_folder};

/// A disk image that exists and can be read.
#[derive(Clone, Debug)]
pub struct Image {
    path: String,
    format: &'static str,
    device: bool,
}

impl Image {
    /// Looks at the image at `path`: its format is what its first bytes say, whatever its name.
    pub fn open(path: &Path) -> Result<Self> {
        let named = || format!("disk image {}", path.display());
        let mut file = File::open(path).with_context(named)?;
        let kind = file.metadata().with_context(named)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{}: not a file", named());
        }
        let mut start = Vec::new();
        file.by_ref().take(8).read_to_end(&mut start).with_context(named)?;
        let format = match start.as_slice() {
            [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3] => "qcow2",
            [b'Q', b'F', b'I', 0xfb, ..] => bail!("{}: a qcow of a version other than 2 and 3", named()),
            _ => "raw",
        };
        let path = path.to_str().with_context(|| format!("{}: its name is not UTF-8", named()))?.to_owned();
        Ok(Self { path, format, device: kind.is_block_device() })
    }

    /// The image as a read-only block node called `name`, for QEMU's `-blockdev`.
    pub fn node(&self, name: &str) -> Value {
        let driver = if self.device { "host_device" } else { "file" };
        json!({
            "driver": self.format, "node-name": name, "read-only": true,
            "file": { "driver": driver, "filename": self.path, "read-only": true },
        })
    }
}

/// The default disk: an ext4 image of site/, made anew when a file there changes.
pub fn site() -> Result<Image> {
    let folder = root().join("site");
    let mut state = DefaultHasher::new();
    fingerprint(&folder, &mut state).context("cannot read site/")?;
    let image = work_folder("images")?.join(format!("site-{:016x}.ext4", state.finish()));
    if !image.exists() {
        make_ext4(&folder, &image, 16)?;
    }
    Image::open(&image)
}

fn fingerprint(folder: &Path, state: &mut DefaultHasher) -> Result<()> {
    let mut paths: Vec<PathBuf> = folder.read_dir()?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        path.hash(state);
        if path.is_dir() {
            fingerprint(&path, state)?;
        } else {
            let metadata = path.metadata()?;
            (metadata.len(), metadata.modified()?).hash(state);
        }
    }
    Ok(())
}

/// Makes an ext4 image of `mebibytes` MiB with what is in `folder`, owned by root.
pub fn make_ext4(folder: &Path, image: &Path, mebibytes: u32) -> Result<()> {
    let program = setup::program("mkfs.ext4").context("mkfs.ext4 is missing")?;
    let unfinished = image.with_extension(format!("{}.new", std::process::id()));
    let made = Command::new(program)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "ringfence", "-E", "root_owner=0:0", "-d"])
        .arg(folder)
        .arg(&unfinished)
        .arg(format!("{mebibytes}M"))
        .stdin(Stdio::null())
        .output()
        .context("cannot start mkfs.ext4")?;
    ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim());
    std::fs::rename(&unfinished, image)?;
    Ok(())
}
