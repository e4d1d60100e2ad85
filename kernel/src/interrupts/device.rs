//! The interrupts of one virtio device: MSI-X vectors, or else its line, or else a timer.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::pin::Pin;
use core::task::{Context, Poll};

use embassy_time::{Duration, Timer};
use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{InterruptStatus, IsrStatus, MmioIsr, MmioTransport, PciTransport};
use ringfence_memory::MsiMessage;

use crate::arch::pic;
use crate::interrupts::{self, Counter, Interrupt};

/// How often a device without any interrupt is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The register that says what an interrupt on a line was about.
#[expect(missing_docs, reason = "where it is")]
pub enum Isr {
    Pci(IsrStatus),
    Mmio(MmioIsr),
}

impl Isr {
    fn acknowledge(&self) -> InterruptStatus {
        match self {
            Self::Pci(isr) => isr.acknowledge(),
            Self::Mmio(isr) => isr.acknowledge(),
        }
    }
}

/// How a device calls for attention.
pub enum DeviceInterrupts {
    /// A vector for the configuration (the first), and one for each queue, as far as the device has so many:
    /// the last one serves the others. Those that were [taken](DeviceInterrupts::take) are missing.
    Msix(Vec<Option<Interrupt>>),
    /// The interrupt line, shared with others; the ISR register tells who called. And how often it was the
    /// queues.
    Line(Interrupt, Isr, Rc<Cell<u64>>),
    /// None could be had: the device is polled.
    Polled(Timer),
}

impl DeviceInterrupts {
    /// Sets up the best kind that the device and the machine have, for a device with `queues` queues.
    pub fn set_up(transport: &mut PciTransport, function: &Function, queues: u16) -> Self {
        let wanted = queues.saturating_add(1).min(transport.msix_vectors());
        let vectors: Vec<Interrupt> = (0..wanted).map_while(|_| interrupts::allocate()).collect();
        let messages: Vec<MsiMessage> = vectors
            .iter()
            .filter_map(Interrupt::message)
            // SAFETY: the message raises a vector of the local APIC that was allocated for this device.
            .map(|message| unsafe { MsiMessage::new(message.address, message.data) })
            .collect();
        if !messages.is_empty() && transport.use_msix(&messages).is_ok() {
            return Self::Msix(vectors.into_iter().map(Some).collect());
        }
        Self::line(transport, function)
    }

    /// Sets up the interrupt line.
    pub fn line(transport: &mut PciTransport, function: &Function) -> Self {
        match function.interrupt_line().and_then(|(line, _)| interrupts::allocate_line(line)) {
            Some(interrupt) => Self::Line(interrupt, Isr::Pci(transport.use_intx()), Rc::default()),
            None => Self::Polled(Timer::after(POLL_INTERVAL)),
        }
    }

    /// Sets up line `line` of a device over MMIO, whose level says that it calls.
    pub fn mmio(transport: &MmioTransport, line: u8) -> Self {
        let isr = transport.interrupts().ok().filter(|_| pic::set_level(line));
        match isr.and_then(|isr| Some((interrupts::allocate_line(line)?, isr))) {
            Some((interrupt, isr)) => Self::Line(interrupt, Isr::Mmio(isr), Rc::default()),
            None => Self::Polled(Timer::after(POLL_INTERVAL)),
        }
    }

    /// What the boot log calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Msix(_) => "MSI-X",
            Self::Line(_, Isr::Pci(_), _) => "INTx",
            Self::Line(_, Isr::Mmio(_), _) => "line",
            Self::Polled(_) => "polled",
        }
    }

    /// The MSI-X vector that serves queue `queue`, if there is one.
    pub fn vector(&self, queue: u16) -> Option<u16> {
        match self {
            Self::Msix(vectors) => vector(vectors.len(), queue),
            _ => None,
        }
    }

    /// What there is to be shown of them. To be asked for before any is [taken](Self::take).
    pub fn stats(&self) -> InterruptStats {
        let (mut vectors, mut line) = (Vec::new(), Rc::default());
        match self {
            Self::Msix(own) => vectors.extend(own.iter().flatten().map(Interrupt::counter)),
            Self::Line(.., count) => line = count.clone(),
            Self::Polled(_) => {}
        }
        InterruptStats { name: self.name(), vectors, line }
    }

    /// Takes the interrupt of queue `queue` for a task of its own. `None` if that serves others of the
    /// `queues` queues too.
    pub fn take(&mut self, queue: u16, queues: u16) -> Option<Interrupt> {
        let vector = self.vector(queue)?;
        let Self::Msix(vectors) = self else { return None };
        let is_last = usize::from(vector) + 1 == vectors.len();
        let is_shared = vector <= queue || is_last && queue + 1 < queues;
        if is_shared { None } else { vectors.get_mut(usize::from(vector))?.take() }
    }

    /// What the device called for since this was last ready; else wakes the task when it calls.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<InterruptStatus> {
        match self {
            Self::Msix(vectors) => {
                let shared = vectors.len() == 1;
                let mut status = InterruptStatus { queue: false, config: false };
                for (index, vector) in vectors.iter_mut().enumerate() {
                    let Some(vector) = vector else { continue };
                    // Vectors are polled until they are pending, so that each has the waker.
                    while vector.poll_wait(context).is_ready() {
                        status.config |= index == 0;
                        status.queue |= index > 0 || shared;
                    }
                }
                if status.queue || status.config { Poll::Ready(status) } else { Poll::Pending }
            }
            Self::Line(line, isr, count) => {
                while line.poll_wait(context).is_ready() {
                    let status = isr.acknowledge();
                    count.set(count.get() + u64::from(status.queue));
                    if status.queue || status.config {
                        return Poll::Ready(status);
                    }
                    // Another device on the line: wait on, which opens the line again.
                }
                Poll::Pending
            }
            Self::Polled(timer) => {
                if Pin::new(&mut *timer).poll(context).is_pending() {
                    return Poll::Pending;
                }
                *timer = Timer::after(POLL_INTERVAL);
                Poll::Ready(InterruptStatus { queue: true, config: true })
            }
        }
    }
}

/// The vector of `vectors` that serves queue `queue`.
fn vector(vectors: usize, queue: u16) -> Option<u16> {
    let last = u16::try_from(vectors).ok()?.checked_sub(1)?;
    Some(queue.saturating_add(1).min(last))
}

/// What a device's interrupts are, and how often each fired: for who shows it, while drivers and tasks have
/// the interrupts themselves.
#[derive(Clone, Debug)]
pub struct InterruptStats {
    name: &'static str,
    vectors: Vec<Counter>,
    /// Calls by the line for queues.
    line: Rc<Cell<u64>>,
}

impl InterruptStats {
    /// As [`DeviceInterrupts::name`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As [`DeviceInterrupts::vector`].
    pub fn vector(&self, queue: u16) -> Option<u16> {
        vector(self.vectors.len(), queue)
    }

    /// Interrupts so far of queue `queue`. Those that cannot be told apart count for the first.
    pub fn count(&self, queue: u16) -> u64 {
        match self.vector(queue) {
            Some(vector) if vector > queue || queue == 0 => {
                self.vectors.get(usize::from(vector)).map_or(0, |counter| counter.get())
            }
            None if queue == 0 => self.line.get(),
            _ => 0,
        }
    }
}
