//! Boot by QEMU's `-kernel` through the PVH protocol (Xen `docs/misc/pvh.pandoc`): the processor arrives in
//! 32-bit protected mode without paging, with the physical address of `hvm_start_info` in `ebx`.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind, MemoryRegions, Optional};
use spin::Once;
use x86_64::instructions::tlb;
use x86_64::structures::paging::PageTableFlags as Flags;

use super::WINDOW_START;
use super::memory_map::{self, MAX_REGIONS};
use crate::memory::image;

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
/// Where the linker script puts physical address 0.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
const GIB: u64 = 1 << 30;
/// What the early page tables map: four page directories.
const EARLY_GIB: u64 = 4;
/// What one page-directory-pointer table can map.
const MAX_GIB: u64 = 512;

// Builds page tables with 2 MiB leaves: physical memory up to 4 GiB at the window (not executable) and, for
// the moment, at 0 (where this code runs); the first GiB at KERNEL_BASE. Then enters long mode and calls
// `pvh_main`.
global_asm!(
    r#"
.set PHYS, 0xffffffff80000000
.set CR0_PG_WP, 0x80010000
.set CR4_PAE, 0x20
.set MSR_EFER, 0xc0000080
.set EFER_LME, 0x100
.set EFER_NXE, 0x800
.set CPUID_LONG_MODE, 0x20000000
.set COM1, 0x3f8
.set COM1_STATUS, 0x3fd
.set READY, 0x20
.set EXIT_PORT, 0xf4
.set EXIT_FAILED, 0x11
.set PRESENT_WRITABLE, 0x3
.set PRESENT_WRITABLE_HUGE, 0x83
.set NO_EXECUTE_HIGH_HALF, 0x80000000

.section .note.Xen, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_start - PHYS

.section .text.pvh_start, "ax", @progbits
.global pvh_start
.code32
pvh_start:
    cli
    cld
    rdtsc
    movl %eax, ENTRY_TSC - PHYS
    movl %edx, ENTRY_TSC - PHYS + 4
    movl %ebx, %edi

    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    testl $CPUID_LONG_MODE, %edx
    jz no_long_mode

    movl $(EARLY_TABLES - PHYS), %ebx
    leal 0x3000(%ebx), %eax
    movl $PRESENT_WRITABLE_HUGE, %ecx
2:  movl %ecx, (%eax)
    addl $8, %eax
    addl $0x200000, %ecx
    cmpl $PRESENT_WRITABLE_HUGE, %ecx
    jne 2b

    # Table 0: level 4. Table 1: level 3 of the window. Table 2: level 3 of the image. Tables 3 to 6: level 2.
    leal (0x3000 + PRESENT_WRITABLE)(%ebx), %eax
    movl %eax, 0x2000 + 510 * 8(%ebx)
    movl %eax, 0x1000(%ebx)
    addl $0x1000, %eax
    movl %eax, 0x1008(%ebx)
    addl $0x1000, %eax
    movl %eax, 0x1010(%ebx)
    addl $0x1000, %eax
    movl %eax, 0x1018(%ebx)
    leal (0x1000 + PRESENT_WRITABLE)(%ebx), %eax
    movl %eax, (%ebx)
    movl %eax, 256 * 8(%ebx)
    leal (0x2000 + PRESENT_WRITABLE)(%ebx), %eax
    movl %eax, 511 * 8(%ebx)

    movl %ebx, %esi
    movl $0x80000001, %eax
    cpuid
    movl $EFER_LME, %eax
    testl $0x100000, %edx
    jz 3f
    orl $EFER_NXE, %eax
    movl $NO_EXECUTE_HIGH_HALF, 256 * 8 + 4(%esi)
3:  movl $MSR_EFER, %ecx
    xorl %edx, %edx
    wrmsr
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl %esi, %cr3
    movl %cr0, %eax
    orl $CR0_PG_WP, %eax
    movl %eax, %cr0
    lgdt pvh_gdt_pointer - PHYS
    ljmp $8, $(pvh_long_mode - PHYS)

    # Says so on the serial port, and leaves QEMU. Where there is no port, it reads as ready.
no_long_mode:
    movl $(no_long_mode_message - PHYS), %esi
4:  lodsb
    testb %al, %al
    jz 6f
    movb %al, %cl
    movw $COM1_STATUS, %dx
5:  inb %dx, %al
    testb $READY, %al
    jz 5b
    movb %cl, %al
    movw $COM1, %dx
    outb %al, %dx
    jmp 4b
6:  movl $EXIT_FAILED, %eax
    movw $EXIT_PORT, %dx
    outl %eax, %dx
7:  hlt
    jmp 7b

.code64
pvh_long_mode:
    movabsq $pvh_upper_half, %rax
    jmp *%rax
pvh_upper_half:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq $__stacks_end, %rsp
    xorl %ebp, %ebp
    pushq $0
    movl %edi, %edi
    jmp {pvh_main}

.section .rodata.pvh_gdt, "a", @progbits
    .balign 8
pvh_gdt:
    .quad 0
    .quad 0x00af9a000000ffff
pvh_gdt_pointer:
    .word 15
    .long pvh_gdt - PHYS
no_long_mode_message:
    .asciz "Ringfence cannot start: the processor has no 64-bit mode. Use one that has it, such as QEMU's `-cpu max`.\r\n"
.text
"#,
    pvh_main = sym pvh_main,
    options(att_syntax)
);

