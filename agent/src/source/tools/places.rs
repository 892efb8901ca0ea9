//! Where distributions and images keep these tools.

use std::env::consts::ARCH;
use std::fmt::Display;
use std::io;

use overlaywatch_core::model::{ToolSpace, ToolVersion};

use super::root::{Found, Identity, Root, Versions, is_unbounded};
use super::translate::{self, Tool};

/// Where programs are, in the order in which they are looked for.
const PROGRAMS: [&str; 6] =
    ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
/// Where libraries are, beside the folders that bear the machine's name.
const LIBRARIES: [&str; 5] = ["usr/local/lib", "usr/lib64", "usr/lib", "lib64", "lib"];
/// libipset by its ABI: 13 since 7.0, 11 and 10 are of 6.30 and later, 3 of 6.20.
const IPSET_LIBRARIES: [&str; 4] =
    ["libipset.so.13", "libipset.so.11", "libipset.so.10", "libipset.so.3"];
const NFT_LIBRARIES: [&str; 1] = ["libnftables.so.1"];
/// Where K3s keeps what it unpacked, below the folder that it runs from.
const K3S: [&str; 2] = ["", "/aux"];

/// Which files the programs are: ipset, iptables, nft.
pub(super) type Programs = [Option<Identity>; 3];

/// Whether these are the host's own files, as far as any were found: then a mount
/// namespace is no container's but that of a service with a view of its own, as
/// systemd makes them (`PrivateTmp` in systemd.exec(5)).
pub(super) fn are_of_host(programs: &Programs, host: &Programs) -> bool {
    let same = |(own, host): (&Option<Identity>, _)| own.is_none() || own == host;
    programs.iter().any(Option::is_some) && programs.iter().zip(host).all(same)
}

/// The tools below a root, and their files; none of those that are there and may
/// not be looked at.
///
/// # Errors
/// When files cannot be looked for, see [`is_unbounded`].
pub(super) fn tools(root: &Root, versions: &mut Versions) -> io::Result<(ToolSpace, Programs)> {
    let ipset = told(linked(root, versions, Tool::Ipset, "ipset", &IPSET_LIBRARIES))?;
    let iptables = program(root, &PROGRAMS, "xtables-nft-multi")
        .map(|found| found.map(|found| (found.identity(), versions.of(Tool::Iptables, &found))));
    let iptables = told(iptables)?;
    let nft = told(linked(root, versions, Tool::Nft, "nft", &NFT_LIBRARIES))?;
    let version = |tool: Program| tool.and_then(|(_, version)| version);
    let space = ToolSpace {
        ipset: version(ipset),
        iptables: version(iptables),
        nft: version(nft),
        ..ToolSpace::default()
    };
    Ok((space, [ipset, iptables, nft].map(|tool| tool.map(|(file, _)| file))))
}

/// A program's file, and the version where it is told; none where there is none.
type Program = Option<(Identity, Option<ToolVersion>)>;

/// What a file that may not be looked at tells: nothing.
fn told(program: io::Result<Program>) -> io::Result<Program> {
    match program {
        Err(error) if !is_unbounded(&error) => Ok(None),
        program => program,
    }
}

/// A tool that K3s carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// It carries none: it finds the host's.
    Not,
    /// Of this version; none where that is not told.
    Version(Option<ToolVersion>),
}

impl Carried {
    /// The version where the tool of the host is looked for first, and K3s's own
    /// after it: that of whoever is there.
    pub(super) fn after(self, host: Option<ToolVersion>) -> Option<ToolVersion> {
        match (host, self) {
            (None, Self::Version(own)) => own,
            (host, _) => host,
        }
    }

    /// The version where K3s's own is looked for first.
    pub(super) fn before(self, host: Option<ToolVersion>) -> Option<ToolVersion> {
        match self {
            Self::Not => host,
            Self::Version(own) => own,
        }
    }
}

/// What K3s carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) ipset: Carried,
    pub(super) iptables: Carried,
}

/// The tools that K3s carries in the folder that it runs from, by the link of its
/// process to its program. Nothing is known of them where the folder is not one
/// that it unpacks itself, or may not be looked into.
///
/// # Errors
/// When files cannot be looked for, see [`is_unbounded`].
pub(super) fn bundle(
    root: &Root,
    program_of_k3s: Option<&str>,
    versions: &mut Versions,
) -> io::Result<Bundle> {
    const UNKNOWN: Carried = Carried::Version(None);
    let Some(folder) = program_of_k3s.and_then(translate::k3s_folder) else {
        return Ok(Bundle { ipset: UNKNOWN, iptables: UNKNOWN });
    };
    let folders = K3S.map(|below| format!("{folder}{below}"));
    let mut of = |tool, name| match program(root, &folders, name) {
        Ok(None) => Ok(Carried::Not),
        Ok(Some(found)) => Ok(Carried::Version(versions.of(tool, &found))),
        Err(error) if is_unbounded(&error) => Err(error),
        Err(_) => Ok(UNKNOWN),
    };
    Ok(Bundle {
        ipset: of(Tool::Ipset, "ipset")?,
        iptables: of(Tool::Iptables, "xtables-nft-multi")?,
    })
}

/// A program whose version is in itself or in its library. A library without
/// the program is nobody's tool.
fn linked(
    root: &Root,
    versions: &mut Versions,
    tool: Tool,
    name: &str,
    libraries: &[&str],
) -> io::Result<Program> {
    let Some(found) = program(root, &PROGRAMS, name)? else { return Ok(None) };
    let file = found.identity();
    if let Some(version) = versions.of(tool, &found) {
        return Ok(Some((file, Some(version))));
    }
    let own = [format!("usr/lib/{ARCH}-linux-gnu"), format!("lib/{ARCH}-linux-gnu")];
    let folders = own.iter().map(String::as_str).chain(LIBRARIES);
    for folder in folders {
        for library in libraries {
            if let Some(found) = root.find(&format!("{folder}/{library}"))? {
                return Ok(Some((file, versions.of(tool, &found))));
            }
        }
    }
    Ok(Some((file, None)))
}

fn program(root: &Root, folders: &[impl Display], name: &str) -> io::Result<Option<Found>> {
    for folder in folders {
        if let Some(found) = root.find(&format!("{folder}/{name}"))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
