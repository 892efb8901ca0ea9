//! What the kernel says of tracked connections and of TCP sockets.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_SOCK_DIAG};

use crate::Seeds;
use crate::kernel::{HEADER_BYTES, dump_of};

/// A tunnel's flow, one that was answered, one without ports, and one of IPv6.
const CONNECTIONS: &str = "\
-I -p udp -s 10.0.0.11 -d 10.0.0.12 --sport 40000 --dport 8472 --timeout 600
-I -p udp -s 10.0.0.11 -d 10.0.0.1 --sport 40001 --dport 53 --timeout 600 -u SEEN_REPLY,ASSURED
-I -p 4 -s 10.0.0.11 -d 10.0.0.12 --timeout 600
-I -p tcp -s fd00::b -d fd00::c --sport 40002 --dport 443 --state ESTABLISHED --timeout 600
";
/// `IPCTNL_MSG_CT_GET` and `_GET_STATS_CPU` of `NFNL_SUBSYS_CTNETLINK`.
const ENTRIES: u16 = 1 << 8 | 1;
const COUNTERS: u16 = 1 << 8 | 4;
/// `SOCK_DIAG_BY_FAMILY`.
const SOCKETS: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const SOCKETS_REQUEST_BYTES: usize = 56;

/// In the namespace that this process is in.
pub(crate) fn write() -> Result<()> {
    let file = std::env::temp_dir().join(format!("connections-{}", std::process::id()));
    fs::write(&file, CONNECTIONS)?;
    let done = Command::new("conntrack").arg("-R").arg(&file).status();
    fs::remove_file(&file)?;
    ensure!(done.context("is conntrack installed?")?.success(), "conntrack -R failed");
    let mut seeds = Seeds::of("conntrack")?;
    for (name, kind) in [("entry", ENTRIES), ("counters", COUNTERS)] {
        for message in dump_of(NETLINK_NETFILTER, kind, &[0; 4])? {
            seeds.add(name, message.get(HEADER_BYTES..).unwrap_or_default())?;
        }
    }
    seeds.add("file", &fs::read("/proc/thread-self/net/stat/nf_conntrack")?)?;
    let mut seeds = Seeds::of("sockets")?;
    let listener = TcpListener::bind("127.0.0.1:9099")?;
    let six = TcpListener::bind("[::]:0")?;
    let _streams = [
        TcpStream::connect(listener.local_addr()?)?,
        TcpStream::connect(("127.0.0.1", six.local_addr()?.port()))?,
    ];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = vec![u8::try_from(family)?, u8::try_from(libc::IPPROTO_TCP)?, 0, 0];
        body.extend(u32::MAX.to_ne_bytes());
        body.resize(SOCKETS_REQUEST_BYTES, 0);
        for message in dump_of(NETLINK_SOCK_DIAG, SOCKETS, &body)? {
            seeds.add("socket", message.get(HEADER_BYTES..).unwrap_or_default())?;
        }
    }
    seeds.add("ready", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    seeds.add("not-ready", b"HTTP/1.1 503 Service Unavailable\r\nDate: now\r\n\r\n")
}
