//! A folder as an HTML page.

use embedded_io_async::{Read, Write};

use super::path::{DiskPath, html_escape, percent_encode};
use super::response::{Broken, Stream};
use super::{Exchange, Files, Names};
use crate::fs::{FsError, Kind};
use crate::text::Text;

const STYLE: &str = "body{font:16px/1.6 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
    ul{list-style:none;padding:0}a{text-decoration:none}a:hover{text-decoration:underline}";

/// The next part of a folder, and where it goes on if there is more. A large folder is sent as several sorted
/// parts.
pub struct Page {
    names: Names,
    cursor: Option<u64>,
}

/// Reads the part of a folder that begins at `cursor`, 0 at first. The caller reads the first part before it
/// calls [`send`], so that an unreadable folder is an error page.
pub async fn read_page<F: Files>(files: &F, dir: &F::Node, mut cursor: u64) -> Result<Page, FsError> {
    let mut names = Names::default();
    let mut more = true;
    while more && !names.is_full() {
        more = files.read_dir(dir, &mut cursor, &mut names).await?;
    }
    names.sort();
    Ok(Page { names, cursor: more.then_some(cursor) })
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
        for (name, kind) in page.names.iter() {
            item(name, kind, &mut stream.text);
            stream.pass().await?;
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

fn item(name: &[u8], kind: Kind, out: &mut Text) {
    let slash = if kind == Kind::Directory { "/" } else { "" };
    // `./` keeps a name with a colon from being read as a scheme.
    out.push_str("<li><a href=\"./");
    percent_encode(name, out);
    out.push_str(slash);
    out.push_str("\">");
    html_escape(name, out);
    out.push_str(slash);
    out.push_str("</a></li>\n");
}
