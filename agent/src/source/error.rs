//! Why a run of a source failed, as a gap for rules and as words for people.

use std::io;

use overlaywatch_core::fact::Gap;

/// Why a run of a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A system call failed.
    #[error("{what}: {source}{}", remedy(.source, &missing_capabilities()))]
    Io {
        /// What was being done to what.
        what: String,
        /// The error.
        source: io::Error,
    },
    /// A system call failed for want of a capability.
    #[error(
        "{what}: {source}; grant {capability} (the unit's AmbientCapabilities= and \
         CapabilityBoundingSet=)"
    )]
    Lacking {
        /// What was being done to what.
        what: String,
        /// The error.
        source: io::Error,
        /// What is wanting, as capabilities(7) names it.
        capability: &'static str,
    },
    /// The tables changed during each attempt to dump them (`NLM_F_DUMP_INTR`).
    #[error("{what}: changed while it was read, {attempts} times in a row; trying again")]
    Unsteady {
        /// What was being dumped.
        what: &'static str,
        /// How often.
        attempts: u32,
    },
    /// The kernel did not take a program or a map.
    #[error("{what}: {reason}{}", program_remedy(*.errno, &missing_capabilities()))]
    Program {
        /// What was being done to what.
        what: String,
        /// What aya said of it.
        reason: String,
        /// The error number behind it, if one is.
        errno: Option<i32>,
    },
    /// There is no place for pins.
    #[error("{what}: {source}{}", pins_remedy(.source))]
    Pins {
        /// What was being done to what.
        what: String,
        /// The error.
        source: io::Error,
    },
    /// Another process works with the same pins.
    #[error(
        "an agent is running that keeps its eBPF programs under {pins}, and there is one for each \
         network namespace: stop it first (`systemctl stop overlaywatch`)"
    )]
    Busy {
        /// Where they are.
        pins: String,
    },
    /// The kernel's answer is not what this program understands.
    #[error("{what}: {reason}; please report it with the output of `uname -r`")]
    Malformed {
        /// What was being read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl SourceError {
    /// A failed system call.
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// A failed system call about pins.
    pub(super) fn pins(what: impl Into<String>, source: io::Error) -> Self {
        Self::Pins { what: what.into(), source }
    }

    /// A program or a map that the kernel did not take. The system call's error
    /// is somewhere down the chain of causes.
    pub(super) fn kernel(
        what: impl Into<String>,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        let mut cause = Some(error);
        let mut errno = None;
        while let Some(link) = cause {
            errno = errno.or(link.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
            cause = link.source();
        }
        Self::Program { what: what.into(), reason: error.to_string(), errno }
    }

    /// The gap that this error leaves.
    #[must_use]
    pub fn gap(&self) -> Gap {
        match self {
            Self::Io { source, .. } | Self::Pins { source, .. } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Gap::Denied,
                Some(
                    libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT,
                ) => Gap::Unsupported,
                // A receive timeout (SO_RCVTIMEO, socket(7)) ends as EAGAIN.
                Some(libc::EAGAIN | libc::ETIMEDOUT) => Gap::TimedOut,
                _ => Gap::Failed,
            },
            Self::Lacking { .. } => Gap::Denied,
            Self::Program { errno, .. } => match errno {
                Some(libc::EPERM | libc::EACCES) => Gap::Denied,
                Some(libc::ENOSYS | libc::EOPNOTSUPP) => Gap::Unsupported,
                _ => Gap::Failed,
            },
            Self::Unsteady { .. } | Self::Malformed { .. } | Self::Busy { .. } => Gap::Failed,
        }
    }
}

