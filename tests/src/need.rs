//! What some faults need of the machine beyond what their shape does.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use crate::module;

/// Something that not every machine has, or lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The queueing discipline that delays, reorders, repeats and loses packets
    /// (tc-netem(8)).
    Netem,
    /// A machine that is the lab's alone: its clock and its limits are changed.
    Machine,
}

static OWNS_MACHINE: AtomicBool = AtomicBool::new(false);

/// Says that the machine is the lab's alone, from now on.
pub fn own_machine() {
    OWNS_MACHINE.store(true, Ordering::Relaxed);
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Netem, Self::Machine];

    /// Fails unless this machine has it. Loads nothing.
    ///
    /// # Errors
    /// Says what the machine lacks, and what to do.
    pub fn ensure_met(self) -> Result<()> {
        match self {
            Self::Netem => ensure!(
                module::is_there("sch_netem"),
                "this kernel has no netem: `cargo xtask lab vm` boots one that has"
            ),
            Self::Machine => ensure!(
                OWNS_MACHINE.load(Ordering::Relaxed),
                "this machine's clock and limits are not the lab's: `cargo xtask lab vm` boots \
                 one whose are"
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_not_the_labs_own_until_somebody_says_so() {
        assert!(Need::Machine.ensure_met().is_err());
        own_machine();
        assert!(Need::Machine.ensure_met().is_ok());
    }
}
