//! What the unikernel serves with: a TCP/IP stack, an HTTP/1.1 server and the status pages.
//!
//! Everything here is safe, `no_std` Rust that builds and is tested on the host. The kernel hands in a
//! network device, a disk and the counters; nothing in this crate touches hardware.
//!
//! ```text
//!            net::Nic (the virtio-net driver)                 block device (the virtio-blk driver)
//!               │                                                │
//!   net::Stack ─┤ run()     one task: smoltcp, DHCP, timers      fs: ext4, block cache, read-ahead
//!               │ accept()  many sockets, few listening          │
//!               ▼                                                ▼
//!        net::TcpSocket ──► http::Server::serve ──► http::Files (files, folder listings)
//!      (embedded_io_async)      │
//!                               └──────────────► api::System  (/metrics, /api/devices, /api/memory)
//! ```
//!
//! * [`net`]: the interface task, DHCP, the pool of TCP sockets.
//! * [`http`]: requests, responses, ranges, listings, time limits. Runs over any `Read + Write`.
//! * [`block`], [`fs`]: what a disk has to offer; read-only ext4 over it, with a page cache and read-ahead.
//! * [`api`]: the machine's own state as Prometheus text and JSON.
//!
//! Every task runs on one single-threaded executor; futures need not be `Send`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod block;
pub mod fs;
pub mod http;
pub mod net;
pub mod shared;
mod text;
pub mod wakers;
