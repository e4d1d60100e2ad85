//! What a client is connected by.

use embedded_io_async::{ErrorType, Read, Write};

use crate::net::{Nic, TcpSocket};
use crate::shared::Shared;

/// A connection that can send bytes from where they are.
#[allow(async_fn_in_trait, reason = "one single-threaded executor: futures need not be Send")]
pub trait Connection: Read + Write {
    /// Sends all of `bytes`, or nothing: then it waits, and may be cancelled.
    async fn share(&mut self, bytes: &Shared) -> Result<(), Self::Error>;
}

impl<N: Nic> Connection for TcpSocket<'_, N> {
    async fn share(&mut self, bytes: &Shared) -> Result<(), Self::Error> {
        Self::share(self, bytes).await
    }
}

/// Any stream, into which bytes are copied.
pub struct Copied<C>(pub C);

impl<C: ErrorType> ErrorType for Copied<C> {
    type Error = C::Error;
}

impl<C: Read> Read for Copied<C> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, C::Error> {
        self.0.read(buf).await
    }
}

impl<C: Write> Write for Copied<C> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, C::Error> {
        self.0.write(buf).await
    }

    async fn flush(&mut self) -> Result<(), C::Error> {
        self.0.flush().await
    }
}

impl<C: Read + Write> Connection for Copied<C> {
    async fn share(&mut self, bytes: &Shared) -> Result<(), C::Error> {
        self.0.write_all(bytes.bytes()).await
    }
}
