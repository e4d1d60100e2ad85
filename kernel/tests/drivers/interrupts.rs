//! Waiting for devices by interrupt, of each kind.

use core::future::poll_fn;
use core::task::Poll;

use embassy_time::{Duration, Timer, with_timeout};
use ringfence_drivers::block::Request;
use ringfence_drivers::net::RxFrame;
use ringfence_drivers::virtio::DeviceType;
use ringfence_kernel::interrupts::device::DeviceInterrupts;
use ringfence_kernel::testing::On;
use ringfence_kernel::{executor, interrupts};
use ringfence_memory::DmaPool;

use crate::support::{Card, functions_for, run, start_card, start_disk};

const ROUNDS: u64 = 100;

/// Sleeps until the device calls for its queue.
async fn called(interrupts: &mut DeviceInterrupts) {
    let wait = async { while !poll_fn(|context| interrupts.poll(context)).await.queue {} };
    with_timeout(Duration::from_secs(5), wait).await.expect("the device interrupts");
}

/// Reads one sector after the other of a slow disk, asleep until the interrupt. `kind` and `vector` are what
/// must have been set up; if `polled`, a timer serves instead.
fn disk_interrupts(kind: &'static str, vector: Option<u16>, polled: bool) -> ! {
    run(async move {
        let (mut disk, mut own, windows) = start_disk(256);
        assert_eq!((own.name(), own.vector(0)), (kind, vector));
        let stats = own.stats();
        let pool = DmaPool::new(&windows, 1, 512).expect("there is memory");
        let mut timer = DeviceInterrupts::Polled(Timer::after_millis(1));
        let halts = executor::halts();
        for sector in 0..ROUNDS {
            assert!(!disk.queue.enable_interrupts(), "nothing is in flight");
            let buffer = pool.take().expect("it came back");
            let ticket =
                disk.queue.submit(Request::Read { sector, buffer, len: 512 }).expect("there is room");
            disk.queue.kick();
            let mut answer = None;
            while answer.is_none() {
                called(if polled { &mut timer } else { &mut own }).await;
                let count = disk.queue.reap(|done| answer = Some(done)).expect("the ring is sound");
                assert!(count == 1 || polled, "an interrupt without a reason");
            }
            let answer = answer.expect("it was waited for");
            assert_eq!((answer.ticket, answer.result), (ticket, Ok(())));
        }
        let halts = executor::halts() - halts;
        assert!(halts >= ROUNDS / 2, "{halts} halts: somebody polls");
        assert!(polled || stats.count(0) == ROUNDS, "{} interrupts", stats.count(0));
        drop(disk);
        assert_eq!(interrupts::unexpected(), 0);
    })
}

fn disk_calls_by_msix() {
    disk_interrupts("MSI-X", Some(1), false)
}
/// A vector for the configuration, and one for the queue.
#[test_case]
const DISK_MSIX: On = On("blk-numbered=200,formats", &disk_calls_by_msix);

fn disk_calls_by_one_vector() {
    disk_interrupts("MSI-X", Some(0), false)
}
/// Both share the only vector.
#[test_case]
const DISK_ONE_VECTOR: On = On("blk-numbered=200,vectors=1", &disk_calls_by_one_vector);

fn disk_calls_by_line() {
    disk_interrupts("INTx", None, false)
}
/// Without MSI-X there is the line.
#[test_case]
const DISK_LINE: On = On("blk-numbered=200,intx", &disk_calls_by_line);

fn disk_calls_by_line_of_pc() {
    disk_interrupts("INTx", None, false)
}
/// And so on the other chipset.
#[test_case]
const DISK_LINE_PC: On = On("pc,blk-numbered=200,intx", &disk_calls_by_line_of_pc);

fn disk_is_polled() {
    disk_interrupts("MSI-X", Some(1), true)
}
/// Without any interrupt a timer serves.
#[test_case]
const DISK_POLLED: On = On("blk-numbered=200", &disk_is_polled);

fn send(card: &mut Card, frame: &[u8]) {
    let sent = card.pair.send(1, |room| room.write(frame).expect("it is short"));
    assert_eq!(sent, Ok(1), "the ring is empty");
    card.pair.kick();
}

/// Frames one at a time between the two cards, the receiver asleep until its interrupt.
fn card_interrupts(kind: &'static str, vectors: [Option<u16>; 2]) -> ! {
    run(async move {
        let functions = functions_for(DeviceType::NET);
        let (mut sender, mut sender_calls, _windows) = start_card(&functions[0]);
        let (mut receiver, mut calls, _more_windows) = start_card(&functions[1]);
        assert_eq!((calls.name(), [calls.vector(0), calls.vector(1)]), (kind, vectors));
        for round in 0..ROUNDS {
            let frame = [round as u8; 60];
            assert!(!receiver.pair.enable_interrupts(), "nothing is under way");
            send(&mut sender, &frame);
            called(&mut calls).await;
            let mut bytes = [0; 60];
            let read = |packet: &RxFrame<'_>| assert_eq!((packet.len(), packet.read(&mut bytes)), (60, 60));
            assert_eq!(receiver.pair.receive(1, read), Ok(1), "the interrupt has a reason");
            receiver.pair.disable_interrupts();
            assert_eq!(bytes, frame);
            receiver.pair.kick();
            // On a shared line, let it be heard that it was not the sender, so that the line opens again.
            poll_fn(|context| Poll::Ready(sender_calls.poll(context).is_ready())).await;
        }
        let stats = calls.stats();
        assert_eq!(stats.count(0), ROUNDS);
        assert_eq!(stats.count(1), 0, "nothing was sent from there");
        assert_eq!(interrupts::unexpected(), 0);
    })
}

fn card_calls_by_msix() {
    card_interrupts("MSI-X", [Some(1), Some(2)])
}
/// A vector for each queue.
#[test_case]
const CARD_MSIX: On = On("net-pair,formats", &card_calls_by_msix);

fn card_calls_by_two_vectors() {
    card_interrupts("MSI-X", [Some(1), Some(1)])
}
/// Both queues share the vector that the configuration leaves.
#[test_case]
const CARD_TWO_VECTORS: On = On("net-pair,vectors=2", &card_calls_by_two_vectors);

fn card_calls_by_line() {
    card_interrupts("INTx", [None, None])
}
/// Without MSI-X there is the line.
#[test_case]
const CARD_LINE: On = On("net-pair,intx", &card_calls_by_line);
