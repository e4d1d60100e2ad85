//! Registers with a device behind them, which sees each write when it is made. The driver's page is
//! read-only, so that a write faults; it is let through, and the trap flag stops the processor behind it.

use std::cell::{Cell, RefCell};
use std::ptr::{self, NonNull};
use std::sync::Once;
use std::time::Duration;

use ringfence_memory::host::HostPlatform;
use ringfence_memory::*;

use super::BAR_LEN;
use crate::host_does;

type OnWrite = Box<dyn FnMut(&Stepped, usize)>;
type Clock = Box<dyn FnMut(&Stepped) -> Duration>;

/// A platform with such registers, and a clock that is the test's. For the thread that made it.
pub struct Stepped {
    pub host: HostPlatform,
    /// The same bytes as the driver and as the device sees them.
    driver: *mut u8,
    device: *mut u8,
    /// Where the write went that is let through now.
    at: Cell<usize>,
    /// What the device does after a write to this offset.
    on_write: RefCell<OnWrite>,
    /// What the time is.
    pub clock: RefCell<Clock>,
}

unsafe impl Sync for Stepped {}

thread_local! {
    static CURRENT: Cell<*const Stepped> = const { Cell::new(ptr::null()) };
}
static HANDLERS: Once = Once::new();
const TRAP_FLAG: i64 = 1 << 8;

impl Stepped {
    pub fn new(on_write: impl FnMut(&Self, usize) + 'static) -> &'static Self {
        HANDLERS.call_once(|| unsafe {
            for (signal, handler) in [(libc::SIGSEGV, fault as *const ()), (libc::SIGTRAP, trap as *const ())]
            {
                let mut action: libc::sigaction = std::mem::zeroed();
                (action.sa_sigaction, action.sa_flags) = (handler as usize, libc::SA_SIGINFO);
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
        });
        let file = unsafe { libc::memfd_create(c"registers".as_ptr(), 0) };
        assert_eq!(unsafe { libc::ftruncate(file, BAR_LEN as i64) }, 0);
        let map = |allowed| {
            let at = unsafe { libc::mmap(ptr::null_mut(), BAR_LEN, allowed, libc::MAP_SHARED, file, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>()
        };
        let this = Box::leak(Box::new(Self {
            host: HostPlatform::new(),
            driver: map(libc::PROT_READ),
            device: map(libc::PROT_READ | libc::PROT_WRITE),
            at: Cell::new(0),
            on_write: RefCell::new(Box::new(on_write)),
            clock: RefCell::new(Box::new(|this| this.host.now())),
        }));
        CURRENT.set(this);
        this
    }

    /// What the device sees in, and puts into, a register.
    pub fn get<T: AtomicAccess>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= BAR_LEN);
        unsafe { self.device.add(offset).cast::<T>().read_volatile() }
    }

    pub fn set<T: AtomicAccess>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= BAR_LEN);
        unsafe { self.device.add(offset).cast::<T>().write_volatile(value) }
    }
}

extern "C" fn fault(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    unsafe {
        match CURRENT
            .get()
            .as_ref()
            .map(|this| (this, (*info).si_addr().addr().wrapping_sub(this.driver.addr())))
        {
            Some((this, at)) if at < BAR_LEN => {
                this.at.set(at);
                libc::mprotect(this.driver.cast(), BAR_LEN, libc::PROT_READ | libc::PROT_WRITE);
                (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize] |= TRAP_FLAG;
            }
            // A real fault: die of it.
            _ => {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            }
        }
    }
}

extern "C" fn trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP_FLAG;
        let Some(this) = CURRENT.get().as_ref() else { return };
        libc::mprotect(this.driver.cast(), BAR_LEN, libc::PROT_READ);
        (this.on_write.borrow_mut())(this, this.at.get());
    }
}

// One block of registers, which is lent to whoever asks.
unsafe impl Platform for Stepped {
    host_does!(host: dma_allocate, registry);

    fn mmio_map(
        &self,
        _: Option<DeviceId>,
        start: PhysAddr,
        len: usize,
    ) -> Result<MmioMemory, PlatformError> {
        // Cards are 1 MiB apart.
        let offset = start.value() as usize % 0x10_0000;
        assert!(offset + len <= BAR_LEN);
        let start = NonNull::new(self.driver.wrapping_add(offset)).unwrap();
        Ok(unsafe { MmioMemory::new(start, len, Box::new(())) })
    }

    fn now(&self) -> Duration {
        (self.clock.borrow_mut())(self)
    }
}
