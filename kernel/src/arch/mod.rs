//! The x86-64 processor and the fixed devices of a PC.

pub mod apic;
pub mod cpu;
pub mod exceptions;
pub mod frame;
pub mod gdt;
pub mod idt;
pub mod pic;
pub mod pit;
pub mod recovery;
pub mod rtc;
pub mod stack;
