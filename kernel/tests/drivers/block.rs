//! Disks: what they hold, what they refuse, and the ring at its limit.

use alloc::vec::Vec;
use core::time::Duration;

use ringfence_drivers::block::{BlockQueue, Options, Request, RequestError};
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::devices::bus::BusNotifier;
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::testing::On;
use ringfence_memory::{DmaBuf, DmaPool, DmaWindows};

use crate::support::{
    INDIRECT_DESC, RING_PACKED, Random, functions_for, mix, numbered, rings, start_disk, start_disk_with,
    until,
};

/// SEG_MAX, BLK_SIZE, FLUSH and VERSION_1 (virtio 1.4, 5.2.3 and 6), and what rings are like here: all that
/// QEMU offers of what the driver implements.
pub fn features() -> u64 {
    1 << 2 | 1 << 6 | 1 << 9 | 1 << 32 | rings()
}
const READ_ONLY: u64 = 1 << 5;
/// 16 MiB.
pub const SECTORS: u64 = 32768;
pub const SLOT: usize = 4096;
const SLOT_SECTORS: u64 = (SLOT / 512) as u64;

type Queue = BlockQueue<BusNotifier>;

/// A piece of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub sector: u64,
    pub len: usize,
}

impl Piece {
    /// What the tests write there: other bytes in each place and each `round`.
    pub fn contents(self, round: u64) -> Vec<u8> {
        let first = self.sector * 64;
        (0..self.len as u64 / 8).flat_map(|word| mix((first + word) ^ (round << 40)).to_le_bytes()).collect()
    }

    pub fn read(self, buffer: DmaBuf) -> Request {
        Request::Read { sector: self.sector, buffer, len: self.len }
    }

    pub fn write(self, mut buffer: DmaBuf, contents: &[u8]) -> Request {
        buffer.write_slice(contents, 0).expect("it fits");
        Request::Write { sector: self.sector, buffer, len: self.len }
    }
}

pub fn bytes(buffer: &DmaBuf, len: usize) -> Vec<u8> {
    let mut bytes = alloc::vec![0; len];
    buffer.read_slice(&mut bytes, 0).expect("it fits");
    bytes
}

/// Carries out one request.
pub fn one(disk: &mut Queue, request: Request) -> Result<Option<DmaBuf>, RequestError> {
    let ticket = disk.submit(request).map_err(|(error, _)| error)?;
    disk.kick();
    let done = until("a request", || {
        let mut answer = None;
        disk.reap(|done| answer = Some(done)).expect("the ring is sound");
        answer
    });
    assert_eq!(done.ticket, ticket);
    done.result.map(|()| done.buffer)
}

/// Carries out all requests, with as many in flight as the ring holds. Returns how many batches it took.
pub fn pump(
    disk: &mut Queue,
    pool: &DmaPool,
    pieces: impl Iterator<Item = Piece>,
    mut request: impl FnMut(Piece, DmaBuf) -> Request,
    mut check: impl FnMut(Piece, DmaBuf),
) -> usize {
    let capacity = disk.depth();
    let (mut pieces, mut owners, mut batches) = (pieces.peekable(), alloc::vec![None; disk.tickets()], 0);
    let before = disk.counters();
    let mut total = 0;
    while pieces.peek().is_some() || disk.in_flight() > 0 {
        while let Some(&piece) = pieces.peek() {
            let buffer = pool.take().expect("there are more buffers than requests fit");
            match disk.submit(request(piece, buffer)) {
                Ok(ticket) => assert!(owners[ticket.index()].replace(piece).is_none(), "{ticket:?} twice"),
                Err((RequestError::Full, _)) => {
                    assert_eq!(disk.in_flight(), capacity, "the ring is full only when it is full");
                    break;
                }
                Err((error, request)) => panic!("{request:?}: {error:?}"),
            }
            pieces.next();
            total += 1;
        }
        disk.kick();
        batches += 1;
        until("a completion", || {
            let count = disk.reap(|done| {
                let piece = owners[done.ticket.index()].take().expect("it was in flight");
                assert_eq!(done.result, Ok(()), "{piece:?}");
                check(piece, done.buffer.expect("reads and writes have one"));
            });
            (count.expect("the ring is sound") > 0).then_some(())
        });
    }
    let now = disk.counters();
    assert_eq!((now.submitted - before.submitted, now.completions - before.completions), (total, total));
    assert_eq!(now.rejected, 0);
    assert!(now.kicks - before.kicks <= batches as u64, "one notification for each batch at most");
    batches
}

/// All slots of the disk, each once, in an order without order.
pub fn all_slots(order: u64) -> impl Iterator<Item = Piece> {
    let slots = SECTORS / SLOT_SECTORS;
    (0..slots).map(move |index| {
        let slot = (index * (2 * order + 1) * 0x5bd1 + order) % slots;
        Piece { sector: slot * SLOT_SECTORS, len: SLOT }
    })
}

