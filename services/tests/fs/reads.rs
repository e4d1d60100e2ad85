//! Random reads against the standard library's, and how many device requests sequential reading takes.

use crate::disks::{MemDisk, SlowDisk};
use crate::support::{make_image, noise, read_all, sample_folder, write};
use futures::executor::{LocalPool, block_on};
use futures::task::LocalSpawnExt;
use proptest::prelude::*;
use ringfence_services::block::MAX_READ;
use ringfence_services::fs::FileSystem;
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::task::{Poll, Waker};
use tempfile::TempDir;

const FILES: [&str; 8] = [
    "large.bin",
    "sparse",
    "far",
    "sizes/0.bin",
    "sizes/100.bin",
    "sizes/160.bin",
    "sizes/4097.bin",
    "sizes/70001.bin",
];

/// Several reads in a row through one node, so that what it remembers is tested too.
#[test]
fn random_reads() {
    let folder = sample_folder(3, 100);
    for options in [
        &["-b", "1024"][..],
        &["-b", "4096"],
        &["-b", "1024", "-O", "^extents,^64bit"],
        &["-b", "2048", "-O", "inline_data"],
    ] {
        let image = Rc::new(make_image(folder.path(), options, 16 << 10));
        let fs = block_on(FileSystem::open(MemDisk::new(image), 128 << 10)).unwrap();
        let read = (any::<prop::sample::Index>(), 0usize..100_000, any::<bool>());
        let config = ProptestConfig::with_cases(300);
        let reads = prop::collection::vec(read, 1..8);
        proptest!(config, |(file in prop::sample::select(&FILES[..]), reads in reads)| {
            let source = File::open(folder.path().join(file)).unwrap();
            let size = source.metadata().unwrap().len();
            let node = block_on(fs.lookup(file.as_bytes())).unwrap();
            let mut end = 0;
            for (place, len, follow_on) in reads {
                // Also a little behind the end of the file.
                let offset = if follow_on { end } else { place.index(size as usize + 1000) as u64 };
                let mut expected = vec![0; len];
                let count = source.read_at(&mut expected, offset).unwrap();
                let mut actual = vec![0x77; len];
                prop_assert_eq!(block_on(fs.read_at(&node, offset, &mut actual)), Ok(count));
                prop_assert!(actual[..count] == expected[..count], "{} bytes at {} differ", count, offset);
                prop_assert!(actual[count..].iter().all(|byte| *byte == 0x77), "written behind the end");
                end = offset + count as u64;
            }
        });
    }
}

/// Sequential reading asks the device for [`MAX_READ`] bytes at a time, and for hardly more than the file.
#[test]
fn sequential_reads_use_few_requests() {
    const SIZE: usize = 8 << 20;
    let folder = TempDir::new().unwrap();
    write(folder.path(), "file", &noise(3, SIZE));
    for options in [&["-b", "4096"][..], &["-b", "1024"], &["-b", "4096", "-O", "^extents,^64bit"]] {
        let image = make_image(folder.path(), options, 24 << 10);
        let fs = block_on(FileSystem::open(MemDisk::new(image), 256 << 10)).unwrap();
        let node = block_on(fs.lookup(b"file")).unwrap();
        let before = fs.cache_stats();
        assert!(read_all(&fs, &node, 16 << 10).unwrap() == fs::read(folder.path().join("file")).unwrap());
        let after = fs.cache_stats();
        let requests = after.requests - before.requests;
        let least = (SIZE / MAX_READ) as u64;
        assert!(
            requests <= least + least / 2 + 16,
            "{options:?}: {requests} requests, at least {least} are needed"
        );
        let bytes = (after.pages_requested - before.pages_requested) * 4096;
        assert!(bytes <= SIZE as u64 + (256 << 10), "{options:?}: {bytes} bytes for {SIZE}");
    }
}

/// Reading here and there asks for what is needed, not for what follows.
#[test]
fn random_reads_do_not_read_ahead() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "file", &noise(3, 4 << 20));
    let image = make_image(folder.path(), &["-b", "4096"], 16 << 10);
    let fs = block_on(FileSystem::open(MemDisk::new(image), 1 << 20)).unwrap();
    let node = block_on(fs.lookup(b"file")).unwrap();
    let before = fs.cache_stats().pages_requested;
    for n in (1..100u64).rev() {
        block_on(fs.read_at(&node, n * 40_960, &mut [0; 100])).unwrap();
    }
    let pages = fs.cache_stats().pages_requested - before;
    assert!(pages <= 101, "{pages} pages for 99 small reads");
}

