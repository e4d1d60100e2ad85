//! What tests share: a machine for `memory`, registers and a configuration space for what touches them, and
//! the other side of drivers and of device models.
#![allow(missing_docs, reason = "tests only")]

pub mod bench;
pub mod card;
pub mod config;
pub mod disk;
mod fake;
pub mod fake_queue;
pub mod heap;
mod host_does;
pub mod machine;
pub mod pci;
pub mod registers;
#[cfg(not(ringfence_loom))]
pub mod rig;
pub mod ring;
#[cfg(ringfence_loom)]
pub mod shadow;
pub mod tasks;

pub use fake::*;
pub use ring::{Chain, DeviceRing, EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET, Segment};