/// The early page tables, in the order that the code above fills them. Part of the image, hence never usable
/// memory.
#[unsafe(no_mangle)]
static EARLY_TABLES: PageTables = PageTables(UnsafeCell::new([[0; 512]; 7]));

#[repr(C, align(4096))]
struct PageTables(UnsafeCell<[[u64; 512]; 7]>);

// SAFETY: written by the code above and by `pvh_main` alone, before there is anything else.
unsafe impl Sync for PageTables {}

/// The time-stamp counter at the first instruction.
#[unsafe(no_mangle)]
static ENTRY_TSC: AtomicU64 = AtomicU64::new(0);

/// What `BootInfo` refers to.
static BOOT_INFO: Handover = Handover(UnsafeCell::new((None, [MemoryRegion::empty(); MAX_REGIONS])));

struct Handover(UnsafeCell<(Option<BootInfo>, [MemoryRegion; MAX_REGIONS])>);

// SAFETY: taken once, by `pvh_main`, before there is anything else.
unsafe impl Sync for Handover {}

/// The loader's command line, as far as there is room for it.
static COMMAND_LINE: Once<heapless::String<MAX_COMMAND_LINE>> = Once::new();
const MAX_COMMAND_LINE: usize = 2048;

/// The loader's command line; empty if there is none.
pub fn command_line() -> &'static str {
    COMMAND_LINE.get().map_or("", heapless::String::as_str)
}

/// Copies a text that ends with a 0. What is not ASCII reads as a space.
fn read_text(address: u64) -> heapless::String<MAX_COMMAND_LINE> {
    let bytes = (0..MAX_COMMAND_LINE as u64).map_while(|at| read::<u8>(address.checked_add(at)?));
    let text = bytes.take_while(|byte| *byte != 0);
    text.map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }).collect()
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// Whether the kernel was started through this module.
pub fn started() -> bool {
    STARTED.load(Ordering::Relaxed)
}

/// The time-stamp counter when the kernel was entered; `None` unless it was started through this module.
pub fn entry_tsc() -> Option<u64> {
    started().then(|| ENTRY_TSC.load(Ordering::Relaxed))
}

unsafe extern "C" {
    /// The entry point that `entry!` defines, shared with the UEFI loader. It takes a
    /// `&'static mut BootInfo`.
    fn _start(info: *mut u8) -> !;
}

/// The start of `struct hvm_start_info`, version 1.
#[derive(Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    start: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// Reads a plain value at a physical address inside the window.
fn read<T: Copy>(address: u64) -> Option<T> {
    let end = address.checked_add(size_of::<T>() as u64)?;
    if end > EARLY_GIB * GIB {
        return None;
    }
    // SAFETY: the window maps the first 4 GiB, and all types read here are valid for any bytes.
    Some(unsafe { ptr::read_unaligned((WINDOW_START + address) as *const T) })
}

