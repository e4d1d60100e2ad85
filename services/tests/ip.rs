//! Below TCP: ping, DHCP, hardware addresses, damaged frames.

mod common;

use std::cell::RefCell;
use std::time::{Duration, Instant as Clock};

use common::peer::{App, PEER, Peer, SERVER, Setup, fixed, now, request, syn_frame, tcp_config, with_server};
use common::wire::{Faults, cable};
use embassy_futures::select::{Either, select};
use embassy_time::Timer;
use futures::executor::LocalPool;
use ringfence_services::http::Limits;
use ringfence_services::net::{Addressing, Config, Stack};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::{Device, RxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpAddress, IpEndpoint, IpProtocol, Ipv4Address,
    Ipv4Cidr, Ipv4Packet, Ipv4Repr,
};

#[test]
fn ping_is_answered() {
    with_server(Setup::default(), |mut peer, _| async move {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(9)).unwrap();
        let handle = peer.sockets.add(socket);
        // The last three come in pieces, and so do the answers.
        for size in [0, 56, 1400, 1472, 1473, 2000, 4000] {
            let data = vec![0xa5; size];
            let echo = Icmpv4Repr::EchoRequest { ident: 9, seq_no: size as u16, data: &data };
            let socket = peer.sockets.get_mut::<icmp::Socket>(handle);
            let space = socket.send(echo.buffer_len(), SERVER.into()).unwrap();
            echo.emit(&mut Icmpv4Packet::new_unchecked(space), &Default::default());
            let reply = peer
                .until(|sockets| {
                    let socket = sockets.get_mut::<icmp::Socket>(handle);
                    socket.can_recv().then(|| socket.recv().unwrap().0.to_vec())
                })
                .await;
            let packet = Icmpv4Packet::new_checked(&reply[..]).unwrap();
            let expected = Icmpv4Repr::EchoReply { ident: 9, seq_no: size as u16, data: &data };
            assert_eq!(Icmpv4Repr::parse(&packet, &Default::default()).unwrap(), expected);
        }
    });
}

/// A request to everybody is not for us: its answers would be many.
#[test]
fn ping_to_all_is_not_answered() {
    with_server(Setup::default(), |mut peer, _| async move {
        Timer::after_millis(50).await;
        frames(&mut peer);
        let echo = Icmpv4Repr::EchoRequest { ident: 9, seq_no: 1, data: b"x" };
        for to in [Ipv4Address::BROADCAST, Ipv4Address::new(10, 0, 2, 255), Ipv4Address::new(224, 0, 0, 1)] {
            let ip = Ipv4Repr {
                src_addr: PEER,
                dst_addr: to,
                next_header: IpProtocol::Icmp,
                payload_len: echo.buffer_len(),
                hop_limit: 64,
            };
            let ethernet = EthernetRepr {
                src_addr: EthernetAddress(peer.port.mac),
                dst_addr: EthernetAddress::BROADCAST,
                ethertype: EthernetProtocol::Ipv4,
            };
            let mut frame = vec![0; 34 + echo.buffer_len()];
            ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &Default::default());
            echo.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[34..]), &Default::default());
            peer.port.cable.send(0, frame);
            Timer::after_millis(50).await;
            let answers = frames(&mut peer).into_iter().filter(|frame| frame[12..14] == [8, 0]).count();
            assert_eq!(answers, 0, "{to}");
        }
    });
}

#[test]
fn damaged_frames_of_every_kind() {
    let faults = Faults { corrupt: 300, lose: 20, ..Faults::default() };
    let setup = Setup { faults, limits: Limits::default(), ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        let mac = app.0.with_nic(|nic| nic.mac);
        let cable = peer.port.cable.clone();
        for n in 0..10_000_u16 {
            let mut frame = syn_frame(peer.port.mac, mac, n);
            for _ in 0..cable.random() % 8 {
                // Leave the addresses, so that it is looked into.
                let at = 6 + cable.random() as usize % (frame.len() - 6);
                frame[at] = cable.random() as u8;
            }
            frame.truncate(cable.random() as usize % (frame.len() + 20));
            cable.send(0, frame);
            if n % 64 == 0 {
                peer.rest(Duration::from_millis(1)).await;
            }
        }
        peer.rest(Duration::from_millis(700)).await;
        assert_eq!(app.0.tcp().connections, 0);
    });
}

