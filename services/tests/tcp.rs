//! TCP connections against a plain smoltcp peer, over a cable that can lose, repeat, reorder and damage
//! frames.

mod common;

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use common::peer::{Setup, body, request, syn_frame, with_server};
use common::wire::Faults;
use common::{FaultKind, byte_at};
use ringfence_services::http::{Limits, worker};
use smoltcp::socket::tcp;

#[test]
fn a_file_over_a_good_cable() {
    with_server(Setup::default(), |mut peer, app| async move {
        let start = Clock::now();
        let (data, clean) = peer.fetch("/m.bin").await;
        println!(
            "1 MB in {:?}, {} frames, {} kicks",
            start.elapsed(),
            peer.port.cable.frames.get(),
            peer.port.cable.kicks.get()
        );
        assert!(clean);
        assert!(body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
        assert_eq!(app.0.stats().sent, data.len() as u64);
        assert_eq!(app.0.stats().received, request("/m.bin", "Connection: close\r\n").len() as u64);
        // Frames go out in batches: far fewer notifications than frames.
        assert!(peer.port.cable.kicks.get() * 4 < peer.port.cable.frames.get());
    });
}

#[test]
fn files_over_bad_cables() {
    for faults in [
        Faults { lose: 30, ..Faults::default() },
        Faults { reorder: 200, ..Faults::default() },
        Faults { repeat: 200, ..Faults::default() },
        Faults { corrupt: 20, ..Faults::default() },
        Faults { lose: 10, reorder: 50, repeat: 50, corrupt: 10, ..Faults::default() },
    ] {
        let setup = Setup { faults, limits: Limits::default(), ..Setup::default() };
        with_server(setup, |mut peer, _| async move {
            for _ in 0..3 {
                let start = Clock::now();
                let (data, clean) = peer.fetch("/m.bin").await;
                println!("1 MB in {:?}", start.elapsed());
                assert!(clean);
                assert!(body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
            }
        });
    }
}

#[test]
fn many_connections_at_once() {
    let setup = Setup { limits: Limits::default(), ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        // 64 connections in one burst, each with one request, all kept open.
        let idle: Vec<_> = (0..64).map(|_| peer.connect()).collect();
        for handle in &idle {
            peer.send(*handle, request("/a.txt", "").as_bytes()).await;
        }
        let mut answered = HashSet::new();
        peer.until(|sockets| {
            for handle in &idle {
                let socket = sockets.get_mut::<tcp::Socket>(*handle);
                assert_ne!(socket.state(), tcp::State::Closed, "refused");
                if socket.recv_queue() > 0 && socket.peek(4096).unwrap().ends_with(b"0123456789") {
                    answered.insert(*handle);
                }
            }
            (answered.len() == 64).then_some(())
        })
        .await;
        assert_eq!(app.1.stats().active.get(), 64);
        // The 65th is served at once.
        let start = Clock::now();
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
        // None of the 64 was given up for it.
        assert!(idle.iter().all(|handle| peer.tcp(*handle).state() == tcp::State::Established));
    });
}

/// Who has connected and says nothing costs nothing; who says half of what he wants has to go.
#[test]
fn more_connections_than_places_make_idle_ones_go() {
    with_server(Setup::default(), |mut peer, app| async move {
        let silent: Vec<_> = (0..200).map(|_| peer.connect()).collect();
        let busy: Vec<_> = (0..100).map(|_| peer.connect()).collect();
        peer.rest(Duration::from_millis(100)).await;
        assert_eq!(app.0.tcp().connections, 0);
        for handle in &busy {
            peer.send(*handle, b"GET / HT").await;
        }
        peer.rest(Duration::from_millis(100)).await;
        assert_eq!(app.0.tcp().connections, 88);
        // All places are taken; after the short limit a newcomer gets one.
        peer.rest(Duration::from_millis(1000)).await;
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        // And the memory comes back.
        peer.rest(Duration::from_millis(1800)).await;
        silent.iter().chain(&busy).for_each(|handle| peer.tcp(*handle).abort());
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.tcp().connections, app.1.stats().active.get()), (0, 0));
    });
}

