//! Our driver's queue against our device's: through the windows of one device, which are all that the device
//! side sees of memory.

use std::collections::VecDeque;

use ringfence_device_side::chain::{ReadableChain, WritableChain};
use ringfence_device_side::queue::{Position, RingMemory};
use ringfence_drivers::virtio::{BufferList, Device, DeviceType, QueueOptions, features};
use ringfence_memory::{
    DmaPool,
    fuchsia::{DriverMem, DriverRange},
};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::{Fake, grant};

const LEN: usize = 32;

/// Every chain arrives as it was submitted and comes back as it was answered, in any order; the device side
/// is built anew for each look, and both indexes wrap around several times.
#[test]
fn requests_and_answers() {
    const SIZE: u16 = 8;
    let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[SIZE]);
    let windows = fake.windows();
    let offer = Device::begin(fake.transport(), DeviceType(42), &grant(), windows.clone()).unwrap();
    let mut device = offer.negotiate(0).unwrap();
    let options = QueueOptions { size: u16::MAX, chains: 2, segments: 4, longest: 4 };
    let mut driver = device.queue::<BufferList>(0, &options, 1, no_controls).unwrap();
    driver.start(&device.driver_ok().unwrap());
    let at = fake.model().queues[0];
    let pool = DmaPool::new(&windows, 16, LEN).unwrap();
    let (mut position, mut number, mut done) = (Position::SPLIT, 0_u64, 0_u64);
    let (mut sent, mut expected) = (VecDeque::new(), std::collections::HashMap::new());
    let notified = std::cell::Cell::new(0_u64);
    while done < 150_000 {
        // Up to four chains of one to three buffers.
        for chain in 0..1 + number % 4 {
            let kind = (number + chain) % 9;
            let (readable, writable) = ((kind / 3) as usize, (kind % 3) as usize);
            if readable + writable == 0 || driver.next_slot().is_none() {
                continue;
            }
            let mut buffers = (0..readable + writable).map(|_| pool.take().unwrap()).collect::<Vec<_>>();
            for (index, buffer) in buffers.iter_mut().take(readable).enumerate() {
                buffer.write_slice(&[number as u8 ^ index as u8; LEN], 0).unwrap();
            }
            sent.push_back((number, readable, writable));
            let to_write = buffers.split_off(readable);
            driver.submit(BufferList::new(number, buffers, to_write, 0)).unwrap();
            number += 1;
        }
        number += 1;
        driver.kick();
        let (readable, writable) = (windows.readable().unwrap(), windows.writable().unwrap());
        let areas = [at.descriptors, at.driver, at.device];
        let memory = RingMemory::find([&readable, &writable], false, SIZE, areas).unwrap();
        let queue = memory.queue(|| notified.set(notified.get() + 1)).unwrap();
        let queue = queue.resume(position).unwrap();
        let mut answers = VecDeque::new();
        while let Some(chain) = queue.next_chain().unwrap() {
            let (number, parts_read, parts_written) = sent.pop_front().expect("submitted");
            let mut input = ReadableChain::new(chain, &readable);
            assert_eq!(input.remaining().unwrap().descriptors, parts_read);
            let mut data = [0; 3 * LEN];
            assert_eq!(input.read(&mut data), Ok(parts_read * LEN));
            for (index, part) in data.chunks(LEN).take(parts_read).enumerate() {
                assert_eq!(part, [number as u8 ^ index as u8; LEN]);
            }
            let mut output = WritableChain::from_readable(input, &writable).unwrap();
            assert_eq!(output.remaining().unwrap().bytes, parts_written * LEN);
            let answer = vec![!number as u8; number as usize % 80];
            let written = output.write(&answer).unwrap();
            assert_eq!(written, answer.len().min(parts_written * LEN));
            expected.insert(number, (written, !number as u8));
            // Some go back before those that were taken before them.
            if number % 3 == 0 { answers.push_front(output) } else { answers.push_back(output) }
        }
        answers.into_iter().for_each(drop);
        position = queue.position();
        drop(queue);
        assert!(sent.is_empty(), "all were found");
        done += driver
            .reap(|completion, _| {
                let item = completion.buffers;
                let (written, byte) = expected.remove(&item.name()).expect("answered once");
                assert_eq!(completion.written, Some(written as u32));
                let mut data = Vec::new();
                for buffer in item.buffers()[1] {
                    let mut part = [0; LEN];
                    buffer.read_slice(&mut part, 0).unwrap();
                    data.extend(part);
                }
                assert!(data[..written].iter().all(|&seen| seen == byte));
            })
            .unwrap() as u64;
    }
    assert!(expected.is_empty() && driver.in_flight() == 0);
    assert_eq!((driver.counters().rejected, notified.get()), (0, done));
    assert_eq!(position, Position::at(done as u16), "wrapped around");
}

/// A buffer whose region is gone is out of the windows: the device side cannot reach it any more.
#[test]
fn what_is_not_lent_is_not_found() {
    let fake = Fake::new(DeviceType(42), features::VERSION_1, vec![], &[8]);
    let windows = fake.windows();
    let region = windows.allocate(4096).unwrap();
    let address = windows.publish(region.address(0).unwrap()).unwrap().0;
    let driver = DriverRange::try_from((address, 16)).unwrap();
    let beyond = DriverRange::try_from((address + 4090, 16)).unwrap();
    let (before, after) = (windows.readable().unwrap(), {
        drop(region);
        windows.readable().unwrap()
    });
    assert_eq!(before.translate(driver.clone()).map(|range| range.len()), Some(16));
    assert!(before.translate(beyond).is_none());
    assert!(after.translate(driver).is_none());
}
