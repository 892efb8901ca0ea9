//! The least of an HTTP client that a benchmark needs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer and how long it took.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// From before connecting to the last byte.
    pub(crate) took: Duration,
}

/// Asks for `path` on a connection of its own, which the server ends.
pub(crate) fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)
        .with_context(|| format!("nobody answers on {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("reading {path} from {server}"))?;
    let took = start.elapsed();
    let (status, body) = parse(&answer).with_context(|| format!("{path} from {server}"))?;
    Ok(Answer { status, body: body.to_vec(), took })
}

/// The status and the body of an answer that ended with its connection. A body
/// in chunks is refused: the agent always knows its answers' length.
fn parse(answer: &[u8]) -> Result<(u16, &[u8])> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|window| window == END);
    let end = end.context("an answer without end of headers")?;
    let head = std::str::from_utf8(&answer[..end]).context("headers that are no text")?;
    if head.to_ascii_lowercase().contains("transfer-encoding:") {
        bail!("an answer in chunks, which this client does not read");
    }
    let status = head.split(' ').nth(1).context("an answer without status")?;
    Ok((status.parse().context("a status that is no number")?, &answer[end + END.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_answer_apart() {
        let (status, body) = parse(b"HTTP/1.1 503 Busy\r\nA: b\r\n\r\n{}\r\n\r\n").unwrap();
        assert_eq!((status, body), (503, b"{}\r\n\r\n".as_slice()));
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0").is_err());
    }
}
