//! A flannel-shaped node as the assembly would publish it, and a server of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use overlaywatch::published::Published;
use overlaywatch::serve::{self, Limits};
use overlaywatch_core::assembly::{Assembly, Change, SourceId, SourceReport, Update};
use overlaywatch_core::diagnose;
use overlaywatch_core::model::{
    Address, Encapsulation, FdbEntry, FdbKey, IfIndex, Link, LinkCounters, LinkKind, Mac,
    Neighbour, NeighbourState, NextHop, PeerId, PeerListEntry, Route, RouteKey, RouteKind, Vxlan,
    protocol, table,
};
use overlaywatch_core::pairs::{PairView, RoundTrip, Run, StreamView, Tally, Total};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::probing::Stream;
use overlaywatch_core::snapshot::{NodeIdentity, Snapshot};
use overlaywatch_core::time::{Mono, Now, SECOND, Wall};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The tunnel of all fixtures.
pub(crate) const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
const UPLINK: IfIndex = IfIndex(2);
const FLANNEL: IfIndex = IfIndex(3);
/// 2026-01-02T03:04:05Z.
const NOW: Now = Now { mono: Mono(1_000 * SECOND), wall: Wall(1_767_323_045_000) };

/// How a peer fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Healthy,
    /// Probes through the tunnel never arrive there.
    DeadOutbound,
    /// No probe was answered or lost yet.
    Unproved,
}

fn underlay(peer: usize) -> IpAddr {
    let peer = u16::try_from(peer + 2).unwrap();
    Ipv4Addr::from([10, 0, peer.to_be_bytes()[0], peer.to_be_bytes()[1]]).into()
}

fn overlay(peer: usize) -> IpAddr {
    let peer = u16::try_from(peer + 2).unwrap();
    Ipv4Addr::from([10, 42 + peer.to_be_bytes()[0], peer.to_be_bytes()[1], 0]).into()
}

fn mac(peer: usize) -> Mac {
    let [high, low] = u16::try_from(peer + 2).unwrap().to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}

/// node-a, node-b, ... node-z, node-26, ...
fn name(node: usize) -> String {
    match u8::try_from(node) {
        Ok(letter @ 0..26) => format!("node-{}", char::from(b'a' + letter)),
        _ => format!("node-{node}"),
    }
}

fn link(index: IfIndex, name: &str, kind: LinkKind, mtu: u32) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind,
        mac: Some(mac(0)),
        mtu,
        admin_up: true,
        carrier: true,
        master: None,
        counters: LinkCounters::default(),
    }
}

fn stream(lost_outbound: u32, answered: u32) -> StreamView {
    let at = NOW.mono;
    let tally =
        Tally { sent: lost_outbound + answered, answered, lost_outbound, ..Tally::default() };
    StreamView {
        recent: tally,
        run: Run {
            outbound: lost_outbound,
            first: at.minus(4 * SECOND),
            last: at.minus(SECOND),
            ..Run::default()
        },
        minute: tally,
        total: Total {
            sent: tally.sent.into(),
            answered: answered.into(),
            lost: lost_outbound.into(),
            ..Total::default()
        },
        round_trip: (answered > 0).then_some(RoundTrip {
            min_ns: 200_000,
            mean_ns: 250_000,
            max_ns: 400_000,
            last_ns: 250_000,
        }),
        last_answer: (answered > 0).then_some(at.minus(SECOND / 2)),
        ..StreamView::default()
    }
}

