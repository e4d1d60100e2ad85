//! A picture of physical memory: who has which frames.

use alloc::vec::Vec;

use ringfence_memory::{FrameRange, Owner, PAGE_SHIFT, PAGE_SIZE};
use ringfence_services::api::Run;

use super::{settled, space};

/// Windows that are told apart from what else is in use, at most: each takes 24 bytes.
const MAX_WINDOWS: usize = 1000;

/// Frames whose owner is known from where they are.
struct Known {
    start: u64,
    end: u64,
    owner: Owner,
}

/// All RAM by rising addresses. What is in use is told apart as of now.
pub fn runs() -> impl Iterator<Item = Run> {
    let (known, mut at) = (known(), 0);
    core::iter::from_fn(move || {
        let (run, owner) = space().frames().next_run(at)?;
        let start = run.start_address().value() >> PAGE_SHIFT;
        let end = start + run.size_in_frames() as u64;
        let (end, owner) = match owner {
            Some(owner) => (end, owner.name()),
            None => match known.get(known.partition_point(|known| known.end <= start)) {
                Some(known) if known.start <= start => (end.min(known.end), known.owner.name()),
                next => (next.map_or(end, |known| end.min(known.start)), "used"),
            },
        };
        at = end;
        Some(Run { start, count: end - start, owner })
    })
}

/// What was settled at boot, and the devices' windows, by rising addresses and without overlaps.
fn known() -> Vec<Known> {
    let frames = |(frames, owner): &(FrameRange, Owner)| {
        let start = frames.start_address().value() >> PAGE_SHIFT;
        Known { start, end: start + frames.size_in_frames() as u64, owner: *owner }
    };
    // What devices use are physical addresses here.
    let windows = space().registry().windows().take(MAX_WINDOWS).map(|window| {
        let (start, pages) = (window.device_address >> PAGE_SHIFT, window.len.div_ceil(PAGE_SIZE));
        let owner = if window.is_open { Owner::Dma } else { Owner::Quarantined };
        Known { start, end: start + pages as u64, owner }
    });
    let mut known: Vec<Known> = settled().iter().map(frames).chain(windows).collect();
    known.sort_unstable_by_key(|known| known.start);
    let mut past = 0;
    for known in &mut known {
        (known.start, known.end) = (known.start.max(past), known.end.max(past));
        past = known.end;
    }
    known
}
