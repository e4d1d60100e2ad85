//! Random mapping, unmapping, splitting, merging and remapping. After every few steps each address of the
//! window is looked up in the tables by the `x86_64` crate, and compared with a map of what should be there.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::collections::BTreeMap;
use x86_64::structures::paging::mapper::{MappedFrame, OffsetPageTable, Translate, TranslateResult};
use x86_64::structures::paging::{PageTable, PageTableFlags};

const PAGES: usize = 1 << 13;

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, u8),
    /// Pages here, frames there: alignments that differ.
    Place(usize, u64, usize),
    Dma(usize, usize),
    Drop(usize),
    Split(usize, usize),
    Merge(usize, usize),
    Remap(usize, u8),
    Parts(usize),
    Copy(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![
        4 => 1..10usize,
        2 => 1..600usize,
        1 => 512..1600usize,
        1 => Just(512usize),
        1 => Just(1024usize),
    ];
    let index = any::<usize>;
    prop_oneof![
        6 => (count.clone(), any::<u8>()).prop_map(|(count, flags)| Step::Allocate(count, flags)),
        2 => (0..PAGES, 150..6000u64, count).prop_map(|(page, frame, count)| Step::Place(page, frame, count)),
        1 => (1..20usize, 0..4usize).prop_map(|(count, align)| Step::Dma(count, 1 << align)),
        4 => index().prop_map(Step::Drop),
        4 => (index(), index()).prop_map(|(a, b)| Step::Split(a, b)),
        3 => (index(), index()).prop_map(|(a, b)| Step::Merge(a, b)),
        2 => (index(), any::<u8>()).prop_map(|(a, flags)| Step::Remap(a, flags)),
        1 => index().prop_map(Step::Parts),
        1 => index().prop_map(Step::Copy),
    ]
}

fn protection(flags: u8) -> Protection {
    [Protection::ReadOnly, Protection::ReadWrite, Protection::ReadExecute][usize::from(flags % 3)]
}

struct World {
    system: System,
    private: Vec<MappedPages<Private>>,
    dma: Vec<MappedPages<Dma>>,
    /// Frame and flags of each page that should be mapped, learnt once, when it was mapped.
    expected: BTreeMap<u64, (u64, Protection)>,
    stamp: u64,
}

impl World {
    fn translate(&self, address: u64) -> Option<(u64, PageTableFlags)> {
        let root = self.system.machine.root().value();
        let root = unsafe { &mut *self.system.machine.ram.add(root as usize).cast::<PageTable>() };
        let offset = x86_64::VirtAddr::new(self.system.machine.ram as u64);
        let tables = unsafe { OffsetPageTable::new(root, offset) };
        match tables.translate(x86_64::VirtAddr::new(address)) {
            TranslateResult::Mapped { frame, offset, flags } => {
                let large = !matches!(frame, MappedFrame::Size4KiB(_));
                assert_eq!(flags.contains(PageTableFlags::HUGE_PAGE), large);
                Some(((frame.start_address().as_u64() + offset) / PAGE, flags))
            }
            TranslateResult::NotMapped => None,
            TranslateResult::InvalidFrameAddress(address) => panic!("invalid frame {address:?}"),
        }
    }

    /// Notes where new pages lead, and touches one, so that the TLB knows it.
    fn learn(&mut self, pages: &PageRange, protection: Protection) {
        for page in pages.iter() {
            let at = page.start_address().value();
            let (frame, _) = self.translate(at).expect("just mapped");
            assert!(!self.expected.values().any(|(other, _)| *other == frame) || pages.size_in_pages() > 64);
            self.expected.insert(page.number(), (frame, protection));
        }
        let at = pages.start_address().value() as *mut u64;
        let _ = unsafe { at.read_volatile() };
    }

    fn forget(&mut self, pages: &PageRange) {
        pages.iter().for_each(|page| assert!(self.expected.remove(&page.number()).is_some()));
    }

    fn take(&mut self, which: usize) -> Option<MappedPages<Private>> {
        (!self.private.is_empty()).then(|| self.private.swap_remove(which % self.private.len()))
    }

