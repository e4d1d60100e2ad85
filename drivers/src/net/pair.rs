//! One receive queue and one transmit queue, and the frames that go through them.
//!
//! Buffers stay in their slots: a frame that was read makes room for the next, and a buffer that was sent is
//! written again.

use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;

use ringfence_memory::{Bytes, Direction, DmaBuf, DmaPool, Segment, VolatileError};

use super::{ETHERNET_HEADER_LEN, MAX_FRAME_LEN};
use crate::virtio::{
    Buffers, Counters, Device, DriverOk, Error, LEAST_SILENCE, Notify, Queue, QueueError, QueueOptions,
    Transport, longest_gap, sealed,
};

/// Length of the header in front of each frame (5.1.6). Without offloads all of it is zero in what we send.
const HEADER_LEN: usize = 12;
/// One frame with its header.
const BUFFER_LEN: usize = 2048;
/// Where they are in a buffer: the frame is aligned, so that it can be copied in whole words.
const HEADER_AT: usize = 4;
const FRAME_AT: usize = HEADER_AT + HEADER_LEN;
/// The header's flags and the type of segmentation, which are its first two bytes (5.1.6): that the checksum
/// is not whole, and any segmentation at all. Both need offloads that are not accepted here.
const NEEDS_OFFLOADS: u16 = 0xff01;

/// A received frame.
pub struct RxFrame<'a> {
    buffer: &'a DmaBuf,
    len: usize,
}

impl RxFrame<'_> {
    /// Length of the frame in bytes: from 14 (an Ethernet header) to 1,518 (with a VLAN tag).
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies the first bytes of the frame to `to`, as many as fit, and says how many.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        let copied = to.get_mut(..len).map(|to| self.buffer.read_slice(to, FRAME_AT));
        if copied == Some(Ok(())) { len } else { 0 }
    }
}

impl fmt::Debug for RxFrame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxFrame({} bytes)", self.len)
    }
}

/// Room for a frame to send. It is sent if it was written.
pub struct TxFrame<'a> {
    buffer: &'a mut DmaBuf,
    /// Length of the frame in it; 0 before it is written.
    len: u32,
    /// The longest frame.
    most: usize,
}

impl TxFrame<'_> {
    /// Makes `frame` the contents.
    ///
    /// # Errors
    /// If it is empty, or longer than the device takes: than [`MTU`](super::NetControl::mtu) and 14 bytes.
    #[inline]
    pub fn write(&mut self, frame: &[u8]) -> Result<(), VolatileError> {
        if frame.is_empty() || frame.len() > self.most {
            return Err(VolatileError::OutOfBounds);
        }
        self.buffer.write_slice(frame, FRAME_AT)?;
        self.len = frame.len() as u32;
        Ok(())
    }

    /// Makes `parts`, one behind the other, the contents: headers and data from where they are.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    #[inline]
    pub fn write_parts(&mut self, parts: &[&[u8]]) -> Result<(), VolatileError> {
        let len = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
        if len == 0 || len > self.most {
            return Err(VolatileError::OutOfBounds);
        }
        let mut at = FRAME_AT;
        for part in parts {
            self.buffer.as_volatile_slice().get_array_ref(at, part.len())?.copy_from(part)?;
            at = at.saturating_add(part.len());
        }
        self.len = len as u32;
        Ok(())
    }
}

impl fmt::Debug for TxFrame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxFrame({} of {} bytes)", self.len, self.most)
    }
}

/// What is in a slot of the receive queue. Only a free slot has no buffer.
#[derive(Default)]
struct Received(Option<DmaBuf>);

impl sealed::Sealed for Received {}

impl Buffers for Received {
    type Context = ();
    type Request = ();

    // A buffer that goes again is only looked at in between.
    const SAME_AGAIN: bool = true;
    const SAME_SHAPE: bool = true;

    #[inline(always)]
    fn only<'a>(&'a self, (): (), (): &'a ()) -> Option<Segment<'a>> {
        self.0.as_ref()?.segment(HEADER_AT, BUFFER_LEN - HEADER_AT, true)
    }

    fn abandon(self) {
        if let Some(buffer) = self.0 {
            buffer.abandon();
        }
    }
}

/// The fewest and the most bytes that are a frame with its header. Only one with a VLAN tag has more than we
/// send. A packed ring's device may leave the length as it was (2.8.13): all of the buffer, which is no
/// frame.
const LEAST_RECEIVED: u32 = (HEADER_LEN + ETHERNET_HEADER_LEN) as u32;
const LONGEST_RECEIVED: u32 = (HEADER_LEN + MAX_FRAME_LEN + VLAN_TAG_LEN) as u32;
const VLAN_TAG_LEN: usize = 4;

