//! What the stack needs from a network device.

use core::task::Waker;
use smoltcp::phy::Device;

/// An Ethernet device under a [`Stack`](super::Stack): smoltcp's [`Device`], a way to send frames without a
/// copy of them, and how to sleep on it.
///
/// `receive` must offer a waiting frame even while there is no room to send (the answer is then lost, as on a
/// real wire), or else must wake the registered waker when there is room again.
pub trait Nic: Device {
    /// The device's MAC address. A value that is not unicast is not used.
    fn mac(&self) -> [u8; 6];

    /// Whether the link is up now. Devices without the feature are always up.
    fn link_up(&mut self) -> bool;

    /// Sends a frame that is made of parts, one behind the other. Returns whether there was room for it.
    fn send(&mut self, parts: &[&[u8]]) -> bool;

    /// Makes frames sent since the last call visible to the device, with at most one notification.
    fn flush(&mut self);

    /// Wakes `waker` once when a frame has arrived or the link changed. Called when the stack found nothing
    /// more to do, so this is where receive interrupts are armed again. If something arrived in between, it
    /// wakes at once.
    fn register_waker(&mut self, waker: &Waker);
}
