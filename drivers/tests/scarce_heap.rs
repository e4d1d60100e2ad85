//! Queues are set up while the heap has no large block: that is an error, whichever of their tables it is
//! that does not fit.

use ringfence_drivers::virtio::{BufferList, Device, DeviceType, Error, QueueError, QueueOptions, features};
use ringfence_testkit::bench::no_controls;
use ringfence_testkit::heap::{LARGEST, Scarce};
use ringfence_testkit::{Fake, IN_ORDER, INDIRECT_DESC, RING_PACKED};

#[global_allocator]
static HEAP: Scarce = Scarce;

/// Whoever allocates and does not expect that to fail ends the process.
#[test]
fn a_queue_that_does_not_fit_is_refused() {
    const SIZE: u16 = 1 << 13;
    for set in
        [0, RING_PACKED, IN_ORDER, RING_PACKED | IN_ORDER].map(|set| [set, set | INDIRECT_DESC]).concat()
    {
        let (mut fits, mut refused) = (0, 0);
        for largest in (10..24).map(|bits| 1 << bits) {
            let fake = Fake::new(DeviceType(42), features::VERSION_1 | set, vec![], &[SIZE]);
            let windows = fake.windows();
            let offer = Device::begin(fake.transport(), DeviceType(42), &fake.grant(), windows).unwrap();
            let mut device = offer.negotiate(set).unwrap();
            // The longest need descriptors of no slot, or tables.
            let options = QueueOptions { size: SIZE, chains: SIZE, segments: 1, longest: 4 };
            LARGEST.set(largest);
            let queue = device.queue::<BufferList>(0, &options, 1, no_controls);
            LARGEST.set(usize::MAX);
            match queue.map(drop) {
                Ok(()) => fits += 1,
                Err(error) => {
                    assert_eq!(error, Error::Queue(QueueError::OutOfMemory), "{largest}, {set:#x}");
                    assert_eq!(fits, 0, "less was enough");
                    refused += 1;
                }
            }
            drop(device);
            assert_eq!(fake.platform.dma_in_use(), 0);
        }
        assert!(fits > 0 && refused > 2, "{set:#x}");
    }
}
