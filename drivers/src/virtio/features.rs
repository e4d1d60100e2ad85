//! Feature bits, and their names for a person.
//!
//! A bit is accepted only if its driver implements it: each driver has one constant allow-list. [`select`]
//! then drops what lacks a prerequisite, since devices do offer such (QEMU with `ctrl_vq=off`).

use super::DeviceType;

/// A descriptor may refer to a table of descriptors (2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Either side says at which element it wants to be notified (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device: without this bit nothing works here.
pub const VERSION_1: u64 = 1 << 32;
/// The device's memory accesses go through what the platform sets up (an IOMMU).
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Queues have the packed format (2.8).
pub const RING_PACKED: u64 = 1 << 34;
/// The device uses buffers in the order in which they were made available (2.7.9, 2.8.9).
pub const IN_ORDER: u64 = 1 << 35;
/// A notification says how far the driver is (2.9).
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// A single queue can be reset (2.6.1).
pub const RING_RESET: u64 = 1 << 40;

/// What queues are made of: accepted whatever the device is, if its driver's user wants it.
pub const QUEUES: u64 =
    (INDIRECT_DESC | EVENT_IDX | RING_PACKED | IN_ORDER | NOTIFICATION_DATA | RING_RESET) & POSSIBLE;

/// All bits but those of the rings that are left out.
pub(super) const POSSIBLE: u64 = !(if cfg!(feature = "packed") { 0 } else { RING_PACKED }
    | if cfg!(feature = "in-order") { 0 } else { IN_ORDER });

/// Of a block device (5.2.3).
pub mod block {
    /// `size_max` limits each segment.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` limits the number of segments of a request.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Writing is refused.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is the disk's block size.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush command.
    pub const FLUSH: u64 = 1 << 9;
    /// There are several request queues.
    pub const MQ: u64 = 1 << 12;
}

/// Of a network device (5.1.3).
pub mod net {
    /// The device says how large a packet may be.
    pub const MTU: u64 = 1 << 3;
    /// The device has a MAC address.
    pub const MAC: u64 = 1 << 5;
    /// The device reports its link.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues, which the control queue turns on.
    pub const MQ: u64 = 1 << 22;
}

/// What an accepted bit (left) needs to be accepted too (right). Those of one type of device are not
/// implemented for any other.
const PREREQUISITES: &[(u64, u64)] = &[(ACCESS_PLATFORM, VERSION_1), (net::MQ, net::CTRL_VQ)];

/// The bits to accept: those offered and implemented whose prerequisites are accepted.
pub fn select(offered: u64, implemented: u64) -> u64 {
    let mut accepted = offered & implemented;
    // Each round drops at least one bit or ends.
    while let Some((bit, _)) =
        PREREQUISITES.iter().find(|(bit, needs)| accepted & bit != 0 && accepted & needs != *needs)
    {
        accepted &= !bit;
    }
    accepted
}

const COMMON_NAMES: &[(u32, &str)] = &[
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
];

const BLOCK_NAMES: &[(u32, &str)] = &[
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
];

const NET_NAMES: &[(u32, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (22, "MQ"),
];

/// Names of the bits that are set in `features`, lowest first; a bit without a name is left out.
pub fn names(kind: DeviceType, features: u64) -> impl Iterator<Item = &'static str> {
    let own = match kind {
        DeviceType::BLOCK => BLOCK_NAMES,
        DeviceType::NET => NET_NAMES,
        _ => &[],
    };
    let set = move |&&(bit, _): &&(u32, &str)| features >> bit & 1 != 0;
    own.iter().chain(COMMON_NAMES).filter(set).map(|&(_, name)| name)
}
