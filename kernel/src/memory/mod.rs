//! The kernel's own memory: from the loader's page tables to an [`AddressSpace`] in which every frame has one
//! owner.
//!
//! The upper half of the address space, by 512 GiB slots:
//!
//! | from | what |
//! |---|---|
//! | `0xffff_e000_0000_0000` | the page tables themselves, and nothing else (the "pool") |
//! | `0xffff_e800_0000_0000` | the allocators' bitmaps |
//! | `0xffff_f000_0000_0000` | everything that is mapped and unmapped: heap, stacks, DMA, registers |
//! | `0xffff_ffff_8000_0000` | the kernel image |

pub mod heap;
pub mod image;
pub(crate) mod loader_window;
pub mod runs;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use ringfence_memory::{
    AddressSpace, AllocError, Cpu, FrameAllocator, FrameRange, MapError, MappedPages, Mapper, Mmio, Owner,
    PAGE_SIZE, PageAllocator, PageRange, PhysAddr, Protection, Stale, TablePool, VirtAddr,
};
use spin::Once;
use thiserror::Error;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

use crate::arch::apic;
use crate::qemu::{self, ExitCode};
use image::Rights;
use loader_window::PhysWindow;

const POOL: u64 = 0xffff_e000_0000_0000;
const BITMAPS: u64 = 0xffff_e800_0000_0000;
const WINDOW: u64 = 0xffff_f000_0000_0000;

/// How many use the page tables: see [`ThisCpu`].
const PROCESSORS: usize = 1;

const PAGE: u64 = PAGE_SIZE as u64;
const GIB: u64 = 1 << 30;

/// Why the kernel could not set up its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// No usable region has this many bytes in one piece, for page tables and bitmaps.
    #[error("there is too little RAM: no free piece of {} KiB; give the guest more memory", .0 >> 10)]
    TooLittleMemory(u64),
    /// A part of the image is not mapped by the loader.
    #[error("the loader has not mapped all of the kernel")]
    ImageNotMapped,
    /// A range does not fit the address space.
    #[error("memory outside the address space")]
    BadRange,
    /// The mapper refused.
    #[error("memory cannot be mapped: {0}")]
    Map(#[from] MapError),
    /// An allocator refused.
    #[error("memory cannot be had: {0}")]
    Alloc(#[from] AllocError),
}

/// The one processor's page tables and TLB.
struct ThisCpu;

// SAFETY: no other processor uses the tables, and each function is the instruction that the trait names for
// one.
unsafe impl Cpu for ThisCpu {
    fn shoot_down(&self, stale: &Stale) {
        let Some(pages) = stale.pages() else { return tlb::flush_all() };
        for page in pages {
            tlb::flush(x86_64::VirtAddr::new_truncate(page.start_address().value()));
        }
    }

    unsafe fn load_root(&self, root: PhysAddr) {
        let frame = PhysFrame::containing_address(x86_64::PhysAddr::new_truncate(root.value()));
        // SAFETY: the caller vouches for the tables.
        unsafe { Cr3::write(frame, Cr3Flags::empty()) }
    }

    fn root(&self) -> PhysAddr {
        PhysAddr::new(Cr3::read().0.start_address().as_u64())
            .unwrap_or_else(|| unreachable!("CR3 holds 52 bits"))
    }
}

static CPU: ThisCpu = ThisCpu;
static FRAMES: Once<FrameAllocator> = Once::new();
static PAGES: Once<PageAllocator> = Once::new();
static SPACE: Once<AddressSpace> = Once::new();
static SETTLED: Once<Settled> = Once::new();

/// Frames whose owner is settled for good, in no order; not all, if there are many.
type Settled = heapless::Vec<(FrameRange, Owner), 64>;

/// The kernel's address space.
///
/// # Panics
/// If [`init`] has not run.
pub fn space() -> &'static AddressSpace {
    SPACE.get().unwrap_or_else(|| panic!("memory::init comes first"))
}

/// The kernel's address space, once there is one.
pub fn try_space() -> Option<&'static AddressSpace> {
    SPACE.get()
}

/// Frames of the image, of firmware and of the like, which stay theirs. They may overlap.
fn settled() -> &'static [(FrameRange, Owner)] {
    SETTLED.get().map_or(&[], |settled| settled)
}

