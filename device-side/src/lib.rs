//! The device's side of a virtqueue, for device models: what the driver published is taken, translated and
//! given back.
//!
//! ```text
//! ring:  Driver, Device   one split ring's memory     packed: PackedRing   one packed ring's memory
//!              └───────────────┬──────────────────────────┘
//! queue:    Queue ─► DescChain          a chain that the driver made available; returned once, also by Drop
//! chain:    ReadableChain ─► WritableChain   its buffers, each translated when it is reached
//! ```
//!
//! The names are those of Fuchsia's `virtio_device`. The user supplies the ranges of the rings (or
//! their addresses, by which [`RingMemory`](queue::RingMemory) finds them), a
//! [`DriverMem`](ringfence_memory::fuchsia::DriverMem) for each direction (`readable()` and `writable()` of
//! [`DmaWindows`](ringfence_memory::DmaWindows)), and a [`DriverNotify`](queue::DriverNotify); the transport
//! calls the device when the driver notifies it.
//!
//! The driver is not trusted, and may change the rings while they are read. The descriptors of a chain are
//! copied once, in a walk that is bounded by the queue size, and only the copy is looked at. An error is
//! reported once; after it there is nothing more to be had from the chain or queue.
//!
//! [`loopback`] has whole devices made of it.
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

pub mod chain;
mod error;
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the driver is in the same program, and each length was compared with the memory's before"
)]
pub mod loopback;
mod memory;
mod order;
mod packed;
mod position;
pub mod queue;
pub mod ring;
mod rings;
mod taken;
