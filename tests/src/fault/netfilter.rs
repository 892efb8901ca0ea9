//! Rules of a node's own firewall, made with the tools that administrators and
//! container networks use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{
    DECAPSULATION, DELIVERY, Expected, INBOUND, LOCAL_STACK, OUTBOUND, Subject, counts, says,
    says_itself,
};
use super::{A, B, C, Fault, LIVE, Limits, PLAIN, Shapes};
use crate::container::{Age, Container, Tool};
use crate::interrupt;
use crate::poll;
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "nft-rule-in-iptables-table",
        about: "an operator adds a rule with nft to the table that iptables-nft keeps for Calico",
        inject: |cluster| {
            sh(cluster, CONTROLLERS)?;
            reader(cluster, "calico-node", Age::Current)?;
            reader_says(cluster, "fine")?;
            agent_sees(cluster, "\"name\":\"calico-node\"}")?;
            sh(cluster, UNREADABLE)?;
            reader_says(cluster, "Table `filter' is incompatible")
        },
        heal: |cluster| {
            let handle = "nft -a list chain ip filter FORWARD | \
                          sed -n 's/.*ct state established accept # handle //p'";
            sh(cluster, &format!("nft delete rule ip filter FORWARD handle $({handle})"))?;
            reader_says(cluster, "fine")
        },
        expected: &[says_itself(B, Code::NftTableIncompatible, table("ip filter")).telling(&[
            "table ip filter, chain FORWARD, handle",
            "expression ct is unreadable for every iptables-nft",
            "of calico-node (process ",
            "in a container cannot read table ip filter: nor can any other version",
        ])],
        unlike: &[
            Code::NftTableUnreadableBySome,
            Code::NftRuleMisprinted,
            Code::ForeignBaseChain,
            Code::RulesFlood,
        ],
        limits: TOOLS,
        incident: Some(6),
        ..HARMLESS
    },
    Fault {
        name: "nft-rule-that-no-agent-reads",
        about: "an operator adds a rule with nft to a table of iptables-nft on a node where no \
                agent uses iptables",
        inject: |cluster| {
            iptables_table(cluster)?;
            sh(cluster, UNREADABLE)
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::NftTableUnreadableBySome, table("ip filter")).telling(&[
            "table ip filter, chain FORWARD, handle",
            "expression ct is unreadable for every iptables-nft",
            "on the host, which no agent is known to use, cannot read table ip filter",
        ])],
        unlike: &[Code::NftTableIncompatible, Code::NftRuleMisprinted],
        ..HARMLESS
    },
    Fault {
        name: "iptables-of-two-ages",
        about: "the host's iptables writes a range of ports, which the older one in calico-node's \
                container cannot read",
        inject: |cluster| {
            iptables_table(cluster)?;
            reader(cluster, "calico-node", Age::Old)?;
            reader_says(cluster, "fine")?;
            sh(cluster, RANGE)?;
            reader_says(cluster, "Table `filter' is incompatible")
        },
        heal: |cluster| {
            no_iptables_table(cluster)?;
            reader_says(cluster, "fine")
        },
        expected: &[says_itself(B, Code::NftTableIncompatible, table("ip filter")).telling(&[
            "table ip filter, chain FORWARD, handle",
            "expression range is unreadable for iptables-nft before 1.8.8",
            "iptables-nft 1.8.7 of calico-node (process ",
            "in a container cannot read table ip filter: 1.8.8 is the first that can",
            "the host's own iptables-nft is 1.8.",
        ])],
        unlike: &[Code::NftTableUnreadableBySome, Code::NftRuleMisprinted],
        limits: TOOLS,
        incident: Some(6),
        ..HARMLESS
    },
    Fault {
        name: "iptables-of-a-bystander",
        about: "the host's iptables writes a range of ports beside a container with an older one \
                that nothing known uses",
        inject: |cluster| {
            reader(cluster, "nginx", Age::Old)?;
            sh(cluster, RANGE)?;
            reader_says(cluster, "Table `filter' is incompatible")
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::NftTableUnreadableBySome, table("ip filter")).telling(&[
            "expression range",
            "iptables-nft 1.8.7 of nginx (process ",
            "which no agent is known to use",
        ])],
        unlike: &[Code::NftTableIncompatible],
        limits: TOOLS,
        ..HARMLESS
    },
    Fault {
        name: "iptables-of-one-age",
        about: "calico-node's iptables reads a range of ports that the host's wrote, and skips a \
                foreign chain with what it would not read",
        inject: |cluster| {
            reader(cluster, "calico-node", Age::Current)?;
            sh(cluster, RANGE)?;
            sh(
                cluster,
                "nft 'add chain ip filter late { type filter hook forward priority 10; }'",
            )?;
            sh(cluster, "nft add rule ip filter late ct state established accept")?;
            reader_says(cluster, "fine")
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::ForeignBaseChain, chain("ip filter late"))],
        unlike: &[Code::NftTableIncompatible, Code::NftTableUnreadableBySome],
        limits: Limits { settle: Duration::from_secs(25), ..TOOLS },
        ..HARMLESS
    },
    Fault {
        name: "nft-range-in-iptables-table",
        about: "an operator drops a range of ports with nft in the table that iptables-nft keeps, \
                which the older one in calico-node's container prints as a drop of everything",
        inject: |cluster| {
            iptables_table(cluster)?;
            reader(cluster, "calico-node", Age::Old)?;
            sh(cluster, "nft 'add rule ip filter FORWARD tcp dport 2000-3000 drop'")?;
            reader_says(cluster, "fine")
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::NftRuleMisprinted, table("ip filter")).telling(&[
            "table ip filter, chain FORWARD, handle",
            "expression cmp is not read by iptables-nft before 1.8.8",
            "iptables-nft 1.8.7 of calico-node (process ",
            "in a container prints it so",
        ])],
        unlike: &[Code::NftTableIncompatible, Code::NftTableUnreadableBySome],
        limits: TOOLS,
        ..HARMLESS
    },
    Fault {
        name: "nft-set-in-iptables-table",
        about: "an operator drops two ports with nft in the table that iptables-nft keeps, which \
                prints it as a drop of everything",
        inject: |cluster| {
            iptables_table(cluster)?;
            sh(cluster, "nft 'add rule ip filter FORWARD tcp dport { 81, 444 } drop'")
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::NftRuleMisprinted, table("ip filter"))
            .telling(&["expression lookup", "without that condition"])],
        unlike: &[Code::NftTableIncompatible],
        incident: Some(6),
        ..HARMLESS
    },
    Fault {
        name: "foreign-base-chain",
        about: "a base chain of somebody else in the table that iptables-nft keeps",
        inject: |cluster| {
            iptables_table(cluster)?;
            sh(cluster, "nft 'add chain ip filter late { type filter hook forward priority 10; }'")
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::ForeignBaseChain, chain("ip filter late"))
            .telling(&["type filter hook forward priority 10"])],
        unlike: &[Code::NftTableIncompatible, Code::ForwardPolicyDrop],
        ..HARMLESS
    },
    Fault {
        name: "legacy-and-nft",
        about: "one tool writes legacy iptables rules and another nft ones",
        inject: |cluster| {
            iptables_table(cluster)?;
            sh(cluster, "iptables-legacy -w -A FORWARD -p tcp --dport 81 -j ACCEPT")
        },
        heal: |cluster| {
            sh(cluster, "iptables-legacy -w -F FORWARD")?;
            no_iptables_table(cluster)
        },
        expected: &[says_itself(B, Code::IptablesBackendsMixed, Subject::Node)
            .telling(&["ip filter of legacy xtables", "ip filter of nftables"])],
        unlike: &[Code::NftTableIncompatible],
        // Legacy tables are looked at every five seconds.
        limits: LIVE,
        ..HARMLESS
    },
    Fault {
        name: "rules-flood",
        about: "a controller appends its rule again and again",
        inject: |cluster| {
            let rule = "iptables-nft -A FORWARD -m comment --comment again -j RETURN";
            sh(cluster, &format!("for i in $(seq 24); do {rule}; done"))
        },
        heal: no_iptables_table,
        expected: &[says_itself(B, Code::RulesFlood, chain("ip filter FORWARD"))
            .telling(&["24 of 24 rules", "handle"])],
        unlike: &[Code::NftTableIncompatible],
        ..HARMLESS
    },
    Fault {
        name: "ruleset-flushed",
        about: "an operator flushes the ruleset of a node with kube-proxy's and Calico's chains",
        inject: |cluster| {
            sh(cluster, CONTROLLERS)?;
            // For the agent to see them: it looks twice a second.
            interrupt::sleep(Duration::from_secs(3))?;
            sh(cluster, "nft flush ruleset")
        },
        heal: |cluster| sh(cluster, CONTROLLERS),
        expected: &[
            says_itself(B, Code::FirewallFlushed, Subject::Thing(Thing::Service, "kube-proxy"))
                .telling(&["had 2 chains with 3 rules", "removed by nft (pid "]),
            says_itself(B, Code::FirewallFlushed, Subject::Thing(Thing::Service, "calico"))
                .telling(&["now has 0 with 0", "removed by nft (pid "]),
        ],
        unlike: &[Code::ForwardPolicyDrop],
        limits: LIVE,
        incident: Some(6),
        ..HARMLESS
    },
    Fault {
        name: "docker-forward-policy",
        about: "Docker starts on a node: it sets forwarding to drop and accepts its own bridge",
        shapes: Shapes::Each,
        inject: |cluster| sh(cluster, DOCKER),
        heal: no_iptables_table,
        breaks: &[pods(A, B), pods(B, C)],
        spares: &[nodes(A, B), pods(A, C), pods(C, A)],
        expected: &[says_itself(B, Code::ForwardPolicyDrop, chain("ip filter FORWARD"))
            .telling(&["policy drop", "NETFILTER_DROP"])],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::ForwardingOff, Code::EncapsulationFiltered],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "firewalld-forwards-nothing",
        about: "firewalld starts on a node: its policies are to accept, and its last rule rejects \
                what is forwarded",
        shapes: Shapes::Each,
        inject: |cluster| sh(cluster, FIREWALLD),
        heal: |cluster| sh(cluster, "nft delete table inet firewalld"),
        breaks: &[pods(A, B), pods(B, C)],
        spares: &[nodes(A, B), pods(A, C), pods(C, A)],
        expected: &[says_itself(
            B,
            Code::ForwardPolicyDrop,
            chain("inet firewalld filter_FORWARD"),
        )
        .telling(&["chain filter_FORWARD (hook forward)", "everything reject"])],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::ForwardingOff, Code::EncapsulationFiltered],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "firewalld-trusts-pods",
        about: "firewalld starts on a node, with the pods' network in its trusted zone",
        shapes: Shapes::Each,
        inject: |cluster| {
            let zone = "ip saddr 10.0.0.0/8 goto filter_FWD_trusted\n        goto";
            sh(cluster, &FIREWALLD.replace("goto", zone))
        },
        heal: |cluster| sh(cluster, "nft delete table inet firewalld"),
        unlike: &[Code::ForwardPolicyDrop, Code::EncapsulationFiltered],
        limits: Limits { settle: Duration::from_secs(15), ..LIVE },
        ..HARMLESS
    },
    Fault {
        // Where IPIP is tracked, what comes is the answer to what went.
        name: "host-firewall",
        about: "a host firewall lets in what it knows, and the tunnel is not among it",
        inject: |cluster| sh(cluster, HOST_FIREWALL),
        heal: |cluster| sh(cluster, "nft delete table inet host"),
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, A)],
        expected: &[
            Expected { directions: INBOUND, hops: DECAPSULATION, ..HOST_CHAIN },
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
        ],
        counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::NftTableIncompatible],
        ..PLAIN
    },
    Fault {
        name: "firewalls-of-a-healthy-node",
        about: "tables of iptables, Docker, Calico and an administrator that harm nobody",
        shapes: Shapes::Each,
        inject: |cluster| {
            // As a CNI does for its pods; before Docker, so that nothing is lost.
            sh_on(cluster, A, "iptables-nft -A FORWARD -s 10.0.0.0/8 -d 10.0.0.0/8 -j ACCEPT")?;
            sh_on(cluster, A, DOCKER)?;
            sh_on(cluster, A, HARMLESS_TABLES)
        },
        heal: |cluster| sh_on(cluster, A, "nft flush ruleset"),
        unlike: &[
            Code::EncapsulationFiltered,
            Code::ForwardPolicyDrop,
            Code::FirewallFlushed,
            Code::NftTableIncompatible,
            Code::NftTableUnreadableBySome,
            Code::NftRuleMisprinted,
            Code::ForeignBaseChain,
            Code::IptablesBackendsMixed,
            Code::RulesFlood,
        ],
        limits: Limits { settle: Duration::from_secs(15), ..LIVE },
        ..HARMLESS
    },
];

