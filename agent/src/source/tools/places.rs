//! Where distributions and images keep these tools.

use std::env::consts::ARCH;
use std::io;

use overlaywatch_core::model::{ToolSpace, ToolVersion};

use super::root::{Found, Root, Versions};
use super::translate::Tool;

/// Where programs are, in the order in which they are looked for.
const PROGRAMS: [&str; 6] =
    ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
/// Where libraries are, beside the folders that bear the machine's name.
const LIBRARIES: [&str; 5] = ["usr/local/lib", "usr/lib64", "usr/lib", "lib64", "lib"];
/// libipset by its ABI: 13 since 7.0, 11 and 10 are of 6.30 and later, 3 of 6.20.
const IPSET_LIBRARIES: [&str; 4] =
    ["libipset.so.13", "libipset.so.11", "libipset.so.10", "libipset.so.3"];
const NFT_LIBRARIES: [&str; 1] = ["libnftables.so.1"];
/// What K3s unpacks beside its own program.
const K3S: [&str; 2] =
    ["var/lib/rancher/k3s/data/current/bin", "var/lib/rancher/k3s/data/current/bin/aux"];

/// The tools below a root.
pub(super) fn tools(root: &Root, versions: &mut Versions) -> io::Result<ToolSpace> {
    Ok(ToolSpace {
        ipset: linked(root, versions, Tool::Ipset, "ipset", &IPSET_LIBRARIES)?,
        iptables: match program(root, &PROGRAMS, "xtables-nft-multi")? {
            Some(found) => versions.of(Tool::Iptables, &found),
            None => None,
        },
        nft: linked(root, versions, Tool::Nft, "nft", &NFT_LIBRARIES)?,
        ..ToolSpace::default()
    })
}

/// What K3s carries.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) ipset: Option<ToolVersion>,
    pub(super) iptables: Option<ToolVersion>,
}

/// The tools that K3s carries; none where there are none.
pub(super) fn bundle(root: &Root, versions: &mut Versions) -> io::Result<Option<Bundle>> {
    let mut of = |tool, name| {
        let found = program(root, &K3S, name)?;
        io::Result::Ok(found.and_then(|found| versions.of(tool, &found)))
    };
    let bundle = Bundle {
        ipset: of(Tool::Ipset, "ipset")?,
        iptables: of(Tool::Iptables, "xtables-nft-multi")?,
    };
    Ok((bundle.ipset.is_some() || bundle.iptables.is_some()).then_some(bundle))
}

/// A program whose version is in itself or in its library. A library without
/// the program is nobody's tool.
fn linked(
    root: &Root,
    versions: &mut Versions,
    tool: Tool,
    name: &str,
    libraries: &[&str],
) -> io::Result<Option<ToolVersion>> {
    let Some(found) = program(root, &PROGRAMS, name)? else { return Ok(None) };
    if let Some(version) = versions.of(tool, &found) {
        return Ok(Some(version));
    }
    let own = [format!("usr/lib/{ARCH}-linux-gnu"), format!("lib/{ARCH}-linux-gnu")];
    let folders = own.iter().map(String::as_str).chain(LIBRARIES);
    for folder in folders {
        for library in libraries {
            if let Some(found) = root.find(&format!("{folder}/{library}"))? {
                return Ok(versions.of(tool, &found));
            }
        }
    }
    Ok(None)
}

fn program(root: &Root, folders: &[&str], name: &str) -> io::Result<Option<Found>> {
    for folder in folders {
        if let Some(found) = root.find(&format!("{folder}/{name}"))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