    fn run(&mut self, step: Step) {
        let space = self.system.space;
        match step {
            Step::Allocate(count, flags) => {
                if let Ok(mapped) = space.allocate(count, protection(flags)) {
                    self.learn(&mapped, protection(flags));
                    self.private.push(mapped);
                }
            }
            Step::Place(page, frame, count) => {
                let at = self.system.machine.window.start_address().checked_add(page as u64 * PAGE);
                let pages = space.pages().allocate(PageRequest { at, ..PageRequest::new(count) });
                let at = PhysAddr::new(frame * PAGE);
                let frames = space.frames().allocate(FrameRequest { at, ..FrameRequest::new(count) });
                let (Ok(pages), Ok(frames)) = (pages, frames) else { return };
                let mapped = match space.map_allocated_pages_to(pages, frames, Protection::ReadWrite) {
                    Ok(mapped) => mapped,
                    Err((error, pages, frames)) => {
                        assert_eq!(error, MapError::NoTables);
                        assert_eq!((pages.size_in_pages(), frames.size_in_frames()), (count, count));
                        return;
                    }
                };
                assert_eq!(self.translate(mapped.start_address().value()).unwrap().0, frame);
                assert_eq!(
                    self.translate(mapped.end().unwrap().start_address().value()).unwrap().0,
                    frame + count as u64 - 1
                );
                self.learn(&mapped, Protection::ReadWrite);
                self.private.push(mapped);
            }
            Step::Dma(count, align) => {
                if let Ok(mapped) = space.allocate_dma(FrameRequest { align, ..FrameRequest::new(count) }) {
                    let first = self.translate(mapped.start_address().value()).unwrap().0;
                    assert_eq!(mapped.physical_address().value(), first * PAGE);
                    assert!(first.is_multiple_of(align as u64));
                    self.learn(&mapped, Protection::ReadWrite);
                    for (index, page) in mapped.iter().enumerate() {
                        assert_eq!(self.expected[&page.number()].0, first + index as u64);
                    }
                    self.dma.push(mapped);
                }
            }
            Step::Drop(which) if which % 5 == 0 && !self.dma.is_empty() => {
                let mapped = self.dma.swap_remove(which % self.dma.len());
                self.forget(&mapped);
            }
            Step::Drop(which) => {
                if let Some(mapped) = self.take(which) {
                    self.forget(&mapped);
                }
            }
            Step::Split(which, at) => {
                let Some(mapped) = self.take(which) else { return };
                let at = mapped.start_address().value() + (at % (mapped.size_in_pages() + 1)) as u64 * PAGE;
                match mapped.split(VirtAddr::new(at).unwrap()) {
                    Ok((head, tail)) => {
                        self.private.extend([head, tail].into_iter().filter(|part| !part.is_empty()));
                    }
                    Err(back) => self.private.push(back),
                }
            }
            Step::Merge(a, b) => {
                if self.private.len() < 2 {
                    return;
                }
                let (Some(mut first), Some(second)) = (self.take(a), self.take(b)) else { return };
                let adjacent =
                    first.start_address().value() + first.size_in_bytes() == second.start_address().value();
                let same = first.flags() == second.flags();
                let result = first.merge(second);
                assert_eq!(result.is_ok(), adjacent && same);
                self.private.push(first);
                self.private.extend(result.err());
            }
            Step::Remap(which, flags) => {
                let Some(mut mapped) = self.take(which) else { return };
                mapped.remap(protection(flags));
                for page in mapped.iter() {
                    self.expected.get_mut(&page.number()).unwrap().1 = protection(flags);
                }
                self.private.push(mapped);
            }
            Step::Parts(which) => {
                let Some(mapped) = self.take(which) else { return };
                let mut frames: Vec<u64> =
                    mapped.iter().map(|page| self.expected[&page.number()].0).collect();
                self.forget(&mapped);
                let (pages, runs) = mapped.unmap_into_parts().unwrap();
                let mut got: Vec<u64> = runs.iter().flat_map(|run| run.iter().map(Frame::number)).collect();
                frames.sort();
                got.sort();
                assert_eq!(frames, got);
                assert_eq!(pages.size_in_pages(), got.len());
            }
            Step::Copy(which) => {
                let Some(mut mapped) = self.take(which) else { return };
                self.stamp += 1;
                if let Ok(bytes) = mapped.as_slice_mut::<u64>(0, 1) {
                    bytes[0] = self.stamp;
                }
                if let Ok(copy) = mapped.deep_copy(None) {
                    let size = copy.size_in_bytes() as usize;
                    assert_eq!(
                        copy.as_slice::<u8>(0, size).unwrap(),
                        mapped.as_slice::<u8>(0, size).unwrap()
                    );
                    self.learn(&copy, copy.flags());
                    self.private.push(copy);
                }
                self.private.push(mapped);
            }
        }
    }

    fn check(&self) {
        self.system.check();
        for page in self.system.machine.window.iter() {
            let found = self.translate(page.start_address().value());
            let found = found.map(|(frame, flags)| {
                let protection = match (
                    flags.contains(PageTableFlags::WRITABLE),
                    flags.contains(PageTableFlags::NO_EXECUTE),
                ) {
                    (false, true) => Protection::ReadOnly,
                    (true, true) => Protection::ReadWrite,
                    (false, false) => Protection::ReadExecute,
                    (true, false) => panic!("writable and executable"),
                };
                (frame, protection)
            });
            assert_eq!(found, self.expected.get(&page.number()).copied(), "{page:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tables_say_what_was_asked_for(
        steps in prop::collection::vec(step(), 1..60),
        pool_frames in prop_oneof![Just(128usize), 8..24usize],
    ) {
        let config = Config { ram_frames: 6000, window_pages: PAGES, pool_frames, ..Config::default() };
        let system = System::new(config);
        let before = system.state();
        let (private, dma, expected) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut world = World { system, private, dma, expected, stamp: 0 };
        for (index, step) in steps.into_iter().enumerate() {
            world.run(step);
            if index % 8 == 7 {
                world.check();
            }
        }
        world.check();
        world.private.clear();
        world.dma.clear();
        world.expected.clear();
        world.check();
        // Everything is back, but for what the DMA arena keeps.
        let (mut frames, pages, tables) = world.system.state();
        frames[0] += std::mem::take(&mut frames[Owner::DmaIdle as usize]);
        prop_assert_eq!((frames, pages, tables), before);
    }
}
