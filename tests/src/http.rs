//! The smallest HTTP client that can ask an agent something.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// An agent that takes longer than this does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read: a recording of a lab node is far below it.
const LONGEST: u64 = 32 << 20;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Asks the agent in the calling thread's namespace for `path`.
///
/// # Errors
/// When nothing answers, or what answers is not HTTP.
pub fn get(port: u16, path: &str) -> Result<Answer> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut text = Vec::new();
    stream.take(LONGEST).read_to_end(&mut text)?;
    parse(&String::from_utf8(text).context("the answer is not UTF-8")?)
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .context("the answer has no status line")?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse().context("odd Content-Length")?;
            ensure!(body.len() == length, "the answer was cut off");
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("the answer comes in chunks, which agents have no reason for");
        }
    }
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_answer() {
        let answer =
            parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!(answer, Answer { status: 503, body: "{}".to_owned() });
    }

    #[test]
    fn refuses_a_cut_answer() {
        assert!(parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}").is_err());
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse("hello\r\n\r\n").is_err());
    }
}