/// What loses no packet.
const HARMLESS: Fault = Fault { spares: &[pods(A, B), pods(B, A), pods(C, B)], ..PLAIN };

/// Tools are looked at every 10 s.
const TOOLS: Limits = Limits { detect: Duration::from_secs(30), ..LIVE };

/// Since 1.8.8 iptables writes it as an expression that older ones do not know.
const RANGE: &str = "iptables-nft -A FORWARD -p tcp --dport 1000:2000 -j ACCEPT";

/// What no iptables can read, since it is none of its own.
const UNREADABLE: &str = "nft add rule ip filter FORWARD ct state established accept";

/// Chains with the names, and a few of the rules, of kube-proxy and Felix.
const CONTROLLERS: &str = "iptables-nft-restore --noflush <<'RULES'
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:cali-FORWARD - [0:0]
:cali-INPUT - [0:0]
-A KUBE-SERVICES -d 10.43.0.1/32 -p tcp --dport 443 -j RETURN
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -j cali-FORWARD
-A FORWARD -j KUBE-FORWARD
-A INPUT -j cali-INPUT
-A INPUT -j KUBE-SERVICES
COMMIT
RULES";

/// What Docker's bridge driver writes (setupIPTables, moby).
const DOCKER: &str = "\
iptables-nft -N DOCKER-USER
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -P FORWARD DROP";

