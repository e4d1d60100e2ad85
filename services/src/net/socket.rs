//! One TCP connection as `embedded_io_async` streams.

use core::future::poll_fn;
use core::task::Poll;

use embedded_io_async::{Error, ErrorKind, ErrorType, Read, Write};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};

use super::{Nic, Stack};

/// The connection is gone: reset by either side, or the peer stopped answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection was reset or the peer stopped answering")]
pub struct TcpError;

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
    handle: SocketHandle,
}

impl<'a, N: Nic> TcpSocket<'a, N> {
    pub(super) fn new(stack: &'a Stack<N>, handle: SocketHandle) -> Self {
        Self { stack, handle }
    }

    /// Runs `f` on the socket, then lets the stack act on what changed.
    fn with<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        let mut inner = self.stack.inner.borrow_mut();
        let result = f(inner.sockets.get_mut(self.handle));
        inner.wake_runner();
        result
    }

    /// Ends our half: FIN after what was written. Reading goes on.
    pub fn close(&mut self) {
        self.with(Socket::close);
    }

    /// Resets the connection; unsent data is lost.
    pub fn abort(self) {
        self.with(Socket::abort);
    }
}

impl<N: Nic> Drop for TcpSocket<'_, N> {
    fn drop(&mut self) {
        let mut inner = self.stack.inner.borrow_mut();
        let inner = &mut *inner;
        inner.pool.linger(&mut inner.sockets, self.handle);
        inner.wake_runner();
    }
}

impl<N: Nic> ErrorType for TcpSocket<'_, N> {
    type Error = TcpError;
}

impl<N: Nic> Read for TcpSocket<'_, N> {
    /// Returns 0 when the peer has finished sending (or for an empty `buf`).
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, TcpError> {
        poll_fn(|cx| {
            let mut inner = self.stack.inner.borrow_mut();
            let socket = inner.sockets.get_mut::<Socket>(self.handle);
            match socket.recv_slice(buf) {
                Ok(0) if !buf.is_empty() => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
                Ok(n) => {
                    inner.wake_runner();
                    self.stack.count(|s| s.received = s.received.saturating_add(n as u64));
                    Poll::Ready(Ok(n))
                }
                Err(RecvError::Finished) => Poll::Ready(Ok(0)),
                Err(RecvError::InvalidState) => Poll::Ready(Err(TcpError)),
            }
        })
        .await
    }
}

impl<N: Nic> Write for TcpSocket<'_, N> {
    /// Copies into the transmit buffer; waits only while that is full.
    async fn write(&mut self, buf: &[u8]) -> Result<usize, TcpError> {
        poll_fn(|cx| {
            let mut inner = self.stack.inner.borrow_mut();
            let socket = inner.sockets.get_mut::<Socket>(self.handle);
            match socket.send_slice(buf) {
                Ok(0) if !buf.is_empty() => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                Ok(n) => {
                    inner.wake_runner();
                    self.stack.count(|s| s.sent = s.sent.saturating_add(n as u64));
                    Poll::Ready(Ok(n))
                }
                Err(_) => Poll::Ready(Err(TcpError)),
            }
        })
        .await
    }

    /// Waits until the peer has acknowledged everything written.
    async fn flush(&mut self) -> Result<(), TcpError> {
        poll_fn(|cx| {
            let mut inner = self.stack.inner.borrow_mut();
            let socket = inner.sockets.get_mut::<Socket>(self.handle);
            match (socket.state(), socket.send_queue()) {
                (State::Closed, queued) if queued > 0 => Poll::Ready(Err(TcpError)),
                (_, 0) => Poll::Ready(Ok(())),
                _ => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }
}
