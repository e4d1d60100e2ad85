//! The kernel's page tables: what they hold, what they forbid, how they change, and that the audit sees it
//! all.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod common;

use alloc::vec::Vec;
use core::hint::black_box;
use core::ptr;

use common::{
    ABSENT, FRAME, Leaf, MIB, NO_EXECUTE, PAGE, POOL, Seen, WRITE_PROTECTED, address, assert_fault,
    assert_sound, count, counts, execute, leaves, physical, read, walk, write,
};
use ringfence_kernel::arch::{cpu, stack};
use ringfence_kernel::boot::{self, Boot};
use ringfence_kernel::memory::image;
use ringfence_kernel::memory::space;
use ringfence_kernel::testing::{On, expect_fault};
use ringfence_memory::{AccessError, Owner, PAGE_SIZE, Protection, VirtAddr};
use spin::Once;
use x86_64::structures::idt::PageFaultErrorCode as Code;
use x86_64::structures::paging::PageTableFlags as Flags;

ringfence_kernel::entry!(main);

static BOOT: Once<Boot> = Once::new();

fn main(boot: Boot) -> ! {
    BOOT.call_once(|| boot);
    run_tests();
    unreachable!("the harness leaves QEMU")
}

/// The top-level entries in use: page tables, bitmaps, all that comes and goes, the image.
const SLOTS: [u64; 4] = [448, 464, 480, 511];

/// `ret`, as a constant and as a variable.
static CONSTANT: [u8; 1] = [0xc3];
static mut VARIABLE: [u8; 1] = [0xc3];

fn audit_is_clean_after_boot() {
    let report = space().audit();
    assert_sound();
    assert_eq!(report.frames.iter().map(|(_, count)| count).sum::<usize>(), report.total);
    // 128 MiB, less the hole below 1 MiB and what the firmware hides: under PVH 0.5 MiB, under UEFI 1.5 MiB.
    assert!(
        (126 * MIB / PAGE..=128 * MIB / PAGE).contains(&(report.total as u64)),
        "{} frames",
        report.total
    );
    for (owner, least) in
        [(Owner::Kernel, 100), (Owner::Tables, 16), (Owner::Private, 32), (Owner::Reserved, 1)]
    {
        assert!(count(owner) >= least, "{} frames of {owner}", count(owner));
    }
    assert!(
        count(Owner::Free) * 100 > report.total * 90,
        "{} of {} frames free",
        count(Owner::Free),
        report.total
    );
}

/// Nothing is wrong after boot, and every frame of RAM is accounted for.
#[test_case]
const AFTER_BOOT: On = On("", &audit_is_clean_after_boot);

fn tables_hold_nothing_unexpected() {
    let mut seen = Seen::below(128 * MIB);
    let (mut ram, mut found, text) = (0, 0, image::text());
    let tables = walk(&mut |leaf| {
        let Leaf { page, bytes, flags, .. } = leaf;
        found += 1;
        assert!(SLOTS.contains(&(page >> 39 & 511)), "{leaf:x?}");
        let executable = !flags.contains(Flags::NO_EXECUTE);
        assert!(!executable || !flags.contains(Flags::WRITABLE), "{leaf:x?}");
        assert_eq!(executable, text.contains(x86_64::VirtAddr::new_truncate(page)), "{leaf:x?}");
        assert!(!flags.contains(Flags::GLOBAL), "{leaf:x?}");
        for frame in (leaf.frame..leaf.frame + bytes).step_by(PAGE_SIZE).filter(|frame| *frame < 128 * MIB) {
            assert!(seen.insert(frame), "mapped twice: {leaf:x?}");
            ram += 1;
        }
    });
    let report = space().audit();
    assert_eq!((tables, found), (report.tables, report.leaves));
    let mapped = [Owner::Kernel, Owner::Tables, Owner::Private, Owner::Dma, Owner::Quarantined];
    assert_eq!(ram, mapped.map(count).iter().sum::<usize>());
}

/// The live tables, walked by this test itself, map what they should and nothing else, and agree with the
/// audit.
#[test_case]
const TABLES: On = On("", &tables_hold_nothing_unexpected);