/// What is in a slot of the transmit queue. Only a free slot has no buffer.
#[derive(Default)]
struct ToSend(Option<DmaBuf>);

impl ToSend {
    /// Lets `write` fill it, and says how long the frame is; `None` if it did not.
    #[inline(always)]
    fn fill(&mut self, most: usize, write: impl FnOnce(&mut TxFrame<'_>)) -> Option<u32> {
        let mut frame = TxFrame { buffer: self.0.as_mut()?, len: 0, most };
        write(&mut frame);
        Some(frame.len).filter(|&len| len > 0)
    }
}

impl sealed::Sealed for ToSend {}

impl Buffers for ToSend {
    type Context = ();
    /// Length of the frame.
    type Request = u32;

    const SAME_SHAPE: bool = true;

    #[inline(always)]
    fn only<'a>(&'a self, len: u32, (): &'a ()) -> Option<Segment<'a>> {
        self.0.as_ref()?.segment(HEADER_AT, (len as usize).wrapping_add(HEADER_LEN), false)
    }

    fn abandon(self) {
        if let Some(buffer) = self.0 {
            buffer.abandon();
        }
    }
}

/// How many frames had come back when none did any more, for how long none has, and when that was seen.
#[derive(Clone, Copy)]
struct Silence {
    sent: u64,
    lasted: Duration,
    seen: Duration,
}

/// A receive queue and a transmit queue with their buffers. It shares nothing that is written with the
/// device's other pairs, so each CPU can have its own. Its calls take no lock, allocate nothing and do not
/// wait: an interrupt handler that has it may use it.
pub struct NetPair<N> {
    receive: Queue<Received, N>,
    transmit: Queue<ToSend, N>,
    /// Buffers that are in no queue.
    rx_pool: DmaPool,
    tx_pool: DmaPool,
    /// The longest frame to send.
    most: usize,
    /// Whether there was room to send when somebody last asked.
    had_room: bool,
    /// While the card keeps frames to send.
    silence: Option<Silence>,
}

impl<N: Notify> NetPair<N> {
    /// Sets the queues of pair `number` up (5.1.2), with up to `size` buffers in each direction, for frames
    /// to send of up to `mtu` bytes after their Ethernet header.
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        number: u16,
        size: u16,
        mtu: u16,
    ) -> Result<Self, Error> {
        let wish = QueueOptions { size, chains: size, segments: 1, longest: 1 };
        let index = number.wrapping_mul(2);
        let receive = device.queue(index, &wish, 1, |_| Ok(()))?;
        let transmit = device.queue(index.wrapping_add(1), &wish, 1, |_| Ok(()))?;
        // Zeroed once: the header stays so, since the device only reads what is sent.
        let pool = |count: u16, to| DmaPool::new_for(device.windows(), count.into(), BUFFER_LEN, to);
        let rx_pool = pool(receive.depth(), Direction::FromDevice)?;
        let tx_pool = pool(transmit.depth(), Direction::ToDevice)?;
        let most = usize::from(mtu).saturating_add(ETHERNET_HEADER_LEN);
        Ok(Self { receive, transmit, rx_pool, tx_pool, most, had_room: true, silence: None })
    }

    /// Fills the receive queue, once the device may use this pair.
    pub(super) fn start(&mut self, started: &DriverOk) {
        self.receive.start(started);
        self.transmit.start(started);
        self.transmit.disable_interrupts();
        self.refill();
        self.receive.kick();
    }

    /// Numbers of descriptors of the receive and the transmit queue.
    pub fn queue_sizes(&self) -> [u16; 2] {
        [self.receive.size(), self.transmit.size()]
    }

    /// Whether the device broke the rules of a ring: drop the driver.
    pub fn is_broken(&self) -> bool {
        self.receive.is_broken() || self.transmit.is_broken()
    }

    /// Whether the card does what it should at `now`, by any clock. To be called again and again, after
    /// [`kick`](Self::kick): the silence of a card is counted from the first call that sees it, and of the
    /// time between two calls at most half of `patience` counts; 0 is as good as 2 ms. Buffers to receive
    /// into may wait for ever.
    ///
    /// # Errors
    /// [`QueueError::Broken`], or [`QueueError::Unresponsive`] if the card has had frames to send for longer
    /// than `patience`, and used none of them: drop the driver.
    pub fn check(&mut self, now: Duration, patience: Duration) -> Result<(), QueueError> {
        if self.is_broken() {
            return Err(QueueError::Broken);
        }
        let sent = self.transmit.counters().completions;
        // What it has used comes back when more is sent.
        let waits = self.transmit.in_flight() > 0 && !self.transmit.has_used()?;
        let patience = patience.max(LEAST_SILENCE);
        let before = self.silence.filter(|before| before.sent == sent);
        let lasted = before.map_or(Duration::ZERO, |Silence { lasted, seen, .. }| {
            lasted.saturating_add(now.saturating_sub(seen).min(longest_gap(patience)))
        });
        self.silence = waits.then_some(Silence { sent, lasted, seen: now });
        if waits && lasted > patience { Err(QueueError::Unresponsive) } else { Ok(()) }
    }

