//! The driver of this repository, through its public interface.

use alloc::vec::Vec;

use ringfence_drivers::net::{MAX_FRAME_LEN, Net, RxFrame, TxFrame};
use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::Error;
use ringfence_kernel::devices::bus::BusTransport;
use ringfence_kernel::devices::{Home, nic};
use ringfence_kernel::interrupts::device::{DeviceInterrupts, InterruptStats};

use crate::card::{Card, Costs, until};

/// Our driver. Each packet's contents are written `WRITES` times when sent and read `READS` times when
/// received: once and never, as a network stack that parses in place would, or once more, to find out what
/// copying costs.
pub struct Ours<const WRITES: usize, const READS: usize> {
    // Before the interrupts, so that the device is reset before its vectors are free.
    net: Net<BusTransport>,
    _interrupts: DeviceInterrupts,
    stats: InterruptStats,
    frame: Vec<u8>,
    copy: [u8; MAX_FRAME_LEN],
}

impl<const WRITES: usize, const READS: usize> Ours<WRITES, READS> {
    /// Brings the card up.
    pub fn open(function: &Function) -> Result<Self, Error> {
        let (mut net, interrupts) = nic::open(&Home::Pci(*function), 1)?;
        net.pair.disable_interrupts();
        Ok(Self {
            net,
            stats: interrupts.stats(),
            _interrupts: interrupts,
            frame: Vec::new(),
            copy: [0; MAX_FRAME_LEN],
        })
    }
}

/// Panics if the card is not driven as the kernel does: with the same features, and queues of the same size.
pub fn check(function: &Function) {
    let agreed = |net: &Net<BusTransport>| (net.control.features(), net.pair.queue_sizes());
    let kernels = nic::open(&Home::Pci(*function), 1).map(|(net, _)| agreed(&net));
    assert_eq!(Ours::<1, 0>::open(function).map(|ours| agreed(&ours.net)), kernels);
}

impl<const WRITES: usize, const READS: usize> Card for Ours<WRITES, READS> {
    fn features(&self) -> u64 {
        self.net.control.features()
    }

    fn load(&mut self, frame: &[u8]) {
        self.frame = frame.to_vec();
    }

    #[inline(never)]
    fn send(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            left -= until(|| {
                let frame = &self.frame;
                let write = |room: &mut TxFrame<'_>| (0..WRITES).for_each(|_| _ = room.write(frame));
                let sent = self.net.pair.send(left, write);
                Some(sent.expect("the ring is sound")).filter(|&sent| sent > 0)
            });
        }
        self.net.pair.kick();
    }

    #[inline(never)]
    fn receive(&mut self, _: usize) -> usize {
        let read = |frame: &RxFrame<'_>| (0..READS).for_each(|_| _ = frame.read(&mut self.copy));
        let count = self.net.pair.receive(usize::MAX, read).expect("the ring is sound");
        if count > 0 {
            self.net.pair.kick();
        }
        count
    }

    fn costs(&self) -> Option<Costs> {
        let kicks = self.net.pair.counters().iter().map(|counters| counters.kicks).sum();
        Some(Costs { kicks, interrupts: Some([0, 1].map(|queue| self.stats.count(queue))) })
    }
}
