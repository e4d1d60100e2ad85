//! One receive queue and one transmit queue, and the packets that go through them.

use alloc::vec::Vec;
use core::iter;

use ringfence_memory::{Direction, DmaBuf, DmaPool, Quiet, Segment, VolatileError};

use super::{ETHERNET_HEADER_LEN, MAX_FRAME_LEN};
use crate::virtio::{
    Buffers, Counters, Device, DriverOk, Error, Notify, Queue, QueueError, QueueOptions, Transport, sealed,
};

/// Length of the header in front of each frame (5.1.6). Without offloads all of it is zero in what we send,
/// and nothing in it matters in what we receive.
const HEADER_LEN: usize = 12;
/// One frame with its header.
const BUFFER_LEN: usize = 2048;
/// Where they are in a buffer: the frame is aligned, so that it can be copied in whole words.
const HEADER_AT: usize = 4;
const FRAME_AT: usize = HEADER_AT + HEADER_LEN;

/// A received frame. Give it back with [`NetPair::recycle`] when read.
#[derive(Debug)]
pub struct RxPacket {
    buffer: DmaBuf,
    len: u32,
}

impl RxPacket {
    /// Length of the frame in bytes: from 14 (an Ethernet header) to 2,032.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first bytes of the frame to `to`, as many as fit, and says how many.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = self.len().min(to.len());
        let copied = to.get_mut(..len).map(|to| self.buffer.read_slice(to, FRAME_AT));
        if copied == Some(Ok(())) { len } else { 0 }
    }
}

/// A frame to send, in a buffer of [`NetPair::take`].
#[derive(Debug)]
pub struct TxPacket {
    buffer: DmaBuf,
    len: u32,
}

impl TxPacket {
    /// Makes `frame` the packet's contents.
    ///
    /// # Errors
    /// If it is longer than [`MAX_FRAME_LEN`].
    #[inline]
    pub fn write(&mut self, frame: &[u8]) -> Result<(), VolatileError> {
        if frame.len() > MAX_FRAME_LEN {
            return Err(VolatileError::OutOfBounds);
        }
        self.buffer.write_slice(frame, FRAME_AT)?;
        self.len = frame.len() as u32;
        Ok(())
    }
}

impl sealed::Sealed for RxPacket {}

/// In the receive queue.
impl Buffers for RxPacket {
    type Context = ();

    // A packet that goes again is only looked at in between.
    const SAME_AGAIN: bool = true;

    #[inline]
    fn only<'a>(&'a self, (): &'a ()) -> Option<Segment<'a>> {
        self.buffer.segment(HEADER_AT, BUFFER_LEN - HEADER_AT, true)
    }

    #[inline]
    fn least_written(&self) -> u32 {
        (HEADER_LEN + ETHERNET_HEADER_LEN) as u32
    }

    fn abandon(self) {
        self.buffer.abandon();
    }
}

impl sealed::Sealed for TxPacket {}

/// In the transmit queue.
impl Buffers for TxPacket {
    type Context = ();

    #[inline]
    fn only<'a>(&'a self, (): &'a ()) -> Option<Segment<'a>> {
        self.buffer.segment(HEADER_AT, (self.len as usize).wrapping_add(HEADER_LEN), false)
    }

    #[inline]
    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {
        self.buffer.abandon();
    }
}

/// A receive queue and a transmit queue with their buffers. It shares nothing that is written with the
/// device's other pairs, so each CPU can have its own.
pub struct NetPair<N> {
    receive: Queue<RxPacket, N>,
    transmit: Queue<TxPacket, N>,
    /// Where receive buffers that are dropped instead of recycled go back to.
    rx_pool: DmaPool,
    /// Transmit buffers that the queue does not hold.
    tx_spare: Vec<DmaBuf>,
}

