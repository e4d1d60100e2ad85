//! What the crate `virtio-drivers` needs of a kernel, at its best: no copying, and looking an address up is
//! cheap.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use ringfence_drivers::pci::Function;
use ringfence_kernel::memory::space;
use ringfence_memory::{
    ConfigAccess, Dma, DmaGrant, FrameRequest, MappedPages, PAGE_SIZE, PciAddress, VirtAddr,
};
use spin::Mutex;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::raw::Bars;

/// Implements [`Hal`] with the kernel's memory.
pub struct Memory;

static DMA: Mutex<Vec<MappedPages<Dma>>> = Mutex::new(Vec::new());
/// The claimed registers of each device.
static REGISTERS: Mutex<Vec<Bars>> = Mutex::new(Vec::new());
/// Where pages are, remembered by the low bits of their number: page number and frame number of each.
static PAGES: [[AtomicU64; 2]; CACHED] = [const { [const { AtomicU64::new(0) }; 2] }; CACHED];
const CACHED: usize = 1024;

/// The physical address of a byte that is mapped.
#[inline]
fn physical(address: usize) -> u64 {
    let (page, offset) = (address / PAGE_SIZE, (address % PAGE_SIZE) as u64);
    let [cached, frame] = &PAGES[page % CACHED];
    if cached.load(Ordering::Relaxed) == page as u64 {
        return frame.load(Ordering::Relaxed) + offset;
    }
    let start = (address - address % PAGE_SIZE) as u64;
    let found =
        VirtAddr::new(start).and_then(|start| space().translate(start)).expect("it is mapped").value();
    frame.store(found, Ordering::Relaxed);
    cached.store(page as u64, Ordering::Relaxed);
    found + offset
}

/// Where the register at a physical address is mapped. It belongs to a device that was taken.
pub fn register(address: PhysAddr) -> NonNull<u8> {
    REGISTERS.lock().iter().find_map(|bars| bars.find(address)).expect("the registers were claimed")
}

// SAFETY: DMA memory comes from the kernel's arena, zeroed, adjacent and for one owner; device addresses are
// physical addresses, since there is no IOMMU; registers are those of BARs that were claimed for the driver.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = space().allocate_dma(FrameRequest::new(pages)).expect("there is room");
        let start = NonNull::new(memory.as_ptr()).expect("it is not empty");
        let result = (memory.physical_address().value(), start);
        DMA.lock().push(memory);
        result
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        DMA.lock().retain(|memory| memory.physical_address().value() != address);
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        register(address)
    }

    #[inline]
    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        physical(buffer.addr().get())
    }

    #[inline]
    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Configuration space, as the kernel reaches it.
struct Config(&'static dyn ConfigAccess);

fn pci_address(function: DeviceFunction) -> PciAddress {
    PciAddress::new(0, function.bus, function.device, function.function).expect("it is an address")
}

impl ConfigurationAccess for Config {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        self.0.read(pci_address(function), offset.into())
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        // SAFETY: its transport writes no more than the command register and, to size them, BARs, which it
        // restores; what it turns on was granted in `take`.
        unsafe { self.0.write(pci_address(function), offset.into(), data) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0)
    }
}

/// The registers of a device that is driven by `virtio-drivers`. Keep it longer than the driver.
pub struct Claim(PciAddress);

impl Drop for Claim {
    fn drop(&mut self) {
        REGISTERS.lock().retain(|bars| bars.function != self.0);
    }
}

/// Lets `virtio-drivers` have a device. Its transport resets the device when it is dropped.
pub fn take(function: &Function, access: &'static dyn ConfigAccess) -> (PciTransport, Claim) {
    // What was mapped before may be mapped elsewhere now.
    PAGES.iter().for_each(|[page, _]| page.store(0, Ordering::Relaxed));
    REGISTERS.lock().push(Bars::claim(function));
    let claim = Claim(function.address());
    function.config().enable_memory();
    function.config().enable_intx(false);
    // SAFETY: the devices of this machine access only what they are told.
    let grant = unsafe { DmaGrant::without_iommu(function.address().id()) };
    function.config().enable_bus_master(&grant).expect("the grant is for this device");
    let address = function.address();
    let place = DeviceFunction { bus: address.bus, device: address.device(), function: address.function() };
    let mut root = PciRoot::new(Config(access));
    let transport =
        PciTransport::new::<Memory, _>(&mut root, place).expect("the device has a modern interface");
    (transport, claim)
}
