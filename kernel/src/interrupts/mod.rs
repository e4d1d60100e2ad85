//! Interrupts as tasks see them: a handler acknowledges, counts and wakes, and never does any work.

pub mod device;

use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;

use crate::arch::{apic, pic};
use crate::time;

/// First vector for devices.
const FIRST_VECTOR: u8 = 0x30;
const SLOTS: usize = (apic::TIMER_VECTOR - FIRST_VECTOR) as usize;
const NO_LINE: u8 = u8::MAX;

/// One interrupt source: a vector of its own, or a share of an INTx line.
struct Slot {
    taken: AtomicBool,
    line: AtomicU8,
    count: AtomicU64,
    waker: AtomicWaker,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            line: AtomicU8::new(NO_LINE),
            count: AtomicU64::new(0),
            waker: AtomicWaker::new(),
        }
    }

    fn fire(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// Interrupts that no device claims.
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// Sets up both interrupt controllers and lets the processor take interrupts.
///
/// # Safety
/// As for [`apic::init`].
pub unsafe fn init(apic_registers: VirtAddr) {
    pic::init();
    // SAFETY: the caller vouches for the mapping.
    unsafe { apic::init(apic_registers) };
    time::init_timer();
    interrupts::enable();
}

/// What a device writes where, to interrupt (PCI Local Bus Specification 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// One interrupt source, owned by who waits for it. Dropping it gives the vector back: the device must have
/// been told not to use it any more.
#[derive(Debug)]
pub struct Interrupt {
    index: usize,
    seen: u64,
}

/// How often an interrupt fired, for whoever shows it. To be read while the interrupt has its owner: after
/// that the number is that of the next one.
#[derive(Clone, Copy, Debug)]
pub struct Counter(usize);

impl Counter {
    /// How often it fired since it was claimed.
    pub fn get(self) -> u64 {
        TABLE[self.0].count.load(Ordering::Acquire)
    }
}

/// Claims a vector for MSI or MSI-X; `None` if all are taken.
pub fn allocate() -> Option<Interrupt> {
    claim(NO_LINE)
}

/// Claims a share of INTx line `line`, as the Interrupt Line register names it (0 to 15); `None` if there is
/// no such line or too many interrupts are in use.
pub fn allocate_line(line: u8) -> Option<Interrupt> {
    if line < pic::LINES { claim(line) } else { None }
}

fn claim(line: u8) -> Option<Interrupt> {
    let index = TABLE.iter().position(|slot| !slot.taken.swap(true, Ordering::Acquire))?;
    let slot = &TABLE[index];
    slot.count.store(0, Ordering::Relaxed);
    slot.line.store(line, Ordering::Relaxed);
    Some(Interrupt { index, seen: 0 })
}

impl Interrupt {
    fn slot(&self) -> &'static Slot {
        &TABLE[self.index]
    }

    /// What the device is to write to raise this interrupt; `None` for an INTx line.
    pub fn message(&self) -> Option<Message> {
        (self.slot().line.load(Ordering::Relaxed) == NO_LINE).then(|| Message {
            address: 0xfee0_0000 | u64::from(apic::id() & 0xff) << 12,
            data: u32::from(FIRST_VECTOR) + self.index as u32,
        })
    }

    /// How often it fired since it was claimed.
    pub fn count(&self) -> u64 {
        self.counter().get()
    }

    /// That number, to be read by others.
    pub fn counter(&self) -> Counter {
        Counter(self.index)
    }

    /// Ready if it fired since this was last ready; else wakes the task when it does. An INTx line is open
    /// only while someone waits: call this when the device has been served.
    pub fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let slot = self.slot();
        slot.waker.register(context.waker());
        let count = slot.count.load(Ordering::Acquire);
        if count != self.seen {
            self.seen = count;
            return Poll::Ready(());
        }
        match slot.line.load(Ordering::Relaxed) {
            NO_LINE => {}
            line => pic::unmask(line),
        }
        Poll::Pending
    }

    /// Waits until it fires; at once if it has fired since the last wait.
    pub async fn wait(&mut self) {
        poll_fn(|context| self.poll_wait(context)).await;
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let slot = self.slot();
        slot.line.store(NO_LINE, Ordering::Relaxed);
        slot.waker.take();
        slot.taken.store(false, Ordering::Release);
    }
}

/// Interrupts that arrived for nobody, or were spurious.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Ordering::Relaxed)
}

/// Called by the interrupt stubs, with interrupts disabled.
pub(crate) fn dispatch(vector: u8) {
    match vector {
        pic::FIRST_VECTOR..FIRST_VECTOR => {
            let line = vector - pic::FIRST_VECTOR;
            let mut served = false;
            if pic::acknowledge(line) {
                for slot in TABLE.iter().filter(|slot| slot.line.load(Ordering::Relaxed) == line) {
                    slot.fire();
                    served = true;
                }
            }
            count_unexpected(!served);
        }
        FIRST_VECTOR..apic::TIMER_VECTOR => {
            let slot = &TABLE[usize::from(vector - FIRST_VECTOR)];
            slot.fire();
            count_unexpected(!slot.taken.load(Ordering::Relaxed));
            apic::end_of_interrupt();
        }
        apic::TIMER_VECTOR => {
            time::on_timer();
            apic::end_of_interrupt();
        }
        apic::SPURIOUS_VECTOR => count_unexpected(true),
        _ => {
            count_unexpected(true);
            apic::end_of_interrupt();
        }
    }
}

fn count_unexpected(unexpected: bool) {
    UNEXPECTED.fetch_add(u64::from(unexpected), Ordering::Relaxed);
}

struct SingleProcessor;
critical_section::set_impl!(SingleProcessor);

// SAFETY: there is one processor, so with interrupts disabled nothing else runs. The state is whether they
// were enabled, and only the outermost section enables them again.
unsafe impl critical_section::Impl for SingleProcessor {
    unsafe fn acquire() -> bool {
        let enabled = interrupts::are_enabled();
        interrupts::disable();
        enabled
    }

    unsafe fn release(enabled: bool) {
        if enabled {
            interrupts::enable();
        }
    }
}