/// Leaves the loader's page tables for the kernel's own, and takes over all RAM. Afterwards neither the
/// loader's window nor anything in the lower half is mapped.
pub fn init(memory_map: &[MemoryRegion], loader: &PhysWindow) -> Result<&'static AddressSpace, InitError> {
    let plan = Plan::new(memory_map)?;
    let image = image_runs(loader)?;
    let in_window = loader.start() + plan.pool.start_address().value();
    // SAFETY: the pool's frames are usable RAM that nothing else has, and the loader's window maps them at
    // this address.
    let pool = unsafe { TablePool::new(in_window.as_mut_ptr(), plan.pool) }?;
    let mut mapper = Mapper::new(pool, gib_pages())?;
    // SAFETY: the image keeps its addresses and gets the rights that its code expects; pool and bitmaps go
    // where nothing was. The running code and its stack are in the image; the memory map is too.
    unsafe {
        for run in &image {
            mapper.map_boot(run.pages, run.frames, run.protection)?;
        }
        mapper.map_boot(pages(POOL, plan.pool)?, plan.pool, Protection::ReadWrite)?;
        mapper.map_boot(pages(BITMAPS, plan.bitmaps)?, plan.bitmaps, Protection::ReadWrite)?;
        mapper.activate(&CPU, POOL as *mut u8);
    }
    // SAFETY: mapped above, of this size, and referred to here only.
    let storage = unsafe { core::slice::from_raw_parts_mut(BITMAPS as *mut u64, plan.words()) };
    let (frame_bits, page_bits) =
        storage.split_at_mut(FrameAllocator::storage_words(plan.span.size_in_frames()));
    let frames = FRAMES.try_call_once(|| FrameAllocator::new(plan.span, frame_bits))?;
    hand_over(frames, memory_map, &plan, &image)?;
    let pages = PAGES.try_call_once(|| PageAllocator::new(plan.window, page_bits))?;
    Ok(SPACE.call_once(|| AddressSpace::new(mapper, frames, pages, &CPU)))
}

/// Says why the kernel cannot run, and ends.
pub fn give_up(error: &InitError) -> ! {
    log::error!("Ringfence cannot start: {error}.");
    qemu::exit(ExitCode::Failed)
}

/// Maps the local APIC's registers for good, and returns where. Processors that reach them by instructions
/// need no mapping: then the address means nothing.
pub fn claim_local_apic(address: u64) -> x86_64::VirtAddr {
    static REGISTERS: Once<MappedPages<Mmio>> = Once::new();
    if apic::has_x2apic() {
        return x86_64::VirtAddr::zero();
    }
    let Ok(frames) = range(address, address.saturating_add(PAGE)) else { panic!("no APIC at {address:#x}") };
    // SAFETY: the MADT, or else the architecture, says that the local APIC is there, and only the kernel
    // claims it.
    let offered = unsafe { space().offer_mmio(frames) };
    match offered.and_then(|()| space().claim_mmio(frames, None)) {
        Ok(pages) => x86_64::VirtAddr::from_ptr(REGISTERS.call_once(|| pages).as_ptr()),
        Err(error) => panic!("the local APIC's registers at {address:#x} cannot be mapped: {error}"),
    }
}

/// Where everything goes.
struct Plan {
    /// From address 0 to the end of RAM.
    span: FrameRange,
    window: PageRange,
    pool: FrameRange,
    bitmaps: FrameRange,
}

impl Plan {
    fn new(memory_map: &[MemoryRegion]) -> Result<Self, InitError> {
        let top =
            memory_map.iter().filter(|region| is_ram(region)).map(|region| region.end).max().unwrap_or(0);
        let span = range(0, top)?;
        // Room for every frame, as much again for gaps, and for registers.
        let window_pages = (top.saturating_mul(2).next_power_of_two().max(GIB) / PAGE) as usize;
        let start = VirtAddr::new(WINDOW).ok_or(InitError::BadRange)?;
        let window = PageRange::new(start, window_pages).map_err(|_| InitError::BadRange)?;
        let mut plan = Self { span, window, pool: FrameRange::empty(), bitmaps: FrameRange::empty() };

        // Tables for all RAM in 4 KiB pages twice over; registers add a few.
        let pool_frames = TablePool::frames_for(2 * span.size_in_frames(), PROCESSORS) + 64;
        let bitmap_frames = (plan.words() * size_of::<u64>()).div_ceil(PAGE_SIZE);
        let bytes = (pool_frames + bitmap_frames) as u64 * PAGE;
        let region = memory_map
            .iter()
            .find(|region| region.kind == MemoryRegionKind::Usable && region.end - region.start >= bytes)
            .ok_or(InitError::TooLittleMemory(bytes))?;
        // At the start, next to the image or to low memory: hosts that back RAM in large pages have backed
        // those already.
        let both = range(region.start, region.start + bytes)?;
        (plan.pool, plan.bitmaps) = both.split_at(pool_frames).ok_or(InitError::BadRange)?;
        Ok(plan)
    }

