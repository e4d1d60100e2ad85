//! Feature bits of a block device (5.2.3).

crate::virtio::features::features! {
    /// `size_max` limits each segment.
    SIZE_MAX = 1;
    /// `seg_max` limits the number of segments of a request.
    SEG_MAX = 2;
    /// Writing is refused.
    RO = 5;
    /// `blk_size` is the disk's block size.
    BLK_SIZE = 6;
    /// There is a flush command.
    FLUSH = 9;
    /// There are several request queues.
    MQ = 12;
    others: GEOMETRY = 4, TOPOLOGY = 10, CONFIG_WCE = 11, DISCARD = 13, WRITE_ZEROES = 14,
}
