//! A TCP server: the connections to one port.
//!
//! smoltcp has the formats; what serves many clients over real networks is here: each segment finds its
//! connection at once, handshakes and connections that are over cost no connection, losses are told by
//! selective acknowledgments (RFC 2018, RFC 8985), and what is sent is copied once, from the queue into the
//! device's buffer. Segments go back to the hardware address that the peer's last one came from, so nobody
//! has to be asked for it.

mod congestion;
mod connection;
mod flight;
mod handshake;
mod operations;
mod output;
mod queue;
mod received;
mod segment;
mod time_wait;

use alloc::collections::{BinaryHeap, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;

use hashbrown::HashMap;
use smoltcp::wire::EthernetAddress;

use super::frame::Packet;
use super::icmp::TooBig;
use crate::text::NoMemory;
use crate::wakers::Wakers;
use connection::Connection;
use handshake::{Handshakes, Keys};
pub(super) use output::{Output, Sent};
pub(super) use queue::PIECES;
use segment::{Fields, Flow, Headers, Segment, Seq};
use time_wait::TimeWaits;

/// Microseconds, by the clock of the stack.
pub(super) type Micros = u64;

/// Segments that a connection may send before the next one has its turn.
const TURN: usize = 8;
/// Turns in one poll, before other tasks get theirs.
const TURNS: usize = 64;

/// The connection is gone: reset by either side, or the peer stopped answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection was reset or the peer stopped answering")]
pub struct TcpError;

/// How much there may be of everything.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// TCP port served.
    pub port: u16,
    /// Connections at once: those that wait to be accepted, are held, and are still closing. What begins one
    /// more is not answered, so that its client tries again.
    pub connections: usize,
    /// Connections whose end is remembered.
    pub remembered: usize,
    /// Bytes that are to be sent, of all connections.
    pub memory: usize,
    /// Bytes that are to be sent, of one connection: bounds its throughput per round trip.
    pub window: usize,
}

impl TcpConfig {
    /// For a guest with `memory` bytes of RAM, of which at most about a sixth is used.
    pub fn for_memory(port: u16, memory: u64) -> Self {
        let between = |part: u64, least: u64, most: u64| part.clamp(least, most) as usize;
        Self {
            port,
            connections: between(memory >> 16, 128, 2048),
            remembered: between(memory >> 15, 256, 4096),
            memory: between(memory >> 3, 1 << 20, 64 << 20),
            window: between(memory >> 6, 64 << 10, 4 << 20),
        }
    }
}

/// What has happened since start, and what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// Connections now.
    pub connections: u64,
    /// Those of them that wait to be accepted.
    pub waiting: u64,
    /// Ended connections that are remembered now.
    pub time_wait: u64,
    /// Bytes of memory that wait to be sent now.
    pub queued: u64,
    /// SYNs that were answered.
    pub handshakes: u64,
    /// Requests that were not taken, for want of a free connection or memory.
    pub turned_away: u64,
    /// Connections that were ended for others, as their peers took what was sent to them slowest.
    pub gave_way: u64,
    /// Segments that were answered with a reset.
    pub refused: u64,
}

/// All connections.
pub(super) struct Tcp {
    config: TcpConfig,
    hardware: EthernetAddress,
    mtu: u16,
    index: HashMap<Flow, u32, Keys>,
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    handshakes: Handshakes,
    time_waits: TimeWaits,
    /// Those that may have something to send.
    turns: VecDeque<u32>,
    /// When to look at which. One that is not the connection's `alarm` any more does not count.
    alarms: BinaryHeap<Reverse<(Micros, u32)>>,
    /// Those that wait to be accepted.
    arrived: VecDeque<u32>,
    accepting: Wakers,
    /// Who is to be told of one that nobody waits for.
    unserved: Wakers,
    /// Bytes of memory that all queues hold.
    held: usize,
    handshaken: u64,
    turned_away: u64,
    gave_way: u64,
    refused: u64,
}