/// The audit looks at the tables themselves: what is changed behind the mapper's back is found.
#[test_case]
fn audit_finds_damage() {
    let pages = space().allocate(2, Protection::ReadWrite).expect("there is memory");
    let mut entries = [ptr::null_mut::<u64>(); 2];
    walk(&mut |leaf| {
        if let Some(index) = leaf.page.checked_sub(address(&pages)).filter(|offset| *offset < 2 * PAGE) {
            entries[(index / PAGE) as usize] = leaf.entry;
        }
    });
    // SAFETY: both entries were just found; the pages are this test's, and restored before they are used.
    let [first, second] = entries.map(|entry| unsafe { entry.read_volatile() });
    let damage = [
        (first & !Flags::NO_EXECUTE.bits(), "writable and executable"),
        (first | Flags::USER_ACCESSIBLE.bits(), "flags"),
        (second, "mapped twice"),
        (first & !FRAME | 0xfed0_0000, "not RAM"),
    ];
    for (value, message) in damage {
        // SAFETY: as above.
        unsafe { entries[0].write_volatile(value) };
        let report = space().audit();
        // SAFETY: as above.
        unsafe { entries[0].write_volatile(first) };
        let found = report.findings().any(|finding| alloc::format!("{finding}").contains(message));
        assert!(found, "{message}: {:?}", report.findings().collect::<Vec<_>>());
        assert_sound();
    }
}

fn loader_window_was_readable() {
    let sample = BOOT.get().and_then(|boot| boot.sample).expect("boot read it");
    let (text, at) = (image::text().start.as_u64(), sample.address.as_u64());
    assert_eq!(at, boot::WINDOW_START + physical(text).expect("it is mapped"));
    // SAFETY: the kernel's code is mapped, and nothing writes to it.
    assert_eq!(sample.bytes, unsafe { ptr::read_volatile(text as *const [u8; 16]) });
    assert!(sample.bytes != [sample.bytes[0]; 16], "bytes that could be anything: {sample:x?}");
    for address in [at, at + 15] {
        assert_fault(read(address), address, ABSENT);
        assert_fault(expect_fault(|| poke(address)), address, Code::CAUSED_BY_WRITE);
    }
}

/// Boot itself read the kernel's code through the loader's window; the same address faults now.
#[test_case]
const WINDOW: On = On("", &loader_window_was_readable);

fn loader_is_left() {
    let window = [0, PAGE, 0xb_8000, MIB, 2 * MIB, 64 * MIB, 127 * MIB, 1 << 32, 1 << 38];
    for address in window.map(|offset| boot::WINDOW_START + offset) {
        assert_fault(read(address), address, ABSENT);
    }
    let low =
        [0, 8, PAGE, 0x7c00, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 127 * MIB, 1 << 30, 1 << 32, 0x7fff_ffff_f000];
    for address in low {
        assert_fault(read(address), address, ABSENT);
    }
    // What the UEFI loader may choose from, and the rest of the gigabyte that PVH maps for the image.
    let sections = image::sections();
    let (start, end) = (sections[0].start.as_u64(), sections[4].end.as_u64());
    for address in [0xffff_c000_0000_0000, start & !0x3fff_ffff, start - 1, end, end + 64 * MIB] {
        assert_fault(read(address), address, ABSENT);
    }
}

/// The loader's mappings are gone: its window, where it placed things, the identity map.
#[test_case]
const LOADER: On = On("", &loader_is_left);

fn image_is_write_protected() {
    for section in image::sections() {
        for address in [section.start.as_u64(), section.end.as_u64() - 1] {
            if section.rights == image::Rights::ReadWrite {
                // The stacks begin with a guard page.
                assert!(section.name == "stacks" || write(address).is_none(), "{section:?}");
            } else {
                assert_eq!(read(address), None, "{section:?}");
                assert_fault(write(address), address, WRITE_PROTECTED);
            }
        }
    }
    assert_fault(write(CONSTANT.as_ptr() as u64), CONSTANT.as_ptr() as u64, WRITE_PROTECTED);
}

/// Code and constants cannot be written, from their first byte to their last.
#[test_case]
const IMAGE: On = On("", &image_is_write_protected);

fn data_is_not_executable() {
    let (on_stack, on_heap) = (black_box([0xc3u8]), alloc::boxed::Box::new(0xc3u8));
    let mut pages = space().allocate(1, Protection::ReadWrite).expect("there is memory");
    pages.as_slice_mut::<u8>(0, PAGE_SIZE).expect("it is writable").fill(0xc3);
    let data = [
        CONSTANT.as_ptr() as u64,
        &raw const VARIABLE as u64,
        on_stack.as_ptr() as u64,
        &raw const *on_heap as u64,
        address(&pages),
        POOL,
    ];
    for address in data {
        assert_fault(execute(address), address, NO_EXECUTE);
    }
    pages.remap(Protection::ReadExecute);
    assert_eq!(execute(address(&pages)), None, "the test itself can tell");
}

