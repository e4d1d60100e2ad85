//! A machine on the host: RAM is a file in memory, the MMU is a fault handler that walks our page tables and
//! maps what they say, and the TLB is what it has mapped so far. A mapping stays usable until it is flushed,
//! exactly like a stale TLB entry, and touching memory through it is real.
#![allow(clippy::undocumented_unsafe_blocks, reason = "a test dies of what is wrong here")]

use ringfence_memory::*;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{
    AtomicPtr, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Release, SeqCst},
};
use std::time::Duration;

pub const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;

/// One page of the window as the TLB has it: frame number << 8 | leaf level << 2 | writable << 1 | 1, or 0.
pub struct Machine {
    fd: i32,
    /// All of physical memory at once: the loader's window.
    pub ram: *mut u8,
    pub ram_frames: u64,
    pub mmio_frames: u64,
    pub window: PageRange,
    root: AtomicU64,
    tlb: Box<[AtomicU64]>,
    large_fragments: AtomicUsize,
    pub flushes: AtomicUsize,
    pub on_flush: std::sync::Mutex<Option<Box<dyn Fn() + Send>>>,
}

unsafe impl Sync for Machine {}
unsafe impl Send for Machine {}

static MACHINES: [AtomicPtr<Machine>; 256] = [const { AtomicPtr::new(ptr::null_mut()) }; 256];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static HANDLER: Once = Once::new();

/// What the hardware would find: frame number, leaf level, writable, executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    pub frame: u64,
    pub level: u32,
    pub write: bool,
    pub execute: bool,
}

