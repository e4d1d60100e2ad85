//! Two Ethernet ports with a cable that loses, repeats and reorders frames on demand.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use ringfence_services::net::Nic;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Frames a port can hold before `transmit` has no room.
const RING: usize = 64;

/// What the cable does to frames, in parts per thousand.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub lose: u64,
    pub repeat: u64,
    pub reorder: u64,
    pub corrupt: u64,
    /// How long each frame is on its way, in milliseconds: see [`Cable::carry`].
    pub delay: u64,
    /// Bytes that pass in a millisecond, and bytes that wait for their turn at most; 0: no limit.
    pub rate: u64,
    pub queue: u64,
}

#[derive(Default)]
struct End {
    frames: RefCell<VecDeque<Vec<u8>>>,
    waker: RefCell<Option<Waker>>,
}

/// The end a frame goes to and the frame, to the frames that are put on the cable for it.
pub type Script = Box<dyn FnMut(usize, Vec<u8>) -> Vec<Vec<u8>>>;

type Flying = (std::time::Instant, Vec<u8>);

/// Shared by the two ports.
pub struct Cable {
    ends: [End; 2],
    faults: Cell<Faults>,
    random: Cell<u64>,
    pub up: Cell<bool>,
    /// The first port's device has no room to send, and will not say when it has.
    pub full: Cell<bool>,
    /// Says what arrives instead of a frame on its way to an end; faults come on top.
    pub script: RefCell<Option<Script>>,
    /// Frames on their way to each end, each with the time at which it arrives.
    under_way: [RefCell<VecDeque<Flying>>; 2],
    /// When the last of them leaves, where they have to wait.
    leaves: [Cell<Option<std::time::Instant>>; 2],
    /// Frames handed to the cable.
    pub frames: Cell<u64>,
    /// Calls of `flush` that had something to make visible: what a real device counts as notifications.
    pub kicks: Cell<u64>,
}

/// One end of the cable.
pub struct Port {
    pub cable: Rc<Cable>,
    end: usize,
    pub mac: [u8; 6],
    unflushed: bool,
}

pub fn cable(faults: Faults) -> (Port, Port) {
    let cable = Rc::new(Cable {
        ends: Default::default(),
        faults: Cell::new(faults),
        random: Cell::new(0x1234_5678_9abc_def1),
        up: Cell::new(true),
        full: Cell::new(false),
        script: RefCell::new(None),
        under_way: Default::default(),
        leaves: Default::default(),
        frames: Cell::new(0),
        kicks: Cell::new(0),
    });
    let port = |end: usize| Port {
        cable: cable.clone(),
        end,
        mac: [2, 0, 0, 0, 0, end as u8 + 1],
        unflushed: false,
    };
    (port(0), port(1))
}

impl Cable {
    pub fn set_up(&self, up: bool) {
        self.up.set(up);
        self.ends.iter().for_each(End::wake);
    }

    /// A frame takes its time, and waits for those before it; or is one too many.
    fn delay(&self, end: usize, frame: Vec<u8>, faults: Faults) {
        let now = std::time::Instant::now();
        let mut leaves = self.leaves[end].get().unwrap_or(now).max(now);
        if faults.rate > 0 {
            let takes = |bytes| std::time::Duration::from_micros(bytes * 1000 / faults.rate);
            if leaves - now > takes(faults.queue) {
                return;
            }
            leaves += takes(frame.len() as u64);
            self.leaves[end].set(Some(leaves));
        }
        let arrives = leaves + std::time::Duration::from_millis(faults.delay);
        self.under_way[end].borrow_mut().push_back((arrives, frame));
    }

    /// Lets frames arrive, for as long as it is polled.
    pub async fn carry(&self) {
        loop {
            embassy_time::Timer::after_micros(500).await;
            let now = std::time::Instant::now();
            for (under_way, end) in self.under_way.iter().zip(&self.ends) {
                let mut under_way = under_way.borrow_mut();
                while under_way.front().is_some_and(|(arrives, _)| *arrives <= now) {
                    end.frames.borrow_mut().extend(under_way.pop_front().map(|(_, frame)| frame));
                    end.wake();
                }
            }
        }
    }

    /// xorshift64.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    fn happens(&self, per_thousand: u64) -> bool {
        self.random() % 1000 < per_thousand
    }

    /// Puts a frame on the cable towards `end`.
    pub fn send(&self, end: usize, frame: Vec<u8>) {
        self.frames.set(self.frames.get() + 1);
        let frames = match &mut *self.script.borrow_mut() {
            Some(script) => script(end, frame),
            None => vec![frame],
        };
        frames.into_iter().for_each(|frame| self.pass(end, frame));
    }

    /// Lets a frame arrive at `end`, as it is.
    pub fn put(&self, end: usize, frame: Vec<u8>) {
        self.ends[end].frames.borrow_mut().push_back(frame);
        self.ends[end].wake();
    }

    fn pass(&self, end: usize, mut frame: Vec<u8>) {
        let faults = self.faults.get();
        if !self.up.get() || self.happens(faults.lose) {
            return;
        }
        if self.happens(faults.corrupt) && !frame.is_empty() {
            let at = self.random() as usize % frame.len();
            frame[at] ^= 1 << (self.random() % 8);
        }
        if faults.delay > 0 {
            return self.delay(end, frame, faults);
        }
        let mut queue = self.ends[end].frames.borrow_mut();
        if self.happens(faults.repeat) {
            queue.push_back(frame.clone());
        }
        let at = if self.happens(faults.reorder) {
            self.random() as usize % (queue.len() + 1)
        } else {
            queue.len()
        };
        queue.insert(at, frame);
        drop(queue);
        self.ends[end].wake();
    }
}

impl End {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Sending<'a>(&'a mut Port);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.unflushed = true;
        self.0.cable.send(1 - self.0.end, frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.cable.ends[self.end].frames.borrow_mut().pop_front()?;
        Some((Received(frame), Sending(self)))
    }

    /// No room is never announced by a wake-up: as with a device that does not interrupt for transmit.
    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        let room = self.cable.ends[1 - self.end].frames.borrow().len() < RING;
        let full = self.end == 0 && self.cable.full.get();
        (room && !full).then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Nic for Port {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link_up(&mut self) -> bool {
        self.cable.up.get()
    }

    fn send(&mut self, parts: &[&[u8]]) -> bool {
        let Some(room) = self.transmit(Instant::ZERO) else { return false };
        let frame = parts.concat();
        room.consume(frame.len(), |to| to.copy_from_slice(&frame));
        true
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) {
            self.cable.kicks.set(self.cable.kicks.get() + 1);
        }
    }

    fn register_waker(&mut self, waker: &Waker) {
        let end = &self.cable.ends[self.end];
        *end.waker.borrow_mut() = Some(waker.clone());
        if !end.frames.borrow().is_empty() {
            end.wake();
        }
    }
}
