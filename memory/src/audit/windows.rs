//! The audit's look at the devices' windows.

use super::progress::Place;
use super::{Finding, ONE, Report};
use crate::address::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};
use crate::paging::{AddressSpace, Tag, leaf_pages};

impl AddressSpace {
    /// Looks at windows from `place` on, until `limit` is reached: every window has live memory, which is
    /// mapped as DMA memory, and each region has its window. (That no frame is in two windows follows from
    /// the leaves, as no frame has two.) Returns where to go on, `None` at the end, and how much it looked
    /// at.
    ///
    /// Windows and regions are counted, and a window is opened and closed, under the lock of the device's
    /// table, which is held for each look; what an open window shows stays mapped. So whatever others do
    /// meanwhile is not found.
    pub(super) fn audit_windows(
        &self,
        mut place: Place,
        limit: usize,
        report: &mut Report,
    ) -> (Option<Place>, usize) {
        let mut work = 0;
        while work < limit {
            let Some(table) = self.registry().table_from(place.table) else { return (None, work) };
            if table.key() != place.table {
                place = Place::at_table(table.key());
            }
            work += ONE;
            let (begins, mut done) = (place == Place::at_table(table.key()), true);
            let (regions, windows) = table.look(place.window, |window| {
                if window.device_address != place.window {
                    (place.window, place.offset) = (window.device_address, 0);
                }
                if place.offset == 0 {
                    report.windows.0 += 1;
                    if window.is_dead() {
                        report.add(Finding::WindowWithoutRegion(table.device()));
                    }
                }
                work += ONE;
                let start = window.start.addr().get();
                self.audit_pages(start, window.len, &mut place.offset, &mut work, limit, report);
                done = place.offset == window.len;
                if done {
                    // No window begins there, so that the next one is looked at from its beginning.
                    place.window = window.device_address + 1;
                    done = work < limit;
                }
                done
            });
            if begins && regions != windows {
                report.add(Finding::Windows { regions, windows });
            }
            if done {
                place = Place::at_table(table.key() + 1);
            }
        }
        (Some(place), work)
    }

    /// Looks at the leaves of one window, the first of them in any case.
    fn audit_pages(
        &self,
        start: usize,
        len: usize,
        offset: &mut usize,
        work: &mut usize,
        limit: usize,
        report: &mut Report,
    ) {
        let (mapper, mut near) = (self.mapper().lock(), None);
        while *offset < len {
            let address = (start + *offset) as u64;
            let page = address >> PAGE_SHIFT;
            let leaf = mapper.leaf(page, &mut near);
            let pages = leaf.map_or(1, |leaf| leaf_pages(leaf.level) - page % leaf_pages(leaf.level));
            let pages = (pages as usize).min((len - *offset).div_ceil(PAGE_SIZE));
            if !leaf.is_some_and(|leaf| leaf.pte.tag() == Tag::Dma)
                && let Some(at) = VirtAddr::new(address)
            {
                report.add(Finding::WindowNotDma(at));
            }
            report.windows.1 += pages;
            *offset += pages * PAGE_SIZE;
            *work += ONE;
            if *work >= limit {
                break;
            }
        }
    }
}
