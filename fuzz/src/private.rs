//! Memory of the CPU alone: every word of it says where it is, and nobody but its owner may change that.

use std::sync::Arc;

use ringfence_memory::theseus::{BorrowedMappedPages, BorrowedSliceMappedPages, Immutable, Mutable};
use ringfence_memory::*;

use crate::input::Input;
use crate::side::Side;
use crate::world::Slots;

/// Pages of one mapping, at most.
const PAGES: usize = 5;
const MAGIC: u64 = 0x5eed_0000_0000_0000;

type Mapping = MappedPages<ringfence_memory::Private>;

/// One program's part of one address space.
pub struct Private {
    side: &'static Side,
    space: &'static AddressSpace,
    mappings: Slots<Mapping>,
    views: Slots<BorrowedSliceMappedPages<u64, Mutable>>,
    shares: Slots<BorrowedMappedPages<u64, Immutable, Arc<Mapping>>>,
    stacks: Slots<Stack>,
    pages: Slots<AllocatedPages>,
    frames: Slots<AllocatedFrames>,
    dma: Slots<MappedPages<Dma>>,
    registers: Option<MappedPages<Mmio>>,
    /// Under way while all else goes on.
    audit: Option<Audit<'static>>,
}

fn protection(input: &mut Input<'_>) -> Protection {
    [Protection::ReadWrite, Protection::ReadOnly, Protection::ReadExecute][input.below(3)]
}

fn expected(mapping: &PageRange, index: usize) -> u64 {
    MAGIC ^ (mapping.start_address().value() + 8 * index as u64)
}

/// Writes to each word where it is, and gives the mapping its protection.
fn fill(mapping: &mut Mapping, protection: Protection) {
    mapping.remap(Protection::ReadWrite);
    let (range, count) = (**mapping, mapping.size_in_bytes() as usize / 8);
    if let Ok(words) = mapping.as_slice_mut::<u64>(0, count) {
        words.iter_mut().enumerate().for_each(|(index, word)| *word = expected(&range, index));
    }
    mapping.remap(protection);
}

#[track_caller]
fn assert_filled(range: &PageRange, words: &[u64]) {
    let wrong = words.iter().enumerate().find(|(index, word)| **word != expected(range, *index));
    assert!(wrong.is_none(), "somebody wrote to {range:?}: {wrong:x?}");
}

impl Private {
    /// Nothing yet.
    pub fn new(side: &'static Side) -> Self {
        Self {
            side,
            space: side.system.space,
            mappings: Slots::new(),
            views: Slots::new(),
            shares: Slots::new(),
            stacks: Slots::new(),
            pages: Slots::new(),
            frames: Slots::new(),
            dma: Slots::new(),
            registers: None,
            audit: None,
        }
    }

    fn keep(&mut self, mut mapping: Mapping, protection: Protection) {
        if !mapping.is_empty() {
            fill(&mut mapping, protection);
            self.mappings.put(mapping);
        }
    }

    /// Every word is as its owner wrote it.
    pub fn check(&self) {
        for mapping in &self.mappings.0 {
            let words = mapping.as_slice(0, mapping.size_in_bytes() as usize / 8).expect("readable");
            assert_filled(mapping, words);
        }
        for view in &self.views.0 {
            let at = view.as_ptr() as u64;
            assert!(view.iter().enumerate().all(|(index, word)| *word == MAGIC ^ (at + 8 * index as u64)));
        }
        for share in &self.shares.0 {
            let mapping = share.inner_ref();
            assert_filled(
                mapping,
                mapping.as_slice(0, mapping.size_in_bytes() as usize / 8).expect("readable"),
            );
        }
        for token in &self.frames.0 {
            assert!(self.space.frames().is_ram(**token) || token.is_empty());
        }
    }