impl Tcp {
    /// Nobody is connected. `mtu`: the longest packet that the device takes.
    pub(super) fn new(config: TcpConfig, hardware: EthernetAddress, mtu: u16, seed: u64) -> Self {
        let keys = Keys(seed, seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15);
        Self {
            config,
            hardware,
            mtu,
            index: HashMap::with_hasher(keys),
            slots: Vec::new(),
            free: Vec::new(),
            handshakes: Handshakes(keys),
            time_waits: TimeWaits::new(keys, config.remembered),
            turns: VecDeque::new(),
            alarms: BinaryHeap::new(),
            arrived: VecDeque::new(),
            accepting: Wakers::default(),
            unserved: Wakers::default(),
            held: 0,
            handshaken: 0,
            turned_away: 0,
            gave_way: 0,
            refused: 0,
        }
    }

    /// See [`TcpStats`].
    pub(super) fn stats(&self) -> TcpStats {
        TcpStats {
            connections: self.index.len() as u64,
            waiting: self.arrived.len() as u64,
            time_wait: self.time_waits.len() as u64,
            queued: self.held as u64,
            handshakes: self.handshaken,
            turned_away: self.turned_away,
            gave_way: self.gave_way,
            refused: self.refused,
        }
    }

    /// Whether somebody waits for a task, or no more can come.
    pub(super) fn crowded(&self) -> bool {
        !self.arrived.is_empty() || self.index.len() >= self.config.connections
    }

    /// Takes a packet in, that is TCP and for us.
    pub(super) fn take(&mut self, packet: &Packet<'_>, output: &mut impl Output, now: Micros) {
        let Some(segment) = Segment::parse(packet) else { return };
        if segment.local_port != self.config.port {
            return self.refuse(&segment, output);
        }
        if let Some(&id) = self.index.get(&segment.flow) {
            if let Some(connection) = self.get(id) {
                connection.take(&segment, now);
            }
            return self.settle(id, now);
        }
        let over = self.time_waits.get(&segment.flow, now);
        if segment.rst {
            // The answer of a peer that begins anew to what it is told of the old connection.
            if over.is_some_and(|(_, theirs)| theirs == segment.seq) {
                self.time_waits.remove(&segment.flow);
            }
            return;
        }
        if let Some((ours, theirs)) = over {
            if !segment.syn || !segment.seq.is_after(theirs) {
                let fields = Fields { seq: ours, ack: Some(theirs), ..Fields::default() };
                return self.answer(&segment, &fields, output);
            }
            // The same ports again (RFC 6191).
            self.time_waits.remove(&segment.flow);
        }
        match segment.ack {
            None if segment.syn && !segment.fin => self.shake_hands(&segment, output, now),
            Some(_) if !segment.syn => match self.handshakes.complete(&segment, now) {
                // Only with its first data is it worth a connection. A peer that sends none is owed nothing.
                Some(_) if segment.data.is_empty() && !segment.fin => {}
                Some(abilities) => self.begin(&segment, abilities, output, now),
                None => self.refuse(&segment, output),
            },
            _ => self.refuse(&segment, output),
        }
    }

    fn shake_hands(&mut self, syn: &Segment<'_>, output: &mut impl Output, now: Micros) {
        let mut headers = Headers::new(&syn.flow, self.config.port, self.hardware, syn.hardware);
        let mss = self.mtu.saturating_sub(headers.overhead()).to_be_bytes();
        // MSS; no operation, window scale; two times no operation, selective acknowledgments permitted. The
        // last two only to whom knows them.
        let mut options = [2, 4, mss[0], mss[1], 1, 1, 1, 1, 1, 1, 1, 1];
        let [_, _, _, _, _, scale @ .., _, _, _, _] = &mut options;
        if syn.abilities.scale.is_some() {
            *scale = [3, 3, 0];
        }
        let [.., sack_0, sack_1] = &mut options;
        if syn.abilities.sack {
            (*sack_0, *sack_1) = (4, 2);
        }
        let fields = Fields {
            seq: self.handshakes.begin(syn, now),
            ack: Some(syn.seq.plus(1)),
            syn: true,
            window: connection::RECEIVE as u16,
            options: &options,
            ..Fields::default()
        };
        self.handshaken = self.handshaken.saturating_add(1);
        // Lost, it is asked for again.
        let _ = output.send(headers.write(&fields), &[&[]; PIECES]);
    }

