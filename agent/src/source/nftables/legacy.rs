//! Tables of the older xtables, and how many rules each has. What those rules
//! say is not read.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use overlaywatch_core::model::LegacyTable;
use socket2::{Domain, Socket, Type};

use super::SourceError;

/// A kernel has five of them; what is beyond is somebody's joke.
const MOST_TABLES: usize = 16;
/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (linux/netfilter_ipv4/ip_tables.h).
const GET_INFO: libc::c_int = 64;
/// Bytes of a table's name (`XT_TABLE_MAXNAMELEN`).
const NAME_BYTES: usize = 32;

/// `struct ipt_getinfo`, the same as `struct ip6t_getinfo`.
#[repr(C)]
#[derive(Default)]
struct Info {
    name: [u8; NAME_BYTES],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// The tables of the calling thread's network namespace; none where they are
/// hidden: their list is for root alone (xt_proto_init,
/// net/netfilter/x_tables.c), whatever the capabilities for networks.
pub(super) fn tables() -> Result<Option<Vec<LegacyTable>>, SourceError> {
    tables_in(Path::new("/proc/thread-self/net"))
}

fn tables_in(folder: &Path) -> Result<Option<Vec<LegacyTable>>, SourceError> {
    let mut tables = Vec::new();
    for (v6, file) in [(false, "ip_tables_names"), (true, "ip6_tables_names")] {
        let path = folder.join(file);
        let names = match fs::read_to_string(&path) {
            Ok(names) => names,
            // The module is not loaded: there are none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => {
                return Err(SourceError::io(format!("reading {}", path.display()), error));
            }
        };
        let named = names.lines().filter(|name| !name.is_empty()).take(MOST_TABLES);
        tables.extend(named.map(|name| LegacyTable {
            v6,
            name: name.to_owned(),
            rules: rules(v6, name).ok(),
        }));
    }
    Ok(Some(tables))
}

/// Rules of a table that is there: to ask for another would make it.
fn rules(v6: bool, name: &str) -> io::Result<u32> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let level = if v6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    let mut info = Info::default();
    let room = info.name.get_mut(..name.len()).filter(|room| room.len() < NAME_BYTES);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    let mut length = libc::socklen_t::try_from(size_of::<Info>()).unwrap_or(0);
    // SAFETY: `info` and `length` outlive the call, and the kernel writes no more
    // than `length` bytes, which is the size of `info`; any bytes are an `Info`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            GET_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // A policy for each of its hooks, and one at the end for errors
    // (IPT_ERROR, net/ipv4/netfilter/ip_tables.c).
    Ok(info.entries.saturating_sub(info.valid_hooks.count_ones() + 1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_list_for_root_alone_hides_the_tables_and_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(tables_in(folder.path()).unwrap(), Some(Vec::new()));
        let path = folder.path().join("ip_tables_names");
        fs::write(&path, "").unwrap();
        assert_eq!(tables_in(folder.path()).unwrap(), Some(Vec::new()));
        for (path, mode) in [(path.as_path(), 0o000), (folder.path(), 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let folder = folder.path().to_owned();
        // Only this thread becomes nobody.
        let hidden = std::thread::spawn(move || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            tables_in(&folder)
        });
        assert_eq!(hidden.join().unwrap().unwrap(), None);
    }
}
