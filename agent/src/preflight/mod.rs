//! `overlaywatch preflight`: which encapsulations pass between two nodes?
//!
//! One end asks, the other serves; over TCP they agree on a run, both send and
//! listen at the same time, and tell each other what came. Sockets are all
//! that is made, and they go with the process.
//!
//! The end that serves is `preflight --serve` or a running agent. It answers only
//! the peers that it was told, an agent those that it watches; it sends only to
//! the address that it has a TCP connection with, and of pods' addresses only
//! those of its own command line, an agent those that it knows as its own and
//! that peer's: nobody can make it send elsewhere. A run is at most [`PACKETS`]
//! packets each way, one at a time, and an agent has one with each peer in five
//! seconds.

mod serve;
mod session;
mod socket;
mod table;

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use overlaywatch_core::preflight::frame::{FrameError, Refusal};
use overlaywatch_core::preflight::report::Report;
use overlaywatch_core::preflight::{Method, ROUNDS, Size};
use serde_json::json;

use crate::cli::{Exit, Output, PodPair, PreflightArgs};
use crate::serve::text::Paint;

pub use serve::{Acquaintance, attend};
pub use table::table;

/// The most packets that an end sends in one run.
pub const PACKETS: usize = ROUNDS as usize * Method::ALL.len() * Size::ALL.len();

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A socket cannot be had.
    #[error("{what} cannot be opened: {source}{}", remedy(source))]
    Socket {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The port to serve on cannot be had.
    #[error(
        "TCP port {port} cannot be served: {source}; an agent that runs here has it, and answers \
         its peers: ask without --serve at this end, or choose another with --port at both ends"
    )]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Nobody serves there.
    #[error(
        "nothing serves at {peer}, TCP port {port}: {source}; run an agent there, or `overlaywatch \
         preflight --serve ADDRESS`, ADDRESS being this node's, and let TCP port {port} through"
    )]
    Connect {
        /// The peer.
        peer: IpAddr,
        /// Its port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The other end hung up or fell silent.
    #[error(
        "{peer} hung up or fell silent: {source}; does it serve this node's address, {own}, or \
         does its agent list that as a peer?"
    )]
    Talk {
        /// The peer.
        peer: IpAddr,
        /// This node's address, as the peer should know it.
        own: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// The other end speaks otherwise.
    #[error("{peer}: {source}")]
    Frame {
        /// The peer.
        peer: IpAddr,
        /// What was wrong.
        source: FrameError,
    },
    /// The other end serves nobody just now.
    #[error("{peer} {}", refused(*refusal))]
    Refused {
        /// The peer.
        peer: IpAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The other end answers another question than was asked.
    #[error("{peer} answers another question than was asked")]
    Astray {
        /// The peer.
        peer: IpAddr,
    },
    /// The two ends were told other pod networks.
    #[error("{peer} {}", pods_differ(*own, *other))]
    Pods {
        /// The peer.
        peer: IpAddr,
        /// What this end was told.
        own: PodPair,
        /// What the other end was told, as its own and its peer's.
        other: Option<PodPair>,
    },
    /// The peer is this node.
    #[error("{0} is this node's own address; name the other node's")]
    Own(IpAddr),
    /// No node has such an address.
    #[error(
        "{0} is no address by which another node is reached: name a global one of its underlay"
    )]
    NoNode(IpAddr),
    /// Pod networks are of one pair.
    #[error("--pods is of one pair of nodes: name one peer only")]
    ManyPods,
    /// Plain packets are routed by nodes of their own family.
    #[error("{0}: plain packets of one family cannot be sent to a node of the other")]
    PodsFamily(PodPair),
    /// Plain packets need addresses.
    #[error("plain packets go between pod addresses: give them with --pods OWN,PEER at both ends")]
    NoPods,
    /// The underlay device's MTU is not known.
    #[error("no MTU can be read for the device that has {address}: {source}")]
    Mtu {
        /// This node's address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// The result cannot be printed.
    #[error("the result cannot be printed: {0}")]
    Print(#[from] io::Error),
    /// The result cannot be written as JSON.
    #[error("the result cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl PreflightError {
    /// Whether only the reader of the output went away.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        let kind = match self {
            Self::Print(error) => Some(error.kind()),
            Self::Json(error) => error.io_error_kind(),
            _ => None,
        };
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

/// A remedy for what a socket may be refused for.
fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; it takes CAP_NET_RAW: run it as root"
    } else {
        ""
    }
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TooOften => {
            "had a preflight with this node a moment ago: ask again in some seconds"
        }
        Refusal::NoSockets => {
            "gets no raw sockets or packet sockets: its agent lacks CAP_NET_RAW or AF_PACKET \
             (RestrictAddressFamilies= of its unit); `overlaywatch preflight --serve` as root does"
        }
    }
}

