//! Packets of less usual shapes: IPv6 outside, VLAN tags, no Ethernet header.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use overlaywatch_core::kernel::Attach;
use overlaywatch_core::kernel::HookedDevice;
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::Stream;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::bench::{
    Loader, Namespace, Pins, SMALL, VXLAN, device, index, options, pair, plan, probe, send,
    underlay,
};

const EPOCH: u64 = 0x1111_2222_3333_4444;

/// An IPv4 packet with UDP between the ports of probes.
pub(crate) fn udp_packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    ip_packet(from, to, 9977, payload)
}

fn ip_packet(from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend(from);
    bytes.extend(to);
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend((length - 20).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A probe in VXLAN: the outer IPv4 packet.
fn vxlan_packet(from: [u8; 4], to: [u8; 4], message: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    payload.extend(udp_packet([10, 244, 2, 0], [10, 244, 1, 0], message));
    ip_packet(from, to, 8472, &payload)
}

#[test]
fn ipv6_outside() {
    let pins = Pins::new();
    let nodes = pair();
    for (n, node) in [1, 2].into_iter().zip(&nodes) {
        let other = 3 - n;
        node.sh(&format!(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0
             ip addr add fd00::{n}/64 dev eth0 nodad
             ip link del flannel.1
             ip link add flannel.1 address 02:00:00:00:00:0{n} type vxlan id 1 dev eth0 \
                 local fd00::{n} remote fd00::{other} dstport 8472 nolearning
             ip addr add 10.244.{n}.0/32 dev flannel.1
             ip link set flannel.1 up
             ip neigh add 10.244.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent
             ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"
        ));
    }
    let [mut one, two] = [1_u8, 2].map(|n| {
        let node = &nodes[usize::from(n) - 1];
        let mut wanted = plan(node, n);
        let peer = PeerId(format!("fd00::{}", 3 - n).parse().unwrap());
        wanted.peers.values_mut().for_each(|known| *known = peer);
        wanted.peers.insert(peer.0.into(), peer);
        Loader::watching(node, options(&pins, Attach::Auto), wanted)
    });
    crate::bench::requests(&nodes[0], 1, SMALL, EPOCH, 0..40);
    let is_all = |w: Option<overlaywatch_core::ladder::Window>| w.is_some_and(|w| w.count == 40);
    one.climb("what left", SMALL, EPOCH, |c| {
        is_all(c.requests.left_nic) && is_all(c.requests.encapsulated)
    });
    two.climb("what came", SMALL, EPOCH, |c| {
        is_all(c.requests.reached_nic) && is_all(c.requests.decapsulated)
    });
    let peer = "fd00::2".parse::<std::net::IpAddr>().unwrap();
    one.wait("traffic with the IPv6 peer", |counts| {
        counts.traffic.iter().any(|t| t.peer == peer && t.packets >= 40).then_some(())
    });
    // Nobody listens any more: an error of ICMPv6 (RFC 4443: 1/4, port unreachable).
    nodes[1].sh("ip link del flannel.1");
    crate::bench::requests(&nodes[0], 1, SMALL, EPOCH, 40..41);
    one.wait("the error", |counts| {
        let is_it = |e: &&overlaywatch_core::kernel::IcmpError| {
            (e.peer, e.from, e.kind, e.code) == (peer, peer, 1, 4) && e.encapsulation == VXLAN
        };
        counts.icmp.iter().find(is_it).map(drop)
    });
}

/// Sends a frame as it is.
fn send_frame(node: &Namespace, device: &str, frame: Vec<u8>) {
    let index = index(node, device).unwrap().0;
    let work = move || {
        let every = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every)))).unwrap();
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: the storage is large and aligned enough for any socket
        // address, and zero is a valid value of each of this one's fields.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_ifindex = i32::try_from(index).unwrap();
        address.sll_halen = 6;
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: all of a sockaddr_ll was filled in.
        let address = unsafe { SockAddr::new(storage, length) };
        socket.send_to(&frame, &address).unwrap();
    };
    node.inside(work).join().unwrap();
}

#[test]
fn frames_with_a_vlan_tag_in_them() {
    let pins = Pins::new();
    let nodes = pair();
    let [one, two] = [1_u8, 2].map(|n| {
        let node = &nodes[usize::from(n) - 1];
        Loader::watching(node, options(&pins, Attach::Auto), plan(node, n))
    });
    for seq in 0..3 {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00]);
        let message = probe(1, SMALL, EPOCH, seq);
        frame.extend(vxlan_packet([10, 0, 0, 2], [10, 0, 0, 1], &message));
        send_frame(&nodes[1], "eth0", frame);
    }
    let is_all = |w: Option<overlaywatch_core::ladder::Window>| w.is_some_and(|w| w.count == 3);
    // Towards node 1, which is the peer that node 2 knows.
    two.climb("what left with a tag", SMALL, EPOCH, |c| is_all(c.requests.left_nic));
    one.climb("what came with a tag", SMALL, EPOCH, |c| is_all(c.requests.reached_nic));
}

