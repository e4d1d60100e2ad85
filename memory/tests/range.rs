//! Ranges against plain 128-bit arithmetic.

use proptest::prelude::*;
use ringfence_memory::*;

const PAGE: u64 = 4096;

/// Values at and around everything that matters.
fn value() -> impl Strategy<Value = u64> {
    let edges =
        [0, PAGE, 1 << 21, 1 << 30, 1 << 46, 1 << 47, (1 << 47) - PAGE, 1 << 51, 1 << 52, (1 << 52) - PAGE];
    let high = [0xffff_8000_0000_0000, u64::MAX - 4095, u64::MAX];
    prop_oneof![
        any::<u64>(),
        prop::sample::select([&edges[..], &high[..]].concat()).prop_flat_map(|edge| (-2 * PAGE as i64
            ..2 * PAGE as i64)
            .prop_map(move |off| edge.wrapping_add_signed(off))),
        (0..1u64 << 20).prop_map(|page| page * PAGE),
        (0..1u64 << 20).prop_map(|page| 0xffff_8000_0000_0000 + page * PAGE),
    ]
}

proptest! {
    #[test]
    fn addresses_are_numbers_with_bounds(value in value(), bytes in value()) {
        let sum = u128::from(value) + u128::from(bytes);
        let canonical = |value: u128| value < 1 << 47 || (0xffff_8000_0000_0000..1 << 64).contains(&value);
        let aligned = value % PAGE == 0;
        let phys = PhysAddr::new(value);
        prop_assert_eq!(phys.is_some(), value < 1 << 52);
        if let Some(phys) = phys {
            prop_assert_eq!((phys.value(), phys.is_page_aligned()), (value, aligned));
            prop_assert_eq!(phys.frame_offset() as u64, value % PAGE);
            let next = phys.checked_add(bytes).map(|sum| sum.value().into());
            prop_assert_eq!(next, Some(sum).filter(|sum| *sum < 1 << 52));
        }
        let virt = VirtAddr::new(value);
        prop_assert_eq!(virt.is_some(), canonical(value.into()));
        if let Some(virt) = virt {
            prop_assert_eq!((virt.value(), virt.is_page_aligned()), (value, aligned));
            prop_assert_eq!(virt.page_offset() as u64, value % PAGE);
            let next = virt.checked_add(bytes).map(|sum| sum.value().into());
            prop_assert_eq!(next, Some(sum).filter(|sum| canonical(*sum)));
        }
    }

    #[test]
    fn frames_fit_in_52_bits(start in value(), count in prop_oneof![0..5usize, any::<usize>()]) {
        let Some(address) = PhysAddr::new(start) else {
            prop_assert!(start >= 1 << 52);
            return Ok(());
        };
        let expected = match start % PAGE {
            0 if u128::from(start) + count as u128 * 4096 <= 1 << 52 => Ok(count),
            0 => Err(RangeError::OutOfSpace),
            _ => Err(RangeError::Misaligned),
        };
        prop_assert_eq!(FrameRange::new(address, count).map(|range| range.size_in_frames()), expected);
    }

    #[test]
    fn pages_stay_in_their_half(start in value(), bytes in prop_oneof![0..20_000u64, any::<u64>()]) {
        let Some(address) = VirtAddr::new(start) else { return Ok(()) };
        let first = u128::from(start) / 4096 * 4096;
        let end = u128::from(start) + u128::from(bytes);
        let past = if bytes == 0 { first } else { end.div_ceil(4096) * 4096 };
        let half_end = if start < 1 << 47 { 1u128 << 47 } else { 1u128 << 64 };
        match PageRange::from_virt_addr(address, bytes) {
            Ok(range) => {
                prop_assert!(past <= half_end);
                prop_assert_eq!(u128::from(range.size_in_bytes()), past - first);
                if !range.is_empty() {
                    prop_assert_eq!(u128::from(range.start_address().value()), first);
                    prop_assert_eq!(u128::from(range.end().unwrap().start_address().value()), past - 4096);
                    prop_assert!(range.contains_address(address));
                    let last = range.end().unwrap().start_address().checked_add(4095).unwrap();
                    prop_assert!(range.contains_address(last));
                    prop_assert_eq!(range.iter().next(), range.start());
                    prop_assert_eq!(range.iter().next_back(), range.end());
                }
            }
            Err(error) => {
                prop_assert_eq!(error, RangeError::OutOfSpace);
                prop_assert!(past > half_end);
            }
        }
    }

    #[test]
    fn set_operations(
        a in (0..40u64, 0..20usize),
        b in (0..40u64, 0..20usize),
        unit in 0..70u64,
        offset in 0..200_000u64,
    ) {
        let address = |number: u64| PhysAddr::new(number * PAGE).unwrap();
        let range = |(start, count): (u64, usize)| FrameRange::new(address(start), count).unwrap();
        let set = |(start, count): (u64, usize)| start..start + count as u64;
        let (ra, rb, sa, sb) = (range(a), range(b), set(a), set(b));
        let frame = Frame::containing_address(PhysAddr::new(unit * PAGE).unwrap());
        prop_assert_eq!(ra.contains(frame), sa.contains(&unit));
        prop_assert_eq!(frame.number(), unit);
        let common: Vec<u64> = sa.clone().filter(|unit| sb.contains(unit)).collect();
        let overlap = ra.overlap(&rb).map(|range| range.iter().map(Frame::number).collect::<Vec<_>>());
        prop_assert_eq!(overlap.unwrap_or_default(), common.clone());
        prop_assert_eq!(ra.contains_range(&rb), common.len() == sb.clone().count());
        prop_assert_eq!(ra.iter().count(), ra.size_in_frames());
        let extended = ra.to_extended(frame).unwrap();
        let (low, high) = if sa.is_empty() { (unit, unit) } else { (unit.min(a.0), unit.max(sa.end - 1)) };
        prop_assert_eq!((extended.start().unwrap().number(), extended.end().unwrap().number()), (low, high));
        let at = ra.address_at_offset(offset);
        prop_assert_eq!(at.is_some(), offset < a.1 as u64 * PAGE);
        if let Some(at) = at {
            prop_assert_eq!(at.value(), a.0 * PAGE + offset);
            prop_assert_eq!(ra.offset_of_address(at), Some(offset));
        }
        match ra.split_at(b.1) {
            Some((head, tail)) => {
                prop_assert_eq!(head.size_in_frames(), b.1);
                let both: Vec<_> = head.iter().chain(tail.iter()).collect();
                prop_assert_eq!(both, ra.iter().collect::<Vec<_>>());
            }
            None => prop_assert!(b.1 > a.1),
        }
    }
}

