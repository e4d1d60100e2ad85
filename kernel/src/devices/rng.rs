//! Virtio entropy devices: bits for the network stack that nobody on the network can guess.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::time::Duration;

use ringfence_drivers::rng::Rng;
use ringfence_drivers::virtio::{Counters, DeviceType, Error};
use ringfence_memory::DmaWindows;

use crate::devices::bus::BusTransport;
use crate::devices::{Driver, Home, InUse, Started};
use crate::executor::Task;
use crate::interrupts::device::{DeviceInterrupts, InterruptStats};
use crate::platform::KERNEL;

/// How long the start of the system waits for bits.
const LIMIT: Duration = Duration::from_millis(100);

/// A source of entropy.
pub struct Entropy {
    // First, so that the device is reset before its vectors are free. `None` when it was given up.
    rng: RefCell<Option<Rng<BusTransport>>>,
    /// They are never asked for.
    _interrupts: DeviceInterrupts,
}

impl Entropy {
    /// 64 bits of the device.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it does not give so much within 100 ms, or any: it is of no use.
    pub fn bits(&self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.rng.borrow_mut().as_mut().ok_or(Error::Gone)?.fill(&mut bytes, LIMIT)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The driver of entropy devices.
pub struct Rngs;

impl Driver for Rngs {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn kind(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        &[]
    }

    fn most(&self) -> usize {
        1
    }

    fn start(&self, home: &Home, started: &mut Started) -> Result<(InterruptStats, Box<dyn InUse>), Error> {
        let windows = DmaWindows::new(&KERNEL, home.id())?;
        let (mut rng, interrupts) = home.bring_up(&windows, 1, Rng::new)?;
        // It answers while the others are brought up.
        rng.request()?;
        let stats = interrupts.stats();
        let entropy = Rc::new(Entropy { rng: RefCell::new(Some(rng)), _interrupts: interrupts });
        started.entropy = Some(entropy.clone());
        Ok((stats, Box::new(entropy)))
    }
}

impl InUse for Rc<Entropy> {
    fn features(&self) -> u64 {
        self.rng.borrow().as_ref().map_or(0, Rng::features)
    }

    fn queues(&self) -> Vec<(u16, Counters)> {
        self.rng.borrow().iter().map(|rng| (rng.queue_size(), rng.counters())).collect()
    }

    fn leave(&self) -> Task {
        // Dropped, it resets the device.
        drop(self.rng.take());
        Box::pin(async {})
    }
}