    /// Begins a connection, if there is room for one more.
    fn begin(
        &mut self,
        segment: &Segment<'_>,
        abilities: segment::Abilities,
        output: &mut impl Output,
        now: Micros,
    ) {
        if self.index.len() >= self.config.connections {
            self.make_room(output, now);
        }
        let Ok(id) = self.vacant() else {
            self.turned_away = self.turned_away.saturating_add(1);
            return;
        };
        let headers = Headers::new(&segment.flow, self.config.port, self.hardware, segment.hardware);
        // Less than 64 bytes a segment costs more than it carries.
        let abilities = segment::Abilities { mss: abilities.mss.max(64), ..abilities };
        let ours = segment.ack.unwrap_or_default();
        let mut connection = Connection::new(segment, abilities, ours, headers, self.mtu, now);
        connection.take(segment, now);
        self.index.insert(segment.flow, id);
        if let Some(slot) = self.slots.get_mut(id as usize) {
            *slot = Some(connection);
        }
        self.arrived.push_back(id);
        if !self.accepting.wake_one() {
            self.unserved.wake_all();
        }
        self.settle(id, now);
    }

    /// Ends the connection whose peer takes least of what is sent to it, if there is one that may give way.
    /// If a task holds it, there is room once that is done with it.
    fn make_room(&mut self, output: &mut impl Output, now: Micros) {
        let paces =
            self.slots.iter_mut().zip(0..).filter_map(|(slot, id)| Some((slot.as_mut()?.pace(now)?, id)));
        let Some((_, id)) = paces.min() else { return };
        if let Some(connection) = self.get(id) {
            connection.give_way();
            // A reset that is lost is sent again.
            let _ = connection.send(output, 1, now);
            self.gave_way = self.gave_way.saturating_add(1);
        }
        self.settle(id, now);
    }

    /// A free slot, and room in all books.
    fn vacant(&mut self) -> Result<u32, NoMemory> {
        let count = self.index.len();
        if count >= self.config.connections {
            return Err(NoMemory);
        }
        let no_memory = |_| NoMemory;
        self.index.try_reserve(1).map_err(|_| NoMemory)?;
        self.arrived.try_reserve(1).map_err(no_memory)?;
        if self.free.is_empty() {
            let id = self.slots.len();
            self.slots.try_reserve(1).map_err(no_memory)?;
            let more = |have: usize| id.saturating_add(1).saturating_sub(have);
            self.turns.try_reserve(more(self.turns.len())).map_err(no_memory)?;
            self.free.try_reserve(more(self.free.len())).map_err(no_memory)?;
            let alarms = id.saturating_add(1).saturating_mul(2).saturating_sub(self.alarms.len());
            self.alarms.try_reserve(alarms).map_err(no_memory)?;
            self.slots.push(None);
            self.free.push(id as u32);
        }
        self.free.pop().ok_or(NoMemory)
    }

    fn get(&mut self, id: u32) -> Option<&mut Connection> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// Lets what happened to a connection have its consequences.
    fn settle(&mut self, id: u32, now: Micros) {
        let Some(slot) = self.slots.get_mut(id as usize) else { return };
        let Some(connection) = slot else { return };
        if connection.is_over() {
            self.held = self.held.saturating_sub(connection.counted);
            self.index.remove(&connection.flow);
            if connection.first && !connection.gone {
                self.time_waits.insert(connection.flow, connection.numbers(), now);
            }
            *slot = None;
            self.free.push(id);
            return;
        }
        let holds = connection.holds();
        self.held = self.held.saturating_sub(connection.counted).saturating_add(holds);
        connection.counted = holds;
        if !connection.queued {
            connection.queued = true;
            self.turns.push_back(id);
        }
        self.set_alarm(id);
    }