#[test]
fn hundreds_of_short_connections_leave_nothing_behind() {
    with_server(Setup::default(), |mut peer, app| async move {
        for _ in 0..300 {
            let (data, clean) = peer.fetch("/a.txt").await;
            assert!(clean && body(&data) == b"0123456789");
            assert!(app.0.tcp().connections <= 88);
        }
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.tcp().connections, app.1.stats().active.get()), (0, 0));
    });
}

#[test]
fn a_flood_of_half_open_connections_keeps_nobody_out() {
    with_server(Setup::default(), |mut peer, app| async move {
        // SYNs from addresses that never answer.
        let frame = |n: u16| syn_frame(peer.port.mac, app.0.with_nic(|nic| nic.mac), n);
        for n in 0..500 {
            peer.port.cable.send(0, frame(n));
        }
        peer.rest(Duration::from_millis(700)).await;
        assert!(app.0.tcp().connections <= 88);
        let (data, clean) = peer.fetch("/a.txt").await;
        assert!(clean && body(&data) == b"0123456789");
        peer.rest(Duration::from_secs(6)).await;
        assert_eq!(app.0.tcp().connections, 0);
    });
}

#[test]
fn closing_in_every_way() {
    with_server(Setup::default(), |mut peer, app| async move {
        // The client finishes sending right after its request: it still gets all of the answer.
        let handle = peer.connect();
        peer.send(handle, request("/m.bin", "").as_bytes()).await;
        peer.tcp(handle).close();
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean);
        assert_eq!(body(&data).len(), 1_000_000);

        // A reset in the middle of a body frees the place at once.
        let handle = peer.connect();
        peer.send(handle, request("/big.bin", "").as_bytes()).await;
        peer.rest(Duration::from_millis(50)).await;
        peer.tcp(handle).abort();
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!((app.0.tcp().connections, app.1.stats().active.get()), (0, 0));

        // A refused upload: the answer arrives although the client is still sending.
        let handle = peer.connect();
        peer.send(handle, b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n").await;
        peer.send(handle, &[b'x'; 50_000]).await;
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean && data.starts_with(b"HTTP/1.1 405 "));
        peer.tcp(handle).abort();

        // A disk error in the middle of a body: a reset, so that the client knows.
        app.1.files().unwrap().read_fault.set(Some((500_000, FaultKind::Io)));
        let handle = peer.connect();
        peer.send(handle, request("/m.bin", "").as_bytes()).await;
        let (_, clean) = peer.read_to_end(handle).await;
        assert!(!clean);
    });
}

#[test]
fn a_client_that_stops_reading_or_vanishes_is_let_go() {
    with_server(Setup::default(), |mut peer, app| async move {
        let handle = peer.connect();
        peer.send(handle, request("/big.bin", "").as_bytes()).await;
        // Its window closes; meanwhile others are served.
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!(app.1.stats().active.get(), 1);
        let (data, _) = peer.fetch("/a.txt").await;
        assert_eq!(body(&data), b"0123456789");
        peer.rest(Duration::from_millis(1000)).await;
        assert_eq!(app.1.stats().active.get(), 0);
        peer.rest(Duration::from_millis(200)).await;
        assert_eq!(app.0.tcp().connections, 0);
    });
}

#[test]
fn a_slow_disk_stalls_nobody() {
    with_server(Setup { limits: Limits::default(), ..Setup::default() }, |mut peer, app| async move {
        app.1.files().unwrap().delay.set(Duration::from_secs(1));
        let slow: Vec<_> = (0..10).map(|_| peer.connect()).collect();
        for handle in &slow {
            peer.send(*handle, request("/m.bin", "").as_bytes()).await;
        }
        let start = Clock::now();
        for _ in 0..5 {
            let (data, clean) = peer.fetch("/metrics").await;
            assert!(clean && data.starts_with(b"HTTP/1.1 200 "));
        }
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    });
}

#[test]
fn a_device_without_room_is_tried_again() {
    with_server(Setup::default(), |mut peer, _| async move {
        // Long enough for every timer of an earlier connection to be over.
        peer.fetch("/a.txt").await;
        peer.rest(Duration::from_millis(300)).await;
        let handle = peer.connect();
        peer.until(|s| s.get::<tcp::Socket>(handle).may_send().then_some(())).await;
        peer.port.cable.full.set(true);
        peer.send(handle, request("/a.txt", "Connection: close\r\n").as_bytes()).await;
        peer.rest(Duration::from_millis(50)).await;
        assert!(!peer.tcp(handle).can_recv());
        peer.port.cable.full.set(false);
        let start = Clock::now();
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean && body(&data) == b"0123456789");
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    });
}

