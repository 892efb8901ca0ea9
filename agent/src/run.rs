//! The composition root: starts the parts, joins them with channels, and stops them.

mod known;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use overlaywatch_core::assembly::{Assembly, SourceId, SourceReport, Update};
use overlaywatch_core::fact::Gap;
use overlaywatch_core::ladder::Climb;
use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{ProbeDrop, Stream};
use overlaywatch_core::snapshot::NodeIdentity;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::assemble::{Assembler, Plans};
use crate::cli::NodeArgs;
use crate::config::{Config, ConfigError, PeersError, follow_peers, read_peers_file};
use crate::probe::{self, ProbeError};
use crate::published::{Publication, Published};
use crate::serve::{self, Limits, ServeError};
use crate::source::kernel::{self, HopReader};
use crate::source::lookups;
use crate::{notify, preflight, source};

/// Updates that wait for the loop; senders wait when there are more.
const UPDATES: usize = 1_024;
/// How often a watchdog is fed that nobody set.
const NO_WATCHDOG: Duration = Duration::from_secs(3_600);

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A mistake in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A mistake in the peers file.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// HTTP cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Probes cannot be sent or answered.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The system refuses a thread or a signal handler.
    #[error("the system refuses what the agent needs to run: {0}")]
    System(#[from] std::io::Error),
    /// Something in the kernel cannot be removed.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// A part ended that should not.
    #[error("{0} ended unexpectedly; the log says why")]
    Ended(&'static str),
}

/// Who runs the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The daemon: answers peers, and counts hops.
    Agent,
    /// A one-shot look: leaves nothing in the kernel, so it counts no hops.
    Check,
}

/// Hops as the prober reads them.
#[derive(Debug)]
struct Counted(HopReader);

impl probe::Hops for Counted {
    fn climb(&self, epoch: u64, stream: Stream) -> Option<Climb> {
        self.0.climb(epoch, stream)
    }

    fn drops(&self, peer: PeerId) -> Vec<ProbeDrop> {
        self.0.drops(peer)
    }
}

/// The parts that watch and judge, running.
struct Parts {
    updates: mpsc::Sender<Update>,
    publication: Publication,
    /// None when it is switched off.
    prober: Option<JoinHandle<Result<(), ProbeError>>>,
    assembler: JoinHandle<()>,
    peers: Option<Following>,
}

