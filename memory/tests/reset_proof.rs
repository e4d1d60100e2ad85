//! What proves that a device is reset, and what does not.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ringfence_memory::*;
use ringfence_testkit::registers::*;

/// Tells the device of a ring that is dropped then: its memory is in quarantine.
fn told(card: &Card, virtio: &VirtioPci, windows: &DmaWindows) -> usize {
    card.negotiate(virtio, windows, 0);
    let ring = Ring::new(windows, 16);
    virtio.common.set_queue(windows, 0, &ring.addresses()).unwrap();
    assert_ne!(card.told(common::QUEUE_DESC), 0);
    drop(ring);
    let (open, quarantined) = windows.usage();
    assert_eq!(open, 0);
    quarantined
}

#[test]
fn a_reset_is_proved_by_the_devices_own_status() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let life = windows.life();
    card.set_status(0x0f);
    let held = told(card, &virtio, &windows);
    assert!(held >= 3 * 4096);
    let quiet = virtio.common.reset(&windows, LIMIT).unwrap();
    assert!(quiet.ends(&life) && !quiet.ends(&windows.life()));
    assert_eq!((windows.usage(), card.platform.dma_in_use()), ((0, 0), 0));
    assert_eq!(card.status(), 0);
    // Again, from 0: the status is set before it is cleared.
    told(card, &virtio, &windows);
    let again = virtio.common.reset(&windows, LIMIT).unwrap();
    assert!(again.ends(&life), "the lives before are over, too");
    assert_eq!(windows.usage(), (0, 0));
    let stranger = Card::on(card.platform, 2).windows();
    assert!(!again.ends(&stranger.life()));
}

/// O2: the registers of another device, or another structure, prove nothing. There is no way to name one.
#[test]
fn another_devices_reset_proves_nothing() {
    let card = Card::new();
    let other = Card::on(card.platform, 2);
    let (virtio, windows) = (card.virtio(), card.windows());
    let held = told(card, &virtio, &windows);
    let (foreign, wrong) = (other.virtio(), Err(SetQueueError::Dma(DmaError::WrongDevice)));
    assert_eq!(foreign.common.reset(&windows, LIMIT).unwrap_err(), ResetError::WrongDevice);
    let (theirs, ours) = (other.windows(), Ring::new(&windows, 4));
    assert_eq!(foreign.common.set_queue(&theirs, 0, &ours.addresses()), wrong);
    assert_eq!(foreign.common.set_queue(&windows, 0, &ours.addresses()), wrong);
    // One of three areas.
    let area = theirs.allocate(4096).unwrap();
    let (own, foreign_area) = (ours.device.address(0).unwrap(), area.address(0).unwrap());
    let mixed = ours.descriptors.queue(foreign_area, own).unwrap();
    assert_eq!(virtio.common.set_queue(&windows, 0, &mixed), wrong);
    assert_eq!((other.told(common::QUEUE_DESC), windows.usage().1), (0, held));
    // The same id on another platform, and as a model.
    let elsewhere = Card::new();
    assert_eq!(elsewhere.address, card.address);
    assert_eq!(elsewhere.virtio().common.reset(&windows, LIMIT).unwrap_err(), ResetError::WrongDevice);
    let model = DmaWindows::for_model(card.platform, card.address.id()).unwrap();
    assert_eq!(virtio.common.reset(&model, LIMIT).unwrap_err(), ResetError::WrongDevice);
    let ring = Ring::new(&model, 4);
    assert_eq!(virtio.common.set_queue(&model, 0, &ring.addresses()), wrong);
    assert_eq!(virtio.common.set_queue(&windows, 0, &ring.addresses()), wrong);
}

/// O3: a status that reads 0 because nobody answers.
#[test]
fn decoding_turned_off_proves_nothing() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    card.set_status(0x0f);
    let held = told(card, &virtio, &windows);
    card.poke(COMMAND, BUS_MASTER);
    assert_eq!(card.status(), 0);
    assert_eq!(virtio.common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    // The same in the middle: it decodes when it is asked, and not when the answer comes.
    card.poke(COMMAND, BUS_MASTER | MEMORY);
    card.set_status(0x0f);
    let reads = AtomicUsize::new(0);
    *card.on_read.lock() = Some(Box::new(move |card, offset| {
        if offset == COMMAND && reads.fetch_add(1, Ordering::Relaxed) == 4 {
            card.poke(COMMAND, BUS_MASTER);
        }
    }));
    assert_eq!(virtio.common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    *card.on_read.lock() = None;
    assert_eq!(windows.usage(), (0, held));
    card.poke(COMMAND, BUS_MASTER | MEMORY);
    virtio.common.reset(&windows, LIMIT).unwrap();
    assert_eq!(windows.usage(), (0, 0));
}

/// What a device was told of is given back when it was reset and can master the bus no more, and not between.
/// A grant lets it again.
#[test]
fn the_bus_is_closed_before_memory_is_given_back() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let masters = |card: &Card| card.config_word(COMMAND) & BUS_MASTER != 0;
    for _ in 0..2 {
        let held = told(card, &virtio, &windows);
        card.config().enable_bus_master(&card.grant()).unwrap();
        let in_use = card.platform.dma_in_use();
        assert!(masters(card) && held > 0 && in_use >= held);
        *card.on_read.lock() = Some(Box::new(move |card, _| {
            assert!(!masters(card) || card.platform.dma_in_use() == in_use, "it masters the bus");
        }));
        virtio.common.reset(&windows, LIMIT).unwrap();
        *card.on_read.lock() = None;
        assert_eq!((masters(card), windows.usage(), card.platform.dma_in_use()), (false, (0, 0), 0));
        assert_ne!(card.config_word(COMMAND) & MEMORY, 0);
    }
}

