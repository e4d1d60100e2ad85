//! How much memory for its device a driver takes: what the README promises, for both formats of rings.

use ringfence_drivers::block::{self, Block};
use ringfence_drivers::net::{self, Net};
use ringfence_drivers::virtio::{DeviceType, features};
use ringfence_testkit::Fake;
use ringfence_testkit::card::{self, FORMATS};
use ringfence_testkit::disk::{ALL, SECTORS, config};

const PAGE: usize = 4096;

/// Headers and statuses, and the rings. The buffers of requests are the caller's.
#[test]
fn a_disk_of_depth_32_takes_4_pages() {
    for format in FORMATS {
        for more in [0, features::INDIRECT_DESC] {
            let offered = ALL | format | more;
            let fake = Fake::new(DeviceType::BLOCK, offered, config(SECTORS, 1 << 20, 4, 512), &[128]);
            let options = block::Options { depth: 32, ..block::Options::default() };
            let disk =
                Block::with_options(fake.transport(), &fake.grant(), fake.windows(), &options).unwrap();
            assert_eq!(disk.queue.depth(), 32);
            let pages = fake.platform.dma_in_use() / PAGE;
            assert!(pages <= 4, "{pages} pages, {offered:#x}");
        }
    }
}

/// With the buffers of both directions: 8 pages each.
#[test]
fn a_card_of_queue_size_16_takes_20_pages() {
    for format in FORMATS {
        let offered = card::ALL | format;
        let fake = Fake::new(DeviceType::NET, offered, card::config(1, 1500), &[256, 256]);
        let options = net::Options { queue_size: 16, ..net::Options::default() };
        let net = Net::with_options(fake.transport(), &fake.grant(), fake.windows(), &options).unwrap();
        assert_eq!(net.pair.queue_sizes(), [16, 16]);
        let pages = fake.platform.dma_in_use() / PAGE;
        assert!(pages <= 20, "{pages} pages, {offered:#x}");
    }
}
