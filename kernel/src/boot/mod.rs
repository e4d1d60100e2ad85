//! From a loader to [`start`]: PVH ([`pvh`]) and the UEFI image of the `bootloader` crate hand over the same
//! `BootInfo` through the same entry point.

pub mod memory_map;
pub mod pvh;

use core::fmt;
use core::mem::ManuallyDrop;

use bootloader_api::BootInfo;
use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use ringfence_memory::PAGE_SIZE;
use spin::Once;

use crate::arch::stack::{self, Stack, Use};
use crate::arch::{cpu, gdt, idt};
use crate::memory::{heap, image};
use crate::qemu::{self, ExitCode};
use crate::{acpi, fw_cfg, interrupts, logging, memory, time};

pub use crate::memory::loader_window::{PhysWindow, Sample};

/// Where both loaders map all physical memory: the start of the upper half.
pub const WINDOW_START: u64 = 0xffff_8000_0000_0000;

/// What the kernel asks of the UEFI loader. The PVH entry does the same.
pub const CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::FixedAddress(WINDOW_START));
    // What the loader places itself stays in the upper half, clear of the window and of the kernel.
    config.mappings.dynamic_range_start = Some(0xffff_c000_0000_0000);
    config.mappings.dynamic_range_end = Some(0xffff_dfff_ffff_ffff);
    config
};

/// Pages of the kernel's stack.
const STACK_PAGES: usize = 32;

/// Bytes of heap in the image: enough until the kernel has memory of its own.
const EARLY_HEAP: usize = 64 * 1024;

/// What boot leaves to the rest of the kernel. All of it is copied: nothing refers to loader memory.
#[derive(Debug)]
pub struct Boot {
    /// Which loader started the kernel.
    pub loader: Loader,
    /// Physical memory in ascending order. The kernel image, and what the loader still needs, is not
    /// `Usable`.
    pub memory_map: &'static [MemoryRegion],
    /// What the kernel needs of ACPI.
    pub acpi: acpi::Tables,
    /// The start of the kernel's code as the loader's window showed it just before it was left, for tests.
    pub sample: Option<Sample>,
}

/// How the kernel was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// By QEMU itself, `-kernel`.
    Pvh,
    /// From an UEFI disk image, by the `bootloader` crate.
    Uefi,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loader = match self.loader {
            Loader::Pvh => "PVH",
            Loader::Uefi => "UEFI",
        };
        let usable: u64 = self
            .memory_map
            .iter()
            .filter(|region| region.kind == MemoryRegionKind::Usable)
            .map(|region| region.end.saturating_sub(region.start))
            .sum();
        writeln!(f, "loader       {loader}")?;
        writeln!(f, "memory       {} MiB usable", usable >> 20)?;
        write!(f, "protections  {}", cpu::active())
    }
}

type Main = fn(Boot) -> !;

struct Start {
    info: &'static mut BootInfo,
    main: Main,
}

/// First code of every image, called by the entry point with the loader's stack. Ends by calling `main` with
/// the processor set up and interrupts enabled, on a stack, a heap and page tables that are the kernel's own.
pub fn start(info: &'static mut BootInfo, main: Main) -> ! {
    static START: spin::Mutex<Option<Start>> = spin::Mutex::new(None);
    static READY: spin::Mutex<Option<(Boot, Main)>> = spin::Mutex::new(None);

    extern "C" fn on_boot_stack(_: usize) -> ! {
        let Some(Start { info, main }) = START.lock().take() else {
            unreachable!("boot::start stores it first")
        };
        let (mut boot, window) = prepare(info);
        boot.sample = window.sample(image::text().start);
        let stack = own_memory(&boot, &window);
        *READY.lock() = Some((boot, main));
        // SAFETY: the stack was just allocated, with a guard page, and is never given back.
        unsafe { stack::switch_to(stack, on_own_stack, 0) }
    }

    extern "C" fn on_own_stack(_: usize) -> ! {
        let Some((boot, main)) = READY.lock().take() else { unreachable!("on_boot_stack stores it first") };
        time::init();
        let registers = memory::claim_local_apic(boot.acpi.local_apic);
        // SAFETY: the registers were claimed for good.
        unsafe { interrupts::init(registers) };
        main(boot)
    }

    *START.lock() = Some(Start { info, main });
    // SAFETY: the boot stack is part of the image and mapped by both loaders; PVH has it in use already, but
    // nothing on it is needed any more. Its guard page is unmapped only with the kernel's own tables.
    unsafe { stack::switch_to(Stack::of(Use::Boot), on_boot_stack, 0) }
}

/// Moves to the kernel's own page tables and allocates its stack. Without memory there is nothing to run:
/// then this says so and ends.
fn own_memory(boot: &Boot, window: &PhysWindow) -> Stack {
    let space = match memory::init(boot.memory_map, window) {
        Ok(space) => space,
        Err(error) => memory::give_up(&error),
    };
    let stack = match space.allocate_stack(STACK_PAGES) {
        Ok(stack) => ManuallyDrop::new(stack),
        Err(error) => memory::give_up(&memory::InitError::Map(error)),
    };
    let high = x86_64::VirtAddr::new_truncate(stack.top().value());
    Stack { low: high - (STACK_PAGES * PAGE_SIZE) as u64, high }
}

fn prepare(info: &'static mut BootInfo) -> (Boot, PhysWindow) {
    logging::init();
    if let Some((name, purpose)) = cpu::missing() {
        log::error!(
            "Ringfence cannot start: the processor has no {name}, which is needed {purpose}. \
             Use one that has it, such as QEMU's `-cpu max`."
        );
        qemu::exit(ExitCode::Failed)
    }
    gdt::init();
    idt::init();
    cpu::set_memory_types();
    cpu::protect();
    time::start();
    init_early_heap();
    if let Some(filter) = fw_cfg::option("log") {
        logging::set_filter(filter.leak());
    }
    let memory_map = keep(&info.memory_regions);
    let window = PhysWindow::new(info.physical_memory_offset.into_option(), memory_map);
    let acpi = acpi::Tables::read(&window, info.rsdp_addr.into_option());
    for region in memory_map {
        log::debug!("{:#014x}..{:#014x} {:?}", region.start, region.end, region.kind);
    }
    for section in image::sections() {
        log::debug!("{:<7}{:#x}..{:#x} {:?}", section.name, section.start, section.end, section.rights);
    }
    let loader = if pvh::started() { Loader::Pvh } else { Loader::Uefi };
    (Boot { loader, memory_map, acpi, sample: None }, window)
}

/// Copies the memory map out of loader memory.
fn keep(regions: &[MemoryRegion]) -> &'static [MemoryRegion] {
    static MEMORY_MAP: Once<memory_map::MemoryMap> = Once::new();
    MEMORY_MAP.call_once(|| memory_map::build(regions))
}

fn init_early_heap() {
    #[repr(C, align(4096))]
    struct Memory(core::cell::UnsafeCell<[u8; EARLY_HEAP]>);
    // SAFETY: no reference to the bytes is ever made but by the heap, which owns them.
    unsafe impl Sync for Memory {}
    static MEMORY: Memory = Memory(core::cell::UnsafeCell::new([0; EARLY_HEAP]));

    let start = x86_64::VirtAddr::from_ptr(MEMORY.0.get());
    // SAFETY: the image is mapped for good, and boot runs once.
    let claimed = unsafe { heap::init(start, EARLY_HEAP) };
    assert!(claimed, "the early heap is large enough for the allocator's tables");
}
