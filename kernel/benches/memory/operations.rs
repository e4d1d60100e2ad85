//! Instructions for taking, mapping and giving back memory, among a number of live mappings.

use alloc::vec::Vec;

use ringfence_kernel::memory::space;
use ringfence_kernel::println;
use ringfence_memory::{FrameRequest, PAGE_SIZE, PageRequest, Protection};

use crate::live::{Live, ROUNDS};
use crate::support::{Series, count};
use crate::{audit, devices};

/// Names of the sizes, how many pages each has, and the number of rounds: zeroing takes long.
const SIZES: [(&str, usize, usize); 4] =
    [("4 KiB", 1, ROUNDS), ("64 KiB", 16, ROUNDS), ("2 MiB", 512, 101), ("1 GiB", 1 << 18, 3)];
/// How many mappings are made in a row before all of them are freed again.
const BURST: usize = 8;
/// Makes `depth` live mappings and measures everything among them.
pub fn measure(depth: usize) {
    let mut live = Live::new(depth);
    for (name, pages, rounds) in SIZES {
        private(name, pages, rounds, &mut live);
        burst(name, pages, rounds, &mut live);
    }
    devices::measure(&mut live);
    protect(&mut live);
    audit::count_steps(&mut live);
    assert_eq!(live.mappings.len(), depth);
}

/// Each step of the life of a mapping, then all of it at once. The zeroing is told apart: it is done once
/// more on its own.
fn private(name: &'static str, pages: usize, rounds: usize, live: &mut Live) {
    let space = space();
    if space.frames().allocate(FrameRequest { align: pages, ..FrameRequest::new(pages) }).is_err() {
        println!("bench-none: {name}");
        return;
    }
    let [mut allocate, mut map, mut zero, mut unmap, mut cycle] =
        ["allocate", "map", "zero", "unmap and free", "whole cycle"]
            .map(|metric| Series::new(name, metric, rounds));
    for _ in 0..rounds {
        live.churn();
        let (cost, tokens) = count(|| {
            let range = space.pages().allocate(PageRequest { align: pages, ..PageRequest::new(pages) });
            (range, space.frames().allocate(FrameRequest { align: pages, ..FrameRequest::new(pages) }))
        });
        allocate.add(cost);
        let (Ok(range), Ok(frames)) = tokens else { panic!("{name}: no memory") };
        let (cost, mapped) = count(|| space.map_allocated_pages_to(range, frames, Protection::ReadWrite));
        let Ok(mut mapped) = mapped else { panic!("{name}: cannot be mapped") };
        let (zeroing, _) =
            count(|| mapped.as_slice_mut(0, pages * PAGE_SIZE).map(|bytes: &mut [u8]| bytes.fill(0)));
        zero.add(zeroing);
        map.add(cost.saturating_sub(zeroing));
        unmap.add(count(|| drop(mapped)).0);
        live.churn();
        let (cost, _) = count(|| space.allocate(pages, Protection::ReadWrite).map(drop));
        cycle.add(cost.saturating_sub(zeroing));
    }
    [allocate, map, zero, unmap, cycle].into_iter().for_each(Series::report);
}

/// Several in a row, freed in random order: what was freed last cannot simply be taken again, so blocks are
/// split and merged, and page tables come and go. A round's figure is the mean.
fn burst(name: &'static str, pages: usize, rounds: usize, live: &mut Live) {
    let [mut allocate, mut free] =
        ["map, 8 in a row", "free, 8 in random order"].map(|metric| Series::new(name, metric, rounds));
    let mut burst = Vec::with_capacity(BURST);
    for _ in 0..rounds {
        live.churn();
        let mut total = 0;
        while burst.len() < BURST {
            let (cost, mapping) = count(|| space().allocate(pages, Protection::ReadWrite));
            let Ok(mut mapping) = mapping else {
                println!("bench-none: {name}, in a row");
                return;
            };
            let (zeroing, _) =
                count(|| mapping.as_slice_mut(0, pages * PAGE_SIZE).map(|bytes: &mut [u8]| bytes.fill(0)));
            burst.push(mapping);
            total += cost.saturating_sub(zeroing);
        }
        allocate.add(total / BURST as u64);
        let mut total = 0;
        while !burst.is_empty() {
            let mapping = burst.swap_remove(live.random.below(burst.len()));
            total += count(|| drop(mapping)).0;
        }
        free.add(total / BURST as u64);
    }
    [allocate, free].into_iter().for_each(Series::report);
}

/// Another protection for 512 leaves of 4 KiB.
fn protect(live: &mut Live) {
    let whole = space().allocate(512, Protection::ReadWrite).expect("room for 2 MiB");
    let inside = whole.address_at_offset(4096).expect("it has 512 pages");
    let (mut pages, rest) = whole.split(inside).expect("a table for small leaves");
    pages.merge(rest).expect("they were one");
    let mut series = Series::new("4 KiB", "protect 512", ROUNDS);
    for round in 0..ROUNDS {
        live.churn();
        let flags = if round.is_multiple_of(2) { Protection::ReadOnly } else { Protection::ReadWrite };
        series.add(count(|| pages.remap(flags)).0);
    }
    series.report();
}