/// What firewalld writes for its zone "public" (src/firewall/core/nftables.py), as far as it
/// is about forwarding; and of its zone "trusted", which nothing is in.
const FIREWALLD: &str = "nft -f - <<'RULES'
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        ip6 daddr { ::/96, 2002:7f00::/24 } reject with icmpv6 type addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        meta l4proto { icmp, ipv6-icmp } jump filter_FWD_public_allow
        reject with icmpx type admin-prohibited
    }
    chain filter_FWD_public_allow {
    }
    chain filter_FWD_trusted {
        accept
    }
}
RULES";

/// Lets in what has to come in, and the probes, so that they can tell.
const HOST_FIREWALL: &str = "nft -f - <<'RULES'
table inet host {
    chain in {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        meta l4proto icmp accept
        tcp dport { 22, 9977 } accept
        udp dport 9977 accept
    }
}
RULES";

/// What is said of it.
const HOST_CHAIN: Expected = says_itself(B, Code::EncapsulationFiltered, chain("inet host in"))
    .telling(&["hook input", "policy drop", "NETFILTER_DROP"]);

/// Each looks like something that harms.
const HARMLESS_TABLES: &str = "\
iptables-nft -A INPUT -p udp --dport 8473 -j DROP
iptables-nft -A INPUT -p tcp --dport 8472 -j DROP
iptables-nft -A INPUT -p tcp --dport 30000:32767 -j RETURN
iptables-nft -N cali-fw-any
iptables-nft -A cali-fw-any -m conntrack --ctstate INVALID -j DROP
iptables-nft -A FORWARD -j cali-fw-any
for i in $(seq 30); do iptables-nft -A DOCKER-USER -p tcp --dport $i -j RETURN; done
iptables-legacy -w -L -n >/dev/null
nft -f - <<'RULES'
table inet mine {
    set ports { type inet_service; elements = { 7, 9 }; }
    chain in {
        type filter hook input priority 5; policy accept;
        ct state invalid counter
        udp dport @ports drop
        tcp dport 113 reject with tcp reset
    }
    chain side { type filter hook forward priority 20; }
}
table ip guard {
    chain filter {
        type filter hook input priority filter; policy accept;
        ct state invalid counter
        limit rate over 9/second tcp dport 113 log prefix guard reject
    }
}
RULES";

