//! The Ringfence unikernel.
#![no_std]
#![no_main]

ringfence_kernel::entry!(ringfence_kernel::system::run);
