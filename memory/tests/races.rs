//! Threads that race for the same shared bytes. ThreadSanitizer reports what Rust's memory model leaves
//! undefined (the check `check::thread_sanitizer`); here, what must hold for values is checked. Threads are
//! joined one by one, since the end of a scope is in the standard library, where it sees nothing.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;

use ringfence_memory::rust_vmm::*;
use ringfence_memory::*;

const LEN: usize = 512;
const ROUNDS: usize = 2000;

fn region() -> GuestRegionHeap<AtomicBitmap> {
    GuestRegionHeap::new(GuestAddress(0), LEN).unwrap()
}

/// Copies may race with copies, whatever is cut where: each byte read is one that was written.
#[test]
fn copies_race() {
    let region = region();
    let slice = region.as_volatile_slice().unwrap();
    let write = &|value: u8| {
        for round in 0..ROUNDS {
            let (offset, len) = (round % 19, 1 + round % 331);
            slice.write_slice(&[value; LEN][..len], offset).unwrap();
            slice.write_obj([value; 3], 509).unwrap();
            slice.subslice(340 + offset, 64).unwrap().fill(value).unwrap();
        }
    };
    thread::scope(|scope| {
        let writers = [0x55, 0xaa].map(|value| scope.spawn(move || write(value)));
        let mut seen = [0; LEN];
        for round in 0..ROUNDS {
            let part = &mut seen[round % 23..];
            slice.read_slice(part, round % 23).unwrap();
            assert!(part.iter().all(|byte| [0, 0x55, 0xaa].contains(byte)));
            slice.subslice(1, 100).unwrap().copy_to_volatile_slice(&slice.offset(405).unwrap()).unwrap();
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    assert!(region.bitmap().dirty_at(0));
}

/// Loads and stores of one size never tear; copies next to them, and bytes on their own, do not disturb them.
#[test]
fn loads_and_stores_race() {
    let region = region();
    let slice = region.as_volatile_slice().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers = [0x0101_0101_0101_0101, 0x0202_0202_0202_0202_u64].map(|value| {
            let (slice, done) = (&slice, &done);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    slice.store(value, 8, Relaxed).unwrap();
                    slice.store(value as u32, 16, Release).unwrap();
                    slice.store(value as u16, 20, Relaxed).unwrap();
                    slice.store(value as u8, 22, Release).unwrap();
                    slice.write_slice(&[value as u8; 8][..1 + round % 8], 0).unwrap();
                    slice.write_slice(&[value as u8; 8][round % 2..], 22 + round % 2).unwrap();
                }
                done.store(true, Relaxed);
            })
        });
        while !done.load(Relaxed) {
            let whole = [
                slice.load::<u64>(8, Acquire).unwrap(),
                slice.load::<u32>(16, Relaxed).unwrap().into(),
                slice.load::<u16>(20, Acquire).unwrap().into(),
                slice.load::<u8>(22, Relaxed).unwrap().into(),
            ];
            for (value, size) in whole.into_iter().zip([8, 4, 2, 1]) {
                let bytes = &value.to_ne_bytes()[..size];
                assert!(bytes[0] < 3 && bytes.iter().all(|byte| *byte == bytes[0]), "{value:#x} is torn");
            }
            let around = slice.read_obj::<[u8; 8]>(0).unwrap();
            assert!(around.iter().all(|byte| *byte < 3));
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

/// As in a ring: what is copied before a release is what is copied out after its acquire.
#[test]
fn a_release_orders_copies() {
    let region = region();
    let slice = region.as_volatile_slice().unwrap();
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=ROUNDS {
                let len = 1 + round % 400;
                slice.write_slice(&[round as u8; LEN][..len], 64).unwrap();
                slice.store(round as u16, 2, Release).unwrap();
                while taken.load(Acquire) != round {
                    thread::yield_now();
                }
            }
        });
        for round in 1..=ROUNDS {
            while slice.load::<u16>(2, Acquire) != Ok(round as u16) {
                thread::yield_now();
            }
            let mut seen = [0; LEN];
            let seen = &mut seen[..1 + round % 400];
            slice.read_slice(seen, 64).unwrap();
            assert!(seen.iter().all(|byte| *byte == round as u8));
            taken.store(round, Release);
        }
        writer.join().unwrap();
    });
}

/// Each of two threads counts in a word of its own, and after a fence reads the other's: what one of them
/// writes after it has missed the other's count is not missed by that one.
#[test]
fn a_fence_lets_no_load_pass_a_store() {
    const COUNTS: usize = 1000;
    for _ in 0..2000 {
        // Without a bitmap: to mark in one is a fence of its own.
        let region = GuestRegionHeap::<()>::new(GuestAddress(0), LEN).unwrap();
        let slice = &region.as_volatile_slice().unwrap();
        let ready = &AtomicUsize::new(0);
        let count = |own: usize, other: usize| {
            ready.fetch_add(1, SeqCst);
            while ready.load(SeqCst) < 2 {
                thread::yield_now();
            }
            let see = |count| {
                slice.store(count as u64, own, Relaxed).unwrap();
                fence(SeqCst);
                slice.load::<u64>(other, Relaxed).unwrap() as usize
            };
            (1..=COUNTS).map(see).collect::<Vec<_>>()
        };
        let [low, high] = thread::scope(|scope| {
            let threads = [(0, 256), (256, 0)].map(|(own, other)| scope.spawn(move || count(own, other)));
            threads.map(|thread| thread.join().unwrap())
        });
        for (before, seen) in low.iter().enumerate() {
            // `seen` counts of the other's had been seen after this one was written; the next one was not.
            assert!(high.get(*seen).is_none_or(|count| *count > before), "{seen} and {before}");
        }
    }
}
