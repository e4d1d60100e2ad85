//! Allocation: all RAM is there and nothing of it twice, failures are values, and random work keeps the books
//! right.
#![no_std]
#![no_main]
#![feature(custom_test_frameworks)]
#![test_runner(ringfence_kernel::testing::run)]
#![reexport_test_harness_main = "run_tests"]

extern crate alloc;

mod common;

use alloc::vec::Vec;

use common::{GIB, MIB, PAGE, Seen, address, assert_sound, count, counts, physical, random, take_all_frames};
use ringfence_kernel::memory::heap;
use ringfence_kernel::memory::space;
use ringfence_kernel::testing::On;
use ringfence_memory::{
    AllocError, FrameRequest, MapError, MappedPages, Owner, PAGE_SIZE, Private, Protection, VirtAddr,
};

ringfence_kernel::test_image!();

/// Every free frame can be taken, comes back, and is merged with its neighbours again.
fn every_frame_is_allocatable(mebibytes: u64, top: u64) {
    let mut seen = Seen::below(top);
    let total = space().frames().total() as u64 * PAGE;
    assert!(((mebibytes - 1) * MIB..=mebibytes * MIB).contains(&total), "{total} bytes of RAM");
    assert!(
        count(Owner::Free) as u64 * PAGE > (mebibytes - mebibytes / 32 - 6) * MIB,
        "{} free",
        count(Owner::Free)
    );
    let all = take_all_frames(&mut seen);
    let before = count(Owner::Allocated);
    assert_sound();
    drop(all);
    assert_eq!(count(Owner::Free), before);
    assert_sound();
    let largest = 1 << (before as u64).ilog2();
    let quarter = space().frames().allocate(FrameRequest { align: 512, ..FrameRequest::new(largest / 4) });
    assert_eq!(quarter.expect("there are large pieces again").size_in_frames(), largest / 4);
}

fn every_frame_of_64_mib() {
    every_frame_is_allocatable(64, 64 * MIB);
}

/// Of a small guest, …
#[test_case]
const EVERY_FRAME_OF_64_MIB: On = On("mem=64", &every_frame_of_64_mib);

fn every_frame_of_4_gib() {
    // q35 puts 2 GiB above 4 GiB, pc 1 GiB.
    every_frame_is_allocatable(4096, 6 * GIB);
}

/// … and of a large one.
#[test_case]
const EVERY_FRAME_OF_4_GIB: On = On("mem=4096", &every_frame_of_4_gib);

