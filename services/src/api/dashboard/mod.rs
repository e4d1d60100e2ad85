//! `/dashboard`: one page for people, which asks for `/metrics` and `/api/…` itself.

use crc::{CRC_64_XZ, Crc};

use crate::http::{Broken, Connection, Exchange};
use crate::text::Digits;

/// Style and script are in the page, and the policy names each by its hash: `host::dashboard` says what it is
/// when they change.
const PAGE: &str = concat!(
    include_str!("head.html"),
    "<style>",
    include_str!("style.css"),
    "</style>\n</head>\n<body>\n",
    include_str!("body.html"),
    "<script>",
    include_str!("script.js"),
    "</script>\n</body>\n</html>\n",
);
/// Nothing but these two, no address but this server's own, and no frame around it.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-TIlOySVYc44UbL7EfzVUl9ge0ahB6HuQG9qBycDD1i8='; \
    style-src 'sha256-9VCcESUZZ1KOnNSuA2NAEPaToVEdDkAKv17LfRrU4SM='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Tells one version from another.
const TAG: u64 = Crc::<u64>::new(&CRC_64_XZ).checksum(PAGE.as_bytes());

pub(super) async fn send<C: Connection>(exchange: &mut Exchange<'_, '_, C>) -> Result<(), Broken> {
    let mut tag = heapless::String::<18>::new();
    for piece in ["\"", Digits::<16>::new::<16>(TAG).as_str(), "\""] {
        // 18 bytes at most.
        let _ = tag.push_str(piece);
    }
    let fields = [
        ("Cache-Control", "no-cache"),
        ("Content-Security-Policy", POLICY),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    ];
    exchange.respond_constant(&tag, &fields, "text/html; charset=utf-8", PAGE).await
}
