//! A folder as an HTML page.

use alloc::string::String;
use alloc::vec::Vec;

use embedded_io_async::{Read, Write};

use super::path::{DiskPath, html_escape, percent_encode};
use super::response::{Broken, Stream, Wire};
use super::{DirEntry, FileError, Files, Kind, Request};

/// Entries that are held in memory, and so sorted, at a time (and up to a block more). A larger folder is sent as several sorted parts.
const PAGE: usize = 256;

const STYLE: &str = "body{font:16px/1.6 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
    ul{list-style:none;padding:0}a{text-decoration:none}a:hover{text-decoration:underline}";

/// The next part of a folder, and where it goes on if there is more.
pub struct Page {
    entries: Vec<DirEntry>,
    cursor: Option<u64>,
}

/// Reads the part of a folder that begins at `cursor`, 0 at first. The caller reads the first part before it calls
/// [`send`], so that an unreadable folder is an error page.
pub async fn read_page<F: Files>(files: &F, dir: &F::Node, mut cursor: u64) -> Result<Page, FileError> {
    let mut entries: Vec<DirEntry> = Vec::new();
    let mut more = true;
    while more && entries.len() < PAGE {
        more = files.read_dir(dir, &mut cursor, &mut entries).await?;
    }
    // Folders first.
    entries.sort_unstable_by(|a, b| {
        (a.kind != Kind::Directory, &a.name).cmp(&(b.kind != Kind::Directory, &b.name))
    });
    Ok(Page { entries, cursor: more.then_some(cursor) })
}

/// Sends the page, reading the rest of the folder as it goes.
pub async fn send<F: Files, C: Read + Write>(
    files: &F,
    wire: &mut Wire<'_, C>,
    request: &Request,
    path: &DiskPath,
    dir: &F::Node,
    mut page: Page,
    keep: bool,
) -> Result<(), Broken> {
    let mut stream = Stream::begin(wire, request, keep, "text/html; charset=utf-8").await?;
    begin(path, &mut stream.text);
    loop {
        for entry in page.entries {
            item(&entry, &mut stream.text);
            stream.pass().await?;
        }
        let Some(cursor) = page.cursor.filter(|_| request.with_body()) else { break };
        page = read_page(files, dir, cursor).await.map_err(|_| Broken)?;
    }
    stream.text.push_str("</ul>\n</body></html>\n");
    stream.finish().await
}

fn begin(path: &DiskPath, out: &mut String) {
    let mut title = String::new();
    html_escape(&path.path, &mut title);
    out.extend([
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">",
        "<meta name=\"viewport\" content=\"width=device-width\">",
        "<title>",
        &title,
        "</title><style>",
        STYLE,
        "</style></head>\n<body><h1>",
        &title,
        "</h1>\n<ul>\n",
    ]);
    if path.path != b"/" {
        out.push_str("<li><a href=\"../\">../</a></li>\n");
    }
}

fn item(entry: &DirEntry, out: &mut String) {
    let slash = if entry.kind == Kind::Directory { "/" } else { "" };
    // `./` keeps a name with a colon from being read as a scheme.
    out.push_str("<li><a href=\"./");
    percent_encode(&entry.name, out);
    out.extend([slash, "\">"]);
    html_escape(&entry.name, out);
    out.extend([slash, "</a></li>\n"]);
}
