//! What the kernel says of a namespace with an overlay in it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};

use crate::{MAX_BYTES, Seeds};

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER_BYTES: usize = 16;
/// The longest of the request headers (`struct ifinfomsg`); the kernel passes
/// over what is too much.
const REQUEST_BYTES: usize = 16;

/// One of everything that a translation tells apart.
const NETWORK: &str = "\
link set lo up
link add eth0 address 02:00:00:00:00:0b type veth peer name wire
link set wire up
link add br0 type bridge
link set eth0 up
addr add 10.0.0.11/24 dev eth0
addr add fd00::b/64 dev eth0 nodad
addr add 10.9.0.1 peer 10.9.0.2/32 dev eth0
link add flannel.1 address 0e:42:00:00:00:01 type vxlan id 1 dev eth0 local 10.0.0.11 dstport 8472 nolearning
link add meta0 type vxlan external dstport 4789
link add vx6 type vxlan id 7 local fd00::b group ff05::7 dev eth0 dstport 4790
link add va type veth peer name vb
link set va master br0
link set flannel.1 up
link set br0 up
addr add 10.42.1.0/32 dev flannel.1
neigh add 10.42.2.0 lladdr 0e:42:00:00:00:02 dev flannel.1 nud permanent
neigh add fd00::c lladdr 02:00:00:00:00:0c dev eth0 nud permanent
neigh add 10.0.0.12 dev eth0 nud failed
neigh add proxy 10.0.0.13 dev eth0
route add default via 10.0.0.1 dev eth0 onlink
route add 10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink
route add 10.42.3.0/24 nexthop via 10.0.0.12 dev eth0 weight 1 nexthop via 10.0.0.13 dev eth0 weight 2
route add blackhole 10.42.4.0/24 proto bird metric 1024
route add 10.42.5.0/24 via inet6 fd00::c dev eth0 table 1000
route add fd00:42::/64 nexthop via fd00::c dev eth0 nexthop via fd00::d dev eth0
route add unreachable fd00:43::/64
rule add from 10.0.0.0/8 to 10.42.0.0/16 fwmark 0x1/0xff lookup 1000 priority 100
rule add iif eth0 lookup 1000 priority 200
rule add blackhole priority 300
";
const FORWARDING: &str = "\
fdb append 0e:42:00:00:00:02 dev flannel.1 dst 10.0.0.12 self permanent
fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.0.0.13 port 4789 vni 9 via eth0 self permanent
fdb append 0e:42:00:00:00:03 dev vx6 dst fd00::c self permanent
fdb append 0e:42:00:00:00:04 dev va master static
";

/// `RTM_GET...`, the address family, and the target that reads the answers.
const DUMPS: [(u16, i32, &str); 5] = [
    (libc::RTM_GETLINK, libc::AF_UNSPEC, "netlink_link"),
    (libc::RTM_GETADDR, libc::AF_UNSPEC, "netlink_address"),
    (libc::RTM_GETROUTE, libc::AF_UNSPEC, "netlink_route"),
    (libc::RTM_GETRULE, libc::AF_UNSPEC, "netlink_rule"),
    (libc::RTM_GETNEIGH, libc::AF_UNSPEC, "netlink_neighbour"),
];

pub(crate) fn write() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace: run this as root")?;
    batch("ip", NETWORK)?;
    batch("bridge", FORWARDING)?;
    let mut datagrams = Seeds::of("netlink_datagram")?;
    for (kind, family, target) in DUMPS {
        let mut messages = dump(kind, family)?;
        if kind == libc::RTM_GETNEIGH {
            messages.extend(dump(kind, libc::AF_BRIDGE)?);
        }
        let mut seeds = Seeds::of(target)?;
        for message in &messages {
            let payload = message.get(HEADER_BYTES..).unwrap_or_default();
            seeds.add("kernel", payload)?;
        }
        datagrams.add(target, &within(&messages))?;
    }
    counters()
}

/// The last messages that fit into a seed together: what was added here.
fn within(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut taken = Vec::new();
    for message in messages.iter().rev() {
        if taken.len() + message.len() > MAX_BYTES {
            break;
        }
        taken.extend_from_slice(message);
    }
    taken
}

/// The messages of a dump of rtnetlink, each padded to four bytes.
fn dump(kind: u16, family: i32) -> Result<Vec<Vec<u8>>> {
    let mut body = vec![u8::try_from(family)?];
    body.resize(REQUEST_BYTES, 0);
    dump_of(NETLINK_ROUTE, kind, &body)
}

/// The messages of a dump, each padded to four bytes.
pub(crate) fn dump_of(protocol: isize, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    let mut request = u32::try_from(HEADER_BYTES + body.len())?.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest)?;
            match header.message_type() {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => bail!("the kernel refuses to dump {kind}"),
                _ => {}
            }
            let padded = usize::try_from(header.length())?.next_multiple_of(4).min(rest.len());
            let (message, after) = rest.split_at(padded);
            found.push(message.to_vec());
            rest = after;
        }
    }
}

/// The files of /proc. The machine's modules are nobody's business: that seed
/// is written by hand.
fn counters() -> Result<()> {
    let mut seeds = Seeds::of("procfs")?;
    for file in ["snmp", "netstat", "softnet_stat"] {
        let path = format!("/proc/thread-self/net/{file}");
        seeds.add(file, &fs::read(&path).context(path)?)?;
    }
    seeds.add("modules", b"vxlan 155648 0 - Live 0x0\nipip 16384 0 - Live 0x0\n")
}

fn batch(program: &str, lines: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("running `{program}`: is iproute2 installed?"))?;
    child.stdin.take().context("a piped child has a stdin")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "`{program} -batch` failed");
    Ok(())
}
