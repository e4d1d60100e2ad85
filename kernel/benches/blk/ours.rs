//! The driver of this repository, through its public interface.

use core::task::{Context, Waker};

use heapless::Vec;
use ringfence_drivers::block::{Block, Request};
use ringfence_drivers::virtio::Hybrid;
use ringfence_kernel::devices::bus::BusTransport;
use ringfence_kernel::devices::second_look::SecondLook;
use ringfence_kernel::devices::{Home, disk};
use ringfence_kernel::interrupts::device::{DeviceInterrupts, InterruptStats};
use ringfence_memory::DmaBuf;
use x86_64::instructions::interrupts;

use crate::Disk;
use crate::workload::{Costs, Guest, Places, Watch, Workload};

/// The most requests in flight, as for the driver.
const DEEPEST: usize = 64;
/// Looks that find nothing before the processor stops: some 10 µs under QEMU, where stopping and being woken
/// takes 50.
const LOOKS: u32 = 512;

/// What to do when nothing was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Look again.
    Poll,
    /// Look again as often as pays, then ask for an interrupt and stop the processor until it comes: see
    /// [`Hybrid`].
    Interrupt,
}

/// `WRITE`: what all its requests do.
pub struct Ours<const WRITE: bool> {
    disk: Block<BusTransport>,
    // After the driver, which resets the device.
    _interrupts: DeviceInterrupts,
    stats: InterruptStats,
    free: Vec<DmaBuf, DEEPEST>,
    places: Places,
    len: usize,
    wait: Wait,
    hybrid: Hybrid,
    look: SecondLook,
    halts: u64,
}

/// What a driver and its disk have agreed on: size and depth of the queue, and features.
pub fn agreed(disk: &Block<BusTransport>) -> (u16, usize, u64) {
    (disk.queue.queue_size(), disk.queue.depth(), disk.control.features())
}

impl<const WRITE: bool> Ours<WRITE> {
    /// Brings the disk up. `None` if not so many requests fit its queue.
    pub fn new(disk: &Disk, workload: &Workload, depth: usize, wait: Wait) -> Option<Self> {
        let kernels = disk.agreed;
        let (mut disk, interrupts) =
            disk::open(&disk.windows, &Home::Pci(disk.function), 1).expect("the disk starts");
        assert_eq!(agreed(&disk), kernels, "the disk is not driven as the kernel does");
        disk.queue.disable_interrupts();
        if depth > disk.queue.depth().min(DEEPEST) {
            return None;
        }
        let free = (0..depth).filter_map(|_| workload.pool.take()).collect();
        let (places, len) = (workload.places(), workload.len);
        let (hybrid, look) = (Hybrid::new(LOOKS), SecondLook::default());
        let (stats, _interrupts) = (interrupts.stats(), interrupts);
        Some(Self { disk, _interrupts, stats, free, places, len, wait, hybrid, look, halts: 0 })
    }
}

impl<const WRITE: bool> Guest for Ours<WRITE> {
    fn submit(&mut self, watch: &mut impl Watch) {
        while let Some(buffer) = self.free.pop() {
            let sector = self.places.next();
            let request = match WRITE {
                false => Request::Read { sector, buffer, len: self.len },
                true => Request::Write { sector, buffer, len: self.len },
            };
            let ticket = self.disk.queue.submit(request).expect("the ring has room for the depth");
            watch.submitted(ticket.index());
        }
        self.disk.queue.kick();
    }

    fn complete(&mut self, watch: &mut impl Watch) -> usize {
        let free = &mut self.free;
        let reaped = self.disk.queue.reap(|done| {
            done.result.expect("the request succeeds");
            watch.completed(done.ticket.index());
            let _ = free.push(done.buffer.expect("the request had one"));
        });
        let reaped = reaped.expect("the ring is sound");
        if self.wait == Wait::Interrupt && reaped > 0 {
            let _ = self.hybrid.look_again(reaped, self.disk.queue.in_flight());
        }
        reaped
    }

    fn wait(&mut self) {
        if self.wait == Wait::Poll || self.hybrid.look_again(0, self.disk.queue.in_flight()) {
            return;
        }
        self.look.want();
        // Whoever the timer wakes, the processor goes on.
        if self.look.poll(&mut Context::from_waker(Waker::noop())) {
            self.disk.queue.kick_again();
        }
        if !self.disk.queue.enable_interrupts() {
            self.halts += 1;
            // Both at once: an interrupt that comes before the processor stops is not lost.
            interrupts::enable_and_hlt();
            interrupts::disable();
        }
        self.disk.queue.disable_interrupts();
    }

    fn costs(&self) -> Option<Costs> {
        let (interrupts, kicks) = (self.stats.count(0), self.disk.queue.counters().kicks);
        Some(Costs { kicks, accesses: kicks, interrupts, halts: self.halts })
    }
}
