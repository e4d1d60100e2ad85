//! Virtio entropy devices (section 5.4): bytes that nobody can guess, if the host is honest.

#[cfg(feature = "rand_core")]
mod rand_core;

use core::time::Duration;

use ringfence_memory::{Direction, DmaBuf, DmaGrant, DmaPool, DmaWindows, Segment};

use crate::virtio::features::QUEUES;
use crate::virtio::{
    Buffers, Counters, Device, DeviceType, Error, LOOK_AGAIN, Offer, Queue, QueueOptions, Transport, sealed,
};

/// What the device is asked for at a time, in bytes. It may give less.
pub const MOST: usize = 64;

/// One queue (5.4.2) with one buffer in it.
const WISH: QueueOptions = QueueOptions { size: 2, chains: 1, segments: 1, longest: 1 };

/// The buffer to fill. Only a free slot has none.
#[derive(Default)]
struct ToFill(Option<DmaBuf>);

impl sealed::Sealed for ToFill {}

impl Buffers for ToFill {
    type Context = ();
    type Request = ();

    fn only<'a>(&'a self, (): (), (): &'a ()) -> Option<Segment<'a>> {
        self.0.as_ref()?.segment(0, MOST, true)
    }

    /// A device must give something (5.4.6.2).
    fn least_written(&self) -> u32 {
        1
    }

    fn abandon(self) {
        if let Some(buffer) = self.0 {
            buffer.abandon();
        }
    }
}

/// A virtio entropy device.
///
/// What it gives is as good as the host that gives it: mix it with what else there is. No byte is given
/// twice. Dropping it resets the device, as with [`Block`](crate::block::Block).
pub struct Rng<T: Transport> {
    // First, so that it is dropped first.
    device: Device<T>,
    queue: Queue<ToFill, T::Notifier>,
    /// All zeros, while the device does not have it.
    buffer: Option<DmaBuf>,
}

impl<T: Transport> Rng<T> {
    /// Brings the device up. Nothing is asked of it yet.
    ///
    /// # Errors
    /// Any; the device is left asked to reset and marked as failed; see [`Device`] for how long that may
    /// take.
    pub fn new(transport: T, grant: &DmaGrant, windows: DmaWindows) -> Result<Self, Error> {
        Self::take(Device::begin(transport, DeviceType::ENTROPY, grant, windows)?)
    }

    /// The same with a device that has been reset, as [`Device::begin_reset`] does without waiting.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn take(offer: Offer<T>) -> Result<Self, Error> {
        if offer.device_type() != DeviceType::ENTROPY {
            return Err(Error::WrongType);
        }
        let mut device = offer.negotiate(QUEUES)?;
        let mut queue = device.queue(0, &WISH, 1, |_| Ok(()))?;
        let buffer = DmaPool::new_for(device.windows(), 1, MOST, Direction::FromDevice)?.take();
        queue.start(&device.driver_ok()?);
        queue.disable_interrupts();
        Ok(Self { device, queue, buffer })
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// Number of descriptors of its queue.
    pub fn queue_size(&self) -> u16 {
        self.queue.size()
    }

    /// What its queue has done.
    pub fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// Asks for bytes, unless they were asked for before and not taken.
    ///
    /// # Errors
    /// [`Error::Queue`]: drop the driver.
    pub fn request(&mut self) -> Result<(), Error> {
        if let Some(buffer) = self.buffer.take()
            && let Err((error, ToFill(buffer))) = self.queue.submit(ToFill(Some(buffer)))
        {
            self.buffer = buffer;
            return Err(error.into());
        }
        self.queue.kick();
        Ok(())
    }

    /// Takes what the device has given since it was asked, at most [`MOST`] bytes, and says how many: 0 if it
    /// has not answered yet, or by a length that cannot be, which counts as rejected. What does not fit is
    /// lost.
    ///
    /// # Errors
    /// [`Error::Queue`]: drop the driver.
    pub fn poll(&mut self, to: &mut [u8]) -> Result<usize, Error> {
        let Some(completion) = self.queue.pop()? else { return Ok(0) };
        let ToFill(Some(buffer)) = completion.buffers else { return Ok(0) };
        let written = completion.written.map_or(0, |written| written as usize);
        let len = written.min(to.len());
        let read = to.get_mut(..len).map(|to| buffer.read_slice(to, 0));
        // So that a device that says it wrote, and did not, cannot have the same bytes given twice.
        let cleared = buffer.as_volatile_slice().fill(0);
        self.buffer = Some(buffer);
        Ok(if matches!(read, Some(Ok(()))) && cleared.is_ok() { len } else { 0 })
    }

    /// Fills all of `to`, and waits for the device in place, up to `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`], or any other: then drop the driver. What `to` holds is unspecified.
    pub fn fill(&mut self, to: &mut [u8], limit: Duration) -> Result<(), Error> {
        let windows = self.device.windows().clone();
        let (start, mut filled) = (windows.now(), 0_usize);
        let filled = windows.wait(limit, || {
            let Some(rest @ [_, ..]) = to.get_mut(filled..) else { return Some(Ok(())) };
            if windows.now().saturating_sub(start) > LOOK_AGAIN {
                self.queue.kick_again();
            }
            match self.request().and_then(|()| self.poll(rest)) {
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) => return Some(Err(error)),
            }
            (filled >= to.len()).then_some(Ok(()))
        });
        filled.unwrap_or_else(|| Err(self.device.check().err().unwrap_or(Error::Timeout)))
    }
}

impl<T: Transport> Drop for Rng<T> {
    fn drop(&mut self) {
        if let Ok(quiet) = self.device.shut_down_at_last() {
            self.queue.reclaim(&quiet).for_each(drop);
        }
    }
}
