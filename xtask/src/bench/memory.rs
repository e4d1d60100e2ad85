//! `bench memory`: what memory operations cost among few and many live mappings, in small and large guests, and how
//! memory fragments.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::report::{self, Report};
use super::{Row, folder, machine, plot, run, versions};
use crate::kernel;
use crate::setup::{self, Toolchain};

/// Guests by RAM in MiB, with the numbers of live mappings.
const GUESTS: [(u32, &[u64]); 3] =
    [(64, &[10, 10_000]), (1024, &[10, 10_000, 100_000]), (16384, &[10, 10_000, 100_000])];
/// RAM in MiB of the guest that fragments its memory.
const FRAGMENTED: u32 = 256;
/// Makes the TSC count the guest's instructions.
const COUNTING: &str = "-icount shift=0,sleep=off";
/// How long one guest may take.
const LIMIT: Duration = Duration::from_secs(180);
/// For one operation, the largest figure over all guests and depths may be this many times the smallest, in percent.
const MOST: u64 = 125;
/// Instructions of each whole cycle in the smallest guest, as measured when they were last looked at.
const BASELINE: &str = include_str!("memory_baseline.json");

const WHAT: &str = "\
An operation is done by the kernel's ordinary interface, among so many live mappings of 4 KiB each, which a `Vec` owns; a \
third of them was freed in random order and made again before, and one is replaced before each round. `allocate` takes \
pages and frames, `map` is `AddressSpace::map_allocated_pages_to`, `unmap and free` drops the mapping, TLB flush included; \
`whole cycle` is `AddressSpace::allocate` and the drop. `map, 8 in a row` is `AddressSpace::allocate` eight times, after \
which `free, 8 in random order` drops them; these figures are the mean of the eight. \
The other rows take again what was freed last, the allocator's fast path; these two split and merge blocks. Memory is mapped, not touched, but for \
the zeroing of DMA memory, which has a row of its own and is in no other. Figures are guest instructions: the median of all \
rounds (201; 101 for DMA of 2 MiB); the spread is the width of the middle 95 %. `n/a`: the guest has no such block of RAM.";

const FRAGMENTATION: &str = "\
A million steps with a fixed seed: each picks a place at random and frees what is there, or else asks for 1 to 512 pages, \
each size as likely; on average 80 % of free memory would be in use. `mapped` asks for mappings, which may consist of \
several runs of frames; `adjacent frames` asks for one run. The largest free block is a power of two of frames at a multiple \
of its size, the largest that can still be taken.";

/// Runs it all; returns the exit code for this program.
pub fn bench(toolchain: &Toolchain) -> Result<u8> {
    let elf = kernel::build_bench(toolchain, "memory")?;
    let mut counting = machine(elf.clone(), GUESTS[0].0);
    counting.add(COUNTING);
    let mut setup = versions(toolchain)?;
    setup.push(report::command_line(&counting, GUESTS[0].1[0]));
    setup.push(format!(
        "and so for each guest and depth; fragmentation with -m {FRAGMENTED}M and without -icount"
    ));
    setup.iter().for_each(|line| println!("{line}"));

    let mut rows = Vec::new();
    for (mebibytes, depth) in configurations() {
        eprintln!("{}, {} live mappings", guest_name(mebibytes), report::thousands(depth));
        counting.memory = mebibytes;
        rows.extend(run(&counting, &depth.to_string(), &guest_name(mebibytes), LIMIT)?);
    }
    let columns = configurations().map(|(mebibytes, depth)| (guest_name(mebibytes), depth)).collect();
    let operations = Report::new(columns, &rows);

    eprintln!("{}, fragmentation: about a minute", guest_name(FRAGMENTED));
    let fragmentation = run(&machine(elf, FRAGMENTED), "fragmentation", &guest_name(FRAGMENTED), LIMIT)?;

    let folder = folder()?;
    let markdown = format!(
        "# Memory benchmark\n\n{}\n\n## Operations\n\n{WHAT}\n\n{}\n![Instructions by live mappings](memory.svg)\n\n\
         ## Fragmentation, {}\n\n{FRAGMENTATION}\n\n{}",
        setup.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n"),
        operations.markdown(),
        guest_name(FRAGMENTED),
        report::list(&fragmentation),
    );
    println!("\n{WHAT}\n\n{}\n{FRAGMENTATION}\n\n{}", operations.text(), report::list(&fragmentation));
    rows.extend(fragmentation);
    let write = |name: &str, contents: String| {
        let file = folder.join(name);
        std::fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))?;
        println!("wrote {}", file.display());
        Ok::<_, anyhow::Error>(())
    };
    write("memory.json", report::json(&rows)?)?;
    write("memory.md", markdown)?;
    write("memory.svg", plot::by_depth("Guest instructions by live mappings", &operations))?;
    Ok(judge(&operations))
}

