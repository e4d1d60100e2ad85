//! The unikernel that proves Ringfence: it boots under QEMU, drives virtio devices through
//! `ringfence-drivers` in memory owned by `ringfence-memory`, and serves files over HTTP.
//!
//! [`entry!`] makes a bootable image out of one function; [`boot::start`] is what runs before it.
#![no_std]

extern crate alloc;

pub mod acpi;
pub mod alarm;
pub mod arch;
pub mod boot;
pub mod devices;
pub mod executor;
pub mod fw_cfg;
pub mod interrupts;
pub mod logging;
pub mod memory;
pub mod panic;
pub mod platform;
pub mod power;
pub mod qemu;
pub mod static_address;
pub mod system;
pub mod testing;
pub mod time;

#[doc(hidden)]
pub use bootloader_api;

/// Makes a bootable image: defines the entry point that both loaders jump to, which runs [`boot::start`] and
/// then `$main`, a `fn(Boot) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::bootloader_api::entry_point!(ringfence_start, config = &$crate::boot::CONFIG);

        fn ringfence_start(info: &'static mut $crate::bootloader_api::BootInfo) -> ! {
            $crate::boot::start(info, $main)
        }
    };
}
