//! The network between load and guest: a tap device in a network namespace that ends with its process.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::qemu::{self, Machine};

/// Our end.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Says that this process is in the namespace already.
const INSIDE: &str = "RINGFENCE_INSIDE";

/// A command that runs this program with `arguments` in a namespace.
pub fn inside(arguments: &[&str]) -> Result<Command> {
    let unshare = if rustix::process::geteuid().is_root() { "-n" } else { "-rn" };
    let program = std::env::current_exe()?;
    let words = [unshare.into(), program.into()].into_iter().chain(arguments.iter().map(Into::into));
    let mut command = qemu::tethered("unshare", words.collect())?;
    command.env(INSIDE, "1");
    Ok(command)
}

/// Whether this process is one that [`inside`] started.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Makes the tap device in this process's namespace, and a thread that tells the guest its address.
pub fn set_up() -> Result<()> {
    let script = format!(
        "ip link set lo up; ip tuntap add ringfence mode tap vnet_hdr
         echo 1 >/proc/sys/net/ipv6/conf/ringfence/disable_ipv6 || true
         ip addr add {HOST}/24 dev ringfence; ip link set ringfence up
         ip route add 255.255.255.255 dev ringfence"
    );
    let made = Command::new("sh").args(["-ec", &script]).output()?;
    ensure!(made.status.success(), "no tap device: {}", String::from_utf8_lossy(&made.stderr).trim());
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).context("cannot serve DHCP")?;
    socket.set_broadcast(true)?;
    std::thread::spawn(move || serve_dhcp(&socket));
    Ok(())
}

/// Gives `machine` a network card on the tap device, with `properties` of its own.
pub fn add_card(machine: &mut Machine, properties: &str) {
    machine.add("-netdev tap,id=net0,ifname=ringfence,script=no,downscript=no,vhost=off");
    machine.add(&format!("-device virtio-net-pci,netdev=net0,romfile={properties}"));
}

fn serve_dhcp(socket: &UdpSocket) {
    let mut packet = [0; 1024];
    while let Ok((length, _)) = socket.recv_from(&mut packet) {
        if let Some(answer) = answer(&packet[..length]) {
            // Nobody there: the guest asks again.
            let _ = socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68));
        }
    }
}

/// Where DHCP's options begin, after their magic number.
const OPTIONS: usize = 240;

/// What a DHCP server says to `request`.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let mut options = request.get(OPTIONS..)?;
    let kind = loop {
        match options {
            [53, 1, kind, ..] => break *kind,
            [0, rest @ ..] => options = rest,
            [_, length, rest @ ..] => options = rest.get(usize::from(*length)..)?,
            _ => return None,
        }
    };
    let kind = match kind {
        1 => 2, // an offer for who looks for one
        3 => 5, // yes
        _ => return None,
    };
    let mut answer = request[..OPTIONS].to_vec();
    answer[0] = 2;
    answer[16..20].copy_from_slice(&GUEST.octets());
    answer.extend([53, 1, kind]);
    for (option, value) in [(54, HOST), (1, MASK), (3, HOST), (51, Ipv4Addr::new(0, 1, 0, 0))] {
        answer.extend([option, 4]);
        answer.extend(value.octets());
    }
    answer.push(255);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_its_address() {
        let request = |options: &[u8]| [&[1][..], &[7; OPTIONS - 1], options].concat();
        for (asked, told) in [(1, 2), (3, 5)] {
            let answer = answer(&request(&[0, 61, 2, 9, 9, 53, 1, asked, 255])).unwrap();
            assert_eq!((answer[0], &answer[4..8], &answer[16..20]), (2, &[7; 4][..], &GUEST.octets()[..]));
            assert_eq!(answer[OPTIONS..OPTIONS + 3], [53, 1, told]);
        }
        for wrong in [&[][..], &[53], &[53, 1], &[61, 9, 1], &[53, 1, 7]] {
            assert_eq!(answer(&request(wrong)), None);
        }
        assert_eq!(answer(&[1; 100]), None);
    }
}
