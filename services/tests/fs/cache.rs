//! The page cache under many tasks, over a disk that answers late, out of order, with errors, or not at all.

use crate::allocations::peak_of;
use crate::disks::{MemDisk, SlowDisk};
use crate::support::{make_image, noise, write};
use futures::executor::{LocalPool, block_on};
use futures::future::{AbortHandle, Abortable};
use futures::task::LocalSpawnExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ringfence_services::block::BlockError;
use ringfence_services::fs::{FileSystem, FsError, PAGE_SIZE, PageCache};
use std::cell::Cell;
use std::rc::Rc;
use tempfile::TempDir;

const PAGES: usize = 256;

struct World {
    pool: LocalPool,
    image: Rc<Vec<u8>>,
    disk: Rc<SlowDisk>,
    cache: Rc<PageCache<&'static SlowDisk>>,
}

fn world(seed: u64, capacity: usize) -> World {
    let image = Rc::new(noise(seed, PAGES * PAGE_SIZE));
    let disk = Rc::new(SlowDisk::new(image.clone(), seed));
    // The cache borrows the disk for as long as the test lives.
    let leaked: &'static Rc<SlowDisk> = Box::leak(Box::new(disk.clone()));
    World { pool: LocalPool::new(), image, disk, cache: Rc::new(PageCache::new(&**leaked, capacity)) }
}

impl World {
    /// Runs the tasks and lets the disk answer, until neither has anything left to do.
    fn run(&mut self) {
        loop {
            self.pool.run_until_stalled();
            if !self.disk.complete_one() {
                break;
            }
        }
        assert_eq!(self.disk.pending(), 0);
        assert_eq!(self.cache.stats().under_way, 0, "requests were left behind");
    }
}

/// 72 tasks that miss the same page share one request, and each gets the bytes.
#[test]
fn readers_of_one_page_share_a_request() {
    let mut world = world(1, 64 * PAGE_SIZE);
    let done = Rc::new(Cell::new(0));
    for task in 0..72usize {
        let (cache, image, done) = (world.cache.clone(), world.image.clone(), done.clone());
        let work = async move {
            let mut buf = [0; 40];
            cache.read(9 * PAGE_SIZE as u64 + task as u64, &mut buf, 0).await.unwrap();
            assert_eq!(buf, image[9 * PAGE_SIZE + task..][..40]);
            done.set(done.get() + 1);
        };
        world.pool.spawner().spawn_local(work).unwrap();
    }
    world.run();
    assert_eq!(done.get(), 72);
    assert_eq!(world.disk.completed.get(), 1);
}

/// And if it fails, all are told, not one after the other.
#[test]
fn readers_of_a_bad_page_share_its_error() {
    let mut world = world(1, 64 * PAGE_SIZE);
    *world.disk.bad_sectors.borrow_mut() = 9 * 8..9 * 8 + 1;
    let done = Rc::new(Cell::new(0));
    for _ in 0..72 {
        let (cache, done) = (world.cache.clone(), done.clone());
        let work = async move {
            let result = cache.read(9 * PAGE_SIZE as u64, &mut [0; 40], 0).await;
            assert_eq!(result, Err(FsError::Io(BlockError::Device)));
            done.set(done.get() + 1);
        };
        world.pool.spawner().spawn_local(work).unwrap();
    }
    world.run();
    assert_eq!((done.get(), world.disk.completed.get(), world.cache.stats().errors), (72, 1, 1));
}

/// Many tasks with random reads, read-ahead, errors and tasks that go away: whoever gets an answer gets the
/// right one.
#[test]
fn many_readers_out_of_order() {
    for (seed, capacity, fails) in
        [(1, 8, 0), (2, 8, 7), (3, 64, 0), (4, 64, 5), (5, 1000, 3), (6, 1, 0), (7, 1, 4)]
    {
        let mut world = world(seed, capacity * PAGE_SIZE);
        world.disk.one_in_fails.set(fails);
        let (right, failed) = (Rc::new(Cell::new(0u32)), Rc::new(Cell::new(0u32)));
        let mut random = StdRng::seed_from_u64(seed + 100);
        let mut aborts = Vec::new();
        for task in 0..72u64 {
            let (cache, image) = (world.cache.clone(), world.image.clone());
            let (right, failed) = (right.clone(), failed.clone());
            let work = async move {
                let mut random = StdRng::seed_from_u64(seed * 1000 + task);
                for _ in 0..40 {
                    let len = random.random_range(0..5 * PAGE_SIZE);
                    let offset = random.random_range(0..image.len() - len);
                    let ahead = if random.random() { 128 << 10 } else { 0 };
                    let mut buf = vec![0x33; len];
                    match cache.read(offset as u64, &mut buf, ahead).await {
                        Ok(_) => {
                            assert!(buf == image[offset..offset + len], "wrong bytes");
                            right.set(right.get() + 1);
                        }
                        Err(error) => {
                            assert_eq!(error, FsError::Io(BlockError::Device));
                            failed.set(failed.get() + 1);
                        }
                    }
                }
            };
            let (handle, registration) = AbortHandle::new_pair();
            let work = Abortable::new(work, registration);
            world
                .pool
                .spawner()
                .spawn_local(async move {
                    let _ = work.await;
                })
                .unwrap();
            // Every third task goes away at some time.
            if task % 3 == 0 {
                aborts.push((random.random_range(0..2000u32), handle));
            }
        }
        for step in 0.. {
            world.pool.run_until_stalled();
            aborts.iter().filter(|(when, _)| *when == step).for_each(|(_, handle)| handle.abort());
            if !world.disk.complete_one() {
                break;
            }
            let stats = world.cache.stats();
            assert!(stats.pages <= capacity as u64, "{} pages in a cache of {capacity}", stats.pages);
        }
        world.run();
        assert!(right.get() > 500, "{right:?} reads");
        assert!(fails > 0 || right.get() >= 48 * 40, "{right:?} reads");
        assert_eq!(failed.get() > 0, fails > 0);
        assert!(world.disk.most_at_once.get() > 10, "only {:?} requests at once", world.disk.most_at_once);
    }
}

