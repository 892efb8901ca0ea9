//! A mesh to look at: built, watched live, broken if asked, and gone.

mod table;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::finding::Direction;
use serde::Serialize;

use crate::agent::Launch;
use crate::fault::Fault;
use crate::interrupt;
use crate::judge::{About, Said, Wanted};
use crate::mode::Mode;
use crate::poll::{self, Poll};
use crate::run::wait_until_ready;
use crate::topology::{Cluster, Shape};
use crate::traffic::Flow;
use table::{Pair, Reports};

/// From the moment that all nodes pass until the fault.
const FAULT_AFTER: Duration = Duration::from_secs(5);
/// Time between two pictures.
const REDRAW: Duration = Duration::from_secs(1);
/// Pictures back to which losses are counted.
const SECONDS_COMPARED: usize = 5;
/// How often the demo looks whether something is due.
const TURN: Duration = Duration::from_millis(50);

/// What to show.
#[derive(Debug)]
pub struct Demo {
    /// The agent's binary.
    pub binary: PathBuf,
    /// Whose overlay.
    pub shape: Shape,
    /// How many nodes.
    pub size: usize,
    /// What to break.
    pub fault: Option<&'static Fault>,
    /// For how long; until interrupted without.
    pub time: Option<Duration>,
    /// Show the mesh while it runs.
    pub live: bool,
    /// The output is a terminal, where the table is redrawn in place.
    pub redraws: bool,
}

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Whose overlay.
    pub shape: Shape,
    /// The nodes.
    pub nodes: Vec<ShownNode>,
    /// Every ordered pair of nodes, at the end.
    pub pairs: Vec<Pair>,
    /// What was broken.
    pub fault: Option<ShownFault>,
    /// From the first agent's start until all nodes passed.
    pub seconds_to_ready: f64,
}

/// A node at the end.
#[derive(Debug, Serialize)]
pub struct ShownNode {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: std::net::IpAddr,
    /// Its verdict; none when it does not answer.
    pub status: Option<Status>,
    /// The sentence that it says it with.
    pub summary: String,
    /// Its findings as its /health has them, with evidence and remedy.
    pub findings: serde_json::Value,
    /// What a person types to ask it.
    pub curl: String,
}

/// A fault and what the nodes made of it.
#[derive(Debug, Serialize)]
pub struct ShownFault {
    /// Its name.
    pub name: &'static str,
    /// Seconds from the moment that all nodes passed to the injection.
    pub injected_at: f64,
    /// Seconds from the injection to the first lost packet of live traffic;
    /// times to detect count from there.
    pub first_lost_after: Option<f64>,
    /// From the first lost packet to the last expected finding; none while one is missing.
    pub seconds_to_detect: Option<f64>,
    /// The expected findings.
    pub findings: Vec<ShownFinding>,
    /// Findings that nobody expected.
    pub unexpected: Vec<String>,
}

/// An expected finding and when it came.
#[derive(Debug, Serialize)]
pub struct ShownFinding {
    /// Who says it.
    pub node: String,
    /// What.
    pub code: &'static str,
    /// Which way, as seen from that node.
    pub direction: Option<&'static str>,
    /// About whom; none when it is about the node itself.
    pub peer: Option<String>,
    /// Where packets vanish, as `from→to`.
    pub hop: Option<String>,
    /// From the first lost packet; none when it did not come.
    pub seconds_to_detect: Option<f64>,
}

impl Shown {
    /// Whether the agents said what they ought to.
    #[must_use]
    pub fn is_right(&self) -> bool {
        match &self.fault {
            Some(fault) => {
                fault.unexpected.is_empty()
                    && fault.findings.iter().all(|found| found.seconds_to_detect.is_some())
            }
            None => self.nodes.iter().all(|node| node.status == Some(Status::Pass)),
        }
    }
}

/// A fault that is being made, and how it goes.
struct Broken {
    fault: &'static Fault,
    wanted: Vec<Wanted>,
    flows: Vec<Flow>,
    injected: Option<Instant>,
    first_lost: Option<Instant>,
}

