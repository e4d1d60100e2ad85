//! What a card may say of a frame, and what is never shown.

use ringfence_drivers::virtio::QueueError;
use ringfence_testkit::card::{ALL, FORMATS, HEADER, bench, bench_with, config, deliver, frame};

/// NET-RX-1, 5.1.6.4.1: flags that nobody knows are ignored; what needs an offload that was not accepted is
/// not shown.
#[test]
fn headers_that_ask_for_offloads() {
    for format in FORMATS {
        let mut bench = bench_with(ALL | format, config(1, 1400), 4);
        let mut rejected = 0;
        for byte in 0..=255 {
            for (place, good) in [(0, byte & 1 == 0), (1, byte == 0), (2, true), (11, true)] {
                let mut header = [0; HEADER];
                header[place] = byte;
                assert!(deliver(&mut bench.rx, header, &frame(60, byte)));
                rejected += u64::from(!good);
                let expected = good.then(|| frame(60, byte));
                assert_eq!(bench.receive(), expected, "byte {place} is {byte:#x}, {format:#x}");
                bench.net.pair.kick();
                assert_eq!((bench.net.pair.counters()[0].rejected, bench.rx.pending()), (rejected, 4));
            }
        }
    }
}

#[test]
fn lengths_that_cannot_be() {
    let mut bench = bench(16);
    for len in [0, 1, 12, 25, 1531, 2044, 2045, 65536, u32::MAX] {
        let chain = bench.rx.take().unwrap();
        bench.rx.complete(chain.head, len);
    }
    assert!(bench.deliver(&frame(60, 7)));
    assert_eq!(bench.net.pair.receive(3, |_| panic!("it cannot be")), Ok(0), "they count as three");
    assert_eq!(bench.net.pair.counters()[0].rejected, 3);
    assert_eq!(bench.receive_up_to(9), [frame(60, 7)], "the next good one is found in the same call");
    assert_eq!(bench.net.pair.counters()[0].rejected, 9);
    bench.net.pair.kick();
    assert_eq!(bench.rx.pending(), 16, "the buffers are in use again");
    // The longest that there is: with a VLAN tag.
    let longest = frame(1518, 3);
    assert!(bench.deliver(&longest));
    assert_eq!(bench.receive(), Some(longest));
}

/// Whoever unwinds while a frame is read leaves nothing behind that the device could name again.
#[test]
fn a_reader_that_panics_breaks_the_ring() {
    let mut bench = bench(8);
    assert!(bench.deliver(&frame(60, 1)));
    let read = std::panic::AssertUnwindSafe(|| bench.net.pair.receive(1, |_| panic!("the reader")));
    assert!(std::panic::catch_unwind(read).is_err());
    assert!(bench.net.pair.is_broken());
    assert_eq!(bench.net.pair.receive(1, |_| panic!("nothing is shown")), Err(QueueError::Broken));
}

#[test]
fn a_broken_ring_ends_it() {
    let mut bench = bench(8);
    bench.rx.complete(77, 60);
    assert_eq!(bench.net.pair.receive(1, |_| panic!("nothing came")), Err(QueueError::Broken));
    assert!(bench.net.pair.is_broken());
    assert!(bench.net.pair.enable_interrupts(), "nobody may sleep on it");
    let mut bench = self::bench(8);
    bench.send(&frame(60, 0));
    bench.net.pair.kick();
    bench.tx.lie(5);
    let sent = bench.net.pair.send(8, |room| room.write(&frame(60, 0)).unwrap());
    assert_eq!(sent, Err(QueueError::Broken));
    assert!(bench.net.pair.is_broken());
    let platform = bench.fake.platform;
    drop(bench.net);
    assert_eq!(platform.dma_in_use(), 0, "a reset frees all");
}