#[test]
fn a_bad_hardware_address_is_replaced() {
    for mac in [[0; 6], [0xff; 6], [1, 2, 3, 4, 5, 6]] {
        let (mut ours, theirs) = cable(Faults::default());
        ours.mac = mac;
        let stack = Stack::new(ours, Config { addressing: fixed(), seed: 1, tcp: tcp_config() });
        let mut peer = Peer::new(theirs);
        let mut executor = LocalPool::new();
        let connects = async {
            let handle = peer.connect();
            peer.send(handle, b"x").await;
            peer.rest(Duration::from_millis(20)).await;
        };
        let outcome = executor.run_until(async {
            let accepted = async { futures::future::join(connects, stack.accept()).await };
            select(accepted, select(Timer::after_secs(5), stack.run())).await
        });
        assert!(matches!(outcome, Either::First(_)), "{mac:?}");
    }
}

/// The frames that lie at the peer's end of the cable, not looked at by its stack.
fn frames(peer: &mut Peer) -> Vec<Vec<u8>> {
    let next = || Some(peer.port.receive(now())?.0.consume(<[u8]>::to_vec));
    std::iter::from_fn(next).collect()
}

/// As soon as there is an address, and again when the cable comes back, everybody is told who has it.
#[test]
fn the_hardware_address_is_announced() {
    with_server(Setup::default(), |mut peer, app| async move {
        let mac = EthernetAddress(app.0.with_nic(|nic| nic.mac));
        let announcement = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: SERVER,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: SERVER,
        };
        for _ in 0..3 {
            Timer::after_millis(50).await;
            let mut frames = frames(&mut peer);
            // There is also who asks for a router.
            frames.retain(|frame| frame[12..14] == [8, 6]);
            let [frame] = &frames[..] else { panic!("{} frames", frames.len()) };
            let frame = EthernetFrame::new_checked(frame).unwrap();
            assert_eq!((frame.src_addr(), frame.dst_addr()), (mac, EthernetAddress::BROADCAST));
            assert_eq!(frame.ethertype(), EthernetProtocol::Arp);
            assert_eq!(ArpRepr::parse(&ArpPacket::new_unchecked(frame.payload())).unwrap(), announcement);
            peer.port.cable.set_up(false);
            Timer::after_millis(50).await;
            peer.port.cable.set_up(true);
        }
    });
}

/// A DHCP server that leases [`SERVER`] for `lease` seconds.
struct Dhcp {
    handle: SocketHandle,
    lease: u32,
    acks: RefCell<u32>,
    mac: [u8; 6],
}

impl Dhcp {
    fn new(peer: &mut Peer, lease: u32, mac: [u8; 6]) -> Self {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(67).unwrap();
        Self { handle: peer.sockets.add(socket), lease, acks: RefCell::new(0), mac }
    }

    fn answer(&self, sockets: &mut SocketSet<'static>) {
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        while let Ok((data, from)) = socket.recv() {
            let packet = DhcpPacket::new_checked(data).unwrap();
            let asked = DhcpRepr::parse(&packet).unwrap();
            assert_eq!(asked.client_hardware_address.0, self.mac);
            let message_type = match asked.message_type {
                DhcpMessageType::Discover => DhcpMessageType::Offer,
                DhcpMessageType::Request => {
                    *self.acks.borrow_mut() += 1;
                    DhcpMessageType::Ack
                }
                _ => continue,
            };
            // Who renews a lease knows the network already.
            let is_first = *self.acks.borrow() <= 1;
            let reply = DhcpRepr {
                message_type,
                your_ip: SERVER,
                server_ip: PEER,
                server_identifier: Some(PEER),
                subnet_mask: is_first.then_some(Ipv4Address::new(255, 255, 255, 0)),
                router: is_first.then_some(PEER),
                lease_duration: Some(self.lease),
                requested_ip: None,
                parameter_request_list: None,
                client_identifier: None,
                max_size: None,
                dns_servers: None,
                additional_options: &[],
                broadcast: true,
                client_ip: Ipv4Address::UNSPECIFIED,
                relay_agent_ip: Ipv4Address::UNSPECIFIED,
                secs: 0,
                transaction_id: asked.transaction_id,
                client_hardware_address: asked.client_hardware_address,
                renew_duration: None,
                rebind_duration: None,
            };
            let to = match from.endpoint.addr {
                IpAddress::Ipv4(v4) if v4.is_unspecified() => Ipv4Address::BROADCAST,
                IpAddress::Ipv4(v4) => v4,
                IpAddress::Ipv6(v6) => panic!("DHCP from {v6}"),
            };
            let space = socket.send(reply.buffer_len(), IpEndpoint::new(to.into(), 68)).unwrap();
            reply.emit(&mut DhcpPacket::new_unchecked(space)).unwrap();
        }
    }
}