fn pods_differ(own: PodPair, other: Option<PodPair>) -> String {
    let mirrored = own.mirrored();
    match other {
        None => format!(
            "does not know these pod addresses: serve there with --pods {mirrored}, or name some \
             that its agent knows as this node's and its own"
        ),
        Some(other) => format!("was told --pods {other}; of {own} the other end is {mirrored}"),
    }
}

/// Whether another node can be reached by such an address.
fn is_node(address: &IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        // A link-local one means nothing without its link.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(special || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// `overlaywatch preflight`: asks the peers one after the other, or serves them.
/// `nonce` is random.
///
/// # Errors
/// What keeps the question from being answered; that something does not pass
/// is an answer.
pub fn run(
    args: &PreflightArgs,
    nonce: u64,
    paint: Paint,
    out: &mut impl Write,
) -> Result<Exit, PreflightError> {
    if let Some(peer) = args.peers.iter().find(|peer| !is_node(peer)) {
        return Err(PreflightError::NoNode(*peer));
    }
    if args.pods.is_some() && args.peers.len() > 1 {
        return Err(PreflightError::ManyPods);
    }
    let is_odd =
        |pods: &PodPair| args.peers.iter().any(|peer| peer.is_ipv4() != pods.own.is_ipv4());
    if let Some(pods) = args.pods.filter(is_odd) {
        return Err(PreflightError::PodsFamily(pods));
    }
    if args.only == [Method::Plain] && args.pods.is_none() {
        return Err(PreflightError::NoPods);
    }
    let mut passes = true;
    let mut told = 0;
    let mut errors: Vec<String> = Vec::new();
    let mut reports: Vec<Report> = Vec::new();
    let mut take = |report: Report, out: &mut dyn Write| -> io::Result<()> {
        passes &= report.passes();
        told += 1;
        match args.output.format {
            Output::Text => out.write_all(table(&report, paint).as_bytes())?,
            Output::Json => reports.push(report),
        }
        out.flush()
    };
    if args.serve {
        let bound = Duration::from_secs(args.seconds);
        let mut server = serve::Server::open(args)?;
        if args.output.format == Output::Text {
            let peers: Vec<String> = args.peers.iter().map(ToString::to_string).collect();
            writeln!(out, "serving {} on TCP port {}", peers.join(", "), args.port)?;
            writeln!(out, "ends after {} s", bound.as_secs())?;
            out.flush()?;
        }
        while let Some(served) = server.serve_next() {
            match served {
                Ok(report) => take(report, out)?,
                // One peer's trouble is not the others'.
                Err(error) if args.output.format == Output::Text => {
                    writeln!(out, "{error}")?;
                    out.flush()?;
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
    } else {
        let mut nonce = nonce;
        for &peer in &args.peers {
            take(session::ask(args, peer, nonce)?, out)?;
            nonce = nonce.wrapping_add(1);
        }
    }
    if args.output.format == Output::Json {
        let document = json!({ "passes": passes && told > 0, "pairs": reports, "errors": errors });
        serde_json::to_writer_pretty(&mut *out, &document)?;
        writeln!(out)?;
    }
    Ok(match told {
        // Nobody came, so nothing is known.
        0 => Exit::ToolFailed,
        _ if passes => Exit::Fine,
        _ => Exit::Problem,
    })
}
