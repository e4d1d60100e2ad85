//! A million requests.

use alloc::vec::Vec;

use ringfence_device_side::loopback::{Echo, Loopback};
use ringfence_drivers::block::{Done, Request, SECTOR_SIZE};
use ringfence_drivers::net::{MAX_FRAME_LEN, Net, RxFrame, TxFrame};
use ringfence_kernel::platform::KERNEL;
use ringfence_kernel::testing::On;
use ringfence_kernel::time;
use ringfence_memory::{DmaPool, DmaWindows, Owner};

use crate::common::{assert_sound, count, counts, random};
use crate::{CARD, RamBlock, SECTORS, disk, start};

/// Sectors in the longest request.
const MOST: usize = 8;
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What the test knows of a disk, and what it has in flight there.
pub struct Exerciser {
    block: RamBlock,
    pool: DmaPool,
    /// How often each sector was written. What it holds follows from that.
    generations: Vec<u32>,
    /// Whether a request for the sector is in flight.
    busy: Vec<bool>,
    /// By ticket: first sector, number of sectors, whether it is a write, and the how-manieth request of its
    /// batch.
    flights: Vec<Option<(usize, usize, bool, usize)>>,
    state: u64,
    /// Completions that came before one of an earlier request.
    overtaken: usize,
}

impl Exerciser {
    pub fn new(block: RamBlock, windows: &DmaWindows) -> Self {
        let flights = alloc::vec![None; block.queue.tickets()];
        Self {
            pool: DmaPool::new(windows, block.queue.depth(), MOST * SECTOR_SIZE).expect("there is memory"),
            block,
            generations: alloc::vec![0; SECTORS],
            busy: alloc::vec![false; SECTORS],
            flights,
            state: 0x2545_f491_4f6c_dd1d,
            overtaken: 0,
        }
    }

    /// The bytes of a sector: zeros at first, then others for each sector and generation.
    fn contents(sector: usize, generation: u32, bytes: &mut [u8]) {
        let seed = (u64::from(generation) << 32 | sector as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let step = if generation == 0 { 0 } else { seed | 1 };
        for (index, word) in (1..).zip(bytes.as_chunks_mut::<8>().0) {
            *word = step.wrapping_mul(index).to_le_bytes();
        }
    }

    fn all_contents(&self, first: usize, bytes: &mut [u8]) {
        for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR_SIZE)) {
            Self::contents(sector, self.generations[sector], bytes);
        }
    }

    /// A piece of the disk that no request in flight touches.
    fn piece(&mut self) -> (usize, usize) {
        loop {
            let sectors = 1 + random(&mut self.state, MOST);
            let first = random(&mut self.state, SECTORS + 1 - sectors);
            let busy = &mut self.busy[first..first + sectors];
            if !busy.contains(&true) {
                busy.fill(true);
                return (first, sectors);
            }
        }
    }

    /// Submits `batch` random requests with one notification and checks all answers.
    fn exchange(&mut self, batch: usize) {
        let mut bytes = [0; MOST * SECTOR_SIZE];
        for number in 0..batch {
            let (first, sectors) = self.piece();
            let write = random(&mut self.state, 2) == 0;
            let (sector, len) = (first as u64, sectors * SECTOR_SIZE);
            let mut buffer = self.pool.take().expect("one for each request");
            let request = if write {
                self.generations[first..first + sectors].iter_mut().for_each(|generation| *generation += 1);
                self.all_contents(first, &mut bytes[..len]);
                buffer.write_slice(&bytes[..len], 0).expect("it fits");
                Request::Write { sector, buffer, len }
            } else {
                Request::Read { sector, buffer, len }
            };
            let ticket = self.block.queue.submit(request).expect("there is room");
            assert!(self.flights[ticket.index()].replace((first, sectors, write, number)).is_none());
        }
        self.block.queue.kick();
        let mut answers = Vec::with_capacity(batch);
        let reaped = self.block.queue.reap(|done| answers.push(done)).expect("the ring is sound");
        assert_eq!(
            (reaped, self.block.queue.in_flight()),
            (batch, 0),
            "the device is done when it was notified"
        );
        let (mut expected, mut highest) = ([0; MOST * SECTOR_SIZE], 0);
        for Done { ticket, result, buffer } in answers {
            let flight = self.flights[ticket.index()].take().expect("it was in flight");
            let (first, sectors, write, number) = flight;
            assert_eq!(result, Ok(()), "{flight:?}");
            self.busy[first..first + sectors].fill(false);
            self.overtaken += usize::from(number < highest);
            highest = highest.max(number);
            let buffer = buffer.expect("reads and writes have one");
            if !write {
                let len = sectors * SECTOR_SIZE;
                buffer.read_slice(&mut bytes[..len], 0).expect("it fits");
                self.all_contents(first, &mut expected[..len]);
                assert!(bytes[..len] == expected[..len], "{flight:?}");
            }
        }
    }

    /// How many requests were overtaken by later ones.
    pub fn overtaken(&self) -> usize {
        self.overtaken
    }

    pub fn block(&mut self) -> &mut RamBlock {
        &mut self.block
    }

    /// Exchanges `requests` in batches of up to as many as the queue holds, with an audit now and then.
    pub fn exercise(&mut self, requests: usize) {
        let (mut left, before) = (requests, self.block.queue.counters());
        while left > 0 {
            let batch = (1 + random(&mut self.state, self.block.queue.depth())).min(left);
            self.exchange(batch);
            if left / 50_000 != (left - batch) / 50_000 {
                assert_sound();
            }
            left -= batch;
        }
        let counters = self.block.queue.counters();
        assert_eq!(counters.completions - before.completions, requests as u64);
        assert_eq!((counters.rejected, self.pool.available()), (0, self.block.queue.depth()));
        assert_sound();
    }
}

