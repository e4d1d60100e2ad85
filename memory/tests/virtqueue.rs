//! The layout of virtqueues against the C structures of virtio 1.4, written out once more, and against counts
//! that never wrap.

use std::fmt::Debug;
use std::mem::{align_of, offset_of, size_of};

use proptest::prelude::*;
use ringfence_memory::virtqueue::packed::{Event, Position};
use ringfence_memory::virtqueue::split::Ring;
use ringfence_memory::virtqueue::{self, packed, split};

#[track_caller]
fn is_codec<T, W>(value: T, word: W, to: fn(T) -> W, from: fn(W) -> T)
where
    T: Copy + Debug + PartialEq,
    W: Copy + Debug + PartialEq,
{
    assert_eq!((to(value), from(word)), (word, value));
}

#[test]
fn structures_in_bytes() {
    // le64 addr, le32 len; le16 flags, le16 next (2.7.5), or le16 id, le16 flags (2.8.13).
    let bytes =
        [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x31, 0x32_u8];
    let (address, len) = (0x0807_0605_0403_0201, 0x1413_1211);
    let words = [0, 8].map(|at| u64::from_le_bytes(bytes[at..][..8].try_into().unwrap()));
    let split = split::Descriptor { address, len, flags: 0x2221, next: 0x3231 };
    is_codec(split, words, split::Descriptor::to_words, split::Descriptor::from_words);
    let packed = packed::Descriptor { address, len, id: 0x2221, flags: 0x3231 };
    is_codec(packed, words, packed::Descriptor::to_words, packed::Descriptor::from_words);
    assert_eq!((words[1] >> split::Descriptor::FLAGS) as u16, split.flags);
    assert_eq!((words[1] >> split::Descriptor::NEXT) as u16, split.next);
    assert_eq!((words[1] >> packed::Descriptor::ID) as u16, packed.id);
    assert_eq!((words[1] >> packed::Descriptor::FLAGS) as u16, packed.flags);

    // le32 id, le32 len (2.7.8).
    let used = split::UsedElement { id: 0x0403_0201, len: 0x0807_0605 };
    is_codec(used, words[0], split::UsedElement::to_word, split::UsedElement::from_word);

    // le16 desc, of which the last bit is the wrap counter, le16 flags (2.8.14).
    let event = Event { position: Position { index: 0x7201, wrap: true }, flags: 2 };
    let word = u32::from_le_bytes([0x01, 0xf2, 0x02, 0x00]);
    is_codec(event, word, Event::to_word, Event::from_word);
    is_codec(event.position, 0xf201, Position::to_word, Position::from_word);
    is_codec(Position { index: 0x7201, wrap: false }, 0x7201, Position::to_word, Position::from_word);
}

/// By the names of the specification's header files.
#[test]
fn constants() {
    // VIRTQ_DESC_F_NEXT, _WRITE, _INDIRECT; VIRTQ_DESC_F_AVAIL, _USED.
    assert_eq!([virtqueue::NEXT, virtqueue::WRITE, virtqueue::INDIRECT], [1, 2, 4]);
    assert_eq!([packed::AVAIL, packed::USED], [1 << 7, 1 << 15]);
    // VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY.
    assert_eq!(split::NO_NOTIFICATION, 1);
    // RING_EVENT_FLAGS_ENABLE, _DISABLE, _DESC.
    assert_eq!([Event::ENABLE, Event::DISABLE, Event::DESC], [0, 1, 2]);
    assert_eq!(virtqueue::MAX_SIZE, 32768);
    // Wrap counters begin with 1 (2.8.1).
    assert_eq!(Position::START, position(0, 8));
    assert_eq!(Position::START.to_word(), 1 << 15);
}

#[repr(C, align(16))]
struct Desc([u8; 16]);

#[repr(C, align(2))]
struct Avail<const N: usize> {
    flags: u16,
    idx: u16,
    ring: [u16; N],
    used_event: u16,
}

#[repr(C)]
struct UsedElem {
    id: u32,
    len: u32,
}

#[repr(C, align(4))]
struct Used<const N: usize> {
    flags: u16,
    idx: u16,
    ring: [UsedElem; N],
    avail_event: u16,
}