    /// One step.
    pub fn step(&mut self, input: &mut Input<'_>, other: &mut Self) {
        match input.below(19) {
            0 => {
                let (count, protection) = (input.below(PAGES + 1), protection(input));
                if let Ok(mapping) = self.space.allocate(count, Protection::ReadWrite) {
                    self.keep(mapping, protection);
                }
            }
            1 => drop(self.mappings.take(input)),
            2 => self.split(input),
            3 => self.merge(input),
            4 => {
                let protection = protection(input);
                if let Some(mapping) = self.mappings.pick_mut(input) {
                    mapping.remap(protection);
                }
            }
            5 => {
                let wanted = input.flag().then(|| protection(input));
                let copy =
                    self.mappings.pick(input).map(|mapping| (mapping.deep_copy(wanted), mapping.flags()));
                if let Some((Ok(copy), flags)) = copy {
                    assert_eq!(copy.flags(), wanted.unwrap_or(flags));
                    self.keep(copy, wanted.unwrap_or(flags));
                }
            }
            6 => {
                let Some(mapping) = self.mappings.take(input) else { return };
                match mapping.unmap_into_parts() {
                    Ok((pages, frames)) => {
                        self.pages.put(pages);
                        frames.into_iter().for_each(|token| self.frames.put(token));
                    }
                    Err(mapping) => self.mappings.put(mapping),
                }
            }
            7 => self.map(input, other),
            8 => {
                let Some(mapping) = self.mappings.take(input) else { return };
                let (flags, count) = (mapping.flags(), mapping.size_in_bytes() as usize / 8);
                match mapping.into_borrowed_slice_mut::<u64>(8 * input.below(5), input.below(count)) {
                    Ok(view) => self.views.put(view),
                    Err((mapping, _)) => self.keep(mapping, flags),
                }
            }
            9 => {
                let Some(mut view) = self.views.take(input) else { return };
                view.iter_mut().for_each(|word| *word = !*word);
                view.iter_mut().for_each(|word| *word = !*word);
                self.mappings.put(view.into_inner());
            }
            10 => {
                let Some(mapping) = self.mappings.take(input) else { return };
                let owner = Arc::new(mapping);
                for _ in 0..2 {
                    let at = usize::from(input.word());
                    let share = BorrowedMappedPages::<u64, Immutable, _>::from(owner.clone(), at);
                    share.into_iter().for_each(|share| self.shares.put(share));
                }
                if let Ok(mapping) = Arc::try_unwrap(owner) {
                    self.mappings.put(mapping);
                }
            }
            11 => drop(self.shares.take(input)),
            12 => {
                if let Ok(stack) = self.space.allocate_stack(input.below(4)) {
                    for beyond in [stack.top().value(), stack.range().start_address().value() - 1] {
                        let at = VirtAddr::new(beyond).expect("in the window");
                        assert_eq!(self.space.translate(at), None, "a guard page is mapped");
                    }
                    self.stacks.put(stack);
                }
            }
            13 => {
                drop(self.stacks.take(input));
                self.audit_on();
            }
            14 => self.allocate(input),
            15 => {
                // Memory for devices, of which none is told.
                if let Some(mut memory) = self.side.dma_by_hand(input.below(PAGES)) {
                    memory.zero();
                    let at = self.space.translate(memory.start_address());
                    assert_eq!(at, Some(memory.physical_address()));
                    self.dma.put(memory);
                }
            }
            16 => {
                let (free, claimed) =
                    (self.registers.is_none(), self.space.claim_mmio(Side::registers(), None));
                assert_eq!(claimed.is_ok(), free, "registers of two owners");
                self.registers = claimed.ok();
                drop(self.dma.take(input));
            }
            17 => self.look(input),
            _ => self.tokens(input, other),
        }
    }

    /// A little of an audit, or its beginning.
    fn audit_on(&mut self) {
        let mut audit = self.audit.take().unwrap_or_else(|| self.space.start_audit());
        match audit.step_of(500) {
            Some(report) => {
                assert!(report.ok(), "{report:?} after {} words", audit.work());
                crate::reached("audited in steps");
            }
            None => self.audit = Some(audit),
        }
    }

    fn split(&mut self, input: &mut Input<'_>) {
        let Some(mapping) = self.mappings.take(input) else { return };
        let range = *mapping;
        let at = range.start_address().value() + 4096 * input.below(PAGES + 1) as u64;
        let odd = if input.byte() == 1 { 8 } else { 0 };
        match VirtAddr::new(at + odd).map(|at| mapping.split(at)) {
            Some(Ok((head, tail))) => {
                assert_eq!(head.size_in_pages() + tail.size_in_pages(), range.size_in_pages());
                [head, tail]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .for_each(|part| self.mappings.put(part));
            }
            Some(Err(mapping)) => self.mappings.put(mapping),
            None => {}
        }
    }

    fn merge(&mut self, input: &mut Input<'_>) {
        let Some(mut first) = self.mappings.take(input) else { return };
        if let Some(second) = self.mappings.take(input)
            && let Err(second) = first.merge(second)
        {
            self.mappings.put(second);
        }
        self.mappings.put(first);
    }