/// A frame for experiments (EtherType 0x88b5) with `number` all over it.
fn frame(number: u64, frame: &mut [u8]) {
    frame[..12].copy_from_slice(&[MAC, MAC].concat());
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let seed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (index, bytes) in (1..).zip(frame[14..].chunks_mut(8)) {
        bytes.copy_from_slice(&seed.wrapping_mul(index).to_le_bytes()[..bytes.len()]);
    }
}

/// Sends `count` frames, in batches of up to as many as the queues hold, and receives each once, in order.
fn echo(card: &mut Net<Loopback<Echo>>, count: u64) {
    let (mut sent, mut received, mut state) = (0, 0, 0x2545_f491_4f6c_dd1d);
    let mut lengths = alloc::collections::VecDeque::new();
    let (mut bytes, mut expected) = ([0; 2048], [0; 2048]);
    while received < count {
        let batch = (1 + random(&mut state, 256) as u64).min(count - sent);
        let write = |room: &mut TxFrame<'_>| {
            let len = 14 + random(&mut state, MAX_FRAME_LEN - 13);
            // Most frames are short, as in most networks.
            let len = if sent % 4 == 0 { len } else { 14 + len % 114 };
            frame(sent, &mut bytes[..len]);
            room.write(&bytes[..len]).expect("it is short enough");
            lengths.push_back(len);
            sent += 1;
        };
        card.pair.send(batch as usize, write).expect("the ring is sound");
        card.pair.kick();
        let mut read = |packet: &RxFrame<'_>| {
            let len = lengths.pop_front().expect("no more frames come than were sent");
            assert_eq!((packet.len(), packet.read(&mut bytes)), (len, len), "frame {received}");
            frame(received, &mut expected[..len]);
            assert!(bytes[..len] == expected[..len], "frame {received} of {len} bytes was changed");
            received += 1;
            if received % 100_000 == 0 {
                assert_sound();
            }
        };
        while card.pair.receive(usize::MAX, &mut read).expect("the ring is sound") > 0 {}
    }
    assert!(lengths.is_empty());
    let [receive, transmit] = card.pair.counters();
    assert_eq!((receive.completions, transmit.submitted), (count, count));
    assert_eq!((receive.rejected, transmit.rejected), (0, 0));
    assert_sound();
}

fn million_requests_are_served() {
    let before = counts();
    let (device, windows) = disk();
    let mut disk = Exerciser::new(start(&device, &windows), &windows);
    assert_eq!((disk.block.queue.queue_size(), disk.block.queue.geometry().sectors), (256, SECTORS as u64));
    let began = time::now();
    disk.exercise(300_000);
    assert_eq!(disk.overtaken, 0, "the device serves in order");
    device.with_model(|model| model.disorder(1));
    disk.exercise(100_000);
    assert!(disk.overtaken > 10_000, "only {} overtaken", disk.overtaken);
    log::info!("400,000 disk requests in {} ms", (time::now() - began).as_millis());

    let card_windows = DmaWindows::for_model(&KERNEL, CARD).expect("nobody else has it");
    let wire = Loopback::new(Echo::new(MAC), card_windows.clone());
    let mut card = Net::new(wire.clone(), &wire.grant().expect("it is a model"), card_windows.clone())
        .expect("the card starts");
    assert_eq!(
        (card.control.mac(), card.control.link_up(), card.pair.queue_sizes()),
        (MAC, true, [256, 256])
    );
    let began = time::now();
    echo(&mut card, 600_000);
    log::info!("600,000 frames in {} ms", (time::now() - began).as_millis());

    drop((disk, card));
    assert_eq!((windows.usage(), card_windows.usage()), ((0, 0), (0, 0)));
    assert_eq!((count(Owner::Dma), count(Owner::Quarantined)), (0, before[Owner::Quarantined as usize]));
    assert_sound();
}

/// A million in all: disk requests in order and out of order, and frames.
#[test_case]
const MILLION: On = On("slow,cpu=max", &million_requests_are_served);
