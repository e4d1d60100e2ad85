//! `Content-Type` by file name.

/// Extensions in lower case. Text is served as UTF-8.
const TYPES: &[(&str, &str)] = &[
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
    ("zip", "application/zip"),
];

/// The type of a file by the extension of its name; unknown ones are plain bytes.
pub fn content_type(path: &[u8]) -> &'static str {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    let mut parts = name.rsplitn(2, |&b| b == b'.');
    let (extension, stem) = (parts.next().unwrap_or(name), parts.next());
    TYPES
        .iter()
        .find(|(known, _)| stem.is_some() && extension.eq_ignore_ascii_case(known.as_bytes()))
        .map_or("application/octet-stream", |(_, mime)| mime)
}

#[cfg(test)]
mod tests {
    use super::content_type;

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
        ] {
            assert_eq!(content_type(path.as_bytes()), mime, "{path}");
        }
    }
}
