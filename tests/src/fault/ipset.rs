//! IP sets: the incident's reader that is too old, and sets that are full.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{Expected, Subject, says_itself};
use super::sessions::{FELIX, answers};
use super::{A, B, Fault, HARD, Limits, PLAIN};
use crate::container::{Age, Container, Tool};
use crate::interrupt::wait_until;
use crate::poll;
use crate::topology::Cluster;
use crate::traffic::pods;

/// The set that Felix keeps its own host's addresses in, and that was made anew
/// in the incident.
const SET: &str = "cali40this-host";
/// A set of Felix's that takes no more members.
const FULL: &str = "cali40pods";
/// What Felix logged then, word for word.
const INCIDENT: &str = "Kernel and userspace incompatible: settype hash:ip with revision 6 not \
                        supported by userspace";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "incident-ipset-revision",
        about: "K3s's network policy controller makes all sets anew with the host's ipset, and \
                calico-node's older one cannot read them any more",
        inject: |cluster| {
            felix(cluster, Tool::Ipset(Age::Old))?;
            agent_sees(cluster, "\"name\":\"cali40this-host\"")?;
            kube_router(cluster)?;
            felix_says(cluster, INCIDENT)
        },
        heal: |cluster| {
            let pid = guest(cluster, 0)?.pid().to_string();
            // K3s is restarted with --disable-network-policy.
            let mut writer = cluster.guests.pop().context("no writer runs")?;
            let writer = writer.downcast_mut::<Container>().context("no writer runs")?;
            writer.finish(BEGINS_WITHIN)?;
            ipset(cluster, "destroy KUBE-DST-LAB")?;
            as_the_remedy_says(cluster, SET, &pid)?;
            let members = cluster.node(A)?.netns.command("ipset").args(["save", SET]).output()?;
            let members = String::from_utf8_lossy(&members.stdout).into_owned();
            ensure!(members.contains("add cali40this-host 10.0.0.11"), "lost: {members}");
            felix_says(cluster, "fine")
        },
        expected: &[of_set(Code::IpsetReaderTooOld, SET).telling(&[
            "cali40this-host (hash:ip) has revision 6",
            "ipset 7.10 of calico-node (process ",
            "reads revisions up to 5",
            "nor can it read KUBE-DST-LAB",
            "the host's own ipset is 7.",
            "upgrading it changes nothing",
            "its revision was 5 and is 6",
            "of k3s-server (process ",
        ])],
        unlike: &[Code::IpsetReaderBehind],
        limits: SLOW,
        incident: Some(7),
        ..QUIET
    },
    Fault {
        name: "felix-not-ready-for-a-set",
        about: "Felix is not ready since it cannot read a set: its answer is a consequence",
        inject: |cluster| {
            felix(cluster, Tool::Ipset(Age::Old))?;
            ipset(cluster, "create pods hash:ip")?;
            felix_says(cluster, INCIDENT)?;
            answers(cluster, A, FELIX, 503)
        },
        heal: |cluster| {
            // The service, not its container.
            drop(cluster.guests.pop());
            ipset(cluster, "destroy pods")?;
            felix_says(cluster, "fine")
        },
        expected: &[of_set(Code::IpsetReaderTooOld, "pods")
            .telling(&["revision 6", "ipset 7.10 of calico-node"])],
        limits: Limits { settle: Duration::from_secs(20), ..SLOW },
        incident: Some(8),
        ..QUIET
    },
    Fault {
        name: "ipset-reader-behind",
        about: "a kube-router image has an older ipset than whoever made a set",
        inject: |cluster| {
            container(cluster, Tool::Ipset(Age::Old), "kube-router", "while :; do sleep 1; done")?;
            ipset(cluster, "create pods hash:ip")
        },
        heal: |cluster| ipset(cluster, "destroy pods"),
        expected: &[of_set(Code::IpsetReaderBehind, "pods").telling(&[
            "revision 6",
            "ipset 7.10 of kube-router",
            "up to 5",
        ])],
        unlike: &[Code::IpsetReaderTooOld],
        limits: SLOW,
        ..QUIET
    },
    Fault {
        name: "ipset-readers-content",
        about: "a new ipset in the container before sets made anew, and an old one before sets of \
                its own age",
        inject: |cluster| {
            felix(cluster, Tool::Ipset(Age::Current))?;
            kube_router(cluster)?;
            felix_says(cluster, "fine")?;
            // On another node nobody made a set anew, and nobody who runs reads
            // the new ones that there are.
            let node = cluster.node(B)?;
            let root = cluster.directory().join("other");
            let script = "ipset create cali40masq hash:ip; while :; do sleep 1; done";
            let other =
                Container::start(&node.netns, &root, Tool::Ipset(Age::Old), "calico-node", script)?;
            let root = cluster.directory().join("bystander");
            let sleeps = "while :; do sleep 1; done";
            let bystander = Container::start(
                &cluster.node(A)?.netns,
                &root,
                Tool::Ipset(Age::Old),
                "nginx",
                sleeps,
            )?;
            cluster.guests.push(Box::new(other));
            cluster.guests.push(Box::new(bystander));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            Ok(())
        },
        unlike: &[Code::IpsetReaderTooOld, Code::IpsetReaderBehind],
        limits: Limits { settle: Duration::from_secs(25), ..HARD },
        ..QUIET
    },
    Fault {
        name: "ipset-full",
        about: "a set of Felix's that is referred to takes no more members",
        inject: |cluster| {
            fill(cluster, FULL, 100, "")?;
            refer(cluster, FULL)?;
            ensure!(
                ipset(cluster, &format!("add {FULL} 10.9.9.9")).is_err(),
                "a full set took a member"
            );
            Ok(())
        },
        heal: |cluster| ipset(cluster, &format!("flush {FULL}")),
        expected: &[
            of_set(Code::IpsetFull, FULL).telling(&["100 of 100 members", "1 rule or set refers"])
        ],
        unlike: &[Code::IpsetNearlyFull],
        limits: SLOW,
        ..QUIET
    },
    Fault {
        name: "ipset-nearly-full",
        about: "a set that is referred to has five places left of a hundred",
        inject: |cluster| {
            fill(cluster, "pods", 95, "")?;
            refer(cluster, "pods")
        },
        heal: |cluster| ipset(cluster, "flush pods"),
        expected: &[of_set(Code::IpsetNearlyFull, "pods").telling(&["95 of 100 members"])],
        unlike: &[Code::IpsetFull],
        limits: SLOW,
        ..QUIET
    },
    Fault {
        name: "ipset-full-and-fine",
        about: "full sets that nobody refers to or that evict members, and one with room",
        inject: |cluster| {
            fill(cluster, "unused", 100, "")?;
            fill(cluster, "evicting", 100, "forceadd")?;
            refer(cluster, "evicting")?;
            fill(cluster, "roomy", 94, "")?;
            refer(cluster, "roomy")
        },
        unlike: &[Code::IpsetFull, Code::IpsetNearlyFull],
        limits: Limits { settle: Duration::from_secs(15), ..HARD },
        ..QUIET
    },
];