/// VLAN devices and bonds as underlay, where this kernel has them.
#[test]
fn devices_on_top_of_devices() {
    let cases = [
        ("vlan", "ip link add link eth0 name up0 type vlan id 5"),
        (
            "bond",
            "ip link add up0 type bond mode active-backup
                  ip link set eth0 down
                  ip link set eth0 master up0",
        ),
        ("macvlan", "ip link add link eth0 name up0 type macvlan mode bridge"),
    ];
    for (kind, make) in cases {
        let pins = Pins::new();
        let nodes = pair();
        let trial = Namespace::new();
        let trial = trial.try_sh(&format!("exec 2>&1; ip link add eth0 type veth\n{make}"));
        if trial.contains("Unknown device type") {
            // Said aloud; the frames themselves are tried above.
            println!("this kernel has no {kind} devices");
            assert_ne!(kind, "macvlan", "every kernel that this is developed on has them");
            continue;
        }
        for (n, node) in [1, 2].into_iter().zip(&nodes) {
            node.sh("ip link del flannel.1");
            node.sh(make);
            node.sh(&format!(
                "ip addr flush dev eth0
                 sysctl -qw net.ipv4.conf.all.arp_ignore=1
                 ip addr add 10.0.0.{n}/24 dev up0
                 ip link set eth0 up
                 ip link set up0 up
                 ip link add flannel.1 address 02:00:00:00:00:0{n} type vxlan id 1 dev up0 \
                     local 10.0.0.{n} dstport 8472 nolearning"
            ));
            node.sh(&format!(
                "ip link set flannel.1 up
                 ip addr add 10.244.{n}.0/32 dev flannel.1
                 ip neigh add 10.244.{o}.0 lladdr 02:00:00:00:00:0{o} dev flannel.1 nud permanent
                 bridge fdb add 02:00:00:00:00:0{o} dev flannel.1 dst 10.0.0.{o}
                 ip route add 10.244.{o}.0/24 via 10.244.{o}.0 dev flannel.1 onlink",
                o = 3 - n
            ));
        }
        let [one, two] = [1_u8, 2].map(|n| {
            let node = &nodes[usize::from(n) - 1];
            let mut wanted = plan(node, n);
            wanted.devices =
                vec![device(node, "up0", None), device(node, "flannel.1", Some(VXLAN))];
            wanted.devices.sort();
            Loader::watching(node, options(&pins, Attach::Auto), wanted)
        });
        crate::bench::requests(&nodes[0], 1, SMALL, EPOCH, 0..20);
        let is_all =
            |w: Option<overlaywatch_core::ladder::Window>| w.is_some_and(|w| w.count == 20);
        one.climb(kind, SMALL, EPOCH, |c| {
            is_all(c.requests.left_nic) && is_all(c.requests.encapsulated)
        });
        two.climb(kind, SMALL, EPOCH, |c| {
            is_all(c.requests.reached_nic) && is_all(c.requests.decapsulated)
        });
    }
}

/// Opens the other end of a tun device.
fn open_tun(node: &Namespace, name: &str) -> File {
    let name = name.to_owned();
    let open = move || {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all of it is integers and bytes, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, &from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = libc::c_char::try_from(from).unwrap();
        }
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
        // SAFETY: TUNSETIFF takes a struct ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        file
    };
    node.inside(open).join().unwrap()
}

#[test]
fn an_underlay_without_ethernet() {
    let pins = Pins::new();
    let node = Namespace::new();
    let mut wire = open_tun(&node, "tun0");
    node.sh("sysctl -qw net.ipv6.conf.tun0.disable_ipv6=1
             ip addr add 10.0.0.1/24 dev tun0
             ip link set tun0 up");
    let tun = HookedDevice { is_ethernet: false, ..device(&node, "tun0", None) };
    let peer = PeerId(underlay(2));
    let wanted = overlaywatch_core::kernel::HookPlan {
        devices: vec![tun],
        ports: [8472].into(),
        peers: [(peer.0.into(), peer)].into(),
    };
    let mut one = Loader::watching(&node, options(&pins, Attach::Auto), wanted);
    for seq in 0..6 {
        let packet = vxlan_packet([10, 0, 0, 2], [10, 0, 0, 1], &probe(1, SMALL, EPOCH, seq));
        wire.write_all(&packet).unwrap();
    }
    one.climb("what came in VXLAN", SMALL, EPOCH, |c| {
        c.requests.reached_nic.is_some_and(|w| w.count == 6)
    });
    one.wait("its traffic", |counts| {
        counts.traffic.iter().any(|t| t.packets == 6 && !t.outbound).then_some(())
    });
    let out = (0..4).map(|seq| probe(1, Stream::Underlay, EPOCH, seq)).collect();
    send(&node, underlay(1), underlay(2), out);
    one.climb("what left bare", Stream::Underlay, EPOCH, |c| {
        c.requests.left_nic.is_some_and(|w| w.count == 4)
    });
}
