//! What a kernel does with its devices: finds them, brings them up, and lets each do its work.

use alloc::boxed::Box;
use core::fmt::Write;
use core::hint::black_box;
use core::num::NonZeroUsize;
use core::ptr::{self, NonNull};
use core::time::Duration;

#[cfg(feature = "blk")]
use ringfence_drivers::block::{Block, Request};
#[cfg(feature = "net")]
use ringfence_drivers::net::Net;
use ringfence_drivers::pci::{self, Function};
use ringfence_drivers::virtio::{DeviceType, Error, PciTransport};
use ringfence_memory::{
    ConfigPorts, DeviceId, Direction, DmaGrant, DmaMemory, DmaRegistry, DmaWindows, MmioMemory, PhysAddr,
    Platform, PlatformError,
};

use crate::Log;

struct Kernel {
    registry: DmaRegistry,
}

static KERNEL: Kernel = Kernel { registry: DmaRegistry::new() };
// SAFETY: nothing runs, so nobody else uses the ports.
static PORTS: ConfigPorts = unsafe { ConfigPorts::new() };

fn place(at: u64) -> Result<NonNull<u8>, PlatformError> {
    let at = ptr::with_exposed_provenance_mut(black_box(at) as usize);
    NonNull::new(at).ok_or(PlatformError::OutOfMemory)
}

unsafe fn free(start: NonNull<u8>, _: usize) {
    black_box(start);
}

// SAFETY: nothing runs, so nothing of what is promised is ever touched.
unsafe impl Platform for Kernel {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let len = pages.get().checked_mul(4096).ok_or(PlatformError::OutOfMemory)?;
        // SAFETY: as above.
        Ok(unsafe { DmaMemory::from_raw(place(1 << 20)?, len, 1 << 20, free) })
    }

    fn mmio_map(
        &self,
        _: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        // SAFETY: as above.
        Ok(unsafe { MmioMemory::new(place(start.value())?, len, Box::new(())) })
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(black_box(0))
    }

    fn registry(&self) -> &DmaRegistry {
        &self.registry
    }
}

/// Everything, as far as the features go.
pub fn run() {
    for function in pci::enumerate(&PORTS, 0) {
        if let Err(error) = bring_up(&function) {
            let _ = writeln!(Log, "{error}");
        }
    }
}

fn bring_up(function: &Function) -> Result<(), Error> {
    let id = function.address().id();
    match DeviceType::of(function) {
        #[cfg(feature = "blk")]
        Some(DeviceType::BLOCK) => disk(id, PciTransport::new(&KERNEL, function)?),
        #[cfg(feature = "net")]
        Some(DeviceType::NET) => card(id, PciTransport::new(&KERNEL, function)?),
        _ => Ok(()),
    }
}

#[cfg(feature = "blk")]
fn disk(id: DeviceId, transport: PciTransport) -> Result<(), Error> {
    let windows = DmaWindows::new(&KERNEL, id)?;
    // SAFETY: nothing runs, so no device does what it was not told.
    let grant = unsafe { DmaGrant::without_iommu(id) };
    let mut disk = Block::new(transport, &grant, windows.clone())?;
    let buffers = ringfence_memory::DmaPool::new(&windows, 32, 4096)?;
    for sector in black_box(0)..black_box(8) {
        let Some(buffer) = buffers.take() else { break };
        disk.queue.submit(match black_box(sector) & 3 {
            0 => Request::Flush,
            1 => Request::Read { sector, buffer, len: 4096 },
            _ => Request::Write { sector, buffer, len: 4096 },
        })?;
    }
    disk.queue.kick();
    while disk.queue.in_flight() > 0 {
        disk.queue.reap(|done| _ = black_box(done))?;
        while !disk.queue.enable_interrupts() {
            black_box(());
        }
        disk.queue.disable_interrupts();
    }
    Ok(())
}

#[cfg(feature = "net")]
fn card(id: DeviceId, transport: PciTransport) -> Result<(), Error> {
    let windows = DmaWindows::new(&KERNEL, id)?;
    // SAFETY: nothing runs, so no device does what it was not told.
    let grant = unsafe { DmaGrant::without_iommu(id) };
    let mut card = Net::new(transport, &grant, windows)?;
    let mut frame = [0; 1514];
    while black_box(true) {
        let mut len = 0;
        card.pair.receive(8, |received| len = received.read(&mut frame))?;
        card.pair.send(1, |room| _ = room.write(black_box(&frame[..len.min(1514)])))?;
        card.pair.kick();
        if !card.pair.enable_interrupts() {
            black_box(());
        }
        card.pair.disable_interrupts();
    }
    Ok(())
}
