//! Netfilter faults, built with libnftnl: what a firewall in the middle or on
//! a host drops, in a table of its own that is deleted when the fault heals.

use std::ffi::CStr;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use nftnl::expr::{CmpOp, InterfaceName};
use nftnl::{
    Batch, Chain, ChainType, FinalizedBatch, Hook, MsgType, Policy, ProtoFamily, Rule, Table,
    nft_expr,
};

use crate::netns::Netns;
use crate::topology::Shape;

const TABLE: &CStr = c"overlaywatch-lab";
const CHAIN: &CStr = c"drops";
/// ETH_P_IP, in network order.
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// IPPROTO_UDP.
const UDP: u8 = 17;
/// IPPROTO_IPIP.
const IPIP: u8 = 4;
/// Offset of "total length" in the IPv4 header (RFC 791).
const TOTAL_LENGTH: u32 = 2;
/// Offset of flags and "fragment offset" there.
const FRAGMENT: u32 = 6;
/// "More fragments" and the fragment offset: zero in a packet that is whole.
const FRAGMENT_MASK: u16 = 0x3fff;
/// The table and the chain that iptables-nft, and so Docker, keep rules on
/// forwarding in.
const FORWARD_TABLE: &CStr = c"filter";
const FORWARD_CHAIN: &CStr = c"FORWARD";

/// Where packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between the ports of the switch: neither node can see it.
    Middle,
    /// On the router between the subnets: neither node can see it.
    Router,
    /// Where a node takes in what is meant for it.
    Input,
    /// Where a node sends what it made itself; encapsulated packets too.
    Output,
}

impl Place {
    const fn family(self) -> ProtoFamily {
        match self {
            Self::Middle => ProtoFamily::Bridge,
            Self::Router | Self::Input | Self::Output => ProtoFamily::Ipv4,
        }
    }

    const fn hook(self) -> Hook {
        match self {
            Self::Middle | Self::Router => Hook::Forward,
            Self::Input => Hook::In,
            Self::Output => Hook::Out,
        }
    }
}

/// Packets to drop: those that match all that is given.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// Port of the switch that they come in by; matches anything but IP too.
    pub in_port: Option<String>,
    /// Port of the switch that they leave by; matches anything but IP too.
    pub out_port: Option<String>,
    /// IPv4 source.
    pub from: Option<Ipv4Addr>,
    /// IPv4 destination.
    pub to: Option<Ipv4Addr>,
    /// The protocol inside IPv4.
    pub protocol: Option<u8>,
    /// UDP destination port.
    pub udp_to: Option<u16>,
    /// UDP source port.
    pub udp_from: Option<u16>,
    /// IPv4 packets longer than this, bytes.
    pub longer_than: Option<u16>,
    /// IPv4 fragments, first ones too.
    pub fragments: bool,
    /// Only that share of them, percent, at random.
    pub percent: Option<u8>,
}

impl Drops {
    /// Everything that goes through the tunnels of a shape.
    #[must_use]
    pub fn tunnelled(shape: Shape) -> Self {
        if shape.is_vxlan() { Self::vxlan(shape) } else { Self::ipip() }
    }

    /// The VXLAN of a shape.
    #[must_use]
    pub fn vxlan(shape: Shape) -> Self {
        Self { udp_to: Some(shape.port()), ..Self::default() }
    }

    /// IPIP.
    #[must_use]
    pub fn ipip() -> Self {
        Self { protocol: Some(IPIP), ..Self::default() }
    }
}

/// Drops `what` at `place` until [`pass`] is called for it.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or without nftables in the kernel.
pub fn drop(netns: &Netns, place: Place, what: &[Drops]) -> Result<()> {
    netns.enter(|| {
        let table = Table::new(TABLE, place.family());
        let mut chain = Chain::new(CHAIN, &table);
        chain.set_type(ChainType::Filter);
        chain.set_hook(place.hook(), 0);
        chain.set_policy(Policy::Accept);
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Add);
        batch.add(&chain, MsgType::Add);
        for drops in what {
            batch.add(&rule(&chain, place, drops)?, MsgType::Add);
        }
        commit(&batch.finalize()).context("nftables refused a fault's rules")
    })
}

/// Lets pass again what [`drop`] dropped at `place`.
///
/// # Errors
/// When nothing was dropped there.
pub fn pass(netns: &Netns, place: Place) -> Result<()> {
    netns.enter(|| {
        let table = Table::new(TABLE, place.family());
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Del);
        commit(&batch.finalize()).context("nftables refused to delete a fault's table")
    })
}

