//! The sources under load, against a real kernel: nothing is missed in the end,
//! memory keeps to a bound, nobody spins, and whoever is refused says what is
//! missing. Needs root, iproute2, conntrack and ipset.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy lets tests fail by panicking, but not the helpers they share"
)]

mod heap;
#[path = "../sources/oracle.rs"]
#[allow(dead_code, reason = "of all that it can ask, routes are asked for here")]
mod oracle;
mod refused;
mod routes;
mod tables;

use std::io::{BufWriter, Write};
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use overlaywatch::clock;
use overlaywatch::source::{self, Handle, Options};
use overlaywatch_core::assembly::{Assembly, Change, SourceId, SourceReport, Update};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::snapshot::{NodeIdentity, Snapshot};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

/// Far more than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Updates that wait at most: as many as the agent lets wait.
const UPDATES: usize = 1_024;

/// Tests run one after the other: they share heap and processor, and measure both.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `test` in a fresh network namespace, which goes with its thread.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        oracle::run("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Gives a tool its commands in the calling thread's namespace, from a thread of
/// its own, line by line: what is fed takes no memory that could be mistaken for
/// that of a source.
fn feed(
    program: &str,
    arguments: &[&str],
    lines: impl Iterator<Item = String> + Send + 'static,
) -> JoinHandle<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}`: {error}; is it installed?"));
    let program = program.to_owned();
    thread::spawn(move || {
        let mut input = BufWriter::new(child.stdin.take().unwrap());
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
        drop(input);
        assert!(child.wait().unwrap().success(), "`{program}` did not take what it was given");
    })
}

/// The sources, running, and the state that the assembly makes of their updates.
struct Observer {
    runtime: Runtime,
    updates: Receiver<Update>,
    assembly: Assembly,
    handle: Handle,
    reports: Vec<SourceReport>,
    route_dumps: usize,
    route_events: usize,
}

impl Observer {
    fn start(options: &Options) -> Self {
        let (sender, updates) = channel(UPDATES);
        let handle = source::spawn(options, &sender).unwrap();
        let assembly = Assembly::new(NodeIdentity::default(), None, Policy::default());
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let (reports, route_dumps, route_events) = (Vec::new(), 0, 0);
        Self { runtime, updates, assembly, handle, reports, route_dumps, route_events }
    }

    /// Takes in what comes next, and all that came with it; false when nothing
    /// comes for so long.
    fn hear(&mut self, patience: Duration) -> bool {
        let next = self.runtime.block_on(async { timeout(patience, self.updates.recv()).await });
        let Ok(next) = next else { return false };
        let mut next = Some(next.expect("the sources ended"));
        while let Some(update) = next {
            match &update {
                Update::Source(report) => self.reports.push(report.clone()),
                Update::Routes(Change::Replace(_)) => self.route_dumps += 1,
                Update::Routes(_) => self.route_events += 1,
                _ => {}
            }
            self.assembly.fold(update, clock::mono());
            next = self.updates.try_recv().ok();
        }
        true
    }

    fn snapshot(&mut self) -> Snapshot {
        self.assembly.freeze(clock::now())
    }

    /// Waits until `look` gives what is waited for.
    fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Self, &Snapshot) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            let snapshot = self.snapshot();
            if let Some(found) = look(self, &snapshot) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            self.hear(PATIENCE);
        }
    }

    /// Over the next runs of a source, this process must sleep more than it works.
    fn rests(&mut self, source: SourceId, runs: usize) {
        let told = |observer: &Self| {
            observer.reports.iter().filter(|report| report.source == source).count()
        };
        let (began, worked_before, before) = (Instant::now(), worked(), told(self));
        while told(self) < before + runs {
            assert!(self.hear(PATIENCE), "{} fell silent", source.slug());
        }
        let (elapsed, worked) = (began.elapsed(), worked() - worked_before);
        assert!(
            worked < elapsed / 2,
            "worked for {worked:?} of {elapsed:?} although all was quiet"
        );
    }

    fn stop(self) {
        drop(self.updates);
        self.handle.join();
    }
}

/// Processor time of this process so far.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}
