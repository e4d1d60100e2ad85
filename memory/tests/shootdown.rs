//! Several processors: each has a TLB and paging-structure caches of its own, walks whenever it likes, and
//! acknowledges late. Whatever one of them can still reach serves nobody else.
#![allow(clippy::undocumented_unsafe_blocks)]

use proptest::prelude::*;
use ringfence_memory::*;
use ringfence_testkit::machine::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

const CPUS: usize = 3;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What one processor remembers.
#[derive(Default)]
struct Caches {
    /// By page number: frame number, and the level of the leaf.
    tlb: BTreeMap<u64, (u64, u32)>,
    /// By level of the table and what of the page number leads to it: address.
    tables: BTreeMap<(u32, u64), u64>,
}

type Hook = Arc<dyn Fn(&Smp) + Send + Sync>;

/// Processors that all use the tables of one machine.
struct Smp {
    machine: &'static Machine,
    cpus: [Mutex<Caches>; CPUS],
    shootdowns: AtomicUsize,
    /// What happens before each acknowledgement.
    before: Mutex<Option<Hook>>,
    /// While how many of them something still may happen.
    nested: AtomicUsize,
}

impl Smp {
    /// A processor looks up a page, perhaps only to be prepared (Intel SDM volume 3, 4.10.2.3 and 4.10.3).
    fn walk(&self, cpu: usize, page: u64) -> Option<u64> {
        let caches = &mut *self.cpus[cpu].lock().unwrap();
        if let Some((frame, _)) = caches.tlb.get(&page) {
            return Some(*frame);
        }
        let cached =
            (0..3).find_map(|level| Some((level, *caches.tables.get(&(level, page >> (9 * (level + 1))))?)));
        let (mut level, mut table) = cached.unwrap_or((3, self.machine.root().value()));
        loop {
            let at = table + (page >> (9 * level) & 511) * 8;
            let entry = unsafe { &*self.machine.ram.add(at as usize).cast::<AtomicU64>() };
            let word = entry.load(SeqCst);
            if word & 1 == 0 {
                return None;
            }
            entry.fetch_or(0x20, SeqCst); // accessed
            if level == 0 || word & 0x80 != 0 {
                let frame = ((word & ADDRESS) >> 12) + (page & ((1 << (9 * level)) - 1));
                caches.tlb.insert(page, (frame, level));
                return Some(frame);
            }
            (table, level) = (word & ADDRESS, level - 1);
            caches.tables.insert((level, page >> (9 * (level + 1))), table);
        }
    }

    fn walk_all(&self, pages: impl IntoIterator<Item = u64>) {
        pages.into_iter().for_each(|page| (0..CPUS).for_each(|cpu| _ = self.walk(cpu, page)));
    }

    /// Whether every processor that uses a mapping finds it.
    fn found_by_all(&self, mapping: &MappedPages<Private>) -> bool {
        let pages =
            mapping.iter().map(|page| (page.number(), self.machine.walk(page.start_address().value())));
        let found = |(page, hit): (u64, Option<Hit>)| {
            (0..CPUS).all(|cpu| self.walk(cpu, page) == hit.map(|hit| hit.frame))
        };
        pages.map(found).fold(true, |all, one| all & one)
    }
}

unsafe impl Cpu for Smp {
    fn shoot_down(&self, stale: &Stale) {
        assert!(!host::locks_held(), "a processor that spins for this lock would never acknowledge");
        self.shootdowns.fetch_add(1, SeqCst);
        for cpu in &self.cpus {
            let before = self.before.lock().unwrap().clone();
            if let Some(before) = before.filter(|_| self.nested.load(SeqCst) > 0) {
                self.nested.fetch_sub(1, SeqCst);
                before(self);
                self.nested.fetch_add(1, SeqCst);
            }
            let caches = &mut *cpu.lock().unwrap();
            let pages = stale.pages().map(|pages| pages.map(|page| page.number()).collect::<Vec<_>>());
            caches.tlb.retain(|page, (_, level)| {
                let same = |stale: &u64| (stale ^ page) >> (9 * *level) == 0;
                pages.as_ref().is_some_and(|pages| !pages.iter().any(same))
            });
            caches.tables.clear();
        }
        self.machine.shoot_down(stale);
    }

    unsafe fn load_root(&self, root: PhysAddr) {
        unsafe { self.machine.load_root(root) }
    }

    fn root(&self) -> PhysAddr {
        self.machine.root()
    }
}

