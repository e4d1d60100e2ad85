//! Registers of a kernel that has them mapped: [`MmioClaims`], and what is made without a boxed owner.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;
use ringfence_testkit::host_does;
use ringfence_testkit::registers::{BAR_LEN, Card};

const START: u64 = 0xc000_0000;
const PAGE: usize = 4096;
const PAGES: usize = 16;

fn claims() -> (&'static MmioClaims, *mut u8) {
    claims_from(START)
}

/// Claims over `PAGES` pages of plain memory, from that physical address on.
fn claims_from(start: u64) -> (&'static MmioClaims, *mut u8) {
    #[repr(align(4096))]
    struct Registers(#[allow(dead_code)] [u8; PAGES * PAGE]);
    let registers = Box::leak(Box::new(Registers([0; PAGES * PAGE]))) as *mut Registers;
    let end = start + (PAGES * PAGE) as u64;
    let claims = unsafe { MmioClaims::new(start..end, registers.expose_provenance()) };
    (Box::leak(Box::new(claims)), registers.cast())
}

fn at(page: u64) -> PhysAddr {
    PhysAddr::new(START + page * PAGE as u64).unwrap()
}

struct Mapped(&'static MmioClaims, HostPlatform);

unsafe impl Platform for Mapped {
    host_does!(1: dma_allocate, now, registry);

    fn mmio_map(
        &self,
        device: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        self.0.claim(device, start, len)
    }
}

#[test]
fn registers_are_where_they_are_mapped() {
    let (claims, memory) = claims();
    claims.offer(at(2), 3 * PAGE).unwrap();
    let platform = Mapped(claims, HostPlatform::new());
    let start = at(2).checked_add(0x10).unwrap();
    let region = MmioRegion::map(&platform, Some(DeviceId(8)), start, 2 * PAGE).unwrap();
    unsafe { region.write(0x24, 0xc0de_u32) }.unwrap();
    let word = unsafe { memory.add(2 * PAGE + 0x34).cast::<u32>().read_volatile() };
    assert_eq!(word, 0xc0de);
    let taken = MmioRegion::map(&platform, Some(DeviceId(8)), at(2), 4).err();
    assert_eq!(taken, Some(PlatformError::Claimed), "in the same page");
    drop(region);
    MmioRegion::map(&platform, Some(DeviceId(8)), at(2), 4).unwrap();
}

#[test]
fn only_what_is_on_offer_is_claimed() {
    let (claims, _) = claims();
    let last = PAGES as u64 - 1;
    assert_eq!(claims.offer(at(last), 2 * PAGE), Err(ClaimError::OutOfRange), "the end is beyond");
    assert_eq!(claims.offer(PhysAddr::new(START - 1).unwrap(), 2), Err(ClaimError::OutOfRange));
    assert_eq!(claims.offer(PhysAddr::new(0x1000).unwrap(), PAGE), Err(ClaimError::OutOfRange));
    assert_eq!(claims.offer(at(0), 0), Err(ClaimError::ZeroLength));
    assert_eq!(claims.offer(PhysAddr::new(0x1000).unwrap(), 0), Err(ClaimError::ZeroLength));
    assert!(claims.offer(at(0), usize::MAX).is_err());
    claims.offer(at(last), PAGE).unwrap();
    claims.offer(at(4), 4 * PAGE).unwrap();
    assert_eq!(claims.offer(at(7), 1), Err(ClaimError::Overlap));
    let claim = |device: u64, page, len| claims.claim(Some(DeviceId(device)), at(page), len);
    for (page, len) in
        [(3, 2 * PAGE), (8, 1), (7, PAGE + 1), (0, 1), (4, 0), (last, PAGE + 1), (4, usize::MAX)]
    {
        assert_eq!(claim(1, page, len).err(), Some(PlatformError::BadRange), "{len} bytes of page {page}");
    }
    let one = claim(1, 5, 1).unwrap();
    assert_eq!(claim(2, 7, 1).err(), Some(PlatformError::Claimed), "a part of another device's BAR");
    assert_eq!(claim(1, 4, 2 * PAGE).err(), Some(PlatformError::Claimed));
    let other = claim(1, 7, 1).unwrap();
    claim(2, last, 1).expect("another BAR");
    drop((one, other));
    claim(2, 4, 4 * PAGE).expect("nobody has any of it");
}

/// All of a BAR is offered and nothing else, and what is elsewhere is left out.
#[test]
fn bars_are_offered_as_they_are() {
    let card = Card::new();
    let start = card.config().bars().into_iter().flatten().find_map(|bar| match bar {
        Bar::Memory { address, .. } => address,
        Bar::Io { .. } => None,
    });
    let start = start.unwrap();
    let (claims, _) = claims_from(start.value());
    claims.offer_bars(&card.config());
    claims.claim(Some(card.address.id()), start, BAR_LEN).expect("all of it");
    claims.offer(start.checked_add(BAR_LEN as u64).unwrap(), 1).expect("what follows is not on offer");
    let (elsewhere, _) = claims_from(START);
    elsewhere.offer_bars(&card.config());
    elsewhere.offer(at(0), PAGES * PAGE).expect("nothing was offered there");
}

/// Memory without a boxed owner goes back by a function, once, when the last who may look is gone.
#[test]
fn raw_memory_is_freed_once() {
    static FREED: AtomicUsize = AtomicUsize::new(0);
    unsafe fn free(start: NonNull<u8>, len: usize) {
        FREED.fetch_add(1, SeqCst);
        assert_eq!((start.as_ptr().addr() % PAGE, len), (0, 2 * PAGE));
    }
    let pages = Box::leak(Box::new([0_u64; 3 * PAGE / 8])).as_mut_ptr().cast::<u8>();
    let start = NonNull::new(pages.map_addr(|at| at.next_multiple_of(PAGE))).unwrap();
    let memory = unsafe { DmaMemory::from_raw(start, 2 * PAGE, 0x7000_0000, free) };
    assert_eq!(FREED.load(SeqCst), 0);
    drop(memory);
    assert_eq!(FREED.load(SeqCst), 1);
}

/// Ids of devices that are on no PCI bus are none of a PCI function's.
#[test]
fn ids_off_the_bus_are_their_own() {
    let last = PciAddress::new(u16::MAX, u8::MAX, 31, 7).unwrap();
    assert!(DeviceId::off_bus(0) > last.id());
    assert_ne!(DeviceId::off_bus(0), DeviceId::off_bus(1));
    assert_ne!(DeviceId::off_bus(u32::MAX), last.id());
    let platform = Box::leak(Box::new(HostPlatform::new()));
    let ids = [last.id(), DeviceId::off_bus(0), DeviceId::off_bus(u32::MAX)];
    let claim = |id| DmaWindows::new(platform, id).unwrap();
    let _windows = ids.map(claim);
    assert_eq!(DmaWindows::new(platform, DeviceId::off_bus(0)).err(), Some(DmaError::Claimed));
}
