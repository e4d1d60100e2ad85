//! One TCP connection as `embedded_io_async` streams.

use core::future::poll_fn;
use core::net::IpAddr;
use core::task::{Context, Poll};

use embedded_io_async::{Error, ErrorKind, ErrorType, Read, Write};

use super::tcp::{Micros, Tcp, TcpError};
use super::{Nic, Stack, micros, now};
use crate::shared::Shared;

impl Error for TcpError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ConnectionReset
    }
}

/// A connection from [`Stack::accept`].
///
/// Dropping it closes it in good order: what was written is still sent, then FIN. `read` and `write` may be
/// cancelled without losing data.
pub struct TcpSocket<'a, N: Nic> {
    stack: &'a Stack<N>,
    id: u32,
}

impl<'a, N: Nic> TcpSocket<'a, N> {
    pub(super) fn new(stack: &'a Stack<N>, id: u32) -> Self {
        Self { stack, id }
    }

    /// Runs `f` on the connections, then lets the stack act on what changed.
    fn with<R>(&self, f: impl FnOnce(&mut Tcp, u32, Micros) -> R) -> R {
        let mut inner = self.stack.inner.borrow_mut();
        let result = f(&mut inner.tcp, self.id, micros(now()));
        inner.wake_runner();
        result
    }

    /// The same, for what may have to wait; the stack is told if it does not.
    async fn poll<R>(&self, mut f: impl FnMut(&mut Tcp, u32, &Context<'_>, Micros) -> Poll<R>) -> R {
        poll_fn(|cx| {
            let mut inner = self.stack.inner.borrow_mut();
            let result = f(&mut inner.tcp, self.id, cx, micros(now()));
            if result.is_ready() {
                inner.wake_runner();
            }
            result
        })
        .await
    }

    /// The address of the peer.
    pub fn peer(&self) -> Option<IpAddr> {
        self.stack.inner.borrow_mut().tcp.peer(self.id)
    }

    /// Ends our half: FIN after what was written. Reading goes on.
    pub fn close(&mut self) {
        self.with(Tcp::close);
    }

    /// Resets the connection; unsent data is lost.
    pub fn abort(self) {
        self.with(Tcp::abort);
    }

    /// Writes bytes that others hold as well, without a copy: all of them. Waits as `write` does.
    ///
    /// # Errors
    /// As `write`.
    pub async fn share(&mut self, bytes: &Shared) -> Result<(), TcpError> {
        let count = self.poll(|tcp, id, cx, now| tcp.share(id, bytes, cx, now)).await?;
        self.stack.count(|s| s.sent = s.sent.saturating_add(count as u64));
        Ok(())
    }
}

impl<N: Nic> Drop for TcpSocket<'_, N> {
    fn drop(&mut self) {
        self.with(Tcp::let_go);
    }
}

impl<N: Nic> ErrorType for TcpSocket<'_, N> {
    type Error = TcpError;
}

impl<N: Nic> Read for TcpSocket<'_, N> {
    /// Returns 0 when the peer has finished sending (or for an empty `buf`).
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, TcpError> {
        let count = self.poll(|tcp, id, cx, now| tcp.read(id, buf, cx, now)).await?;
        self.stack.count(|s| s.received = s.received.saturating_add(count as u64));
        Ok(count)
    }
}

impl<N: Nic> Write for TcpSocket<'_, N> {
    /// Copies into the transmit queue; waits only while that is full.
    async fn write(&mut self, buf: &[u8]) -> Result<usize, TcpError> {
        let count = self.poll(|tcp, id, cx, now| tcp.write(id, buf, cx, now)).await?;
        self.stack.count(|s| s.sent = s.sent.saturating_add(count as u64));
        Ok(count)
    }

    /// Waits until the peer has acknowledged everything written.
    async fn flush(&mut self) -> Result<(), TcpError> {
        self.poll(|tcp, id, cx, _| tcp.flush(id, cx)).await
    }
}