fn boot(config: Config) -> (System, &'static Smp) {
    let mut all = None;
    let system = System::with_cpu(config, |machine| {
        let cpus = Default::default();
        let (shootdowns, before, nested) = (AtomicUsize::new(0), Mutex::new(None), AtomicUsize::new(1));
        let smp: &'static Smp = Box::leak(Box::new(Smp { machine, cpus, shootdowns, before, nested }));
        all = Some(smp);
        smp
    });
    (system, all.unwrap())
}

/// The tables as they are: address by level and key, and the frame of each page that is mapped. (The window
/// lies in the lower half, so a page number is what leads to it.)
type Live = (BTreeMap<(u32, u64), u64>, BTreeMap<u64, u64>);

fn live(machine: &Machine) -> Live {
    fn visit(machine: &Machine, table: u64, level: u32, key: u64, live: &mut Live) {
        live.0.insert((level, key), table);
        for slot in 0..512 {
            let (word, page) = (machine.word(table + slot * 8), key << 9 | slot);
            if word & 1 == 0 {
            } else if level == 0 || word & 0x80 != 0 {
                let pages = 1 << (9 * level);
                live.1
                    .extend((0..pages).map(|at| ((page << (9 * level)) + at, ((word & ADDRESS) >> 12) + at)));
            } else {
                visit(machine, word & ADDRESS, level - 1, page, live);
            }
        }
    }
    let mut all = Live::default();
    visit(machine, machine.root().value(), 3, 0, &mut all);
    all
}

/// Whatever a processor remembers is so, or else nobody else has it: neither page nor frame nor table. How
/// much there is that is no longer so.
fn reserved_or_true(space: &'static AddressSpace, smp: &Smp) -> usize {
    let (tables, pages) = live(smp.machine);
    let (used_tables, used_frames): (BTreeSet<_>, BTreeSet<_>) =
        (tables.values().collect(), pages.values().collect());
    let mut stale = 0;
    for cpu in &smp.cpus {
        let caches = cpu.lock().unwrap();
        for (page, (frame, _)) in &caches.tlb {
            if pages.get(page) == Some(frame) {
                continue;
            }
            stale += 1;
            assert!(!used_frames.contains(frame), "frame {frame:#x} is mapped again");
            assert_eq!(pages.get(page), None, "page {page:#x} is mapped again");
            let at = PhysAddr::new(frame * PAGE);
            let frames = space.frames().allocate(FrameRequest { at, ..FrameRequest::new(1) });
            assert!(frames.is_err(), "frame {frame:#x} is free");
            let at = VirtAddr::new(page * PAGE);
            assert!(
                space.pages().allocate(PageRequest { at, ..PageRequest::new(1) }).is_err(),
                "{page:#x} is free"
            );
        }
        for ((level, key), table) in &caches.tables {
            if tables.get(&(*level, *key)) == Some(table) {
                continue;
            }
            stale += 1;
            assert!(!used_tables.contains(table), "table {table:#x} is in use again");
            for at in (*table..table + PAGE).step_by(8) {
                assert_eq!(smp.machine.word(at), 0, "what looks like an entry in a table that was unlinked");
            }
        }
    }
    stale
}

/// One page in each of 399 tables, not in the first slot.
fn one_page_per_table(system: &System) -> Vec<MappedPages<Private>> {
    let base = system.machine.window.start_address().value();
    let map = |table: u64| {
        let at = VirtAddr::new(base + (table << 21) + 5 * PAGE);
        let pages = system.space.pages().allocate(PageRequest { at, ..PageRequest::new(1) }).unwrap();
        system.space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
    };
    (1..400).map(map).collect()
}