/// Nothing but code can be executed.
#[test_case]
const DATA: On = On("", &data_is_not_executable);

fn stacks_have_guards() {
    let local = black_box([0u8; 16]);
    let here = local.as_ptr() as u64 & !(PAGE - 1);
    assert!(stack::holds_word(here));
    let is_guard = |address| stack::is_guard(x86_64::VirtAddr::new_truncate(address));
    let mut low = here;
    while stack::holds_word(low - PAGE) {
        low -= PAGE;
    }
    let mut high = here + PAGE;
    while stack::holds_word(high) {
        high += PAGE;
    }
    assert!(high - low >= 64 * 1024, "{} bytes of stack", high - low);
    assert!(is_guard(low - 1) && is_guard(low - PAGE) && !is_guard(low));
    assert_eq!(write(low), None);
    for address in [low - 1, low - PAGE, high, high + PAGE - 1] {
        assert_fault(read(address), address, ABSENT);
        assert_fault(expect_fault(|| poke(address)), address, Code::CAUSED_BY_WRITE);
    }
    for guard in image::guard_pages().map(|guard| guard.as_u64()) {
        assert!(is_guard(guard));
        assert_fault(read(guard), guard, ABSENT);
        assert_fault(read(guard + PAGE - 1), guard + PAGE - 1, ABSENT);
        assert_eq!(read(guard + PAGE), None);
    }
}

/// The stack in use ends at guard pages on both sides, and so does each stack of the image below.
#[test_case]
const STACKS: On = On("", &stacks_have_guards);

/// Writes a byte without reading it first.
fn poke(address: u64) {
    // SAFETY: expected to fault.
    unsafe { ptr::write_volatile(address as *mut u8, 0) };
}

/// Endless recursion ends in the guard page, and the handler has a stack of its own to say so.
#[test_case]
fn overflow_hits_the_guard() {
    #[inline(never)]
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 16]);
        if depth == u64::MAX { 0 } else { recurse(depth + 1) ^ frame[3] }
    }
    for _ in 0..3 {
        let fault = expect_fault(|| {
            black_box(recurse(0));
        });
        let fault = fault.expect("a stack is finite");
        assert_eq!(fault.vector, 14);
        assert!(stack::is_guard(x86_64::VirtAddr::new_truncate(fault.address)), "{fault:x?}");
    }
    assert_sound();
}

/// A function with variables larger than the guard page does not reach across it.
#[test_case]
fn large_frames_do_not_skip_the_guard() {
    #[inline(never)]
    fn large() {
        let mut variables = core::mem::MaybeUninit::<[u8; 1 << 20]>::uninit();
        // SAFETY: the first byte, which lies far below the stack, if nothing stops this.
        unsafe { black_box(&mut variables).as_mut_ptr().cast::<u8>().write_volatile(1) };
    }
    let fault = expect_fault(large).expect("the stack is smaller");
    assert!(stack::is_guard(x86_64::VirtAddr::new_truncate(fault.address)), "{fault:x?}");
}

/// A mapping that is dropped is gone, whatever its size, and its frames are free again.
#[test_case]
fn dropped_mappings_fault() {
    for pages in [1, 7, 511, 512, 600, 1024] {
        let before = counts();
        let mut memory = space().allocate(pages, Protection::ReadWrite).expect("there is memory");
        let (start, bytes) = (address(&memory), memory.size_in_bytes());
        memory.as_slice_mut::<u8>(0, bytes as usize).expect("it is writable").fill(0x5a);
        assert_eq!(count(Owner::Private), before[Owner::Private as usize] + pages);
        drop(memory);
        for address in (start..start + bytes).step_by(PAGE_SIZE).chain([start + bytes - 1]) {
            assert_fault(read(address), address, ABSENT);
        }
        assert_eq!(counts(), before);
    }
    assert_sound();
}

/// Protections can be changed, and the processor, which has the old ones in its TLB, follows at once: with
/// small leaves and with a large one that stays whole.
#[test_case]
fn protections_change() {
    protections_change_in(3);
    protections_change_in(512);
}