/// A file of 1 GiB is read at its far end as quickly as at its start, and the reader's memory does not grow.
#[test]
fn far_offsets_cost_no_more() {
    let folder = TempDir::new().unwrap();
    let piece = noise(5, 4096);
    // 2,000 extents over 1 GiB: a tree with several leaves.
    let pieces: Vec<(u64, &[u8])> = (0..2000).map(|n| (n * 524_288, &piece[..])).collect();
    crate::support::write_sparse(folder.path(), "file", 1 << 30, &pieces);
    let image = make_image(folder.path(), &["-b", "4096"], 16 << 10);
    let fs = block_on(FileSystem::open(MemDisk::new(image), 64 << 10)).unwrap();
    let node = block_on(fs.lookup(b"file")).unwrap();
    for n in [0u64, 1000, 1999] {
        let before = fs.cache_stats();
        let mut buf = [0; 4096];
        assert_eq!(block_on(fs.read_at(&node, n * 524_288, &mut buf)), Ok(4096));
        assert!(buf[..] == piece);
        let after = fs.cache_stats();
        let visited = after.hits + after.misses - before.hits - before.misses;
        assert!(visited <= 4, "reading block {n} visited {visited} pages");
    }
}

/// 64 readers of different files, with room for all windows and with far less: hardly anything is read twice.
#[test]
fn many_streams_do_not_thrash() {
    const STREAMS: u64 = 64;
    const SIZE: usize = 512 << 10;
    let folder = TempDir::new().unwrap();
    for stream in 0..STREAMS {
        write(folder.path(), format!("file{stream}"), &noise(stream, SIZE));
    }
    let image = Rc::new(make_image(folder.path(), &["-b", "4096", "-O", "^has_journal"], 40 << 10));
    for capacity in [16 << 20, 8 << 20, 4 << 20, 2 << 20, 1 << 20, 512 << 10] {
        let disk = SlowDisk::new(image.clone(), 9);
        let disk: &'static SlowDisk = Box::leak(Box::new(disk));
        let mut pool = LocalPool::new();
        let spawner = pool.spawner();
        let (done, result) = futures::channel::oneshot::channel();
        let (round, sleepers) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
        let (rounds, waiting) = (round.clone(), sleepers.clone());
        let start = async move {
            let fs = Rc::new(FileSystem::open(disk, capacity).await.unwrap());
            for stream in 0..STREAMS {
                let (fs, rounds, waiting) = (fs.clone(), rounds.clone(), waiting.clone());
                let work = async move {
                    let node = fs.lookup(format!("file{stream}").as_bytes()).await.unwrap();
                    let (mut at, mut buf) = (0, vec![0; 16 << 10]);
                    while at < SIZE {
                        at += fs.read_at(&node, at as u64, &mut buf).await.unwrap();
                        // The network takes its time.
                        let wait_until = rounds.get() + 1 + stream % 7;
                        poll_fn(|cx| match rounds.get() >= wait_until {
                            true => Poll::Ready(()),
                            false => {
                                waiting.borrow_mut().push(cx.waker().clone());
                                Poll::Pending
                            }
                        })
                        .await;
                    }
                };
                spawner.spawn_local(work).unwrap();
            }
            let _ = done.send(fs);
        };
        pool.spawner().spawn_local(start).unwrap();
        loop {
            pool.run_until_stalled();
            round.set(round.get() + 1);
            let sleepers = std::mem::take(&mut *sleepers.borrow_mut());
            let completed = (0..16).filter(|_| disk.complete_one()).count();
            if sleepers.is_empty() && completed == 0 {
                break;
            }
            sleepers.into_iter().for_each(Waker::wake);
        }
        let stats = block_on(result).unwrap().cache_stats();
        let needed = STREAMS * SIZE as u64 / 4096;
        let (pages, requests) = (stats.pages_requested, stats.requests);
        println!("{} KiB: {pages} pages of {needed} in {requests} requests", capacity >> 10);
        assert!(pages * 2 <= needed * 3, "with {capacity} bytes {pages} pages are read for {needed}");
        assert!(requests * 3 <= needed + 600, "with {capacity} bytes {requests} requests for {needed} pages");
    }
}
