//! Bringing a device up and shutting it down, in order, with devices that refuse.

use std::collections::HashSet;

use ringfence_drivers::block::Block;
use ringfence_drivers::net::Net;
use ringfence_drivers::virtio::{
    BufferList, Controls, Device, DeviceType, Error, Offer, QueueError, QueueOptions, RESET_LIMIT, features,
};
use ringfence_memory::{DeviceId, DmaError, DmaPool, MmioError, Platform, PlatformError, ResetError};
use ringfence_testkit::bench::{FORMATS, no_controls};
use ringfence_testkit::{Event, Fake, FakeTransport, grant, grant_for, platform};

const KIND: DeviceType = DeviceType(42);

fn fake(offered: u64) -> Fake {
    Fake::new(KIND, offered, vec![0; 16], &[8, 8])
}

fn begin(fake: &Fake) -> Result<Offer<FakeTransport>, Error> {
    Device::begin(fake.transport(), KIND, &grant(), fake.windows())
}

#[test]
fn the_whole_sequence() {
    let fake = fake(features::VERSION_1 | features::ACCESS_PLATFORM | 1 << 28 | 1 << 34 | 0b101);
    let offer = begin(&fake).unwrap();
    assert_eq!(offer.offered(), fake.model().offered);
    let mut device = offer.negotiate(0b011).unwrap();
    assert_eq!(device.features(), features::VERSION_1 | features::ACCESS_PLATFORM | 1);
    assert_eq!(device.offered(), fake.model().offered);
    let options = QueueOptions { size: 8, chains: 8, segments: 1, longest: 1 };
    let ring = device.queue::<BufferList>(0, &options, 1, no_controls).unwrap();
    device.driver_ok().unwrap();
    assert!(device.check().is_ok());
    drop(device);
    drop(ring);
    let expected = [
        Event::Status(0),
        Event::Status(1),
        Event::Status(1 | 2),
        Event::Started,
        Event::Features(features::VERSION_1 | features::ACCESS_PLATFORM | 1),
        Event::Status(1 | 2 | 8),
        Event::QueueUp(0),
        Event::Status(1 | 2 | 8 | 4),
        Event::Status(0),
        Event::Stopped,
    ];
    assert_eq!(fake.model().events, expected);
}

#[test]
fn a_driver_that_gives_up_says_so() {
    let fake = fake(features::VERSION_1);
    drop(begin(&fake).unwrap());
    assert_eq!(fake.model().status, 128, "FAILED, after a reset");
}

/// What failed is reset before anything else is done with it (2.1.1).
#[test]
fn a_failed_device_is_reset_first() {
    let fake = fake(features::VERSION_1);
    for _ in 0..2 {
        fake.model().refused_status = 8;
        assert!(begin(&fake).unwrap().negotiate(0).is_err());
        assert_eq!(fake.model().events.last(), Some(&Event::Status(128)));
        fake.model().events.clear();
        fake.model().refused_status = 0;
        begin(&fake).unwrap().negotiate(0).unwrap().driver_ok().unwrap();
        assert_eq!(fake.model().events[..2], [Event::Status(0), Event::Status(1)]);
    }
}

#[test]
fn every_status_bit_is_read_back() {
    for bit in [1, 2, 8, 4] {
        let fake = fake(features::VERSION_1);
        fake.model().refused_status = bit;
        let result = begin(&fake).and_then(|offer| offer.negotiate(0)?.driver_ok()).map(drop);
        let expected = if bit == 8 { Error::FeaturesRefused } else { Error::StatusRefused(bit) };
        assert_eq!(result, Err(expected));
        assert_eq!(fake.model().status & 128, 128);
    }
}

#[test]
fn without_version_1_nothing_works() {
    let fake = fake(0b111);
    let result = begin(&fake).unwrap().negotiate(0b111);
    assert_eq!(result.map(drop), Err(Error::MissingFeature(32)));
    assert_eq!(fake.model().status, 128, "FAILED");
    assert!(!fake.model().events.iter().any(|event| matches!(event, Event::Features(_))));
}

