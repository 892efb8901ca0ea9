//! A part of what there is to do, for whoever shares it out among machines.

use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

/// Every `of`-th item, from the one of this number, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    number: usize,
    of: usize,
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shape = || format!("{text:?} is no part: write it as 1/2");
        let (number, of) = text.split_once('/').with_context(shape)?;
        let (number, of) = (number.parse().with_context(shape)?, of.parse().with_context(shape)?);
        ensure!((1..=of).contains(&number), "there is no part {number} of {of}");
        Ok(Self { number, of })
    }
}

impl Part {
    /// The items of this part; none where there are fewer items than parts.
    #[must_use]
    pub fn of<T: Clone>(self, items: &[T]) -> Vec<T> {
        items.iter().skip(self.number.saturating_sub(1)).step_by(self.of).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_it_together() {
        let items = [1, 2, 3, 4, 5];
        let part = |text: &str| text.parse::<Part>().unwrap().of(&items);
        assert_eq!(part("1/2"), [1, 3, 5]);
        assert_eq!(part("2/2"), [2, 4]);
        assert_eq!(part("1/1"), items);
        assert_eq!(part("9/9"), [0; 0]);
    }

    #[test]
    fn what_is_no_part_is_told() {
        for wrong in ["", "1", "0/2", "3/2", "a/b", "1/0"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