/// All memory mapped page by page, each word written: no two pages share memory, and nothing else is hit.
fn pages_do_not_alias() {
    let mut all: Vec<MappedPages<Private>> = Vec::with_capacity(count(Owner::Free));
    let (before, words) = (counts(), PAGE_SIZE / 8);
    let error = loop {
        match space().allocate(1, Protection::ReadWrite) {
            Ok(mut page) => {
                let start = address(&page);
                let page_words = page.as_slice_mut::<u64>(0, words).expect("it is writable");
                page_words.iter_mut().enumerate().for_each(|(index, word)| *word = start + index as u64 * 8);
                all.push(page);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, MapError::Frames(AllocError::OutOfMemory));
    assert_eq!((count(Owner::Free), all.len()), (0, before[Owner::Free as usize]));
    for page in &all {
        let start = address(page);
        let page_words = page.as_slice::<u64>(0, words).expect("it is readable");
        let right = page_words.iter().enumerate().all(|(index, word)| *word == start + index as u64 * 8);
        assert!(right, "{page:?} was overwritten");
    }
    assert_sound();
    drop(all);
    assert_eq!(counts(), before);
}

/// As much as a small guest has.
#[test_case]
const ALIASES_IN_64_MIB: On = On("mem=64", &pages_do_not_alias);

/// All memory of a large guest in one mapping, from below to above 4 GiB: samples hold what was written
/// there. (Each one that is written takes 2 MiB of the host.)
fn large_mappings_do_not_alias() {
    const STRIDE: usize = 32 * MIB as usize / 8;
    let before = counts();
    let mut all = space().allocate(count(Owner::Free), Protection::ReadWrite).expect("all of it");
    assert_eq!((count(Owner::Free), all.size_in_pages()), (0, before[Owner::Free as usize]));
    let words = all.size_in_bytes() as usize / 8;
    for (index, word) in
        all.as_slice_mut::<u64>(0, words).expect("it is writable").iter_mut().enumerate().step_by(STRIDE)
    {
        *word = index as u64 ^ 0x5555;
    }
    let all_words = all.as_slice::<u64>(0, words).expect("it is readable");
    for (index, word) in all_words.iter().enumerate().step_by(STRIDE) {
        assert_eq!(*word, index as u64 ^ 0x5555);
    }
    let above =
        (0..all.size_in_bytes()).step_by(2 << 20).filter_map(|offset| physical(address(&all) + offset));
    let above = above.filter(|frame| *frame >= 1 << 32).count();
    assert!(above >= 500, "{above} times 2 MiB above 4 GiB");
    assert_sound();
    drop(all);
    assert_eq!(counts(), before);
}

/// As much as a large guest has.
#[test_case]
const ALIASES_IN_4_GIB: On = On("mem=4096", &large_mappings_do_not_alias);

/// The heap takes more pages when it needs them, for many small values and for one that is larger than any
/// step.
#[test_case]
fn heap_grows() {
    let before = (heap::usage(), count(Owner::Private));
    let small: Vec<Vec<u64>> = (0..4_000u64).map(|number| alloc::vec![number; 16]).collect();
    let mut large: Vec<u64> = (0..MIB).collect();
    large.extend(0..MIB);
    assert!(small.iter().enumerate().all(|(number, value)| *value == [number as u64; 16]));
    assert!(large.iter().enumerate().all(|(index, value)| *value == index as u64 % MIB));
    let after = (heap::usage(), count(Owner::Private));
    let claimed = after.0.claimed - before.0.claimed;
    assert!(claimed >= 16 * MIB as usize + 4_000 * 128, "{claimed} bytes more");
    // Talc does not count the few words that it keeps for itself.
    assert_eq!(claimed.div_ceil(PAGE_SIZE), after.1 - before.1);
    for value in large.chunks(1 << 16).step_by(16) {
        assert_eq!(physical(value.as_ptr() as u64).map(|frame| frame < 128 * MIB), Some(true));
    }
    drop((small, large));
    assert_eq!(heap::usage().allocated, before.0.allocated);
    assert_sound();
}

/// Too much is refused by a value that says why, wherever it is asked for, and changes nothing.
#[test_case]
fn failure_is_an_error() {
    let before = (counts(), space().pages().free_pages());
    let free = count(Owner::Free);
    let refused = |result: Result<MappedPages<Private>, MapError>| result.expect_err("that is too much");
    let allocate = |pages| refused(space().allocate(pages, Protection::ReadWrite));
    assert_eq!(allocate(0), MapError::Pages(AllocError::ZeroLength));
    assert_eq!(allocate(free + 1), MapError::Frames(AllocError::OutOfMemory));
    assert_eq!(allocate(1 << 30), MapError::Pages(AllocError::OutOfRange));
    assert_eq!(allocate(usize::MAX), MapError::Pages(AllocError::OutOfRange));
    let dma = |pages| space().allocate_dma(FrameRequest::new(pages)).expect_err("that is too much");
    assert_eq!(dma(0), MapError::Pages(AllocError::ZeroLength));
    assert!(matches!(dma(free + 1), MapError::Frames(AllocError::OutOfMemory | AllocError::OutOfRange)));
    assert_eq!(dma(usize::MAX), MapError::Pages(AllocError::OutOfRange));
    let stack = |pages| space().allocate_stack(pages).err();
    assert_eq!(stack(0), Some(MapError::ZeroLength));
    assert_eq!(stack(free + 1), Some(MapError::Frames(AllocError::OutOfMemory)));
    assert_eq!(stack(usize::MAX), Some(MapError::Pages(AllocError::OutOfRange)));
    let mut list = Vec::<u8>::new();
    assert!(list.try_reserve_exact(free * PAGE_SIZE).is_err());
    assert!(list.try_reserve_exact(isize::MAX as usize).is_err());
    assert_eq!((counts(), space().pages().free_pages()), before);
    assert_sound();
    assert!(list.try_reserve_exact(4 * MIB as usize).is_ok());
    assert!(space().allocate(free / 2, Protection::ReadWrite).is_ok());
    assert_sound();
}

/// With no memory left, all fails politely; with memory back, all works.
#[test_case]
fn exhaustion_passes() {
    let before = counts();
    let all = space().allocate(count(Owner::Free), Protection::ReadOnly).expect("all of it");
    let out_of_memory = Some(MapError::Frames(AllocError::OutOfMemory));
    assert_eq!(space().allocate(1, Protection::ReadOnly).err(), out_of_memory);
    assert_eq!(space().allocate_stack(1).err(), out_of_memory);
    assert_eq!(space().allocate_dma(FrameRequest::new(1)).err(), out_of_memory);
    let mut list = Vec::<u8>::new();
    assert!(list.try_reserve_exact(MIB as usize).is_err());
    assert_sound();
    drop(all);
    assert_eq!(counts(), before);
    assert!(list.try_reserve_exact(MIB as usize).is_ok());
    assert!(space().allocate_stack(100).is_ok() && space().allocate_dma(FrameRequest::new(600)).is_ok());
    assert_sound();
}

/// Whether each word of a mapping is `tag`.
fn holds(memory: &MappedPages<Private>, tag: u64) -> bool {
    let words = memory.as_slice::<u64>(0, memory.size_in_pages() * PAGE_SIZE / 8);
    words.expect("it is readable").iter().all(|word| *word == tag)
}

/// A thousand random steps: maps, splits, protects, copies and drops mappings of all sizes and kinds, whose
/// contents stay; the audit stays clean.
#[test_case]
fn random_work_stays_sound() {
    let mut state = 0x2545_f491_4f6c_dd1d;
    let (mut mapped, mut stacks, mut dma) =
        (Vec::with_capacity(2000), Vec::with_capacity(64), Vec::with_capacity(64));
    let before = count(Owner::Free) + count(Owner::DmaIdle);
    for step in 0..1_000u64 {
        match random(&mut state, 10) {
            0..4 if mapped.len() < 60 => {
                let pages = [1, 3, 40, 512, 700, 1030][random(&mut state, 6)];
                match space().allocate(pages, Protection::ReadWrite) {
                    Ok(mut memory) => {
                        let words = memory.as_slice_mut::<u64>(0, pages * PAGE_SIZE / 8);
                        words.expect("it is writable").fill(step);
                        mapped.push((step, memory));
                    }
                    Err(error) => assert_eq!(error, MapError::Frames(AllocError::OutOfMemory)),
                }
            }
            4 if stacks.len() < 50 => stacks.extend(space().allocate_stack(1 + random(&mut state, 9))),
            5 if dma.len() < 50 => {
                dma.extend(space().allocate_dma(FrameRequest::new(1 + random(&mut state, 20))))
            }
            6 if !mapped.is_empty() => {
                let (tag, memory) = mapped.swap_remove(random(&mut state, mapped.len()));
                let at = address(&memory) + random(&mut state, memory.size_in_pages() + 1) as u64 * PAGE;
                let (head, tail) =
                    memory.split(VirtAddr::new(at).expect("canonical")).expect("there are tables");
                mapped
                    .extend([head, tail].into_iter().filter(|part| !part.is_empty()).map(|part| (tag, part)));
            }
            7 if !mapped.is_empty() => {
                let index = random(&mut state, mapped.len());
                let all = [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute];
                mapped[index].1.remap(all[random(&mut state, 3)]);
            }
            8 => drop((stacks.pop(), dma.pop())),
            _ if !mapped.is_empty() => {
                let (tag, memory) = mapped.swap_remove(random(&mut state, mapped.len()));
                assert!(holds(&memory, tag), "step {step}: {memory:?} was overwritten");
                drop(memory.unmap_into_parts());
            }
            _ => {}
        }
        if step % 50 == 0 {
            assert_sound();
        }
    }
    assert_sound();
    assert!(mapped.len() > 10 && mapped.iter().all(|(tag, memory)| holds(memory, *tag)));
    drop((mapped, stacks, dma));
    assert_sound();
    assert_eq!(count(Owner::Free) + count(Owner::DmaIdle), before);
}