    /// What the receive and the transmit queue have done.
    pub fn counters(&self) -> [Counters; 2] {
        [self.receive.counters(), self.transmit.counters()]
    }

    /// Shows `read` up to `most` received frames, and says how many there were. Their buffers are filled
    /// again after the next [`kick`](Self::kick). Frames of impossible length, and those that need an
    /// offload, count as one of `most` and as rejected, and are not shown.
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    #[inline]
    pub fn receive(&mut self, most: usize, mut read: impl FnMut(&RxFrame<'_>)) -> Result<usize, QueueError> {
        let before = self.receive.counters().rejected;
        let result = self.receive.renew(most, |Received(buffer), used, rejected| {
            // Those that are too short underflow.
            let is_frame = used.written.wrapping_sub(LEAST_RECEIVED) <= LONGEST_RECEIVED - LEAST_RECEIVED;
            let frame = buffer.as_ref().filter(|buffer| {
                let header = buffer.as_volatile_slice().load::<u16>(HEADER_AT, Ordering::Relaxed);
                is_frame && header.is_ok_and(|header| u16::from_le(header) & NEEDS_OFFLOADS == 0)
            });
            match frame {
                Some(buffer) => {
                    read(&RxFrame { buffer, len: (used.written as usize).wrapping_sub(HEADER_LEN) });
                }
                None => *rejected = rejected.wrapping_add(1),
            }
            Some(())
        });
        let rejected = self.receive.counters().rejected.wrapping_sub(before);
        result.map(|count| count.saturating_sub(rejected as usize))
    }

    /// Puts up to `most` frames into the ring and says how many: `write` writes each, or leaves it as it is
    /// if there is nothing more to send. The device sends them after the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    #[inline]
    pub fn send(
        &mut self,
        most: usize,
        mut write: impl FnMut(&mut TxFrame<'_>),
    ) -> Result<usize, QueueError> {
        // The buffers that come back go again; that is also kind to the caches.
        let (longest, mut more) = (self.most, true);
        let mut sent = self.transmit.renew(most, |frame, _, _| {
            let len = frame.fill(longest, &mut write);
            more = len.is_some();
            len
        })?;
        // There are as many buffers as slots.
        while more
            && sent < most
            && let Some(buffer) = self.tx_pool.take()
        {
            let mut frame = ToSend(Some(buffer));
            let Some(len) = frame.fill(longest, &mut write) else { break };
            self.transmit.submit_for(frame, || len).map_err(|(error, _)| error)?;
            sent = sent.wrapping_add(1);
        }
        Ok(sent)
    }

    /// Whether there is something to [receive](Self::receive). `false` if the ring is broken.
    pub fn has_received(&mut self) -> bool {
        matches!(self.receive.has_used(), Ok(true))
    }

    /// Whether there is room to send a frame.
    pub fn can_send(&mut self) -> bool {
        let room = self.transmit.next_slot().is_some() || matches!(self.transmit.has_used(), Ok(true));
        self.had_room = room;
        room
    }

    /// Tells the device about frames to send and about buffers to fill: at most one notification each. Call
    /// it once after a batch.
    pub fn kick(&mut self) {
        self.receive.kick();
        self.transmit.kick();
    }

    /// See [`Queue::kick_again`]; for both queues.
    pub fn kick_again(&mut self) {
        self.receive.kick_again();
        self.transmit.kick_again();
    }

    /// Asks for no interrupts while polling. Interrupts may come anyway.
    pub fn disable_interrupts(&mut self) {
        self.receive.disable_interrupts();
        self.transmit.disable_interrupts();
    }

    /// Asks for an interrupt at the next received frame and, only while the transmit ring is full, when
    /// frames were sent; a new card has asked for the first frame. `true`: something is there already, or
    /// room that was not there when it was last [asked for](Self::can_send); go on instead of sleeping.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.arm() != [false, false]
    }

    /// The same; says whether there are received frames, and whether there is room again.
    pub(super) fn arm(&mut self) -> [bool; 2] {
        // Room that came since nobody would tell of.
        let waits = !self.had_room;
        let room = if self.can_send() { waits } else { self.transmit.enable_interrupts() };
        [self.receive.enable_interrupts(), room]
    }

    /// Fills the receive queue.
    fn refill(&mut self) {
        while self.receive.next_slot().is_some() {
            let Some(buffer) = self.rx_pool.take() else { return };
            if self.receive.submit(Received(Some(buffer))).is_err() {
                return;
            }
        }
    }
}
