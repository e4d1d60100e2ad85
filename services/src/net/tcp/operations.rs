//! What tasks do with connections.

use core::net::IpAddr;
use core::task::{Context, Poll};

use super::connection::{Connection, Owner};
use super::{Micros, Tcp, TcpError};
use crate::shared::Shared;
use crate::text::NoMemory;

/// A connection may always send so many bytes, however much memory the others hold.
const ALWAYS: usize = 4 << 10;

impl Tcp {
    /// Hands out a connection that has something to read.
    pub(in crate::net) fn accept(&mut self, cx: &Context<'_>) -> Poll<u32> {
        while let Some(id) = self.arrived.pop_front() {
            if let Some(connection) = self.get(id) {
                connection.owner = Owner::Task;
                return Poll::Ready(id);
            }
        }
        self.accepting.add(cx.waker());
        Poll::Pending
    }

    /// The peer's address.
    pub(in crate::net) fn peer(&mut self, id: u32) -> Option<IpAddr> {
        self.get(id).map(|connection| connection.flow.remote)
    }

    /// Waits for a connection that no task waits for.
    pub(in crate::net) fn poll_unserved(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.arrived.is_empty() && self.accepting.is_empty() {
            return Poll::Ready(());
        }
        self.unserved.add(cx.waker());
        Poll::Pending
    }

    /// See [`Read`](embedded_io_async::Read).
    pub(in crate::net) fn read(
        &mut self,
        id: u32,
        to: &mut [u8],
        cx: &Context<'_>,
        now: Micros,
    ) -> Poll<Result<usize, TcpError>> {
        let result = self.get(id).map_or(Poll::Ready(Err(TcpError)), |connection| connection.read(to, cx));
        if result.is_ready() {
            self.settle(id, now);
        }
        result
    }

    /// See [`Write`](embedded_io_async::Write).
    pub(in crate::net) fn write(
        &mut self,
        id: u32,
        bytes: &[u8],
        cx: &Context<'_>,
        now: Micros,
    ) -> Poll<Result<usize, TcpError>> {
        self.append(id, cx, now, |connection, most| {
            let count = bytes.len().min(most);
            connection.write(bytes.get(..count).unwrap_or_default()).map(|()| count)
        })
    }

    /// Appends bytes that others hold as well: all of them.
    pub(in crate::net) fn share(
        &mut self,
        id: u32,
        bytes: &Shared,
        cx: &Context<'_>,
        now: Micros,
    ) -> Poll<Result<usize, TcpError>> {
        self.append(id, cx, now, |connection, _| {
            connection.share(bytes.clone()).map(|()| bytes.bytes().len())
        })
    }

    fn append(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        now: Micros,
        append: impl FnOnce(&mut Connection, usize) -> Result<usize, NoMemory>,
    ) -> Poll<Result<usize, TcpError>> {
        let most = if self.held < self.config.memory { self.config.window } else { ALWAYS };
        let Some(connection) = self.get(id) else { return Poll::Ready(Err(TcpError)) };
        match connection.poll_room(most, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        let result = append(connection, most.max(ALWAYS)).map_err(|NoMemory| TcpError);
        self.settle(id, now);
        Poll::Ready(result)
    }

    /// Waits until the peer has all that was written.
    pub(in crate::net) fn flush(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<(), TcpError>> {
        self.get(id).map_or(Poll::Ready(Err(TcpError)), |connection| connection.poll_flush(cx))
    }

    /// Ends our half.
    pub(in crate::net) fn close(&mut self, id: u32, now: Micros) {
        if let Some(connection) = self.get(id) {
            connection.close();
        }
        self.settle(id, now);
    }

    /// Resets a connection.
    pub(in crate::net) fn abort(&mut self, id: u32, now: Micros) {
        if let Some(connection) = self.get(id) {
            connection.end(false);
        }
        self.settle(id, now);
    }

    /// A task is done with a connection.
    pub(in crate::net) fn let_go(&mut self, id: u32, now: Micros) {
        if let Some(connection) = self.get(id) {
            connection.let_go(now);
        }
        self.settle(id, now);
    }
}
