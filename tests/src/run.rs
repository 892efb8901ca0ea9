//! One fault from a healthy cluster to a healthy cluster, and many of them
//! side by side.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::agent::{self, Agent, Launch};
use crate::fault::{Expected, Fault};
use crate::interrupt::{self, wait_until};
use crate::judge::Wanted;
use crate::mode::Mode;
use crate::patience;
use crate::poll::{self, Poll};
use crate::prove::first_lost;
use crate::ready::is_seen_whole;
use crate::report::{self, Found, Row};
use crate::topology::{Cluster, Shape};
use crate::traffic::Flow;

/// From the start of the agents until all of them pass.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// Traffic that is watched before anything is broken.
const WARM_UP: Duration = Duration::from_secs(2);
/// After the heal, a calm that holds this long is one.
const CALM: Duration = Duration::from_secs(3);

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's binary.
    pub binary: PathBuf,
    /// Whose shape the clusters have.
    pub shape: Shape,
    /// How the agents run.
    pub mode: Mode,
    /// Where recordings and logs of failed runs are kept.
    pub keep: PathBuf,
}

/// Does `work` for each item, `jobs` at a time, and gives what came of it in
/// the order of `items`.
///
/// # Errors
/// When the end was asked for.
pub fn side_by_side<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> T + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            // Agents die with the thread that started them: a worker owns its clusters.
            scope.spawn(|| {
                while !interrupt::is_requested() {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(position) else { break };
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((position, result));
                }
            });
        }
    });
    ensure!(!interrupt::is_requested(), "interrupted");
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(position, _)| *position);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// More rows than this that went wrong are no accident of a busy machine.
const ACCIDENTS: usize = 5;

