//! The rings of a device, and the memory that it may use.

use core::cell::Cell;

use crate::queue::{DriverNotify, Position, Queue, RingMemory};
use ringfence_drivers::virtio::features;
use ringfence_memory::{DmaError, DmaSnapshot, DmaWindows};

/// The driver broke the rules of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The "interrupt": counts how often the driver was notified.
pub struct Interrupt<'a>(pub(super) &'a Cell<u64>);

impl DriverNotify for Interrupt<'_> {
    fn notify(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// The memory that the device may use at this moment.
pub struct View {
    /// What it may read.
    pub readable: DmaSnapshot,
    /// What it may write.
    pub writable: DmaSnapshot,
}

impl View {
    pub(super) fn new(windows: &DmaWindows) -> Result<Self, DmaError> {
        Ok(Self { readable: windows.readable()?, writable: windows.writable()? })
    }
}

/// A queue that the driver set up: where its rings are, and how far the device is.
pub(super) struct Ring {
    pub(super) size: u16,
    /// Of descriptors, driver area and device area.
    pub(super) addresses: [u64; 3],
    /// `None` before the first look.
    pub(super) position: Option<Position>,
    /// What the last notification said, with VIRTIO_F_NOTIFICATION_DATA.
    pub(super) notified: Option<u16>,
}

impl Ring {
    /// The queue in memory; `None` if the rings are not all in the windows.
    pub(super) fn open<'a, N: DriverNotify>(
        &self,
        view: &'a View,
        features: u64,
        notify: N,
    ) -> Option<Queue<'a, N>> {
        let packed = features & features::RING_PACKED != 0;
        let views = [&view.readable, &view.writable];
        let queue = RingMemory::find(views, packed, self.size, self.addresses)?.queue(notify)?;
        let queue = queue.with_features(features);
        match self.position {
            Some(position) => queue.resume(position),
            None => Some(queue),
        }
    }
}

/// The device's queues, for one look at them.
pub struct Queues<'a> {
    pub(super) view: View,
    pub(super) rings: &'a mut [Option<Ring>],
    pub(super) features: u64,
    pub(super) interrupts: &'a Cell<u64>,
}

impl Queues<'_> {
    /// Whether all of these feature bits were negotiated.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Lets `serve` take chains from queue `index` and return them, if the driver has set it up. The driver
    /// is notified once for all of them, if it wants that.
    ///
    /// # Errors
    /// [`Broken`] if the rings are no longer in the windows, or the driver broke their rules.
    pub fn serve(
        &mut self,
        index: u16,
        serve: impl FnOnce(&Queue<'_, Interrupt<'_>>, &View),
    ) -> Result<(), Broken> {
        let Some(Some(ring)) = self.rings.get_mut(usize::from(index)) else { return Ok(()) };
        let queue = ring.open(&self.view, self.features, Interrupt(self.interrupts)).ok_or(Broken)?;
        if let Some(position) = ring.notified.take() {
            queue.notified(position).map_err(|_| Broken)?;
        }
        queue.set_batching(true);
        serve(&queue, &self.view);
        queue.flush();
        ring.position = Some(queue.position());
        queue.error().map_or(Ok(()), |_| Err(Broken))
    }
}
