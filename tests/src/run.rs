//! One fault from a healthy cluster to a healthy cluster, and many of them
//! side by side.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::agent::{self, Agent, Launch};
use crate::fault::{Fault, Loss};
use crate::interrupt::{self, wait_until};
use crate::judge::Wanted;
use crate::poll::{self, Poll};
use crate::report::{self, Found, Row};
use crate::topology::{Cluster, Shape};
use crate::traffic::Flow;

/// From the start of the agents until all of them pass.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// Traffic that is watched before anything is broken.
const WARM_UP: Duration = Duration::from_secs(2);
/// After the heal, a calm that holds this long is one.
const CALM: Duration = Duration::from_secs(3);
/// How soon a fault that was made must lose a first packet.
const BREAKS_WITHIN: Duration = Duration::from_secs(5);

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's binary.
    pub binary: PathBuf,
    /// Whose shape the clusters have.
    pub shape: Shape,
    /// Where recordings and logs of failed runs are kept.
    pub keep: PathBuf,
}

/// Does `work` for each fault, `jobs` at a time, and gives what came of it in
/// the order of `faults`.
///
/// # Errors
/// When the end was asked for.
pub fn side_by_side<T: Send>(
    faults: &[&'static Fault],
    jobs: usize,
    work: impl Fn(&'static Fault) -> T + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(faults.len()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, faults.len().max(1)) {
            // Agents die with the thread that started them: a worker owns its clusters.
            scope.spawn(|| {
                while !interrupt::is_requested() {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(fault) = faults.get(position) else { break };
                    let result = work(fault);
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

/// Runs one fault. What goes wrong is in the row.
#[must_use]
pub fn run(fault: &'static Fault, settings: &Settings) -> Row {
    let mut row = Row::new(fault, settings.shape);
    let kept = settings.keep.join(format!("{}-{}", fault.name, settings.shape.name()));
    // What is kept of an earlier run would be taken for this one's.
    let _ = std::fs::remove_dir_all(&kept);
    if let Err(error) = try_run(fault, settings, &kept, &mut row) {
        row.problems.push(format!("{error:#}"));
    }
    row.conclude()
}

fn try_run(fault: &'static Fault, settings: &Settings, kept: &Path, row: &mut Row) -> Result<()> {
    let mut cluster = Cluster::build(settings.shape, fault.nodes)?;
    cluster.start_agents(Launch { binary: settings.binary.clone(), listed: fault.listed })?;
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
    let wanted = fault.wanted(cluster)?;
    let flows = |paths: &[crate::traffic::Path]| -> Result<Vec<Flow>> {
        paths.iter().map(|&path| Flow::start(cluster, path)).collect()
    };
    let (broken, spared) = (flows(fault.breaks)?, flows(fault.spares)?);
    let warm = Instant::now();
    interrupt::sleep(WARM_UP)?;
    for flow in broken.iter().chain(&spared) {
        let (lost, of) = flow.lost(warm);
        ensure!(lost == 0 && of > 0, "{} lost {lost} of {of} before the fault", flow.path);
    }

    let injected = Instant::now();
    (fault.inject)(cluster)?;
    let first_lost = first_lost(&broken, injected)?;
    row.found = detect(fault, poll, &wanted, first_lost)?;
    interrupt::sleep(fault.limits.settle)?;
    after_settling(fault, cluster, poll, &wanted, row)?;
    let told_from = poll.at(warm);
    unwanted(cluster, poll, told_from, &wanted, row)?;
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
    unwanted(cluster, poll, told_from, &wanted, row)?;
    crashed(cluster, row)
}

/// Waits until every agent passes and has every other as its healthy peer.
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
        Ok(poll.calm_since(cluster)?.is_some())
    });
    let ready = ready.and_then(|ready| {
        if !ready {
            bail!("not all agents pass within {READY_WITHIN:?}: {}", standing(cluster, poll)?);
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

/// When the fault began, by live traffic; at once where it breaks none.
fn first_lost(broken: &[Flow], injected: Instant) -> Result<Instant> {
    if broken.is_empty() {
        return Ok(injected);
    }
    let mut first = None;
    let all = wait_until(BREAKS_WITHIN, || {
        let lost: Vec<_> = broken.iter().map(|flow| flow.first_lost(injected)).collect();
        first = lost.iter().flatten().min().copied();
        Ok(lost.iter().all(Option::is_some))
    })?;
    ensure!(all, "the fault does not break all the traffic that it should");
    first.context("no packet was lost")
}

fn detect(
    fault: &Fault,
    poll: &Poll,
    wanted: &[Wanted],
    first_lost: Instant,
) -> Result<Vec<Found>> {
    let since = poll.at(first_lost);
    let mut times = vec![None; wanted.len()];
    let left = fault.limits.detect.saturating_sub(first_lost.elapsed());
    wait_until(left, || {
        let heard = poll.heard()?;
        for (time, wanted) in times.iter_mut().zip(wanted) {
            *time = heard.timeline.first(since, wanted).map(|at| at.saturating_sub(since));
        }
        Ok(times.iter().all(Option::is_some))
    })?;
    Ok(fault
        .expected
        .iter()
        .zip(times)
        .map(|(expected, time)| Found::new(expected, time))
        .collect())
}

/// What must hold once the verdicts had time to settle.
fn after_settling(
    fault: &Fault,
    cluster: &Cluster,
    poll: &Poll,
    wanted: &[Wanted],
    row: &mut Row,
) -> Result<()> {
    let heard = poll.heard()?;
    for (found, wanted) in row.found.iter_mut().zip(wanted) {
        let said = heard.timeline.now(found.node);
        found.observed = match said.and_then(|said| said.named(wanted)) {
            Some(observed) => report::named(cluster, observed),
            None => report::findings(cluster, said),
        };
        if found.seconds_to_detect.is_none() {
            row.problems.push(format!("missing: {}", found.expected));
        } else if !heard.timeline.stands(wanted) {
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

/// Checks a fault by live traffic alone: broken as promised, and healed as promised.
///
/// # Errors
/// Names the path that behaves otherwise.
pub fn prove(fault: &Fault, cluster: &mut Cluster) -> Result<()> {
    let flows = |paths: &[crate::traffic::Path]| -> Result<Vec<Flow>> {
        paths.iter().map(|&path| Flow::start(cluster, path)).collect()
    };
    let (broken, spared) = (flows(fault.breaks)?, flows(fault.spares)?);
    settle(broken.iter().chain(&spared), |lost, of| lost == 0 && of >= 10)
        .context("before the fault")?;
    let injected = Instant::now();
    (fault.inject)(cluster)?;
    let made = Instant::now();
    first_lost(&broken, injected)?;
    if fault.loss == Loss::Total {
        settle_since(&broken, made, |lost, of| of >= 10 && lost == of).context("with the fault")?;
    }
    settle_since(&spared, injected, |lost, of| lost == 0 && of >= 10)
        .context("beside the fault")?;
    (fault.heal)(cluster)?;
    settle(broken.iter().chain(&spared), |lost, of| lost == 0 && of >= 10).context("after the heal")
}

/// Waits until the flows' latest packets fare as they should.
fn settle<'a>(
    flows: impl Iterator<Item = &'a Flow>,
    well: impl Fn(usize, usize) -> bool,
) -> Result<()> {
    for flow in flows {
        let mut since = Instant::now();
        let mut last = (0, 0);
        let settled = wait_until(Duration::from_secs(10), || {
            last = flow.lost(since);
            if last.0 > 0 {
                since = Instant::now();
            }
            Ok(well(last.0, last.1))
        })?;
        ensure!(settled, "{} lost {} of {}", flow.path, last.0, last.1);
    }
    Ok(())
}

/// Waits until the flows' packets since one moment fare as they should.
fn settle_since(flows: &[Flow], since: Instant, well: impl Fn(usize, usize) -> bool) -> Result<()> {
    for flow in flows {
        let mut last = (0, 0);
        let settled = wait_until(Duration::from_secs(5), || {
            last = flow.lost(since);
            Ok(well(last.0, last.1))
        })?;
        ensure!(settled, "{} lost {} of {}", flow.path, last.0, last.1);
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
    Ok((cores.get() * 2).min(4))
}