fn protections_change_in(count: usize) {
    let bytes = count * PAGE_SIZE;
    let mut pages = space().allocate(count, Protection::ReadWrite).expect("there is memory");
    pages.as_slice_mut::<u8>(0, bytes).expect("it is writable").fill(0xc3);
    let all = [0, PAGE, bytes as u64 - 1].map(|offset| address(&pages) + offset);
    for _ in 0..2 {
        pages.remap(Protection::ReadOnly);
        assert_eq!(pages.as_slice_mut::<u8>(0, 1), Err(AccessError::NotWritable));
        for address in all {
            assert_eq!(read(address), None);
            assert_fault(write(address), address, WRITE_PROTECTED);
            assert_fault(execute(address), address, NO_EXECUTE);
        }
        pages.remap(Protection::ReadExecute);
        for address in all {
            assert_fault(write(address), address, WRITE_PROTECTED);
            assert_eq!(execute(address), None);
        }
        assert_sound();
        pages.remap(Protection::ReadWrite);
        for address in all {
            assert_eq!(write(address), None);
            assert_fault(execute(address), address, NO_EXECUTE);
        }
    }
    assert_eq!(leaves(all[0], all[0] + bytes as u64), if count == 512 { 1 } else { count });
    assert!(pages.as_slice::<u8>(0, bytes).expect("it is readable").iter().all(|byte| *byte == 0xc3));
}

/// 2 MiB are one leaf, which is broken for a split inside, piece by piece, and keeps its contents.
#[test_case]
fn large_leaves_break() {
    let before = counts();
    let mut memory = space().allocate(512, Protection::ReadWrite).expect("there is memory");
    let start = address(&memory);
    let end = start + 2 * MIB;
    let frame = physical(start).expect("it is mapped");
    assert_eq!((start % (2 * MIB), frame % (2 * MIB), leaves(start, end)), (0, 0, 1));
    for offset in (0..2 * MIB).step_by(PAGE_SIZE) {
        assert_eq!(physical(start + offset + 5), Some(frame + offset + 5));
        memory.as_slice_mut::<u64>(0, (2 * MIB / 8) as usize).expect("it is writable")
            [(offset / 8) as usize] = offset;
    }
    let (mut head, mut tail) =
        memory.split(VirtAddr::new(start + 5 * PAGE).expect("canonical")).expect("tables");
    assert_eq!((head.size_in_pages(), tail.size_in_pages(), leaves(start, end)), (5, 507, 512));
    tail.remap(Protection::ReadOnly);
    assert_eq!(write(start + 5 * PAGE - 1), None);
    assert_fault(write(start + 5 * PAGE), start + 5 * PAGE, WRITE_PROTECTED);
    assert_fault(write(end - 1), end - 1, WRITE_PROTECTED);
    assert_sound();
    tail = head.merge(tail).expect_err("they differ");
    tail.remap(Protection::ReadWrite);
    head.merge(tail).expect("they are adjacent and alike");
    let words = head.as_slice::<u64>(0, (2 * MIB / 8) as usize).expect("it is readable");
    assert!(words.iter().step_by(PAGE_SIZE / 8).enumerate().all(|(page, word)| *word == page as u64 * PAGE));
    assert_sound();
    drop(head);
    assert_eq!(counts(), before);
    assert_sound();
}

/// 1 GiB is one leaf where the processor has them, else one leaf for each 2 MiB; it breaks in two steps.
fn gigabyte_leaves_break() {
    let has_them = cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    let memory = space().allocate(1 << 18, Protection::ReadWrite).expect("there is memory");
    let (start, end) = (address(&memory), address(&memory) + 1024 * MIB);
    assert_eq!(leaves(start, end), if has_them { 1 } else { 512 });
    let at = VirtAddr::new(start + 512 * MIB + PAGE).expect("canonical");
    let (head, tail) = memory.split(at).expect("there are tables");
    assert_eq!(leaves(start, end), 511 + 512);
    assert_sound();
    drop(head);
    assert_fault(read(at.value() - 1), at.value() - 1, ABSENT);
    assert_eq!(write(at.value()), None);
    assert_eq!(leaves(start, end), 511 + 255);
    drop(tail);
    assert_eq!(leaves(start, end), 0);
    assert_sound();
}

/// In a guest that has a whole gigabyte in one piece.
#[test_case]
const GIGABYTE_LEAVES: On = On("mem=4096", &gigabyte_leaves_break);

/// What holds after boot by PVH holds after boot by UEFI firmware and its loader.
fn uefi_leaves_the_same() {
    assert_eq!(BOOT.get().map(|boot| boot.loader), Some(boot::Loader::Uefi));
    audit_is_clean_after_boot();
    tables_hold_nothing_unexpected();
    loader_window_was_readable();
    loader_is_left();
    image_is_write_protected();
    data_is_not_executable();
    stacks_have_guards();
}

/// Under UEFI.
#[test_case]
const UEFI: On = On("uefi,cpu=max", &uefi_leaves_the_same);