fn full_ring_loses_nothing() {
    let options = Options { depth: 128, ..Options::default() };
    let (mut disk, _interrupts, windows) = start_disk_with(&options);
    let geometry = disk.queue.geometry();
    assert_eq!((geometry.sectors, geometry.block_size, geometry.read_only), (SECTORS, 512, false));
    let depth = if rings() & INDIRECT_DESC != 0 { 128 } else { 256 / 3 };
    assert_eq!(
        (disk.control.features(), disk.queue.queue_size(), disk.queue.depth()),
        (features(), 256, depth)
    );
    let pool = DmaPool::new(&windows, depth + 1, SLOT).expect("there is memory");
    for round in 0..2 {
        let write = |piece: Piece, buffer| piece.write(buffer, &piece.contents(round));
        let batches = pump(&mut disk.queue, &pool, all_slots(round), write, |_, _| {});
        assert!(batches >= 4096 / 128, "{batches}");
        assert!(one(&mut disk.queue, Request::Flush).expect("flushing works").is_none());
        // Parts of slots, of all lengths.
        let mut random = Random(round);
        let parts = all_slots(round + 7).map(|slot| {
            let first = random.below(SLOT_SECTORS);
            let sectors = 1 + random.below(SLOT_SECTORS - first);
            Piece { sector: slot.sector + first, len: sectors as usize * 512 }
        });
        pump(&mut disk.queue, &pool, parts, Piece::read, |piece, buffer| {
            assert!(bytes(&buffer, piece.len) == piece.contents(round), "{piece:?}");
        });
    }
    assert_eq!(pool.available(), depth + 1);
}

/// What was written comes back, with the ring full all the time.
#[test_case]
const FULL_RING: On = On("blk,rings", &full_ring_loses_nothing);

/// A queue of `size` descriptors, be it the device's choice or the driver's, works up to its limit.
fn fill_queue(wish: u16, size: u16) {
    let options = Options { queue_size: wish, depth: wish, ..Options::default() };
    let (mut disk, _interrupts, windows) = start_disk_with(&options);
    // Header, data and status; with a table, one descriptor.
    let count = usize::from(if rings() & INDIRECT_DESC != 0 { size } else { size / 3 });
    assert_eq!((disk.queue.queue_size(), disk.queue.depth()), (size, count));
    let pool = DmaPool::new(&windows, count + 1, 512).expect("there is memory");
    let pieces = |order| all_slots(order).map(|slot| Piece { len: 512, ..slot }).take(2 * count + 7);
    let write = |piece: Piece, buffer| piece.write(buffer, &piece.contents(9));
    pump(&mut disk.queue, &pool, pieces(3), write, |_, _| {});
    pump(&mut disk.queue, &pool, pieces(3), Piece::read, |piece, buffer| {
        assert!(bytes(&buffer, piece.len) == piece.contents(9), "{piece:?}");
    });
}

fn queue_of_4() {
    fill_queue(256, 4);
}
/// The least that QEMU has: one request at a time.
#[test_case]
const QUEUE_OF_4: On = On("blk-queue=4,formats", &queue_of_4);

fn queue_of_64() {
    fill_queue(256, 64);
}
/// The device's limit counts.
#[test_case]
const QUEUE_OF_64: On = On("blk-queue=64,formats", &queue_of_64);

fn queue_of_16_by_choice() {
    fill_queue(31, if rings() & RING_PACKED != 0 { 31 } else { 16 });
}
/// The driver's limit counts, rounded down to a power of two unless the ring is packed.
#[test_case]
const QUEUE_OF_16: On = On("blk-queue=1024,formats", &queue_of_16_by_choice);

fn queue_of_1024() {
    fill_queue(1024, 1024);
}
/// The most that QEMU has.
#[test_case]
const QUEUE_OF_1024: On = On("blk-queue=1024,formats", &queue_of_1024);