/// Tries once more, one at a time, what went wrong while much ran side by side. A
/// row says that it is of a second try, and what went wrong at the first.
///
/// # Errors
/// When the end was asked for.
pub fn again(
    runs: &[(&'static Fault, Settings)],
    rows: &mut [Row],
    show: impl Fn(&Row),
) -> Result<()> {
    if rows.iter().filter(|row| !row.is_pass()).count() > ACCIDENTS {
        return Ok(());
    }
    for ((fault, settings), row) in runs.iter().zip(rows).filter(|(_, row)| !row.is_pass()) {
        ensure!(!interrupt::is_requested(), "interrupted");
        // What is kept of the first try stays beside what is kept of this one.
        let settings = Settings { keep: settings.keep.join("again"), ..settings.clone() };
        let first_try = row.unexpected.iter().chain(&row.problems).cloned().collect();
        *row = Row { first_try, ..run(fault, &settings) };
        show(row);
    }
    Ok(())
}

/// Runs one fault. What goes wrong is in the row.
#[must_use]
pub fn run(fault: &'static Fault, settings: &Settings) -> Row {
    let Settings { shape, mode, .. } = *settings;
    let mut row = Row::new(fault, shape, mode);
    let of_mode = if mode == Mode::Rules { "" } else { "-no-rules" };
    let kept = settings.keep.join(format!("{}-{}{of_mode}", fault.name, shape.name()));
    // What is kept of an earlier run would be taken for this one's.
    let _ = std::fs::remove_dir_all(&kept);
    if let Err(error) = try_run(fault, settings, &kept, &mut row) {
        row.problems.push(format!("{error:#}"));
    }
    row.conclude()
}

/// What is asked of the agents.
struct Asked {
    /// What must be said.
    demanded: Vec<(Expected, Wanted)>,
    /// That, and what may be said beside it.
    allowed: Vec<Wanted>,
}

impl Asked {
    fn of(fault: &Fault, cluster: &Cluster, mode: Mode) -> Result<Self> {
        let mut asked = Self { demanded: Vec::new(), allowed: Vec::new() };
        for expected in fault.said(mode) {
            let wanted = expected.wanted(cluster)?;
            asked.allowed.push(wanted.clone());
            if expected.is_demanded(mode) {
                asked.demanded.push((expected, wanted));
            }
        }
        Ok(asked)
    }
}

fn try_run(fault: &'static Fault, settings: &Settings, kept: &Path, row: &mut Row) -> Result<()> {
    let mut cluster = Cluster::build(settings.shape, fault.nodes)?;
    let Settings { ref binary, mode, .. } = *settings;
    let Fault { listed, ebpf, .. } = *fault;
    cluster.start_agents(Launch { binary: binary.clone(), listed, ebpf, mode })?;
    let poll = Poll::start(&cluster)?;
    let outcome = judge(fault, &mut cluster, &poll, kept, row);
    // While the agents still run.
    match &outcome {
        Err(_) if row.kept.is_none() => keep(&cluster, kept, row),
        _ => keep_if_wrong(&cluster, kept, row),
    }
    outcome
}

fn judge(
    fault: &Fault,
    cluster: &mut Cluster,
    poll: &Poll,
    kept: &Path,
    row: &mut Row,
) -> Result<()> {
    wait_until_ready(cluster, poll)?;
    let asked = Asked::of(fault, cluster, row.mode)?;
    let flows = |paths: &[crate::traffic::Path]| -> Result<Vec<Flow>> {
        paths.iter().map(|&path| Flow::start(cluster, path)).collect()
    };
    let (broken, spared) = (flows(fault.breaks)?, flows(fault.spares)?);
    let warm = Instant::now();
    interrupt::sleep(patience::stretched(WARM_UP))?;
    for flow in broken.iter().chain(&spared) {
        let (lost, of) = flow.lost(warm);
        ensure!(lost == 0 && of > 0, "{} lost {lost} of {of} before the fault", flow.path);
    }

    let injected = Instant::now();
    (fault.inject)(cluster)?;
    let first_lost = first_lost(&broken, injected)?;
    row.found = detect(fault, poll, &asked, first_lost)?;
    interrupt::sleep(fault.limits.settle)?;
    after_settling(fault, cluster, poll, row)?;
    let told_from = poll.at(warm);
    unwanted(cluster, poll, told_from, &asked.allowed, row)?;
    for flow in &spared {
        let (lost, of) = flow.lost(injected);
        if lost > 0 {
            row.problems.push(format!("{} lost {lost} of {of}, and should lose none", flow.path));
        }
    }
    // What is wrong with the fault in place cannot be seen any more after the heal.
    keep_if_wrong(cluster, kept, row);

    (fault.heal)(cluster)?;
    let healed = Instant::now();
    let clear = clear(fault, cluster, poll, healed)?;
    row.seconds_to_clear = clear.map(|time| time.as_secs_f64());
    if clear.is_none() {
        let limit = fault.limits.clear;
        row.problems
            .push(format!("not clear {limit:?} after the heal: {}", standing(cluster, poll)?));
    }
    for flow in &broken {
        let (lost, of) = flow.lost(Instant::now().checked_sub(CALM).unwrap_or(healed));
        if lost > 0 || of == 0 {
            row.problems.push(format!("{} still loses {lost} of {of} after the heal", flow.path));
        }
    }
    unwanted(cluster, poll, told_from, &asked.allowed, row)?;
    crashed(cluster, row)
}

/// Waits until every agent passes and has every other as its healthy peer, counts
/// what it is to count, and probes as the kernel sends.
///
/// # Errors
/// When that takes longer than [`READY_WITHIN`], with what they say instead.
pub fn wait_until_ready(cluster: &mut Cluster, poll: &Poll) -> Result<()> {
    let ready = wait_until(READY_WITHIN, || {
        for node in &mut cluster.nodes {
            if let Some(how) = node.agent.as_mut().map(Agent::ended).transpose()?.flatten() {
                bail!("the agent of {} ended at once, with {how}", node.name);
            }
        }
        Ok(poll.calm_since(cluster)?.is_some() && is_seen_whole(cluster)?)
    });
    let ready = ready.and_then(|ready| {
        if !ready {
            bail!(
                "not all agents pass within {READY_WITHIN:?}, count and probe what they should: {}",
                standing(cluster, poll)?
            );
        }
        Ok(())
    });
    ready.map_err(|error| match first_words(cluster) {
        Some(words) => error.context(format!("an agent's log ends with: {words}")),
        None => error,
    })
}

/// The last line that an agent which ended left in its log.
fn first_words(cluster: &mut Cluster) -> Option<String> {
    let directory = cluster.directory().to_owned();
    let ended = cluster.nodes.iter_mut().find_map(|node| {
        let ended = node.agent.as_mut()?.ended().ok()?.is_some();
        ended.then(|| agent::log_path(&directory, node))
    })?;
    let log = std::fs::read_to_string(ended).ok()?;
    log.lines().last().map(str::to_owned)
}

fn detect(fault: &Fault, poll: &Poll, asked: &Asked, first_lost: Instant) -> Result<Vec<Found>> {
    let since = poll.at(first_lost);
    let mut times = vec![None; asked.demanded.len()];
    let left = fault.limits.detect.saturating_sub(first_lost.elapsed());
    wait_until(left, || {
        let heard = poll.heard()?;
        for (time, (_, wanted)) in times.iter_mut().zip(&asked.demanded) {
            *time = heard.timeline.first(since, wanted).map(|at| at.saturating_sub(since));
        }
        Ok(times.iter().all(Option::is_some))
    })?;
    Ok(asked
        .demanded
        .iter()
        .zip(times)
        .map(|((expected, wanted), time)| Found::new(expected, wanted, time))
        .collect())
}

/// What must hold once the verdicts had time to settle.
fn after_settling(fault: &Fault, cluster: &Cluster, poll: &Poll, row: &mut Row) -> Result<()> {
    let heard = poll.heard()?;
    for found in &mut row.found {
        let said = heard.timeline.now(found.wanted.node);
        found.said = said.and_then(|said| said.named(&found.wanted)).cloned();
        found.observed = match &found.said {
            Some(observed) => report::named(cluster, observed),
            None => report::findings(cluster, said),
        };
        if found.seconds_to_detect.is_none() {
            row.problems.push(format!("missing: {}", found.expected));
        } else if !heard.timeline.stands(&found.wanted) {
            row.problems.push(format!("gone again although nothing healed: {}", found.expected));
        }
    }
    drop(heard);
    if fault.expected.is_empty() && poll.calm_since(cluster)?.is_none() {
        row.problems.push(format!("not every node passes: {}", standing(cluster, poll)?));
    }
    Ok(())
}

fn unwanted(
    cluster: &Cluster,
    poll: &Poll,
    since: Duration,
    wanted: &[Wanted],
    row: &mut Row,
) -> Result<()> {
    for (node, observed) in poll.heard()?.timeline.unwanted(since, wanted) {
        let text = report::said_by(cluster, node, &observed);
        if !row.unexpected.contains(&text) {
            row.unexpected.push(text);
        }
    }
    Ok(())
}

/// How long after the heal all nodes were calm, for good.
fn clear(
    fault: &Fault,
    cluster: &Cluster,
    poll: &Poll,
    healed: Instant,
) -> Result<Option<Duration>> {
    let healed = poll.at(healed);
    let mut cleared = None;
    wait_until(fault.limits.clear + CALM, || {
        let since = poll.calm_since(cluster)?.map(|since| since.max(healed));
        cleared = since.filter(|&since| poll.at(Instant::now()) >= since + CALM);
        Ok(cleared.is_some())
    })?;
    Ok(cleared.map(|at| at.saturating_sub(healed)))
}

/// An agent that ended although nobody told it to.
fn crashed(cluster: &mut Cluster, row: &mut Row) -> Result<()> {
    for node in &mut cluster.nodes {
        if let Some(how) = node.agent.as_mut().map(Agent::ended).transpose()?.flatten() {
            row.problems.push(format!("the agent of {} ended by itself, with {how}", node.name));
        }
    }
    Ok(())
}

/// What all nodes say now, in a line.
fn standing(cluster: &Cluster, poll: &Poll) -> Result<String> {
    let heard = poll.heard()?;
    let lines: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| match heard.timeline.now(node.index) {
            None | Some(crate::judge::Said::Nothing) => format!("{} says nothing", node.name),
            Some(_) => format!(
                "{}: {}",
                node.name,
                heard.summaries.get(node.index).map_or("", String::as_str)
            ),
        })
        .collect();
    Ok(lines.join("; "))
}

/// Keeps what explains a failure, once there is one and nothing is kept yet.
fn keep_if_wrong(cluster: &Cluster, kept: &Path, row: &mut Row) {
    if !row.is_pass() && row.kept.is_none() {
        keep(cluster, kept, row);
    }
}

/// Keeps each agent's recording, report and log.
fn keep(cluster: &Cluster, kept: &Path, row: &mut Row) {
    match write_all(cluster, kept) {
        Ok(()) => row.kept = Some(kept.to_owned()),
        Err(error) => row.problems.push(format!("nothing could be kept: {error:#}")),
    }
}

fn write_all(cluster: &Cluster, kept: &Path) -> Result<()> {
    std::fs::create_dir_all(kept).with_context(|| format!("cannot make {}", kept.display()))?;
    for node in &cluster.nodes {
        for document in ["snapshot", "report"] {
            // An agent that is gone has no recording; its log says why.
            if let Ok(text) = poll::fetch(node, &format!("/v1/{document}")) {
                std::fs::write(kept.join(format!("{}.{document}.json", node.name)), text)?;
            }
        }
        let log = agent::log_path(cluster.directory(), node);
        std::fs::copy(&log, kept.join(format!("{}.log", node.name)))
            .with_context(|| format!("cannot copy {}", log.display()))?;
    }
    Ok(())
}

/// Clusters that this machine can carry side by side.
///
/// # Errors
/// When the kernel does not tell how many cores there are.
pub fn default_jobs() -> Result<usize> {
    let cores = std::thread::available_parallelism()
        .map_err(|error| anyhow!("cannot tell how many cores there are: {error}"))?;
    Ok((cores.get() * 4).min(16))
}