#[test]
fn wrong_gone_stuck_and_failed_devices() {
    let fake = fake(features::VERSION_1);
    fake.model().kind = DeviceType::NET;
    assert_eq!(begin(&fake).map(drop), Err(Error::WrongType));
    fake.model().kind = KIND;
    fake.model().gone = true;
    assert_eq!(begin(&fake).map(drop), Err(Error::Gone));
    fake.model().gone = false;
    fake.model().stuck = true;
    let start = fake.platform.now();
    assert_eq!(begin(&fake).map(drop), Err(Error::ResetTimeout));
    assert!(fake.platform.now() - start < 2 * RESET_LIMIT, "the wait is bounded");
    fake.model().stuck = false;

    let mut device = begin(&fake).unwrap().negotiate(0).unwrap();
    device.driver_ok().unwrap();
    fake.model().status |= 64;
    assert_eq!(device.check(), Err(Error::NeedsReset));
    fake.model().status = 1;
    assert!(matches!(device.check(), Err(Error::StatusRefused(_))), "somebody else reset it");
    fake.model().gone = true;
    assert_eq!(device.check(), Err(Error::Gone));
}

/// A device that does not reset is waited for once, for as long as was promised, whoever drops it, and not
/// again by whoever drops what was shut down before.
#[test]
fn a_stuck_device_is_waited_for_once() {
    let disk = |fake: &Fake| Block::new(fake.transport(), &grant(), fake.windows()).unwrap();
    let card = |fake: &Fake| Net::new(fake.transport(), &grant(), fake.windows()).unwrap();
    type Drops = Box<dyn FnOnce()>;
    let mut cases: Vec<(Fake, Drops)> = Vec::new();
    let block = || Fake::new(DeviceType::BLOCK, features::VERSION_1, vec![1; 16], &[16]);
    let net = || Fake::new(DeviceType::NET, features::VERSION_1, vec![], &[16, 16]);
    let mut add = |fake: Fake, make: &dyn Fn(&Fake) -> Drops| {
        let drops = make(&fake);
        fake.model().stuck = true;
        cases.push((fake, drops));
    };
    add(fake(features::VERSION_1), &|fake| {
        let mut device = begin(fake).unwrap().negotiate(0).unwrap();
        device.driver_ok().unwrap();
        drops(device)
    });
    add(block(), &|fake| drops(disk(fake)));
    add(net(), &|fake| drops(card(fake)));
    add(block(), &|fake| {
        let mut block = disk(fake);
        Box::new(move || assert_eq!(block.control.shut_down().map(drop), Err(ResetError::Timeout)))
    });
    // One that did reset when it was shut down is not known to be stuck.
    add(block(), &|fake| {
        let mut block = disk(fake);
        block.control.shut_down().unwrap();
        fake.model().status = 1;
        drops(block)
    });
    for (number, (fake, drops)) in cases.into_iter().enumerate() {
        let start = fake.platform.now();
        drops();
        let spent = fake.platform.now() - start;
        let once = RESET_LIMIT..RESET_LIMIT + RESET_LIMIT / 2;
        assert!(once.contains(&spent), "case {number}: {spent:?}");
        let resets = |event: &&Event| **event == Event::Status(0);
        assert!(fake.model().events.iter().filter(resets).count() <= 3, "case {number}");
    }
}