const NET_ADMIN: &str = "CAP_NET_ADMIN";
/// What loading and attaching programs takes (capabilities(7)), by number.
const NEEDED: [(u32, &str); 3] = [(12, NET_ADMIN), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// It includes the two others on top of CAP_NET_ADMIN.
const CAP_SYS_ADMIN: u32 = 21;

/// Which of the needed capabilities this thread lacks.
fn missing_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Where that cannot be read it is better to name too many.
    lacking(effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective >> number & 1 == 1;
    let is_root = has(CAP_SYS_ADMIN);
    let needed = NEEDED.into_iter().filter(|&(_, name)| !is_root || name == NET_ADMIN);
    needed.filter(|&(number, _)| !has(number)).map(|(_, name)| name).collect()
}

fn program_remedy(errno: Option<i32>, missing: &[&str]) -> String {
    match errno {
        Some(libc::EPERM | libc::EACCES) if missing.is_empty() => {
            "; hops are not counted: allow bpf(2) in the unit's SystemCallFilter=, and look at \
             kernel lockdown, AppArmor and SELinux"
                .to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => format!(
            "; hops are not counted: grant {} (the unit's AmbientCapabilities= and \
             CapabilityBoundingSet=)",
            missing.join(", ")
        ),
        Some(libc::ENOSYS) => {
            "; hops are not counted: this kernel is built without bpf(2)".to_owned()
        }
        _ => "; hops are not counted".to_owned(),
    }
}

fn pins_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => {
            "; hops are not counted: have root mount it (`mount -t bpf bpf /sys/fs/bpf`, which \
             systemd does at boot) with a folder that the agent's user may write to, and name that \
             as `[ebpf] pin` in the configuration"
        }
        Some(libc::ENODEV) => {
            "; hops are not counted: this kernel has no BPF file system (CONFIG_BPF_SYSCALL)"
        }
        _ => "; hops are not counted",
    }
}

fn remedy(error: &io::Error, missing: &[&str]) -> &'static str {
    match error.raw_os_error() {
        // What netlink answers whoever lacks it (netlink_capable, net/netlink/af_netlink.c).
        Some(libc::EPERM) if missing.contains(&NET_ADMIN) => {
            "; grant CAP_NET_ADMIN (the unit's AmbientCapabilities= and CapabilityBoundingSet=)"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "; a security policy forbids it: look at the unit's hardening and at AppArmor or SELinux"
        }
        Some(libc::EAFNOSUPPORT) => {
            "; AF_NETLINK must be in the unit's RestrictAddressFamilies= and in the kernel"
        }
        Some(libc::EAGAIN | libc::ETIMEDOUT) => {
            "; the kernel did not answer in time: something may be holding its network lock"
        }
        Some(libc::EMFILE | libc::ENFILE) => "; raise LimitNOFILE= of the unit",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_the_gap_that_fits() {
        let gap = |errno| SourceError::io("x", io::Error::from_raw_os_error(errno)).gap();
        assert_eq!(gap(libc::EPERM), Gap::Denied);
        assert_eq!(gap(libc::EACCES), Gap::Denied);
        assert_eq!(gap(libc::EOPNOTSUPP), Gap::Unsupported);
        assert_eq!(gap(libc::ENOENT), Gap::Unsupported);
        assert_eq!(gap(libc::EAGAIN), Gap::TimedOut);
        assert_eq!(gap(libc::EIO), Gap::Failed);
        assert_eq!(SourceError::Unsteady { what: "x", attempts: 5 }.gap(), Gap::Failed);
    }

    #[test]
    fn a_missing_capability_is_named() {
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        assert!(remedy(&denied, &[NET_ADMIN]).contains("grant CAP_NET_ADMIN"));
        assert!(remedy(&denied, &[]).contains("AppArmor"));
        assert_eq!(lacking(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(lacking(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(lacking(1 << 12 | 1 << 21), [""; 0], "CAP_SYS_ADMIN includes them");
        let remedy = program_remedy(Some(libc::EPERM), &["CAP_PERFMON", "CAP_BPF"]);
        assert!(remedy.contains("grant CAP_PERFMON, CAP_BPF"), "{remedy}");
        assert!(program_remedy(Some(libc::EPERM), &[]).contains("SystemCallFilter"));
    }

    #[test]
    fn the_message_names_what_and_the_remedy() {
        let error = SourceError::io("dumping routes", io::Error::from_raw_os_error(libc::EPERM));
        let text = error.to_string();
        assert!(text.starts_with("dumping routes: Operation not permitted"), "{text}");
        assert!(text.contains("security policy"), "{text}");
    }
}
