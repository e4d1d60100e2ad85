//! What is done with a network card: it asks for the address of QEMU's gateway (ARP, RFC 826).

use alloc::format;
use alloc::vec::Vec;

use ringfence_drivers::net::{self, Net};
use ringfence_drivers::virtio::{Error, Transport, features};

use crate::println;

const WE: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
/// A frame of ARP for Ethernet and IPv4, and a question in it: the last byte is 2 in an answer.
const ARP: [u8; 10] = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1];

/// Asks, and waits for the answer.
pub fn try_out<T: Transport>(mut card: Net<T>, wait: &dyn Fn()) -> Result<(), Error> {
    let names: Vec<&str> = features::names(net::features::NAMES, card.control.features()).collect();
    println!("features    {}", names.join(" "));
    let mac = card.control.mac();
    let question = [&[0xff; 6], &mac[..], &ARP, &mac, &WE, &[0; 6], &GATEWAY].concat();
    card.pair.send(1, |room| _ = room.write(&question))?;
    card.pair.kick();
    println!("asked       for 10.0.2.2");

    let mut found = None;
    while found.is_none() {
        wait();
        loop {
            card.pair.receive(16, |frame| {
                let mut answer = [0; 42];
                frame.read(&mut answer);
                if answer[12..21] == ARP[..9] && answer[21] == 2 && answer[28..32] == GATEWAY {
                    found = Some([22, 23, 24, 25, 26, 27].map(|at| format!("{:02x}", answer[at])));
                }
            })?;
            card.pair.kick(); // their buffers can be filled again
            if !card.pair.enable_interrupts() {
                break; // nothing came meanwhile: the next one interrupts
            }
        }
    }
    println!("answer      {}", found.unwrap_or_default().join(":"));
    Ok(())
}
