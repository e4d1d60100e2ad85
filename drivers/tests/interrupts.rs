//! What is said to be for interrupt handlers takes no lock of `memory`: one that does panics here.

use ringfence_drivers::block::{Block, Request};
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
    let submit = |block: &mut Block<_>| {
        let buffer = pool.take().unwrap();
        block.submit(Request::Read { sector: 1, buffer, len: SECTOR }).unwrap()
    };
    let lost = interrupt(|| {
        submit(&mut block);
        block.kick();
        submit(&mut block)
    });
    disk.serve_all();
    interrupt(|| {
        assert!(block.give_up(lost));
        block.disable_interrupts();
        block.kick_again();
        let mut done = 0;
        block.reap(|one| done += usize::from(one.result.is_ok())).unwrap();
        assert_eq!(done, 1);
        let _ = block.enable_interrupts();
        assert_eq!((block.in_flight(), block.lost(), block.geometry().sectors), (1, 1, SECTORS));
        assert!(!block.is_broken());
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
            assert!(bench.net.has_received() && bench.net.can_send());
            assert!(bench.send(&frame(60, round)));
            assert_eq!(bench.receive(), Some(frame(60, round)));
            bench.net.disable_interrupts();
            bench.net.kick();
            bench.net.kick_again();
            let _ = bench.net.enable_interrupts();
        });
        assert_eq!(bench.sent(), Some(frame(60, round)));
    }
}
