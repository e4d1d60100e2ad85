//! One task of the pool that serves connections.

use embassy_time::{Duration, Instant, with_deadline};
use embedded_io_async::Read;

use super::{End, Files, Routes, Server};
use crate::net::{Nic, Stack, TcpSocket};

/// How long and how much a client may go on sending after the last response.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 256 << 10;
/// The same time for who has to have everything before the system ends: that the client closes is all that
/// says so, since what is between may acknowledge for it.
const LAST_DRAIN_TIME: Duration = Duration::from_secs(10);

/// Serves one connection after the other, for ever. Spawn as many of these as connections are to be served at
/// once.
pub async fn worker<N: Nic, F: Files, R: Routes>(stack: &Stack<N>, server: &Server<F, R>) -> ! {
    loop {
        let mut socket = stack.accept().await;
        if server.is_stopping() {
            socket.abort();
            continue;
        }
        let _open = server.open.enter();
        let peer = socket.peer();
        let crowded = || stack.crowded() || server.is_stopping();
        let end = server.serve_peer(&mut socket, peer, crowded).await;
        match (end, server.is_stopping()) {
            (End::Close, false) => {}
            (End::Close, true) | (End::Drain, false) => drain(&mut socket, DRAIN_TIME).await,
            (End::Drain, true) => drain(&mut socket, LAST_DRAIN_TIME).await,
            (End::Abort, _) => socket.abort(),
        }
    }
}

async fn drain<N: Nic>(socket: &mut TcpSocket<'_, N>, time: Duration) {
    socket.close();
    let deadline = Instant::now().saturating_add(time);
    let mut scrap = [0; 256];
    let mut left = DRAIN_BYTES;
    while left > 0 {
        match with_deadline(deadline, socket.read(&mut scrap)).await {
            Ok(Ok(n)) if n > 0 => left = left.saturating_sub(n),
            _ => return,
        }
    }
}