fn id_is_the_serial_number() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
    let mut id = || disk.identify(pool.take().expect("it came back"), Duration::from_secs(2));
    assert_eq!(id(), Ok(Ok(*b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0")));
    assert_eq!(id(), Ok(Ok(*b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0")));
}

/// The id is what QEMU's command line says.
#[test_case]
const SERIAL: On = On("blk,formats", &id_is_the_serial_number);

fn bad_requests_are_refused() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    let card = functions_for(DeviceType::NET)[0];
    let foreign = DmaWindows::new(&KERNEL, card.address().id()).expect("nobody drives it");
    let pool = DmaPool::new(&windows, 2, SLOT).expect("there is memory");
    let foreign = DmaPool::new(&foreign, 1, SLOT).expect("there is memory");
    let submitted = disk.queue.counters().submitted;
    use RequestError::*;
    for (sector, len, why) in [
        (SECTORS, 512, OutOfRange),
        (SECTORS - 1, 1024, OutOfRange),
        (u64::MAX, 512, OutOfRange),
        (u64::MAX / 512, SLOT, OutOfRange),
        (0, 0, Misaligned),
        (0, 511, Misaligned),
        (0, 513, Misaligned),
        (0, SLOT + 512, BufferTooShort),
        (0, usize::MAX, BufferTooShort),
    ] {
        for pool in [&pool, &foreign] {
            let buffer = pool.take().expect("it came back");
            let (error, request) = disk.queue.submit(Request::Read { sector, buffer, len }).expect_err("bad");
            assert_eq!(error, why, "{sector} {len}");
            let buffer = request.into_buffer().expect("it comes back");
            let (error, _) = disk.queue.submit(Request::Write { sector, buffer, len }).expect_err("bad");
            assert_eq!(error, why, "{sector} {len}");
        }
    }
    let last = Piece { sector: SECTORS - 1, len: 512 };
    let stranger = foreign.take().expect("it came back");
    assert_eq!(one(&mut disk.queue, last.read(stranger)).err(), Some(WrongDevice));
    assert_eq!((disk.queue.counters().submitted, disk.queue.in_flight()), (submitted, 0));
    let buffer =
        one(&mut disk.queue, last.read(pool.take().expect("it came back"))).expect("the last sector");
    assert_eq!(bytes(&buffer.expect("a read has one"), 512), [0; 512]);
}

/// Nothing of this reaches the device, and each buffer comes back.
#[test_case]
const REFUSED: On = On("blk,net,formats", &bad_requests_are_refused);

fn read_only_disk_is_not_written() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    assert_eq!((disk.control.features(), disk.queue.geometry().read_only), (features() | READ_ONLY, true));
    let pool = DmaPool::new(&windows, 2, SLOT).expect("there is memory");
    let piece = Piece { sector: 8, len: SLOT };
    let take = || pool.take().expect("it came back");
    assert_eq!(one(&mut disk.queue, piece.write(take(), &[1; SLOT])).err(), Some(RequestError::ReadOnly));
    let buffer = one(&mut disk.queue, piece.read(take())).expect("reading works").expect("a read has one");
    assert_eq!(bytes(&buffer, SLOT), numbered(8, SLOT));
}

/// The kernel's own check: QEMU would refuse too.
#[test_case]
const READ_ONLY_DISK: On = On("blk-ro,formats", &read_only_disk_is_not_written);

fn large_blocks_are_respected() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    assert_eq!((disk.queue.geometry().block_size, disk.queue.geometry().sectors), (4096, SECTORS));
    let pool = DmaPool::new(&windows, 1, 2 * SLOT).expect("there is memory");
    let mut read = |sector, len| {
        let buffer = pool.take().expect("it came back");
        let buffer = one(&mut disk.queue, Request::Read { sector, buffer, len })?.expect("a read has one");
        assert_eq!(bytes(&buffer, len), numbered(sector, len));
        Ok(())
    };
    for (sector, len) in [(0, 512), (1, 4096), (8, 4096 + 512), (4, 8192)] {
        assert_eq!(read(sector, len), Err(RequestError::Misaligned), "{sector} {len}");
    }
    for (sector, len) in [(0, 4096), (8, 8192), (SECTORS - 8, 4096)] {
        assert_eq!(read(sector, len), Ok(()), "{sector} {len}");
    }
}

/// The unit of requests is the block, that of addresses the sector.
#[test_case]
const LARGE_BLOCKS: On = On("blk-4k,formats", &large_blocks_are_respected);

fn host_sees_what_was_written() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, 129, SLOT).expect("there is memory");
    let inverted = |piece: Piece| -> Vec<u8> {
        numbered(piece.sector, piece.len).into_iter().map(|byte| !byte).collect()
    };
    pump(&mut disk.queue, &pool, all_slots(1), Piece::read, |piece, buffer| {
        assert!(bytes(&buffer, piece.len) == numbered(piece.sector, piece.len), "{piece:?}");
    });
    let write = |piece, buffer| Piece::write(piece, buffer, &inverted(piece));
    pump(&mut disk.queue, &pool, all_slots(2), write, |_, _| {});
    one(&mut disk.queue, Request::Flush).expect("flushing works");
}

/// The host numbered the disk, and finds every bit of it inverted afterwards.
#[test_case]
const HOST_SEES: On = On("blk-inverted,formats", &host_sees_what_was_written);

fn error_of_one_sector_is_reported() {
    let (mut disk, _interrupts, windows) = start_disk(256);
    let pool = DmaPool::new(&windows, 1, SLOT).expect("there is memory");
    for round in 0..3 {
        for (sector, len, result) in [
            (64, 512, Err(RequestError::Io)),
            (63, 512, Ok(())),
            (65, 512, Ok(())),
            (60, SLOT, Err(RequestError::Io)),
            (0, SLOT, Ok(())),
        ] {
            let request = Request::Read { sector, buffer: pool.take().expect("it came back"), len };
            let answer = one(&mut disk.queue, request);
            let answer = answer.map(|buffer| {
                assert_eq!(bytes(&buffer.expect("a read has one"), len), numbered(sector, len));
            });
            assert_eq!(answer, result, "{sector} {len}, round {round}");
        }
    }
    assert!(!disk.queue.is_broken());
    assert_eq!((disk.queue.counters().rejected, disk.queue.in_flight()), (0, 0));
}

/// A bad sector fails the requests that touch it, and no others.
#[test_case]
const BAD_SECTOR: On = On("blk-eio=64,formats", &error_of_one_sector_is_reported);
