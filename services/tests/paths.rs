//! What paths do to segments: long ones, bad ones, narrow ones. Against a plain smoltcp peer.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant as Clock;

use common::byte_at;
use common::peer::{Peer, Setup, body, drain, request, tcp_config, with_server};
use common::wire::Faults;
use ringfence_services::http::Limits;
use ringfence_services::net::TcpConfig;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet,
    Ipv4Repr, Ipv6Address,
};

fn setup(faults: Faults) -> Setup {
    let tcp = TcpConfig { memory: 64 << 20, window: 4 << 20, ..tcp_config() };
    Setup { faults, limits: Limits::default(), tcp, ..Setup::default() }
}

/// Fetches the first `size` bytes of a large file, and says how many came in a second.
async fn rate(peer: &mut Peer, size: usize, room: usize) -> f64 {
    let start = Clock::now();
    let handle = peer.connect_with(room);
    let range = format!("Range: bytes=0-{}\r\nConnection: close\r\n", size - 1);
    peer.send(handle, request("/big.bin", &range).as_bytes()).await;
    let mut data = Vec::with_capacity(size + 1000);
    peer.until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        drain(socket, &mut data);
        (!socket.may_recv() && !socket.can_recv()).then_some(())
    })
    .await;
    let time = start.elapsed();
    assert!(body(&data).iter().copied().eq((0..size as u64).map(byte_at)), "{} bytes", body(&data).len());
    peer.tcp(handle).abort();
    size as f64 / time.as_secs_f64()
}

/// The least of what a connection gets from a path, in bytes a second, slow start included.
#[test]
fn one_connection_over_any_path() {
    let loses = |lose, delay| Faults { lose, delay, ..Faults::default() };
    for (faults, size, least) in [
        (loses(0, 25), 60 << 20, 20e6),
        (loses(10, 0), 8 << 20, 2e6),
        (loses(10, 25), 4 << 20, 1e6),
        (loses(50, 25), 1 << 20, 0.1e6),
        (loses(100, 0), 1 << 20, 0.2e6),
        // A queue of half a round trip's worth, then of five times as much.
        (Faults { delay: 10, rate: 1250, queue: 12_500, ..Faults::default() }, 4 << 20, 0.8e6),
        (Faults { delay: 10, rate: 1250, queue: 125_000, ..Faults::default() }, 4 << 20, 0.9e6),
    ] {
        with_server(setup(faults), move |mut peer, _| async move {
            // A busy host takes its share now and then, but not each time.
            for attempt in 1.. {
                let rate = rate(&mut peer, size, 4 << 20).await;
                println!("{} of 1,000 lost, {} ms: {:.2} MB/s", faults.lose, 2 * faults.delay, rate / 1e6);
                if rate >= least {
                    break;
                }
                assert!(attempt < 3, "{rate:.0} bytes a second");
            }
        });
    }
}

/// A router in between takes packets of 1,300 bytes, and says so, or does not say so.
#[test]
fn a_narrow_path() {
    for says_so in [true, false] {
        with_server(setup(Faults::default()), move |mut peer, _| async move {
            let (dropped, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let (drops, cable) = (dropped.clone(), peer.port.cable.clone());
            let most = seen.clone();
            *peer.port.cable.script.borrow_mut() = Some(Box::new(move |end, frame| {
                if end == 0 || frame[12..14] != [8, 0] {
                    return vec![frame];
                }
                if frame.len() <= 14 + 1300 {
                    most.set(frame.len().max(most.get()));
                    return vec![frame];
                }
                drops.set(drops.get() + 1);
                if says_so {
                    cable.put(0, too_big(&frame, 1300));
                }
                vec![]
            }));
            let (data, clean) = peer.fetch("/m.bin").await;
            assert!(clean && body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
            println!("{} dropped, up to {} bytes passed", dropped.get(), seen.get());
            assert!(dropped.get() > 0);
            assert_eq!(seen.get() == 14 + 1300, says_so);
        });
    }
}

/// What a router says that cannot pass `frame` on.
fn too_big(frame: &[u8], mtu: u16) -> Vec<u8> {
    let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    let router = Ipv4Address::new(203, 0, 113, 9);
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    let ethernet = EthernetRepr {
        src_addr: ethernet.dst_addr(),
        dst_addr: ethernet.src_addr(),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&frame[14..][..28]);
    Icmpv4Packet::new_unchecked(&mut message).fill_checksum();
    let header = Ipv4Repr {
        src_addr: router,
        dst_addr: ip.src_addr(),
        next_header: IpProtocol::Icmp,
        payload_len: message.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 34];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    bytes.extend(message);
    bytes
}

/// A message about a packet that was never sent changes nothing.
#[test]
fn a_forged_message_about_a_path() {
    with_server(setup(Faults::default()), |mut peer, _| async move {
        let (forged, full) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (forges, counts, cable) = (forged.clone(), full.clone(), peer.port.cable.clone());
        *peer.port.cable.script.borrow_mut() = Some(Box::new(move |end, frame| {
            if end == 1 && frame.len() == 1514 {
                counts.set(counts.get() + 1);
                if forges.get() < 10 {
                    let mut guess = frame.clone();
                    guess[38..42].copy_from_slice(&(cable.random() as u32).to_be_bytes());
                    forges.set(forges.get() + 1);
                    cable.put(0, too_big(&guess, 600));
                }
            }
            vec![frame]
        }));
        let (_, clean) = peer.fetch("/m.bin").await;
        assert!(clean && forged.get() == 10);
        assert!(full.get() > 1_000_000 / 1460 - 40, "{} full frames", full.get());
    });
}

/// Over IPv6, at the address that the interface has on its link.
#[test]
fn over_ipv6() {
    let faults = Faults { lose: 10, ..Faults::default() };
    with_server(setup(faults), |mut peer, _| async move {
        let server: Ipv6Address = "fe80::ff:fe00:1".parse().unwrap();
        peer.iface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new("fe80::2".parse::<Ipv6Address>().unwrap().into(), 64)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_000]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(peer.iface.context(), (server, 80), 50_000).unwrap();
        let handle = peer.sockets.add(socket);
        peer.send(handle, request("/m.bin", "Connection: close\r\n").as_bytes()).await;
        let (data, clean) = peer.read_to_end(handle).await;
        assert!(clean && body(&data).iter().copied().eq((0..1_000_000).map(byte_at)));
    });
}