/// A device that was never started has nothing to finish: who fails to start it, or gives up before, does not
/// wait until it has reset. What it was told of is free when it has, for the next one who asks.
#[test]
fn a_start_that_fails_is_not_waited_for() {
    let options = QueueOptions { size: 8, chains: 8, segments: 1, longest: 1 };
    let unused = |_: &Fake, offer: Offer<FakeTransport>| drop(offer);
    let chosen = |fake: &Fake, offer: Offer<FakeTransport>| {
        let device = offer.negotiate(0).unwrap();
        fake.model().stuck = true;
        drop(device);
    };
    let not_started = |fake: &Fake, offer: Offer<FakeTransport>| {
        let mut device = offer.negotiate(0).unwrap();
        let queue = device.queue::<BufferList>(0, &options, 1, no_controls).unwrap();
        fake.model().stuck = true;
        assert!(matches!(device.driver_ok().map(drop), Err(Error::StatusRefused(_))));
        drop(queue);
        drop(device);
        assert!(fake.platform.dma_in_use() > 0, "it was told, and nobody knows whether it has reset");
    };
    let disk = |_: &Fake, offer: Offer<FakeTransport>| {
        assert_eq!(Block::take(offer, &Default::default()).map(drop), Err(Error::FeaturesRefused));
    };
    type GiveUp<'a> = &'a dyn Fn(&Fake, Offer<FakeTransport>);
    let cases: [(bool, GiveUp<'_>); 4] =
        [(true, &unused), (false, &chosen), (false, &not_started), (true, &disk)];
    for (number, (stuck, give_up)) in (0..).zip(cases) {
        let (kind, grant) = (DeviceType::BLOCK, grant());
        let fake = Fake::new(kind, features::VERSION_1, vec![1; 16], &[16]);
        let start = fake.platform.now();
        let starting = Device::begin_reset(fake.transport(), kind, &grant, fake.windows());
        let offer = starting.map_err(drop).unwrap().poll().unwrap().unwrap();
        fake.model().stuck = stuck;
        give_up(&fake, offer);
        assert!(fake.platform.now() - start < RESET_LIMIT / 10, "case {number}");
        assert_eq!(fake.model().events.last(), Some(&Event::Status(128)), "FAILED");
        fake.model().stuck = false;
        drop(Device::begin(fake.transport(), kind, &grant, fake.windows()).unwrap());
        assert_eq!(fake.platform.dma_in_use(), 0, "case {number}");
    }
}

/// Descriptors of the ring, and how many are demanded.
#[test]
fn a_queue_that_is_too_small() {
    let demand = |wish: u16, least: u16| {
        let fake = fake(features::VERSION_1);
        let mut device = begin(&fake).unwrap().negotiate(0).unwrap();
        let options = QueueOptions { size: wish, chains: 8, segments: 1, longest: 1 };
        device.queue::<BufferList>(1, &options, least, no_controls).map(|queue| queue.size())
    };
    let refused = Err(Error::QueueUnavailable(1));
    assert_eq!((demand(8, 8), demand(8, 9), demand(9, 8)), (Ok(8), refused, Ok(8)));
    assert_eq!((demand(7, 4), demand(7, 5), demand(4, 5)), (Ok(4), refused, refused));
    assert_eq!((demand(1, 1), demand(1, 0), demand(0, 0)), (Ok(1), Ok(1), refused));
}

/// A chain has one segment at least, and no more than the ring has descriptors, whatever was wished for.
#[test]
fn segments_that_cannot_be() {
    for (size, segments, longest, slots, expected) in [
        (8, 0, 0, 8, 1),
        (8, 0, 1, 8, 1),
        (8, 1, 0, 8, 1),
        (8, 3, 0, 2, 3),
        (8, 9, 9, 1, 8),
        (1, 0, 9, 1, 1),
        (1, 9, 9, 1, 1),
    ] {
        // With a table, too, a chain is no longer than the ring (2.7.5.3.1).
        for tables in [0, features::INDIRECT_DESC] {
            let fake = fake(features::VERSION_1 | tables);
            let mut device = begin(&fake).unwrap().negotiate(tables).unwrap();
            let options = QueueOptions { size, chains: 8, segments, longest };
            let slots = if tables != 0 && expected > 1 { 8 } else { slots };
            let queue = device.queue::<BufferList>(0, &options, 1, |shape| {
                assert_eq!((shape.slots, shape.segments), (slots, expected), "{options:?}");
                Ok(None)
            });
            assert_eq!(queue.map(|queue| usize::from(queue.depth())), Ok(slots));
        }
    }
}

/// Where no chain is wanted none finds room.
#[test]
fn a_queue_of_no_chains() {
    for set in [0, features::RING_PACKED, features::IN_ORDER, features::INDIRECT_DESC] {
        let fake = fake(features::VERSION_1 | set);
        let mut device = begin(&fake).unwrap().negotiate(set).unwrap();
        let options = QueueOptions { size: 8, chains: 0, segments: 1, longest: 2 };
        let mut queue = device.queue::<BufferList>(0, &options, 1, no_controls).unwrap();
        assert_eq!((queue.depth(), queue.slots(), queue.next_slot()), (0, 0, None));
        let buffer = DmaPool::new(&fake.windows(), 1, 64).unwrap().take().unwrap();
        let refused = queue.submit(BufferList::new(1, vec![buffer], vec![], 0)).map_err(|(error, _)| error);
        assert_eq!((refused, queue.is_broken()), (Err(QueueError::Full), false), "{set:#x}");
    }
}

/// Each slot has a header and a status of its own, and room for both, or there is no queue.
#[test]
fn controls_that_do_not_fit() {
    let refused = Err(Error::Queue(QueueError::BadChain));
    let sets = [0, features::IN_ORDER, features::RING_PACKED, features::RING_PACKED | features::IN_ORDER];
    for set in sets.into_iter().flat_map(|set| [set, set | features::INDIRECT_DESC]) {
        for (count, longest, expected) in
            [(1, 3, refused), (3, 3, refused), (4, 3, Ok(4)), (9, 3, Ok(4)), (4, 2, Ok(4)), (4, 1, refused)]
        {
            let fake = Fake::new(KIND, features::VERSION_1 | set, vec![], &[16]);
            let mut device = begin(&fake).unwrap().negotiate(set).unwrap();
            let options = QueueOptions { size: 16, chains: 4, segments: longest, longest };
            let windows = fake.windows();
            let queue = device.queue::<BufferList>(0, &options, 1, |shape| {
                assert_eq!(shape.slots, 4);
                Controls::new(&windows, count).map(Some)
            });
            assert_eq!(queue.map(|queue| queue.depth()), expected, "{count} of {longest}, {set:#x}");
        }
    }
}

/// Who cannot wait for the first reset asks for it, and looks now and then.
#[test]
fn a_start_that_nobody_waits_for() {
    for (kind, queues) in [(DeviceType::BLOCK, 1), (DeviceType::NET, 2)] {
        for (format, resets) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
            let (offered, grant) = (features::VERSION_1 | format, grant());
            let fake = Fake::new(kind, offered, vec![1; 16], &[16; 2][..queues]);
            fake.model().stuck = true;
            let start = fake.platform.now();
            let mut starting =
                Device::begin_reset(fake.transport(), kind, &grant, fake.windows()).map_err(drop).unwrap();
            (0..3).for_each(|_| assert!(starting.poll().is_none()));
            assert!(!fake.model().events.contains(&Event::Started));
            if resets {
                fake.model().stuck = false;
                let offer = starting.poll().unwrap().unwrap();
                assert_eq!((offer.offered(), fake.model().status), (offered, 1 | 2));
                assert!(starting.poll().is_none(), "there is one offer");
                if kind == DeviceType::BLOCK {
                    Block::take(offer, &Default::default()).map(drop).unwrap();
                } else {
                    Net::take(offer, &Default::default()).map(drop).unwrap();
                }
                assert_eq!(fake.platform.dma_in_use(), 0);
            } else {
                drop(starting);
            }
            assert!(fake.platform.now() - start < RESET_LIMIT / 10);
        }
    }
}

/// Who may not have the device has the transport back, and nothing was done; nor is a driver's device taken
/// that came in between, nor one of another kind.
#[test]
fn a_start_that_cannot_be() {
    let fake = fake(features::VERSION_1);
    let (grant, other) = (grant(), grant_for(DeviceId(1)));
    let begin = |transport, kind, grant| Device::begin_reset(transport, kind, grant, fake.windows());
    let (error, transport) = begin(fake.transport(), DeviceType::NET, &grant).err().unwrap();
    assert_eq!(error, Error::WrongType);
    let without_it =
        || -> Result<(), Error> { Ok(begin(fake.transport(), DeviceType::NET, &grant).map(drop)?) };
    assert_eq!(without_it(), Err(Error::WrongType));
    let (error, transport) = begin(transport, KIND, &other).err().unwrap();
    assert_eq!(error, Error::Dma(DmaError::WrongDevice));
    fake.model().gone = true;
    let (error, transport) = begin(transport, KIND, &grant).err().unwrap();
    assert_eq!((error, fake.model().events.len()), (Error::Gone, 0));
    fake.model().gone = false;

    let mut starting = begin(transport, KIND, &grant).map_err(drop).unwrap();
    let theirs = self::begin(&fake).unwrap().negotiate(0).unwrap();
    let before = fake.model().events.len();
    assert_eq!(starting.poll().map(|result| result.map(drop)), Some(Err(Error::WrongState)));
    assert!(starting.poll().is_none());
    assert_eq!((theirs.check(), fake.model().events.len()), (Ok(()), before));
    drop(theirs);

    let offer = || self::begin(&fake).unwrap();
    assert_eq!(Block::take(offer(), &Default::default()).map(drop), Err(Error::WrongType));
    assert_eq!(Net::take(offer(), &Default::default()).map(drop), Err(Error::WrongType));
}

/// Who cannot wait asks, and looks now and then; a driver that was asked about is dropped at once.
#[test]
fn a_shut_down_that_nobody_waits_for() {
    for resets in [true, false] {
        let fake = Fake::new(DeviceType::BLOCK, features::VERSION_1, vec![1; 16], &[16]);
        let mut block = Block::new(fake.transport(), &grant(), fake.windows()).unwrap();
        let start = fake.platform.now();
        let control = &mut block.control;
        assert!(control.poll_shut_down().is_none(), "nobody asked");
        assert_eq!(fake.model().status & 4, 4);
        fake.model().stuck = true;
        assert_eq!(control.begin_shut_down(), Ok(()));
        (0..3).for_each(|_| assert!(control.poll_shut_down().is_none()));
        fake.model().stuck = !resets;
        let life = fake.windows().life();
        assert_eq!(control.poll_shut_down().is_some_and(|quiet| quiet.ends(&life)), resets);
        assert_eq!(fake.model().events.last() == Some(&Event::Stopped), resets);
        drop(block);
        assert_eq!(
            (fake.platform.dma_in_use() == 0, fake.model().events.last()),
            (resets, Some(&Event::Stopped))
        );
        assert!(fake.platform.now() - start < RESET_LIMIT / 10);
    }
}

fn drops<T: 'static>(what: T) -> Box<dyn FnOnce()> {
    Box::new(move || drop(what))
}

