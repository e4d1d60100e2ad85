//! The server on a real TCP socket of the host.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use async_io::Async;
use embedded_io_adapters::futures_03::FromFutures;
use futures::AsyncReadExt;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use ringfence_services::api::Api;
use ringfence_services::http::{End, Limits, Server};

use super::{Machine, Tree, mounted};

/// Starts a server on a free port, on a thread that lives as long as the test process.
pub fn start(tree: Tree) -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        sender.send(listener.get_ref().local_addr().unwrap()).unwrap();
        let server = Server::new(mounted(tree), Api(Machine::default()), Limits::default());
        let server: &'static _ = Box::leak(Box::new(server.with_clock(now)));
        let mut executor = LocalPool::new();
        let spawner = executor.spawner();
        executor.run_until(async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                spawner.spawn_local(serve(server, stream)).unwrap();
            }
        });
    });
    receiver.recv().unwrap()
}

fn now() -> Option<u64> {
    std::time::UNIX_EPOCH.elapsed().ok().map(|passed| passed.as_secs())
}

async fn serve(server: &'static Server<Tree, Api<Machine>>, stream: Async<TcpStream>) {
    let mut conn = FromFutures::new(stream);
    let end = server.serve(&mut conn, || false).await;
    let mut stream = conn.into_inner();
    if end == End::Drain {
        let _ = stream.get_ref().shutdown(std::net::Shutdown::Write);
        let _ = embassy_time::with_timeout(embassy_time::Duration::from_secs(1), async {
            let mut scrap = [0; 4096];
            while matches!(stream.read(&mut scrap).await, Ok(1..)) {}
        })
        .await;
    }
}
