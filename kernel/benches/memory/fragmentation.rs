//! A million random steps: what becomes of free memory.

use alloc::vec::Vec;

use ringfence_kernel::memory::space;
use ringfence_kernel::println;
use ringfence_memory::{AllocatedFrames, FrameRequest, MapError, MappedPages, Owner, Private, Protection};

use crate::support::{Random, report};

/// Steps of the workload without mappings; the other one, in which half of the steps zero what they take, has
/// a tenth.
const STEPS: usize = 1_000_000;
/// Sizes are 1 to this many pages, each as likely.
const LARGEST: usize = 512;
/// Share of the free memory that is in use on average, in percent.
const LOAD: usize = 80;

/// What both workloads report.
struct Outcome {
    requests: usize,
    /// Requests that failed though as many frames were free.
    failed: usize,
    /// The same by lack of frames.
    refused: usize,
}

/// Runs both workloads, one after the other, on the same memory.
pub fn measure() {
    let before = largest_free();
    // Mappings may be made of several runs of frames, …
    run("mapped", STEPS / 10, |pages| match space().allocate(pages, Protection::ReadWrite) {
        Ok(mapping) => Some(mapping),
        Err(MapError::Frames(_) | MapError::Pages(_)) => None,
        Err(error) => panic!("{error:?}"),
    } as Option<MappedPages<Private>>);
    // … runs of frames as such may not.
    run("adjacent frames", STEPS, |pages| {
        space().frames().allocate(FrameRequest::new(pages)).ok() as Option<AllocatedFrames>
    });
    assert_eq!(largest_free(), before, "free memory does not grow together again");
}

/// Each step picks a place at random, frees what is there, or puts something there.
fn run<T>(name: &str, steps: usize, mut allocate: impl FnMut(usize) -> Option<T>) {
    let free = space().frames().count(Owner::Free);
    let places = 2 * free * LOAD / 100 / LARGEST.div_ceil(2);
    // Half of the places are taken on average, by half of the largest size.
    let places = places.next_multiple_of(2);
    let mut random = Random::new(0x5eed);
    let mut held: Vec<Option<T>> = (0..places).map(|_| None).collect();
    let before = ratio();
    let mut outcome = Outcome { requests: 0, failed: 0, refused: 0 };
    let mut ratios = Vec::with_capacity(steps / 1000);
    for step in 0..steps {
        let place = &mut held[random.below(places)];
        let pages = 1 + random.below(LARGEST);
        if place.take().is_none() {
            outcome.requests += 1;
            let enough = space().frames().count(Owner::Free) >= pages;
            *place = allocate(pages);
            outcome.failed += usize::from(enough && place.is_none());
            outcome.refused += usize::from(!enough && place.is_none());
        }
        if step % 1000 == 999 {
            ratios.push(ratio());
        }
        if step % 50_000 == 49_999 {
            println!("bench-progress: {name}: {} steps", step + 1);
        }
    }
    let after = ratio();
    ratios.sort_unstable();
    let at = |permille: usize| ratios[(ratios.len() - 1) * permille / 1000];
    drop(held);
    let rows = [
        ("requests", "requests", outcome.requests),
        ("failed with enough frames free", "requests", outcome.failed),
        ("failed for lack of frames", "requests", outcome.refused),
        ("largest free block / free, before", "permille", before),
        ("largest free block / free, at the end", "permille", after),
        ("largest free block / free, all freed", "permille", ratio()),
    ];
    for (metric, unit, value) in rows {
        report(name, metric, unit, value as u64, (value as u64, value as u64), 1);
    }
    let (low, median, high) = (at(25) as u64, at(500) as u64, at(975) as u64);
    report(name, "largest free block / free, meanwhile", "permille", median, (low, high), ratios.len());
}

/// The largest block that can be taken at once, of the frames that are free, in permille.
fn ratio() -> usize {
    largest_free() * 1000 / space().frames().count(Owner::Free).max(1)
}

/// Frames in the largest free block: a power of two, at a multiple of its size.
fn largest_free() -> usize {
    let frames = space().frames();
    let mut orders = (0..=frames.total().ilog2()).rev().map(|order| 1 << order);
    orders.find(|count| frames.allocate(FrameRequest::new(*count)).is_ok()).unwrap_or(0)
}
