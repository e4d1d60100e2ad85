//! The packed ring with the two ends of `hyperlight-common`: its producer in front of our device side, and
//! its consumer behind our driver side, and behind the fake driver that our own tests of the device side use.
#![cfg(not(ringfence_loom))]

#[path = "../common/mod.rs"]
mod common;
mod consumer;
mod driver;
mod producer;

use std::num::NonZeroU16;

use hyperlight_common::virtq::{Layout, MemOps, RingError};
use proptest::prelude::*;
use ringfence_drivers::virtio::features::EVENT_IDX;
use ringfence_memory::VolatileError;

const SLOT: usize = 64;

/// Shared memory, by device address.
trait Shared {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError>;
    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError>;
    fn load(&self, address: u64) -> Result<u16, VolatileError>;
    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError>;
}

struct Memory<S>(S);

// SAFETY: `Shared` refuses what is not in it, and gives out no slices.
unsafe impl<S: Shared> MemOps for Memory<S> {
    type Error = VolatileError;

    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        self.0.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        self.0.write(address, from)
    }

    fn load_acquire(&self, address: u64) -> Result<u16, VolatileError> {
        self.0.load(address)
    }

    fn store_release(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.0.store(address, value)
    }

    unsafe fn as_slice(&self, _: u64, _: usize) -> Result<&[u8], VolatileError> {
        Err(VolatileError::NotPermitted)
    }

    unsafe fn as_mut_slice(&self, _: u64, _: usize) -> Result<&mut [u8], VolatileError> {
        Err(VolatileError::NotPermitted)
    }
}

/// `None` if there is nothing now.
fn polled<T>(result: Result<T, RingError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(RingError::WouldBlock) => None,
        Err(error) => panic!("{error}"),
    }
}

fn layout(base: u64, size: u16) -> Layout {
    // SAFETY: the memory behind it checks every access.
    unsafe { Layout::from_base(base, NonZeroU16::new(size).unwrap()) }.unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of the readable and the writable parts.
    Submit(Vec<usize>, Vec<usize>),
    Take,
    /// The device returns one of the chains that it holds, with a part of what it may write.
    Return(usize, usize),
    Reap,
    /// The driver asks for an interrupt for every chain, for none, or for the next one.
    Interrupts(Interrupts),
    /// The device is busy, or sleeps.
    Notifications(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Interrupts {
    All,
    None,
    Next,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = || prop::collection::vec(1..=SLOT, 0..4);
    let interrupts = prop::sample::select(&[Interrupts::All, Interrupts::None, Interrupts::Next][..]);
    let step = prop_oneof![
        6 => (lens(), lens()).prop_map(|(readable, writable)| Step::Submit(readable, writable)),
        6 => Just(Step::Take),
        6 => (0..1000_usize, 0..1000_usize).prop_map(|(which, len)| Step::Return(which, len)),
        4 => Just(Step::Reap),
        1 => interrupts.prop_map(Step::Interrupts),
        1 => any::<bool>().prop_map(Step::Notifications),
    ];
    prop::collection::vec(step, 1..300)
}

fn sizes() -> impl Strategy<Value = u16> {
    (0_u32..7).prop_map(|shift| 1 << shift)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn our_device_behind_their_producer(
        size in sizes(),
        features in prop::sample::select(&[0, EVENT_IDX][..]),
        steps in steps(),
    ) {
        producer::behind_a_producer(size, features, steps);
    }

    #[test]
    fn our_driver_before_their_consumer(
        size in sizes(),
        features in prop::sample::select(&[0, EVENT_IDX][..]),
        steps in steps(),
    ) {
        driver::before_a_consumer(size, features, steps);
    }

    #[test]
    fn our_fake_driver_before_their_consumer(size in sizes(), steps in steps()) {
        consumer::before_a_consumer(size, steps);
    }
}
