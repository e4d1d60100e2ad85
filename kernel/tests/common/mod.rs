//! What the tests of the kernel's memory share: touching memory, books, and a walk of the page tables of
//! their own.
#![allow(dead_code, reason = "each test image uses a part")]

use alloc::vec::Vec;
use core::hint::black_box;
use core::ops::Range;
use core::ptr;

use ringfence_kernel::memory::space;
use ringfence_kernel::testing::{FaultInfo, expect_fault};
use ringfence_memory::{
    AllocError, AllocatedFrames, FrameRequest, Kind, MappedPages, Owner, PAGE_SIZE, PhysAddr, VirtAddr,
};
use x86_64::registers::control::Cr3;
use x86_64::structures::idt::PageFaultErrorCode as Code;
use x86_64::structures::paging::PageTableFlags as Flags;

pub const PAGE: u64 = PAGE_SIZE as u64;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// Where the page tables are mapped, and nothing else.
pub const POOL: u64 = 0xffff_e000_0000_0000;

/// Not mapped.
pub const ABSENT: Code = Code::empty();
/// Mapped, but not to be written.
pub const WRITE_PROTECTED: Code = Code::PROTECTION_VIOLATION.union(Code::CAUSED_BY_WRITE);
/// Mapped, but not to be executed.
pub const NO_EXECUTE: Code = Code::PROTECTION_VIOLATION.union(Code::INSTRUCTION_FETCH);

/// What reading the byte at `address` raises.
pub fn read(address: u64) -> Option<FaultInfo> {
    // SAFETY: either this faults, or it has no effect: no address used here is that of a device register.
    expect_fault(|| unsafe {
        black_box(ptr::read_volatile(address as *const u8));
    })
}

/// What writing the byte at `address` raises. It keeps its value.
pub fn write(address: u64) -> Option<FaultInfo> {
    // SAFETY: as in `read`.
    expect_fault(|| unsafe {
        ptr::write_volatile(address as *mut u8, ptr::read_volatile(address as *const u8))
    })
}

/// What calling the `ret` at `address` raises.
pub fn execute(address: u64) -> Option<FaultInfo> {
    // SAFETY: either this faults, or it returns at once.
    expect_fault(|| unsafe { core::mem::transmute::<u64, extern "C" fn()>(address)() })
}

/// It was a page fault of this kind at this address.
#[track_caller]
pub fn assert_fault(fault: Option<FaultInfo>, address: u64, code: Code) {
    let Some(fault) = fault else { panic!("{address:#x} does not fault") };
    assert_eq!((fault.vector, fault.address), (14, address), "{fault:x?}");
    assert_eq!(Code::from_bits_truncate(fault.error_code), code, "at {address:#x}");
}

/// The audit finds nothing. Needs no heap.
#[track_caller]
pub fn assert_sound() {
    let report = space().audit();
    for finding in report.findings() {
        log::error!("{finding}");
    }
    assert_eq!(report.violations, 0);
}

/// The first byte of a mapping.
pub fn address<K: Kind>(pages: &MappedPages<K>) -> u64 {
    pages.start_address().value()
}

/// Where `address` leads, according to the kernel.
pub fn physical(address: u64) -> Option<u64> {
    space().translate(VirtAddr::new(address)?).map(PhysAddr::value)
}

/// How many frames `owner` has.
pub fn count(owner: Owner) -> usize {
    space().frames().count(owner)
}

/// How many frames each owner has.
pub fn counts() -> [usize; Owner::ALL.len()] {
    Owner::ALL.map(count)
}

/// Small pseudo-random numbers (xorshift), so that a failure can be repeated.
pub fn random(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below as u64) as usize
}

/// A set of frames.
pub struct Seen(Vec<u64>);

impl Seen {
    /// Room for the frames below `end`.
    pub fn below(end: u64) -> Self {
        Self(alloc::vec![0; (end / PAGE).div_ceil(64) as usize])
    }

    /// Adds the frame at a physical address; false if it was there.
    pub fn insert(&mut self, address: u64) -> bool {
        let (word, bit) = ((address / PAGE / 64) as usize, 1 << (address / PAGE % 64));
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }
}

/// Takes every free frame, one by one. Each is RAM, none was seen before, and they are as many as the books
/// say.
pub fn take_all_frames(seen: &mut Seen) -> Vec<AllocatedFrames> {
    let frames = space().frames();
    // The list itself must not grow meanwhile.
    let mut all = Vec::with_capacity(count(Owner::Free));
    let free = count(Owner::Free);
    loop {
        match frames.allocate(FrameRequest::new(1)) {
            Ok(frame) => {
                assert!(frames.is_ram(*frame));
                assert!(seen.insert(frame.start_address().value()), "{frame:?} was seen before");
                all.push(frame);
            }
            Err(error) => {
                assert_eq!((error, all.len(), count(Owner::Free)), (AllocError::OutOfMemory, free, 0));
                return all;
            }
        }
    }
}

/// An entry in the live page tables that maps memory.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    pub page: u64,
    pub bytes: u64,
    pub frame: u64,
    pub flags: Flags,
    pub entry: *mut u64,
}

/// The address in an entry.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Visits every leaf of the live page tables, read without the code under test; returns how many tables there
/// are. All of them lie in the pool, and no entry is for users.
pub fn walk(visit: &mut dyn FnMut(Leaf)) -> usize {
    let first = physical(POOL).expect("the pool is mapped");
    let tables = first..first + count(Owner::Tables) as u64 * PAGE;
    walk_table(Cr3::read().0.start_address().as_u64(), 39, 0, &tables, visit)
}

fn walk_table(table: u64, shift: u32, base: u64, tables: &Range<u64>, visit: &mut dyn FnMut(Leaf)) -> usize {
    assert!(tables.contains(&table), "the page table at {table:#x} lies outside the pool");
    let mut found = 1;
    for slot in 0..512 {
        let entry = (POOL + table - tables.start + slot * 8) as *mut u64;
        // SAFETY: the table lies in the pool, all of which is mapped.
        let value = unsafe { entry.read_volatile() };
        let flags = Flags::from_bits_truncate(value);
        // Bit 47 is repeated above it.
        let page = ((base | slot << shift) << 16) as i64 >> 16;
        if !flags.contains(Flags::PRESENT) {
            assert_eq!(value, 0, "an absent entry has contents");
            continue;
        }
        assert!(!flags.contains(Flags::USER_ACCESSIBLE), "an entry for users at {page:#x}");
        if shift == 12 || flags.contains(Flags::HUGE_PAGE) {
            visit(Leaf { page: page as u64, bytes: 1 << shift, frame: value & FRAME, flags, entry });
        } else {
            found += walk_table(value & FRAME, shift - 9, page as u64, tables, visit);
        }
    }
    found
}

/// How many leaves there are in `start..end`.
pub fn leaves(start: u64, end: u64) -> usize {
    let mut found = 0;
    walk(&mut |leaf| found += usize::from((start..end).contains(&leaf.page)));
    found
}