/// No packet is lost.
const QUIET: Fault = Fault { nodes: 2, spares: &[pods(A, B), pods(B, A)], ..PLAIN };
/// Sets are looked at every 5 s, and tools every 10 s.
const SLOW: Limits = Limits {
    detect: Duration::from_secs(30),
    settle: Duration::from_secs(12),
    clear: Duration::from_secs(60),
};
/// How long a container may take to do its first thing.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

const fn of_set(code: Code, set: &'static str) -> Expected {
    says_itself(A, code, Subject::Thing(Thing::Set, set))
}

/// What plays calico-node: makes its sets, and lists all again and again.
fn felix(cluster: &mut Cluster, tool: Tool) -> Result<()> {
    let script = "ipset create cali40this-host hash:ip\n\
                  ipset add cali40this-host 10.0.0.11\n\
                  ipset create cali40all-ipam-pools hash:net\n\
                  while :; do\n\
                  said=$(ipset list 2>&1 >/list) && said=fine\n\
                  echo \"$said\" >/said\n\
                  sleep 1\n\
                  done";
    container(cluster, tool, "calico-node", script)?;
    felix_says(cluster, "fine")
}

/// What plays the controller inside of K3s on a node that was not restarted: it
/// saves every set and makes it anew under another name, which it swaps in
/// (kube-router before 2.7.0, pkg/utils/ipset.go).
fn kube_router(cluster: &mut Cluster) -> Result<()> {
    let script = "ipset create KUBE-DST-LAB hash:ip\n\
                  while [ ! -e $0/stop ]; do\n\
                  for set in $(ipset list -n); do\n\
                  ipset save $set | sed \"s/ $set/ TMP-LAB/\" | ipset restore &&\n\
                  ipset swap TMP-LAB $set && ipset destroy TMP-LAB\n\
                  done\n\
                  sleep 1\n\
                  done";
    let folder = cluster.directory().join("k3s");
    let writer = Container::k3s(&cluster.node(A)?.netns, &folder, script)?;
    cluster.guests.push(Box::new(writer));
    Ok(())
}

