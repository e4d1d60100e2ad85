//! The network driver as a driver of embassy-net.

use core::task::{Context, Waker};

use embassy_net_driver::{
    Capabilities, ChecksumCapabilities, Driver, HardwareAddress, LinkState, RxToken, TxToken,
};

use super::phy::{Phy, Received, Transmit};
use crate::virtio::{Notify, Transport};

/// A network driver for embassy-net.
///
/// `register` is given the waker of the stack's task each time that there is nothing to do for it: it keeps
/// the waker, and the device's interrupt wakes it.
pub struct EmbassyNet<T: Transport, F> {
    phy: Phy<T>,
    register: F,
}

impl<T: Transport, F: FnMut(&Waker)> EmbassyNet<T, F> {
    /// Wraps a driver.
    pub fn new(phy: Phy<T>, register: F) -> Self {
        Self { phy, register }
    }

    /// The driver, for what embassy-net does not ask: its health, and configuration interrupts.
    pub fn phy(&mut self) -> &mut Phy<T> {
        &mut self.phy
    }

    /// Nothing was there: from now on an interrupt tells when something is.
    fn sleep(&mut self, context: &Context<'_>) {
        (self.register)(context.waker());
        if self.phy.enable_interrupts() && !self.phy.is_broken() {
            context.waker().wake_by_ref();
        }
    }
}

impl<T: Transport, F: FnMut(&Waker)> Driver for EmbassyNet<T, F> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a, T::Notifier>
    where
        Self: 'a;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        if !self.phy.has_received() || self.phy.room().is_none() {
            // Buffers that were read go back to the device.
            self.phy.kick();
            self.sleep(context);
        }
        self.phy.next_frame()
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<Self::TxToken<'_>> {
        if self.phy.room().is_none() {
            self.sleep(context);
        }
        self.phy.room()
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        (self.register)(context.waker());
        if self.phy.net.control.link_up() { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = self.phy.longest();
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.phy.net.control.mac())
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl<N: Notify> TxToken for Transmit<'_, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let (result, pair) = self.send(len, write);
        // Nothing says when the last frame of a batch was sent.
        pair.kick();
        result
    }
}