/// The task that drives a request goes away: the others still get their page.
#[test]
fn another_task_takes_over() {
    let mut world = world(1, 64 * PAGE_SIZE);
    let done = Rc::new(Cell::new(0));
    let mut aborts = Vec::new();
    for _ in 0..5 {
        let (cache, image, done) = (world.cache.clone(), world.image.clone(), done.clone());
        let (handle, registration) = AbortHandle::new_pair();
        let work = async move {
            let mut buf = [0; 40];
            cache.read(0, &mut buf, 0).await.unwrap();
            assert_eq!(buf, image[..40]);
            done.set(done.get() + 1);
        };
        let work = Abortable::new(work, registration);
        world
            .pool
            .spawner()
            .spawn_local(async move {
                let _ = work.await;
            })
            .unwrap();
        aborts.push(handle);
    }
    world.pool.run_until_stalled();
    assert_eq!(world.disk.pending(), 1);
    aborts[0].abort();
    aborts[1].abort();
    world.run();
    assert_eq!(done.get(), 3);

    // When all go away, nothing stays behind, and the next reader starts anew.
    let cache = world.cache.clone();
    let (handle, registration) = AbortHandle::new_pair();
    let work = async move { cache.read(20 * PAGE_SIZE as u64, &mut [0; 40], 0).await };
    let work = Abortable::new(work, registration);
    world
        .pool
        .spawner()
        .spawn_local(async move {
            let _ = work.await;
        })
        .unwrap();
    world.pool.run_until_stalled();
    assert_eq!(world.cache.stats().under_way, 1);
    handle.abort();
    world.pool.run_until_stalled();
    assert_eq!((world.cache.stats().under_way, world.disk.pending()), (0, 0));
}

/// A bad sector harms those who need it, not those whose read-ahead touches it; and errors are not
/// remembered.
#[test]
fn a_bad_sector_harms_only_its_page() {
    let mut world = world(1, 64 * PAGE_SIZE);
    *world.disk.bad_sectors.borrow_mut() = 5 * 8 + 2..5 * 8 + 3;
    let results = Rc::new(Cell::new([None; 12]));
    let read_pages = |world: &mut World| {
        for page in 0..12 {
            let (cache, results, image) = (world.cache.clone(), results.clone(), world.image.clone());
            let work = async move {
                let mut buf = vec![0; PAGE_SIZE];
                let result = cache.read((page * PAGE_SIZE) as u64, &mut buf, 64 << 10).await.map(|_| ());
                assert!(result.is_err() || buf == image[page * PAGE_SIZE..][..PAGE_SIZE]);
                let mut all = results.get();
                all[page] = Some(result);
                results.set(all);
            };
            world.pool.spawner().spawn_local(work).unwrap();
        }
        world.run();
    };
    read_pages(&mut world);
    for (page, result) in results.get().into_iter().enumerate() {
        let expected = if page == 5 { Err(FsError::Io(BlockError::Device)) } else { Ok(()) };
        assert_eq!(result, Some(expected), "page {page}");
    }
    *world.disk.bad_sectors.borrow_mut() = 0..0;
    read_pages(&mut world);
    assert_eq!(results.get(), [Some(Ok(())); 12]);
}

