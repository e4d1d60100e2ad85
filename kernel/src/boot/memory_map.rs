//! Turns the memory map of the firmware, which is not trusted to be sorted, aligned or
//! free of overlaps, into one that is.

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

/// Regions kept at most; what does not fit is lost as memory, never reported as usable by mistake.
pub const MAX_REGIONS: usize = 128;

const PAGE: u64 = 4096;

/// A memory map: page-aligned regions in ascending order that do not overlap; adjacent ones differ in kind.
pub type MemoryMap = heapless::Vec<MemoryRegion, MAX_REGIONS>;

/// Makes a memory map. Where the given regions overlap, the later one wins, and any other wins over `Usable`.
/// Page 0 is never usable, so that no pointer into usable memory is null.
pub fn build(regions: &[MemoryRegion]) -> MemoryMap {
    let mut map = MemoryMap::new();
    let is_usable = |region: &&MemoryRegion| region.kind == MemoryRegionKind::Usable;
    for &MemoryRegion { start, end, kind } in regions.iter().filter(is_usable) {
        // A page that is only partly RAM is not usable.
        if let Some(start) = start.checked_next_multiple_of(PAGE) {
            add(&mut map, MemoryRegion { start, end: align_down(end), kind });
        }
    }
    for &MemoryRegion { start, end, kind } in
        regions.iter().filter(|region| !is_usable(region) && region.start < region.end)
    {
        let end = end.checked_next_multiple_of(PAGE).unwrap_or(align_down(u64::MAX));
        add(&mut map, MemoryRegion { start: align_down(start), end, kind });
    }
    add(&mut map, MemoryRegion { start: 0, end: PAGE, kind: MemoryRegionKind::UnknownBios(0) });
    map.sort_unstable_by_key(|region| region.start);
    map
}

const fn align_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Adds a region, joining it with those of its kind that it touches and taking its range away from the
/// others.
fn add(map: &mut MemoryMap, mut new: MemoryRegion) {
    if new.start >= new.end {
        return;
    }
    let mut result = MemoryMap::new();
    for old in map.iter() {
        if old.kind == new.kind && old.start <= new.end && new.start <= old.end {
            new = MemoryRegion { start: old.start.min(new.start), end: old.end.max(new.end), ..new };
            continue;
        }
        for (start, end) in [(old.start, old.end.min(new.start)), (old.start.max(new.end), old.end)] {
            if start < end {
                // Without room for a piece, it is lost.
                let _ = result.push(MemoryRegion { start, end, ..*old });
            }
        }
    }
    let _ = result.push(new);
    *map = result;
}
