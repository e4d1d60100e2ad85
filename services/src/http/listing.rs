//! A folder as an HTML page.

use alloc::vec::Vec;

use embedded_io_async::{Read, Write};

use super::path::{DiskPath, html_escape, percent_encode};
use super::response::{Broken, Stream};
use super::{Exchange, Files};
use crate::fs::{DirEntry, FsError, Kind};
use crate::text::Text;

const STYLE: &str = "body{font:16px/1.6 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
    ul{list-style:none;padding:0}a{text-decoration:none}a:hover{text-decoration:underline}";

/// Some names of a directory: as many as fit a bound, whatever the directory holds.
#[derive(Default)]
struct Names {
    entries: Vec<Entry>,
    /// One after the other.
    names: Vec<u8>,
    is_full: bool,
}

struct Entry {
    start: u32,
    len: u8,
    is_folder: bool,
}

impl Names {
    /// Entries that fit. A listing is sorted within so many.
    const MAX: usize = 256;
    /// Bytes of names that fit.
    const BYTES: usize = 16 << 10;

    /// Adds a name. Returns false, with nothing added, when there is no more room.
    ///
    /// # Errors
    /// [`FsError::NoMemory`], and [`FsError::Corrupt`] for a name that is too long.
    fn push(&mut self, DirEntry { name, kind, .. }: DirEntry<'_>) -> Result<bool, FsError> {
        let len = u8::try_from(name.len()).map_err(|_| FsError::Corrupt("a name is too long"))?;
        let start = self.names.len();
        self.is_full |= self.entries.len() >= Self::MAX || start.saturating_add(name.len()) > Self::BYTES;
        if self.is_full {
            return Ok(false);
        }
        self.entries.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        self.names.try_reserve(name.len()).map_err(|_| FsError::NoMemory)?;
        self.names.extend_from_slice(name);
        let (start, is_folder) = (u32::try_from(start).unwrap_or(u32::MAX), kind == Some(Kind::Directory));
        self.entries.push(Entry { start, len, is_folder });
        Ok(true)
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there was a name that did not fit.
    fn is_full(&self) -> bool {
        self.is_full
    }

    /// Folders first, then by name.
    fn sort(&mut self) {
        let names = &self.names;
        self.entries.sort_unstable_by_key(|entry| (!entry.is_folder, entry.name(names)));
    }

    /// The names, and which are those of folders.
    fn iter(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.entries.iter().map(|entry| (entry.name(&self.names), entry.is_folder))
    }
}

impl Entry {
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let rest = names.get(self.start as usize..).unwrap_or_default();
        rest.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The next part of a folder, and where it goes on if there is more. A large folder is sent as several sorted
/// parts.
pub struct Page {
    names: Names,
    cursor: Option<u64>,
    /// Parts of the directory are lost, and with them names.
    is_damaged: bool,
}

/// Reads the part of a folder that begins at `cursor`, 0 at first. The caller reads the first part before it
/// calls [`send`], so that an unreadable folder is an error page.
pub async fn read_page<F: Files>(files: &F, dir: &F::Node, mut cursor: u64) -> Result<Page, FsError> {
    let mut names = Names::default();
    let (mut more, mut lost) = (true, None);
    while more && !names.is_full() {
        let before = cursor;
        more = match files.read_dir(dir, &mut cursor, |entry| names.push(entry)).await {
            // One part is lost, what follows is not.
            Err(error) if error.is_local() && cursor > before => {
                lost = Some(error);
                true
            }
            other => other?,
        };
    }
    match lost {
        // There is nothing else to show.
        Some(error) if names.is_empty() && !more => Err(error),
        _ => {
            names.sort();
            Ok(Page { names, cursor: more.then_some(cursor), is_damaged: lost.is_some() })
        }
    }
}

/// Sends the page, reading the rest of the folder as it goes.
pub async fn send<F: Files, C: Read + Write>(
    files: &F,
    exchange: &mut Exchange<'_, '_, C>,
    path: &DiskPath,
    dir: &F::Node,
    mut page: Page,
) -> Result<(), Broken> {
    let request = exchange.request;
    let mut stream = Stream::begin(exchange, "text/html; charset=utf-8").await?;
    begin(path, &mut stream.text);
    loop {
        for (name, is_folder) in page.names.iter() {
            item(name, is_folder, &mut stream.text);
            stream.pass().await?;
        }
        if page.is_damaged {
            stream.text.push_str("<li>Names are missing here: the disk is damaged.</li>\n");
        }
        let Some(cursor) = page.cursor.filter(|_| request.with_body()) else { break };
        page = read_page(files, dir, cursor).await.map_err(Broken::Cut)?;
    }
    stream.text.push_str("</ul>\n</body></html>\n");
    stream.finish().await
}

fn begin(path: &DiskPath, out: &mut Text) {
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>");
    html_escape(&path.path, out);
    out.push_str("</title><style>");
    out.push_str(STYLE);
    out.push_str("</style></head>\n<body><h1>");
    html_escape(&path.path, out);
    out.push_str("</h1>\n<ul>\n");
    if path.path != b"/" {
        out.push_str("<li><a href=\"../\">../</a></li>\n");
    }
}

fn item(name: &[u8], is_folder: bool, out: &mut Text) {
    let slash = if is_folder { "/" } else { "" };
    // `./` keeps a name with a colon from being read as a scheme.
    out.push_str("<li><a href=\"./");
    percent_encode(name, out);
    out.push_str(slash);
    out.push_str("\">");
    html_escape(name, out);
    out.push_str(slash);
    out.push_str("</a></li>\n");
}
