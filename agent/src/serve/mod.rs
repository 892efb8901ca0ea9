//! The HTTP interface: it reads the latest published value and nothing else,
//! so a scrape costs no I/O and a hung peer cannot hang it.

pub mod health;
pub mod metrics;
mod pages;
mod routes;
pub mod text;
pub mod words;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::published::Publication;

/// Bytes of a request's head. hyper allows no smaller buffer.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a body that are suffered; no request here needs one.
const MAX_BODY_BYTES: u64 = 1024;
/// A client that takes nothing off its socket for this long is gone.
const UNREAD: Duration = Duration::from_secs(10);
/// A connection is asked to end after this long: a client that reads a byte
/// now and then must not hold it for ever. Honest ones just connect again.
const LIFETIME: Duration = Duration::from_secs(300);
/// How long it may take to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Wait after accept(2) failed, as a rule for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits that an operator may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more are refused with 503.
    pub max_connections: usize,
    /// A request's head must have come within this time, counted from the
    /// connection's start or from the end of the answer before.
    pub read_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 64, read_timeout: Duration::from_secs(5) }
    }
}

/// Why HTTP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "{address} is in use: another program, maybe another overlaywatch, listens there \
         (`ss -ltnp sport = :{}` names it); stop it, or choose another port with --listen",
        address.port()
    )]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address is another host's.
    #[error("{address} is not an address of this host; choose one with --listen (`ip address`)")]
    NotHere {
        /// Where.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Opens the socket that [`run`] serves.
///
/// # Errors
/// An address that is in use, is not this host's or may not be used.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::InUse { address },
        io::ErrorKind::AddrNotAvailable => ServeError::NotHere { address },
        _ => ServeError::Other { address, source },
    })
}

/// Serves for ever. Dropped, it closes all its connections.
pub async fn run(listener: TcpListener, publication: Publication, limits: Limits) -> Infallible {
    let router = routes::router(Arc::new(pages::Shelf::new(publication)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if connections.len() >= limits.max_connections => refuse(&stream),
            Ok((stream, peer)) => {
                connections.spawn(connection(stream, peer, router.clone(), limits));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says so and closes. Not left waiting in the backlog: whoever holds the
/// connections would then also decide when a supervisor gets an answer.
fn refuse(stream: &TcpStream) {
    const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\
        Connection: close\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\r\n\
        too many connections\n";
    // A fresh socket's buffer takes it at once, or else the client goes without.
    // Past tokio, which does not yet know that the socket is writable.
    let _ = SockRef::from(stream).send(BUSY);
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, limits: Limits) {
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD)) {
        tracing::debug!(%peer, %error, "TCP_USER_TIMEOUT cannot be set");
    }
    let service = service_fn(move |request| answer(router.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(LIFETIME) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(FAREWELL, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    // What is announced counts; a body of unknown length is never read, and
    // hyper closes the connection on it after the answer.
    if request.body().size_hint().lower() > MAX_BODY_BYTES {
        let mut refusal = Response::new(Body::from("no request here has a body\n"));
        *refusal.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Ok(refusal);
    }
    router.oneshot(request.map(Body::new)).await
}
