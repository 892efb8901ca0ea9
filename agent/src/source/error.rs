//! Why a run of a source failed, as a gap for rules and as words for people.

use std::io;

use overlaywatch_core::fact::Gap;

/// Why a run of a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A system call failed.
    #[error("{what}: {source}{}", remedy(.source))]
    Io {
        /// What was being done to what.
        what: String,
        /// The error.
        source: io::Error,
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
    #[error("{what}: {reason}{}", program_remedy(*.errno))]
    Program {
        /// What was being done to what.
        what: String,
        /// What aya said of it.
        reason: String,
        /// The error number behind it, if one is.
        errno: Option<i32>,
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
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Gap::Denied,
                Some(
                    libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT,
                ) => Gap::Unsupported,
                // A receive timeout (SO_RCVTIMEO, socket(7)) ends as EAGAIN.
                Some(libc::EAGAIN | libc::ETIMEDOUT) => Gap::TimedOut,
                _ => Gap::Failed,
            },
            Self::Program { errno, .. } => match errno {
                Some(libc::EPERM | libc::EACCES) => Gap::Denied,
                Some(libc::ENOSYS | libc::EOPNOTSUPP) => Gap::Unsupported,
                _ => Gap::Failed,
            },
            Self::Unsteady { .. } | Self::Malformed { .. } => Gap::Failed,
        }
    }
}

fn program_remedy(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EPERM | libc::EACCES) => {
            "; hops are not counted: grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (the unit's \
             AmbientCapabilities=), and allow bpf(2) in its SystemCallFilter="
        }
        Some(libc::ENOSYS) => "; hops are not counted: this kernel is built without bpf(2)",
        _ => "; hops are not counted",
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
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
    fn the_message_names_what_and_the_remedy() {
        let error = SourceError::io("dumping routes", io::Error::from_raw_os_error(libc::EPERM));
        let text = error.to_string();
        assert!(text.starts_with("dumping routes: Operation not permitted"), "{text}");
        assert!(text.contains("security policy"), "{text}");
    }
}