#[test]
fn the_last_page_counts() {
    // Theseus compared with the start of the last large page; here a range of one has its last byte.
    let top = VirtAddr::new(0xffff_ffff_ffff_f000).unwrap();
    let range = PageRange::new(top, 1).unwrap();
    assert!(range.contains_address(VirtAddr::new(u64::MAX).unwrap()));
    assert_eq!(range.offset_of_address(VirtAddr::new(u64::MAX).unwrap()), Some(4095));
    assert_eq!(range.address_at_offset(4096), None);
    assert_eq!(PageRange::new(top, 2).unwrap_err(), RangeError::OutOfSpace);
    assert_eq!(range.iter().next_back(), range.end());
    assert!(PageRange::empty().start().is_none() && PageRange::empty().end().is_none());
    assert_eq!(PageRange::empty().iter().count(), 0);
}

#[test]
fn addresses_at_their_bounds() {
    let phys = PhysAddr::new((1 << 52) - 1).unwrap();
    let virt = [(1 << 47) - 1, u64::MAX << 47].map(|value| VirtAddr::new(value).unwrap());
    assert_eq!((PhysAddr::new(1 << 52), phys.checked_add(1), virt[0].checked_add(1)), (None, None, None));
    assert_eq!((VirtAddr::new(1 << 47), VirtAddr::new((u64::MAX << 47) - 1)), (None, None));
    assert_eq!(format!("{phys:?} {:?}", virt[1]), "p:0xfffffffffffff v:0xffff800000000000");
}
