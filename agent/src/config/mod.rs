//! The configuration: a TOML file and the command line, read into one typed
//! value. Nothing here binds, connects or starts anything.

mod error;
mod follow;
mod peers_file;
mod raw;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::kernel::Attach;
use overlaywatch_core::model::{NodeName, PeerListEntry};
use overlaywatch_core::policy::Policy;
use serde::Deserialize;

use crate::cli::NodeArgs;

pub use error::ConfigError;
pub(crate) use error::nearest;
pub use follow::follow_peers;
pub use peers_file::{PeersError, parse_peers, read_peers_file};

/// Read where no other file is named and this one exists.
pub const DEFAULT_PATH: &str = "/etc/overlaywatch/overlaywatch.toml";
/// TCP port of HTTP and UDP port of the responder.
pub const DEFAULT_PORT: u16 = 9977;
/// TCP port on which preflights are asked for.
pub const DEFAULT_PREFLIGHT_PORT: u16 = 9978;
/// Where eBPF links and maps are pinned unless the configuration says otherwise.
pub const DEFAULT_PIN: &str = "/sys/fs/bpf/overlaywatch";
/// No configuration is larger; a file that is was named by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Everything that an operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that it came from; none when all of it is defaults and options.
    pub file: Option<PathBuf>,
    /// This node's name, where it is configured.
    pub node: Option<NodeName>,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// UDP port of the probes' responder; the same on all nodes.
    pub probe_port: u16,
    /// Probes per second in the steady state.
    pub probes_per_second: u16,
    /// Peers named in the file; they rank above `peers_file`.
    pub peers: Vec<PeerListEntry>,
    /// A Prometheus file_sd file with peers.
    pub peers_file: Option<PathBuf>,
    /// Seconds for which a peer that the kernel no longer knows is remembered.
    pub forget_departed_seconds: u32,
    /// Verdicts that the operator does not want to hear of.
    pub silenced: BTreeSet<Code>,
    /// Sources that are switched off.
    pub disabled: BTreeSet<SourceId>,
    /// Logs.
    pub log: LogConfig,
    /// Where the eBPF programs' links and maps are pinned.
    pub pin: PathBuf,
    /// How the programs are attached.
    pub attach: Attach,
    /// Where the host's files are: another folder than `/` where the agent runs
    /// in a container.
    pub host_root: PathBuf,
    /// Only what is counted is said ([`Policy::counted_only`]).
    pub counted_only: bool,
    /// Limits of the HTTP server.
    pub http: HttpConfig,
    /// The TCP port on which peers' preflights are answered; none where they are not.
    pub preflight_port: Option<u16>,
}

/// What is logged and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The shape of a line.
    pub format: LogFormat,
}

/// A severity of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Only what keeps the agent from doing its work.
    Error,
    /// Also what it does worse for.
    Warn,
    /// Also what an operator wants to know.
    #[default]
    Info,
    /// Also what a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Limits of the HTTP server that an operator may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Connections at a time; more are refused.
    pub max_connections: usize,
    /// A request's head must have come within this time, also the next one of
    /// a connection that is kept open.
    pub read_timeout: Duration,
}