/// A table that was unlinked, but through which a processor still walks, holds nothing that could be an
/// entry: the processor finds nothing there, and notes nothing there.
#[test]
fn unlinked_tables_never_look_present() {
    let (system, smp) =
        boot(Config { ram_frames: 1 << 13, window_pages: 1 << 18, pool_frames: 700, ..Config::default() });
    let space = system.space;
    let before = system.state();
    let mappings = one_page_per_table(&system);
    let (walks, stale) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for mapping in mappings {
        let page = mapping.start().unwrap().number();
        let area = page - 5..page - 5 + 512;
        smp.walk_all([page]);
        let (walks, stale) = (walks.clone(), stale.clone());
        *smp.before.lock().unwrap() = Some(Arc::new(move |smp: &Smp| {
            walks.fetch_add(1, SeqCst);
            // Only the page that is stale in the TLB is found.
            smp.walk_all(area.clone());
            stale.fetch_add(reserved_or_true(space, smp), SeqCst);
            for cpu in 0..CPUS {
                assert!(area.clone().filter(|page| smp.walk(cpu, *page).is_some()).count() <= 1);
            }
        }));
        drop(mapping);
    }
    *smp.before.lock().unwrap() = None;
    // For each mapping 3, 2 and 1 processors still knew the page and the table (and the last one two more
    // tables).
    assert_eq!(walks.load(SeqCst), 399 * 3);
    assert!(stale.load(SeqCst) >= 399 * 2 * (3 + 2 + 1), "{stale:?}");
    assert_eq!(system.state(), before);
    // The tables serve again, and lead nowhere but where they should.
    let again = one_page_per_table(&system);
    let owned: BTreeSet<u64> = again.iter().map(|mapping| mapping.start().unwrap().number()).collect();
    let window = system.machine.window;
    let mapped =
        live(smp.machine).1.into_keys().filter(|page| window.iter().any(|own| own.number() == *page));
    assert_eq!(mapped.collect::<BTreeSet<_>>(), owned);
    system.check();
}

/// In the place of a table that was unlinked, but through which a processor still walks, there may be another
/// one already: what is mapped there is found by every processor.
#[test]
fn memory_in_the_place_of_an_unlinked_table_is_found() {
    let (system, smp) = boot(Config { window_pages: 1 << 19, ram_frames: 1 << 14, ..Config::default() });
    let (space, base) = (system.space, system.machine.window.start_address().value());
    let map = move |page: u64, count: usize| {
        let at = VirtAddr::new(base + page * PAGE);
        let pages = space.pages().allocate(PageRequest { at, ..PageRequest::new(count) }).unwrap();
        space.map_allocated_pages(pages, Protection::ReadWrite).unwrap()
    };
    let registers = frames(1 << 14, 1);
    unsafe { space.offer_mmio(registers) }.unwrap();
    let before = system.state();
    // In the same lowest table; a page, and a leaf of 2 MiB, in the same next table; in the one after that.
    for (first, count) in [((3 << 9) + 7, 1), (4 << 9, 1), (4 << 9, 512), (1 << 18, 1)] {
        let lone = map((3 << 9) + 5, 1);
        assert!(smp.found_by_all(&lone));
        let all = Arc::new(Mutex::new(Vec::new()));
        let (keep, pages) = (all.clone(), AtomicU64::new(first));
        *smp.before.lock().unwrap() = Some(Arc::new(move |smp: &Smp| {
            let mapping = map(pages.fetch_add(count as u64, SeqCst), count);
            let found = smp.found_by_all(&mapping);
            drop(space.claim_mmio(registers, None));
            keep.lock().unwrap().push((found, mapping));
        }));
        // While somebody waits who has linked a table, somebody else finds it in place.
        smp.nested.store(2, SeqCst);
        drop(lone);
        *smp.before.lock().unwrap() = None;
        let all = std::mem::take(&mut *all.lock().unwrap());
        assert!(all.len() >= CPUS && all.iter().all(|(found, _)| *found), "{first:#x}, {count}");
    }
    assert_eq!(system.state(), before);
    system.check();
}

/// A mapping that is refused has touched no table at all, not even one that it gave back.
#[test]
fn a_refused_mapping_links_nothing() {
    let (system, smp) = boot(Config { pool_frames: 12, ..Config::default() });
    let pool = || -> Vec<u64> {
        let start = system.pool.start_address().value();
        (start..start + system.pool.size_in_bytes()).step_by(8).map(|at| system.machine.word(at)).collect()
    };
    // Leaves of 4 KiB only, in more tables than there are.
    let pages = system.space.pages().allocate(PageRequest { align: 512, ..PageRequest::new(3000) }).unwrap();
    let at = PhysAddr::new(301 * PAGE);
    let frames = system.space.frames().allocate(FrameRequest { at, ..FrameRequest::new(3000) }).unwrap();
    let before = pool();
    let (error, pages, frames) =
        system.space.map_allocated_pages_to(pages, frames, Protection::ReadWrite).unwrap_err();
    assert_eq!(error, MapError::NoTables);
    assert!(pool() == before && smp.shootdowns.load(SeqCst) == 0);
    // As many as fit: the root, three tables and one more for each 512 pages.
    let mut count = 0;
    let mut rest = (pages, frames);
    let mut kept = Vec::new();
    while let Ok((head, tail)) = rest.1.split_at(512) {
        let next = rest.0.address_at_offset(512 * PAGE).unwrap();
        let (first, last) = rest.0.split(next).unwrap();
        rest = (last, tail);
        match system.space.map_allocated_pages_to(first, head, Protection::ReadWrite) {
            Ok(mapped) => kept.push(mapped),
            Err((error, ..)) => {
                assert_eq!(error, MapError::NoTables);
                break;
            }
        }
        count += 1;
    }
    // Of 12 frames one holds notes; root and four tables map the kernel; two are above the lowest ones here.
    assert_eq!((count, system.space.audit().tables), (4, 11));
}

