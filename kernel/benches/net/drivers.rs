//! The drivers that are compared.

use alloc::boxed::Box;

use ringfence_drivers::virtio::Error;

use crate::card::{Card, Place};
use crate::ceiling::Ceiling;
use crate::ours::Ours;
use crate::virtio_drivers::VirtioDrivers;

/// Our driver, doing one copy more of each frame on either side.
pub const TWICE: &str = "ours, one copy more";

/// Puts the device under the driver called `name`, fresh from a reset.
pub fn open(name: &str, place: &Place) -> Box<dyn Card> {
    let function = &place.function;
    let card: Result<Box<dyn Card>, Error> = match name {
        "ours" => boxed(|| Ours::<1, 0>::open(function)),
        TWICE => boxed(|| Ours::<2, 1>::open(function)),
        "ceiling" => boxed(|| Ceiling::open(function)),
        "virtio-drivers" => Ok(Box::new(VirtioDrivers::open(place))),
        _ => panic!("there is no driver called {name:?}"),
    };
    card.unwrap_or_else(|error| panic!("the card does not start under {name}: {error}"))
}

/// A function of its own for each driver: all of them by value are too much for one stack frame.
#[inline(never)]
fn boxed<C: Card + 'static>(open: impl FnOnce() -> Result<C, Error>) -> Result<Box<dyn Card>, Error> {
    Ok(Box::new(open()?))
}
