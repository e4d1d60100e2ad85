//! Properties of mappings: cutting and joining change nothing, and no frame is free while it can be reached.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::sync::{Arc, Mutex};

fn at(value: u64) -> VirtAddr {
    VirtAddr::new(value).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Cutting a mapping of any sizes of leaf anywhere, any number of times, and joining it again changes no
    /// address and no byte.
    #[test]
    fn merge_undoes_split(count in 1..1600usize, cuts in prop::collection::vec(any::<usize>(), 0..6)) {
        let system = System::new(Config { window_pages: 1 << 13, ..Config::default() });
        let before = system.state();
        let mut mapping = system.space.allocate(count, Protection::ReadWrite).unwrap();
        let words = mapping.as_slice_mut::<u64>(0, count * 512).unwrap();
        for (index, word) in words.iter_mut().step_by(512).enumerate() {
            *word = index as u64;
        }
        let translate = |page: Page| system.space.translate(page.start_address());
        let look = |pages: &PageRange| pages.iter().map(translate).collect::<Vec<_>>();
        let (frames, range) = (look(&mapping), *mapping);
        let mut parts = vec![mapping];
        for cut in cuts {
            let address = at(range.start_address().value() + (cut % (count + 1)) as u64 * PAGE);
            let found = parts.iter().position(|part| part.contains_address(address));
            let Some(index) = found else { continue };
            let (head, tail) = parts.remove(index).split(address).unwrap();
            parts.splice(index..index, [head, tail].into_iter().filter(|part| !part.is_empty()));
            system.check();
        }
        let mut whole = MappedPages::empty();
        for part in parts {
            whole.merge(part).unwrap();
        }
        prop_assert_eq!((*whole, look(&whole)), (range, frames));
        let words = whole.as_slice::<u64>(0, count * 512).unwrap();
        prop_assert!(words.iter().step_by(512).enumerate().all(|(index, word)| *word == index as u64));
        drop(whole);
        prop_assert_eq!(system.state(), before);
    }

    /// No frame is ever handed out while a processor could still reach it, whatever is unmapped in whatever
    /// order.
    #[test]
    fn no_frame_is_free_while_cached(
        sizes in prop::collection::vec(1..700usize, 1..8),
        order in any::<usize>(),
        parts in any::<bool>(),
    ) {
        let system = System::new(Config { window_pages: 1 << 13, ram_frames: 6000, ..Config::default() });
        let (space, machine) = (system.space, system.machine);
        let map = |size: &usize| space.allocate(*size, Protection::ReadWrite).unwrap();
        let mut mapped: Vec<_> = sizes.iter().map(map).collect();
        mapped.iter().for_each(|mapping| machine.touch(mapping));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let found = wrong.clone();
        *machine.on_flush.lock().unwrap() = Some(Box::new(move || {
            for frame in machine.cached_frames() {
                let request = FrameRequest { at: PhysAddr::new(frame * PAGE), ..FrameRequest::new(1) };
                if space.frames().allocate(request).is_ok() {
                    found.lock().unwrap().push(frame);
                }
            }
        }));
        while !mapped.is_empty() {
            let mapping = mapped.swap_remove(order % mapped.len());
            if parts {
                drop(mapping.unmap_into_parts().unwrap());
            } else {
                drop(mapping);
            }
        }
        *machine.on_flush.lock().unwrap() = None;
        prop_assert_eq!(&*wrong.lock().unwrap(), &[0u64; 0]);
        prop_assert!(machine.cached_frames().is_empty());
        system.check();
    }

    /// What is refused has changed nothing: no leaf was broken, no table taken, for any operation that can
    /// fail.
    #[test]
    fn refused_is_unchanged(
        count in 1..1100usize,
        offset in any::<u64>(),
        pool_frames in prop_oneof![Just(128usize), 7..12usize],
    ) {
        let system = System::new(Config { window_pages: 1 << 13, pool_frames, ..Config::default() });
        let space = system.space;
        let mapping = space.allocate(count, Protection::ReadWrite);
        let Ok(mut mapping) = mapping else { return Ok(()) };
        let size = mapping.size_in_bytes();
        unsafe { space.offer_mmio(frames(4096, 2)) }.unwrap();
        let before = system.everything();
        let same = |what: &str| {
            let leaves = system.space.audit();
            assert!(leaves.ok() && system.everything() == before, "{what}: {leaves:?}");
        };
        // Split: within a page, outside, and where no table is left.
        let start = mapping.start_address().value();
        let past = start + size;
        for wrong in [(start + offset % size) | 1, past + PAGE, start - PAGE, past + 8, offset % start] {
            mapping = mapping.split(VirtAddr::new(wrong).unwrap()).unwrap_err();
            same("split");
        }
        let middle = mapping.address_at_offset((offset % size) & !0xfff).unwrap();
        let available = pool_frames - 1 - space.audit().tables;
        match mapping.split(middle) {
            Ok((mut head, tail)) => {
                head.merge(tail).unwrap();
                mapping = head;
            }
            Err(back) => {
                prop_assert!(available == 0);
                mapping = back;
                same("split without tables");
            }
        }
        let before = system.everything();
        let same = |what: &str| assert!(system.everything() == before, "{what}");
        // Merge with what does not follow.
        let other = space.allocate(1, Protection::ReadOnly);
        if let Ok(mut other) = other {
            let before = system.everything();
            mapping = other.merge(mapping).unwrap_err();
            other = mapping.merge(other).unwrap_err();
            prop_assert!(system.everything() == before);
            drop(other);
        }
        // Map: sizes that differ, what is not there, or too many tables.
        let tokens = |pages, frames| {
            let frames = space.frames().allocate(FrameRequest::new(frames));
            (space.pages().allocate(PageRequest::new(pages)), frames)
        };
        if let (Ok(pages), Ok(frames)) = tokens(2, 3) {
            drop(space.map_allocated_pages_to(pages, frames, Protection::ReadOnly).unwrap_err());
        }
        same("map");
        if let (Ok(pages), Ok(frames)) = tokens(1030, 1030)
            && let Err(back) = space.map_allocated_pages_to(pages, frames, Protection::ReadOnly)
        {
            drop(back);
            same("map without tables");
        }
        prop_assert!(space.allocate(5000, Protection::ReadOnly).is_err());
        prop_assert!(space.allocate_stack(5000).is_err());
        same("allocate");
        let reserved = FrameRequest { at: PhysAddr::new(0), ..FrameRequest::new(1) };
        prop_assert!(space.allocate_dma(reserved).is_err());
        same("allocate for devices");
        let offered = unsafe { space.offer_mmio(frames(4097, 9)) };
        prop_assert!(space.claim_mmio(frames(4097, 2), None).is_err() && offered.is_err());
        same("claim");
        drop(mapping);
        system.check();
    }
}
