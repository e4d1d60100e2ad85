//! A folder as an HTML page.

use alloc::vec::Vec;

use super::date::{Civil, digits};
use super::path::{DiskPath, html_escape, percent_encode};
use super::response::{Broken, Stream};
use super::{Connection, Exchange, Files, Routes};
use crate::block::BlockError;
use crate::fs::{DirEntry, FsError, Kind};
use crate::text::Text;

const STYLE: &str = ":root{color-scheme:light dark}\
    body{font:16px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    table{border-collapse:collapse;width:100%}th{text-align:left}td{overflow-wrap:anywhere}\
    td+td,th+th{white-space:nowrap;padding-left:2rem;text-align:right;font-variant-numeric:tabular-nums}\
    a{text-decoration:none}a:hover{text-decoration:underline}";

/// Some entries of a directory: as many as fit a bound, whatever the directory holds.
#[derive(Default)]
struct Names {
    entries: Vec<Entry>,
    /// One after the other.
    names: Vec<u8>,
    is_full: bool,
}

struct Entry {
    start: u16,
    len: u8,
    /// `None` if that cannot be said, nor what follows the inode.
    kind: Option<Kind>,
    inode: u32,
    /// Bytes, and seconds since 1970.
    size: u64,
    modified: i64,
}

impl Names {
    /// Entries that fit. A listing is sorted within so many.
    const MAX: usize = 256;
    /// Bytes of names that fit.
    const BYTES: usize = 16 << 10;

    /// Adds an entry. Returns false, with nothing added, when there is no more room.
    ///
    /// # Errors
    /// [`FsError::NoMemory`], and [`FsError::Corrupt`] for a name that is too long.
    fn push(&mut self, DirEntry { name, inode, kind, .. }: DirEntry<'_>) -> Result<bool, FsError> {
        let len = u8::try_from(name.len()).map_err(|_| FsError::Corrupt("a name is too long"))?;
        let start = self.names.len();
        self.is_full |= self.entries.len() >= Self::MAX || start.saturating_add(name.len()) > Self::BYTES;
        if self.is_full {
            return Ok(false);
        }
        self.entries.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        self.names.try_reserve(name.len()).map_err(|_| FsError::NoMemory)?;
        self.names.extend_from_slice(name);
        let start = u16::try_from(start).unwrap_or(u16::MAX);
        self.entries.push(Entry { start, len, kind, inode, size: 0, modified: -1 });
        Ok(true)
    }

    /// Folders first, then by name.
    fn sort(&mut self) {
        let names = &self.names;
        self.entries.sort_unstable_by_key(|entry| (!entry.is_folder(), entry.name(names)));
    }
}

impl Entry {
    fn is_folder(&self) -> bool {
        self.kind == Some(Kind::Directory)
    }

    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let rest = names.get(usize::from(self.start)..).unwrap_or_default();
        rest.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The next part of a folder, and where it goes on if there is more. A large folder is sent as several sorted
/// parts.
pub struct Page {
    names: Names,
    cursor: Option<u64>,
    /// Why a part of the directory is lost, and with it names.
    lost: Option<FsError>,
    /// Whether there are files that only this machine's own addresses hide.
    hides_some: bool,
}

/// A folder that is listed.
pub struct Folder<'a, F: Files, R> {
    pub files: &'a F,
    pub routes: &'a R,
    pub path: &'a DiskPath,
    pub dir: &'a F::Node,
}

