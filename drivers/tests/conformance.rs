//! What the specification demands of a driver and no other test shows.

use ringfence_drivers::net::Phy;
use ringfence_drivers::virtio::{BufferList, QueueError};
use ringfence_memory::{Bytes, DeviceId, DmaPool, DmaWindows};
use ringfence_testkit::bench::{BUFFER_LEN, Bench, Shape};
use ringfence_testkit::{EVENT_IDX, ID, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET, card};
use smoltcp::phy::{ChecksumCapabilities, Device as _};

/// What the device may look at: all descriptors of a packed ring, else the available ring.
fn shown(bench: &Bench) -> Vec<u8> {
    let queue = bench.fake.model().queues[0];
    let packed = bench.fake.model().accepted & RING_PACKED != 0;
    let size = usize::from(queue.size);
    let (at, len) = if packed { (queue.descriptors, 16 * size) } else { (queue.driver, 4 + 2 * size) };
    let mut bytes = vec![0; len];
    bench.ring.memory(at, len).slice().read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// A descriptor that was made available is not touched again (2.8.13, PACKED-DESC-2). What is refused is
/// shown to the device in no part, not even behind a head that it does not see yet.
#[test]
fn a_refused_chain_shows_nothing() {
    let sets = (0..16_u32).map(|set| {
        let bits = [RING_PACKED, INDIRECT_DESC, IN_ORDER, EVENT_IDX];
        (0..4).filter(|at| set >> at & 1 != 0).map(|at| bits[at]).sum::<u64>()
    });
    let windows = DmaWindows::for_model(ringfence_testkit::platform(), DeviceId(ID.0 + 1)).unwrap();
    let foreign = DmaPool::new(&windows, 1, BUFFER_LEN).unwrap();
    for (features, fixed) in sets.flat_map(|features| [(features, false), (features, true)]) {
        let (segments, longest) = if fixed { (5, 6) } else { (3, 4) };
        let mut bench = Bench::with(Shape { features, size: 32, chains: 4, segments, longest, fixed });
        for round in 0..60_usize {
            // One is in flight, one is added but not told.
            bench.submit(1, round % 3).unwrap();
            bench.queue.kick();
            bench.submit(round % 2, 1).unwrap();
            let before = shown(&bench);
            for count in 1..=4 {
                for bad in 0..count {
                    let [mut buffers, _] = bench.item(count, 0).unwrap().into_buffers();
                    let ours = std::mem::replace(&mut buffers[bad], foreign.take().unwrap());
                    let item = BufferList::new(0, buffers, vec![], 0);
                    assert_eq!(bench.queue.submit(item).unwrap_err().0, QueueError::WrongDevice);
                    drop(ours);
                    let mut parts = vec![0..8; count];
                    parts[bad] = 8..BUFFER_LEN + 1;
                    let item = bench.item(count, 0).unwrap().with_segments(parts);
                    assert_eq!(bench.queue.submit(item).unwrap_err().0, QueueError::BadChain);
                    assert_eq!(shown(&bench), before, "segment {bad} of {count}, {features:#x}, {fixed}");
                }
            }
            let item = bench.item(5, 0).unwrap();
            assert_eq!(bench.queue.submit(item).unwrap_err().0, QueueError::BadChain);
            assert_eq!(shown(&bench), before, "too long, {features:#x}, {fixed}");
            bench.queue.kick();
            for _ in 0..2 {
                let chain = bench.ring.take().unwrap();
                bench.ring.complete(chain.head, 0);
                assert_eq!(bench.reap().unwrap().len(), 1);
            }
            bench.check();
        }
    }
}

/// With IN_ORDER the descriptors of a table are used in turn, from the first one on (2.7.9, SPLIT-DESC-2): so
/// they are again after a reset of the queue.
#[test]
fn descriptors_in_turn() {
    for size in [4, 8, 16] {
        let mut bench = Bench::new(IN_ORDER | RING_RESET, size, 3);
        for round in 0..5_usize {
            let mut next = 0;
            for number in 0..round * 7 {
                let count = 1 + (number + round) % 3;
                bench.submit(count, 0).unwrap();
                bench.queue.kick();
                let chain = bench.ring.take().unwrap();
                assert_eq!((chain.head, chain.segments.len()), (next, count), "round {round}, {number}");
                next = (next + count as u16) % size;
                bench.ring.complete(chain.head, 0);
                assert_eq!(bench.reap().unwrap().len(), 1);
            }
            bench.device.reset_queue(&mut bench.queue).unwrap();
            bench.ring = bench.fake.ring(0);
        }
    }
}

/// Without offloads nobody has looked at a packet's checksum, whatever its header says: the stack must
/// (5.1.6.4.1, NET-RX-5).
#[test]
fn checksums_are_verified() {
    let bench = card::bench(4);
    let ChecksumCapabilities { ipv4, udp, tcp, .. } = Phy::new(bench.net).capabilities().checksum;
    for checksum in [ipv4, udp, tcp] {
        assert!(checksum.rx() && checksum.tx());
    }
}