    /// Sees to it that a connection is looked at in time.
    fn set_alarm(&mut self, id: u32) {
        let Some(connection) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let Some(due) = connection.due() else { return };
        // One that is too early looks again.
        if connection.alarm.is_some_and(|alarm| alarm <= due) {
            return;
        }
        connection.alarm = Some(due);
        if self.alarms.len() >= self.alarms.capacity() {
            let slots = &self.slots;
            self.alarms.retain(|Reverse((at, id))| {
                slots.get(*id as usize).and_then(Option::as_ref).is_some_and(|c| c.alarm == Some(*at))
            });
        }
        self.alarms.push(Reverse((due, id)));
    }

    /// When there is something to do next.
    pub(super) fn next_alarm(&self) -> Option<Micros> {
        self.alarms.peek().map(|Reverse((at, _))| *at)
    }

    /// Does what is due.
    pub(super) fn look(&mut self, output: &mut impl Output, now: Micros) {
        while let Some(&Reverse((at, id))) = self.alarms.peek()
            && at <= now
        {
            self.alarms.pop();
            let Some(connection) = self.get(id).filter(|connection| connection.alarm == Some(at)) else {
                continue;
            };
            connection.alarm = None;
            connection.look(output, now);
            self.settle(id, now);
        }
    }

    /// Sends what may be sent.
    pub(super) fn send(&mut self, output: &mut impl Output, now: Micros) -> Sent {
        for _ in 0..TURNS {
            let Some(id) = self.turns.pop_front() else { return Sent::All };
            let Some(connection) = self.get(id) else { continue };
            connection.queued = false;
            let sent = connection.send(output, TURN, now);
            match sent {
                Sent::All if connection.is_over() => self.settle(id, now),
                Sent::All => self.set_alarm(id),
                // It has its next turn soon, and its alarm when it has none.
                Sent::More => {
                    connection.queued = true;
                    self.turns.push_back(id);
                }
                Sent::Full => {
                    connection.queued = true;
                    self.turns.push_front(id);
                    self.set_alarm(id);
                    return Sent::Full;
                }
            }
        }
        if self.turns.is_empty() { Sent::All } else { Sent::More }
    }

    /// Tells a stranger that there is no such connection (RFC 9293, 3.10.7.1).
    fn refuse(&mut self, segment: &Segment<'_>, output: &mut impl Output) {
        if segment.rst {
            return;
        }
        self.refused = self.refused.saturating_add(1);
        let fields = match segment.ack {
            Some(ack) => Fields { seq: ack, rst: true, ..Fields::default() },
            None => Fields { ack: Some(segment.seq.plus(segment.length())), rst: true, ..Fields::default() },
        };
        self.answer(segment, &fields, output);
    }

    fn answer(&self, segment: &Segment<'_>, fields: &Fields<'_>, output: &mut impl Output) {
        let mut headers = Headers::new(&segment.flow, segment.local_port, self.hardware, segment.hardware);
        // A lost answer is asked for again.
        let _ = output.send(headers.write(fields), &[&[]; PIECES]);
    }

    /// A router could not pass a packet on.
    pub(super) fn too_big(&mut self, packet: &TooBig, now: Micros) {
        let (local, remote) = (packet.local.0, packet.remote.0);
        let Some(&id) = self.index.get(&Flow { local, remote, port: packet.remote.1 }) else { return };
        if packet.local.1 == self.config.port
            && let Some(connection) = self.get(id)
        {
            connection.too_big(packet.mtu, Seq(packet.seq));
            self.settle(id, now);
        }
    }
}
