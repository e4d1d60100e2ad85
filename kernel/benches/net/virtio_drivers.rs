//! The crate `virtio-drivers`, by its calls that do not block. It keeps no buffers of its own: these are
//! ours.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ::virtio_drivers::device::net::VirtIONetRaw;
use ::virtio_drivers::transport::Transport;
use ::virtio_drivers::transport::pci::PciTransport;
use ringfence_drivers::net;
use ringfence_drivers::virtio::features;

use crate::card::{Card, Costs, Place, until};
use crate::support::hal::{self, Claim, Memory};

/// Descriptors of each queue.
const SIZE: usize = 256;
const HEADER_LEN: usize = 12;
/// What the crate knows.
const FEATURES: u64 = net::features::MAC
    | net::features::STATUS
    | features::EVENT_IDX
    | features::INDIRECT_DESC
    | features::VERSION_1;

/// Lies in one page.
#[repr(align(2048))]
struct Buffer([u8; 2048]);

pub struct VirtioDrivers {
    net: VirtIONetRaw<Memory, PciTransport, SIZE>,
    // After the driver, which resets the device.
    #[expect(clippy::vec_box, reason = "a reference to one is none to those that the device has")]
    buffers: Vec<Box<Buffer>>,
    frame: Box<Buffer>,
    _claim: Claim,
    /// Length of the frame with its header.
    len: usize,
    /// Buffers in the receive queue, by token.
    receiving: [usize; SIZE],
    /// How many packets are in the transmit queue.
    sending: usize,
    features: u64,
}

impl VirtioDrivers {
    /// Brings the card up.
    pub fn open(place: &Place) -> Self {
        let (mut transport, claim) = hal::take(&place.function, place.access);
        let features = transport.read_device_features() & FEATURES;
        let net = VirtIONetRaw::new(transport).expect("the card starts under virtio-drivers");
        let buffer = || Box::new(Buffer([0; 2048]));
        let mut card = Self {
            net,
            buffers: (0..SIZE).map(|_| buffer()).collect(),
            frame: buffer(),
            _claim: claim,
            len: HEADER_LEN,
            receiving: [0; SIZE],
            sending: 0,
            features,
        };
        card.net.disable_interrupts();
        (0..SIZE).for_each(|index| card.give(index));
        card
    }

    /// Puts the buffer with this index into the receive queue.
    fn give(&mut self, index: usize) {
        // SAFETY: the buffer is not touched until its token comes back, and outlives the driver.
        let token = unsafe { self.net.receive_begin(&mut self.buffers[index].0) };
        self.receiving[usize::from(token.expect("there is room"))] = index;
    }

    /// Takes back what was sent, at least one packet.
    fn reclaim(&mut self) {
        let mut token = Some(until(|| self.net.poll_transmit()));
        while let Some(sent) = token {
            // SAFETY: every packet is this frame, with this length.
            unsafe { self.net.transmit_complete(sent, &self.frame.0[..self.len]) }.expect("it was sent");
            self.sending -= 1;
            token = self.net.poll_transmit();
        }
    }
}

impl Card for VirtioDrivers {
    fn features(&self) -> u64 {
        self.features
    }

    fn load(&mut self, frame: &[u8]) {
        while self.sending > 0 {
            self.reclaim();
        }
        self.len = HEADER_LEN + frame.len();
        self.frame.0[HEADER_LEN..self.len].copy_from_slice(frame);
    }

    #[inline(never)]
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            while !self.net.can_send() {
                self.reclaim();
            }
            // SAFETY: the frame is only changed when nothing is being sent, and outlives the driver.
            unsafe { self.net.transmit_begin(&self.frame.0[..self.len]) }.expect("there is room");
            self.sending += 1;
        }
    }

    #[inline(never)]
    fn receive(&mut self, most: usize) -> usize {
        let mut count = 0;
        while count < most
            && let Some(token) = self.net.poll_receive()
        {
            let index = self.receiving[usize::from(token)];
            // SAFETY: this is the token's buffer.
            unsafe { self.net.receive_complete(token, &mut self.buffers[index].0) }
                .expect("it is long enough");
            self.give(index);
            count += 1;
        }
        count
    }

    fn costs(&self) -> Option<Costs> {
        None
    }
}
