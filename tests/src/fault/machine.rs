//! What concerns the whole machine: only on one that is the lab's alone.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;

use super::ipip::IN_IPIP;
use super::quiet::watch;
use super::{A, B, C, Fault};
use crate::need::Need;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "clock-stepped",
    about: "the clock of all nodes is set forward by an hour, and back",
    needs: &[Need::Machine],
    inject: |_| step("1 hour"),
    heal: |_| step("1 hour ago"),
    spares: &[pods(A, B), pods(B, C), pods(C, A), nodes(A, B)],
    unlike: &[Code::AgentSilent, Code::UnderlayLoss, Code::PeerUnreachable],
    limits: watch(30),
    ..IN_IPIP
}];

/// Sets the machine's clock, by what date(1) takes.
fn step(by: &str) -> Result<()> {
    let output = Command::new("date").args(["--set", by]).output().context("cannot run date")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "date failed: {}", said.trim());
    Ok(())
}