#[test]
fn an_address_by_dhcp_renewed_and_asked_for_again_after_a_link_change() {
    let setup = Setup { addressing: Addressing::Dhcp, ..Setup::default() };
    with_server(setup, |mut peer, app| async move {
        let dhcp = Dhcp::new(&mut peer, 4, app.0.with_nic(|nic| nic.mac));
        assert_eq!(app.0.address(), None);
        let start = Clock::now();
        let address = select(
            app.0.wait_address(),
            peer.until(|s| {
                dhcp.answer(s);
                None::<()>
            }),
        )
        .await;
        assert!(matches!(address, Either::First(a) if a == Ipv4Cidr::new(SERVER, 24)));
        println!("address after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_millis(500));
        let serve_for = |time: Duration| {
            let end = Clock::now() + time;
            let dhcp = &dhcp;
            move |sockets: &mut SocketSet<'static>| {
                dhcp.answer(sockets);
                (Clock::now() >= end).then_some(())
            }
        };
        // The lease is renewed at half its time.
        peer.until(serve_for(Duration::from_millis(2600))).await;
        assert_eq!(*dhcp.acks.borrow(), 2);
        assert_eq!(app.0.address(), Some(Ipv4Cidr::new(SERVER, 24)));
        // The cable is pulled and put back. Connections live on.
        let handle = peer.connect();
        peer.until(|s| s.get::<tcp::Socket>(handle).may_send().then_some(())).await;
        peer.port.cable.set_up(false);
        peer.rest(Duration::from_millis(100)).await;
        peer.port.cable.set_up(true);
        peer.until(serve_for(Duration::from_millis(500))).await;
        assert_eq!(*dhcp.acks.borrow(), 3);
        assert_eq!(app.0.address(), Some(Ipv4Cidr::new(SERVER, 24)));
        peer.send(handle, request("/a.txt", "").as_bytes()).await;
        peer.until(|s| s.get::<tcp::Socket>(handle).can_recv().then_some(())).await;
        // Nobody renews: the address is given up in the end.
        peer.rest(Duration::from_millis(4500)).await;
        assert_eq!(app.0.address(), None);
    });
}

fn dhcp_setup() -> Setup {
    Setup { addressing: Addressing::Dhcp, ..Setup::default() }
}

/// Lets the peer's DHCP server answer until there is an address.
async fn address(peer: &mut Peer, app: &App) {
    let dhcp = Dhcp::new(peer, 60, app.0.with_nic(|nic| nic.mac));
    let serves = peer.until(|sockets| {
        dhcp.answer(sockets);
        None::<()>
    });
    select(app.0.wait_address(), serves).await;
}

/// A client asked for our hardware address before we knew that it is ours: it does not have to ask again.
#[test]
fn a_client_that_waits_for_the_address_is_answered_at_once() {
    with_server(dhcp_setup(), |mut peer, app| async move {
        let handle = peer.connect();
        peer.rest(Duration::from_millis(100)).await;
        address(&mut peer, &app).await;
        let start = Clock::now();
        peer.until(|sockets| sockets.get::<tcp::Socket>(handle).may_send().then_some(())).await;
        assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    });
}

/// So does its SYN count; and whoever sends many does not fill our memory.
#[test]
fn a_syn_before_the_address_is_answered_later() {
    for (sent, taken) in [(0, 0), (1, 1), (5, 5), (5_000, 16)] {
        with_server(dhcp_setup(), move |mut peer, app| async move {
            let mac = app.0.with_nic(|nic| nic.mac);
            for n in 0..sent {
                peer.port.cable.send(0, syn_frame(peer.port.mac, mac, n));
            }
            peer.rest(Duration::from_millis(100)).await;
            address(&mut peer, &app).await;
            peer.rest(Duration::from_millis(50)).await;
            assert_eq!(app.0.tcp().handshakes, taken, "{sent} sent");
        });
    }
}