/// Sizing the BARs turns decoding off: while a proof is made nobody can do that.
#[test]
fn sizing_beside_a_reset() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    thread::scope(|scope| {
        let sizes = scope.spawn(|| (0..300).for_each(|_| assert!(card.config().bars()[0].is_some())));
        while !sizes.is_finished() {
            card.set_status(0x0f);
            told(card, &virtio, &windows);
            // The other thread goes on just when the status is hidden.
            *card.on_read.lock() = Some(Box::new(|card, offset| {
                if offset == COMMAND && card.status() == 0 {
                    thread::yield_now();
                }
            }));
            virtio.common.reset(&windows, LIMIT).unwrap();
            assert_eq!(windows.usage(), (0, 0));
        }
    });
}

#[test]
fn a_device_that_is_stuck_or_gone_proves_nothing() {
    let card = Card::new();
    let (virtio, windows) = (card.virtio(), card.windows());
    let held = told(card, &virtio, &windows);
    // All ones, as from an empty slot.
    card.set_status(0xff);
    assert_eq!(virtio.common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    card.set_status(0x0f);
    card.poke(0, u32::MAX);
    assert_eq!(virtio.common.reset(&windows, LIMIT).unwrap_err(), ResetError::Timeout);
    card.poke(0, 0x1042_1af4);
    assert_eq!(windows.usage(), (0, held));
}

/// The two steps of a reset on their own: it is proved where and when it was asked for, and once.
#[test]
fn a_reset_that_nobody_waits_for() {
    let (card, other) = (Card::new(), Card::new());
    let (virtio, windows) = (card.virtio(), card.windows());
    let (others, their_windows) = (other.virtio(), other.windows());
    told(other, &others, &their_windows);
    let foreign = others.common.begin_reset(&their_windows).unwrap();
    assert_eq!(virtio.common.begin_reset(&their_windows).unwrap_err(), ResetError::WrongDevice);
    let held = told(card, &virtio, &windows);
    let asked = windows.life();
    assert!(asked.is_present());
    let begun = virtio.common.begin_reset(&windows).unwrap();
    assert_eq!(card.status(), 0, "it was asked");
    assert!(!asked.is_present() && asked == windows.life(), "to be notified no more, and not over");
    assert!(virtio.common.poll_reset(&windows, &foreign).is_none(), "somebody else was");
    assert!(virtio.common.poll_reset(&their_windows, &begun).is_none());
    other.set_status(0x40);
    assert!(virtio.common.poll_reset(&their_windows, &foreign).is_none(), "only its own status tells");
    // It takes its time, and is told of nothing.
    card.set_status(0x40);
    card.forget_queue();
    let ring = Ring::new(&windows, 16);
    let told_meanwhile = virtio.common.set_queue(&windows, 1, &ring.addresses());
    assert_eq!(told_meanwhile, Err(SetQueueError::WrongFormat));
    drop(ring);
    assert!(virtio.common.poll_reset(&windows, &begun).is_none());
    card.set_status(0);
    // Without decoding a 0 is nobody's.
    card.poke(COMMAND, BUS_MASTER);
    assert!(virtio.common.poll_reset(&windows, &begun).is_none());
    assert!(windows.usage().1 >= held);
    card.poke(COMMAND, BUS_MASTER | MEMORY);
    let (life, quiet) = (windows.life(), virtio.common.poll_reset(&windows, &begun));
    assert!(quiet.is_some_and(|quiet| quiet.ends(&life)));
    assert_eq!((windows.usage(), card.config_word(COMMAND) & BUS_MASTER), ((0, 0), 0));
    // It has a new life, in which nobody has asked.
    assert!(windows.life().is_present());
    assert!(virtio.common.poll_reset(&windows, &begun).is_none());
}

/// A reset of a card that was told of a queue and answers late: `meanwhile` is called while it is waited for.
fn reset_while(meanwhile: fn(&Card, &VirtioPci, &DmaWindows)) -> (Result<Quiet, ResetError>, DmaWindows) {
    let card = Card::new();
    let (clock, windows) = (Clock::of(card), card.windows());
    let virtio: &'static VirtioPci = Box::leak(Box::new(VirtioPci::new(clock, card.config()).unwrap()));
    told(card, virtio, &windows);
    card.forget_queue();
    let mine = windows.clone();
    *card.on_read.lock() = Some(Box::new(move |_, _| {
        // It was asked.
        if card.status() == 0 {
            card.set_status(0x40);
            let mine = mine.clone();
            *clock.on_read.lock() = Some(Box::new(move || {
                *card.on_read.lock() = None;
                meanwhile(card, virtio, &mine);
                card.set_status(0);
            }));
        }
    }));
    (virtio.common.reset(&windows, LIMIT), windows)
}

/// O6: what a device is told while its reset is waited for is not of the life that ends.
#[test]
fn a_queue_told_meanwhile_undoes_the_proof() {
    let (proof, windows) = reset_while(|_, virtio, windows| {
        assert!(virtio.common.set_driver_features(0));
        virtio.common.set_status(3 | FEATURES_OK);
        let ring = Ring::new(windows, 16);
        let told = virtio.common.set_queue(windows, 1, &ring.addresses());
        assert_eq!(told, Err(SetQueueError::WrongFormat), "it may have been asked to reset after that");
    });
    assert!(proof.is_ok());
    assert_eq!(windows.usage(), (0, 0));
    // Somebody else saw it reset, and it has a new life.
    let (proof, windows) = reset_while(|card, virtio, windows| {
        told(card, virtio, windows);
    });
    assert_eq!(proof.unwrap_err(), ResetError::Timeout);
    assert!(windows.usage().1 > 0, "the new ring is in quarantine");
}
