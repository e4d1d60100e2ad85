//! Which features are accepted, and what they are called.

use ringfence_drivers::block::features as block;
use ringfence_drivers::net::features as net;
use ringfence_drivers::virtio::features::{self, names, select};

/// All sets of these bits.
fn sets(bits: &[u64]) -> impl Iterator<Item = u64> {
    let of = |set: u32| {
        bits.iter().enumerate().filter(move |(at, _)| set >> at & 1 != 0).map(|(_, bit)| bit).sum()
    };
    (0..1_u32 << bits.len()).map(of)
}

/// A bit goes without what it needs, and nothing else does (2.2.1, 6.1).
#[test]
fn prerequisites() {
    let needs = [(features::ACCESS_PLATFORM, features::VERSION_1)];
    let bits = [needs[0].0, needs[0].1, features::EVENT_IDX, 1, 1 << 63];
    for offered in sets(&bits) {
        for implemented in sets(&bits) {
            let both = offered & implemented;
            let lacking = needs.iter().filter(|(_, needed)| both & needed == 0);
            let expected = lacking.fold(both, |accepted, (bit, _)| accepted & !bit);
            assert_eq!(select(offered, implemented), expected, "{offered:#x}, {implemented:#x}");
        }
    }
}

#[test]
fn names_of_features() {
    let of = |own, bits| names(own, bits).collect::<Vec<_>>();
    let (disk, card, other) = (block::NAMES, net::NAMES, &[][..]);
    let common = features::QUEUES | features::VERSION_1 | features::ACCESS_PLATFORM;
    for bit in 0..64 {
        // What a driver accepts has a name, and its own.
        let is_in = |bits: u64| bits >> bit & 1 != 0;
        let disks = block::SIZE_MAX | block::SEG_MAX | block::RO | block::BLK_SIZE | block::FLUSH | block::MQ;
        let cards = net::MTU | net::MAC | net::STATUS | net::CTRL_VQ | net::MQ;
        for (kind, accepted) in [(disk, disks | common), (card, cards | common), (other, common)] {
            let found = of(kind, 1 << bit);
            assert!(found.len() <= 1 && (found.len() == 1 || !is_in(accepted)), "bit {bit} of {kind:?}");
            let below = of(kind, (1 << bit) - 1);
            assert!(found.iter().all(|name| !below.contains(name)), "bit {bit} of {kind:?}");
            assert_eq!(of(kind, (1 << bit) | ((1 << bit) - 1)), [below, found].concat(), "lowest first");
        }
    }
    let bits = 1 << 5 | 1 << 9 | features::VERSION_1 | features::EVENT_IDX | 1 << 63;
    assert_eq!(of(disk, bits), ["RO", "FLUSH", "EVENT_IDX", "VERSION_1"]);
    assert_eq!(of(card, bits), ["MAC", "EVENT_IDX", "VERSION_1"]);
    assert_eq!(of(other, bits), ["EVENT_IDX", "VERSION_1"]);
}
