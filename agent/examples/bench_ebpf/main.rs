//! What the eBPF programs cost: the measurements behind `cargo xtask bench
//! ebpf`, which makes the two nodes and runs the agents. Each verb prints one
//! JSON document. Needs root; build it with `--release`.

mod drops;
mod empty;
mod filter;
mod flood;
mod hooks;
mod netns;
mod statistics;
mod tracepoint;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Which of the agents' programs are on the way of a packet, and how many
    /// programs of any agent on this host watch drops
    Attached {
        #[command(flatten)]
        nodes: Nodes,
    },
    /// What each program takes a packet, beside an empty one on the same hook
    Hooks {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        load: Load,
        /// The load is cut into so many slices, each a measurement
        #[arg(long, default_value_t = 20)]
        slices: u32,
    },
    /// What the program on the tracepoint of drops takes, beside an empty one
    DropProgram {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        load: Load,
        /// The load is cut into so many slices, each a measurement
        #[arg(long, default_value_t = 20)]
        slices: u32,
    },
    /// Small packets through the tunnel, as many as one processor can
    Flood {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        load: Load,
        /// With an empty program on each hook of the way
        #[arg(long)]
        empty: bool,
    },
    /// Packets that the sender's kernel drops, as many as all processors can
    Burst {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        load: Load,
        /// Senders, each with a socket of its own
        #[arg(long, default_value_t = 2)]
        threads: u32,
    },
    /// What an agent's programs counted of drops
    Drops {
        /// The folder of the agent's pinned maps
        #[arg(long)]
        folder: PathBuf,
    },
}

/// The two nodes: network namespaces as paths.
#[derive(Args)]
pub(crate) struct Nodes {
    /// The sender's.
    #[arg(long)]
    from: PathBuf,
    /// The receiver's.
    #[arg(long)]
    to: PathBuf,
}

/// What is sent.
#[derive(Args)]
struct Load {
    /// To which address
    #[arg(long)]
    address: Ipv4Addr,
    /// For how long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

impl Load {
    fn server(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, flood::PORT)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> Result<()> {
    let document = match Arguments::parse().verb {
        Verb::Attached { nodes } => json!({
            "programs": hooks::attached(&nodes)?,
            "watching_drops": tracepoint::watching()?,
        }),
        Verb::Hooks { nodes, load, slices } => {
            let slice = load.duration() / slices.max(1);
            let hooks = hooks::measure(&nodes, load.server(), slice, slices)?;
            json!({ "costs": hooks })
        }
        Verb::DropProgram { nodes, load, slices } => {
            let slice = load.duration() / slices.max(1);
            let program = tracepoint::measure(&nodes, load.server(), slice, slices)?;
            json!({ "costs": program })
        }
        Verb::Flood { nodes, load, empty } => {
            let _empty = if empty { hooks::attach_empty(&nodes)? } else { Vec::new() };
            let mut flood = flood::Flood::open(&nodes, load.server())?;
            json!(flood.run(load.duration())?)
        }
        Verb::Burst { nodes, load, threads } => {
            json!(flood::burst(&nodes.from, load.server(), load.duration(), threads)?)
        }
        Verb::Drops { folder } => json!(drops::read(&folder)?),
    };
    println!("{document}");
    Ok(())
}
