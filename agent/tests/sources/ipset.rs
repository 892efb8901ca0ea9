//! IP sets against ipset(8).

use overlaywatch::source::Options;
use overlaywatch_core::assembly::SourceId;
use overlaywatch_core::model::IpSets;

use super::oracle::run;
use super::{Observer, in_namespace, setup, shared};

/// A line of `ipset list -t` for each set: name, type, revision, references, members.
fn told_by_ipset() -> Vec<String> {
    let text = run("ipset list -t");
    let field = |set: &str, name: &str| {
        let line = set.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let mut sets: Vec<_> = text
        .split("\n\n")
        .filter(|set| !set.trim().is_empty())
        .map(|set| {
            ["Name:", "Type:", "Revision:", "References:", "Number of entries:"]
                .map(|name| field(set, name))
                .join(" ")
        })
        .collect();
    sets.sort();
    sets
}

fn told_by_us(sets: &IpSets) -> Vec<String> {
    let sets = sets.sets.iter().map(|set| {
        format!("{} {} {} {} {}", set.name, set.kind, set.revision, set.references, set.elements)
    });
    sets.collect()
}

#[test]
fn sets_are_what_ipset_says() {
    in_namespace(|| {
        setup(
            "ipset create pods hash:ip maxelem 1000
             ipset add pods 10.42.0.1
             ipset add pods 10.42.0.2
             ipset create nets hash:net family inet6 timeout 600
             ipset create ports bitmap:port range 1-100
             ipset create evicting hash:ip,port forceadd
             ipset create all list:set
             ipset add all pods",
        );
        let options = Options { enabled: [SourceId::Ipset].into(), ..Options::default() };
        let mut observer = Observer::start(&options);
        let found = observer.wait_for("all sets", |_, snapshot| shared(&snapshot.ipsets));
        assert_eq!(told_by_us(&found), told_by_ipset());
        let set = |name: &str| found.sets.iter().find(|set| set.name == name).unwrap();
        assert_eq!((set("pods").capacity, set("pods").family), (Some(1000), Some(4)));
        assert_eq!((set("nets").capacity, set("nets").family), (Some(65_536), Some(6)));
        assert_eq!(set("ports").capacity, None);
        assert!(set("evicting").evicts && !set("pods").evicts);
        assert!(set("pods").bytes > 0);
        // Every set has a revision that the kernel offers.
        for set in &found.sets {
            let offered = found.types[&set.kind];
            assert!((offered.min..=offered.max).contains(&set.revision), "{set:?}");
        }
        setup("ipset destroy all");
        observer.wait_for("one set less", |_, snapshot| {
            let found = shared(&snapshot.ipsets)?;
            (told_by_us(&found) == told_by_ipset()).then_some(())
        });
        observer.stop();
    });
}
