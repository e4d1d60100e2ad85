//! Shared memory under loom, for tests of ring protocols: with `--cfg ringfence_loom` the code that runs is
//! the real one, and what it does to the bytes that [`cover`] names is checked in every interleaving that
//! C++11 memory allows.
//!
//! Every 2 bytes are an atomic of loom's. Accesses of 16 bits, which is what flags, indices and ring entries
//! are, keep their ordering, and a load may return any value that the memory model lets it see. Copies, and
//! relaxed accesses of 64 bits, are plain accesses, which must be ordered by those: if they are not, loom
//! calls it a race. A wider access that is atomic all the same ends, as memory goes, with its flags: who sees
//! these in one access sees the rest.
//!
//! What is accessed once as an integer is that integer's place: an access of another size, or a copy, panics.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU16, fence};

use ringfence_memory::VolatileSlice;
use ringfence_memory::shadow::{Shadow, install};

/// Bytes of an event suppression structure: a position, and flags.
const PAIR: usize = 4;

/// A unit; what borrows it mutably while another thread is about to access it is a race as well.
type Unit = Rc<RefCell<AtomicU16>>;

/// How a place is accessed: where the integer begins and how long it is, or not as one.
type Place = Option<(usize, usize)>;

thread_local! {
    /// Loom runs all threads of a model on one thread of the host. Sorted by address.
    static UNITS: RefCell<Vec<(usize, Unit)>> = RefCell::default();
    /// How each of them was accessed first.
    static PLACES: RefCell<Vec<Cell<Option<Place>>>> = RefCell::default();
}

/// Ends what [`cover`] began.
#[derive(Debug)]
pub struct Cover(());

/// From now on loom watches `slices`, whose bytes keep their values. At the start of a model, before its
/// threads.
pub fn cover(slices: &[VolatileSlice<'_>]) -> Cover {
    let mut units = Vec::new();
    for slice in slices {
        let start = slice.as_ptr().cast::<u16>();
        assert!(start.is_aligned() && slice.len().is_multiple_of(2));
        for index in 0..slice.len() / 2 {
            // SAFETY: in the slice and aligned, as was just checked.
            let (at, value) = unsafe { (start.add(index), start.add(index).read_volatile()) };
            units.push((at.addr().get(), Rc::new(RefCell::new(AtomicU16::new(value)))));
        }
    }
    units.sort_by_key(|unit| unit.0);
    PLACES.with(|places| places.replace(units.iter().map(|_| Cell::default()).collect()));
    UNITS.with(|all| all.replace(units));
    install(&Loom);
    Cover(())
}

impl Drop for Cover {
    fn drop(&mut self) {
        UNITS.with(|all| all.take());
    }
}

/// Sees that all of `at..at + len` is accessed as `place` every time.
fn check(at: usize, len: usize, place: Place) {
    let unit = |at| UNITS.with_borrow(|all| all.binary_search_by_key(&at, |unit| unit.0).ok());
    for index in (at & !1..at + len).step_by(2).filter_map(unit) {
        PLACES.with_borrow(|places| {
            let first = places[index].get().unwrap_or(place);
            assert_eq!(first, place, "one place in two sizes, at {at:#x}");
            places[index].set(Some(first));
        });
    }
}

/// The unit that holds the byte at `at`. No borrow of the table is left: loom switches threads at atomic
/// accesses.
fn unit(at: usize) -> Option<Unit> {
    UNITS.with(|all| {
        let all = all.borrow();
        let found = all.binary_search_by_key(&(at & !1), |unit| unit.0).ok()?;
        Some(all[found].1.clone())
    })
}

struct Loom;

impl Shadow for Loom {
    fn load(&self, at: *const u8, bytes: &mut [u8], order: Ordering) -> bool {
        check(at.addr(), bytes.len(), Some((at.addr(), bytes.len())));
        if bytes.len() == 1 || bytes.len() == 8 && order == Ordering::Relaxed {
            return unordered_read(at, bytes);
        }
        load(at.addr(), bytes, order).is_some()
    }

    fn store(&self, at: *mut u8, bytes: &[u8], order: Ordering) -> bool {
        check(at.addr(), bytes.len(), Some((at.addr(), bytes.len())));
        if bytes.len() == 1 || bytes.len() == 8 && order == Ordering::Relaxed {
            return unordered_write(at, bytes);
        }
        store(at.addr(), bytes, order).is_some()
    }

    fn read(&self, at: *const u8, bytes: &mut [u8]) -> bool {
        check(at.addr(), bytes.len(), None);
        unordered_read(at, bytes)
    }

    fn write(&self, at: *mut u8, bytes: &[u8]) -> bool {
        check(at.addr(), bytes.len(), None);
        unordered_write(at, bytes)
    }

    fn fence(&self, order: Ordering) -> bool {
        fence(order);
        true
    }
}

/// Loads an integer from `at`, if it is covered: its last unit in `order`.
fn load(at: usize, bytes: &mut [u8], order: Ordering) -> Option<()> {
    let order = if bytes.len() == PAIR { Ordering::Acquire } else { order };
    let (lower, last) = bytes.split_last_chunk_mut()?;
    *last = unit(at + lower.len())?.borrow().load(order).to_ne_bytes();
    for (at, bytes) in (at..).step_by(2).zip(lower.chunks_exact_mut(2)) {
        bytes.copy_from_slice(&unit(at)?.borrow().load(Ordering::Relaxed).to_ne_bytes());
    }
    Some(())
}

/// Stores an integer to `at`, if it is covered.
fn store(at: usize, bytes: &[u8], order: Ordering) -> Option<()> {
    let order = if bytes.len() == PAIR { Ordering::Release } else { order };
    let (lower, last) = bytes.split_last_chunk()?;
    for (at, pair) in (at..).step_by(2).zip(lower.chunks_exact(2)) {
        unit(at)?.borrow().store(u16::from_ne_bytes([pair[0], pair[1]]), Ordering::Relaxed);
    }
    unit(at + lower.len())?.borrow().store(u16::from_ne_bytes(*last), order);
    Some(())
}

fn unordered_read(at: *const u8, bytes: &mut [u8]) -> bool {
    for (at, byte) in (at.addr()..).zip(bytes) {
        let Some(unit) = unit(at) else { return false };
        // SAFETY: a race is what loom is to find: it panics.
        *byte = unsafe { unit.borrow().unsync_load() }.to_ne_bytes()[at & 1];
    }
    true
}

fn unordered_write(at: *mut u8, bytes: &[u8]) -> bool {
    for (at, byte) in (at.addr()..).zip(bytes) {
        let Some(unit) = unit(at) else { return false };
        unit.borrow_mut().with_mut(|value| {
            let mut pair = value.to_ne_bytes();
            pair[at & 1] = *byte;
            *value = u16::from_ne_bytes(pair);
        });
    }
    true
}
