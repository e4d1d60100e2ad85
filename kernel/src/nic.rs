//! The virtio network card under the TCP/IP stack.

use alloc::rc::Rc;
use core::cell::Cell;
use core::task::{Context, Poll, Waker};

use ringfence_drivers::net::Phy;
use ringfence_drivers::virtio::{Counters, PciTransport};
use ringfence_services::net;
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;

use crate::irq::DeviceInterrupts;

/// What others see of a card that the stack owns.
#[derive(Debug, Default)]
pub struct Shared {
    /// The receive and the transmit queue.
    pub counters: Cell<[Counters; 2]>,
    /// Whether the link is up.
    pub link_up: Cell<bool>,
    /// Whether the device had to be given up.
    pub gone: Cell<bool>,
}

/// A network card.
pub struct Nic {
    phy: Phy<PciTransport>,
    interrupts: DeviceInterrupts,
    shared: Rc<Shared>,
    /// Whether receive interrupts are on.
    armed: bool,
}

impl Nic {
    /// Takes a driver whose device has just been brought up.
    pub fn new(phy: Phy<PciTransport>, interrupts: DeviceInterrupts) -> Self {
        let shared = Rc::new(Shared::default());
        shared.link_up.set(phy.net.link_up());
        Self { phy, interrupts, shared, armed: false }
    }

    /// What can be seen of the card once the stack owns it.
    pub fn shared(&self) -> Rc<Shared> {
        self.shared.clone()
    }

    fn disarm(&mut self) {
        if self.armed {
            self.phy.net.disable_interrupts();
            self.armed = false;
        }
    }

    fn publish(&mut self) {
        let counters = self.phy.net.counters();
        let now = self.interrupts.counts::<2>();
        let [receive, transmit] = [0, 1].map(|queue| now[queue].wrapping_sub(counters[queue].interrupts));
        self.phy.net.count_interrupts([receive, transmit]);
        self.shared.counters.set(self.phy.net.counters());
        if self.phy.net.is_broken() && !self.shared.gone.replace(true) {
            log::error!("network card given up: it broke the rules of its ring");
            self.shared.link_up.set(false);
        }
    }
}

impl Device for Nic {
    type RxToken<'a> = <Phy<PciTransport> as Device>::RxToken<'a>;
    type TxToken<'a> = <Phy<PciTransport> as Device>::TxToken<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.disarm();
        self.phy.receive(now)
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.phy.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.phy.capabilities()
    }
}

impl net::Nic for Nic {
    fn mac(&self) -> [u8; 6] {
        self.phy.net.mac()
    }

    fn link_up(&mut self) -> bool {
        self.shared.link_up.get()
    }

    fn flush(&mut self) {
        self.phy.net.kick();
        self.publish();
    }

    fn register_waker(&mut self, waker: &Waker) {
        if self.shared.gone.get() {
            return;
        }
        self.armed = true;
        if self.phy.net.enable_interrupts() {
            waker.wake_by_ref();
            return;
        }
        if let Poll::Ready(status) = self.interrupts.poll(&mut Context::from_waker(waker)) {
            if status.config {
                match self.phy.net.config_changed() {
                    Ok(_) => self.shared.link_up.set(self.phy.net.link_up()),
                    Err(error) => {
                        log::error!("network card given up: {error}");
                        self.shared.gone.set(true);
                        self.shared.link_up.set(false);
                    }
                }
            }
            waker.wake_by_ref();
        }
    }
}
