//! Tables as full as on a busy node, made with the usual tools.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The most connections that the whole machine tracks (nf_conntrack-sysctl.rst).
const MOST_CONNECTIONS: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Room for more connections than the machine had; put back when dropped.
pub(crate) struct Room {
    /// The initial namespace's, which alone can be written. A file that was
    /// opened there stays that one.
    file: File,
    before: String,
}

impl Room {
    /// Raises the limit where `size` connections need it.
    pub(crate) fn make(size: u32) -> Result<Option<Self>> {
        let reading = || format!("reading {MOST_CONNECTIONS}: is nf_conntrack loaded?");
        let before = fs::read_to_string(MOST_CONNECTIONS).with_context(reading)?;
        if before.trim().parse::<u32>()? > size {
            return Ok(None);
        }
        let file = File::options().write(true).open(MOST_CONNECTIONS)?;
        let room = Self { file, before };
        room.file.write_all_at((size + size / 4).to_string().as_bytes(), 0)?;
        Ok(Some(room))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // A switch is only ever written from its beginning.
        if let Err(error) = self.file.write_all_at(self.before.as_bytes(), 0) {
            eprintln!("{MOST_CONNECTIONS} was {} and stays changed: {error}", self.before.trim());
        }
    }
}

/// Gives a tool its commands.
fn feed(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("running `{program}`: is it installed?"))?;
    child.stdin.take().context("no input was taken")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "`{program}` did not take what it was given");
    Ok(())
}

/// Routes to /32s beyond one gateway, as a node that speaks BGP may hold them.
pub(crate) fn routes(size: u32) -> Result<()> {
    let mut text = String::from(
        "link add va type veth peer name vb\n\
         link set va up\n\
         link set vb up\n\
         addr add 192.0.2.1/24 dev va\n",
    );
    for number in 0..size {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(text, "route add 10.{a}.{b}.{c} via 192.0.2.2")?;
    }
    feed("ip", &["-batch", "-"], &text)
}

/// Rules in 1,000 chains, with the matches and comments of kube-proxy's.
pub(crate) fn rules(size: u32) -> Result<()> {
    const CHAINS: u32 = 1_000;
    let mut text = String::from("*filter\n");
    for chain in 0..CHAINS {
        writeln!(text, ":KUBE-SVC-{chain:08X} - [0:0]")?;
    }
    for number in 0..size {
        let [_, a, b, c] = number.to_be_bytes();
        let chain = number % CHAINS;
        writeln!(
            text,
            "-A KUBE-SVC-{chain:08X} -s 10.{a}.{b}.{c}/32 -m comment --comment \"ns/service\" \
             -p tcp -m tcp --dport 8080 -j ACCEPT"
        )?;
    }
    text += "COMMIT\n";
    feed("iptables-nft-restore", &[], &text)
}

/// Connections; every hundredth is VXLAN's, as the kernel tracks it: one way.
pub(crate) fn connections(size: u32) -> Result<()> {
    let mut text = String::new();
    for number in 0..size {
        let [_, a, b, c] = number.to_be_bytes();
        let port = if number % 100 == 0 { 8472 } else { 53 };
        writeln!(
            text,
            "-A -p udp -s 10.{a}.{b}.{c} -d 10.0.0.2 --sport 1024 --dport {port} -t 3600"
        )?;
    }
    feed("conntrack", &["--load-file", "-"], &text)
}

/// 201 sets as network policies make them; one has `size` members.
pub(crate) fn sets(size: u32) -> Result<()> {
    let mut text = String::from("create pods hash:ip maxelem 1048576\n");
    for number in 0..size {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(text, "add pods 10.{a}.{b}.{c}")?;
    }
    for set in 0..200 {
        writeln!(text, "create policy-{set} hash:ip,port\nadd policy-{set} 10.0.0.1,tcp:80")?;
    }
    feed("ipset", &["restore"], &text)
}
