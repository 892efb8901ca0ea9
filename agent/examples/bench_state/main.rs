//! Whole tables of the kernel, read by a source of the agent and by the usual
//! tool in turns.
//!
//! In a fresh network namespace with `--size` entries, runs both alternately
//! `--runs` times, each as a process from its start to its end: this program
//! with `once`, and the tool printing to /dev/null. Prints one JSON document
//! with the time and the most memory of each run (`ru_maxrss`, getrusage(2)).
//! Needs root and the tools; build it with `--release`.

mod fill;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use overlaywatch::source::{self, Options, conntrack};
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::Encapsulation;
use serde::Serialize;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fill a table and read it in turns
    Compare {
        what: Table,
        /// How many entries it holds
        #[arg(long)]
        size: u32,
        /// How often each side runs
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// Read the table once, as the agent does at its start
    Once { what: Table },
    /// Read nothing: what the program itself takes
    Idle,
}

/// What is read.
#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// Routes of all tables.
    Routes,
    /// nftables, as iptables-nft writes them.
    Rules,
    /// Connections, of which one in a hundred is VXLAN's.
    Connections,
    /// 201 ipsets, one of which has all the members.
    Sets,
}

impl Table {
    fn source(self) -> SourceId {
        match self {
            Self::Routes => SourceId::Routes,
            Self::Rules => SourceId::Nftables,
            Self::Connections => SourceId::Conntrack,
            Self::Sets => SourceId::Ipset,
        }
    }

    /// The tool that tells the same.
    fn tool(self) -> &'static [&'static str] {
        match self {
            Self::Routes => &["ip", "route", "show", "table", "all"],
            Self::Rules => &["nft", "list", "ruleset"],
            Self::Connections => &["conntrack", "-L", "-p", "udp", "--orig-port-dst", "8472"],
            Self::Sets => &["ipset", "list"],
        }
    }

    /// What makes the tool do nothing but start.
    fn version(self) -> &'static str {
        match self {
            Self::Routes => "-V",
            Self::Rules | Self::Connections | Self::Sets => "--version",
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Once { what } => once(what),
        Verb::Idle => Ok(()),
        Verb::Compare { what, size, runs } => compare(what, size, runs),
    }
}

fn compare(what: Table, size: u32, runs: u32) -> Result<()> {
    // Before the namespace is left that has the limit.
    let _room = match what {
        Table::Connections => fill::Room::make(size)?,
        Table::Routes | Table::Rules | Table::Sets => None,
    };
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace: run this as root")?;
    match what {
        Table::Routes => fill::routes(size)?,
        Table::Rules => fill::rules(size)?,
        Table::Connections => fill::connections(size)?,
        Table::Sets => fill::sets(size)?,
    }
    let program = std::env::current_exe().context("where this program is")?;
    let idle = json!({
        "ours": cost(Command::new(&program).arg("idle"))?,
        "usual": cost(Command::new(what.tool()[0]).arg(what.version()))?,
    });
    let mut ours = Command::new(program);
    ours.args(["once", &what.name()]);
    let (tool, arguments) = what.tool().split_first().context("a tool has a name")?;
    let mut usual = Command::new(tool);
    usual.args(arguments);
    let (mut our_runs, mut usual_runs) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let pair = if run % 2 == 0 {
            let first = cost(&mut ours)?;
            (first, cost(&mut usual)?)
        } else {
            let first = cost(&mut usual)?;
            (cost(&mut ours)?, first)
        };
        // The first pair warms the caches of both.
        if run > 0 {
            our_runs.push(pair.0);
            usual_runs.push(pair.1);
        }
    }
    let document = json!({
        "table": what.name(),
        "size": size,
        "usual_tool": what.tool().join(" "),
        "ours": our_runs,
        "usual": usual_runs,
        "idle": idle,
    });
    println!("{document:#}");
    Ok(())
}

/// What one run of a process took.
#[derive(Serialize)]
struct Cost {
    ms: f64,
    /// Resident memory at its highest.
    rss_bytes: u64,
}

fn cost(command: &mut Command) -> Result<Cost> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into)
        });
    }
    let began = Instant::now();
    let child = command.spawn().with_context(|| format!("running {command:?}"))?;
    let pid = libc::pid_t::try_from(child.id())?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child is ours and nobody else waits for it; both pointers are
    // to values that outlive the call, and a zeroed rusage is a valid one.
    let usage = unsafe {
        let ended = libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr());
        ensure!(ended == pid, "waiting for {command:?}: {}", std::io::Error::last_os_error());
        usage.assume_init()
    };
    ensure!(status == 0, "{command:?} failed (wait status {status})");
    let ms = began.elapsed().as_secs_f64() * 1e3;
    // In units of 1,024 bytes (getrusage(2)).
    Ok(Cost { ms, rss_bytes: u64::try_from(usage.ru_maxrss)? * 1024 })
}

/// Runs one source until it has told what there is.
fn once(what: Table) -> Result<()> {
    if matches!(what, Table::Connections) {
        // The source counts entries of the node's own tunnels, and here are none.
        let table = conntrack::read(&[Encapsulation::Vxlan(8472)].into())?;
        let entries = table.tunnels.iter().flatten().map(|flows| flows.entries).sum::<u32>();
        ensure!(entries > 0 && entries <= table.count, "{entries} entries of {}", table.count);
        return Ok(());
    }
    let source = what.source();
    let options = Options { enabled: [source].into(), ..Options::default() };
    let (sender, mut updates) = tokio::sync::mpsc::channel(64);
    let _threads = source::spawn(&options, &sender)?;
    drop(sender);
    while let Some(update) = updates.blocking_recv() {
        if let Update::Source(report) = update
            && report.source == source
        {
            ensure!(report.gap.is_none(), "reading {} failed: {}", what.name(), report.detail);
            return Ok(());
        }
    }
    bail!("the sources ended")
}
