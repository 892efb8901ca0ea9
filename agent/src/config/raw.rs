//! The configuration file's shape. Unknown keys are refused, since a mistyped
//! key that is ignored is a setting that is silently not in force.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use overlaywatch_core::catalog::Code;
use overlaywatch_core::kernel::Attach;
use overlaywatch_core::model::NodeName;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{LogFormat, LogLevel};

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) node: Option<NodeName>,
    pub(super) listen: SocketAddr,
    pub(super) peers_file: Option<PathBuf>,
    pub(super) forget_departed_seconds: Within<1, 604_800>,
    pub(super) peers: Vec<Spanned<RawPeer>>,
    pub(super) silence: Vec<Code>,
    pub(super) probe: RawProbe,
    pub(super) sources: RawSources,
    pub(super) ebpf: RawEbpf,
    pub(super) host: RawHost,
    pub(super) log: RawLog,
    pub(super) http: RawHttp,
    pub(super) preflight: RawPreflight,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub(super) address: IpAddr,
    pub(super) name: Option<NodeName>,
    pub(super) overlay: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProbe {
    pub(super) port: Within<1, 65_535>,
    pub(super) probes_per_second: Within<1, 1_000>,
}

/// Which sources run. A source that is off leaves a gap with that reason.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSources {
    pub(super) links: bool,
    pub(super) addresses: bool,
    pub(super) routes: bool,
    pub(super) rules: bool,
    pub(super) neighbours: bool,
    pub(super) fdb: bool,
    pub(super) procfs: bool,
    pub(super) probe: bool,
    pub(super) kernel: bool,
    pub(super) lookups: bool,
    pub(super) machine: bool,
    pub(super) cni: bool,
    pub(super) traffic: bool,
    pub(super) conntrack: bool,
    pub(super) sockets: bool,
    pub(super) services: bool,
    pub(super) ipset: bool,
    pub(super) tools: bool,
    pub(super) nftables: bool,
}

/// Where and how the eBPF programs are kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEbpf {
    pub(super) pin: Option<PathBuf>,
    pub(super) attach: Attach,
}

/// Where the host's files are.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHost {
    pub(super) root: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) level: LogLevel,
    pub(super) format: LogFormat,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHttp {
    pub(super) max_connections: Within<1, 4_096>,
    pub(super) read_timeout_seconds: Within<1, 300>,
}

/// Whether peers' preflights are answered.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPreflight {
    pub(super) serve: bool,
    pub(super) port: Within<1, 65_535>,
}

/// A whole number between two bounds, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within<const MIN: u32, const MAX: u32>(pub(super) u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        u32::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{number} is not within {MIN} to {MAX}")))
    }
}

impl Default for Raw {
    fn default() -> Self {
        let policy = overlaywatch_core::policy::Policy::default();
        Self {
            node: None,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, super::DEFAULT_PORT)),
            peers_file: None,
            forget_departed_seconds: Within(policy.forget_departed_seconds),
            peers: Vec::new(),
            silence: Vec::new(),
            probe: RawProbe::default(),
            sources: RawSources::default(),
            ebpf: RawEbpf::default(),
            host: RawHost::default(),
            log: RawLog::default(),
            http: RawHttp::default(),
            preflight: RawPreflight::default(),
        }
    }
}

impl Default for RawProbe {
    fn default() -> Self {
        let policy = overlaywatch_core::policy::Policy::default();
        Self {
            port: Within(u32::from(super::DEFAULT_PORT)),
            probes_per_second: Within(u32::from(policy.probes_per_second)),
        }
    }
}

impl Default for RawSources {
    fn default() -> Self {
        Self {
            links: true,
            addresses: true,
            routes: true,
            rules: true,
            neighbours: true,
            fdb: true,
            procfs: true,
            probe: true,
            kernel: true,
            lookups: true,
            machine: true,
            cni: true,
            traffic: true,
            conntrack: true,
            sockets: true,
            services: true,
            ipset: true,
            tools: true,
            nftables: true,
        }
    }
}

impl Default for RawHost {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { max_connections: Within(64), read_timeout_seconds: Within(5) }
    }
}

impl Default for RawPreflight {
    fn default() -> Self {
        Self { serve: true, port: Within(u32::from(super::DEFAULT_PREFLIGHT_PORT)) }
    }
}
