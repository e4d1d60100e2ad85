//! One request and its response.

use alloc::rc::Rc;
use core::fmt::{self, Write as _};

use thiserror::Error;

use super::conditions::{Outcome, Validators};
use super::{Broken, Connection, Head, Length, PathError, Request, Status, Wire};
use crate::block::BlockError;
use crate::fs::FsError;
use crate::text::{NoMemory, Text};

/// A request that is being answered.
pub struct Exchange<'a, 'w, C> {
    /// Where the answer goes.
    pub wire: &'a mut Wire<'w, C>,
    /// What is asked for.
    pub request: &'a Request<'a>,
    /// Whether the connection lives on after the response.
    pub keep: bool,
    /// Why a part of what was asked for is not in the response, though that is whole.
    pub gap: Option<FsError>,
}

impl<C: Connection> Exchange<'_, '_, C> {
    /// The start of a response.
    pub fn head(&mut self, status: Status) -> Head {
        self.wire.head(status, !self.keep, !self.request.http_1_1)
    }

    /// Sends a complete response with a text body (left out for HEAD).
    pub async fn respond(&mut self, head: Head, mime: &str, body: &str) -> Result<(), Broken> {
        self.wire.respond(head, mime, body, self.request.with_body()).await
    }

    /// Sends a text that stays the same as long as the program runs, with `fields` in its head; or says, by
    /// its entity tag, that the client has it.
    pub(crate) async fn respond_constant(
        &mut self,
        etag: &str,
        fields: &[(&str, &str)],
        mime: &str,
        body: &str,
    ) -> Result<(), Broken> {
        let version = Validators { etag: Some(etag), modified: None, clock: self.wire.clock };
        let status = match version.check(self.request) {
            Outcome::Send => Status::Ok,
            Outcome::NotModified => Status::NotModified,
            Outcome::Failed => Status::PreconditionFailed,
        };
        let head = self.head(status).field("ETag", etag);
        let head = fields.iter().fold(head, |head, (name, value)| head.field(name, value));
        match status {
            Status::Ok => self.respond(head, mime, body).await,
            Status::NotModified => self.wire.send_head(head, Length::None).await,
            _ => self.wire.send_head(head, Length::Known(0)).await,
        }
    }

    /// Sends the page that says why there is no other response.
    pub(super) async fn refuse(&mut self, refusal: &Refusal) -> Result<(), Broken> {
        let Refusal { status, field, .. } = refusal;
        let mut head = self.head(*status);
        let mut body = Text::default();
        let _ = write!(body, "{status}\n{refusal}\n");
        let field = field.as_ref().map(|(name, value)| value.whole().map(|value| (*name, value)));
        match (field.transpose(), body.whole()) {
            (Ok(field), Ok(body)) => {
                if let Some((name, value)) = field {
                    head = head.field(name, value);
                }
                self.respond(head, "text/plain; charset=utf-8", body).await
            }
            _ => Err(self.wire.give_up().await),
        }
    }
}

/// Why a request does not get what it asks for, while nothing of a response was sent.
#[derive(Debug)]
pub struct Refusal {
    pub(super) status: Status,
    field: Option<(&'static str, Text)>,
    /// What went wrong with the disk, if anything did.
    pub(super) why: Option<Why>,
}

#[derive(Debug)]
pub(super) enum Why {
    /// There is no usable disk. The sentence says why, for the person who asked.
    NoDisk(Rc<str>),
    Failed(FsError),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk(why) => f.write_str(why),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl Refusal {
    /// The same with one more field in its head.
    pub(super) fn with(self, name: &'static str, value: impl fmt::Display) -> Self {
        let mut text = Text::default();
        let _ = write!(text, "{value}");
        Self { field: Some((name, text)), ..self }
    }
}

/// As much as the client needs to know, as a sentence.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(Why::Failed(FsError::Corrupt(_))) => {
                f.write_str("The file system on the disk is damaged here.")
            }
            Some(
                why @ (Why::NoDisk(_)
                | Why::Failed(
                    FsError::Unsupported(_) | FsError::TooMuch | FsError::Io(BlockError::Gone),
                )),
            ) => why.fmt(f),
            _ => f.write_str(self.status.sentence()),
        }
    }
}

impl core::error::Error for Refusal {}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, field: None, why: None }
    }
}

impl From<&Rc<str>> for Refusal {
    fn from(why: &Rc<str>) -> Self {
        Self { status: Status::Unavailable, field: None, why: Some(Why::NoDisk(why.clone())) }
    }
}

impl From<FsError> for Refusal {
    fn from(error: FsError) -> Self {
        let status = match error {
            FsError::NotFound
            | FsError::NotADirectory
            | FsError::IsADirectory
            | FsError::NotAFile
            | FsError::TooManyLinks
            | FsError::NameTooLong => return Status::NotFound.into(),
            FsError::Unsupported(_)
            | FsError::NoMemory
            | FsError::TooMuch
            | FsError::Io(BlockError::Gone) => Status::Unavailable,
            FsError::NotExt4 | FsError::Foreign(_) | FsError::Corrupt(_) | FsError::Io(_) => {
                Status::InternalError
            }
        };
        Self { status, field: None, why: Some(Why::Failed(error)) }
    }
}

/// Why a request was not answered.
#[derive(Debug, Error)]
#[error(transparent)]
pub enum Failure {
    /// The client can be told.
    Refused(Refusal),
    /// It cannot.
    Broken(Broken),
}

impl<R: Into<Refusal>> From<R> for Failure {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<NoMemory> for Refusal {
    fn from(error: NoMemory) -> Self {
        FsError::from(error).into()
    }
}

impl From<PathError> for Refusal {
    fn from(error: PathError) -> Self {
        match error {
            PathError::Invalid => Status::BadRequest.into(),
            PathError::NoMemory => NoMemory.into(),
        }
    }
}