impl Demo {
    /// Builds the mesh, shows it, and takes it down.
    ///
    /// # Errors
    /// When the mesh cannot be built or its agents do not come to pass.
    pub fn show(&self) -> Result<Shown> {
        let mut cluster = Cluster::build(self.shape, self.size)?;
        let started = Instant::now();
        let listed = self.fault.is_none_or(|fault| fault.listed);
        let ebpf = self.fault.is_none_or(|fault| fault.ebpf);
        let launch = Launch { binary: self.binary.clone(), listed, ebpf, mode: Mode::Rules };
        cluster.start_agents(launch)?;
        let poll = Poll::start(&cluster)?;
        if self.live {
            self.greet(&cluster)?;
        }
        wait_until_ready(&mut cluster, &poll)?;
        let ready = Instant::now();
        let mut broken = self.fault.map(|fault| Broken::prepare(fault, &cluster)).transpose()?;
        let mut history = VecDeque::from([reports(&cluster)]);
        let mut next = ready + REDRAW;
        loop {
            let over = self.time.is_some_and(|time| ready.elapsed() >= time);
            if over || interrupt::is_requested() {
                break;
            }
            if let Some(broken) = &mut broken {
                broken.advance(&mut cluster, ready)?;
            }
            if Instant::now() >= next {
                next += REDRAW;
                let pairs = self.look(&cluster, &mut history);
                if self.live {
                    self.draw(&cluster, &pairs, &poll, broken.as_ref(), ready)?;
                }
            }
            std::thread::sleep(TURN);
        }
        let pairs = self.look(&cluster, &mut history);
        if self.live {
            self.draw(&cluster, &pairs, &poll, broken.as_ref(), ready)?;
        }
        Ok(Shown {
            shape: self.shape,
            nodes: nodes(&cluster, &poll)?,
            pairs,
            fault: broken.map(|broken| broken.conclude(&cluster, &poll, ready)).transpose()?,
            seconds_to_ready: ready.duration_since(started).as_secs_f64(),
        })
    }

    fn greet(&self, cluster: &Cluster) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "{} nodes, {}-shaped: {}, {}. Ask an agent yourself, in another shell:",
            cluster.nodes.len(),
            self.shape.name(),
            self.shape.device(),
            self.shape.encapsulation(),
        )?;
        for node in &cluster.nodes {
            writeln!(out, "  {}", poll::curl(node))?;
        }
        writeln!(out, "Waiting until all agents pass ...")?;
        Ok(out.flush()?)
    }

    /// Asks all agents again, and compares with what they said some seconds ago.
    fn look(&self, cluster: &Cluster, history: &mut VecDeque<Reports>) -> Vec<Pair> {
        let now = reports(cluster);
        while history.len() > SECONDS_COMPARED {
            history.pop_front();
        }
        let pairs = history.front().map(|earlier| table::pairs(cluster, earlier, &now));
        history.push_back(now);
        pairs.unwrap_or_default()
    }

    fn draw(
        &self,
        cluster: &Cluster,
        pairs: &[Pair],
        poll: &Poll,
        broken: Option<&Broken>,
        ready: Instant,
    ) -> Result<()> {
        let mut text = String::new();
        if self.redraws {
            // To the upper left corner, and clear what is below (ECMA-48: CUP, ED).
            text.push_str("\x1b[H\x1b[J");
        }
        text.push_str(&table::draw(pairs, self.redraws));
        {
            let heard = poll.heard()?;
            for summary in &heard.summaries {
                text.push_str(&format!("{summary}\n"));
            }
        }
        if let Some(broken) = broken {
            text.push_str(&broken.line(poll, ready)?);
        }
        if self.redraws {
            // The greeting was wiped off.
            for node in &cluster.nodes {
                text.push_str(&format!("  {}\n", poll::curl(node)));
            }
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }
}

impl Broken {
    fn prepare(fault: &'static Fault, cluster: &Cluster) -> Result<Self> {
        let flows =
            fault.breaks.iter().map(|&path| Flow::start(cluster, path)).collect::<Result<_>>()?;
        let wanted = fault.wanted(cluster)?;
        Ok(Self { fault, wanted, flows, injected: None, first_lost: None })
    }