/// A person can tell one reason from another.
#[test]
fn every_error_has_a_text() {
    let errors = [
        Error::WrongType,
        Error::LegacyOnly,
        Error::MissingCapability(1),
        Error::Platform(PlatformError::Claimed),
        Error::Mmio(MmioError::OutOfBounds),
        Error::Dma(DmaError::WrongDevice),
        Error::ResetTimeout,
        Error::Gone,
        Error::NeedsReset,
        Error::StatusRefused(8),
        Error::MissingFeature(1),
        Error::FeaturesRefused,
        Error::ConfigUnstable,
        Error::BadConfig,
        Error::QueueUnavailable(0),
        Error::QueueRefused(0),
        Error::NoVector,
        Error::Queue(QueueError::Broken),
        Error::Timeout,
        Error::Busy,
        Error::WrongState,
    ];
    let texts: HashSet<_> = errors.iter().map(Error::to_string).collect();
    assert_eq!(texts.len(), errors.len());
    assert!(texts.iter().all(|text| text.len() > 5), "{texts:?}");
    assert_eq!(Error::MissingFeature(32).to_string(), "lacks feature 32");
}

#[test]
fn a_64_bit_field_is_never_torn() {
    let fake = fake(features::VERSION_1);
    let device = begin(&fake).unwrap().negotiate(0).unwrap();
    // Each look flips every bit: a torn read would mix the two halves.
    fake.model().config = vec![0x55; 16];
    fake.model().flips = 0xff;
    // It is read up to 16 times, in two looks each.
    for changes in 0..=30 {
        fake.model().flapping = changes;
        let value = device.config_u64(8).unwrap();
        assert!(
            [u64::from_le_bytes([0x55; 8]), u64::from_le_bytes([0xaa; 8])].contains(&value),
            "{value:#x}"
        );
    }
    fake.model().flapping = u32::MAX;
    assert_eq!(device.config_u64(8), Err(Error::ConfigUnstable));
    assert_eq!(device.config_u64(16), Err(Error::BadConfig), "beyond the end");
}

