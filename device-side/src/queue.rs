//! A virtqueue from which a device takes chains of descriptors and to which it returns them.

use core::sync::atomic::Ordering;

use ringfence_memory::fence;
use spin::Mutex;

pub use super::error::{DescError, QueueError};
pub use super::memory::{PackedMemory, QueueMemory, RingMemory};
use super::order::{InOrder, Returned};
use super::packed::Packed;
pub use super::position::Position;
pub use super::ring::DescType;
use super::ring::{Desc, Device, Driver};
use super::rings::Rings;
use super::taken::Taken;
use ringfence_drivers::virtio::features;

/// How the driver learns that chains were returned: an interrupt, or whatever the transport has.
pub trait DriverNotify {
    /// Notifies the driver. The queue is not locked.
    fn notify(&self);
}

impl<F: Fn()> DriverNotify for F {
    fn notify(&self) {
        self()
    }
}

struct State<'a> {
    rings: Rings<'a>,
    position: Position,
    error: Option<QueueError>,
    event_idx: bool,
    /// With VIRTIO_F_IN_ORDER.
    in_order: Option<InOrder>,
    /// Notifications of the driver wait for `flush`.
    batching: bool,
    /// The driver need not notify.
    polling: bool,
}

impl State<'_> {
    fn take(&mut self) -> Result<Option<Taken>, QueueError> {
        if self.error.is_some() {
            return Ok(None);
        }
        let mut taken = self.look();
        if self.event_idx && !self.polling && matches!(taken, Ok(None)) {
            self.rings.set_avail_event(self.position.next);
            // The driver either sees the event, or this second look sees its chain.
            fence(Ordering::SeqCst);
            taken = self.look();
        }
        match &taken {
            Ok(Some(taken)) => {
                self.position.next = self.rings.advance(self.position.next, taken.count);
                // Before the index comes round to it again.
                let split = matches!(self.rings, Rings::Split(..));
                if split && self.polling && self.event_idx && self.position.next.is_multiple_of(1 << 14) {
                    self.pass_event();
                }
            }
            Ok(None) => (),
            Err(error) => self.error = Some(*error),
        }
        taken
    }

    /// Says in a split ring that the driver need not notify: the event lies behind.
    fn pass_event(&mut self) {
        self.rings.set_avail_event(self.position.next.wrapping_sub(1));
    }

    fn look(&self) -> Result<Option<Taken>, QueueError> {
        self.rings.take(self.position.next, self.position.used)
    }

    /// Returns a chain, and says whether to notify the driver.
    fn put(&mut self, turn: u16, chain: Returned) -> bool {
        match &mut self.in_order {
            Some(order) => {
                order.put(turn, chain);
                if self.batching {
                    return false;
                }
                self.publish();
            }
            None => self.show(&chain),
        }
        // Beyond one round of the ring the positions would not tell any more what is between them.
        let unsignalled = self.rings.distance(self.position.signalled, self.position.used);
        (!self.batching || unsignalled >= self.rings.size()) && self.needs_notification()
    }

    /// Shows the driver what was returned and is next in order.
    fn publish(&mut self) {
        while let Some(batch) = self.in_order.as_mut().and_then(InOrder::next_batch) {
            self.show(&batch);
        }
    }

    fn show(&mut self, batch: &Returned) {
        self.rings.put(self.position.used, batch);
        self.position.used = self.rings.advance(self.position.used, batch.count);
    }

    fn needs_notification(&mut self) -> bool {
        let Position { used, signalled, .. } = self.position;
        if used == signalled {
            return false;
        }
        self.position.signalled = used;
        // The driver either sees what was used, or we see that it wants to be told (2.7.7, 2.8.10).
        fence(Ordering::SeqCst);
        self.rings.needs_notification(self.event_idx, signalled, used)
    }
}

/// A virtqueue, split or packed, as the device uses it.
///
/// It can be put together for a single look at the rings: [`position`](Self::position) and
/// [`resume`](Self::resume) carry over what has to be remembered. Chains borrow the queue.
pub struct Queue<'a, N: DriverNotify> {
    state: Mutex<State<'a>>,
    notify: N,
    indirect: bool,
    packed: bool,
}