/// The flags of a TCP segment in a frame without options of IPv4.
fn flags(frame: &[u8]) -> Option<u8> {
    (frame[12..14] == [8, 0] && frame[23] == 6).then(|| frame[47])
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A SYN that arrives once more, wherever in a connection's life, also where its answer was lost, harms
/// nobody.
#[test]
fn a_repeated_syn_finds_its_connection() {
    for (after, lose_answer) in (0..9).flat_map(|after| [(after, false), (after, true)]) {
        with_server(Setup::default(), move |mut peer, app| async move {
            // Its place is free again: the next listener stands before the next connection.
            assert!(peer.fetch("/a.txt").await.1);
            peer.rest(Duration::from_millis(200)).await;
            let (resets, repeated) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
            let (mut syn, mut sent, mut losing) = (None, 0, lose_answer);
            let (seen, done) = (resets.clone(), repeated.clone());
            *peer.port.cable.script.borrow_mut() = Some(Box::new(move |end, frame| {
                let Some(flags) = flags(&frame) else { return vec![frame] };
                seen.set(seen.get() + u32::from(flags & RST != 0));
                if end == 1 {
                    let lost = losing && flags & (SYN | ACK) == SYN | ACK;
                    losing &= !lost;
                    return if lost { vec![] } else { vec![frame] };
                }
                if syn.is_none() && flags & (SYN | ACK) == SYN {
                    syn = Some(frame.clone());
                }
                sent += 1;
                match &syn {
                    Some(syn) if sent == after + 1 => {
                        done.set(true);
                        vec![frame, syn.clone()]
                    }
                    _ => vec![frame],
                }
            }));
            let before = app.0.stats().accepted;
            let (data, clean) = peer.fetch("/a.txt").await;
            let case = format!("after {after} more frames, answer lost: {lose_answer}");
            assert!(clean && body(&data) == b"0123456789", "{case}");
            assert_eq!((resets.get(), app.0.stats().accepted - before), (0, 1), "{case}");
            assert!(repeated.get() || after > 3, "{case}: the SYN was not repeated");
            assert!(app.0.tcp().connections <= 5, "{case}: {} sockets", app.0.tcp().connections);
        });
    }
}

/// Segments that come twice and out of order reset no ordinary request.
#[test]
fn short_connections_over_a_cable_that_repeats_and_reorders() {
    let faults = Faults { repeat: 400, reorder: 400, ..Faults::default() };
    with_server(Setup { faults, limits: Limits::default(), ..Setup::default() }, |mut peer, _| async move {
        for n in 0..200 {
            let (data, clean) = peer.fetch("/a.txt").await;
            assert!(clean && body(&data) == b"0123456789", "request {n}");
        }
    });
}

/// A client that never ends its half hears about the end all the same: the reset goes out before the socket
/// does.
#[test]
fn a_client_that_never_closes_is_reset() {
    with_server(Setup::default(), |mut peer, app| async move {
        let handle = peer.connect();
        // Silent after its request, so that the server ends the connection.
        peer.send(handle, request("/a.txt", "").as_bytes()).await;
        peer.until(|s| (s.get::<tcp::Socket>(handle).state() == tcp::State::CloseWait).then_some(())).await;
        let start = Clock::now();
        peer.until(|s| (s.get::<tcp::Socket>(handle).state() == tcp::State::Closed).then_some(())).await;
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        peer.rest(Duration::from_millis(300)).await;
        assert_eq!(app.0.tcp().connections, 0);
    });
}

#[test]
fn tasks_are_small() {
    with_server(Setup { workers: 0, ..Setup::default() }, |_, app| async move {
        let worker = size_of_val(&worker(&app.0, &app.1));
        let run = size_of_val(&app.0.run());
        println!("worker: {worker} bytes, run: {run} bytes, stack: {} bytes", size_of_val(&app.0));
        assert!(worker < 4096 && run < 512);
    });
}
