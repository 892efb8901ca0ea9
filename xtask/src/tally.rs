//! How many checks passed and failed, as test runners say it in their closing
//! lines.

use std::fmt;
use std::ops::AddAssign;

/// Checks counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// One check that passed or failed.
    pub(crate) const fn one(passed: bool) -> Self {
        if passed { Self { passed: 1, failed: 0 } } else { Self { passed: 0, failed: 1 } }
    }

    /// What a closing line says: Cargo's test harness writes `test result: ok.
    /// 12 passed; 0 failed; 0 ignored; ...`, the lab `12 of 12 faults judged
    /// rightly`, in a virtual machine `pass  6.1 RELEASE: 12 of 12 faults judged rightly
    /// in ...`, fuzzing `12 of 12 fuzz targets found nothing`. Any other line is none.
    pub(crate) fn from_closing_line(line: &str) -> Option<Self> {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("test result: ") {
            let mut counts = rest.split_once(". ")?.1.split("; ");
            let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
            let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
            return Some(Self { passed, failed });
        }
        let counts = line
            .strip_suffix(" faults judged rightly")
            .or_else(|| line.strip_suffix(" fuzz targets found nothing"))
            .or_else(|| {
                line.split_once(" faults judged rightly in ")?.0.split_once(": ")?.1.into()
            })?;
        let (passed, all) = counts.split_once(" of ")?;
        let passed: u64 = passed.parse().ok()?;
        let all: u64 = all.parse().ok()?;
        Some(Self { passed, failed: all.checked_sub(passed)? })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_closing_lines() {
        let cargo = "test result: FAILED. 12 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.03s";
        assert_eq!(Tally::from_closing_line(cargo), Some(Tally { passed: 12, failed: 1 }));
        let lab = "19 of 20 faults judged rightly\n";
        assert_eq!(Tally::from_closing_line(lab), Some(Tally { passed: 19, failed: 1 }));
        let guest = "fail  6.1 6.1.0-50-cloud-amd64: 8 of 9 faults judged rightly in 300 s; it";
        assert_eq!(Tally::from_closing_line(guest), Some(Tally { passed: 8, failed: 1 }));
        let fuzz = "12 of 13 fuzz targets found nothing\n";
        assert_eq!(Tally::from_closing_line(fuzz), Some(Tally { passed: 12, failed: 1 }));
    }

    #[test]
    fn takes_nothing_else_for_one() {
        for line in [
            "",
            "running 3 tests",
            "test a::b ... ok",
            "3 passed",
            "test result: unknown",
            "all of 20 faults judged rightly",
            "21 of 20 faults judged rightly",
        ] {
            assert_eq!(Tally::from_closing_line(line), None, "{line}");
        }
    }
}