impl Config {
    /// The configuration in force: the file's, where there is one, and the
    /// command line's options above it.
    ///
    /// # Errors
    /// A named file that cannot be read, or a mistake in it.
    pub fn load(args: &NodeArgs) -> Result<Self, ConfigError> {
        let mut config = match &args.config {
            Some(path) => Self::read(path)?,
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Unreadable { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    Self::build(Path::new(DEFAULT_PATH), "", raw::Raw::default())?
                }
                read => read?,
            },
        };
        config.node = args.node.clone().or(config.node);
        config.listen = args.listen.unwrap_or(config.listen);
        config.peers_file = args.peers.clone().or(config.peers_file);
        Ok(config)
    }

    /// The configuration of one file.
    ///
    /// # Errors
    /// A file that cannot be read, or a mistake in it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let not_text = |detail: String| ConfigError::NotText { path: path.to_owned(), detail };
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(not_text(format!("larger than {MAX_BYTES} bytes: not a configuration")));
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| not_text(format!("not UTF-8 text: {}", error.utf8_error())))?;
        let mut config = Self::parse(path, &text)?;
        config.file = Some(path.to_owned());
        Ok(config)
    }

    /// The configuration that `text` says; `path` is for messages.
    ///
    /// # Errors
    /// The first mistake in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw = toml::from_str(text).map_err(|error| error::explain(path, text, &error))?;
        Self::build(path, text, raw)
    }

    fn build(path: &Path, text: &str, raw: raw::Raw) -> Result<Self, ConfigError> {
        let disabled = [
            (SourceId::Links, raw.sources.links),
            (SourceId::Addresses, raw.sources.addresses),
            (SourceId::Routes, raw.sources.routes),
            (SourceId::Rules, raw.sources.rules),
            (SourceId::Neighbours, raw.sources.neighbours),
            (SourceId::Fdb, raw.sources.fdb),
            (SourceId::Procfs, raw.sources.procfs),
            (SourceId::Probe, raw.sources.probe),
            (SourceId::Kernel, raw.sources.kernel),
            (SourceId::Lookups, raw.sources.lookups),
            (SourceId::Machine, raw.sources.machine),
            (SourceId::Cni, raw.sources.cni),
            (SourceId::Traffic, raw.sources.traffic),
            (SourceId::Conntrack, raw.sources.conntrack),
            (SourceId::Sockets, raw.sources.sockets),
            (SourceId::Services, raw.sources.services),
            (SourceId::Ipset, raw.sources.ipset),
            (SourceId::Tools, raw.sources.tools),
            (SourceId::Nftables, raw.sources.nftables),
        ];
        // `Within` keeps both numbers in the range of 16 bits.
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Ok(Self {
            file: None,
            node: raw.node,
            listen: raw.listen,
            probe_port: narrow(raw.probe.port.0),
            probes_per_second: narrow(raw.probe.probes_per_second.0),
            peers: peers(path, text, raw.peers)?,
            peers_file: raw.peers_file,
            forget_departed_seconds: raw.forget_departed_seconds.0,
            silenced: raw.silence.into_iter().collect(),
            disabled: disabled.into_iter().filter(|(_, on)| !on).map(|(id, _)| id).collect(),
            pin: raw.ebpf.pin.unwrap_or_else(|| PathBuf::from(DEFAULT_PIN)),
            attach: raw.ebpf.attach,
            host_root: raw.host.root,
            counted_only: false,
            log: LogConfig { level: raw.log.level, format: raw.log.format },
            http: HttpConfig {
                max_connections: raw.http.max_connections.0 as usize,
                read_timeout: Duration::from_secs(u64::from(raw.http.read_timeout_seconds.0)),
            },
            preflight_port: raw.preflight.serve.then_some(narrow(raw.preflight.port.0)),
        })
    }

    /// What the core needs of it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            peers: self.peers.clone(),
            forget_departed_seconds: self.forget_departed_seconds,
            probes_per_second: self.probes_per_second,
            counted_only: self.counted_only,
            silenced: self.silenced.clone(),
        }
    }

    /// Whether a source is to run.
    #[must_use]
    pub fn is_enabled(&self, source: SourceId) -> bool {
        !self.disabled.contains(&source)
    }
}

fn peers(
    path: &Path,
    text: &str,
    raw: Vec<toml::Spanned<raw::RawPeer>>,
) -> Result<Vec<PeerListEntry>, ConfigError> {
    let mut peers: Vec<PeerListEntry> = Vec::with_capacity(raw.len());
    for spanned in raw {
        let offset = spanned.span().start;
        let raw = spanned.into_inner();
        let address = raw.address.to_canonical();
        let complain = |detail| Err(error::mistake(path, text, offset, detail));
        if let Err(why) = peers_file::usable(address) {
            return complain(format!("`peers.address`: {why}"));
        }
        if peers.iter().any(|known| known.address == address) {
            return complain(format!(
                "`peers.address`: {address} is listed twice; keep one of the two sections"
            ));
        }
        peers.push(PeerListEntry { address, name: raw.name, overlay: raw.overlay });
    }
    Ok(peers)
}