/// Neither protecting nor splitting nor unmapping tells the processors more often than it must, and always
/// without a lock (which the machine checks).
#[test]
fn flushes_have_a_threshold() {
    let system = System::small();
    let flushes = || system.machine.flushes.swap(0, SeqCst);
    for (count, wanted) in [(1, 1), (31, 31), (32, 32), (33, 1), (511, 1), (512, 1)] {
        let mut mapping = system.space.allocate(count, Protection::ReadWrite).unwrap();
        assert_eq!(flushes(), 0, "nothing was cached");
        system.machine.touch(&mapping);
        mapping.remap(Protection::ReadOnly);
        assert_eq!(flushes(), wanted, "{count} pages");
        mapping.remap(Protection::ReadOnly);
        assert_eq!(flushes(), 0, "nothing has changed");
        system.machine.assert_coherent();
        system.machine.touch(&mapping);
        drop(mapping);
        assert_eq!(flushes(), wanted, "{count} pages");
        system.machine.assert_coherent();
    }
    let mapping = system.space.allocate(512, Protection::ReadWrite).unwrap();
    let middle = mapping.address_at_offset(5 * PAGE).unwrap();
    let (mut head, tail) = mapping.split(middle).unwrap();
    assert_eq!(flushes(), 1, "one leaf was broken");
    head.merge(tail).unwrap();
    let (_head, _tail) = head.split(middle).unwrap();
    assert_eq!(flushes(), 0, "it was broken already");
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, usize),
    Dma(usize),
    Drop(usize),
    DropDma(usize),
    Parts(usize),
    Split(usize, usize),
    Remap(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    prop_oneof![
        4 => (prop_oneof![1..4usize, 1..70usize, 500..1100usize], index())
            .prop_map(|(count, at)| Step::Allocate(count, at)),
        1 => (1..9usize).prop_map(Step::Dma),
        4 => index().prop_map(Step::Drop),
        1 => index().prop_map(Step::DropDma),
        1 => index().prop_map(Step::Parts),
        2 => (index(), index()).prop_map(|(which, at)| Step::Split(which, at)),
        1 => (index(), any::<bool>()).prop_map(|(which, write)| Step::Remap(which, write)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// While a processor has not acknowledged, memory is taken and mapped by the others: never what it still
    /// knows.
    #[test]
    fn nothing_is_reused_before_all_have_acknowledged(steps in prop::collection::vec(step(), 1..30)) {
        let config = Config { window_pages: 1 << 13, ram_frames: 6000, pool_frames: 40, ..Config::default() };
        let (system, smp) = boot(config);
        let (space, window) = (system.space, system.machine.window);
        let map = move |pages: AllocatedPages| space.map_allocated_pages(pages, Protection::ReadWrite).ok();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let keep = taken.clone();
        let of_interest = window.iter().step_by(61).map(|page| page.number()).collect::<Vec<_>>();
        *smp.before.lock().unwrap() = Some(Arc::new(move |smp: &Smp| {
            smp.walk_all(of_interest.iter().copied());
            reserved_or_true(space, smp);
            let mut taken = keep.lock().unwrap();
            if taken.len() < 60 {
                // In a table of its own, if there is one; and what comes first.
                let at = window.iter().step_by(512).nth(taken.len() % 16).map(|page| page.start_address());
                let pages = space.pages().allocate(PageRequest { at, ..PageRequest::new(1) });
                taken.extend(pages.ok().and_then(map));
                taken.extend(space.allocate(3, Protection::ReadWrite));
            }
            reserved_or_true(space, smp);
        }));
        let (mut private, mut dma) = (Vec::new(), Vec::new());
        for step in steps {
            let mapped = private.iter().map(|mapping: &MappedPages<Private>| **mapping);
            let mapped = mapped.chain(dma.iter().map(|mapping: &MappedPages<Dma>| **mapping));
            let some = mapped.flat_map(|pages| pages.iter().step_by(7).chain(pages.end()));
            smp.walk_all(some.map(|page| page.number()));
            let pick = |which: usize, len: usize| (len > 0).then(|| which % len.max(1));
            match step {
                Step::Allocate(count, at) => {
                    let at = window.address_at_offset((at % window.size_in_pages()) as u64 * PAGE);
                    let pages = space.pages().allocate(PageRequest { at, ..PageRequest::new(count) });
                    private.extend(pages.ok().and_then(map));
                    private.extend(space.allocate(count, Protection::ReadWrite));
                }
                Step::Dma(count) => dma.extend(space.allocate_dma(FrameRequest::new(count))),
                Step::Drop(which) => _ = pick(which, private.len()).map(|at| private.swap_remove(at)),
                Step::DropDma(which) => _ = pick(which, dma.len()).map(|at| dma.swap_remove(at)),
                Step::Parts(which) => {
                    let mapping = pick(which, private.len()).map(|at| private.swap_remove(at));
                    drop(mapping.map(|mapping| mapping.unmap_into_parts().unwrap()));
                }
                Step::Split(which, at) => {
                    let Some(index) = pick(which, private.len()) else { continue };
                    let mapping = private.swap_remove(index);
                    let at = mapping.address_at_offset((at % mapping.size_in_pages()) as u64 * PAGE).unwrap();
                    match mapping.split(at) {
                        Ok(parts) => {
                            private.extend(<[_; 2]>::from(parts).into_iter().filter(|part| !part.is_empty()));
                        }
                        Err(mapping) => private.push(mapping),
                    }
                }
                Step::Remap(which, write) => {
                    let Some(index) = pick(which, private.len()) else { continue };
                    private[index].remap(if write { Protection::ReadWrite } else { Protection::ReadExecute });
                }
            }
            // Now that all have acknowledged, all that they know is true.
            prop_assert_eq!(reserved_or_true(space, smp), 0);
            prop_assert!(space.audit().ok());
        }
        *smp.before.lock().unwrap() = None;
        drop((private, dma));
        taken.lock().unwrap().clear();
        prop_assert_eq!(reserved_or_true(space, smp), 0);
        system.check();
        prop_assert_eq!(space.frames().count(Owner::Private) + space.frames().count(Owner::Unmapped), 0);
    }
}

/// While one processor waits for the others, the next one maps a page beside and unmaps it again, and so on:
/// all wait.
struct Chain {
    machine: &'static Machine,
    space: OnceLock<&'static AddressSpace>,
    left: AtomicUsize,
    /// Whether the next request is for what was unmapped.
    unmaps: AtomicBool,
    failed: AtomicBool,
}

impl Chain {
    fn map_and_unmap(&self) {
        match self.space.get().unwrap().allocate(1, Protection::ReadWrite) {
            Ok(mapped) => {
                self.unmaps.store(true, SeqCst);
                drop(mapped);
            }
            Err(error) => self.failed.store(error == MapError::NoTables, SeqCst),
        }
    }
}

unsafe impl Cpu for Chain {
    fn shoot_down(&self, stale: &Stale) {
        let more = self.unmaps.swap(false, SeqCst) && self.left.load(SeqCst) > 0;
        if more {
            self.left.fetch_sub(1, SeqCst);
            self.map_and_unmap();
        }
        self.machine.shoot_down(stale);
    }

    unsafe fn load_root(&self, root: PhysAddr) {
        unsafe { self.machine.load_root(root) }
    }

    fn root(&self) -> PhysAddr {
        self.machine.root()
    }
}

#[test]
fn a_pool_for_many_processors_never_runs_out() {
    const MANY: usize = 40;
    for (processors, runs_out) in [(MANY, false), (1, true)] {
        let pool_frames = TablePool::frames_for(1 << 14, processors);
        let mut chain = None;
        let system = System::with_cpu(Config { pool_frames, ..Config::default() }, |machine| {
            let (space, left) = (OnceLock::new(), AtomicUsize::new(MANY - 1));
            let (unmaps, failed) = (AtomicBool::new(false), AtomicBool::new(false));
            let it: &'static _ = Box::leak(Box::new(Chain { machine, space, left, unmaps, failed }));
            chain = Some(it);
            it
        });
        let chain = chain.unwrap();
        chain.space.set(system.space).ok().unwrap();
        let before = system.space.audit().tables;
        chain.map_and_unmap();
        assert_eq!(chain.failed.load(SeqCst), runs_out, "{} left", chain.left.load(SeqCst));
        assert_eq!(system.space.audit().tables, before);
        system.check();
    }
}
