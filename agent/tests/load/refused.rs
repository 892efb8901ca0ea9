//! Whoever is refused, or is kept waiting, says so, and takes nobody along.

use std::net::TcpListener;

use overlaywatch::source::Options;
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::fact::Gap;
use overlaywatch_core::model::Service;

use super::{Observer, in_namespace};

/// `_LINUX_CAPABILITY_VERSION_3` (capget(2)).
const VERSION: u32 = 0x2008_0522;
/// What takes a capability, and which.
const DENIED: [(SourceId, &str); 4] = [
    (SourceId::Conntrack, "CAP_NET_ADMIN"),
    (SourceId::Ipset, "CAP_NET_ADMIN"),
    (SourceId::Nftables, "CAP_NET_ADMIN"),
    (SourceId::Tools, "CAP_SYS_PTRACE"),
];

/// Gives up all capabilities of the calling thread, and so of those that it starts.
fn give_up_capabilities() {
    // `struct __user_cap_header_struct` of this thread, and two times
    // `struct __user_cap_data_struct`.
    let header = [VERSION, 0];
    let none = [0_u32; 6];
    // SAFETY: both pointers are to values of the kernel's layout that outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_source_without_its_capability_is_a_gap_that_names_it() {
    in_namespace(|| {
        give_up_capabilities();
        let mut observer = Observer::start(&Options::default());
        observer.wait_for("a report of every source", |observer, _| {
            let has_told = |source| observer.reports.iter().any(|it| it.source == source);
            Options::ALL.into_iter().all(has_told).then_some(())
        });
        for report in &observer.reports {
            match DENIED.iter().find(|(source, _)| *source == report.source) {
                Some((_, capability)) => {
                    assert_eq!(report.gap, Some(Gap::Denied), "{report:?}");
                    assert!(report.detail.contains(&format!("grant {capability}")), "{report:?}");
                }
                None => assert_eq!(report.gap, None, "{report:?}"),
            }
        }
        let snapshot = observer.snapshot();
        assert_eq!(snapshot.conntrack.gap(), Some(Gap::Denied), "not an empty table");
        assert_eq!(snapshot.ipsets.gap(), Some(Gap::Denied), "not an empty list");
        assert_eq!(snapshot.netfilter.gap(), Some(Gap::Denied), "not an empty ruleset");
        // Those that were refused try again, and nobody in a hurry.
        observer.rests(SourceId::Links, 3);
        observer.stop();
    });
}

#[test]
fn a_service_that_keeps_its_caller_waiting_holds_nobody_else_up() {
    in_namespace(|| {
        let (port, _) = Service::Felix.place();
        // It takes connections, as the kernel does for it, and never answers.
        let _silent = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let enabled = [SourceId::Services, SourceId::Sockets, SourceId::Procfs].into();
        let mut observer = Observer::start(&Options { enabled, ..Options::default() });
        let health = observer.wait_for("a verdict on the service", |_, snapshot| {
            snapshot.services.seen()?.first().copied()
        });
        assert_eq!((health.service, health.answer), (Service::Felix, None));
        assert!(health.ailing_since.is_some());
        let told = |source| observer.reports.iter().filter(|it| it.source == source).count();
        assert!(told(SourceId::Procfs) > told(SourceId::Services), "all waited for one service");
        observer.rests(SourceId::Procfs, 3);
        observer.stop();
    });
}
