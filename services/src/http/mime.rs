//! `Content-Type` by file name.

use heapless::Vec;

/// Extensions in lower case, sorted; their types (text is served as UTF-8); and whether such a file is worth
/// compressing.
const TYPES: &[(&str, &str, bool)] = &[
    ("7z", "application/x-7z-compressed", false),
    ("aac", "audio/aac", false),
    ("apk", "application/vnd.android.package-archive", false),
    ("apng", "image/apng", false),
    ("atom", "application/atom+xml", true),
    ("avi", "video/x-msvideo", false),
    ("avif", "image/avif", false),
    ("bmp", "image/bmp", true),
    ("bz2", "application/x-bzip2", false),
    ("c", "text/x-c; charset=utf-8", true),
    ("cfg", "text/plain; charset=utf-8", true),
    ("conf", "text/plain; charset=utf-8", true),
    ("cpp", "text/x-c; charset=utf-8", true),
    ("css", "text/css; charset=utf-8", true),
    ("csv", "text/csv; charset=utf-8", true),
    ("deb", "application/vnd.debian.binary-package", false),
    ("doc", "application/msword", false),
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", false),
    ("eot", "application/vnd.ms-fontobject", true),
    ("epub", "application/epub+zip", false),
    ("flac", "audio/flac", false),
    ("gif", "image/gif", false),
    ("gz", "application/gzip", false),
    ("h", "text/x-c; charset=utf-8", true),
    ("htm", "text/html; charset=utf-8", true),
    ("html", "text/html; charset=utf-8", true),
    ("ico", "image/vnd.microsoft.icon", true),
    ("ics", "text/calendar; charset=utf-8", true),
    ("ini", "text/plain; charset=utf-8", true),
    ("iso", "application/x-iso9660-image", false),
    ("jar", "application/java-archive", false),
    ("jpeg", "image/jpeg", false),
    ("jpg", "image/jpeg", false),
    ("js", "text/javascript; charset=utf-8", true),
    ("json", "application/json", true),
    ("jsonld", "application/ld+json", true),
    ("jxl", "image/jxl", false),
    ("log", "text/plain; charset=utf-8", true),
    ("m3u8", "application/vnd.apple.mpegurl", true),
    ("m4a", "audio/mp4", false),
    ("m4v", "video/mp4", false),
    ("map", "application/json", true),
    ("md", "text/markdown; charset=utf-8", true),
    ("mid", "audio/midi", false),
    ("midi", "audio/midi", false),
    ("mjs", "text/javascript; charset=utf-8", true),
    ("mkv", "video/matroska", false),
    ("mov", "video/quicktime", false),
    ("mp3", "audio/mpeg", false),
    ("mp4", "video/mp4", false),
    ("mpeg", "video/mpeg", false),
    ("odp", "application/vnd.oasis.opendocument.presentation", false),
    ("ods", "application/vnd.oasis.opendocument.spreadsheet", false),
    ("odt", "application/vnd.oasis.opendocument.text", false),
    ("oga", "audio/ogg", false),
    ("ogg", "audio/ogg", false),
    ("ogv", "video/ogg", false),
    ("opus", "audio/ogg", false),
    ("otf", "font/otf", true),
    ("pdf", "application/pdf", false),
    ("png", "image/png", false),
    ("ppt", "application/vnd.ms-powerpoint", false),
    ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation", false),
    ("py", "text/x-python; charset=utf-8", true),
    ("rar", "application/vnd.rar", false),
    ("rs", "text/plain; charset=utf-8", true),
    ("rss", "application/rss+xml", true),
    ("rtf", "application/rtf", true),
    ("sh", "text/x-shellscript; charset=utf-8", true),
    ("svg", "image/svg+xml", true),
    ("tar", "application/x-tar", false),
    ("tgz", "application/gzip", false),
    ("tif", "image/tiff", false),
    ("tiff", "image/tiff", false),
    ("toml", "application/toml", true),
    ("ttf", "font/ttf", true),
    ("txt", "text/plain; charset=utf-8", true),
    ("vtt", "text/vtt; charset=utf-8", true),
    ("wasm", "application/wasm", true),
    ("wav", "audio/wav", false),
    ("weba", "audio/webm", false),
    ("webm", "video/webm", false),
    ("webmanifest", "application/manifest+json", true),
    ("webp", "image/webp", false),
    ("woff", "font/woff", false),
    ("woff2", "font/woff2", false),
    ("xhtml", "application/xhtml+xml", true),
    ("xls", "application/vnd.ms-excel", false),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", false),
    ("xml", "application/xml", true),
    ("xz", "application/x-xz", false),
    ("yaml", "application/yaml", true),
    ("yml", "application/yaml", true),
    ("zip", "application/zip", false),
    ("zst", "application/zstd", false),
];
/// Bytes of the longest extension.
const LONGEST: usize = 11;

/// The type of a file by the extension of its name, and whether there may be a compressed one beside it.
/// Unknown ones are plain bytes.
pub fn content_type(path: &[u8]) -> (&'static str, bool) {
    let unknown = ("application/octet-stream", false);
    // A name without a dot has no extension, nor has the path before it.
    let Some(dot) = path.iter().rposition(|byte| matches!(byte, b'.' | b'/')) else { return unknown };
    let Some((b'.', extension)) = path.get(dot..).and_then(<[u8]>::split_first) else { return unknown };
    let Ok(mut lower) = Vec::<u8, LONGEST>::from_slice(extension) else { return unknown };
    lower.make_ascii_lowercase();
    let found = TYPES.binary_search_by(|(known, ..)| known.as_bytes().cmp(&lower));
    found.ok().and_then(|index| TYPES.get(index)).map_or(unknown, |&(_, mime, text)| (mime, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        for (path, mime) in [
            ("/a/index.html", "text/html; charset=utf-8"),
            ("/A.PNG", "image/png"),
            ("/a.tar.gz", "application/gzip"),
            ("/html", "application/octet-stream"),
            ("/a.html/file", "application/octet-stream"),
            ("/a.", "application/octet-stream"),
            ("/a.exe", "application/octet-stream"),
            ("/a.webmanifests", "application/octet-stream"),
            ("/.gz", "application/gzip"),
            ("/a.Mjs", "text/javascript; charset=utf-8"),
            ("/a.7z", "application/x-7z-compressed"),
            ("/a.zst", "application/zstd"),
        ] {
            assert_eq!(content_type(path.as_bytes()).0, mime, "{path}");
        }
    }

    #[test]
    fn the_table_can_be_searched() {
        assert!(TYPES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(TYPES.iter().map(|row| row.0.len()).max(), Some(LONGEST));
        for (extension, mime, text) in TYPES {
            assert_eq!(*extension, extension.to_ascii_lowercase());
            assert_eq!(content_type(std::format!("/x.{extension}").as_bytes()), (*mime, *text));
            assert_eq!(mime.starts_with("text/"), mime.contains("charset"), "{mime}");
        }
    }
}