    /// Maps pages that are at hand, to frames that are, perhaps of the other side.
    fn map(&mut self, input: &mut Input<'_>, other: &mut Self) {
        let protection = protection(input);
        let foreign = input.byte() & 7 == 7;
        let Some(pages) = (if foreign { &mut other.pages } else { &mut self.pages }).take(input) else {
            return;
        };
        let frames = match input.below(4) {
            0 => None,
            1 => other.frames.take(input),
            _ => self.frames.take(input),
        };
        let writable = Protection::ReadWrite;
        let (mapped, pages) = match frames {
            None => match self.space.map_allocated_pages(pages, writable) {
                Ok(mapped) => (Some(mapped), None),
                Err((_, pages)) => (None, Some(pages)),
            },
            Some(frames) => match self.space.map_allocated_pages_to(pages, frames, writable) {
                Ok(mapped) => (Some(mapped), None),
                Err((_, pages, frames)) => {
                    self.frames.put(frames);
                    (None, Some(pages))
                }
            },
        };
        pages.into_iter().for_each(|pages| self.pages.put(pages));
        if let Some(mapped) = mapped {
            self.keep(mapped, protection);
        }
    }

    /// Takes frames and pages that nobody has, and not those that somebody has.
    fn allocate(&mut self, input: &mut Input<'_>) {
        let count = input.below(PAGES + 1);
        let taken =
            self.mappings.pick(input).and_then(|mapping| self.space.translate(mapping.start_address()));
        if let Some(at) = taken {
            let request = FrameRequest { at: Some(at), ..FrameRequest::new(1) };
            assert!(self.space.frames().allocate(request).is_err(), "{at:?} has an owner");
        }
        let align = 1 << input.below(4);
        if let Ok(token) = self.space.frames().allocate(FrameRequest { align, ..FrameRequest::new(count) }) {
            let run = token.start().and_then(|first| self.space.frames().next_run(first.number()));
            assert!(run.is_some_and(|(_, owner)| owner.is_none()), "{run:?} is ours");
            self.frames.put(token);
        }
        if let Ok(pages) = self.space.pages().allocate(PageRequest { align, ..PageRequest::new(count) }) {
            self.pages.put(pages);
        }
    }

    /// Sees values in a mapping, through each kind of view, and gets it back.
    fn look(&mut self, input: &mut Input<'_>) {
        let Some(mut mapping) = self.mappings.take(input) else { return };
        let offset = usize::from(input.word());
        if let Ok(value) = mapping.as_type_mut::<u32>(offset) {
            *value = !*value;
        }
        if let Ok(value) = mapping.as_type_mut::<u32>(offset) {
            *value = !*value;
        }
        assert_eq!(mapping.as_type::<u64>(offset).is_ok(), mapping.as_slice::<u64>(offset, 1).is_ok());
        let mapping = match input.below(3) {
            0 => mapping.into_borrowed::<u64>(offset).map_or_else(|(it, _)| it, |view| view.into_inner()),
            1 => mapping.into_borrowed_mut::<u64>(offset).map_or_else(|(it, _)| it, |view| view.into_inner()),
            _ => mapping
                .into_borrowed_slice::<u8>(offset, 9)
                .map_or_else(|(it, _)| it, |view| view.into_inner()),
        };
        self.mappings.put(mapping);
    }

    /// Splits and joins tokens, of either side.
    fn tokens(&mut self, input: &mut Input<'_>, other: &mut Self) {
        let from_other = input.flag();
        if let Some(token) = self.frames.take(input) {
            let (mut head, tail) = match token.split_at(input.below(4)) {
                Ok((head, tail)) => (head, Some(tail)),
                Err(token) => (token, None),
            };
            let next = if from_other { other.frames.take(input) } else { tail };
            let rest = next.and_then(|next| head.merge(next).err());
            rest.into_iter().chain([head]).for_each(|token| self.frames.put(token));
        }
        if let Some(pages) = self.pages.take(input) {
            let at = pages.start_address().value() + 4096 * input.below(4) as u64;
            let parts = VirtAddr::new(at).map(|at| pages.split(at));
            let (mut head, tail) = match parts {
                Some(Ok((head, tail))) => (head, Some(tail)),
                Some(Err(pages)) => (pages, None),
                None => return,
            };
            let next = if from_other { other.pages.take(input) } else { tail };
            let rest = next.and_then(|next| head.merge(next).err());
            rest.into_iter().chain([head]).for_each(|pages| self.pages.put(pages));
        }
        if input.flag() {
            drop((self.pages.take(input), self.frames.take(input)));
        }
    }
}