impl Machine {
    /// `ram_frames` of RAM from address 0, then `mmio_frames` of "registers", and a window of virtual
    /// addresses.
    pub fn new(ram_frames: u64, mmio_frames: u64, window_pages: usize) -> &'static Self {
        let total = ((ram_frames + mmio_frames) * PAGE) as usize;
        let bytes = window_pages * PAGE as usize;
        let index = COUNT.fetch_add(1, SeqCst);
        assert!(index < MACHINES.len(), "too many machines in one process");
        unsafe {
            HANDLER.call_once(|| install());
            let fd = libc::memfd_create(c"ram".as_ptr(), 0);
            assert!(fd >= 0 && libc::ftruncate(fd, total as i64) == 0);
            let ram = libc::mmap(ptr::null_mut(), total, 3, libc::MAP_SHARED | libc::MAP_NORESERVE, fd, 0);
            assert_ne!(ram, libc::MAP_FAILED);
            // Reserve more, to begin at a multiple of 1 GiB.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let place = libc::mmap(ptr::null_mut(), bytes + GIB as usize, 0, flags, -1, 0);
            assert_ne!(place, libc::MAP_FAILED);
            let start = (place as u64).next_multiple_of(GIB);
            let window = PageRange::new(VirtAddr::new(start).unwrap(), window_pages).unwrap();
            let machine = Box::leak(Box::new(Self {
                fd,
                ram: ram.cast(),
                ram_frames,
                mmio_frames,
                window,
                root: AtomicU64::new(u64::MAX),
                tlb: (0..window_pages).map(|_| AtomicU64::new(0)).collect(),
                large_fragments: AtomicUsize::new(0),
                flushes: AtomicUsize::new(0),
                on_flush: std::sync::Mutex::new(None),
            }));
            MACHINES[index].store(machine, SeqCst);
            machine
        }
    }

    fn at(&self, address: u64) -> &AtomicU64 {
        assert!(address + 8 <= (self.ram_frames + self.mmio_frames) * PAGE);
        unsafe { AtomicU64::from_ptr(self.ram.add(address as usize).cast()) }
    }

    pub fn word(&self, address: u64) -> u64 {
        self.at(address).load(Acquire)
    }

    pub fn set_word(&self, address: u64, value: u64) {
        self.at(address).store(value, Release)
    }

    /// Address of the entry at `level` for a virtual address (3 is the top).
    pub fn entry(&self, address: u64, level: u32) -> u64 {
        let mut table = self.root.load(SeqCst);
        for at in (level + 1..4).rev() {
            table = self.word(table + (address >> (12 + 9 * at) & 511) * 8) & 0x000f_ffff_ffff_f000;
        }
        table + (address >> (12 + 9 * level) & 511) * 8
    }

    /// The walk of the SDM, written without looking at the code under test.
    pub fn walk(&self, address: u64) -> Option<Hit> {
        let (mut table, mut write, mut execute) = (self.root.load(SeqCst), true, true);
        for level in (0..4).rev() {
            let entry = self.word(table + (address >> (12 + 9 * level) & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            write &= entry & 2 != 0;
            execute &= entry >> 63 == 0;
            let frame = (entry & 0x000f_ffff_ffff_f000) >> 12;
            if level == 0 || entry & 0x80 != 0 {
                let inside = (address >> 12) & ((1 << (9 * level)) - 1);
                return Some(Hit { frame: frame + inside, level, write, execute });
            }
            table = frame << 12;
        }
        None
    }

    fn index(&self, address: u64) -> Option<usize> {
        Some(self.window.offset_of_address(VirtAddr::new(address)?)? as usize / PAGE as usize)
    }

    /// A page fault: fills the TLB from the tables. `false` if it is a real fault.
    fn fault(&self, address: u64, write: bool) -> bool {
        let Some(index) = self.index(address) else { return false };
        let Some(hit) = self.walk(address) else { return false };
        // Memory that is writable and executable is never used here: the test dies of it.
        if (write && !hit.write) || (hit.write && hit.execute) {
            return false;
        }
        // Of a large leaf all that lies around, up to 2 MiB.
        let pages = if hit.level > 0 { 512 } else { 1 };
        let (first, frame) = (index & !(pages - 1), hit.frame & !(pages as u64 - 1));
        let pages = pages.min(self.tlb.len() - first);
        for offset in 0..pages as u64 {
            let value = (frame + offset) << 8 | u64::from(hit.level) << 2 | u64::from(hit.write) << 1 | 1;
            if self.tlb[first + offset as usize].swap(value, SeqCst) == 0 && hit.level > 0 {
                self.large_fragments.fetch_add(1, SeqCst);
            }
        }
        let protection = libc::PROT_READ | if hit.write { libc::PROT_WRITE } else { 0 };
        let at = (self.window.start_address().value() + first as u64 * PAGE) as *mut libc::c_void;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        unsafe { remap(at, pages * PAGE as usize, protection, flags, self.fd, frame * PAGE) }
    }

    fn forget(&self, indices: std::ops::Range<usize>) {
        let mut known = false;
        for index in indices.clone() {
            let before = self.tlb[index].swap(0, SeqCst);
            known |= before != 0;
            if before >> 2 & 3 > 0 {
                self.large_fragments.fetch_sub(1, SeqCst);
            }
        }
        if known {
            let at = self.window.start_address().value() + indices.start as u64 * PAGE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            let at = at as *mut libc::c_void;
            assert!(unsafe { remap(at, indices.len() * PAGE as usize, 0, flags, -1, 0) });
        }
    }

    /// Whether an access would succeed now, through the TLB if it knows the page.
    pub fn may(&self, address: u64, write: bool) -> bool {
        match self.tlb[self.index(address).unwrap()].load(SeqCst) {
            0 => self.walk(address).is_some_and(|hit| hit.write || !write),
            cached => !write || cached & 2 != 0,
        }
    }

    /// Every frame that the TLB can still reach.
    pub fn cached_frames(&self) -> Vec<u64> {
        self.tlb
            .iter()
            .map(|cached| cached.load(SeqCst))
            .filter(|cached| *cached != 0)
            .map(|cached| cached >> 8)
            .collect()
    }

    /// Fills the TLB with each of these pages, by reading it.
    pub fn touch(&self, pages: &PageRange) {
        for page in pages.iter() {
            unsafe { (page.start_address().value() as *const u8).read_volatile() };
        }
    }

    /// Panics if the TLB knows anything that the tables do not say.
    pub fn assert_coherent(&self) {
        for (index, cached) in self.tlb.iter().enumerate() {
            let cached = cached.load(SeqCst);
            if cached != 0 {
                let address = self.window.start_address().value() + index as u64 * PAGE;
                let hit = self.walk(address).unwrap_or_else(|| panic!("stale TLB entry for {address:#x}"));
                assert_eq!(hit.frame, cached >> 8, "stale TLB entry for {address:#x}");
                assert!(hit.write || cached & 2 == 0, "TLB still allows writing {address:#x}");
            }
        }
    }
}

/// `mmap` over what was there, whoever owns it: to forget is no access to it, as ThreadSanitizer takes the
/// function of the C library to be.
unsafe fn remap(at: *mut libc::c_void, len: usize, allow: i32, flags: i32, fd: i32, offset: u64) -> bool {
    unsafe { libc::syscall(libc::SYS_mmap, at, len, allow, flags, fd, offset) == at as i64 }
}

impl Machine {
    fn before_flush(&self) {
        self.flushes.fetch_add(1, SeqCst);
        if let Some(hook) = &*self.on_flush.lock().unwrap() {
            hook();
        }
    }

    fn flush(&self, page: VirtAddr) {
        self.before_flush();
        let Some(index) = self.index(page.value()) else { return };
        self.forget(index..index + 1);
        if self.large_fragments.load(SeqCst) > 0 {
            // A large page may be cached in fragments, which all go.
            for level in 1..3u32 {
                let size = 1 << (9 * level);
                let start = index / size * size;
                let end = (start + size).min(self.tlb.len());
                let is_fragment = |at: usize| self.tlb[at].load(SeqCst) & 0xd == u64::from(level) << 2 | 1;
                let mut at = start;
                while at < end {
                    let past = (at..end).find(|at| !is_fragment(*at)).unwrap_or(end);
                    self.forget(at..past);
                    at = past + 1;
                }
            }
        }
    }
}

unsafe impl Cpu for Machine {
    fn shoot_down(&self, stale: &Stale) {
        assert!(!host::locks_held(), "a processor that spins for this lock would never acknowledge");
        assert!(stale.pages().is_none_or(|mut pages| pages.next().is_some()), "nothing is stale");
        match stale.pages() {
            Some(pages) => pages.for_each(|page| self.flush(page.start_address())),
            None => {
                self.before_flush();
                self.forget(0..self.tlb.len());
            }
        }
    }

    unsafe fn load_root(&self, root: PhysAddr) {
        self.root.store(root.value(), SeqCst);
    }

    fn root(&self) -> PhysAddr {
        PhysAddr::new(self.root.load(SeqCst)).unwrap()
    }
}

unsafe fn install() {
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
    }
}

