//! Virtio network devices (section 5.1): one pair of queues, whole frames, no offloads.

mod phy;

use alloc::vec::Vec;

use ringfence_memory::{Direction, DmaBuf, DmaGrant, DmaPool, DmaWindows, VolatileError};

use crate::virtio::{
    Buffers, Counters, Device, DeviceType, Error, Part, Queue, QueueError, QueueOptions, Transport, features,
};

pub use phy::Phy;

const FEATURES: u64 = features::net::MAC | features::net::STATUS;

/// Offsets in the device configuration (5.1.4).
const MAC: usize = 0;
const STATUS: usize = 6;
const MTU: usize = 10;
const STATUS_LINK_UP: u16 = 1;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const DEFAULT_QUEUE_SIZE: u16 = 256;

/// Length of the header in front of each frame (5.1.6). Without offloads all of it is zero in what we send, and
/// nothing in it matters in what we receive.
const HEADER_LEN: usize = 12;
const ETHERNET_HEADER_LEN: usize = 14;
/// One frame with its header.
const BUFFER_LEN: usize = 2048;
/// The payload of an Ethernet frame, unless the device says less.
const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU that a device may report.
const LEAST_MTU: u16 = 68;
/// The longest frame that goes through here, without its checksum.
pub const MAX_FRAME_LEN: usize = DEFAULT_MTU as usize + ETHERNET_HEADER_LEN;

/// A received frame. Give it back with [`Net::recycle`] when read.
#[derive(Debug)]
pub struct RxPacket {
    buffer: DmaBuf,
    len: usize,
}

impl RxPacket {
    /// Length of the frame in bytes: from 14 (an Ethernet header) to 2,036.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no bytes (it always has).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first bytes of the frame to `to`, as many as fit, and says how many.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        let copied = to.get_mut(..len).map(|to| self.buffer.read_slice(to, HEADER_LEN));
        if copied == Some(Ok(())) { len } else { 0 }
    }
}

/// A frame to send, in a buffer of [`Net::take`].
#[derive(Debug)]
pub struct TxPacket {
    buffer: DmaBuf,
    len: usize,
}

impl TxPacket {
    /// Makes `frame` the packet's contents.
    ///
    /// # Errors
    /// If it is longer than [`MAX_FRAME_LEN`].
    pub fn write(&mut self, frame: &[u8]) -> Result<(), VolatileError> {
        if frame.len() > MAX_FRAME_LEN {
            return Err(VolatileError::OutOfBounds);
        }
        self.buffer.write_slice(frame, HEADER_LEN)?;
        self.len = frame.len();
        Ok(())
    }
}

/// A buffer in the receive queue.
struct Receiving(DmaBuf);

impl Buffers for Receiving {
    type Context = ();

    #[inline]
    fn only(&self, (): &()) -> Option<Part> {
        Part::writable(&self.0, 0, self.0.len())
    }

    fn least_written(&self) -> u32 {
        (HEADER_LEN + ETHERNET_HEADER_LEN) as u32
    }

    fn abandon(self) {
        self.0.abandon();
    }
}

/// A buffer in the transmit queue.
impl Buffers for TxPacket {
    type Context = ();

    #[inline]
    fn only(&self, (): &()) -> Option<Part> {
        Part::readable(&self.buffer, 0, self.len.saturating_add(HEADER_LEN))
    }

    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {
        self.buffer.abandon();
    }
}

/// A virtio network device.
///
/// Dropping it resets the device, as with [`Block`](crate::block::Block).
pub struct Net<T: Transport> {
    // First, so that it is dropped first.
    device: Device<T>,
    receive: Queue<Receiving, T::Notifier>,
    transmit: Queue<TxPacket, T::Notifier>,
    /// Where receive buffers that are dropped instead of recycled go back to.
    rx_pool: DmaPool,
    /// Transmit buffers that the queue does not hold.
    tx_spare: Vec<DmaBuf>,
    mac: [u8; 6],
    mtu: u16,
    link_up: bool,
}

impl<T: Transport> Net<T> {
    /// Brings the device up with up to 256 buffers in each direction, and fills the receive queue.
    ///
    /// # Errors
    /// Any; the device is left reset and marked as failed.
    pub fn new(transport: T, grant: &DmaGrant, windows: DmaWindows) -> Result<Self, Error> {
        Self::with_queue_size(transport, grant, windows, DEFAULT_QUEUE_SIZE)
    }

