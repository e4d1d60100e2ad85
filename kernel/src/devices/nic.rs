//! The virtio network card under the TCP/IP stack.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::mem;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use ringfence_drivers::net::{self, Net, Options, Phy};
use ringfence_drivers::virtio::{Counters, DeviceType, Error, RESET_LIMIT, features};
use ringfence_memory::DmaWindows;
use ringfence_services::net as stack;
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;

use crate::devices::bus::BusTransport;
use crate::devices::second_look::SecondLook;
use crate::devices::{Driver, Home, InUse, Started};
use crate::executor::Task;
use crate::interrupts::device::{DeviceInterrupts, InterruptStats};
use crate::platform::KERNEL;
use crate::time;

/// How a network card is driven, unless more pairs of queues are wished.
const OPTIONS: Options = Options { pairs: 1, queue_size: 256, features: features::QUEUES };

/// How long a card may keep all frames that it is to send. Longer than the 5 s of Linux, which only warns
/// then: here the card is given up for good, and a host may hold frames back for seconds, while it is
/// migrated or whoever takes them is stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// What others see of a card that the stack owns.
#[derive(Debug)]
pub struct Shared {
    /// What each queue has done: receive and transmit of one pair after the other.
    counters: RefCell<Vec<Counters>>,
    /// Number of descriptors of each queue.
    pub sizes: Vec<u16>,
    /// How often each has interrupted.
    pub interrupts: InterruptStats,
    features: u64,
    /// Whether the link is up.
    pub link_up: Cell<bool>,
    /// Whether the device had to be given up.
    pub gone: Cell<bool>,
    /// Whether the device is to be given up.
    leave: Cell<bool>,
    /// Whether it was reset after that.
    reset: Cell<bool>,
    /// The task that runs the stack.
    runner: RefCell<Option<Waker>>,
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
    phy: Option<Phy<BusTransport>>,
    /// While a device that was given up resets.
    leaving: Option<Task>,
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
    pub fn new(mut phy: Phy<BusTransport>, interrupts: DeviceInterrupts) -> Self {
        let (mac, capabilities) = (phy.net.control.mac(), phy.capabilities());
        let sizes: Vec<u16> = phy.net.split().1.flat_map(|pair| pair.queue_sizes()).collect();
        let shared = Shared {
            counters: RefCell::new(alloc::vec![Counters::default(); sizes.len()]),
            sizes,
            interrupts: interrupts.stats(),
            features: phy.net.control.features(),
            link_up: Cell::new(phy.net.control.link_up()),
            gone: Cell::default(),
            leave: Cell::default(),
            reset: Cell::default(),
            runner: RefCell::default(),
        };
        let (shared, look) = (Rc::new(shared), SecondLook::default());
        Self {
            phy: Some(phy),
            leaving: None,
            mac,
            capabilities,
            interrupts,
            shared,
            armed: true,
            sent: false,
            look,
        }
    }

    /// What can be seen of the card once the stack owns it.
    pub fn shared(&self) -> Rc<Shared> {
        self.shared.clone()
    }

    fn give_up(&mut self, why: Error) {
        log::error!("network card given up: {why}");
        self.let_go();
    }

    fn let_go(&mut self) {
        let Some(phy) = self.phy.take() else { return };
        self.leaving = Some(Box::pin(reset(phy)));
        self.shared.gone.set(true);
        self.shared.link_up.set(false);
    }

    /// Takes note of what the device called for, until nothing is left and it will wake the task.
    fn take_interrupts(&mut self, waker: &Waker) -> Result<(), Error> {
        let Some(phy) = &mut self.phy else { return Ok(()) };
        while let Poll::Ready(status) = self.interrupts.poll(&mut Context::from_waker(waker)) {
            if status.config && phy.net.control.config_changed()? {
                self.shared.link_up.set(phy.net.control.link_up());
                waker.wake_by_ref();
            }
        }
        Ok(())
    }
}

