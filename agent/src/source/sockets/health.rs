//! What services of this node answer when they are asked how they are.
//!
//! Only who listens on the loopback is asked, there alone, with a plain GET
//! as Kubernetes' own probes send it; of the answer only the first line is read.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use overlaywatch_core::model::{Service, ServiceHealth};
use overlaywatch_core::time::{Mono, SECOND};

use super::translate::{self, TcpSocket};
use crate::clock;

/// How often a service is asked that is well, and one that is not.
const WELL_NS: u64 = 15 * SECOND;
const AILING_NS: u64 = 4 * SECOND;
/// For the whole answer.
const PATIENCE_NS: u64 = SECOND;
/// No first line is longer.
const MOST_BYTES: usize = 4_096;

/// What is known of each service that listens.
#[derive(Debug, Default)]
pub(super) struct Health(BTreeMap<Service, Asked>);

#[derive(Debug)]
struct Asked {
    health: ServiceHealth,
    due: Mono,
}

impl Health {
    /// Asks whoever listens and is due.
    pub(super) fn ask(&mut self, listeners: &[TcpSocket]) {
        for service in Service::ALL {
            if !listeners.iter().any(|socket| is_of(service, socket)) {
                self.0.remove(&service);
                continue;
            }
            let is_due = self.0.get(&service).is_none_or(|asked| clock::mono() >= asked.due);
            if is_due {
                self.take(service, get(service).ok().flatten(), clock::mono());
            }
        }
    }

    fn take(&mut self, service: Service, answer: Option<u16>, at: Mono) {
        let before = self.0.get(&service).map(|asked| asked.health);
        // What asks for something else, as for a login, is no complaint.
        let is_well = answer.is_some_and(|status| (100..500).contains(&status));
        let ailing = before.map_or(0, |health| health.ailing);
        let (ailing_since, ailing) = if is_well {
            (None, 0)
        } else {
            let since = before.and_then(|health| health.ailing_since);
            (Some(since.unwrap_or(at)), ailing.saturating_add(1))
        };
        let health = ServiceHealth { service, answer, ailing_since, ailing };
        let due = at.plus(if is_well { WELL_NS } else { AILING_NS });
        self.0.insert(service, Asked { health, due });
    }

    /// What they said last.
    pub(super) fn answers(&self) -> Vec<ServiceHealth> {
        self.0.values().map(|asked| asked.health).collect()
    }
}

/// Whether it is where the service listens, on the loopback.
fn is_of(service: Service, socket: &TcpSocket) -> bool {
    let (port, _) = service.place();
    let reaches = match socket.local.ip() {
        IpAddr::V4(address) => address.is_unspecified() || address == Ipv4Addr::LOCALHOST,
        // Takes IPv4 too, unless somebody asked for the contrary (ipv6(7)).
        IpAddr::V6(address) => address.is_unspecified(),
    };
    socket.local.port() == port && reaches
}

/// The status of the answer; none when it is no answer.
fn get(service: Service) -> io::Result<Option<u16>> {
    let (port, path) = service.place();
    let end = clock::mono().plus(PATIENCE_NS);
    let left = || match end.since(clock::mono()) {
        0 => Err(io::Error::from(io::ErrorKind::TimedOut)),
        nanoseconds => Ok(Duration::from_nanos(nanoseconds)),
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    // Cilium's agent wants to be asked briefly, others do not mind.
    // In one piece: written straight to a socket, each part is a packet of its own.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: overlaywatch\r\n\
         Brief: true\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 512]);
    while answer.len() < MOST_BYTES {
        stream.set_read_timeout(Some(left()?))?;
        let count = stream.read(&mut part)?;
        answer.extend_from_slice(part.get(..count).unwrap_or_default());
        let status = translate::status(&answer);
        if count == 0 || status.is_some() {
            return Ok(status);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * SECOND)
    }

    fn listener(address: &str) -> TcpSocket {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        TcpSocket { local: address.parse().unwrap(), remote: any, state: translate::LISTEN }
    }

    #[test]
    fn bad_answers_are_counted_from_the_first_on() {
        let mut health = Health::default();
        let mut take = |answer, seconds| {
            health.take(Service::Felix, answer, at(seconds));
            let told = health.answers()[0];
            (told.ailing_since, told.ailing)
        };
        assert_eq!(take(Some(200), 1), (None, 0));
        assert_eq!(take(Some(503), 16), (Some(at(16)), 1));
        assert_eq!(take(None, 20), (Some(at(16)), 2));
        assert_eq!(take(Some(204), 24), (None, 0));
    }

    #[test]
    fn who_no_longer_listens_is_forgotten() {
        let mut health = Health::default();
        health.take(Service::Felix, Some(503), at(1));
        health.ask(&[]);
        assert_eq!(health.answers(), []);
    }

    #[test]
    fn only_the_loopback_is_asked() {
        for here in ["127.0.0.1:9099", "0.0.0.0:9099", "[::]:9099"] {
            assert!(is_of(Service::Felix, &listener(here)), "{here}");
        }
        for elsewhere in ["10.0.0.1:9099", "127.0.0.1:9098", "[fd00::1]:9099"] {
            assert!(!is_of(Service::Felix, &listener(elsewhere)), "{elsewhere}");
        }
    }
}
