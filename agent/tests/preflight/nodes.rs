//! Two nodes, a router between them, and `preflight` at both ends, or what an
//! agent has of it at one.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use overlaywatch::cli::{Command, Exit, PodPair, parse_from};
use overlaywatch::preflight::{self, Acquaintance};
use overlaywatch::serve::text::Paint;

use crate::namespace::Namespace;

pub(crate) const A: &str = "10.0.1.1";
pub(crate) const B: &str = "10.0.2.2";
/// The same nodes where they talk IPv6.
pub(crate) const A6: &str = "fd00:1::1";
pub(crate) const B6: &str = "fd00:2::2";
pub(crate) const PODS_OF_A6: &str = "fd01:1::,fd01:2::";
pub(crate) const PODS_OF_B6: &str = "fd01:2::,fd01:1::";
pub(crate) const PODS_OF_A: &str = "10.244.1.0/24,10.244.2.0/24";
pub(crate) const PODS_OF_B: &str = "10.244.2.0/24,10.244.1.0/24";

/// How a run ended, and what it printed.
pub(crate) type Ended = Result<(Exit, String), String>;

pub(crate) struct Nodes {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) router: Namespace,
}

impl Nodes {
    /// The router knows where the pods are.
    pub(crate) fn new() -> Self {
        let nodes = Self { a: Namespace::new(), b: Namespace::new(), router: Namespace::new() };
        for (n, node, to) in [(1, &nodes.a, "to-a"), (2, &nodes.b, "to-b")] {
            nodes.router.sh(&format!("ip link add {to} type veth peer name {to}-end"));
            nodes.router.give(&format!("{to}-end"), node);
            nodes.router.sh(&format!(
                "ip addr add 10.0.{n}.254/24 dev {to}
                 ip link set {to} up
                 ip route add 10.244.{n}.0/24 via 10.0.{n}.{n} dev {to} onlink"
            ));
            // No address of IPv6 comes and goes meanwhile.
            node.sh(&format!(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1
                 ip link set {to}-end name eth0
                 ip addr add 10.0.{n}.{n}/24 dev eth0
                 ip link set eth0 up
                 ip route add default via 10.0.{n}.254"
            ));
        }
        nodes.router.sh("sysctl -qw net.ipv4.ip_forward=1
            nft 'add table t; add chain t f { type filter hook forward priority 0; }'");
        nodes
    }

    /// Adds a rule for what the router forwards.
    pub(crate) fn filter(&self, rule: &str) {
        self.router.sh(&format!("nft 'add rule t f {rule}'"));
    }

    /// Gives both nodes and the router addresses of IPv6, beside the others.
    pub(crate) fn add_ipv6(&self) {
        for (n, node, to) in [(1, &self.a, "to-a"), (2, &self.b, "to-b")] {
            self.router.sh(&format!(
                "ip addr add fd00:{n}::254/64 dev {to} nodad
                 ip route add fd01:{n}::/64 via fd00:{n}::{n} dev {to} onlink"
            ));
            node.sh(&format!(
                "sysctl -qw net.ipv6.conf.eth0.accept_dad=0
                 sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0
                 ip addr add fd00:{n}::{n}/64 dev eth0 nodad
                 ip route add default via fd00:{n}::254"
            ));
        }
        self.router.sh("sysctl -qw net.ipv6.conf.all.forwarding=1
            nft 'add table ip6 t; add chain ip6 t f { type filter hook forward priority 0; }'");
    }

    /// Lets node B answer as its agent does that has `peer` as a peer, and that
    /// knows `pods` as its own and that peer's.
    pub(crate) fn attend(&self, peer: &str, pods: &str) {
        let known = Known { peer: peer.parse().unwrap(), pods: pods.parse().unwrap() };
        self.b.inside(move || preflight::attend(PORT, known).unwrap()).join().unwrap();
        let ready = Duration::from_secs(10);
        let listens = format!("grep -i ':{PORT:04x} ' /proc/self/net/tcp6");
        let start = std::time::Instant::now();
        while self.b.try_sh(&listens).is_empty() {
            assert!(start.elapsed() < ready, "it does not listen");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the kernel has in both nodes that a run could leave behind. Of TCP
    /// only what is open: a closed connection's TIME_WAIT (06) is the kernel's.
    pub(crate) fn state(&self) -> [String; 2] {
        let line = "ip -o link | sed 's/state.*//'; ip addr | grep inet; ip rule
            ip route show table all; ip tunnel 2>&1; nft list ruleset
            cd /proc/self/net; tail -n +2 raw raw6 packet udp udp6
            tail -n +2 tcp tcp6 | awk '$4 != \"06\"'";
        [&self.a, &self.b].map(|node| node.try_sh(line))
    }

    /// One end that serves the other once: how both end.
    pub(crate) fn run(&self, serving: &[&str], asking: &[&str]) -> (Ended, Ended) {
        let serving = [&["--serve", A, "--once", "--for", "60"], serving].concat();
        let server = self.serve(&serving);
        let asked = self.ask(asking);
        if asked.is_err() {
            // It would wait for somebody who asks as he should.
            return (Err("not served".to_owned()), asked);
        }
        (server.join().unwrap(), asked)
    }

    /// Starts to serve on node B; it listens when this returns.
    pub(crate) fn serve(&self, arguments: &[&str]) -> thread::JoinHandle<Ended> {
        let (ready, wait) = mpsc::channel();
        let arguments = owned(arguments);
        let server = self.b.inside(move || run(&arguments, Out { text: Vec::new(), ready }));
        wait.recv_timeout(Duration::from_secs(30)).expect("it does not serve");
        server
    }

    /// Asks node B from node A.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Ended {
        self.ask_at(B, arguments)
    }

    /// The same at one of its addresses.
    pub(crate) fn ask_at(&self, address: &str, arguments: &[&str]) -> Ended {
        let arguments = owned(&[&[address], arguments].concat());
        let (ready, _wait) = mpsc::channel();
        self.a.inside(move || run(&arguments, Out { text: Vec::new(), ready })).join().unwrap()
    }
}

/// The port of preflights.
const PORT: u16 = 9978;

/// What an agent would know.
struct Known {
    peer: IpAddr,
    pods: PodPair,
}

impl Acquaintance for Known {
    fn is_peer(&self, address: IpAddr) -> bool {
        address == self.peer
    }

    fn has_pods(&self, peer: IpAddr, pods: PodPair) -> bool {
        (peer, pods) == (self.peer, self.pods)
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

fn run(arguments: &[String], mut out: Out) -> Ended {
    let line = ["overlaywatch", "preflight"].map(str::to_owned).into_iter();
    let command = parse_from(line.chain(arguments.iter().cloned())).unwrap();
    let Command::Preflight(args) = command else { panic!("not a preflight") };
    let exit = preflight::run(&args, 7, Paint::Plain, &mut out);
    let exit = exit.map_err(|error| error.to_string())?;
    Ok((exit, String::from_utf8(out.text).unwrap()))
}

/// Keeps what is printed, and tells when that is flushed.
struct Out {
    text: Vec<u8>,
    ready: mpsc::Sender<()>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Only the first one is waited for.
        let _ = self.ready.send(());
        Ok(())
    }
}
