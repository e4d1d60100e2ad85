//! Types without padding or invalid bit patterns.
use ringfence_memory::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Padded {
    byte: u8,
    _word: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Packed {
    byte: u8,
    rest: [u8; 3],
    word: u32,
}

fn _read(memory: &MappedPages<Private>) -> Result<u8, AccessError> {
    // Reading a type with padding is fine: the padding is not read.
    Ok(memory.as_type::<Padded>(0)?.byte)
}

fn _write(memory: &mut MappedPages<Private>) -> Result<(), AccessError> {
    let value = memory.as_type_mut::<Packed>(0)?;
    (value.byte, value.rest, value.word) = (1, [2; 3], 4);
    memory.as_slice_mut::<Packed>(8, 2)?[1].word = 5;
    Ok(())
}

fn _atomic(memory: &mut MappedPages<Private>) -> Result<u32, AccessError> {
    // What may change behind a shared reference is seen by one borrower, who may share it in turn.
    let word = memory.as_type_mut::<core::sync::atomic::AtomicU32>(0)?;
    let (one, other) = (&*word, &*word);
    one.store(1, core::sync::atomic::Ordering::Relaxed);
    Ok(other.load(core::sync::atomic::Ordering::Relaxed))
}

fn main() {}
