//! The virtio network card under the TCP/IP stack.

use alloc::rc::Rc;
use core::cell::Cell;
use core::task::{Context, Poll, Waker};

use ringfence_drivers::net::Phy;
use ringfence_drivers::virtio::{Counters, Error, PciTransport, QueueError};
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
    /// `None` once the device had to be given up.
    phy: Option<Phy<PciTransport>>,
    mac: [u8; 6],
    capabilities: DeviceCapabilities,
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
        shared.counters.set(phy.net.counters());
        let (mac, capabilities) = (phy.net.mac(), phy.capabilities());
        Self { phy: Some(phy), mac, capabilities, interrupts, shared, armed: true }
    }

    /// What can be seen of the card once the stack owns it.
    pub fn shared(&self) -> Rc<Shared> {
        self.shared.clone()
    }

    fn give_up(&mut self, why: Error) {
        log::error!("network card given up: {why}");
        // Resets the device.
        self.phy = None;
        self.shared.gone.set(true);
        self.shared.link_up.set(false);
    }

    /// Takes note of what the device called for, until nothing is left and it will wake the task.
    fn take_interrupts(&mut self, waker: &Waker) -> Result<(), Error> {
        let Some(phy) = &mut self.phy else { return Ok(()) };
        while let Poll::Ready(status) = self.interrupts.poll(&mut Context::from_waker(waker)) {
            if status.config && phy.net.config_changed()? {
                self.shared.link_up.set(phy.net.link_up());
                waker.wake_by_ref();
            }
        }
        Ok(())
    }
}

impl Device for Nic {
    type RxToken<'a> = <Phy<PciTransport> as Device>::RxToken<'a>;
    type TxToken<'a> = <Phy<PciTransport> as Device>::TxToken<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let phy = self.phy.as_mut()?;
        if core::mem::take(&mut self.armed) {
            phy.net.disable_interrupts();
        }
        phy.receive(now)
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.phy.as_mut()?.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl net::Nic for Nic {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link_up(&mut self) -> bool {
        self.shared.link_up.get()
    }

    fn flush(&mut self) {
        let Some(phy) = &mut self.phy else { return };
        phy.net.kick();
        let counted = phy.net.counters();
        let now = [0, 1].map(|queue| self.interrupts.count(queue));
        phy.net.count_interrupts([0, 1].map(|queue| now[queue].wrapping_sub(counted[queue].interrupts)));
        self.shared.counters.set(phy.net.counters());
        if phy.net.is_broken() {
            self.give_up(QueueError::Broken.into());
        }
    }

    fn register_waker(&mut self, waker: &Waker) {
        // The waker comes first: what arrives once interrupts are on wakes the task, and what is there already shows
        // when they are turned on.
        if let Err(error) = self.take_interrupts(waker) {
            self.give_up(error);
        }
        let Some(phy) = &mut self.phy else { return };
        self.armed = true;
        if phy.net.enable_interrupts() {
            waker.wake_by_ref();
        }
    }
}
