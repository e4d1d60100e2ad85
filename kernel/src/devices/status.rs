//! What the kernel tells about itself, for `/metrics` and `/api/…`.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use ringfence_services::api::{DeviceInfo, Heap, Run, System, Window};
use ringfence_services::block::Part;
use ringfence_services::fs::FileSystem;
use ringfence_services::http::Mount;
use ringfence_services::net::{Stack, TcpStats};

use crate::devices::Devices;
use crate::devices::disk::Disk;
use crate::devices::nic::Nic;
use crate::memory::{self, heap};
use crate::{executor, interrupts};

/// The file system that is served, once it is open.
pub type Files = Mount<FileSystem<Part<&'static Disk>>>;

/// The running system.
pub struct Status {
    devices: Rc<Devices>,
    files: Rc<Files>,
    networks: Rc<Networks>,
}

/// The network stacks, once they are there.
pub type Networks = RefCell<Vec<&'static Stack<Nic>>>;

impl Status {
    /// Reports on these devices, the file system on one of them, and the stacks on others.
    pub fn new(devices: Rc<Devices>, files: Rc<Files>, networks: Rc<Networks>) -> Self {
        Self { devices, files, networks }
    }

    /// A number of all network stacks.
    fn sum(&self, of: fn(TcpStats) -> u64) -> u64 {
        self.networks.borrow().iter().map(|stack| of(stack.tcp())).sum()
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

    fn runs(&self) -> impl Iterator<Item = Run> {
        memory::runs::runs()
    }

    fn windows(&self) -> impl Iterator<Item = Window> {
        memory::space().registry().windows().map(|window| Window {
            device: self.devices.address_of(window.device),
            start: window.device_address,
            bytes: window.len as u64,
            quarantined: !window.is_open,
        })
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
        // Also before there is a file system: who asks twice compares.
        let cache = self.files.get().map(FileSystem::cache_stats).unwrap_or_default();
        emit("cache_hits_total", "Page cache: pages that were there.", cache.hits);
        emit("cache_misses_total", "Page cache: pages that had to be read.", cache.misses);
        emit("cache_errors_total", "Page cache: requests to the disk that failed.", cache.errors);
        emit("cache_pages", "Page cache: pages of 4 KiB held now.", cache.pages);
        let mut tcp = |name, help, of| emit(name, help, self.sum(of));
        tcp("tcp_connections", "Connections now.", |tcp| tcp.connections);
        tcp("tcp_waiting", "Connections that wait for a task now.", |tcp| tcp.waiting);
        tcp("tcp_time_wait", "Ended connections that are remembered now.", |tcp| tcp.time_wait);
        tcp("tcp_queued_bytes", "Memory that waits to be sent now.", |tcp| tcp.queued);
        tcp("tcp_handshakes_total", "SYNs that were answered.", |tcp| tcp.handshakes);
        tcp("tcp_turned_away_total", "First segments that found no room.", |tcp| tcp.turned_away);
        tcp("tcp_gave_way_total", "Connections ended for others, as they took answers slowest.", |tcp| {
            tcp.gave_way
        });
        tcp("tcp_refused_total", "Segments that were answered with a reset.", |tcp| tcp.refused);
    }
}