/// A reader of a disk that does not answer keeps nobody from reading what is in the cache.
#[test]
fn a_waiting_reader_stalls_nobody() {
    let mut world = world(1, 64 * PAGE_SIZE);
    let cache = world.cache.clone();
    world
        .pool
        .spawner()
        .spawn_local(
            async move { assert_eq!(cache.read(0, &mut [0; 9], 0).await, Ok(Some(0..PAGE_SIZE as u64))) },
        )
        .unwrap();
    world.run();
    let cache = world.cache.clone();
    world
        .pool
        .spawner()
        .spawn_local(async move {
            let _ = cache.read(99_999, &mut [0; 9], 0).await;
        })
        .unwrap();
    world.pool.run_until_stalled();
    let cache = world.cache.clone();
    let mut pool = LocalPool::new();
    let done = Rc::new(Cell::new(false));
    let seen = done.clone();
    let work = async move {
        cache.read(100, &mut [0; 900], 0).await.unwrap();
        seen.set(true);
    };
    pool.spawner().spawn_local(work).unwrap();
    pool.run_until_stalled();
    assert!(done.get());
}

/// A disk may end in the middle of a page, and even of a sector; what is behind its last sector is not there.
#[test]
fn the_end_of_a_disk() {
    let image = noise(4, 3 * PAGE_SIZE + 1024 + 100);
    let cache = PageCache::new(MemDisk::new(image.clone()), 64 * PAGE_SIZE);
    assert_eq!(cache.size_bytes(), 3 * 4096 + 1024);
    for (at, len) in [(3 * 4096, 1024), (3 * 4096 + 1000, 24), (4000, 8192 + 1024 + 96), (3 * 4096 + 1024, 0)]
    {
        let mut buf = vec![0; len];
        block_on(cache.read(at as u64, &mut buf, 128 << 10)).unwrap();
        assert!(buf == image[at..at + len]);
    }
    for (at, len) in [(3 * 4096u64, 1025), (3 * 4096 + 1024, 1), (1 << 40, 1), (u64::MAX, 1), (0, 1 << 20)] {
        let result = block_on(cache.read(at, &mut vec![0; len], 0));
        assert!(matches!(result, Err(FsError::Corrupt(_))), "{len} bytes at {at}: {result:?}");
    }
}

/// What the cache holds, and what 72 readers with full read-ahead need on top of it.
#[test]
fn memory_is_bounded() {
    const CAPACITY: usize = 64 * PAGE_SIZE;
    let mut world = world(1, CAPACITY);
    let (_, peak) = peak_of(|| {
        for task in 0..72 {
            let cache = world.cache.clone();
            let work = async move {
                for page in 0..PAGES {
                    let at = (page * 37 + task * 91) % PAGES * PAGE_SIZE;
                    cache.read(at as u64, &mut [0; 16], 128 << 10).await.unwrap();
                }
            };
            world.pool.spawner().spawn_local(work).unwrap();
        }
        world.run();
    });
    // One page for each waiting task, and some small change.
    let limit = CAPACITY + 72 * (PAGE_SIZE + 2048) + (64 << 10);
    assert!(peak <= limit, "{peak} bytes, {limit} are allowed");
    assert!(peak >= CAPACITY / 2, "the allocator was not counted: {peak}");
}

/// The same through the file system: 72 tasks read different files to their ends, out of order, with some
/// errors.
#[test]
fn many_files_at_once() {
    let folder = TempDir::new().unwrap();
    for number in 0..12 {
        write(
            folder.path(),
            format!("folder{}/file{number}", number % 3),
            &noise(number, 30_000 * (1 + number as usize)),
        );
    }
    let image = Rc::new(make_image(folder.path(), &["-b", "1024"], 4 << 10));
    let disk = Rc::new(SlowDisk::new(image, 5));
    let mut pool = LocalPool::new();
    let done = Rc::new(Cell::new(0));
    let (spawner, shared, counter) = (pool.spawner(), disk.clone(), done.clone());
    let start = async move {
        let leaked: &'static Rc<SlowDisk> = Box::leak(Box::new(shared));
        let fs = Rc::new(FileSystem::open(&**leaked, 256 << 10).await.unwrap());
        leaked.one_in_fails.set(50);
        for task in 0..72u64 {
            let (fs, done) = (fs.clone(), counter.clone());
            let work = async move {
                let number = task % 12;
                let path = format!("/folder{}/file{number}", number % 3);
                let expected = noise(number, 30_000 * (1 + number as usize));
                let node = loop {
                    match fs.lookup(path.as_bytes()).await {
                        Err(FsError::Io(_)) => {}
                        node => break node.unwrap(),
                    }
                };
                let (mut at, mut buf) = (0, vec![0; 5000]);
                while at < expected.len() {
                    match fs.read_at(&node, at as u64, &mut buf).await {
                        Err(FsError::Io(_)) => {}
                        len => {
                            let len = len.unwrap();
                            assert!(buf[..len] == expected[at..at + len], "{path} differs at {at}");
                            at += len;
                        }
                    }
                }
                done.set(done.get() + 1);
            };
            spawner.spawn_local(work).unwrap();
        }
    };
    pool.spawner().spawn_local(start).unwrap();
    loop {
        pool.run_until_stalled();
        if !disk.complete_one() {
            break;
        }
    }
    assert_eq!(done.get(), 72);
}