/// Says whether the largest ratio is small enough; returns the exit code for this program.
fn judge(operations: &Report) -> u8 {
    let bad: Vec<_> =
        operations.lines.iter().filter(|line| line.largest * 100 > line.smallest * MOST).collect();
    for line in &bad {
        println!(
            "FAILED: {}, {}: {} to {} instructions, a ratio of {:.2}; at most {:.2} is allowed",
            line.workload,
            line.metric,
            line.smallest,
            line.largest,
            line.ratio(),
            MOST as f64 / 100.0,
        );
    }
    if let Some(worst) = operations.lines.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio())) {
        println!("largest ratio: {:.3} ({}, {})", worst.ratio(), worst.workload, worst.metric);
    }
    (!bad.is_empty()).into()
}

/// The smallest guest with the fewest mappings: its whole cycles take as many instructions as they did, give or take a
/// tenth.
pub fn self_check() -> Result<()> {
    let toolchain = setup::toolchain().context("there is no compiler for the kernel")?;
    let (mebibytes, depth) = configurations().next().context("no configuration")?;
    let mut machine = machine(kernel::build_bench(&toolchain, "memory")?, mebibytes);
    machine.add(COUNTING);
    let rows = run(&machine, &depth.to_string(), &guest_name(mebibytes), Duration::from_secs(15))?;
    check(&rows, &serde_json::from_str(BASELINE)?)
}

fn check(rows: &[Row], baseline: &BTreeMap<String, u64>) -> Result<()> {
    let cycles: BTreeMap<String, u64> = rows
        .iter()
        .filter(|row| row.metric == "whole cycle")
        .map(|row| (row.workload.clone(), row.median))
        .collect();
    ensure!(cycles.keys().eq(baseline.keys()), "measured {:?}, not {:?}", cycles.keys(), baseline.keys());
    for (workload, expected) in baseline {
        let found = cycles[workload];
        ensure!(
            found.abs_diff(*expected) * 10 <= *expected,
            "a whole cycle of {workload} takes {found} instructions; recorded are {expected}"
        );
    }
    Ok(())
}

fn configurations() -> impl Iterator<Item = (u32, u64)> {
    GUESTS.into_iter().flat_map(|(mebibytes, depths)| depths.iter().map(move |depth| (mebibytes, *depth)))
}

fn guest_name(mebibytes: u32) -> String {
    match mebibytes {
        1024.. => format!("ringfence {} GiB", mebibytes / 1024),
        _ => format!("ringfence {mebibytes} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(guest: &str, depth: u64, metric: &str, median: u64) -> Row {
        let (guest, workload, metric) = (guest.into(), "4 KiB".into(), metric.into());
        let unit = "instructions".into();
        Row { guest, workload, depth: Some(depth), metric, unit, median, spread: 0, rounds: 9 }
    }

    #[test]
    fn a_ratio_above_the_limit_fails() {
        let columns = vec![("a".into(), 10), ("b".into(), 10)];
        let judged = |large| {
            judge(&Report::new(columns.clone(), &[row("a", 10, "map", 100), row("b", 10, "map", large)]))
        };
        assert_eq!((judged(125), judged(126), judged(80), judged(79)), (0, 1, 0, 1));
    }

    #[test]
    fn the_self_check_allows_a_tenth() {
        let baseline = BTreeMap::from([("4 KiB".to_owned(), 1000)]);
        let checked =
            |count| check(&[row("a", 10, "whole cycle", count), row("a", 10, "map", 1)], &baseline).is_ok();
        assert_eq!([899, 900, 1100, 1101].map(checked), [false, true, true, false]);
        assert!(check(&[], &baseline).is_err());
    }
}
