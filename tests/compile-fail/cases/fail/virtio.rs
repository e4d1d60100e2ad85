//! What a queue holds, and what a driver may do in which state of its device, is not for others to say.
use ringfence_drivers::virtio::{
    BufferList, Buffers, Device, DriverOk, Notify, Offer, PciTransport, Queue, Transport,
};
use ringfence_memory::*;

/// It tells the device of a buffer that somebody else has.
#[derive(Default)]
struct Shared<'a>(Option<&'a DmaBuf>);

impl Buffers for Shared<'_> { //~ E0277 foreign_buffers
    type Context = ();
    type Request = ();

    fn only<'a>(&'a self, (): (), (): &'a ()) -> Option<Segment<'a>> {
        self.0?.segment(0, 16, true)
    }

    fn least_written(&self) -> u32 {
        0
    }

    fn abandon(self) {}
}

fn exchanged_in_the_ring<N: Notify>(queue: &mut Queue<BufferList, N>) {
    let _ = queue.renew(1, |_, _| true); //~ E0624 exchanged_in_the_ring
}

fn queue_before_negotiation(offer: &mut Offer<PciTransport>) {
    let _ = offer.queue(); //~ E0599 queue_before_negotiation
}

fn started_before_negotiation(offer: &mut Offer<PciTransport>) {
    let _ = offer.driver_ok(); //~ E0599 started_before_negotiation
}

fn started_by_nobody(life: Life) -> DriverOk {
    life.into() //~ E0277 started_by_nobody
}

fn reset_that_is_only_said(transport: &mut PciTransport, windows: &DmaWindows) -> Quiet {
    transport.reset(windows, core::time::Duration::ZERO).map(|_| ()) //~ E0308 reset_that_is_only_said
}

fn status_written(common: &CommonConfig) {
    common.registers.write_status(0); //~ E0616 status_written
}

fn torn_field(device: &Device<PciTransport>) {
    let _ = device.config::<u64>(0); //~ E0277 torn_field
}

fn torn_field_of_an_offer(offer: &Offer<PciTransport>) {
    let _ = offer.config::<u64>(0); //~ E0277 torn_field_of_an_offer
}

fn main() {}
