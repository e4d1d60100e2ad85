//! A safe transport that may lie about resets and queues.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence_drivers::virtio::{
    ConfigField, DeviceType, Error, PciNotifier, PciTransport, QueueSetup, Transport, status,
};
use ringfence_memory::{DmaGrant, DmaWindows, Quiet, ResetError};

use crate::world::{Proof, Slots};

/// What it does instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// It hands out a proof of somebody else's, or an old one, without a reset.
    OldProof,
    /// It says that there was no reset when there was one.
    NoProof,
    /// It sets queues up, and says that it did not.
    NoQueue,
    /// It says that the device is in order when it is not.
    Status,
}

/// A PCI transport, which the devices of several lives may share, and a lie.
#[derive(Debug)]
pub struct Liar {
    inner: Rc<RefCell<PciTransport>>,
    lie: Lie,
    proofs: Proofs,
}

/// Where the proofs are.
#[derive(Clone)]
pub struct Proofs(pub Arc<Mutex<Slots<Proof>>>);

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofs")
    }
}

impl Liar {
    /// A transport that tells this lie.
    pub fn new(inner: Rc<RefCell<PciTransport>>, lie: Lie, proofs: Proofs) -> Self {
        Self { inner, lie, proofs }
    }
}

impl Transport for Liar {
    type Notifier = PciNotifier;

    fn device_type(&self) -> DeviceType {
        self.inner.borrow().device_type()
    }

    fn status(&self) -> u8 {
        match self.lie {
            Lie::Status => self.inner.borrow().status() | 0x0f & !status::NEEDS_RESET,
            _ => self.inner.borrow().status(),
        }
    }

    fn set_status(&mut self, status: u8) {
        self.inner.borrow_mut().set_status(status);
    }

    fn reset(&mut self, windows: &DmaWindows, limit: Duration) -> Result<Quiet, ResetError> {
        match self.lie {
            Lie::OldProof => {
                let proof = self.proofs.0.lock().unwrap_or_else(PoisonError::into_inner).0.pop();
                proof.map(|proof| proof.quiet).ok_or(ResetError::Timeout)
            }
            Lie::NoProof => self.inner.borrow_mut().reset(windows, limit).and(Err(ResetError::Timeout)),
            _ => self.inner.borrow_mut().reset(windows, limit),
        }
    }

    fn start(&mut self, grant: &DmaGrant) -> Result<(), Error> {
        self.inner.borrow_mut().start(grant)
    }

    fn stop(&mut self) {
        self.inner.borrow_mut().stop();
    }

    fn device_features(&mut self) -> u64 {
        self.inner.borrow_mut().device_features()
    }

    fn set_driver_features(&mut self, features: u64) {
        self.inner.borrow_mut().set_driver_features(features);
    }

    fn config_generation(&self) -> u32 {
        self.inner.borrow().config_generation()
    }

    fn read_config<V: ConfigField>(&self, offset: usize) -> Result<V, Error> {
        self.inner.borrow().read_config(offset)
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.inner.borrow_mut().queue_max_size(index)
    }

    fn set_up_queue(&mut self, windows: &DmaWindows, queue: &QueueSetup<'_>) -> Result<PciNotifier, Error> {
        let notifier = self.inner.borrow_mut().set_up_queue(windows, queue)?;
        if self.lie == Lie::NoQueue { Err(Error::QueueRefused(queue.index)) } else { Ok(notifier) }
    }

    fn begin_reset_queue(&mut self, index: u16) -> Result<(), Error> {
        self.inner.borrow_mut().begin_reset_queue(index)
    }

    fn poll_reset_queue(&mut self, index: u16) -> Result<bool, Error> {
        self.inner.borrow_mut().poll_reset_queue(index)
    }
}