impl<'a, N: DriverNotify> Queue<'a, N> {
    /// A split virtqueue at its start, without optional features. `None` if the ranges do not fit each other,
    /// or as in [`Driver::new`] and [`Device::new`].
    pub fn new(memory: QueueMemory<'a>, notify: N) -> Option<Self> {
        let QueueMemory { desc, avail, used } = memory;
        Self::new_from_rings(Driver::new(desc, avail)?, Device::new(used)?, notify)
    }

    /// As [`new`](Self::new); `None` if the rings are not of the same size.
    pub fn new_from_rings(driver: Driver<'a>, device: Device<'a>, notify: N) -> Option<Self> {
        let fits = driver.queue_size() == device.queue_size();
        fits.then(|| Self::over(Rings::Split(driver, device), Position::SPLIT, notify))
    }

    /// A packed virtqueue at its start, without optional features. `None` if the ranges do not have the
    /// lengths, alignments (2.8: 16 and 4 bytes) and directions that [`PackedMemory`] says.
    pub fn new_packed(memory: PackedMemory<'a>, notify: N) -> Option<Self> {
        Some(Self::over(Rings::Packed(Packed::new(memory)?), Position::PACKED, notify))
    }

    fn over(rings: Rings<'a>, position: Position, notify: N) -> Self {
        let packed = matches!(rings, Rings::Packed(_));
        let state = State {
            rings,
            position,
            error: None,
            event_idx: false,
            in_order: None,
            batching: false,
            polling: false,
        };
        Self { state: Mutex::new(state), notify, indirect: false, packed }
    }

    /// With the negotiated feature bits; of interest are VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX and
    /// VIRTIO_F_IN_ORDER.
    ///
    /// With VIRTIO_F_IN_ORDER a chain that is returned waits until all that were taken before it are returned
    /// too, and a batch of chains that were written completely, or only read, shares one used element with
    /// the next one.
    pub fn with_features(mut self, negotiated: u64) -> Self {
        self.indirect = negotiated & features::INDIRECT_DESC != 0;
        let state = self.state.get_mut();
        state.event_idx = negotiated & features::EVENT_IDX != 0;
        state.in_order = (negotiated & features::IN_ORDER != 0).then(InOrder::default);
        self
    }

    /// Goes on at `position`. `None` if there is no such position in this ring, or, with VIRTIO_F_IN_ORDER,
    /// if a chain was taken there that can never be returned now.
    pub fn resume(mut self, position: Position) -> Option<Self> {
        let state = self.state.get_mut();
        state.position = position;
        let lost = state.in_order.is_some() && position.next != position.used;
        (state.rings.is_position(position) && !lost).then_some(self)
    }

    /// Where the queue is now. Chains that were taken and not returned count as taken. With VIRTIO_F_IN_ORDER
    /// the driver sees now what was returned in a batch.
    pub fn position(&self) -> Position {
        let mut state = self.state.lock();
        state.publish();
        state.position
    }

    /// The driver has notified the device, and said with VIRTIO_F_NOTIFICATION_DATA (2.9) that it made
    /// everything before `position` available: a free running index, or that of a descriptor with the wrap
    /// counter in bit 15.
    ///
    /// # Errors
    /// If that is not true; then there are no more chains.
    pub fn notified(&self, position: u16) -> Result<(), QueueError> {
        let mut state = self.state.lock();
        let Position { next, used, .. } = state.position;
        if state.rings.is_available(position, next, used) {
            return Ok(());
        }
        Err(*state.error.get_or_insert(QueueError::InvalidNotification(position)))
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.state.lock().rings.size()
    }

    /// What the driver did wrong. It stays that way.
    pub fn error(&self) -> Option<QueueError> {
        self.state.lock().error
    }

    /// Takes the next chain that the driver made available. With VIRTIO_F_EVENT_IDX `None` also means that
    /// the driver was asked to notify the device of the next one.
    ///
    /// # Errors
    /// Once; then there are no more chains.
    pub fn next_chain(&self) -> Result<Option<DescChain<'_, 'a, N>>, QueueError> {
        let mut state = self.state.lock();
        let Some(taken) = state.take()? else { return Ok(None) };
        let turn = state.in_order.as_mut().map_or(0, InOrder::take);
        Ok(Some(DescChain { queue: self, turn, writable: taken.writable(), taken, written: 0 }))
    }

