//! Listening to the agents: each node's /health, ten times a second where the
//! machine is no slower than usual.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::agent::PORT;
use crate::judge::{Said, Sample, Timeline};
use crate::topology::{Cluster, Node};
use crate::{health, http, patience};

/// Time between two looks at a node.
const EVERY: Duration = Duration::from_millis(100);

/// Watches all agents of a cluster until it is dropped.
#[derive(Debug)]
pub struct Poll {
    began: Instant,
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What was heard of all nodes.
#[derive(Debug, Default)]
pub struct Heard {
    /// What they said, over time.
    pub timeline: Timeline,
    /// Each node's latest sentence.
    pub summaries: Vec<String>,
    /// The first answer that broke the contract.
    pub broken: Option<String>,
}

impl Poll {
    /// Starts to watch.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let mut poll = Self {
            began: Instant::now(),
            heard: Arc::new(Mutex::new(Heard {
                summaries: vec![String::new(); cluster.nodes.len()],
                ..Heard::default()
            })),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for node in &cluster.nodes {
            poll.watch(node)?;
        }
        Ok(poll)
    }

    fn watch(&mut self, node: &Node) -> Result<()> {
        let (index, namespace) = (node.index, node.netns.handle()?);
        let (began, heard, stop) = (self.began, Arc::clone(&self.heard), Arc::clone(&self.stop));
        self.threads.push(thread::spawn(move || {
            if let Err(error) = namespace.join() {
                lock(&heard).broken = Some(format!("cannot enter a node's namespace: {error}"));
                return;
            }
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let answer = http::get(PORT, "/health");
                let at = began.elapsed();
                let mut heard = lock(&heard);
                let said = match answer.map(|answer| health::read(&answer.body)) {
                    Err(_) => Said::Nothing,
                    Ok(Ok((said, summary))) => {
                        if let Some(place) = heard.summaries.get_mut(index) {
                            *place = summary;
                        }
                        said
                    }
                    Ok(Err(error)) => {
                        heard.broken.get_or_insert(format!("{error:#}"));
                        Said::Nothing
                    }
                };
                heard.timeline.push(Sample { at, node: index, said });
                drop(heard);
                next += patience::stretched(EVERY);
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next = next.max(Instant::now());
            }
        }));
        Ok(())
    }

    /// A moment as the timeline counts it.
    #[must_use]
    pub fn at(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.began)
    }

    /// What was heard so far.
    ///
    /// # Errors
    /// When an answer broke the contract: nothing can be judged then.
    pub fn heard(&self) -> Result<MutexGuard<'_, Heard>> {
        let heard = lock(&self.heard);
        ensure!(heard.broken.is_none(), "{}", heard.broken.as_deref().unwrap_or_default());
        Ok(heard)
    }

    /// Since when every node with an agent has been calm, all others of them
    /// being its healthy peers; none while one is not.
    ///
    /// # Errors
    /// As [`Self::heard`].
    pub fn calm_since(&self, cluster: &Cluster) -> Result<Option<Duration>> {
        let heard = self.heard()?;
        let nodes: Vec<usize> =
            cluster.nodes.iter().filter(|node| node.agent.is_some()).map(|n| n.index).collect();
        // Each family of addresses makes a peer.
        let peers = nodes.len().saturating_sub(1) * cluster.shape.families();
        let since: Option<Vec<Duration>> =
            nodes.iter().map(|&node| heard.timeline.calm_since(node, peers)).collect();
        Ok(since.and_then(|since| since.into_iter().max()))
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said why.
            let _ = thread.join();
        }
    }
}

/// A lock that a panicked thread held is as good as any: samples are whole.
fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a node's agent for a document.
///
/// # Errors
/// When it does not answer with 200.
pub fn fetch(node: &Node, path: &str) -> Result<String> {
    let answer = node
        .netns
        .enter(|| http::get(PORT, path))
        .with_context(|| format!("{} does not answer for {path}", node.name))?;
    ensure!(answer.status == 200, "{} answers {} for {path}", node.name, answer.status);
    Ok(answer.body)
}

/// The findings that a node's /health has now, word for word; null when it does
/// not answer.
#[must_use]
pub fn findings(node: &Node) -> serde_json::Value {
    let answer = node.netns.enter(|| http::get(PORT, "/health"));
    let health = answer.ok().and_then(|answer| serde_json::from_str(&answer.body).ok());
    health.map_or(serde_json::Value::Null, |health: serde_json::Value| health["findings"].clone())
}

/// The name of the node with this underlay address, else the address.
#[must_use]
pub fn name_of(cluster: &Cluster, address: std::net::IpAddr) -> String {
    let is_at = |node: &&Node| match address {
        std::net::IpAddr::V4(v4) => node.underlay() == v4,
        std::net::IpAddr::V6(v6) => node.underlay_v6() == v6,
    };
    cluster.nodes.iter().find(is_at).map_or_else(|| address.to_string(), |node| node.name.clone())
}

/// What a person types to ask a node's agent.
#[must_use]
pub fn curl(node: &Node) -> String {
    format!(
        "ip netns exec {} curl -s http://{}:{PORT}/health",
        node.netns.name(),
        Ipv4Addr::LOCALHOST
    )
}
