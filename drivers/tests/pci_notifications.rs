//! Notifications over virtio-pci that say how far the ring is.

use ringfence_drivers::virtio::{BufferList, Device, DeviceType, Error, QueueOptions, features};
use ringfence_memory::{Bytes, DmaPool, MmioError};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::config::virtio_capability;
use ringfence_testkit::pci::*;
use ringfence_testkit::{DeviceRing, ID, RING_PACKED, grant};

#[test]
fn notifications_with_data() {
    const DATA: u64 = features::NOTIFICATION_DATA;
    let doorbell = NOTIFY + 5 * 4;
    // What is written for queue 3 in a ring of 4 after 1 descriptor, after 3 more, and after 5 more.
    let cases = [
        (0, 0, [0xffff_0003; 3]),
        (DATA, 0, [0xffff_0003; 3]),
        (DATA, DATA, [0x0001_0003, 0x0004_0003, 0x0009_0003]),
        (DATA | RING_PACKED, DATA | RING_PACKED, [0x8001_0003, 0x0000_0003, 0x8001_0003]),
        (RING_PACKED, RING_PACKED, [0xffff_0003; 3]),
    ];
    for (offered, wanted, expected) in cases {
        let card = card_with(offered);
        card.put16(COMMON + 0x12, 4);
        card.put16(QUEUE_SIZE, 4);
        let windows = card.windows();
        let offer =
            Device::begin(card.transport().unwrap(), DeviceType::BLOCK, &grant(), windows.clone()).unwrap();
        let mut device = offer.negotiate(wanted).unwrap();
        let options = QueueOptions { size: 4, chains: 4, segments: 1, longest: 1 };
        let mut queue = device.queue::<BufferList>(3, &options, 1, no_controls).unwrap();
        queue.start(&device.driver_ok().unwrap());
        let mut ring = {
            let addresses = QUEUE_ADDRESSES.map(|offset| card.get64(offset));
            DeviceRing::new(card.platform, ID, 4, addresses, wanted)
        };
        let pool = DmaPool::new(&windows, 8, 64).unwrap();
        for (rounds, expected) in [1, 3, 5].into_iter().zip(expected) {
            for _ in 0..rounds {
                card.registers.slice().subslice(NOTIFY, 0x1000).unwrap().fill(0xff).unwrap();
                let writable = vec![pool.take().unwrap()];
                queue.submit(BufferList::new(0, vec![], writable, 0)).unwrap();
                assert_eq!(
                    card.registers.slice().read_obj::<u32>(doorbell),
                    Ok(u32::MAX),
                    "not before the kick"
                );
                queue.kick();
                let chain = ring.take().unwrap();
                ring.complete(chain.head, 0);
                assert_eq!(queue.reap(|completion, _| drop(completion)), Ok(1));
            }
            assert_eq!(card.registers.slice().read_obj::<u32>(doorbell), Ok(expected), "{wanted:#x}");
            let mut around = [0; 0x1000];
            card.registers.slice().read_slice(&mut around, NOTIFY).unwrap();
            around[5 * 4..][..4].fill(0xff);
            assert!(around.iter().all(|&byte| byte == 0xff), "nothing else was written");
        }
    }
}

/// A doorbell of 32 bits needs room and alignment (4.1.4.4).
#[test]
fn notifications_with_data_that_do_not_fit() {
    let data = features::NOTIFICATION_DATA;
    for (multiplier, place, length, plain, with_data) in [
        (4, 5, 24, Ok(()), Ok(())),
        (4, 5, 22, Ok(()), Err(MmioError::OutOfBounds)),
        (2, 5, 0x100, Ok(()), Err(MmioError::Misaligned)),
        (2, 6, 0x100, Ok(()), Ok(())),
        (4, 5, 21, Err(MmioError::OutOfBounds), Err(MmioError::OutOfBounds)),
    ] {
        for (offered, expected) in [(0, plain), (data, with_data)] {
            let mut list = qemu_capabilities();
            list[2] = virtio_capability(2, 4, NOTIFY as u32, length, Some(multiplier));
            let card = card(&list);
            card.put32(COMMON + 0x04, 1 | (offered >> 32) as u32);
            card.put32(DEVICE + 20, 512);
            card.put16(COMMON + 0x1e, place);
            let result = card.block().map(drop);
            assert_eq!(
                result,
                expected.map_err(Error::Mmio),
                "{place} * {multiplier} in {length}, {offered:#x}"
            );
        }
    }
}
