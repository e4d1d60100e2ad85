//! The network driver for stacks that work on slices: a device of smoltcp, and what
//! the driver of embassy-net is made of.
//!
//! They work on slices, and no reference to DMA memory may exist: frames are copied once in each
//! direction, through private buffers.

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;

#[cfg(feature = "smoltcp")]
use smoltcp::{
    phy::{Device, DeviceCapabilities, RxToken, TxToken},
    time::Instant,
};

use super::{ETHERNET_HEADER_LEN, MAX_FRAME_LEN, Net, NetPair, RxFrame};
use crate::virtio::{Notify, QueueError, Transport};

/// A network driver with buffers for the frame that the stack looks at, and the one that it writes.
///
/// It takes frames from all pairs in turn, and answers through the pair that a frame came from. Call
/// [`kick`](Self::kick) after each `Interface::poll`: that is when frames go out.
pub struct Phy<T: Transport> {
    /// The driver.
    pub net: Net<T>,
    received: Box<[u8]>,
    to_send: Box<[u8]>,
    /// The pair that is looked at first.
    next: usize,
}

impl<T: Transport> Phy<T> {
    /// Wraps a driver.
    pub fn new(net: Net<T>) -> Self {
        let buffer = || vec![0; MAX_FRAME_LEN].into_boxed_slice();
        Self { net, received: buffer(), to_send: buffer(), next: 0 }
    }

    /// See [`NetPair::kick`]; for all pairs.
    pub fn kick(&mut self) {
        self.net.split().1.for_each(NetPair::kick);
    }

    /// See [`NetPair::kick_again`]; for all pairs.
    pub fn kick_again(&mut self) {
        self.net.split().1.for_each(NetPair::kick_again);
    }

    /// See [`NetPair::disable_interrupts`]; for all pairs.
    pub fn disable_interrupts(&mut self) {
        self.net.split().1.for_each(NetPair::disable_interrupts);
    }

    /// See [`NetPair::has_received`]; for any pair.
    pub fn has_received(&mut self) -> bool {
        self.net.split().1.any(NetPair::has_received)
    }

    /// See [`NetPair::enable_interrupts`]; for all pairs. While a pair has no room to send, nothing is
    /// received from it: only room is something to go on for then.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        // Of all pairs, even if one has something already.
        let mut ready = false;
        self.net.split().1.for_each(|pair| {
            let [received, room] = pair.arm();
            ready |= room || received && pair.can_send() || pair.is_broken();
        });
        ready
    }

    /// Whether the device broke the rules of a ring: drop the driver.
    pub fn is_broken(&mut self) -> bool {
        self.net.split().1.any(|pair| pair.is_broken())
    }

    /// See [`NetPair::check`]; for all pairs.
    ///
    /// # Errors
    /// As there, of the first pair that has one.
    pub fn check(&mut self, now: Duration, patience: Duration) -> Result<(), QueueError> {
        self.net.split().1.try_for_each(|pair| pair.check(now, patience))
    }

    /// Copies the next frame of the pair that is the `ahead`th from the next one on, and says which pair that
    /// is. Frames that are longer than the stack takes are dropped.
    fn receive_from(&mut self, ahead: usize) -> Option<(usize, usize)> {
        let number = self.next.checked_add(ahead)?.checked_rem(self.net.pairs())?;
        let Self { net, received, .. } = self;
        let pair = net.split().1.nth(number)?;
        if !pair.can_send() {
            return None;
        }
        let mut len = None;
        // No more than there can be, whatever the device shows and hides again.
        let [most, _] = pair.queue_sizes();
        for _ in 0..most {
            if len.is_some() || !pair.has_received() {
                break;
            }
            let read = |frame: &RxFrame<'_>| {
                len = Some(frame.len()).filter(|&len| len <= received.len());
                frame.read(received);
            };
            pair.receive(1, read).ok()?;
        }
        len.map(|len| (number, len))
    }

    /// The next frame, and room for an answer. `None` also while nothing can be sent, since the stack may
    /// want to answer. A broken ring looks like silence: [`is_broken`](Self::is_broken) tells the difference.
    pub(super) fn next_frame(&mut self) -> Option<(Received<'_>, Transmit<'_, T::Notifier>)> {
        let (number, len) = (0..self.net.pairs()).find_map(|ahead| self.receive_from(ahead))?;
        self.next = number.wrapping_add(1);
        let frame = self.received.get_mut(..len)?;
        let pair = self.net.split().1.nth(number)?;
        Some((Received(frame), Transmit { pair, buffer: &mut self.to_send }))
    }

    /// Room for a frame.
    pub(super) fn room(&mut self) -> Option<Transmit<'_, T::Notifier>> {
        let pair = self.net.split().1.find_map(|pair| pair.can_send().then_some(pair))?;
        Some(Transmit { pair, buffer: &mut self.to_send })
    }

    /// Sends a frame that is made of parts, one behind the other, which are copied to where the device reads
    /// them. Returns whether there was room for it; one that is longer than the MTU allows, or a broken
    /// ring's, is lost, as frames may be. The device learns of it with the next [`kick`](Self::kick).
    pub fn send(&mut self, parts: &[&[u8]]) -> bool {
        let Some(pair) = self.net.split().1.find_map(|pair| pair.can_send().then_some(pair)) else {
            return false;
        };
        let _ = pair.send(1, |room| _ = room.write_parts(parts));
        true
    }

    /// The longest frame to send, in bytes.
    pub(super) fn longest(&self) -> usize {
        usize::from(self.net.control.mtu()).saturating_add(ETHERNET_HEADER_LEN)
    }
}

#[cfg(feature = "smoltcp")]
impl<T: Transport> Device for Phy<T> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a, T::Notifier>
    where
        Self: 'a;

    /// `None` also while nothing can be sent, since smoltcp may want to answer. A broken ring looks like
    /// silence: [`NetPair::receive`] tells the difference.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_, T::Notifier>)> {
        self.next_frame()
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_, T::Notifier>> {
        self.room()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = self.longest();
        capabilities
    }
}

/// A frame that was received.
pub struct Received<'a>(pub(super) &'a mut [u8]);

#[cfg(feature = "smoltcp")]
impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Permission to send one frame.
pub struct Transmit<'a, N> {
    pair: &'a mut NetPair<N>,
    buffer: &'a mut [u8],
}

impl<'a, N: Notify> Transmit<'a, N> {
    /// Sends the frame of `len` bytes that `write` writes. The device learns of it with the next kick, for
    /// which the pair is.
    pub(super) fn send<R>(self, len: usize, write: impl FnOnce(&mut [u8]) -> R) -> (R, &'a mut NetPair<N>) {
        let Some(frame) = self.buffer.get_mut(..len) else {
            // Longer than the capabilities allow: it cannot be sent.
            return (write(&mut vec![0; len]), self.pair);
        };
        let result = write(frame);
        send(self.pair, frame);
        (result, self.pair)
    }
}

#[cfg(feature = "smoltcp")]
impl<N: Notify> TxToken for Transmit<'_, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.send(len, write).0
    }
}

/// Apart from `consume`, of which there is one for each kind of packet.
#[inline(never)]
fn send<N: Notify>(pair: &mut NetPair<N>, frame: &[u8]) {
    // If it is longer than the MTU allows, or the ring is broken, the frame is lost, as frames may be.
    let _ = pair.send(1, |room| _ = room.write(frame));
}
