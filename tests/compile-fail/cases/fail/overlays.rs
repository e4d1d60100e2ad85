//! Not every type can be seen in plain memory.
use core::cell::{Cell, UnsafeCell};
use core::num::NonZeroU32;
use core::sync::atomic::AtomicU32;
use ringfence_memory::*;
use ringfence_memory::theseus::{BorrowedMappedPages, Mutable};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Three bytes after the first are padding.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Padded {
    _byte: u8,
    _word: u32,
}

type Memory = MappedPages<Private>;

fn boolean(memory: &Memory) {
    let _ = memory.as_type::<bool>(0); //~ E0277 boolean
}

fn boolean_mut(memory: &mut Memory) {
    let _ = memory.as_type_mut::<bool>(0); //~ E0277 boolean_mut
}

fn booleans(memory: &Memory) {
    let _ = memory.as_slice::<bool>(0, 1); //~ E0277 booleans
}

fn booleans_mut(memory: &mut Memory) {
    let _ = memory.as_slice_mut::<bool>(0, 1); //~ E0277 booleans_mut
}

fn character(memory: &Memory) {
    let _ = memory.as_type::<char>(0); //~ E0277 character
}

fn not_zero(memory: &Memory) {
    let _ = memory.as_type::<NonZeroU32>(0); //~ E0277 not_zero
}

fn reference(memory: &Memory) {
    let _ = memory.as_type::<&u8>(0); //~ E0277 reference
}

fn function(memory: &Memory) {
    let _ = memory.as_type::<fn()>(0); //~ E0277 function
}

fn references(memory: &Memory) {
    let _ = memory.as_slice::<&u8>(0, 1); //~ E0277 references
}

fn cell(memory: &Memory) {
    let _ = memory.as_type::<Cell<u32>>(0); //~ E0277 cell
}

fn cells(memory: &Memory) {
    let _ = memory.as_slice::<Cell<u32>>(0, 1); //~ E0277 cells
}

fn unsafe_cell(memory: &Memory) {
    let _ = memory.as_type::<UnsafeCell<u32>>(0); //~ E0277 unsafe_cell
}

fn atomic(memory: &Memory) {
    let _ = memory.as_type::<AtomicU32>(0); //~ E0277 atomic
}

fn padded_mut(memory: &mut Memory) {
    let _ = memory.as_type_mut::<Padded>(0); //~ E0277 padded_mut
}

fn padded_slice_mut(memory: &mut Memory) {
    let _ = memory.as_slice_mut::<Padded>(0, 1); //~ E0277 padded_slice_mut
}

fn tuple_mut(memory: &mut Memory) {
    let _ = memory.as_type_mut::<(u8, u32)>(0); //~ E0277 tuple_mut
}

fn borrowed_boolean(memory: Memory) {
    let _ = memory.into_borrowed::<bool>(0); //~ E0277 borrowed_boolean
}

fn borrowed_padded_mut(memory: Memory) {
    let _ = memory.into_borrowed_mut::<Padded>(0); //~ E0277 borrowed_padded_mut
}

fn borrowed_cells(memory: Memory) {
    let _ = memory.into_borrowed_slice::<Cell<u8>>(0, 1); //~ E0277 borrowed_cells
}

fn borrowed_padded_slice_mut(memory: Memory) {
    let _ = memory.into_borrowed_slice_mut::<Padded>(0, 1); //~ E0277 borrowed_padded_slice_mut
}

fn borrowed_atomic_mut(memory: Memory) {
    let _ = memory.into_borrowed_mut::<AtomicU32>(0); //~ E0277 borrowed_atomic_mut
}

fn borrowed_unsafe_cell_mut(memory: Memory) {
    let _ = memory.into_borrowed_mut::<UnsafeCell<u32>>(0); //~ E0277 borrowed_unsafe_cell_mut
}

fn borrowed_atomics_mut(memory: Memory) {
    let _ = memory.into_borrowed_slice_mut::<AtomicU32>(0, 1); //~ E0277 borrowed_atomics_mut
}

fn borrowed_from_atomic_mut(memory: Memory) {
    let _ = BorrowedMappedPages::<AtomicU32, Mutable>::from_mut(memory, 0); //~ E0599 borrowed_from_atomic_mut
}

fn main() {}
