//! One after the other, with the buffers that are given away.
use ringfence_drivers::virtio::{
    BufferList, Device, Error, Notify, Offer, PciTransport, Queue, QueueOptions, Transport,
};
use ringfence_memory::*;

fn _bring_up(offer: Offer<PciTransport>, options: &QueueOptions) -> Result<Device<PciTransport>, Error> {
    let mut device = offer.negotiate(0)?;
    let mut queue = device.queue::<BufferList>(0, options, 1, |_| Ok(None))?;
    queue.start(&device.driver_ok()?);
    Ok(device)
}

fn _submit<N: Notify>(queue: &mut Queue<BufferList, N>, buffer: DmaBuf) -> Option<[Vec<DmaBuf>; 2]> {
    let refused = queue.submit(BufferList::new(1, vec![], vec![buffer], 0)).err();
    queue.kick();
    refused.map(|(_, list)| list.into_buffers())
}

fn _reset(transport: &mut PciTransport, windows: &DmaWindows) -> Result<Quiet, ResetError> {
    transport.reset(windows, core::time::Duration::ZERO)
}

fn _fields(device: &Device<PciTransport>) -> Result<u64, Error> {
    Ok(u64::from(device.config::<u32>(8)?) + device.config_u64(0)?)
}

fn main() {}
