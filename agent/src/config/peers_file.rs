//! Peers as a Prometheus file_sd file
//! (<https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config>):
//! the list that a cluster's own tooling already writes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use overlaywatch_core::model::{NodeName, PeerListEntry};
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// No list of this many nodes needs more; a larger file was named by mistake.
const MAX_BYTES: u64 = 16 << 20;
/// Nodes that a list may name.
const MAX_PEERS: usize = 10_000;
/// What a file looks like, for messages.
const SHAPE: &str = r#"[{"targets": ["10.0.0.2"], "labels": {"node": "node-b"}}]"#;

/// Why a peers file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}; create it, with [] for no peers, or name another", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe.
    #[error("{}: not a regular file; name a file_sd JSON file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// It is larger than any list of peers.
    #[error("{}: larger than {MAX_BYTES} bytes; a list of peers is smaller: name the right file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {detail}; a peers file looks like {SHAPE}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        detail: String,
    },
}

/// Reads a peers file.
///
/// # Errors
/// A file that cannot be read, is no regular file or too large, or a mistake in it.
pub fn read_peers_file(path: &Path) -> Result<Vec<PeerListEntry>, PeersError> {
    let unreadable = |source| PeersError::Unreadable { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(PeersError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(PeersError::TooLarge { path: path.to_owned() });
    }
    parse_peers(path, &bytes)
}

/// The peers that `bytes` list, in order of address; `path` is for messages.
///
/// # Errors
/// The first mistake in it.
pub fn parse_peers(path: &Path, bytes: &[u8]) -> Result<Vec<PeerListEntry>, PeersError> {
    serde_json::from_slice::<Peers>(bytes).map(|peers| peers.0).map_err(|error| {
        let text = error.to_string();
        // The position is told apart, so it is taken off the end of the message.
        let position = format!(" at line {} column {}", error.line(), error.column());
        PeersError::Malformed {
            path: path.to_owned(),
            line: error.line().max(1),
            column: error.column().max(1),
            detail: text.strip_suffix(&position).unwrap_or(&text).to_owned(),
        }
    })
}

/// Whether an address can be a node's.
pub(super) fn usable(address: IpAddr) -> Result<(), String> {
    if address.is_unspecified() || address.is_multicast() {
        Err(format!("{address} cannot be a node's address; give its underlay address"))
    } else {
        Ok(())
    }
}

/// The whole file. Merged while it is read, so that a message names the line
/// and a hostile file costs no more memory than a good one.
struct Peers(Vec<PeerListEntry>);

impl<'de> Deserialize<'de> for Peers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Groups;
        impl<'de> Visitor<'de> for Groups {
            type Value = Peers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of target groups")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut groups: A) -> Result<Peers, A::Error> {
                let mut peers = BTreeMap::new();
                while let Some(group) = groups.next_element::<Group>()? {
                    group.merge_into(&mut peers).map_err(de::Error::custom)?;
                }
                Ok(Peers(peers.into_values().collect()))
            }
        }
        deserializer.deserialize_seq(Groups)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    targets: Vec<Target>,
    #[serde(default)]
    labels: Labels,
}

impl Group {
    fn merge_into(self, peers: &mut BTreeMap<IpAddr, PeerListEntry>) -> Result<(), String> {
        let Labels { name, overlay } = self.labels;
        let several = self.targets.iter().any(|target| target.0 != self.targets[0].0);
        if several && (name.is_some() || overlay.is_some()) {
            return Err("one name or overlay address for several nodes: \
                        give each node a group of its own"
                .to_owned());
        }
        for Target(address) in self.targets {
            let entry = peers.entry(address).or_insert(PeerListEntry {
                address,
                name: None,
                overlay: None,
            });
            agree(address, "name", &mut entry.name, name.as_ref())?;
            agree(address, "overlay address", &mut entry.overlay, overlay.as_ref())?;
        }
        if peers.len() > MAX_PEERS {
            return Err(format!("more than {MAX_PEERS} nodes"));
        }
        Ok(())
    }
}

/// A node may be listed more than once, but never with two truths.
fn agree<T: Clone + PartialEq + fmt::Display>(
    address: IpAddr,
    what: &str,
    known: &mut Option<T>,
    given: Option<&T>,
) -> Result<(), String> {
    match (&known, given) {
        (Some(known), Some(given)) if known != given => Err(format!(
            "{address} has the {what} `{known}` and the {what} `{given}`: keep the right one"
        )),
        (None, Some(given)) => {
            *known = Some(given.clone());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// An address with or without a port, which is Prometheus's business, not ours.
struct Target(IpAddr);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Address;
        impl Visitor<'_> for Address {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, as text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
                let address: IpAddr = text
                    .parse()
                    .ok()
                    .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
                    .or_else(bracketed)
                    .ok_or_else(|| {
                        let shown: String = text.escape_debug().take(100).collect();
                        E::custom(format!(
                            "`{shown}` is not an address: \
                             write 10.0.0.2, 10.0.0.2:9977 or [2001:db8::2]:9977"
                        ))
                    })?;
                let address = address.to_canonical();
                usable(address).map_err(E::custom)?;
                Ok(Target(address))
            }
        }
        deserializer.deserialize_str(Address)
    }
}

/// The labels that matter here; all others are somebody else's.
#[derive(Default)]
struct Labels {
    /// `node`, else `nodename`, else `name`.
    name: Option<NodeName>,
    /// `overlay`.
    overlay: Option<IpAddr>,
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Known;
        impl<'de> Visitor<'de> for Known {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let [mut node, mut nodename, mut name] = [None, None, None];
                let mut overlay = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "node" => node = Some(map.next_value()?),
                        "nodename" => nodename = Some(map.next_value()?),
                        "name" => name = Some(map.next_value()?),
                        "overlay" => overlay = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Labels { name: node.or(nodename).or(name), overlay })
            }
        }
        deserializer.deserialize_map(Known)
    }
}
