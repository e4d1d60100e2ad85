//! Where the parts of the kernel image are and which rights each needs.

use x86_64::VirtAddr;

use crate::arch::stack;

/// Rights that a section is to be mapped with. Nothing is both writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Constants.
    Read,
    /// Code.
    ReadExecute,
    /// Variables and stacks.
    ReadWrite,
}

/// A section of the image: whole 4 KiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, for the boot log.
    pub name: &'static str,
    /// First byte.
    pub start: VirtAddr,
    /// One past the last byte.
    pub end: VirtAddr,
    /// Rights it is to be mapped with.
    pub rights: Rights,
}

impl Section {
    /// Whether `address` lies in this section.
    pub fn contains(&self, address: VirtAddr) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Defined by the linker script; only their addresses mean something.
#[allow(missing_docs)]
mod symbol {
    unsafe extern "C" {
        pub static __rodata_start: u8;
        pub static __rodata_end: u8;
        pub static __text_start: u8;
        pub static __text_end: u8;
        pub static __data_start: u8;
        pub static __data_end: u8;
        pub static __stacks_start: u8;
        pub static __stacks_end: u8;
        pub static __bss_start: u8;
        pub static __bss_end: u8;
    }
}

macro_rules! section {
    ($name:literal, $start:ident, $end:ident, $rights:ident) => {
        Section {
            name: $name,
            start: VirtAddr::from_ptr(&raw const symbol::$start),
            end: VirtAddr::from_ptr(&raw const symbol::$end),
            rights: Rights::$rights,
        }
    };
}

/// The sections in ascending order, adjacent to each other. `stacks` contains the [`guard_pages`], which are
/// to stay unmapped.
pub fn sections() -> [Section; 5] {
    [
        section!("rodata", __rodata_start, __rodata_end, Read),
        section!("text", __text_start, __text_end, ReadExecute),
        section!("data", __data_start, __data_end, ReadWrite),
        section!("stacks", __stacks_start, __stacks_end, ReadWrite),
        section!("bss", __bss_start, __bss_end, ReadWrite),
    ]
}

/// The code section.
pub fn text() -> Section {
    section!("text", __text_start, __text_end, ReadExecute)
}

/// First addresses of the 4 KiB guard pages below the stacks of the image.
pub fn guard_pages() -> [VirtAddr; stack::COUNT as usize] {
    stack::of_image().map(|stack| stack.guard())
}