    /// Whether the driver is to notify the device of chains: not while the device polls. When it is switched
    /// on again chains may be there already, for which no notification will come: look before sleeping.
    pub fn set_notifications(&self, on: bool) {
        let mut state = self.state.lock();
        state.polling = !on;
        match (state.event_idx, on) {
            (true, true) => {
                let next = state.position.next;
                state.rings.set_avail_event(next);
            }
            (true, false) if !self.packed => state.pass_event(),
            _ => state.rings.suppress_notifications(!on),
        }
        if on {
            // The driver either sees it, or the look that follows sees its chain.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether chains are returned in a batch: the driver is notified at most once, by
    /// [`flush`](Self::flush), by dropping the queue, or when a whole ring was returned. It sees each chain
    /// at once, but with VIRTIO_F_IN_ORDER all of them then.
    pub fn set_batching(&self, on: bool) {
        self.state.lock().batching = on;
    }

    /// Notifies the driver of the chains returned since the last time, if it wants that.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.publish();
        let notify = state.needs_notification();
        drop(state);
        if notify {
            self.notify.notify();
        }
    }
}

impl<N: DriverNotify> Drop for Queue<'_, N> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A chain that was taken from a queue. It goes back to the driver exactly once: by
/// [`return_written`](Self::return_written), or with nothing written when it is dropped.
///
/// It holds a copy of the descriptors. A chain that is forgotten stays in flight.
pub struct DescChain<'q, 'a, N: DriverNotify> {
    queue: &'q Queue<'a, N>,
    taken: Taken,
    /// Its turn to be returned.
    turn: u16,
    /// How many bytes can be written, if that is known.
    pub(super) writable: Option<u64>,
    pub(super) written: u32,
}

impl<N: DriverNotify> DescChain<'_, '_, N> {
    /// Head index, or buffer id in a packed virtqueue: what the driver knows the chain by.
    pub fn id(&self) -> u16 {
        self.taken.id
    }

    /// The descriptors as they lie in the ring: an indirect one is not followed.
    pub fn iter(&self) -> DescChainIter<'_> {
        DescChainIter { descs: self.taken.descs.iter(), error: self.taken.error }
    }

    /// Returns the chain, with the number of bytes written from the start of its writable part on.
    pub fn return_written(mut self, written: u32) {
        self.written = written;
    }

    pub(super) fn allows_indirect(&self) -> bool {
        self.queue.indirect
    }

    pub(super) fn is_packed(&self) -> bool {
        self.queue.packed
    }
}

impl<N: DriverNotify> Drop for DescChain<'_, '_, N> {
    fn drop(&mut self) {
        let complete = self.writable == Some(self.written.into());
        let Taken { id, count, .. } = self.taken;
        let chain = Returned { id, count, written: self.written, complete };
        let notify = self.queue.state.lock().put(self.turn, chain);
        if notify {
            self.queue.notify.notify();
        }
    }
}

impl<'c, N: DriverNotify> IntoIterator for &'c DescChain<'_, '_, N> {
    type Item = Result<Desc, DescError>;
    type IntoIter = DescChainIter<'c>;

    fn into_iter(self) -> DescChainIter<'c> {
        self.iter()
    }
}

/// The descriptors of a chain; an error is the last item.
#[derive(Clone, Debug)]
pub struct DescChainIter<'c> {
    descs: core::slice::Iter<'c, Desc>,
    error: Option<DescError>,
}

impl Iterator for DescChainIter<'_> {
    type Item = Result<Desc, DescError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.descs.next() {
            Some(desc) => Some(Ok(*desc)),
            None => self.error.take().map(Err),
        }
    }
}

impl core::iter::FusedIterator for DescChainIter<'_> {}

impl<'a> RingMemory<'a> {
    /// The queue at its start, as [`Queue::new`] and [`Queue::new_packed`] have it.
    pub fn queue<N: DriverNotify>(self, notify: N) -> Option<Queue<'a, N>> {
        match self {
            Self::Split(memory) => Queue::new(memory, notify),
            Self::Packed(memory) => Queue::new_packed(memory, notify),
        }
    }
}
