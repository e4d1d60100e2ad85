//! What the kernel tells about itself, for `/metrics` and `/api/…`.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ringfence_services::api::{DeviceInfo, Heap, System};
use ringfence_services::block::Part;
use ringfence_services::fs::FileSystem;
use ringfence_services::http::Mount;

use crate::devices::Devices;
use crate::devices::disk::Disk;
use crate::memory::{self, heap};
use crate::{executor, interrupts};

/// The file system that is served, once it is open.
pub type Files = Mount<FileSystem<Part<&'static Disk>>>;

/// The running system.
pub struct Status {
    devices: Rc<Devices>,
    files: Rc<Files>,
}

impl Status {
    /// Reports on these devices and the file system on one of them.
    pub fn new(devices: Rc<Devices>, files: Rc<Files>) -> Self {
        Self { devices, files }
    }
}

impl System for Status {
    fn device(&self, index: usize) -> Option<DeviceInfo> {
        self.devices.info(index)
    }

    fn frames(&self) -> Vec<(&'static str, u64)> {
        let frames = memory::space().frames();
        frames.counts().iter().map(|(owner, count)| (owner.name(), *count as u64)).collect()
    }

    fn audit(&self) -> impl FnMut() -> Option<Vec<String>> {
        let mut audit = memory::space().start_audit();
        move || audit.step().map(|report| report.findings().map(ToString::to_string).collect())
    }

    fn heap(&self) -> Heap {
        let usage = heap::usage();
        Heap { used: usage.allocated as u64, size: usage.claimed as u64 }
    }

    fn counters(&self, emit: &mut dyn FnMut(&'static str, &str, u64)) {
        emit("halts_total", "Times the processor had nothing to do.", executor::halts());
        emit("unexpected_interrupts_total", "Interrupts that no device claims.", interrupts::unexpected());
        emit("heap_allocations_total", "Allocations on the kernel heap.", heap::usage().allocations);
        if let Some(cache) = self.files.get().map(FileSystem::cache_stats) {
            emit("cache_hits_total", "Page cache: pages that were there.", cache.hits);
            emit("cache_misses_total", "Page cache: pages that had to be read.", cache.misses);
        }
    }
}
