//! One kernel's faults, shared out among guests, and guests side by side.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::interrupt;

/// Every so many-th fault, beginning with one of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 1.
    number: usize,
    of: usize,
}

impl Part {
    /// So many parts, which are all faults together.
    pub(crate) fn all(of: usize) -> Vec<Self> {
        (1..=of).map(|number| Self { number, of }).collect()
    }

    pub(crate) fn is_first(self) -> bool {
        self.number == 1
    }

    /// What its guest is called, by its kernel's name.
    pub(crate) fn name(self, kernel: &str) -> String {
        if self.of == 1 { kernel.to_owned() } else { format!("{kernel}-{}", self.number) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Does `work` for each item, so many at a time; what came of it is in the order
/// of `items`. After an error nothing new is begun.
pub(crate) fn side_by_side<I: Sync, T: Send>(
    items: &[I],
    at_once: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(items.len()) {
            scope.spawn(|| {
                while let Some((position, item)) = {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    items.get(position).map(|item| (position, item))
                } {
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((position, result));
                }
            });
        }
    });
    interrupt::check()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(position, _)| *position);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn parts_are_named_after_their_kernel() {
        assert_eq!(Part::all(1)[0].name("6.1"), "6.1");
        let parts = Part::all(2);
        assert_eq!(parts[1].name("6.1"), "6.1-2");
        assert_eq!(parts[1].to_string(), "2/2");
        assert!(parts[0].is_first() && !parts[1].is_first());
    }

    #[test]
    fn results_come_in_order_and_the_first_error_ends_it() {
        let items: Vec<usize> = (0..20).collect();
        let doubled = side_by_side(&items, 3, |item| Ok(item * 2)).unwrap();
        assert_eq!(doubled, (0..40).step_by(2).collect::<Vec<_>>());
        let begun = AtomicUsize::new(0);
        let failed = side_by_side(&items, 1, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 2 { bail!("broken") } else { Ok(()) }
        });
        assert!(failed.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