extern "C" fn handle(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    unsafe {
        let address = (*info).si_addr() as u64;
        let error = (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize];
        for machine in &MACHINES[..COUNT.load(SeqCst)] {
            let machine = machine.load(SeqCst);
            if !machine.is_null() && (*machine).fault(address, error & 2 != 0) {
                return;
            }
        }
        // A real fault: die of it.
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
    }
}

/// A booted machine.
pub struct System {
    pub machine: &'static Machine,
    pub space: &'static AddressSpace,
    pub pool: FrameRange,
    pub kernel: FrameRange,
    /// The storage of the frame allocator: two buddies, one bit for each frame of RAM, marks.
    pub storage: *mut u64,
}

unsafe impl Sync for System {}
unsafe impl Send for System {}

pub struct Config {
    pub ram_frames: u64,
    pub mmio_frames: u64,
    pub window_pages: usize,
    pub pool_frames: usize,
    pub gib_pages: bool,
    /// Pages that are allocated instead of the machine's window: they are not memory here.
    pub window: Option<PageRange>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ram_frames: 4096,
            mmio_frames: 64,
            window_pages: 1 << 14,
            pool_frames: 128,
            gib_pages: true,
            window: None,
        }
    }
}

pub fn frames(start: u64, count: u64) -> FrameRange {
    FrameRange::new(PhysAddr::new(start * PAGE).unwrap(), count as usize).unwrap()
}

pub fn storage(words: usize) -> &'static mut [u64] {
    // Not zero: constructors must not rely on it.
    Box::leak(vec![0xdead_beef_dead_beef; words].into_boxed_slice())
}

pub const KERNEL_VA: u64 = 0xffff_ffff_8000_0000;

impl Drop for System {
    /// The RAM goes back to the host; it reads as zero from now on.
    fn drop(&mut self) {
        let past = self.pool.end().unwrap().number() + 1;
        unsafe {
            let ram = self.machine.ram.add((past * PAGE) as usize);
            let bytes = (self.machine.ram_frames - past) * PAGE;
            assert_eq!(libc::madvise(ram.cast(), bytes as usize, libc::MADV_REMOVE), 0);
        }
    }
}

impl System {
    pub fn new(config: Config) -> Self {
        Self::with_cpu(config, |machine| machine)
    }

