//! The entropy driver on a device that gives much, little and nothing, and that lies.

use std::time::Duration;

use rand_core::TryRng;
use ringfence_drivers::rng::{MOST, Rng};
use ringfence_drivers::virtio::{DeviceType, Error, QueueError, features};
use ringfence_testkit::card::{FORMATS, frame as noise};
use ringfence_testkit::{DeviceRing, EVENT_IDX, Event, Fake, FakeTransport, grant};

struct Bench {
    fake: Fake,
    rng: Rng<FakeTransport>,
    ring: DeviceRing,
}

fn bench(format: u64) -> Bench {
    let fake = Fake::new(DeviceType::ENTROPY, features::VERSION_1 | 1 | format, vec![], &[8]);
    let rng = Rng::new(fake.transport(), &grant(), fake.windows()).unwrap();
    let ring = fake.ring(0);
    Bench { fake, rng, ring }
}

/// The device writes `bytes` to the buffer that it has, and says `len`.
fn answer(ring: &mut DeviceRing, bytes: &[u8], len: u32) {
    let chain = ring.take().expect("it was asked");
    assert_eq!((chain.segments.len(), chain.segments[0].writable), (1, true), "only to be written (5.4.6)");
    assert_eq!(chain.segments[0].len as usize, MOST);
    ring.write(&chain.segments[0], bytes);
    ring.complete(chain.head, len);
}

impl Bench {
    fn poll(&mut self) -> Vec<u8> {
        let mut bytes = [0xee; MOST];
        let count = self.rng.poll(&mut bytes).unwrap();
        assert!(bytes[count..].iter().all(|&byte| byte == 0xee), "more than it says");
        bytes[..count].to_vec()
    }
}

#[test]
fn what_the_device_gives() {
    for format in FORMATS {
        let mut bench = bench(format);
        assert_eq!(bench.rng.features(), features::VERSION_1 | format, "bits of no feature are not accepted");
        assert_eq!((bench.fake.kicks(0), bench.ring.take().is_some()), (0, false), "nobody has asked");
        assert!(!bench.ring.interrupts_wanted());
        for len in 1..=MOST {
            bench.rng.request().unwrap();
            bench.rng.request().unwrap();
            assert_eq!(bench.poll(), []);
            let bytes = noise(len, len as u8);
            answer(&mut bench.ring, &bytes, len as u32);
            assert!(bench.ring.take().is_none(), "asked twice");
            assert_eq!(bench.poll(), bytes);
            assert_eq!(bench.poll(), []);
        }
        let counters = bench.rng.counters();
        assert_eq!((counters.completions, counters.rejected), (MOST as u64, 0));
    }
}

/// What does not fit is lost: no byte comes late.
#[test]
fn less_than_the_device_gives() {
    let mut bench = bench(0);
    for seed in [3, 4] {
        bench.rng.request().unwrap();
        answer(&mut bench.ring, &noise(MOST, seed), MOST as u32);
        let mut few = [0; 5];
        assert_eq!((bench.rng.poll(&mut few), &few[..]), (Ok(5), &noise(5, seed)[..]));
    }
}

#[test]
fn filled_from_short_answers() {
    for format in FORMATS {
        let mut bench = bench(format);
        let (mut ring, mut turn) = (bench.fake.ring(0), 0);
        bench.fake.model().on_kick = Some(Box::new(move || {
            turn += 1;
            answer(&mut ring, &[turn; 7], u32::from(turn % 7 + 1));
            if format == EVENT_IDX {
                // Of the next one, too.
                ring.put_avail_event(turn.into());
            }
        }));
        let mut bytes = [0; 30];
        assert_eq!(bench.rng.fill(&mut bytes, Duration::from_secs(10)), Ok(()));
        let expected: Vec<u8> =
            (1..).flat_map(|turn: u8| vec![turn; (turn % 7 + 1).into()]).take(30).collect();
        assert_eq!(bytes, *expected);
        assert_eq!(bench.rng.fill(&mut [], Duration::ZERO), Ok(()));
    }
}

/// A length that cannot be (5.4.6.2, 2.7.8.2) gives nothing, and the device is asked again.
#[test]
fn lengths_that_cannot_be() {
    for len in [0, MOST as u32 + 1, u32::MAX] {
        let mut bench = bench(0);
        for round in 1..4 {
            bench.rng.request().unwrap();
            answer(&mut bench.ring, &noise(MOST, 5), len);
            assert_eq!(bench.poll(), [], "{len}");
            assert_eq!(bench.rng.counters().rejected, round, "{len}");
        }
        bench.rng.request().unwrap();
        answer(&mut bench.ring, &noise(9, 6), 9);
        assert_eq!(bench.poll(), noise(9, 6));
    }
}

/// A device that says it wrote, and did not, has nothing given twice.
#[test]
fn no_byte_twice() {
    let mut bench = bench(0);
    for (written, expected) in [(noise(MOST, 7), noise(MOST, 7)), (vec![], vec![0; MOST])] {
        bench.rng.request().unwrap();
        answer(&mut bench.ring, &written, MOST as u32);
        assert_eq!(bench.poll(), expected);
    }
}

#[test]
fn a_silent_device() {
    let mut bench = bench(0);
    let mut bytes = [0; 4];
    assert_eq!(bench.rng.fill(&mut bytes, Duration::from_millis(5)), Err(Error::Timeout));
    // An answer that comes late is good the next time.
    answer(&mut bench.ring, &[8; 4], 4);
    assert_eq!((bench.rng.fill(&mut bytes, Duration::ZERO), bytes), (Ok(()), [8; 4]));
    bench.fake.model().gone = true;
    assert_eq!(bench.rng.fill(&mut bytes, Duration::from_millis(5)), Err(Error::Gone));
}

#[test]
fn a_broken_ring() {
    let mut bench = bench(0);
    bench.rng.request().unwrap();
    bench.ring.lie_used(7);
    bench.ring.publish();
    assert_eq!(bench.rng.poll(&mut [0; 4]), Err(Error::Queue(QueueError::Broken)));
    assert_eq!(bench.rng.fill(&mut [0; 4], Duration::from_secs(10)), Err(Error::Queue(QueueError::Broken)));
}

#[test]
fn it_ends_cleanly() {
    let Bench { fake, mut rng, ring: _ } = bench(0);
    rng.request().unwrap();
    drop(rng);
    assert_eq!((fake.windows().usage(), fake.model().status), ((0, 0), 0));
    assert_eq!(fake.model().events.last(), Some(&Event::Stopped));
    let other = Fake::new(DeviceType::BLOCK, features::VERSION_1, vec![], &[8]);
    let result = Rng::new(other.transport(), &grant(), other.windows());
    assert_eq!(result.err(), Some(Error::WrongType));
}

#[test]
fn numbers_of_rand_core() {
    let mut bench = bench(0);
    let mut ring = bench.fake.ring(0);
    bench.fake.model().on_kick = Some(Box::new(move || answer(&mut ring, &noise(MOST, 1), MOST as u32)));
    let bytes = noise(8, 1);
    assert_eq!(bench.rng.try_next_u32(), Ok(u32::from_le_bytes(bytes[..4].try_into().unwrap())));
    assert_eq!(bench.rng.try_next_u64(), Ok(u64::from_le_bytes(bytes[..].try_into().unwrap())));
    let mut three = [0; 3];
    assert_eq!((bench.rng.try_fill_bytes(&mut three), &three[..]), (Ok(()), &bytes[..3]));
}