    /// Injects when it is time, and looks for the first lost packet.
    fn advance(&mut self, cluster: &mut Cluster, ready: Instant) -> Result<()> {
        match self.injected {
            None if ready.elapsed() >= FAULT_AFTER => {
                self.injected = Some(Instant::now());
                (self.fault.inject)(cluster)
            }
            Some(injected) if self.first_lost.is_none() => {
                self.first_lost = if self.flows.is_empty() {
                    Some(injected)
                } else {
                    self.flows.iter().filter_map(|flow| flow.first_lost(injected)).min()
                };
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn seconds(&self, poll: &Poll, wanted: &Wanted) -> Result<Option<f64>> {
        let Some(since) = self.first_lost.map(|moment| poll.at(moment)) else { return Ok(None) };
        let first = poll.heard()?.timeline.first(since, wanted);
        Ok(first.map(|at| at.saturating_sub(since).as_secs_f64()))
    }

    /// How it goes, in a line.
    fn line(&self, poll: &Poll, ready: Instant) -> Result<String> {
        let Some(injected) = self.injected else {
            let left = FAULT_AFTER.saturating_sub(ready.elapsed()).as_secs();
            return Ok(format!("{} comes in {left} s\n", self.fault.name));
        };
        let ago = injected.elapsed().as_secs();
        let mut line = format!("{}: {}, {ago} s ago\n", self.fault.name, self.fault.about);
        for (expected, wanted) in self.fault.expected.iter().zip(&self.wanted) {
            let time = match self.seconds(poll, wanted)? {
                Some(seconds) => format!("{seconds:.1} s after the first lost packet"),
                None => "not yet".to_owned(),
            };
            line.push_str(&format!("  {expected}: {time}\n"));
        }
        Ok(line)
    }

    fn conclude(self, cluster: &Cluster, poll: &Poll, ready: Instant) -> Result<ShownFault> {
        let findings = self
            .wanted
            .iter()
            .map(|wanted| self.finding(cluster, poll, wanted))
            .collect::<Result<Vec<_>>>()?;
        let times: Option<Vec<f64>> = findings.iter().map(|f| f.seconds_to_detect).collect();
        let unwanted = poll.heard()?.timeline.unwanted(poll.at(ready), &self.wanted);
        let first_lost = self.first_lost.zip(self.injected);
        Ok(ShownFault {
            name: self.fault.name,
            injected_at: self.injected.map_or(0.0, |at| at.duration_since(ready).as_secs_f64()),
            first_lost_after: first_lost
                .map(|(lost, injected)| lost.saturating_duration_since(injected).as_secs_f64()),
            seconds_to_detect: times.and_then(|times| times.into_iter().reduce(f64::max)),
            findings,
            unexpected: unwanted
                .iter()
                .map(|(node, observed)| crate::report::said_by(cluster, *node, observed))
                .collect(),
        })
    }

    /// The finding as it stands, or as it was wanted.
    fn finding(&self, cluster: &Cluster, poll: &Poll, wanted: &Wanted) -> Result<ShownFinding> {
        let seconds_to_detect = self.seconds(poll, wanted)?;
        let heard = poll.heard()?;
        let observed = heard.timeline.now(wanted.node).and_then(|said| said.named(wanted));
        let direction = match observed {
            Some(observed) => observed.direction,
            None => wanted.directions.first().copied(),
        };
        let hop = match observed {
            Some(observed) => observed.hop,
            None => wanted.hops.first().map(|&hop| hop.into()),
        };
        Ok(ShownFinding {
            node: cluster.node(wanted.node)?.name.clone(),
            code: observed.map(|found| found.code).or(wanted.code).map_or("", Code::slug),
            direction: direction.map(Direction::slug),
            peer: match &wanted.about {
                About::Peer(address) => Some(poll::name_of(cluster, *address)),
                About::Node | About::Device(_) | About::Thing(..) => None,
            },
            hop: hop.map(|hop| format!("{}→{}", hop.from, hop.to)),
            seconds_to_detect,
        })
    }
}

/// Each node's report; none of an agent that does not answer.
fn reports(cluster: &Cluster) -> Reports {
    let report = |node| serde_json::from_str(&poll::fetch(node, "/v1/report").ok()?).ok();
    cluster.nodes.iter().map(report).collect()
}

fn nodes(cluster: &Cluster, poll: &Poll) -> Result<Vec<ShownNode>> {
    let heard = poll.heard()?;
    Ok(cluster
        .nodes
        .iter()
        .map(|node| ShownNode {
            name: node.name.clone(),
            address: node.address(cluster.shape),
            status: match heard.timeline.now(node.index) {
                Some(Said::Verdict { status, .. }) => Some(*status),
                None | Some(Said::Nothing) => None,
            },
            summary: heard.summaries.get(node.index).cloned().unwrap_or_default(),
            findings: poll::findings(node),
            curl: poll::curl(node),
        })
        .collect())
}
