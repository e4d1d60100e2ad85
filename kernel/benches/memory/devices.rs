//! Instructions for memory that devices reach, and for their registers.

use alloc::vec::Vec;
use core::hint::black_box;

use ringfence_kernel::memory::space;
use ringfence_kernel::platform::KERNEL;
use ringfence_memory::{
    DeviceId, DmaPool, DmaWindows, FrameRange, FrameRequest, MmioRegion, Owner, PAGE_SIZE, PhysAddr,
};

use crate::live::{Live, ROUNDS};
use crate::support::{Random, Series, count, report};

/// Names of the sizes, how many pages each has, and the number of rounds: zeroing takes long.
const DMA_SIZES: [(&str, usize, usize); 3] =
    [("DMA 4 KiB", 1, ROUNDS), ("DMA 64 KiB", 16, ROUNDS), ("DMA 2 MiB", 512, 101)];
/// Buffers of the pool, and how many of them are lent while one is measured.
const BUFFERS: usize = 256;
const LENT: usize = 32;
/// Runs of the arena: how often one is taken or given back, how many are lent at a time at most, of how many
/// pages.
const STEPS: usize = 2000;
const RUNS: usize = 32;
const LARGEST: usize = 64;
/// The high-precision timer, which every machine here has and the kernel does not use.
const HPET: u64 = 0xfed0_0000;
/// Two of its registers: what it is, and an interrupt status that it does not have while it is off.
const ID: usize = 0;
const STATUS: usize = 0x20;

/// Measures everything among live mappings.
pub fn measure(live: &mut Live) {
    for (name, pages, rounds) in DMA_SIZES {
        dma(name, pages, rounds, live);
    }
    arena();
    buffers(live);
    registers();
}

/// Memory for devices, the zeroing told apart: it is done once more on its own.
fn dma(name: &'static str, pages: usize, rounds: usize, live: &mut Live) {
    let [mut allocate, mut zero, mut free] =
        ["allocate and map", "zero", "unmap and free"].map(|metric| Series::new(name, metric, rounds));
    for _ in 0..rounds {
        live.churn();
        let (cost, memory) = count(|| space().allocate_dma(FrameRequest::new(pages)));
        let Ok(mut memory) = memory else { panic!("{name}: no memory") };
        let (zeroing, ()) = count(|| memory.zero());
        zero.add(zeroing);
        allocate.add(cost - zeroing);
        free.add(count(|| drop(memory)).0);
    }
    [allocate, zero, free].into_iter().for_each(Series::report);
}

/// Buffers of a pool.
fn buffers(live: &mut Live) {
    let windows = DmaWindows::new(&KERNEL, DeviceId(1)).expect("nobody else has it");
    let pool = DmaPool::new(&windows, BUFFERS, 4096).expect("room for the pool");
    let mut lent: Vec<_> = (0..LENT).filter_map(|_| pool.take()).collect();
    let [mut take, mut give] =
        ["take", "give back"].map(|metric| Series::new("DmaBuf 4 KiB", metric, ROUNDS));
    for _ in 0..ROUNDS {
        live.churn();
        let other = live.random.below(LENT);
        lent[other] = pool.take().expect("most buffers are free");
        let (cost, buffer) = count(|| pool.take());
        take.add(cost);
        give.add(count(|| drop(buffer)).0);
    }
    assert_eq!(pool.available(), BUFFERS - LENT);
    [take, give].into_iter().for_each(Series::report);
}

/// Runs of the arena that are taken and given back at random, the zeroing told apart; and how large the arena
/// has become in the end, against the most that was asked for at a time.
fn arena() {
    let [mut take, mut give] = ["take", "give back"].map(|metric| Series::new("DMA arena", metric, STEPS));
    let mut lent: Vec<_> = (0..RUNS).map(|_| None).collect();
    let (mut random, mut most) = (Random::new(0x5eed), 0);
    for _ in 0..STEPS {
        let place = &mut lent[random.below(RUNS)];
        let pages = 1 + random.below(LARGEST);
        if let Some(run) = place.take() {
            give.add(count(|| drop(run)).0);
            continue;
        }
        let (cost, run) = count(|| space().allocate_dma(FrameRequest::new(pages)));
        let mut run = run.expect("room for the run");
        take.add(cost.saturating_sub(count(|| run.zero()).0));
        *place = Some(run);
        most = most.max(space().frames().count(Owner::Dma));
    }
    drop(lent);
    let size = space().frames().count(Owner::DmaIdle);
    let ratio = (size * 1000 / most) as u64;
    [take, give].into_iter().for_each(Series::report);
    report("DMA arena", "size / largest use", "permille", ratio, (ratio, ratio), 1);
}

/// A register that was checked once, and one that is checked at each access.
fn registers() {
    let start = PhysAddr::new(HPET).expect("52 bits");
    let frame = FrameRange::new(start, 1).expect("a page");
    // SAFETY: the timer is there on each machine that this runs on, nobody else uses it, and it reaches no
    // memory.
    unsafe { space().offer_mmio(frame) }.expect("nobody else has it");
    let region = MmioRegion::map(&KERNEL, None, start, PAGE_SIZE).expect("it was offered");
    let register = |offset| region.register::<u32>(offset).expect("in the page");
    let (id, status) = (register(ID), register(STATUS));
    let names = ["Register read", "MmioRegion read", "Register write", "MmioRegion write"];
    let [mut of_id, mut read, mut of_status, mut write] = names.map(|name| Series::new("MMIO", name, ROUNDS));
    for _ in 0..ROUNDS {
        of_id.add(count(|| black_box(&id).read()).0);
        read.add(count(|| black_box(&region).read::<u32>(ID)).0);
        // SAFETY: no bit of it does anything when 0 is written.
        of_status.add(count(|| unsafe { black_box(&status).write(0) }).0);
        // SAFETY: as above.
        write.add(count(|| unsafe { black_box(&region).write(STATUS, 0_u32) }).0);
    }
    [of_id, read, of_status, write].into_iter().for_each(Series::report);
}
