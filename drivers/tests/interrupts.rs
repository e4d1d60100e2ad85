//! What is said to be for interrupt handlers takes no lock of `memory`: one that does panics here.

use ringfence_drivers::block::{Block, BlockQueue, Request};
use ringfence_drivers::virtio::DeviceType;
use ringfence_memory::DmaPool;
use ringfence_memory::host::interrupt;
use ringfence_testkit::card::{bench, frame};
use ringfence_testkit::disk::{ALL, Disk, SECTOR, SECTORS, config};
use ringfence_testkit::{Fake, grant};

#[test]
fn a_disks_queue_in_a_handler() {
    let fake = Fake::new(DeviceType::BLOCK, ALL, config(SECTORS, 1 << 20, 4, 512), &[64]);
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 4, SECTOR).unwrap();
    let mut block = Block::new(fake.transport(), &grant(), windows).unwrap();
    let mut disk = Disk::new(fake.ring(0));
    let submit = |queue: &mut BlockQueue<_>| {
        let buffer = pool.take().unwrap();
        queue.submit(Request::Read { sector: 1, buffer, len: SECTOR }).unwrap()
    };
    let lost = interrupt(|| {
        submit(&mut block.queue);
        block.queue.kick();
        submit(&mut block.queue)
    });
    disk.serve_all();
    interrupt(|| {
        assert!(block.queue.give_up(lost));
        block.queue.disable_interrupts();
        block.queue.kick_again();
        let mut done = 0;
        block.queue.reap(|one| done += usize::from(one.result.is_ok())).unwrap();
        assert_eq!(done, 1);
        let _ = block.queue.enable_interrupts();
        assert_eq!(
            (block.queue.in_flight(), block.queue.lost(), block.queue.geometry().sectors),
            (1, 1, SECTORS)
        );
        assert!(!block.queue.is_broken());
    });
    let reset = || interrupt(|| block.split().0.shut_down());
    let device = std::thread::scope(|scope| scope.spawn(reset).join().map(drop));
    assert!(device.is_err(), "and what takes one is noticed");
}

#[test]
fn a_cards_queues_in_a_handler() {
    let mut bench = bench(4);
    for round in 0..8 {
        assert!(bench.deliver(&frame(60, round)));
        interrupt(|| {
            assert!(bench.net.pair.has_received() && bench.net.pair.can_send());
            assert!(bench.send(&frame(60, round)));
            assert_eq!(bench.receive(), Some(frame(60, round)));
            bench.net.pair.disable_interrupts();
            bench.net.pair.kick();
            bench.net.pair.kick_again();
            let _ = bench.net.pair.enable_interrupts();
        });
        assert_eq!(bench.sent(), Some(frame(60, round)));
    }
}
