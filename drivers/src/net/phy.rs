//! The network driver as a device of smoltcp.
//!
//! smoltcp works on slices, and no reference to DMA memory may exist: frames are copied once in each direction,
//! through private buffers.

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{ETHERNET_HEADER_LEN, MAX_FRAME_LEN, Net};
use crate::virtio::Transport;

/// A network driver with buffers for the frame that smoltcp looks at, and the one that it writes.
///
/// Call [`kick`](Net::kick) on [`net`](Self::net) after each `Interface::poll`: that is when frames go out.
pub struct Phy<T: Transport> {
    /// The driver.
    pub net: Net<T>,
    received: Box<[u8]>,
    to_send: Box<[u8]>,
}

impl<T: Transport> Phy<T> {
    /// Wraps a driver.
    pub fn new(net: Net<T>) -> Self {
        let buffer = || vec![0; MAX_FRAME_LEN].into_boxed_slice();
        Self { net, received: buffer(), to_send: buffer() }
    }
}

impl<T: Transport> Device for Phy<T> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a, T>
    where
        Self: 'a;

    /// `None` also while nothing can be sent, since smoltcp may want to answer. A broken ring looks like silence:
    /// [`Net::receive`] tells the difference.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_, T>)> {
        if !self.net.can_send() {
            return None;
        }
        let packet = self.net.receive().ok()??;
        let len = packet.read(&mut self.received);
        self.net.recycle(packet);
        let frame = self.received.get(..len)?;
        Some((Received(frame), Transmit { net: &mut self.net, buffer: &mut self.to_send }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_, T>> {
        self.net.can_send().then_some(Transmit { net: &mut self.net, buffer: &mut self.to_send })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.net.mtu()).saturating_add(ETHERNET_HEADER_LEN);
        capabilities
    }
}

/// A frame that was received.
pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Permission to send one frame.
pub struct Transmit<'a, T: Transport> {
    net: &'a mut Net<T>,
    buffer: &'a mut [u8],
}

impl<T: Transport> TxToken for Transmit<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let Some(frame) = self.buffer.get_mut(..len) else {
            // Longer than the capabilities allow: it cannot be sent.
            return write(&mut vec![0; len]);
        };
        let result = write(frame);
        if let Some(mut packet) = self.net.take() {
            // Neither can fail: the length was just checked, and the packet is this device's. If the ring is
            // broken the frame is lost, as frames may be.
            let _ = packet.write(frame);
            let _ = self.net.send(packet);
        }
        result
    }
}