fn container(cluster: &mut Cluster, tool: Tool, name: &str, script: &str) -> Result<()> {
    let root = cluster.directory().join("container");
    let guest = Container::start(&cluster.node(A)?.netns, &root, tool, name, script)?;
    cluster.guests.push(Box::new(guest));
    Ok(())
}

/// One of the containers that run.
fn guest(cluster: &Cluster, index: usize) -> Result<&Container> {
    let guest = cluster.guests.get(index).and_then(|guest| guest.downcast_ref());
    guest.context("no container runs")
}

/// Waits until what plays calico-node says this.
fn felix_says(cluster: &Cluster, words: &str) -> Result<()> {
    let guest = guest(cluster, 0)?;
    let said = wait_until(BEGINS_WITHIN, || Ok(guest.text("said").contains(words)))?;
    ensure!(said, "calico-node says `{}` instead of `{words}`", guest.text("said").trim());
    Ok(())
}

/// Waits until the first node's agent, where one runs, has this in its snapshot.
fn agent_sees(cluster: &Cluster, words: &str) -> Result<()> {
    let node = cluster.node(A)?;
    if node.agent.is_none() {
        return Ok(());
    }
    let seen =
        wait_until(BEGINS_WITHIN, || Ok(poll::fetch(node, "/v1/snapshot")?.contains(words)))?;
    ensure!(seen, "the agent has not seen {words}");
    Ok(())
}

/// Runs the command that the remedy prints, word for word. What enters calico-node's
/// container in the place of crictl keeps nothing else of what runs it.
fn as_the_remedy_says(cluster: &Cluster, set: &str, pid: &str) -> Result<()> {
    let remedy = Code::IpsetReaderTooOld.entry().remedy;
    let mut commands = remedy.split('`').skip(1).step_by(2);
    let command = commands.find(|command| command.starts_with("ipset save "));
    let command = command.context("no command gives a set back its revision")?;
    let crictl = format!(
        "crictl() {{ case $1 in ps) echo container;; exec) shift 3; nsenter -t {pid} -m -r \"$@\";; \
         esac; }}\n"
    );
    let script = crictl + &command.replace("{name}", set);
    run(cluster.node(A)?.netns.command("sh").args(["-ec", &script]))
}

/// A set of 100 places with so many members.
fn fill(cluster: &Cluster, set: &str, members: u8, option: &str) -> Result<()> {
    ipset(cluster, format!("create {set} hash:ip maxelem 100 {option}").trim_end())?;
    (0..members).try_for_each(|member| ipset(cluster, &format!("add {set} 10.1.0.{member}")))
}

/// Refers to a set, from one of sets.
fn refer(cluster: &Cluster, set: &str) -> Result<()> {
    ipset(cluster, &format!("create of-{set} list:set"))?;
    ipset(cluster, &format!("add of-{set} {set}"))
}

/// Runs the host's ipset on the first node.
fn ipset(cluster: &Cluster, line: &str) -> Result<()> {
    run(cluster.node(A)?.netns.command("ipset").args(line.split(' ')))
}

fn run(command: &mut std::process::Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", said.trim());
    Ok(())
}
