//! The virtio network card under the TCP/IP stack.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::mem;
use core::task::{Context, Poll, Waker};

use ringfence_drivers::net::Phy;
use ringfence_drivers::virtio::{Counters, Error, PciTransport, QueueError};
use ringfence_services::net;
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;

use crate::irq::DeviceInterrupts;
use crate::second_look::SecondLook;

/// What others see of a card that the stack owns.
#[derive(Debug)]
pub struct Shared {
    /// What each queue has done: receive and transmit of one pair after the other.
    counters: RefCell<Vec<Counters>>,
    /// Number of descriptors of each queue.
    pub sizes: Vec<u16>,
    /// Whether the link is up.
    pub link_up: Cell<bool>,
    /// Whether the device had to be given up.
    pub gone: Cell<bool>,
}

impl Shared {
    /// What queue `index` has done.
    pub fn counters(&self, index: usize) -> Counters {
        self.counters.borrow().get(index).copied().unwrap_or_default()
    }
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
    /// Whether there was room for a frame that the stack wanted to send, since it last slept.
    sent: bool,
    /// When the card is looked at though the stack sleeps.
    look: SecondLook,
}

impl Nic {
    /// Takes a driver whose device has just been brought up.
    pub fn new(mut phy: Phy<PciTransport>, interrupts: DeviceInterrupts) -> Self {
        let (mac, capabilities) = (phy.net.mac(), phy.capabilities());
        let sizes: Vec<u16> = phy.net.split().1.flat_map(|pair| pair.queue_sizes()).collect();
        let shared = Shared {
            counters: RefCell::new(alloc::vec![Counters::default(); sizes.len()]),
            sizes,
            link_up: Cell::new(phy.net.link_up()),
            gone: Cell::new(false),
        };
        let (shared, look) = (Rc::new(shared), SecondLook::default());
        Self { phy: Some(phy), mac, capabilities, interrupts, shared, armed: true, sent: false, look }
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
        // They stay on where there is nothing: to turn them off and on is a chance to lose one.
        if self.armed && phy.has_received() {
            self.armed = false;
            phy.disable_interrupts();
        }
        phy.receive(now)
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        let room = self.phy.as_mut()?.transmit(now);
        self.sent |= room.is_some();
        room
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
        phy.kick();
        let mut counters = self.shared.counters.borrow_mut();
        let queues = (0..).step_by(2).zip(counters.as_chunks_mut::<2>().0);
        for ((queue, counters), pair) in queues.zip(phy.net.split().1) {
            let now = [queue, queue + 1].map(|queue| self.interrupts.count(queue));
            let counted = pair.counters().map(|counters| counters.interrupts);
            pair.count_interrupts([0, 1].map(|queue| now[queue].wrapping_sub(counted[queue])));
            *counters = pair.counters();
        }
        drop(counters);
        if phy.is_broken() {
            self.give_up(QueueError::Broken.into());
        }
    }

    fn register_waker(&mut self, waker: &Waker) {
        // The waker comes first: what arrives once interrupts are on wakes the task, and what is there
        // already shows when they are turned on.
        if let Err(error) = self.take_interrupts(waker) {
            self.give_up(error);
        }
        let Some(phy) = &mut self.phy else { return };
        if !mem::replace(&mut self.armed, true) | mem::take(&mut self.sent) {
            self.look.want();
        }
        if self.look.poll(&mut Context::from_waker(waker)) {
            phy.kick_again();
        }
        if phy.enable_interrupts() {
            waker.wake_by_ref();
        }
    }
}
