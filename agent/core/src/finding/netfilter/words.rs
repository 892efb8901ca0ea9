//! What a remedy says of a rule or a policy: by whom it is kept decides what helps.

use crate::model::{Controller, Encapsulation, Family, RuleAt, is_of_iptables};

/// A chain with what decides who may change it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Its table, as "ip filter".
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    /// The netlink port of the program that alone may change the table.
    pub(super) owner: Option<u32>,
}

impl Place<'_> {
    fn family_and_name(&self) -> (&str, &str) {
        self.table.split_once(' ').unwrap_or(("", self.table))
    }

    fn is_of_iptables(&self) -> bool {
        let (family, name) = self.family_and_name();
        let family = [Family::Ip, Family::Ip6].into_iter().find(|known| known.slug() == family);
        family.is_some_and(|family| is_of_iptables(family, name))
    }

    /// The tool that writes to a table of iptables.
    fn iptables(&self) -> &'static str {
        if self.family_and_name().0 == Family::Ip6.slug() { "ip6tables" } else { "iptables" }
    }

    /// Who writes again what is deleted in it.
    fn controller(&self) -> Option<Controller> {
        let (family, name) = self.family_and_name();
        let own = ["ip", "ip6"].contains(&family).then(|| Controller::of_table(Family::Ip, name));
        Controller::of_chain(self.chain).or_else(|| own.flatten())
    }

    /// What nobody but the owner can do (nft_table_lookup, net/netfilter/nf_tables_api.c).
    fn of_owner(&self, what: &str) -> Option<String> {
        self.owner.map(|port| {
            format!(
                "let the program that owns table {} {what}, as nobody else can: that with netlink \
                 port {port}, as a rule its process (firewalld: `firewall-cmd`)",
                self.table
            )
        })
    }

    /// How a rule goes away.
    pub(super) fn delete(&self, at: &RuleAt) -> String {
        self.of_owner("remove the rule").unwrap_or_else(|| match self.controller() {
            Some(by) => format!(
                "see why {by} has that rule, as it writes it again when it is deleted, and \
                 restart {by} on this node",
                by = by.slug()
            ),
            None => format!("`nft delete rule {} {} handle {}`", self.table, at.chain, at.handle),
        })
    }

    /// How a tunnel gets by a rule.
    pub(super) fn admit_by_rule(&self, at: &RuleAt) -> String {
        if self.owner.is_some() {
            return self.admit_before("the rule", None);
        }
        match self.controller() {
            Some(by) => format!(
                "the agent of {by} writes the rule again when it is deleted: see what it takes the other nodes \
                 for (a host endpoint policy, or an IP set that lacks them: `ipset list`), or \
                 restart {by} on this node",
                by = by.slug()
            ),
            None => format!(
                "if nobody needs the rule: {}; else accept the tunnel before it",
                self.delete(at)
            ),
        }
    }

    /// How it gets by a policy, or by what else ends a chain.
    pub(super) fn admit_before(&self, end: &str, tunnel: Option<Encapsulation>) -> String {
        if let Some(owner) = self.of_owner(&format!("accept the tunnel before {end}")) {
            return owner;
        }
        let (table, chain) = (self.table, self.chain);
        let command = if self.is_of_iptables() {
            let what = match tunnel {
                Some(Encapsulation::Ipip) => "-p ipencap".to_owned(),
                Some(Encapsulation::Vxlan(port)) => format!("-p udp --dport {port}"),
                None => "-p udp --dport PORT".to_owned(),
            };
            let (_, name) = self.family_and_name();
            format!("{} -t {name} -I {chain} {what} -j ACCEPT", self.iptables())
        } else {
            let what = match tunnel {
                Some(Encapsulation::Ipip) => "meta l4proto ipencap".to_owned(),
                Some(Encapsulation::Vxlan(port)) => format!("udp dport {port}"),
                None => "udp dport PORT".to_owned(),
            };
            format!("nft insert rule {table} {chain} {what} accept")
        };
        format!("`{command}`, so that it comes before {end}")
    }

    /// How pods' packets get by the policy of a chain that they are forwarded through.
    pub(super) fn forward_by_policy(&self) -> String {
        if let Some(owner) = self.of_owner("accept what pods send and get") {
            return owner;
        }
        let (table, chain) = (self.table, self.chain);
        let command = if self.is_of_iptables() {
            format!("{} -P {chain} ACCEPT", self.iptables())
        } else {
            format!("nft chain {table} {chain} '{{ policy accept; }}'")
        };
        format!("`{command}`, or restart the CNI agent so that it adds its rules that accept pods")
    }

    /// How they get by a rule against everything.
    pub(super) fn forward_by_rule(&self) -> String {
        if let Some(owner) = self.of_owner("accept what pods send and get") {
            return owner;
        }
        let (table, chain) = (self.table, self.chain);
        if self.is_of_iptables() {
            let (tool, (_, name)) = (self.iptables(), self.family_and_name());
            return format!(
                "`{tool} -t {name} -I {chain} -s PODS -j ACCEPT` before the rule, and the same with \
                 `-d`, PODS being the network of all of them"
            );
        }
        let ip = if self.family_and_name().0 == Family::Ip6.slug() { "ip6" } else { "ip" };
        format!(
            "`nft insert rule {table} {chain} {ip} saddr PODS accept` before the rule, and the same \
             with `daddr`, PODS being the network of all of them"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Place<'static> = Place { table: "inet local", chain: "in", owner: None };
    const INPUT: Place<'static> = Place { table: "ip filter", chain: "INPUT", owner: None };

    fn at(chain: &str) -> RuleAt {
        RuleAt { chain: chain.to_owned(), handle: 12 }
    }

    #[test]
    fn a_policy_is_no_rule_that_could_be_deleted() {
        let vxlan = Some(Encapsulation::Vxlan(8472));
        let said = |place: Place<'_>, tunnel| place.admit_before("the policy", tunnel);
        assert_eq!(
            said(INPUT, vxlan),
            "`iptables -t filter -I INPUT -p udp --dport 8472 -j ACCEPT`, so that it comes before \
             the policy"
        );
        let v6 = Place { table: "ip6 filter", ..INPUT };
        assert!(said(v6, vxlan).contains("`ip6tables -t filter -I INPUT"));
        assert!(said(INPUT, Some(Encapsulation::Ipip)).contains("-p ipencap -j ACCEPT"));
        assert!(said(OWN, vxlan).contains("`nft insert rule inet local in udp dport 8472 accept`"));
        assert!(said(OWN, Some(Encapsulation::Ipip)).contains("in meta l4proto ipencap accept`"));
    }

    #[test]
    fn what_a_controller_writes_again_is_not_deleted() {
        let rule = at("in");
        let said = OWN.admit_by_rule(&rule);
        assert!(said.contains("`nft delete rule inet local in handle 12`"), "{said}");
        for place in [
            Place { chain: "cali-failsafe-in", ..INPUT },
            Place { table: "ip6 calico", chain: "filter-INPUT", owner: None },
        ] {
            for said in [place.admit_by_rule(&rule), place.delete(&rule)] {
                assert!(!said.contains("nft delete"), "{said}");
                assert!(said.contains("restart calico on this node"), "{said}");
            }
        }
        let others = Place { table: "inet calico", chain: "in", owner: None };
        assert!(others.delete(&rule).contains("nft delete rule inet calico in handle 12"));
    }

    #[test]
    fn a_table_with_an_owner_is_left_to_it() {
        let owned = Place { table: "inet firewalld", chain: "filter_FORWARD", owner: Some(811) };
        for said in [
            owned.delete(&at("filter_FORWARD")),
            owned.admit_by_rule(&at("filter_INPUT")),
            owned.admit_before("the policy", None),
            owned.forward_by_policy(),
            owned.forward_by_rule(),
        ] {
            assert!(said.contains("owns table inet firewalld"), "{said}");
            assert!(said.contains("netlink port 811") && said.contains("firewall-cmd"), "{said}");
            assert!(!said.contains("`nft") && !said.contains("`iptables"), "{said}");
        }
    }

    #[test]
    fn pods_get_by_a_policy_and_by_a_rule() {
        let forward = Place { chain: "FORWARD", ..INPUT };
        assert!(forward.forward_by_policy().starts_with("`iptables -P FORWARD ACCEPT`"));
        assert!(OWN.forward_by_policy().contains("`nft chain inet local in '{ policy accept; }'`"));
        assert!(forward.forward_by_rule().contains("`iptables -t filter -I FORWARD -s PODS -j"));
        assert!(OWN.forward_by_rule().contains("`nft insert rule inet local in ip saddr PODS"));
    }
}
