//! Our fake driver before their consumer.

use std::collections::VecDeque;

use hyperlight_common::virtq::{BufferChain, RingConsumer};
use ringfence_memory::VolatileError;

use crate::common::noise;
use crate::{Memory, Shared, Step, layout, polled};
use ringfence_testkit::fake_queue::{Arena, ChainBuilder, FakeQueue};

impl Shared for &Arena {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), VolatileError> {
        to.copy_from_slice(&Arena::read(self, address, to.len()));
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), VolatileError> {
        Arena::write(self, address, from);
        Ok(())
    }

    fn load(&self, address: u64) -> Result<u16, VolatileError> {
        Ok(self.get16(address))
    }

    fn store(&self, address: u64, value: u16) -> Result<(), VolatileError> {
        self.put16(address, value);
        Ok(())
    }
}

/// What their consumer finds in `chain`.
fn found(arena: &Arena, chain: &BufferChain) -> Vec<u8> {
    let parts = chain.readables().iter();
    parts.flat_map(|part| Arena::read(arena, part.addr, part.len as usize)).collect()
}

/// Runs `steps` on a ring of `size` descriptors.
pub fn before_a_consumer(size: u16, steps: Vec<Step>) {
    let arena = Arena::new(1 << 20);
    let mut fake = FakeQueue::new(&arena, true, size, 1 << 15);
    let layout = layout(fake.desc, size);
    assert_eq!((layout.drv_evt_addr(), layout.dev_evt_addr()), (fake.driver, fake.device));
    let mut theirs = RingConsumer::new(layout, Memory(&arena));
    let (mut submitted, mut held, mut returned) = (VecDeque::new(), Vec::new(), VecDeque::new());
    let mut seed = 0;
    let finish = (0..2 * usize::from(size)).map(|_| Step::Take);
    let finish = finish.chain((0..size).map(|_| Step::Return(0, 7)));
    for step in steps.into_iter().chain(finish).chain([Step::Reap]) {
        match step {
            Step::Submit(readable, writable) => {
                let mut chain = ChainBuilder::new(&arena);
                let mut bytes = Vec::new();
                for len in readable {
                    seed += 1;
                    bytes.extend(noise(seed, len));
                    chain = chain.readable(&noise(seed, len));
                }
                let room: usize = writable.iter().sum();
                chain = writable.into_iter().fold(chain, ChainBuilder::writable);
                if let Some(id) = fake.publish(chain.build()) {
                    submitted.push_back((id, bytes, room));
                }
            }
            Step::Take => match polled(theirs.poll_available()) {
                Some((id, chain)) => {
                    let (expected, bytes, room) = submitted.pop_front().expect("a chain out of nothing");
                    assert_eq!(id, expected);
                    assert!(found(&arena, &chain) == bytes);
                    let writable = chain.writables().iter().map(|part| part.len as usize);
                    assert_eq!(writable.sum::<usize>(), room);
                    held.push((id, chain, room));
                }
                None => assert_eq!(submitted.len(), 0),
            },
            Step::Return(which, part) if !held.is_empty() => {
                let (id, chain, room): (u16, BufferChain, usize) = held.swap_remove(which % held.len());
                let data = noise(id.into(), part % (room + 1));
                let mut rest = &data[..];
                for part in chain.writables() {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    Arena::write(&arena, part.addr, now);
                    rest = later;
                }
                let slot = fake.desc + 16 * u64::from(theirs.used_cursor().head());
                theirs.submit_used(id, data.len() as u32).unwrap();
                if !data.is_empty() {
                    // They leave out what our fake driver insists on (2.8.7).
                    arena.put16(slot + 14, arena.get16(slot + 14) | ringfence_testkit::fake_queue::WRITE);
                }
                returned.push_back((id, data));
            }
            Step::Reap => {
                while let Some(used) = fake.next_used() {
                    let (id, data) = returned.pop_front().expect("used out of nothing");
                    assert_eq!((used.id, used.written as usize), (id, data.len()));
                    assert!(used.chain.writable(&arena)[..data.len()] == data);
                }
                assert_eq!(returned.len(), 0);
            }
            Step::Return(..) | Step::Interrupts(_) | Step::Notifications(_) => {}
        }
    }
    assert_eq!((submitted.len(), held.len(), fake.in_flight()), (0, 0, 0));
    assert_eq!((fake.free(), theirs.num_inflight()), (usize::from(size), 0));
}