/// Memory of a device that does not reset is never given out again; after a reset that succeeds, it is.
#[test]
fn quarantine_without_proof() {
    let platform = platform();
    let config = 100_u64.to_le_bytes().to_vec();
    let fake = Fake::on(platform, DeviceType::BLOCK, features::VERSION_1, config, &[16]);
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 2, 512).unwrap();
    let mut block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
    let buffer = pool.take().unwrap();
    assert!(
        block.queue.submit(ringfence_drivers::block::Request::Read { sector: 0, buffer, len: 512 }).is_ok()
    );
    block.queue.kick();
    let mut ring = fake.ring(0);
    let chain = ring.take().unwrap();
    let in_use = platform.dma_in_use();

    fake.model().stuck = true;
    drop(block);
    assert_eq!(pool.available(), 1, "the buffer in flight was not given back");
    assert_eq!(platform.dma_in_use(), in_use, "nothing was freed");
    assert!(windows.usage().1 > 0, "rings and controls are in quarantine");
    // The device goes on as if nothing had happened, and hits only quarantined memory.
    ring.write(&chain.segments[1], &[0xee; 512]);
    ring.write(&chain.segments[2], &[0]);
    ring.complete(chain.head, 513);
    let other = pool.take().unwrap();
    let mut contents = [0; 512];
    other.read_slice(&mut contents, 0).unwrap();
    assert_eq!(contents, [0; 512]);

    // Once it does reset, the quarantine is free; the buffer that was in flight is lost to its pool, not its
    // memory.
    fake.model().stuck = false;
    let block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
    assert_eq!(windows.usage().1, 0);
    drop(block);
    drop(other);
    assert_eq!(pool.available(), 1);
    drop(pool);
    assert_eq!((windows.usage(), platform.dma_in_use()), ((0, 0), 0));
}

#[test]
fn a_driver_dropped_in_flight_gives_all_back_after_a_reset() {
    let platform = platform();
    let config = 100_u64.to_le_bytes().to_vec();
    let fake = Fake::on(platform, DeviceType::BLOCK, features::VERSION_1, config, &[16]);
    let windows = fake.windows();
    let pool = DmaPool::new(&windows, 4, 512).unwrap();
    let before = platform.dma_in_use();
    let mut block = Block::new(fake.transport(), &grant(), windows.clone()).unwrap();
    for sector in 0..4 {
        let buffer = pool.take().unwrap();
        assert!(
            block.queue.submit(ringfence_drivers::block::Request::Read { sector, buffer, len: 512 }).is_ok()
        );
    }
    block.queue.kick();
    assert_eq!(pool.available(), 0);
    drop(block);
    assert_eq!(pool.available(), 4);
    assert_eq!((platform.dma_in_use(), windows.usage().1), (before, 0));
    drop(pool);
    assert_eq!(platform.dma_in_use(), 0);
}