/// Gives the node's table for forwarding the policy to drop: what a container
/// runtime or a firewall manager does when it starts.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or without nftables in the kernel.
pub fn forward_nothing(netns: &Netns) -> Result<()> {
    netns.enter(|| {
        let table = Table::new(FORWARD_TABLE, ProtoFamily::Ipv4);
        let mut chain = Chain::new(FORWARD_CHAIN, &table);
        chain.set_type(ChainType::Filter);
        chain.set_hook(Hook::Forward, 0);
        chain.set_policy(Policy::Drop);
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Add);
        batch.add(&chain, MsgType::Add);
        commit(&batch.finalize()).context("nftables refused a policy for forwarding")
    })
}

/// Undoes [`forward_nothing`].
///
/// # Errors
/// When it was not done.
pub fn forward_again(netns: &Netns) -> Result<()> {
    netns.enter(|| {
        let table = Table::new(FORWARD_TABLE, ProtoFamily::Ipv4);
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Del);
        commit(&batch.finalize()).context("nftables refused to delete a table")
    })
}

fn rule<'a>(chain: &'a Chain<'a>, place: Place, drops: &Drops) -> Result<Rule<'a>> {
    let mut rule = Rule::new(chain);
    if let Some(port) = &drops.in_port {
        rule.add_expr(&nft_expr!(meta iifname));
        rule.add_expr(&nft_expr!(
            cmp == &InterfaceName::Exact(std::ffi::CString::new(port.as_str())?)
        ));
    }
    if let Some(port) = &drops.out_port {
        rule.add_expr(&nft_expr!(meta oifname));
        rule.add_expr(&nft_expr!(
            cmp == &InterfaceName::Exact(std::ffi::CString::new(port.as_str())?)
        ));
    }
    let looks_into_ip = drops.from.is_some()
        || drops.to.is_some()
        || drops.protocol.is_some()
        || drops.udp_to.is_some()
        || drops.udp_from.is_some()
        || drops.longer_than.is_some()
        || drops.fragments;
    if looks_into_ip && place == Place::Middle {
        rule.add_expr(&nft_expr!(meta proto));
        rule.add_expr(&nft_expr!(cmp == ETHERTYPE_IPV4.as_slice()));
    }
    if let Some(from) = drops.from {
        rule.add_expr(&nft_expr!(payload ipv4 saddr));
        rule.add_expr(&nft_expr!(cmp == from));
    }
    if let Some(to) = drops.to {
        rule.add_expr(&nft_expr!(payload ipv4 daddr));
        rule.add_expr(&nft_expr!(cmp == to));
    }
    if let Some(protocol) = drops.protocol {
        rule.add_expr(&nft_expr!(meta l4proto));
        rule.add_expr(&nft_expr!(cmp == protocol));
    }
    if drops.udp_to.is_some() || drops.udp_from.is_some() {
        rule.add_expr(&nft_expr!(meta l4proto));
        rule.add_expr(&nft_expr!(cmp == UDP));
    }
    if let Some(port) = drops.udp_to {
        rule.add_expr(&nft_expr!(payload udp dport));
        rule.add_expr(&nft_expr!(cmp == port.to_be()));
    }
    if let Some(port) = drops.udp_from {
        rule.add_expr(&nft_expr!(payload udp sport));
        rule.add_expr(&nft_expr!(cmp == port.to_be()));
    }
    if let Some(bytes) = drops.longer_than {
        rule.add_expr(&nft_expr!(payload_raw nh TOTAL_LENGTH, 2));
        rule.add_expr(&nftnl::expr::Cmp::new(CmpOp::Gt, bytes.to_be()));
    }
    if drops.fragments {
        rule.add_expr(&nft_expr!(payload_raw nh FRAGMENT, 2));
        rule.add_expr(&nft_expr!(bitwise mask FRAGMENT_MASK.to_be(), xor 0_u16));
        rule.add_expr(&nft_expr!(cmp != 0_u16));
    }
    if let Some(percent) = drops.percent {
        // The registers are compared byte by byte: big-endian, as the random
        // number is uniform in any order of its bytes.
        let below = u32::MAX / 100 * u32::from(percent);
        rule.add_expr(&nft_expr!(meta random));
        rule.add_expr(&nftnl::expr::Cmp::new(CmpOp::Lt, below.to_be()));
    }
    rule.add_expr(&nft_expr!(counter));
    rule.add_expr(&nft_expr!(verdict drop));
    Ok(rule)
}

/// Sends the batch from the calling thread's namespace and reads every answer.
///
/// # Errors
/// When the kernel refuses it.
pub fn commit(batch: &FinalizedBatch) -> Result<()> {
    let socket = mnl::Socket::new(mnl::Bus::Netfilter)?;
    let port = socket.portid();
    socket.send_all(batch)?;
    let mut buffer = vec![0; usize::try_from(nftnl::nft_nlmsg_maxsize())?];
    let mut expected = batch.sequence_numbers();
    while !expected.is_empty() {
        for message in socket.recv(&mut buffer[..])? {
            let message = message?;
            let Some(sequence) = expected.next() else { break };
            mnl::cb_run(message, sequence, port)?;
        }
    }
    Ok(())
}