impl<F: Files, R: Routes> Folder<'_, F, R> {
    /// Reads the part of a folder that begins at `cursor`, 0 at first. The caller reads the first part before
    /// it calls [`send`](Self::send), so that an unreadable folder is an error page.
    pub async fn read_page(&self, mut cursor: u64) -> Result<Page, FsError> {
        let mut names = Names::default();
        let (mut more, mut lost) = (true, None);
        while more && !names.is_full {
            let before = cursor;
            more = match self.files.read_dir(self.dir, &mut cursor, |entry| names.push(entry)).await {
                // One part is lost, what follows is not.
                Err(error) if error.is_local() && cursor > before => {
                    lost = Some(error);
                    true
                }
                other => other?,
            };
        }
        // There is nothing else to show.
        if let Some(error) = lost.filter(|_| names.entries.is_empty() && !more) {
            return Err(error);
        }
        let mut hides_some = false;
        let Names { entries, names: bytes, .. } = &mut names;
        for entry in entries.iter_mut() {
            let path = self.path.child(entry.name(bytes))?;
            self.look(entry, &path).await?;
            if entry.kind == Some(Kind::File) && self.routes.is_reserved(&path) {
                (hides_some, entry.kind) = (true, Some(Kind::Other));
            }
        }
        entries.retain(|entry| !matches!(entry.kind, Some(Kind::Other | Kind::Symlink)));
        names.sort();
        Ok(Page { names, cursor: more.then_some(cursor), lost, hides_some })
    }

    /// Finds out what an entry leads to. One that cannot be opened keeps its place: whoever follows it is
    /// told why.
    async fn look(&self, entry: &mut Entry, path: &[u8]) -> Result<(), FsError> {
        let mut found = self.files.node(entry.inode).await.map(|node| self.files.metadata(&node));
        if matches!(&found, Ok(metadata) if metadata.kind == Kind::Symlink) {
            found = self.files.lookup(path).await.map(|node| self.files.metadata(&node));
            // A link to nowhere.
            entry.kind = Some(Kind::Symlink);
            if let Err(FsError::NotFound | FsError::NotADirectory | FsError::TooManyLinks) = found {
                return Ok(());
            }
            entry.kind = None;
        }
        match found {
            Ok(metadata) => {
                entry.kind = Some(metadata.kind);
                (entry.size, entry.modified) = (metadata.size, metadata.mtime);
                Ok(())
            }
            Err(error @ (FsError::NoMemory | FsError::Io(BlockError::Gone))) => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Sends the page, reading the rest of the folder as it goes.
    pub async fn send<C: Connection>(
        &self,
        exchange: &mut Exchange<'_, '_, C>,
        mut page: Page,
    ) -> Result<(), Broken> {
        let request = exchange.request;
        let mut stream = Stream::begin(exchange, "text/html; charset=utf-8").await?;
        begin(self.path, &mut stream.text);
        let (mut hides_some, mut lost) = (false, None);
        loop {
            hides_some |= page.hides_some;
            for entry in &page.names.entries {
                row(entry, entry.name(&page.names.names), &mut stream.text);
                stream.pass().await?;
            }
            if page.lost.is_some() {
                lost = page.lost;
                stream.text.push_str("<tr><td>Names are missing here: the disk is damaged.<td><td>\n");
            }
            let Some(cursor) = page.cursor.filter(|_| request.with_body()) else { break };
            page = self.read_page(cursor).await.map_err(Broken::Cut)?;
        }
        stream.text.push_str("</table>\n");
        if hides_some {
            stream
                .text
                .push_str("<p>Files with the names of this machine's own addresses are left out.</p>\n");
        }
        stream.text.push_str("</body></html>\n");
        stream.finish().await?;
        exchange.gap = lost;
        Ok(())
    }
}

fn begin(path: &DiskPath, out: &mut Text) {
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>");
    html_escape(&path.path, out);
    out.push_str("</title><style>");
    out.push_str(STYLE);
    out.push_str("</style></head>\n<body><h1>");
    html_escape(&path.path, out);
    out.push_str("</h1>\n<table>\n<tr><th>Name<th>Size<th>Modified (UTC)\n");
    if path.path != b"/" {
        out.push_str("<tr><td><a href=\"../\">../</a><td><td>\n");
    }
}

fn row(entry: &Entry, name: &[u8], out: &mut Text) {
    let slash = if entry.is_folder() { "/" } else { "" };
    // `./` keeps a name with a colon from being read as a scheme.
    out.push_str("<tr><td><a href=\"./");
    percent_encode(name, out);
    out.push_str(slash);
    out.push_str("\">");
    html_escape(name, out);
    out.push_str(slash);
    out.push_str("</a><td>");
    if entry.kind == Some(Kind::File) {
        push_size(entry.size, out);
    }
    out.push_str("<td>");
    if let Ok(modified) = u64::try_from(entry.modified) {
        push_date(modified, out);
    }
    out.push_str("\n");
}

/// In the largest unit of which there is one; a decimal where there are fewer than ten.
#[allow(clippy::arithmetic_side_effects, reason = "divisors are not 0, and a remainder is below 1024")]
fn push_size(bytes: u64, out: &mut Text) {
    let (mut size, mut rest) = (bytes, 0);
    for unit in [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"] {
        if size < 1024 {
            out.push_decimal(size);
            if size < 10 && unit != " B" {
                out.push_str(".");
                out.push_decimal(rest * 10 / 1024);
            }
            return out.push_str(unit);
        }
        (size, rest) = (size / 1024, size % 1024);
    }
}

#[allow(clippy::arithmetic_side_effects, reason = "divisors are not 0")]
fn push_date(seconds: u64, out: &mut Text) {
    let Civil { year, month, day, hour, minute, .. } = Civil::at(seconds);
    for (before, number) in
        [("", year / 100), ("", year % 100), ("-", month), ("-", day), (" ", hour), (":", minute)]
    {
        out.push_str(before);
        out.push_str(core::str::from_utf8(&digits(number)).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_dates() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (2024, "1.9 KiB"),
            (1_996_800, "1.9 MiB"),
            (10 << 20, "10 MiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (u64::MAX, "15 EiB"),
        ] {
            let mut out = Text::default();
            push_size(bytes, &mut out);
            assert_eq!(out.whole(), Ok(text), "{bytes}");
        }
        let mut out = Text::default();
        push_date(784_111_777, &mut out);
        assert_eq!(out.whole(), Ok("1994-11-06 08:49"));
    }
}
