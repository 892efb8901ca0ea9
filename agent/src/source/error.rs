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
            Self::Unsteady { .. } | Self::Malformed { .. } => Gap::Failed,
        }
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