/// What node-a sees of its peers node-b, node-c and so on.
pub(crate) fn snapshot(fates: &[Fate]) -> Snapshot {
    let node = NodeIdentity { epoch: 7, version: "0.1.0".to_owned(), ..NodeIdentity::default() };
    let mut assembly = Assembly::new(node, None, Policy::default());
    let mut fold = |update| assembly.fold(update, NOW.mono);
    let own: IpAddr = [10, 0, 0, 1].into();
    let vxlan = Vxlan { vni: 1, port: 8472, local: Some(own), ..Vxlan::default() };
    fold(Update::Links(Change::Replace(vec![
        link(UPLINK, "eth0", LinkKind::Plain, 1500),
        link(FLANNEL, "flannel.1", LinkKind::Vxlan(vxlan), 1450),
    ])));
    fold(Update::Addresses(Change::Replace(vec![
        Address { index: UPLINK, net: "10.0.0.1/16".parse().unwrap() },
        Address { index: FLANNEL, net: "10.42.0.0/32".parse().unwrap() },
    ])));
    let route = |destination: String, gateway, device, onlink| Route {
        key: RouteKey {
            table: table::MAIN,
            destination: destination.parse().unwrap(),
            metric: 0,
            tos: 0,
        },
        kind: RouteKind::Unicast,
        protocol: protocol::BOOT,
        source: None,
        next_hop: NextHop { gateway, device: Some(device), onlink },
        more_next_hops: Vec::new(),
    };
    let peers = 0..fates.len();
    let pods = peers.clone().map(|peer| {
        let gateway = overlay(peer);
        route(format!("{gateway}/24"), Some(gateway), FLANNEL, true)
    });
    let wire = route("10.0.0.0/16".to_owned(), None, UPLINK, false);
    fold(Update::Routes(Change::Replace(pods.chain([wire]).collect())));
    fold(Update::Rules(Change::Replace(Vec::new())));
    let neighbour = |peer| Neighbour {
        index: FLANNEL,
        address: overlay(peer),
        mac: Some(mac(peer)),
        state: NeighbourState::Permanent,
    };
    fold(Update::Neighbours(Change::Replace(peers.clone().map(neighbour).collect())));
    let entry = |peer| FdbEntry {
        key: FdbKey { index: FLANNEL, mac: mac(peer), destination: Some(underlay(peer)) },
        permanent: true,
        vni: None,
        port: None,
    };
    fold(Update::Fdb(Change::Replace(peers.clone().map(entry).collect())));
    let listed = |address, node| PeerListEntry {
        address,
        name: Some(name(node).parse().unwrap()),
        overlay: None,
    };
    let list = peers.clone().map(|peer| listed(underlay(peer), peer + 1));
    fold(Update::PeersFile(Some(list.chain([listed(own, 0)]).collect())));
    for source in SourceId::ALL {
        let duration_ns = 2_000_000;
        fold(Update::Source(SourceReport {
            source,
            gap: None,
            detail: String::new(),
            duration_ns,
        }));
    }
    let mut snapshot = assembly.freeze(NOW);
    for (peer, fate) in fates.iter().enumerate() {
        let small = match fate {
            Fate::Healthy => stream(0, 60),
            Fate::DeadOutbound => stream(12, 0),
            Fate::Unproved => continue,
        };
        let streams = [(Stream::Underlay, stream(0, 60)), (Stream::Small(VXLAN), small)]
            .map(|(stream, view)| (stream, Box::new(view)));
        let streams = BTreeMap::from(streams);
        let view = PairView { streams, status: None, last_asked: None };
        snapshot.pairs.insert(PeerId(underlay(peer)), Arc::new(view));
    }
    snapshot
}

/// The value that a tick publishes of it.
pub(crate) fn published(tick: u64, snapshot: Snapshot) -> Arc<Published> {
    let diagnosis = diagnose::replay(None, &snapshot, &Policy::default());
    Arc::new(Published {
        tick,
        before: None,
        snapshot: Arc::new(snapshot),
        diagnosis: Arc::new(diagnosis),
    })
}

/// A server on a free port of the loopback.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) publish: watch::Sender<Option<Arc<Published>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(limits: Limits) -> Self {
        let listener = serve::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (publish, publication) = watch::channel(None);
        let task = tokio::spawn(async move {
            serve::run(listener, publication, limits).await;
        });
        Self { address, publish, task }
    }

    pub(crate) async fn of(fates: &[Fate]) -> Self {
        let server = Self::start(Limits::default()).await;
        server.publish.send_replace(Some(published(1, snapshot(fates))));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