    /// Boots: the pool at frame 16, eight frames of "kernel image" before it, frame 0 reserved, the rest is
    /// free.
    pub fn with_cpu(config: Config, cpu: impl FnOnce(&'static Machine) -> &'static dyn Cpu) -> Self {
        let machine = Machine::new(config.ram_frames, config.mmio_frames, config.window_pages);
        let (pool, kernel) = (frames(16, config.pool_frames as u64), frames(8, 8));
        unsafe {
            ptr::write_bytes(machine.ram.add(16 * PAGE as usize), 0xa5, config.pool_frames * PAGE as usize)
        };
        let pool_base = unsafe { machine.ram.add(16 * PAGE as usize) };
        let mut mapper =
            Mapper::new(unsafe { TablePool::new(pool_base, pool) }.unwrap(), config.gib_pages).unwrap();
        let kernel_pages =
            |offset, count| PageRange::new(VirtAddr::new(KERNEL_VA + offset * PAGE).unwrap(), count).unwrap();
        unsafe {
            mapper.map_boot(kernel_pages(0, 4), frames(8, 4), Protection::ReadExecute).unwrap();
            mapper.map_boot(kernel_pages(4, 4), frames(12, 4), Protection::ReadWrite).unwrap();
            mapper.map_boot(kernel_pages(4096, config.pool_frames), pool, Protection::ReadWrite).unwrap();
            mapper.activate(machine, pool_base);
        }
        let span = frames(0, config.ram_frames);
        let words = FrameAllocator::storage_words(span.size_in_frames());
        let storage_words = storage(words);
        let storage_start = storage_words.as_mut_ptr();
        let allocator: &'static _ = Box::leak(Box::new(FrameAllocator::new(span, storage_words).unwrap()));
        unsafe {
            allocator.add(frames(0, 1), Owner::Reserved);
            allocator.add(kernel, Owner::Kernel);
            allocator.add(pool, Owner::Tables);
            allocator.add(span, Owner::Free);
        }
        let window = config.window.unwrap_or(machine.window);
        let words = PageAllocator::storage_words(window.size_in_pages());
        let pages: &'static _ = Box::leak(Box::new(PageAllocator::new(window, storage(words)).unwrap()));
        let space = Box::leak(Box::new(AddressSpace::new(mapper, allocator, pages, cpu(machine))));
        Self { machine, space, pool, kernel, storage: storage_start }
    }

    pub fn small() -> Self {
        Self::new(Config::default())
    }

    /// Fails the test unless the audit is content, the TLB knows nothing stale and all frames are accounted
    /// for.
    #[track_caller]
    pub fn check(&self) {
        let report = self.space.audit();
        let findings: Vec<String> = report.findings().map(|finding| finding.to_string()).collect();
        assert!(report.ok(), "{findings:#?}");
        assert_eq!(report.total, self.machine.ram_frames as usize);
        self.machine.assert_coherent();
    }

    /// The windows of a device model whose memory is the machine's.
    pub fn model(&self) -> DmaWindows {
        DmaWindows::for_model(Box::leak(Box::new(SystemPlatform { space: self.space, bus: 0 })), DeviceId(8))
            .unwrap()
    }

    /// Every word of every page table in use, with its address.
    pub fn tables(&self) -> Vec<(u64, u64)> {
        fn collect(machine: &Machine, table: u64, level: u32, words: &mut Vec<(u64, u64)>) {
            for at in (table..table + PAGE).step_by(8) {
                let word = machine.word(at);
                if word != 0 {
                    words.push((at, word & !0x60)); // not what the processor notes itself
                }
                if level > 0 && word & 0x81 == 1 {
                    collect(machine, word & 0x000f_ffff_ffff_f000, level - 1, words);
                }
            }
        }
        let mut words = Vec::new();
        collect(self.machine, self.machine.root().value(), 3, &mut words);
        words
    }

    /// How many tables are linked, the root included.
    pub fn tables_in_use(&self) -> usize {
        fn links(machine: &Machine, table: u64, level: u32) -> usize {
            let words = (table..table + PAGE).step_by(8).map(|at| machine.word(at));
            let below = words.filter(|word| word & 0x81 == 1).map(|word| match level {
                0 => 0,
                level => links(machine, word & 0x000f_ffff_ffff_f000, level - 1),
            });
            1 + below.sum::<usize>()
        }
        links(self.machine, self.machine.root().value(), 3)
    }

    /// Everything that a refused or failed operation must leave alone: the books, and the tables to the bit.
    pub fn everything(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        (self.state(), self.tables())
    }

    /// Free frames, free pages, tables in use: equal before and after whatever must leave no trace.
    pub fn state(&self) -> (Vec<usize>, usize, usize) {
        let report = self.space.audit();
        (
            report.frames.iter().map(|(_, count)| *count).collect(),
            self.space.pages().free_pages(),
            report.tables,
        )
    }
}

/// DMA memory for drivers, out of the machine's address space. Device addresses are physical addresses plus
/// `bus`.
pub struct SystemPlatform {
    pub space: &'static AddressSpace,
    pub bus: u64,
}

unsafe impl Platform for SystemPlatform {
    fn dma_allocate(
        &self,
        _: DeviceId,
        pages: NonZeroUsize,
        _: Direction,
    ) -> Result<DmaMemory, PlatformError> {
        let memory = self.space.allocate_dma(FrameRequest::new(pages.get()));
        let memory = memory.map_err(|_| PlatformError::OutOfMemory)?;
        let address = memory.physical_address().value() + self.bus;
        Ok(unsafe { DmaMemory::from_pages(memory, address) })
    }
    fn mmio_map(&self, _: Option<DeviceId>, _: PhysAddr, _: usize) -> Result<MmioMemory, PlatformError> {
        Err(PlatformError::BadRange)
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn registry(&self) -> &DmaRegistry {
        self.space.registry()
    }
}
