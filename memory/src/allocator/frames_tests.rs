//! The books.

use super::*;
use std::boxed::Box;
use std::vec;

/// Whatever is booked, and however often: no count wraps, and the sum stays.
#[test]
fn books_do_not_wrap() {
    let span = FrameRange::from_numbers(0, 64).unwrap();
    let storage = Box::leak(vec![0; FrameAllocator::storage_words(64)].into_boxed_slice());
    let home = FrameAllocator::new(span, storage).unwrap();
    // SAFETY: these frames are numbers, nobody uses them.
    unsafe { home.add(span, Owner::Dma) };
    for _ in 0..3 {
        home.transfer(Owner::Dma, Owner::Quarantined, 40);
    }
    assert_eq!((home.count(Owner::Dma), home.count(Owner::Quarantined), home.total()), (0, 64, 64));
    home.transfer(Owner::Quarantined, Owner::Dma, 4);
    assert_eq!((home.count(Owner::Dma), home.count(Owner::Quarantined), home.total()), (4, 60, 64));
}
