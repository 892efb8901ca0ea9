//! sock_diag's messages (`struct inet_diag_msg`, linux/inet_diag.h), and the
//! first line of an HTTP answer (RFC 9112, 4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlaywatch_core::model::SessionState;

/// Bytes of `struct inet_diag_sockid`.
pub(super) const SOCKET_ID_BYTES: usize = 48;
/// The kernel's number for a listener (net/tcp_states.h).
pub(super) const LISTEN: u8 = 10;

/// A TCP socket, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// This end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub remote: SocketAddr,
    /// The kernel's number of its state.
    pub state: u8,
}

impl TcpSocket {
    /// How far the connection is.
    #[must_use]
    pub const fn session(&self) -> SessionState {
        match self.state {
            1 => SessionState::Established,
            2 => SessionState::SynSent,
            // The second is of a request that has no socket yet (TCP_NEW_SYN_RECV).
            3 | 12 => SessionState::SynReceived,
            _ => SessionState::Closed,
        }
    }
}

/// A message that cannot be the kernel's.
#[derive(Debug, thiserror::Error)]
#[error("a socket in {0} bytes")]
pub struct Malformed(usize);

/// The socket that a message tells of; none for another family.
///
/// # Errors
/// When the payload is too short.
pub fn socket(payload: &[u8]) -> Result<Option<TcpSocket>, Malformed> {
    let malformed = || Malformed(payload.len());
    let ([family, state, _timer, _retransmits], rest) =
        payload.split_first_chunk().ok_or_else(malformed)?;
    let (source, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (destination, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (local, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (remote, _) = rest.split_first_chunk().ok_or_else(malformed)?;
    let family = i32::from(*family);
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return Ok(None);
    }
    let end = |port: &[u8; 2], address: &[u8; 16]| {
        let [a, b, c, d, ..] = *address;
        let address = if family == libc::AF_INET {
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        } else {
            // An IPv6 socket that speaks IPv4 (RFC 4291, 2.5.5.2).
            IpAddr::from(Ipv6Addr::from(*address)).to_canonical()
        };
        SocketAddr::new(address, u16::from_be_bytes(*port))
    };
    let (local, remote) = (end(source, local), end(destination, remote));
    Ok(Some(TcpSocket { local, remote, state: *state }))
}

/// The status of an HTTP answer that begins with these bytes; none while its
/// first line is not whole, or when it is no answer.
#[must_use]
pub fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split_inclusive(|&byte| byte == b'\n').next()?;
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.trim_end();
    (status.len() == 3).then(|| status.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(family: i32, state: u8, ends: [(u16, &str); 2]) -> Vec<u8> {
        let [(source, local), (destination, remote)] = ends;
        let mut bytes = vec![u8::try_from(family).unwrap(), state, 0, 0];
        bytes.extend(source.to_be_bytes());
        bytes.extend(destination.to_be_bytes());
        for address in [local, remote] {
            let mut octets = match address.parse().unwrap() {
                IpAddr::V4(four) => four.octets().to_vec(),
                IpAddr::V6(six) => six.octets().to_vec(),
            };
            octets.resize(16, 0);
            bytes.extend(octets);
        }
        bytes.resize(72, 0);
        bytes
    }

    #[test]
    fn both_ends_are_read() {
        let ends = [(179, "10.0.0.1"), (40_000, "10.0.0.2")];
        let read = socket(&message(libc::AF_INET, 1, ends)).unwrap().unwrap();
        assert_eq!(read.local, "10.0.0.1:179".parse().unwrap());
        assert_eq!(read.remote, "10.0.0.2:40000".parse().unwrap());
        assert_eq!(read.session(), SessionState::Established);
    }

    #[test]
    fn ipv4_on_an_ipv6_socket_is_ipv4() {
        let ends = [(40_000, "::ffff:10.0.0.1"), (179, "::ffff:10.0.0.2")];
        let read = socket(&message(libc::AF_INET6, 2, ends)).unwrap().unwrap();
        assert_eq!(read.remote, "10.0.0.2:179".parse().unwrap());
        assert_eq!(read.session(), SessionState::SynSent);
    }

    #[test]
    fn what_is_too_short_is_refused_and_what_is_foreign_passed_over() {
        let whole = message(libc::AF_INET, 1, [(1, "10.0.0.1"), (2, "10.0.0.2")]);
        assert!(socket(&whole[..39]).is_err());
        assert_eq!(socket(&message(1, 1, [(1, "::"), (2, "::")])).unwrap(), None);
    }

    #[test]
    fn a_status_is_in_the_first_line() {
        assert_eq!(status(b"HTTP/1.1 503 Service Unavailable\r\nDate: x\r\n"), Some(503));
        assert_eq!(status(b"HTTP/1.0 200\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.1 50"), None, "not whole");
        assert_eq!(status(b"SSH-2.0-x 200\r\n"), None);
        assert_eq!(status(b"HTTP/1.1 20000 OK\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = socket(&bytes);
            let _ = status(&bytes);
        }
    }
}