/// Builds the `BootInfo` and goes on at the common entry point. Without a memory map it still starts, with no
/// usable memory, so that the kernel can say so.
extern "C" fn pvh_main(start_info: u32) -> ! {
    STARTED.store(true, Ordering::Relaxed);
    let info = read::<StartInfo>(u64::from(start_info)).filter(|info| info.magic == MAGIC);
    let (count, rsdp, table) = match info {
        Some(info) if info.version >= 1 => (info.memory_map_entries, info.rsdp, info.memory_map),
        Some(info) => (0, info.rsdp, 0),
        None => (0, 0, 0),
    };
    if let Some(info) = info.filter(|info| info.command_line != 0) {
        COMMAND_LINE.call_once(|| read_text(info.command_line));
    }
    // Room for the image and the page tables besides.
    let mut regions = heapless::Vec::<MemoryRegion, { MAX_REGIONS + 2 }>::new();
    for index in 0..u64::from(count).min(MAX_REGIONS as u64) {
        let address = table.checked_add(index * size_of::<Entry>() as u64);
        let Some(entry) = address.and_then(read::<Entry>) else { break };
        let end = entry.start.saturating_add(entry.len);
        let (end, kind) = match entry.kind {
            TYPE_RAM => (end.min(MAX_GIB * GIB), MemoryRegionKind::Usable),
            other => (end, MemoryRegionKind::UnknownBios(other)),
        };
        let _ = regions.push(MemoryRegion { start: entry.start, end, kind });
    }
    let sections = image::sections();
    let (start, end) = (sections[0].start.as_u64() - KERNEL_BASE, sections[4].end.as_u64() - KERNEL_BASE);
    let _ = regions.push(MemoryRegion { start, end, kind: MemoryRegionKind::Bootloader });
    let _ = regions.push(extend_window(&memory_map::build(&regions)));
    let map = memory_map::build(&regions);

    // SAFETY: this runs once, and nothing else uses the static.
    let (slot, regions) = unsafe { &mut *BOOT_INFO.0.get() };
    let regions = &mut regions[..map.len()];
    regions.copy_from_slice(&map);
    let info = slot.insert(BootInfo::new(MemoryRegions::from(regions)));
    info.physical_memory_offset = Optional::Some(WINDOW_START);
    info.rsdp_addr = if rsdp == 0 { Optional::None } else { Optional::Some(rsdp) };
    info.kernel_image_offset = KERNEL_BASE;
    // SAFETY: the symbol is the function that `entry!` defines, and the only reference to `info` is given
    // away.
    unsafe { _start(ptr::from_mut(info).cast()) }
}

/// Maps RAM above 4 GiB into the window, and takes the mapping at 0 away. Returns the pages it took for
/// tables, the last ones of the highest RAM below 4 GiB; if there are too few, everything above 4 GiB, which
/// is not to be used then.
fn extend_window(map: &[MemoryRegion]) -> MemoryRegion {
    const EARLY_END: u64 = EARLY_GIB * GIB;

    // SAFETY: this runs once, before there is anything else. Of the entries that the processor may have
    // cached, only that for 0 changes, and it is flushed.
    let tables = unsafe { &mut *EARLY_TABLES.0.get() };
    tables[0][0] = 0;
    tlb::flush_all();

    let usable = || map.iter().filter(|region| region.kind == MemoryRegionKind::Usable);
    let highest = usable().map(|region| region.end).max().unwrap_or(0);
    let missing = highest.div_ceil(GIB).saturating_sub(EARLY_GIB);
    let home =
        usable().rfind(|region| region.end <= EARLY_END && region.end - region.start >= missing * 4096);
    let Some(home) = home else {
        return MemoryRegion { start: EARLY_END, end: u64::MAX, kind: MemoryRegionKind::UnknownBios(0) };
    };
    let start = home.end - missing * 4096;
    for index in 0..missing {
        let directory = start + index * 4096;
        for entry in 0..512 {
            let leaf = (EARLY_GIB + index) * GIB + entry * (2 << 20);
            let flags = Flags::PRESENT | Flags::WRITABLE | Flags::HUGE_PAGE;
            // SAFETY: the page is RAM inside the window that nothing uses.
            unsafe { ptr::write((WINDOW_START + directory + entry * 8) as *mut u64, leaf | flags.bits()) };
        }
        tables[1][(EARLY_GIB + index) as usize] = directory | (Flags::PRESENT | Flags::WRITABLE).bits();
    }
    MemoryRegion { start, end: home.end, kind: MemoryRegionKind::Bootloader }
}
