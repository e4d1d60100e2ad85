//! The status codes this server uses.

use core::fmt;

/// A status code of RFC 9110 (or 6585).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 206
    PartialContent,
    /// 301
    MovedPermanently,
    /// 304
    NotModified,
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 408
    RequestTimeout,
    /// 412
    PreconditionFailed,
    /// 414
    UriTooLong,
    /// 416
    RangeNotSatisfiable,
    /// 431
    HeadersTooLarge,
    /// 500
    InternalError,
    /// 501
    NotImplemented,
    /// 503
    Unavailable,
    /// 505
    VersionNotSupported,
}

/// Code, code and reason phrase as they are sent, and the sentence for a person, in the order of [`Status`].
const TABLE: [(Status, u16, &str, &str); 17] = [
    (Status::Ok, 200, "200 OK", ""),
    (Status::PartialContent, 206, "206 Partial Content", ""),
    (
        Status::MovedPermanently,
        301,
        "301 Moved Permanently",
        "This is a folder; its address ends with a slash.",
    ),
    (Status::NotModified, 304, "304 Not Modified", ""),
    (
        Status::BadRequest,
        400,
        "400 Bad Request",
        "This request is not valid HTTP, or its path is not a valid path.",
    ),
    (Status::NotFound, 404, "404 Not Found", "There is nothing at this address."),
    (Status::MethodNotAllowed, 405, "405 Method Not Allowed", "Only GET and HEAD are allowed here."),
    (
        Status::NotAcceptable,
        406,
        "406 Not Acceptable",
        "The file is not there in any encoding that is accepted.",
    ),
    (Status::RequestTimeout, 408, "408 Request Timeout", "The request did not arrive in time."),
    (Status::PreconditionFailed, 412, "412 Precondition Failed", "This is not the version asked for."),
    (Status::UriTooLong, 414, "414 URI Too Long", "The address is too long."),
    (
        Status::RangeNotSatisfiable,
        416,
        "416 Range Not Satisfiable",
        "The file is shorter than the range asked for.",
    ),
    (
        Status::HeadersTooLarge,
        431,
        "431 Request Header Fields Too Large",
        "The request's header is too large.",
    ),
    (Status::InternalError, 500, "500 Internal Server Error", "The disk could not be read."),
    (Status::NotImplemented, 501, "501 Not Implemented", "This method is unknown."),
    (Status::Unavailable, 503, "503 Service Unavailable", "Memory is short. Try again in a moment."),
    (Status::VersionNotSupported, 505, "505 HTTP Version Not Supported", "Use HTTP/1.1 or HTTP/1.0."),
];

impl Status {
    /// How many there are.
    pub const COUNT: usize = TABLE.len();

    /// Every status, in the order of the codes.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> (Self, u16, &'static str, &'static str) {
        TABLE.get(self as usize).copied().unwrap_or((self, 500, "", ""))
    }

    /// The three-digit code.
    pub fn code(self) -> u16 {
        self.row().1
    }

    /// Code and reason phrase.
    pub fn line(self) -> &'static str {
        self.row().2
    }

    /// A sentence for the person who sees the error, or nothing.
    pub fn sentence(self) -> &'static str {
        self.row().3
    }
}

/// Code and reason phrase.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line())
    }
}

impl core::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, (status, code, ..)) in TABLE.iter().enumerate() {
            assert_eq!(*status as usize, index);
            assert_eq!(status.code(), *code);
            assert!(status.line().starts_with(&std::format!("{code} ")));
        }
        assert!(TABLE.is_sorted_by_key(|row| row.1));
    }
}
