//! Feature bits of a network device (5.1.3).

crate::virtio::features::features! {
    /// The device says how large a packet may be.
    MTU = 3;
    /// The device has a MAC address.
    MAC = 5;
    /// The device reports its link.
    STATUS = 16;
    /// There is a control queue.
    CTRL_VQ = 17;
    /// There are several pairs of queues, which the control queue turns on.
    MQ = 22;
    others:
        CSUM = 0, GUEST_CSUM = 1, CTRL_GUEST_OFFLOADS = 2, GUEST_TSO4 = 7, GUEST_TSO6 = 8, HOST_TSO4 = 11,
        HOST_TSO6 = 12, MRG_RXBUF = 15, CTRL_RX = 18,
}