impl<N: Notify> NetPair<N> {
    /// Sets the queues of pair `number` up (5.1.2), with up to `size` buffers in each direction.
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        number: u16,
        size: u16,
    ) -> Result<Self, Error> {
        let wish = QueueOptions { size, chains: size, parts: 1 };
        let index = number.wrapping_mul(2);
        let receive = device.queue::<RxPacket>(index, &wish, 1, |_| Ok(()))?;
        let transmit = device.queue::<TxPacket>(index.wrapping_add(1), &wish, 1, |_| Ok(()))?;
        let pool = |count: u16, to| DmaPool::new_for(device.windows(), count.into(), BUFFER_LEN, to);
        let rx_pool = pool(receive.depth(), Direction::FromDevice)?;
        let tx_pool = pool(transmit.depth(), Direction::ToDevice)?;
        Ok(Self {
            // Zeroed once: the header stays so, since the device only reads these.
            tx_spare: iter::from_fn(|| tx_pool.take()).collect(),
            receive,
            transmit,
            rx_pool,
        })
    }

    /// Fills the receive queue, once the device may use this pair.
    pub(super) fn start(&mut self, started: &DriverOk) {
        self.receive.start(started);
        self.transmit.start(started);
        self.transmit.disable_interrupts();
        self.refill();
        self.receive.kick();
    }

    pub(super) fn reclaim(&mut self, quiet: &Quiet) {
        self.receive.reclaim(quiet).for_each(drop);
        self.transmit.reclaim(quiet).for_each(drop);
    }

    /// Numbers of descriptors of the receive and the transmit queue.
    pub fn queue_sizes(&self) -> [u16; 2] {
        [self.receive.size(), self.transmit.size()]
    }

    /// Whether the device broke the rules of a ring: drop the driver.
    pub fn is_broken(&self) -> bool {
        self.receive.is_broken() || self.transmit.is_broken()
    }

    /// What the receive and the transmit queue have done.
    pub fn counters(&self) -> [Counters; 2] {
        [self.receive.counters(), self.transmit.counters()]
    }

    /// Reports interrupts of the receive and the transmit queue, for the counters.
    pub fn count_interrupts(&mut self, [receive, transmit]: [u64; 2]) {
        self.receive.count_interrupts(receive);
        self.transmit.count_interrupts(transmit);
    }

    /// The next received frame. Frames of impossible length are dropped and counted as rejected.
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    pub fn receive(&mut self) -> Result<Option<RxPacket>, QueueError> {
        // Each round takes a buffer out of the ring, so this ends.
        while let Some(completion) = self.receive.pop()? {
            if let Some(written) = completion.written {
                return Ok(Some(RxPacket { len: frame_len(written), ..completion.buffers }));
            }
        }
        Ok(None)
    }

    /// Takes a received packet's buffer back, to be filled again after the next [`kick`](Self::kick).
    pub fn recycle(&mut self, packet: RxPacket) {
        // Another device's packet would only be refused by the queue; then it is dropped there.
        let _ = self.receive.submit(packet);
    }

    /// Shows `read` the frames of one look at the ring, recycles their buffers, and says how many there were.
    /// Faster than one by one. Frames of impossible length are left out and counted as rejected.
    ///
    /// # Errors
    /// [`QueueError::Broken`]: drop the driver.
    #[inline]
    pub fn receive_batch(&mut self, mut read: impl FnMut(&RxPacket)) -> Result<usize, QueueError> {
        let mut count = 0_usize;
        let renewed = self.receive.renew(|packet, written, ()| {
            if let Some(written) = written {
                packet.len = frame_len(written);
                read(packet);
                count = count.wrapping_add(1);
            }
            true
        })?;
        // With IN_ORDER buffers cannot stay in their slots.
        while renewed == 0
            && let Some(packet) = self.receive()?
        {
            read(&packet);
            count = count.wrapping_add(1);
            self.recycle(packet);
        }
        Ok(count)
    }

    /// A packet to fill and [`send`](Self::send); `None` while all are in the ring. Dropping it instead loses
    /// a buffer.
    pub fn take(&mut self) -> Option<TxPacket> {
        if self.tx_spare.is_empty() {
            self.reclaim_sent();
        }
        Some(TxPacket { buffer: self.tx_spare.pop()?, len: 0 })
    }

    /// Puts a packet into the ring. The device sends it after the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// Gives the packet back, if it is another device's or the queue is broken.
    pub fn send(&mut self, packet: TxPacket) -> Result<(), (QueueError, TxPacket)> {
        self.transmit.submit(packet).map(|_| ())
    }

    /// Puts up to `count` packets into the ring and says how many: `write` writes each, or returns `false` if
    /// there is nothing more to send. Faster than one by one. The device sends them after the next
    /// [`kick`](Self::kick).
    ///
    /// # Errors
    /// As for [`send`](Self::send); the packet is dropped.
    #[inline]
    pub fn send_batch(
        &mut self,
        count: usize,
        mut write: impl FnMut(&mut TxPacket) -> bool,
    ) -> Result<usize, QueueError> {
        let (mut sent, mut more) = (0_usize, true);
        // The buffers that come back go again; that is also kind to the caches.
        self.transmit.renew(|packet, _, ()| {
            packet.len = 0;
            more = sent < count && write(packet);
            sent = sent.wrapping_add(more.into());
            more
        })?;
        while more
            && sent < count
            && let Some(mut packet) = self.take()
        {
            if !write(&mut packet) {
                self.tx_spare.push(packet.buffer);
                break;
            }
            self.send(packet).map_err(|(error, _)| error)?;
            sent = sent.wrapping_add(1);
        }
        Ok(sent)
    }

    /// Tells the device about packets to send and about buffers to fill: at most one notification each. Call
    /// it once after a batch.
    pub fn kick(&mut self) {
        self.refill();
        self.receive.kick();
        self.transmit.kick();
    }

    /// Whether [`take`](Self::take) would succeed.
    pub fn can_send(&mut self) -> bool {
        if self.tx_spare.is_empty() {
            self.reclaim_sent();
        }
        !self.tx_spare.is_empty()
    }

    /// Asks for no interrupts while polling. Interrupts may come anyway.
    pub fn disable_interrupts(&mut self) {
        self.receive.disable_interrupts();
        self.transmit.disable_interrupts();
    }

    /// Asks for an interrupt at the next received frame and, only while the transmit ring is full, when
    /// frames were sent. `true`: something is there already; go on instead of sleeping.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        let full = !self.can_send();
        let sent = full && self.transmit.enable_interrupts();
        self.receive.enable_interrupts() || sent
    }

    /// Fills the receive queue.
    fn refill(&mut self) {
        while self.receive.next_slot().is_some() {
            let Some(buffer) = self.rx_pool.take() else { return };
            if self.receive.submit(RxPacket { buffer, len: 0 }).is_err() {
                return;
            }
        }
    }

    /// Takes back what the device has sent. A broken ring shows when receiving or when the device is checked.
    fn reclaim_sent(&mut self) {
        let spare = &mut self.tx_spare;
        let _ = self.transmit.reap(|completion, ()| spare.push(completion.buffers.buffer));
    }
}

/// Length of the frame in a buffer with so many bytes written: at least as many as `least_written` says.
#[inline]
fn frame_len(written: u32) -> u32 {
    written.wrapping_sub(HEADER_LEN as u32)
}
