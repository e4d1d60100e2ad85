//! One task of the pool that serves connections.

use embassy_time::{Duration, Instant, with_deadline};
use embedded_io_async::Read;

use super::{End, Files, Routes, Server};
use crate::net::{Nic, Stack, TcpSocket};

/// How long who has to have everything before the system ends may take: that the client closes is all that
/// says so, since what is between may acknowledge for it.
const LAST_TIME: Duration = Duration::from_secs(10);
/// The same for one that has asked for nothing.
const IDLE_TIME: Duration = Duration::from_secs(2);

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
            // The stack reads on for a while: that needs no task.
            (End::Close | End::Drain, false) => {}
            (End::Close, true) => await_end(&mut socket, IDLE_TIME).await,
            (End::Drain, true) => await_end(&mut socket, LAST_TIME).await,
            (End::Abort, _) => socket.abort(),
        }
    }
}

/// Ends our half, and waits for the end of the client's.
async fn await_end<N: Nic>(socket: &mut TcpSocket<'_, N>, time: Duration) {
    socket.close();
    let deadline = Instant::now().saturating_add(time);
    let mut scrap = [0; 256];
    while let Ok(Ok(1..)) = with_deadline(deadline, socket.read(&mut scrap)).await {}
}
