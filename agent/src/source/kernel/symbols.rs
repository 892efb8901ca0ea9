//! Names of kernel functions by address: /proc/kallsyms, read line by line only
//! when an address comes up that was not met before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// Functions that are remembered; a kernel drops packets in far fewer places.
const REMEMBERED: usize = 1_024;

/// Names met so far.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    known: BTreeMap<u64, Option<String>>,
}

impl Symbols {
    /// Looks up all addresses that are new; one pass for all of them.
    pub(super) fn learn(&mut self, addresses: impl IntoIterator<Item = u64>) {
        let mut new: Vec<u64> =
            addresses.into_iter().filter(|at| !self.known.contains_key(at)).collect();
        new.sort_unstable();
        new.dedup();
        new.truncate(REMEMBERED.saturating_sub(self.known.len()));
        if new.is_empty() {
            return;
        }
        let names = File::open("/proc/kallsyms").and_then(|file| find(BufReader::new(file), &new));
        let names = names.unwrap_or_default();
        self.known.extend(new.into_iter().map(|at| (at, names.get(&at).cloned())));
    }

    /// The function that an address lies in.
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        self.known.get(&address)?.as_deref()
    }
}

/// The function that each of `addresses`, in ascending order, lies in: the
/// text symbol with the highest address that is not above it. Without
/// CAP_SYSLOG all addresses read as zero (kernel.kptr_restrict), and nothing is
/// found.
///
/// # Errors
/// When reading fails.
pub fn find(lines: impl BufRead, addresses: &[u64]) -> io::Result<BTreeMap<u64, String>> {
    let mut best = BTreeMap::<u64, (u64, String)>::new();
    for line in lines.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (Some(at), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Ok(at) = u64::from_str_radix(at, 16) else { continue };
        if at == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            continue;
        }
        // Only addresses above this symbol can lie in it.
        let from = addresses.partition_point(|&address| address < at);
        for &address in addresses.get(from..).unwrap_or_default() {
            if best.get(&address).is_none_or(|(other, _)| *other < at) {
                best.insert(address, (at, name.to_owned()));
            }
        }
    }
    Ok(best.into_iter().map(|(address, (_, name))| (address, name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t vxlan_rcv\t[vxlan]
ffffffff81000300 T ip_rcv
ffffffff81000200 D not_text
garbage
";

    #[test]
    fn finds_the_function_around_an_address() {
        let found = find(TEXT.as_bytes(), &[0x10, 0xffff_ffff_8100_0250, 0xffff_ffff_8100_0301]);
        let found = found.unwrap();
        assert_eq!(found.get(&0xffff_ffff_8100_0250).unwrap(), "vxlan_rcv");
        assert_eq!(found.get(&0xffff_ffff_8100_0301).unwrap(), "ip_rcv");
        assert_eq!(found.get(&0x10), None);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let hidden = "0000000000000000 T ip_rcv\n0000000000000000 t vxlan_rcv\n";
        assert!(find(hidden.as_bytes(), &[0xffff_ffff_8100_0250]).unwrap().is_empty());
    }
}
