//! A fixed address as a person writes it: `10.0.0.2/24`, or `10.0.0.2/24,10.0.0.1` with a gateway.
//!
//! Part of xtask too, which so refuses before a boot what the kernel would refuse.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use core::str::FromStr;

/// An address, the network that it is in, and who leads out of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address: one that a host in that network can have.
    pub address: Ipv4Addr,
    /// Leading bits that the addresses of the network share, 1 to 31.
    pub prefix: u8,
    /// Another address of the network.
    pub gateway: Option<Ipv4Addr>,
}

/// Why a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no slash.
    #[error("a prefix length is wanted behind the address, as in 10.0.0.2/24")]
    NoPrefix,
    /// What is there is no number, or not from 1 to 31.
    #[error("the prefix length must be a number from 1 to 31")]
    Prefix,
    /// The address is not four numbers with dots between.
    #[error("the address must be one of IPv4, as in 10.0.0.2/24")]
    Address,
    /// The gateway is not.
    #[error("the gateway must be an address of IPv4, as in 10.0.0.2/24,10.0.0.1")]
    Gateway,
    /// One of the two is of IPv6.
    #[error("IPv6 is not there yet")]
    Ipv6,
    /// The address means several hosts, none, or the own one, everywhere or in this network.
    #[error("no host can have this address in this network")]
    NotAHost,
    /// The gateway cannot be reached, or is the address.
    #[error("the gateway must be another host of the same network")]
    GatewayElsewhere,
}

impl FromStr for StaticAddress {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let (own, gateway) = match text.split_once(',') {
            Some((own, gateway)) => (own, Some(ipv4(gateway, Wrong::Gateway)?)),
            None => (text, None),
        };
        let (address, prefix) = own.split_once('/').ok_or(Wrong::NoPrefix)?;
        let address = ipv4(address, Wrong::Address)?;
        let prefix = prefix.parse().ok().filter(|bits| (1..=31).contains(bits)).ok_or(Wrong::Prefix)?;
        if !is_host(address, prefix) {
            return Err(Wrong::NotAHost);
        }
        let leads = |gateway: Ipv4Addr| {
            let differ = gateway.to_bits() ^ address.to_bits();
            differ != 0 && differ >> (32 - prefix) == 0 && is_host(gateway, prefix)
        };
        if gateway.is_some_and(|gateway| !leads(gateway)) {
            return Err(Wrong::GatewayElsewhere);
        }
        Ok(Self { address, prefix, gateway })
    }
}

fn ipv4(text: &str, otherwise: Wrong) -> Result<Ipv4Addr, Wrong> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(address),
        Ok(IpAddr::V6(_)) => Err(Wrong::Ipv6),
        Err(_) => Err(otherwise),
    }
}

/// Whether a host can have `address` in a network with this prefix. One of two has no address for itself or
/// for all (RFC 3021).
fn is_host(address: Ipv4Addr, prefix: u8) -> bool {
    let rest = u32::MAX >> prefix;
    let host = address.to_bits() & rest;
    let special = address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224;
    !special && (prefix == 31 || (host != 0 && host != rest))
}

impl fmt::Display for StaticAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, ",{gateway}"))
    }
}
