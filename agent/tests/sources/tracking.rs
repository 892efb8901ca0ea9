//! Connection tracking and TCP sockets against a real kernel.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use overlaywatch::source::{Options, conntrack};
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::kernel::{HookPlan, HookedDevice};
use overlaywatch_core::model::{Encapsulation, IfIndex, Service, SessionState, TunnelFlows};
use tokio::sync::watch;

use super::oracle::run;
use super::{Observer, in_namespace, shared};

const FLANNEL: Encapsulation = Encapsulation::Vxlan(8472);

/// Entries of a protocol to a port, as `conntrack -R` reads them.
fn entries(count: u16, port: u16, status: &str) -> String {
    let mut lines = String::new();
    for number in 1..=count {
        writeln!(
            lines,
            "-I -p udp -s 192.0.2.1 -d 198.51.100.1 --sport {number} --dport {port} \
             --timeout 600{status}"
        )
        .unwrap();
    }
    lines
}

fn track(lines: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), lines).unwrap();
    run(&format!("conntrack -R {}", file.path().display()));
}

#[test]
fn tunnels_are_picked_out_of_the_table_by_the_kernel() {
    in_namespace(|| {
        track(&entries(300, 8472, ""));
        track(&entries(40, 4789, ""));
        track(&entries(500, 53, ""));
        track(&entries(25, 53, " -u SEEN_REPLY").replace("198.51.100.1", "198.51.100.2"));
        track("-I -p 4 -s 192.0.2.1 -d 198.51.100.1 --timeout 600\n");
        let table = conntrack::read(&[FLANNEL, Encapsulation::Ipip].into()).unwrap();
        let size = |name| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
            text.unwrap().trim().parse::<u32>().unwrap()
        };
        assert_eq!((table.count, table.max), (size("count"), size("max")));
        let flows =
            |encapsulation, entries| TunnelFlows { encapsulation, entries, unreplied: entries };
        let expected = vec![flows(Encapsulation::Ipip, 1), flows(FLANNEL, 300)];
        assert_eq!(table.tunnels, Some(expected));
        let answered = conntrack::read(&[Encapsulation::Vxlan(53)].into()).unwrap();
        let flows = &answered.tunnels.unwrap()[0];
        assert_eq!((flows.entries, flows.unreplied), (525, 500));
        let none = conntrack::read(&BTreeSet::new()).unwrap();
        assert_eq!(none.tunnels, Some(Vec::new()));
    });
}

#[test]
fn the_table_is_followed_and_tunnels_counted_once_they_matter() {
    in_namespace(|| {
        let device = HookedDevice {
            index: IfIndex(2),
            name: "flannel.1".to_owned(),
            tunnel: Some(FLANNEL),
            is_ethernet: true,
        };
        let plan = HookPlan { devices: vec![device], ports: [8472].into(), ..HookPlan::default() };
        let (_told, watched) = watch::channel(Arc::new(plan));
        let enabled = [SourceId::Conntrack].into();
        let mut observer = Observer::start(&Options { enabled, watched, ..Options::default() });
        let empty = observer.wait_for("a reading", |_, snapshot| shared(&snapshot.conntrack));
        assert_eq!((empty.count, &empty.tunnels), (0, &None));
        track(&entries(5_000, 8472, ""));
        let full = observer.wait_for("a count", |_, snapshot| {
            shared(&snapshot.conntrack).filter(|table| table.tunnels.is_some())
        });
        assert_eq!(full.count, 5_000);
        assert_eq!(full.tunnels.as_ref().unwrap()[0].entries, 5_000);
        observer.stop();
    });
}

#[test]
fn a_bgp_session_is_followed_from_its_attempt_to_its_end() {
    in_namespace(|| {
        run("ip addr add 10.0.0.1/32 dev lo");
        run("ip addr add 10.0.0.2/32 dev lo");
        let enabled = [SourceId::Sockets].into();
        let mut observer = Observer::start(&Options { enabled, ..Options::default() });
        let quiet = observer.wait_for("a reading", |_, snapshot| shared(&snapshot.sockets));
        assert!(!quiet.bgp_listens);
        let listener = TcpListener::bind("10.0.0.2:179").unwrap();
        let stream = TcpStream::connect("10.0.0.2:179").unwrap();
        let state = |wanted, is_session: bool| {
            move |_: &Observer, snapshot: &super::Snapshot| {
                let sockets = shared(&snapshot.sockets)?;
                let mut of_two =
                    sockets.sessions.iter().filter(|it| it.peer.to_string() == "10.0.0.2");
                of_two
                    .any(|it| it.state == wanted && it.last_established.is_some() == is_session)
                    .then_some(sockets.bgp_listens)
            }
        };
        observer.wait_for("a connection", state(SessionState::Established, false));
        // It is a session once it lasted.
        assert!(observer.wait_for("the session", state(SessionState::Established, true)));
        drop((stream, listener));
        observer.wait_for("its end", state(SessionState::Closed, true));
        observer.stop();
    });
}

#[test]
fn a_service_that_listens_is_asked_how_it_is() {
    in_namespace(|| {
        let (port, _) = Service::Felix.place();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
            (listener, String::from_utf8_lossy(&request[..count]).into_owned())
        });
        let enabled = [SourceId::Services].into();
        let mut observer = Observer::start(&Options { enabled, ..Options::default() });
        let health = observer.wait_for("an answer", |_, snapshot| {
            shared(&snapshot.services).and_then(|services| services.first().copied())
        });
        assert_eq!((health.service, health.answer), (Service::Felix, Some(503)));
        let (listener, request) = answering.join().unwrap();
        assert!(request.starts_with("GET /readiness HTTP/1.1\r\n"), "{request}");
        drop(listener);
        observer.wait_for("nobody who listens", |_, snapshot| {
            shared(&snapshot.services).filter(Vec::is_empty).map(drop)
        });
        observer.stop();
    });
}