    /// Like [`new`](Self::new), with up to `size` buffers each: the largest power of two that both sides allow.
    pub fn with_queue_size(
        transport: T,
        grant: &DmaGrant,
        windows: DmaWindows,
        size: u16,
    ) -> Result<Self, Error> {
        let mut device = Device::begin(transport, DeviceType::NET, grant, windows)?;
        let mtu = offered_mtu(&device)?;
        device.negotiate(FEATURES | features::QUEUES | mtu.map_or(0, |_| features::net::MTU))?;
        let wish = QueueOptions { size, chains: size, parts: 1 };
        let receive: Queue<Receiving, _> = device.queue(RECEIVE, &wish, 1, |_| Ok(()))?;
        let transmit: Queue<TxPacket, _> = device.queue(TRANSMIT, &wish, 1, |_| Ok(()))?;
        let pool = |count: u16, to| DmaPool::new_for(device.windows(), count.into(), BUFFER_LEN, to);
        let rx_pool = pool(receive.size(), Direction::FromDevice)?;
        let tx_pool = pool(transmit.size(), Direction::ToDevice)?;
        let mac = read_mac(&device)?;
        let mut net = Self {
            device,
            receive,
            transmit,
            // Zeroed once: the header stays so, since the device only reads these.
            tx_spare: core::iter::from_fn(|| tx_pool.take()).collect(),
            rx_pool,
            mac,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
            link_up: true,
        };
        net.read_link()?;
        let started = net.device.driver_ok()?;
        net.receive.start(&started);
        net.transmit.start(&started);
        net.transmit.disable_interrupts();
        net.refill();
        net.receive.kick();
        Ok(net)
    }

    /// The device's MAC address, or a locally administered one if it has none.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The most bytes that the frames to send may carry after their Ethernet header: 68..=1500.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the cable is plugged in, as of the last [`config_changed`](Self::config_changed).
    pub fn link_up(&self) -> bool {
        self.link_up
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.device.features()
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
            let Receiving(buffer) = completion.buffers;
            match completion.written {
                Some(written) => {
                    let len = (written as usize).saturating_sub(HEADER_LEN);
                    return Ok(Some(RxPacket { buffer, len }));
                }
                None => drop(buffer),
            }
        }
        Ok(None)
    }

    /// Takes a received packet's buffer back, to be filled again after the next [`kick`](Self::kick).
    pub fn recycle(&mut self, packet: RxPacket) {
        // Another device's packet would only be refused by the queue; then it is dropped there.
        let _ = self.receive.submit(Receiving(packet.buffer));
    }

    /// A packet to fill and [`send`](Self::send); `None` while all are in the ring. Dropping it instead loses a
    /// buffer.
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

    /// Tells the device about packets to send and about buffers to fill: at most one notification each. Call it
    /// once after a batch.
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

    /// Asks for an interrupt at the next received frame and, only while the transmit ring is full, when frames
    /// were sent. `true`: something is there already; go on instead of sleeping.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        let full = !self.can_send();
        let sent = full && self.transmit.enable_interrupts();
        self.receive.enable_interrupts() || sent
    }

    /// After a configuration interrupt: checks the device's health and reads the link's state. `true` if the link
    /// changed.
    ///
    /// # Errors
    /// Any: drop the driver.
    pub fn config_changed(&mut self) -> Result<bool, Error> {
        self.device.check()?;
        let before = self.link_up;
        self.read_link()?;
        Ok(self.link_up != before)
    }

    fn read_link(&mut self) -> Result<(), Error> {
        if self.device.features() & features::net::STATUS != 0 {
            self.link_up = self.device.config::<u16>(STATUS)? & STATUS_LINK_UP != 0;
        }
        Ok(())
    }

    /// Fills the receive queue.
    fn refill(&mut self) {
        while self.receive.next_slot().is_some() {
            let Some(buffer) = self.rx_pool.take() else { return };
            if self.receive.submit(Receiving(buffer)).is_err() {
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

impl<T: Transport> Drop for Net<T> {
    fn drop(&mut self) {
        if let Ok(quiet) = self.device.shut_down() {
            self.receive.reclaim(&quiet).for_each(drop);
            self.transmit.reclaim(&quiet).for_each(drop);
        }
    }
}

/// The MTU that the device wants, if it is one that our buffers can carry. Otherwise the feature must not be
/// accepted (5.1.4.2).
fn offered_mtu<T: Transport>(device: &Device<T>) -> Result<Option<u16>, Error> {
    if device.offered() & features::net::MTU == 0 {
        return Ok(None);
    }
    let mtu = device.config(MTU)?;
    Ok(Some(mtu).filter(|mtu| (LEAST_MTU..=DEFAULT_MTU).contains(mtu)))
}

fn read_mac<T: Transport>(device: &Device<T>) -> Result<[u8; 6], Error> {
    if device.features() & features::net::MAC == 0 {
        // Locally administered, and different for each device.
        let [.., a, b, c, d] = device.windows().device().0.to_be_bytes();
        return Ok([0x02, 0x52, a, b, c, d]);
    }
    device.consistent_config(|device| {
        let mut mac = [0; 6];
        for (offset, byte) in mac.iter_mut().enumerate() {
            *byte = device.config(MAC.saturating_add(offset))?;
        }
        Ok(mac)
    })
}
