//! Feature bits, and their names for a person. Those of one kind of device stand beside its driver.
//!
//! A bit is accepted only if its driver implements it: each driver has one constant allow-list. [`select`]
//! then drops what lacks a prerequisite.

/// Bits by their numbers, lowest first, each with a constant; and the names of all, also of those after
/// `others`, which are only named.
macro_rules! features {
    (
        $($(#[$doc:meta])+ $name:ident = $bit:literal;)*
        others: $($other:ident = $number:literal),* $(,)?
    ) => {
        $($(#[$doc])+ pub const $name: u64 = 1 << $bit;)*

        /// Their names, for [`names`](crate::virtio::features::names).
        pub const NAMES: &[(u32, &str)] =
            &[$(($bit, stringify!($name)),)* $(($number, stringify!($other)),)*];
    };
}
pub(crate) use features;

features! {
    /// A descriptor may refer to a table of descriptors (2.7.5.3).
    INDIRECT_DESC = 28;
    /// Either side says at which element it wants to be notified (2.7.7, 2.7.10).
    EVENT_IDX = 29;
    /// Not a legacy device: without this bit nothing works here.
    VERSION_1 = 32;
    /// The device's memory accesses go through what the platform sets up (an IOMMU).
    ACCESS_PLATFORM = 33;
    /// Queues have the packed format (2.8).
    RING_PACKED = 34;
    /// The device uses buffers in the order in which they were made available (2.7.9, 2.8.9).
    IN_ORDER = 35;
    /// A notification says how far the driver is (2.9).
    NOTIFICATION_DATA = 38;
    /// A single queue can be reset (2.6.1).
    RING_RESET = 40;
    others: ORDER_PLATFORM = 36, SR_IOV = 37, NOTIF_CONFIG_DATA = 39,
}

/// What queues are made of: accepted whatever the device is, if its driver's user wants it.
pub const QUEUES: u64 =
    (INDIRECT_DESC | EVENT_IDX | RING_PACKED | IN_ORDER | NOTIFICATION_DATA | RING_RESET) & POSSIBLE;

/// All bits but those of the rings that are left out.
pub(super) const POSSIBLE: u64 = !(if cfg!(feature = "packed") { 0 } else { RING_PACKED }
    | if cfg!(feature = "in-order") { 0 } else { IN_ORDER });

/// What an accepted bit (left) needs to be accepted too (right), whatever the device is. For those of one
/// kind of device its driver sees to that.
const PREREQUISITES: &[(u64, u64)] = &[(ACCESS_PLATFORM, VERSION_1)];

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

/// Names of the bits that are set in `features`, lowest first, with the device's `own`; a bit without a name
/// is left out.
pub fn names(own: &[(u32, &'static str)], features: u64) -> impl Iterator<Item = &'static str> {
    let name = move |bit: u32| {
        let named = own.iter().chain(NAMES).find(|(number, _)| *number == bit);
        named.filter(|_| features >> bit & 1 != 0).map(|&(_, name)| name)
    };
    (0..u64::BITS).filter_map(name)
}