/// Resets the device of a driver, and drops that when nothing waits for it any more.
async fn reset(mut phy: Phy<BusTransport>) {
    let control = &mut phy.net.control;
    if control.begin_shut_down().is_ok() {
        time::look_for(RESET_LIMIT, || control.poll_shut_down()).await;
    }
}

impl Device for Nic {
    type RxToken<'a> = <Phy<BusTransport> as Device>::RxToken<'a>;
    type TxToken<'a> = <Phy<BusTransport> as Device>::TxToken<'a>;

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

impl stack::Nic for Nic {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link_up(&mut self) -> bool {
        self.shared.link_up.get()
    }

    fn send(&mut self, parts: &[&[u8]]) -> bool {
        let room = self.phy.as_mut().is_some_and(|phy| phy.send(parts));
        self.sent |= room;
        room
    }

    fn flush(&mut self) {
        let Some(phy) = &mut self.phy else { return };
        phy.kick();
        let mut counters = self.shared.counters.borrow_mut();
        for (counters, pair) in counters.as_chunks_mut::<2>().0.iter_mut().zip(phy.net.split().1) {
            *counters = pair.counters();
        }
        drop(counters);
        if let Err(error) = phy.check(time::now(), PATIENCE) {
            self.give_up(error.into());
        }
    }

    fn register_waker(&mut self, waker: &Waker) {
        *self.shared.runner.borrow_mut() = Some(waker.clone());
        if self.shared.leave.take() {
            self.let_go();
        }
        // The waker comes first: what arrives once interrupts are on wakes the task, and what is there
        // already shows when they are turned on.
        if let Err(error) = self.take_interrupts(waker) {
            self.give_up(error);
        }
        let mut context = Context::from_waker(waker);
        if self.leaving.as_mut().is_some_and(|leaving| leaving.as_mut().poll(&mut context).is_ready()) {
            self.leaving = None;
            self.shared.reset.set(true);
        }
        let Some(phy) = &mut self.phy else { return };
        if !mem::replace(&mut self.armed, true) | mem::take(&mut self.sent) {
            self.look.want();
        }
        if self.look.poll(&mut context) {
            phy.kick_again();
        }
        if phy.enable_interrupts() {
            waker.wake_by_ref();
        }
    }
}

/// The driver of network cards.
pub struct Nics;

impl Driver for Nics {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn kind(&self) -> DeviceType {
        DeviceType::NET
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        net::features::NAMES
    }

    fn most(&self) -> usize {
        4
    }

    fn start(&self, home: &Home, started: &mut Started) -> Result<(InterruptStats, Box<dyn InUse>), Error> {
        let (net, interrupts) = open(home, started.queues)?;
        let nic = Nic::new(Phy::new(net), interrupts);
        let shared = nic.shared();
        started.nics.push(nic);
        Ok((shared.interrupts.clone(), Box::new(shared)))
    }
}

/// Brings a network card up with at most `pairs` pairs of queues, as all cards here, and as what is measured.
///
/// # Errors
/// As for [`Home::bring_up`].
pub fn open(home: &Home, pairs: u16) -> Result<(Net<BusTransport>, DeviceInterrupts), Error> {
    let options = Options { pairs, ..OPTIONS };
    let windows = DmaWindows::new(&KERNEL, home.id())?;
    // Each pair has two queues.
    home.bring_up(&windows, 2 * pairs, |transport, grant, windows| {
        Net::with_options(transport, grant, windows, &options)
    })
}

impl InUse for Rc<Shared> {
    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> Vec<(u16, Counters)> {
        self.sizes.iter().copied().zip(self.counters.borrow().iter().copied()).collect()
    }

    fn leave(&self) -> Task {
        let shared = self.clone();
        Box::pin(async move {
            // The stack has the card.
            shared.leave.set(true);
            if let Some(waker) = shared.runner.take() {
                waker.wake();
            }
            time::look_for(RESET_LIMIT, || (shared.gone.get() && shared.reset.get()).then_some(())).await;
        })
    }
}