const fn table(name: &'static str) -> Subject {
    Subject::Thing(Thing::Table, name)
}

const fn chain(name: &'static str) -> Subject {
    Subject::Thing(Thing::Chain, name)
}

/// The table that iptables-nft makes for its first rule.
fn iptables_table(cluster: &mut Cluster) -> Result<()> {
    sh(cluster, "iptables-nft -A FORWARD -p tcp --dport 80 -j ACCEPT")
}

fn no_iptables_table(cluster: &mut Cluster) -> Result<()> {
    sh(cluster, "nft delete table ip filter")
}

/// What plays an agent, or somebody else, with an iptables of its own: it reads
/// the table again and again, as Felix does.
fn reader(cluster: &mut Cluster, name: &str, age: Age) -> Result<()> {
    let script = "while :; do\n\
                  said=$(/usr/sbin/xtables-nft-multi iptables-nft-save -t filter 2>&1)\n\
                  case \"$said\" in\n\
                  *' is incompatible'*) echo \"$said\" >/said;;\n\
                  *) echo fine >/said;;\n\
                  esac\n\
                  sleep 1\n\
                  done";
    let root = cluster.directory().join("reader");
    let netns = &cluster.node(B)?.netns;
    let reader = Container::start(netns, &root, Tool::Iptables(age), name, script)?;
    cluster.guests.push(Box::new(reader));
    Ok(())
}

