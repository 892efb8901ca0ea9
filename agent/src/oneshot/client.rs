//! Asks an agent over HTTP.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::config::DEFAULT_PORT;

/// An agent of any size answers within this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// No answer is larger.
const MAX_BYTES: usize = 256 << 20;

/// Why an agent's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("`{url}` {why}; write http://ADDRESS:PORT, or just an address")]
    BadUrl {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody listens.
    #[error(
        "no agent answers at {url}: {source}; is it running (`systemctl status overlaywatch`), \
         and does it listen there?"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{url} did not answer within {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// What was asked.
        url: String,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{url} did not answer in HTTP: {why}")]
    Broken {
        /// What was asked.
        url: String,
        /// Why.
        why: String,
    },
    /// It answered that it cannot.
    #[error("{url} answered {status}: {text}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// The first line of what it said.
        text: String,
    },
    /// The answer is not what this version understands.
    #[error("{url} answered something else than an overlaywatch agent of this version does: {why}")]
    Foreign {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An agent to be asked.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its host, without brackets.
    host: String,
    /// Its port.
    port: u16,
    /// Host and port as a URL has them.
    authority: String,
}

impl Agent {
    /// Of a URL, or of an address or a name with or without a port.
    pub(super) fn new(url: &str) -> Result<Self, ClientError> {
        let bad = |why: &str| ClientError::BadUrl { url: url.to_owned(), why: why.to_owned() };
        let is_bare_v6 = url.parse::<std::net::Ipv6Addr>().is_ok();
        let with_scheme = match url {
            _ if is_bare_v6 => format!("http://[{url}]"),
            _ if url.contains("://") => url.to_owned(),
            _ => format!("http://{url}"),
        };
        let uri: Uri = with_scheme.parse().map_err(|_| bad("is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("is not an http:// URL"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("has a path, which this command chooses itself"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("has no host"))?;
        let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority: format!("{host}:{port}"),
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    /// That the answer is not what it should be.
    pub(super) fn foreign(&self, path: &str, why: &impl ToString) -> ClientError {
        ClientError::Foreign { url: self.url(path), why: why.to_string() }
    }

    /// The answer as a typed value.
    pub(super) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).map_err(|error| self.foreign(path, &error))
    }

    /// The answer as text.
    pub(super) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let url = self.url(path);
        let (status, bytes) = tokio::time::timeout(TIMEOUT, self.get(path))
            .await
            .map_err(|_| ClientError::TimedOut { url: url.clone() })??;
        let text = String::from_utf8(bytes.into()).map_err(|error| self.foreign(path, &error))?;
        // /health answers 503 to tell a supervisor of the network's state; the body counts.
        let is_verdict = path == "/health" && status == StatusCode::SERVICE_UNAVAILABLE;
        if status.is_success() || (is_verdict && text.starts_with('{')) {
            return Ok(text);
        }
        let first = text.lines().next().unwrap_or("");
        let text = first.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(ClientError::Refused { url, status, text })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
        let url = self.url(path);
        let broken = |why: String| ClientError::Broken { url: url.clone(), why };
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|source| ClientError::Unreachable { url: self.url(""), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
        let request = Request::get(path)
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Body::empty())
            .map_err(|error| broken(error.to_string()))?;
        let exchange = async {
            let response =
                sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BYTES);
            let body = body.collect().await.map_err(|error| broken(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        // The connection moves only while it is polled beside the exchange.
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer,
            _ = &mut connection => exchange.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_be_short() {
        let authority = |url| Agent::new(url).map(|agent| agent.authority).ok();
        assert_eq!(authority("http://127.0.0.1:9977").as_deref(), Some("127.0.0.1:9977"));
        assert_eq!(authority("http://node-b/").as_deref(), Some("node-b:9977"));
        assert_eq!(authority("10.0.0.2").as_deref(), Some("10.0.0.2:9977"));
        assert_eq!(authority("10.0.0.2:80").as_deref(), Some("10.0.0.2:80"));
        assert_eq!(authority("2001:db8::2").as_deref(), Some("[2001:db8::2]:9977"));
        assert_eq!(authority("[2001:db8::2]:1").as_deref(), Some("[2001:db8::2]:1"));
        assert_eq!(authority("https://node-b"), None);
        assert_eq!(authority("http://node-b/health"), None);
        assert_eq!(authority(""), None);
    }
}
