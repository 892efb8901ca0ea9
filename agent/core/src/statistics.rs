//! The two decisions that a count of lost probes allows: a path is dead, or a
//! path loses more than a healthy one does.

use serde::{Deserialize, Serialize};

/// A sequential probability-ratio test (Wald) over *seconds*, not packets: a
/// microburst loses many packets of one second and must count once.
///
/// Healthy: one second in 500 sees a loss. Gray: one in ten. The score starts
/// again from zero whenever the evidence favours a healthy path (CUSUM), so a
/// long healthy past does not hide a new fault. What was found gray is so until
/// it was clean for much longer than its losses lay apart: a path that loses one
/// packet in 200 has many clean seconds, and none of them heals it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequential {
    /// Log-likelihood ratio in thousandths of a nat.
    score: i32,
    raised: bool,
    /// Seconds since the score left zero.
    seconds: u16,
    /// And how many of them saw a loss.
    lossy: u16,
    /// Seconds since the last that did.
    clean: u16,
}

/// ln(0.1 / 0.002), in thousandths.
const LOSSY: i32 = 3_912;
/// ln(0.9 / 0.998), in thousandths.
const CLEAN: i32 = -103;
/// Raised above this: five lossy seconds with few clean ones between them. Four
/// would do for one path; a node watches many, for years.
const RAISE: i32 = 16_000;
/// Lowered after so many times as many clean seconds as there are on average from
/// one lossy second to the next: without a change that is a matter of hours.
const SPANS: u16 = 8;
/// Lossy seconds that tell nothing of how far they lie apart.
const TOGETHER: u16 = 2;
/// Lowered after so many clean seconds at the earliest, and at the latest.
const LEAST_CLEAN: u16 = 18;
const MOST_CLEAN: u16 = 180;
/// Of more seconds than these, older ones count less and less.
const REMEMBERED: u16 = 512;

impl Sequential {
    /// Takes one second in which probes were decided.
    pub fn observe(&mut self, lossy: bool) {
        self.seconds += 1;
        self.clean += 1;
        if lossy {
            self.lossy += 1;
            self.clean = 0;
            if self.seconds >= REMEMBERED {
                self.seconds /= 2;
                self.lossy = self.lossy.div_ceil(2);
            }
        }
        let step = if lossy { LOSSY } else { CLEAN };
        self.score = (self.score + step).clamp(0, RAISE);
        if self.score >= RAISE {
            self.raised = true;
        } else if self.clean >= self.span() {
            self.raised = false;
        }
        if self.score == 0 && !self.raised {
            *self = Self::default();
        }
    }

    /// Clean seconds after which the path is healthy again, by those until the latest
    /// lossy one.
    fn span(&self) -> u16 {
        let until = self.seconds.saturating_sub(self.clean);
        // Some came together, or they would not have raised it.
        let apart = until.div_ceil(self.lossy.saturating_sub(TOGETHER).max(1));
        apart.saturating_mul(SPANS).clamp(LEAST_CLEAN, MOST_CLEAN)
    }

    /// Whether the path loses more than a healthy one.
    #[must_use]
    pub const fn is_raised(&self) -> bool {
        self.raised
    }

    /// Whether there is evidence of that, be it enough or not: worth more probes,
    /// to know whether it is so, and whether it still is.
    #[must_use]
    pub const fn is_suspicious(&self) -> bool {
        self.raised || self.score > 0
    }
}

/// More probes than a pair sends in a minute, whatever a recording says.
const MOST: u32 = 4_096;