/// Waits until the reader says this.
fn reader_says(cluster: &mut Cluster, words: &str) -> Result<()> {
    let guest = cluster.guests.first().and_then(|guest| guest.downcast_ref::<Container>());
    let guest = guest.context("no container runs")?;
    let limit = Duration::from_secs(20);
    let said = interrupt::wait_until(limit, || Ok(guest.text("said").contains(words)))?;
    ensure!(said, "the reader says `{}` instead of `{words}`", guest.text("said").trim());
    Ok(())
}

/// Waits until the agent of the node that has the fault, where one runs, has this in
/// its snapshot.
fn agent_sees(cluster: &Cluster, words: &str) -> Result<()> {
    let node = cluster.node(B)?;
    if node.agent.is_none() {
        return Ok(());
    }
    let sees = || Ok(poll::fetch(node, "/v1/snapshot")?.contains(words));
    let seen = interrupt::wait_until(Duration::from_secs(20), sees)?;
    ensure!(seen, "the agent has not seen {words}");
    Ok(())
}

/// Runs a script on the node that has the fault.
fn sh(cluster: &Cluster, script: &str) -> Result<()> {
    sh_on(cluster, B, script)
}

fn sh_on(cluster: &Cluster, node: usize, script: &str) -> Result<()> {
    let output = cluster
        .node(node)?
        .netns
        .command("sh")
        .args(["-ec", script])
        .output()
        .context("cannot run sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}` failed: {}", said.trim());
    Ok(())
}
