//! The crate `virtio-drivers`: its blocking call at depth 1, its calls that do not block above that.

use alloc::vec::Vec;
use core::slice;

use ::virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use ::virtio_drivers::transport::pci::PciTransport;
use ringfence_memory::DmaBuf;

use crate::Disk;
use crate::rescue::Rescue;
use crate::support::hal::{self, Claim, Memory};
use crate::workload::{Costs, Guest, Places, Watch, Workload};

/// Its queue has so many descriptors. With INDIRECT each is a request, without each request takes three.
const DEEPEST: usize = 16;
const NOBODY: usize = DEEPEST;

struct Slot {
    request: BlkReq,
    response: BlkResp,
    buffer: DmaBuf,
}

impl Slot {
    /// The data, as the crate wants it.
    ///
    /// # Safety
    /// The result is passed to the driver and nothing else: nobody looks at what the device may be writing.
    unsafe fn data(buffer: &DmaBuf) -> &'static mut [u8] {
        let bytes = buffer.as_volatile_slice();
        // SAFETY: the bytes are mapped as long as the buffer is kept, and only the device accesses them.
        unsafe { slice::from_raw_parts_mut(bytes.as_ptr().as_ptr(), bytes.len()) }
    }
}

pub struct VirtioDrivers {
    disk: VirtIOBlk<Memory, PciTransport>,
    // After the driver, which resets the device.
    slots: Vec<Slot>,
    /// In place if calls block.
    rescue: Option<Rescue>,
    _claim: Claim,
    /// Slots that are not in flight.
    free: Vec<usize>,
    /// Whose requests are in flight, by token.
    owners: [usize; DEEPEST],
    blocked: usize,
    places: Places,
    write: bool,
}

impl VirtioDrivers {
    /// Brings the disk up. `None` if it cannot have so many requests in flight.
    pub fn new(disk: &Disk, workload: &Workload, depth: usize, blocking: bool) -> Option<Self> {
        if depth > if disk.indirect { DEEPEST } else { DEEPEST / 3 } {
            return None;
        }
        let (transport, claim) = hal::take(&disk.function, disk.access);
        let rescue = (blocking && depth == 1).then(|| Rescue::start(&disk.function));
        let mut disk = VirtIOBlk::new(transport).expect("the disk starts");
        disk.disable_interrupts();
        let buffers = (0..depth).filter_map(|_| workload.pool.take());
        let slot = |buffer| Slot { request: BlkReq::default(), response: BlkResp::default(), buffer };
        Some(Self {
            disk,
            slots: buffers.map(slot).collect(),
            rescue,
            _claim: claim,
            free: (0..depth).collect(),
            owners: [NOBODY; DEEPEST],
            blocked: 0,
            places: workload.places(),
            write: workload.write,
        })
    }

    /// Does one request from beginning to end.
    fn block(&mut self, watch: &mut impl Watch) {
        let sector = self.places.next() as usize;
        // SAFETY: only the driver gets the slice.
        let data = unsafe { Slot::data(&self.slots[0].buffer) };
        watch.submitted(0);
        let result = match self.write {
            false => self.disk.read_blocks(sector, data),
            true => self.disk.write_blocks(sector, data),
        };
        result.expect("the request succeeds");
        watch.completed(0);
        self.blocked = 1;
    }
}

impl Guest for VirtioDrivers {
    fn submit(&mut self, watch: &mut impl Watch) {
        if self.rescue.is_some() {
            return self.block(watch);
        }
        while let Some(slot) = self.free.pop() {
            let Slot { request, response, buffer } = &mut self.slots[slot];
            let sector = self.places.next() as usize;
            // SAFETY: only the driver gets the slice; it, the request and the response stay where they are,
            // and nobody accesses them before the request is complete.
            let token = unsafe {
                let data = Slot::data(buffer);
                match self.write {
                    false => self.disk.read_blocks_nb(sector, request, data, response),
                    true => self.disk.write_blocks_nb(sector, request, data, response),
                }
            };
            self.owners[usize::from(token.expect("the ring has room for the depth"))] = slot;
            watch.submitted(slot);
        }
    }

    fn complete(&mut self, watch: &mut impl Watch) -> usize {
        let mut completed = core::mem::take(&mut self.blocked);
        while let Some(token) = self.disk.peek_used() {
            let slot = core::mem::replace(&mut self.owners[usize::from(token)], NOBODY);
            let Slot { request, response, buffer } = &mut self.slots[slot];
            // SAFETY: these are what was passed with the request that has this token.
            let result = unsafe {
                let data = Slot::data(buffer);
                match self.write {
                    false => self.disk.complete_read_blocks(token, request, data, response),
                    true => self.disk.complete_write_blocks(token, request, data, response),
                }
            };
            result.expect("the request succeeds");
            watch.completed(slot);
            self.free.push(slot);
            completed += 1;
        }
        completed
    }

    fn costs(&self) -> Option<Costs> {
        None
    }
}