/// The probability that of two paths that lose alike, the one that is less lossy
/// looks at least so much better by chance: `(lost, of)` of it and of the other
/// (Fisher's exact test, one-sided).
#[must_use]
pub fn by_chance(better: (u32, u32), worse: (u32, u32)) -> f64 {
    let bounded = |(lost, of): (u32, u32)| (lost.min(of).min(MOST), of.min(MOST));
    let ((lost, of), (other_lost, other_of)) = (bounded(better), bounded(worse));
    let all_lost = lost + other_lost;
    // How likely it is that `count` of all losses are the better path's, up to a common
    // factor: a term from the one before, as logarithms, which are small for any count.
    let fewest = all_lost.saturating_sub(other_of);
    let mut logarithm = 0.0_f64;
    let mut terms = Vec::new();
    for count in fewest..=all_lost.min(of) {
        terms.push(logarithm);
        let left = f64::from(all_lost - count);
        let others = f64::from(other_of + count + 1 - all_lost);
        logarithm += (left * f64::from(of - count) / (f64::from(count + 1) * others)).ln();
    }
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = |terms: &[f64]| -> f64 { terms.iter().map(|term| (term - largest).exp()).sum() };
    let up_to_it = terms.get(..=usize::try_from(lost - fewest).unwrap_or(usize::MAX));
    sum(up_to_it.unwrap_or(&terms)) / sum(&terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reproducible pseudo-random sequence (SplitMix64), uniform in 0..1.
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn a_healthy_path_is_never_gray() {
        // 1,000 pairs for an hour at one lost packet in 10,000, two packets a second.
        let mut state = 1;
        for _ in 0..1_000 {
            let mut test = Sequential::default();
            for _ in 0..3_600 {
                test.observe(uniform(&mut state) < 2e-4);
                assert!(!test.is_raised());
            }
        }
    }

    #[test]
    fn a_microburst_is_not_gray() {
        // Three seconds in a row that each lose packets, once in a while.
        let mut test = Sequential::default();
        for _ in 0..50 {
            for second in 0..200 {
                test.observe(second < 3);
                assert!(!test.is_raised());
            }
        }
    }

    #[test]
    fn ten_percent_is_found_and_clears() {
        let mut state = 7;
        for _ in 0..100 {
            let mut test = Sequential::default();
            // A burst of ten probes a second while it is suspected.
            let mut seconds = 0;
            while !test.is_raised() {
                let probes = if test.is_suspicious() { 11 } else { 1 };
                test.observe((0..probes).any(|_| uniform(&mut state) < 0.1));
                seconds += 1;
                assert!(seconds < 120, "not found in two minutes");
            }
            let mut clean = 0;
            while test.is_raised() {
                test.observe(false);
                clean += 1;
            }
            assert!((1..=40).contains(&clean), "cleared after {clean} s");
        }
    }

    #[test]
    fn one_in_two_hundred_is_found_and_stays_found() {
        for seed in 0..20 {
            let mut state = seed;
            let mut test = Sequential::default();
            let mut second = |test: &mut Sequential| {
                let probes = if test.is_suspicious() { 11 } else { 1 };
                test.observe((0..probes).any(|_| uniform(&mut state) < 0.005));
            };
            while !test.is_raised() {
                second(&mut test);
            }
            for _ in 0..900 {
                second(&mut test);
                assert!(test.is_raised(), "gone while it still loses");
            }
            let mut clean = 0;
            while test.is_raised() {
                test.observe(false);
                clean += 1;
            }
            assert!((60..=180).contains(&clean), "cleared after {clean} s");
        }
    }

    #[test]
    fn chance_is_fishers() {
        let near = |is: f64, should: f64| assert!((is - should).abs() < 1e-9, "{is} {should}");
        // The lady tasting tea: four of four cups told, 1 in 70; three, 17 in 70.
        near(by_chance((0, 4), (4, 4)), 1.0 / 70.0);
        near(by_chance((1, 4), (3, 4)), 17.0 / 70.0);
        near(by_chance((0, 50), (0, 50)), 1.0);
        near(by_chance((3, 3), (0, 0)), 1.0);
        assert!(by_chance((0, 120), (9, 120)) < 0.002);
        assert!(by_chance((1, 60), (11, 60)) > 0.002, "both may lose one in ten");
        assert!(by_chance((u32::MAX, u32::MAX), (u32::MAX, u32::MAX)) > 0.999);
        assert!(by_chance((0, u32::MAX), (u32::MAX, u32::MAX)) < 1e-9);
    }
}