/// The task that follows the peers file.
struct Following {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Following {
    fn start(path: PathBuf, updates: &mpsc::Sender<Update>) -> Self {
        let task = tokio::spawn(follow_peers(path.clone(), updates.clone()));
        Self { path, task }
    }
}

impl Parts {
    fn start(config: &Config, role: Role) -> Result<Self, RunError> {
        let (updates, inbox) = mpsc::channel(UPDATES);
        // These two are not started where they are off, and cannot say so themselves.
        for off in [SourceId::Kernel, SourceId::Probe] {
            if !config.is_enabled(off) {
                // A new channel is neither full nor closed.
                let _ = updates.try_send(source::switched_off(off));
            }
        }
        let (orders, orders_inbox) = mpsc::channel(1);
        let (publish, publication) = watch::channel(None);
        let epoch = probe::random_epoch();
        let enabled: BTreeSet<SourceId> =
            source::Options::ALL.into_iter().filter(|&id| config.is_enabled(id)).collect();
        let (questions, questions_inbox) = watch::channel(Arc::default());
        let is_asked = config.is_enabled(SourceId::Lookups);
        lookups::spawn(is_asked, questions_inbox, updates.clone())?;
        let (plan, plan_inbox) = watch::channel(Arc::default());
        let (losing, is_losing) = watch::channel(false);
        let options = source::Options {
            enabled: enabled.clone(),
            losing: is_losing,
            watched: plan_inbox.clone(),
            host_root: config.host_root.clone(),
            ..source::Options::default()
        };
        source::spawn(&options, &updates)?;
        let hops: Arc<dyn probe::Hops> = if role == Role::Agent
            && config.is_enabled(SourceId::Kernel)
        {
            let (reader, _) = kernel::spawn(kernel_options(config), plan_inbox, updates.clone())?;
            Arc::new(Counted(reader))
        } else {
            Arc::new(probe::Uncounted)
        };
        let prober = config.is_enabled(SourceId::Probe).then(|| {
            let options = probe::Options {
                port: config.probe_port,
                epoch,
                responder: role == Role::Agent,
                hops,
            };
            tokio::spawn(probe::run(options, orders_inbox, updates.clone()))
        });
        let identity = NodeIdentity {
            name: config.node.clone(),
            underlay: None,
            epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let assembly = Assembly::new(identity, host_name(), config.policy());
        let assembler = Assembler::new(
            assembly,
            enabled,
            orders,
            Plans { hooks: plan, lookups: questions, losing },
            publish,
        );
        let assembler = tokio::spawn(assembler.run(inbox));
        let peers = config.peers_file.clone().map(|path| Following::start(path, &updates));
        Ok(Self { updates, publication, prober, assembler, peers })
    }

    /// The prober or the loop ended: why.
    async fn ended(&mut self) -> RunError {
        let prober = async {
            match &mut self.prober {
                Some(prober) => prober.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = prober => match ended {
                Ok(Err(error)) => error.into(),
                _ => RunError::Ended("the prober"),
            },
            _ = &mut self.assembler => RunError::Ended("the assembly loop"),
        }
    }

    /// Applies a configuration that was read again.
    async fn reload(&mut self, running: &Config, new: &Config) {
        let _ = self.updates.send(Update::Policy(Box::new(new.policy()))).await;
        if self.peers.as_ref().map(|peers| &peers.path) != new.peers_file.as_ref() {
            if let Some(peers) = self.peers.take() {
                peers.task.abort();
            }
            match new.peers_file.clone() {
                Some(path) => self.peers = Some(Following::start(path, &self.updates)),
                None => {
                    let _ = self.updates.send(Update::PeersFile(None)).await;
                }
            }
        }
        let fixed = only_at_start(running, new);
        let report = if fixed.is_empty() {
            report(None, String::new())
        } else {
            let keys = fixed.join("`, `");
            report(Some(Gap::Stale), format!("`{keys}` changed: restart the agent to apply it"))
        };
        let _ = self.updates.send(report).await;
    }
}

/// Keys that differ and that a running agent cannot change.
fn only_at_start(running: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("node", running.node != new.node),
        ("listen", running.listen != new.listen),
        ("probe.port", running.probe_port != new.probe_port),
        ("sources", running.disabled != new.disabled),
        ("ebpf", (&running.pin, running.attach) != (&new.pin, new.attach)),
        ("host", running.host_root != new.host_root),
        ("log", running.log != new.log),
        ("http", running.http != new.http),
        ("preflight", running.preflight_port != new.preflight_port),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

fn kernel_options(config: &Config) -> kernel::Options {
    kernel::Options {
        pin: config.pin.clone(),
        attach: config.attach,
        probe_port: config.probe_port,
        types: kernel::TYPES.into(),
    }
}

fn report(gap: Option<Gap>, detail: String) -> Update {
    let source = SourceId::Configuration;
    Update::Source(SourceReport { source, gap, detail, duration_ns: 0 })
}

fn host_name() -> Option<overlaywatch_core::model::NodeName> {
    nix::unistd::gethostname().ok()?.to_str()?.parse().ok()
}

/// `overlaywatch agent`: watches and serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the agent from starting, or a part that ended.
pub async fn agent(args: &NodeArgs, config: Config) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let listener = serve::bind(config.listen).await?;
    // At the start a malformed file is a mistake to be told at once.
    if let Some(path) = &config.peers_file {
        read_peers_file(path)?;
    }
    let mut parts = Parts::start(&config, Role::Agent)?;
    if let Some(port) = config.preflight_port {
        preflight::attend(port, known::Known(parts.publication.clone()))?;
    }
    let limits = Limits {
        max_connections: config.http.max_connections,
        read_timeout: config.http.read_timeout,
    };
    let server = serve::run(listener, parts.publication.clone(), limits);
    let watching = watch_over(&mut parts, args, &config, &mut hangup);
    tracing::info!(listen = %config.listen, version = env!("CARGO_PKG_VERSION"), "starting");
    let ended = tokio::select! {
        error = watching => Err(error),
        never = server => match never {},
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    notify::stopping();
    tracing::info!("stopped");
    ended
}

/// Tells systemd of the agent's life, takes new configurations, and notices a
/// part that ends.
async fn watch_over(
    parts: &mut Parts,
    args: &NodeArgs,
    running: &Config,
    hangup: &mut Signal,
) -> RunError {
    let mut publication = parts.publication.clone();
    let mut watchdog = tokio::time::interval(notify::watchdog_interval().unwrap_or(NO_WATCHDOG));
    let mut fed_at = 0;
    let mut told = None;
    loop {
        tokio::select! {
            error = parts.ended() => return error,
            changed = publication.changed() => {
                if changed.is_err() {
                    return RunError::Ended("the assembly loop");
                }
                let status = publication.borrow_and_update().as_ref().map(|p| p.diagnosis.status);
                if told.is_none() {
                    notify::ready();
                }
                if told != status {
                    told = status;
                    notify::status(status.map_or("starting", |status| status.slug()));
                }
            }
            _ = watchdog.tick() => {
                // Only a loop that goes round feeds it.
                let tick = publication.borrow().as_ref().map_or(0, |published| published.tick);
                if tick != fed_at {
                    fed_at = tick;
                    notify::watchdog();
                }
            }
            _ = hangup.recv() => {
                notify::reloading();
                match Config::load(args) {
                    Ok(mut new) => {
                        new.counted_only = running.counted_only;
                        tracing::info!("configuration read again");
                        parts.reload(running, &new).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the old configuration stays in force");
                        let _ = parts.updates.send(report(Some(Gap::Failed), error.to_string())).await;
                    }
                }
                notify::ready();
            }
        }
    }
}

/// `overlaywatch agent --detach`: removes everything that agents pinned; how many
/// things that were.
///
/// # Errors
/// Names what cannot be removed.
pub fn detach(config: &Config) -> Result<usize, RunError> {
    Ok(kernel::detach(&config.pin)?)
}

/// `overlaywatch check`: watches for `seconds`, answers nobody, and gives what
/// was found.
///
/// # Errors
/// What keeps it from looking.
pub async fn check(config: &Config, seconds: u64) -> Result<Arc<Published>, RunError> {
    if let Some(path) = &config.peers_file {
        read_peers_file(path)?;
    }
    let mut parts = Parts::start(config, Role::Check)?;
    tokio::select! {
        error = parts.ended() => return Err(error),
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
    }
    let published = parts.publication.borrow().clone();
    published.ok_or(RunError::Ended("the first look at the kernel"))
}
