//! The driver of this repository, through its public interface.

use alloc::vec::Vec;

use ringfence_drivers::net::{MAX_FRAME_LEN, Net};
use ringfence_drivers::pci::Function;
use ringfence_drivers::virtio::{Error, PciTransport};
use ringfence_kernel::devices::bring_up;
use ringfence_kernel::irq::DeviceInterrupts;

use crate::card::{Card, Costs, until};

/// Our driver. Each packet's contents are written `WRITES` times when sent and read `READS` times when received: once
/// and never, as a network stack that parses in place would, or once more, to find out what copying costs.
pub struct Ours<const WRITES: usize, const READS: usize> {
    // Before the interrupts, so that the device is reset before its vectors are free.
    net: Net<PciTransport>,
    interrupts: DeviceInterrupts,
    frame: Vec<u8>,
    copy: [u8; MAX_FRAME_LEN],
}

impl<const WRITES: usize, const READS: usize> Ours<WRITES, READS> {
    /// Brings the card up.
    pub fn open(function: &Function) -> Result<Self, Error> {
        let (mut net, interrupts, _) = bring_up(function, 2, Net::new)?;
        net.disable_interrupts();
        Ok(Self { net, interrupts, frame: Vec::new(), copy: [0; MAX_FRAME_LEN] })
    }
}

impl<const WRITES: usize, const READS: usize> Card for Ours<WRITES, READS> {
    fn features(&self) -> u64 {
        self.net.features()
    }

    fn load(&mut self, frame: &[u8]) {
        self.frame = frame.to_vec();
    }

    #[inline(never)]
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            let mut packet = until(|| self.net.take());
            for _ in 0..WRITES {
                packet.write(&self.frame).expect("the frame is short enough");
            }
            self.net.send(packet).expect("the packet is this card's");
        }
        self.net.kick();
    }

    #[inline(never)]
    fn receive(&mut self, most: usize) -> usize {
        let mut count = 0;
        while count < most
            && let Some(packet) = self.net.receive().expect("the ring is sound")
        {
            for _ in 0..READS {
                packet.read(&mut self.copy);
            }
            self.net.recycle(packet);
            count += 1;
        }
        if count > 0 {
            self.net.kick();
        }
        count
    }

    fn costs(&self) -> Option<Costs> {
        let kicks = self.net.counters().iter().map(|counters| counters.kicks).sum();
        Some(Costs { kicks, interrupts: Some([0, 1].map(|queue| self.interrupts.count(queue))) })
    }
}
