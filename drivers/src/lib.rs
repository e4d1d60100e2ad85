//! Virtio drivers over virtio-pci, without a line of `unsafe`.
//!
//! ```text
//! pci::enumerate ─► Function ─► PciTransport ─┐ (or another Transport)
//!                                             ├─► Device: status sequence, features, reset ─► Block, Net
//! DmaGrant, DmaWindows (from the kernel) ─────┘                                             │
//!                                                   DmaBuf, by value ─► Queue ─► device ─► Completion
//! ```
//!
//! A driver owns its rings; buffers enter a queue by value and come back by value. What the device says is
//! copied once, checked, and answered with a typed error if wrong: no value that it returns leads to a panic,
//! an endless loop or an access out of bounds. Section numbers are those of the virtio 1.4 specification.
//!
//! What a kernel does for each function that [`pci::enumerate`] finds, and to read a block:
//! ```no_run
//! # use ringfence_drivers::{block::{Block, Request}, pci::Function, virtio::{Error, PciTransport}};
//! # use ringfence_memory::{DmaGrant, DmaPool, DmaWindows, Platform};
//! # fn start(platform: &'static dyn Platform, function: &Function) -> Result<(), Error> {
//! let windows = DmaWindows::new(platform, function.address().id())?; // nobody else has them now
//! // SAFETY: there is no IOMMU; this is the promise that the device accesses only what it was told.
//! let grant = unsafe { DmaGrant::without_iommu(function.address().id()) };
//! let transport = PciTransport::new(platform, function)?;
//! let mut disk = Block::new(transport, &grant, windows.clone())?;
//!
//! let buffers = DmaPool::new(&windows, 32, 4096)?;
//! let buffer = buffers.take().ok_or(Error::Busy)?;
//! disk.queue.submit(Request::Read { sector: 0, buffer, len: 4096 })?; // the device has the buffer now
//! disk.queue.kick();
//! disk.queue.reap(|done| drop(done.buffer))?; // and whoever gets it now has it again
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here sleeps or spawns: [`BlockQueue::reap`](block::BlockQueue::reap) and
//! [`NetPair::receive`](net::NetPair::receive) are called by the kernel's tasks, after an interrupt or while
//! polling.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(feature = "blk", feature = "net", feature = "packed", feature = "in-order")),
    allow(dead_code, unused_imports, reason = "the rest has what these need"),
    allow(rustdoc::broken_intra_doc_links, reason = "the documentation links to the rest")
)]
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

#[cfg(feature = "blk")]
pub mod block;
mod names;
#[cfg(feature = "net")]
pub mod net;
pub mod pci;
pub mod probe;
#[cfg(feature = "rng")]
pub mod rng;
pub mod virtio;
