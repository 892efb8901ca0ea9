//! What a fault really breaks, by live traffic alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fault::{Fault, Loss};
use crate::interrupt::wait_until;
use crate::topology::Cluster;
use crate::traffic::Flow;

/// How soon a fault that was made must lose a first packet.
const BREAKS_WITHIN: Duration = Duration::from_secs(5);

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

/// When the fault began, by live traffic; at once where it breaks none.
pub(crate) fn first_lost(broken: &[Flow], injected: Instant) -> Result<Instant> {
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