fn check_offsets<const N: usize>() {
    let size = N as u16;
    let (avail, used) = (offset_of!(Avail<N>, ring), offset_of!(Used<N>, ring));
    for index in [0, size / 2, size - 1] {
        assert_eq!(split::AVAILABLE.element(index), avail + 2 * usize::from(index));
        assert_eq!(split::USED.element(index), used + size_of::<UsedElem>() * usize::from(index));
        assert_eq!(virtqueue::descriptor(index), size_of::<Desc>() * usize::from(index));
    }
    assert_eq!((Ring::ELEMENTS, Ring::ELEMENTS), (avail, used));
    assert_eq!([Ring::FLAGS, Ring::INDEX], [offset_of!(Avail<N>, flags), offset_of!(Avail<N>, idx)]);
    assert_eq!([Ring::FLAGS, Ring::INDEX], [offset_of!(Used<N>, flags), offset_of!(Used<N>, idx)]);
    assert_eq!([split::AVAILABLE.align, split::USED.align], [align_of::<Avail<N>>(), align_of::<Used<N>>()]);
    let (used_event, avail_event) = (offset_of!(Avail<N>, used_event), offset_of!(Used<N>, avail_event));
    assert_eq!([split::AVAILABLE.event(size), split::AVAILABLE.len(size)], [used_event, used_event + 2]);
    assert_eq!([split::USED.event(size), split::USED.len(size)], [avail_event, avail_event + 2]);
}

#[test]
fn offsets_and_lengths() {
    check_offsets::<1>();
    check_offsets::<2>();
    check_offsets::<256>();
    check_offsets::<32768>();
    let (len, at) = (virtqueue::DESCRIPTOR_LEN, virtqueue::WORD_LEN);
    assert_eq!((len, len, at), (size_of::<Desc>(), align_of::<Desc>(), 8));
    assert_eq!(Event::LEN, 4);
}

/// The `count`th position from the start of a ring.
fn position(count: u64, size: u16) -> Position {
    let (round, index) = (count / u64::from(size), count % u64::from(size));
    Position { index: index as u16, wrap: round.is_multiple_of(2) }
}

/// The first index that is passed, the last one, and those beside them.
#[test]
fn events_at_the_edges() {
    for old in 65530..65542_u64 {
        for count in (0..20).chain([32767, 32768, 65534, 65535]) {
            let new = old + count;
            for event in [old.saturating_sub(1), old, old + 1, new.saturating_sub(1), new] {
                let passed = (old..new).contains(&event);
                let found = virtqueue::need_event(event as u16, new as u16, old as u16);
                assert_eq!(found, passed, "{event} between {old} and {new}");
            }
        }
    }
}

proptest! {
    /// Index `new` came `count` after the old one, and the event lies `before` it or behind: no more than the
    /// indices tell apart.
    #[test]
    fn an_event_of_a_split_ring_is_passed_once(
        new in 65536..200_000_u64,
        count in 0..65536_u64,
        before in 1..=65536_u64,
    ) {
        let (old, event) = (new - count, new - before);
        let passed = (old..new).contains(&event);
        prop_assert_eq!(virtqueue::need_event(event as u16, new as u16, old as u16), passed);
        // Theirs, in the specification: (u16)(new - event - 1) < (u16)(new - old).
        prop_assert_eq!((before - 1) % 65536 < count, passed);
    }

    #[test]
    fn positions_of_a_packed_ring(
        size in prop_oneof![1..20_u16, 32760..=32768_u16],
        from in 65536..200_000_u64,
        count in 0..65536_u64,
        before in 1..=65536_u64,
    ) {
        let rounds = 2 * u64::from(size);
        let (start, near) = (position(from, size), count % (u64::from(size) + 1));
        prop_assert_eq!(start.after(near as u16, size), position(from + near, size));
        let far = count % rounds;
        prop_assert_eq!(u64::from(start.until(position(from + far, size), size)), far);

        let (old, event) = (from - far, from - 1 - (before - 1) % rounds);
        let passed = (old..from).contains(&event);
        prop_assert_eq!(packed::need_event(position(event, size), start, far as u16, size), passed);
    }

    /// Both bits are as the wrap counter is where a descriptor is used; AVAIL alone where it is available
    /// (2.8.1).
    #[test]
    fn flags_of_a_packed_ring(index in 0..32768_u16, wrap: bool, flags: u16) {
        let position = Position { index, wrap };
        let (avail, used) = (flags & 0x80 != 0, flags & 0x8000 != 0);
        prop_assert_eq!(position.is_available(flags), avail == wrap && used != wrap);
        prop_assert_eq!(position.is_used(flags), avail == wrap && used == wrap);
        prop_assert!(position.is_available(position.available()) && position.is_used(position.used()));
        prop_assert_eq!((position.available() | position.used()) & !0x8080, 0);
    }

    /// Nothing of a word is lost, nor of what is in it.
    #[test]
    fn nothing_is_lost(words: [u64; 2]) {
        prop_assert_eq!(split::Descriptor::from_words(words).to_words(), words);
        prop_assert_eq!(packed::Descriptor::from_words(words).to_words(), words);
        prop_assert_eq!(split::UsedElement::from_word(words[0]).to_word(), words[0]);
        prop_assert_eq!(Event::from_word(words[0] as u32).to_word(), words[0] as u32);
    }
}