    /// Words of bitmap that the two allocators need.
    fn words(&self) -> usize {
        FrameAllocator::storage_words(self.span.size_in_frames())
            + PageAllocator::storage_words(self.window.size_in_pages())
    }
}

/// A piece of the image that is contiguous in both address spaces.
struct Run {
    pages: PageRange,
    frames: FrameRange,
    protection: Protection,
}

/// The image as the loader placed it, without the guard pages.
fn image_runs(loader: &PhysWindow) -> Result<heapless::Vec<Run, 28>, InitError> {
    let mut runs = heapless::Vec::<Run, 28>::new();
    let guards = image::guard_pages();
    for section in image::sections() {
        let protection = match section.rights {
            Rights::Read => Protection::ReadOnly,
            Rights::ReadExecute => Protection::ReadExecute,
            Rights::ReadWrite => Protection::ReadWrite,
        };
        for page in (section.start.as_u64()..section.end.as_u64()).step_by(PAGE_SIZE) {
            let page = x86_64::VirtAddr::new_truncate(page);
            if guards.contains(&page) {
                continue;
            }
            let frame = loader.translate(page).ok_or(InitError::ImageNotMapped)?.as_u64();
            let page = page.as_u64();
            if let Some(last) = runs.last_mut()
                && last.protection == protection
                && last.pages.start_address().value() + last.pages.size_in_bytes() == page
                && last.frames.start_address().value() + last.frames.size_in_bytes() == frame
            {
                let count = last.pages.size_in_pages() + 1;
                last.pages = pages_at(last.pages.start_address().value(), count)?;
                last.frames =
                    FrameRange::new(last.frames.start_address(), count).map_err(|_| InitError::BadRange)?;
                continue;
            }
            let run = Run { pages: pages_at(page, 1)?, frames: range(frame, frame + PAGE)?, protection };
            runs.push(run).map_err(|_| InitError::ImageNotMapped)?;
        }
    }
    Ok(runs)
}

/// Tells the frame allocator who has which RAM. What was told first stays.
fn hand_over(
    frames: &FrameAllocator,
    memory_map: &[MemoryRegion],
    plan: &Plan,
    image: &[Run],
) -> Result<(), InitError> {
    let mut settled = Settled::new();
    let mut add = |range, owner| {
        if owner != Owner::Free {
            let _ = settled.push((range, owner));
        }
        // SAFETY: the image, the pool and the bitmaps are in use; firmware keeps its own. The rest of RAM,
        // with what the loader used, is mapped nowhere now: the loader's tables are left, and nothing refers
        // to its memory.
        unsafe { frames.add(range, owner) };
    };
    image.iter().for_each(|run| add(run.frames, Owner::Kernel));
    add(plan.bitmaps, Owner::Kernel);
    add(plan.pool, Owner::Tables);
    add(range(0, PAGE)?, Owner::Reserved);
    for region in memory_map {
        let owner = if is_ram(region) { Owner::Free } else { Owner::Reserved };
        if is_ram(region) || is_firmware_ram(region.kind) {
            add(range(region.start, region.end)?, owner);
        }
    }
    SETTLED.call_once(|| settled);
    Ok(())
}

/// Whether a region is the kernel's to use once the loader is left.
fn is_ram(region: &MemoryRegion) -> bool {
    matches!(region.kind, MemoryRegionKind::Usable | MemoryRegionKind::Bootloader)
        && region.start < region.end
}

/// Whether a region is RAM that firmware keeps: ACPI tables and storage, UEFI runtime services. Other unknown
/// kinds may as well be registers.
fn is_firmware_ram(kind: MemoryRegionKind) -> bool {
    matches!(kind, MemoryRegionKind::UnknownBios(3 | 4) | MemoryRegionKind::UnknownUefi(5 | 6 | 9 | 10))
}

fn gib_pages() -> bool {
    // CPUID 8000_0001h, EDX bit 26 (Intel SDM volume 3, 4.1.4).
    core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 26 != 0
}

/// The frames of the bytes `start..end`.
fn range(start: u64, end: u64) -> Result<FrameRange, InitError> {
    let start_address = PhysAddr::new(start).ok_or(InitError::BadRange)?;
    FrameRange::from_phys_addr(start_address, end.saturating_sub(start)).map_err(|_| InitError::BadRange)
}

/// As many pages at `start` as there are `frames`.
fn pages(start: u64, frames: FrameRange) -> Result<PageRange, InitError> {
    pages_at(start, frames.size_in_frames())
}

fn pages_at(start: u64, count: usize) -> Result<PageRange, InitError> {
    let start = VirtAddr::new(start).ok_or(InitError::BadRange)?;
    PageRange::new(start, count).map_err(|_| InitError::BadRange)
}
