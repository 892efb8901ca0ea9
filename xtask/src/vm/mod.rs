//! The lab in virtual machines: the same faults, judged in the same way, under
//! other kernels than this machine's.

mod cpio;
mod features;
mod guest;
mod kernels;
mod machine;
mod part;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::Value;

use self::features::Found;
use self::guest::Extra;
use self::kernels::{KERNELS, Kernel, Unpacked};
use self::machine::Machine;
use self::part::Part;
use crate::output::Output;
use crate::shell::target;
use crate::{Install, duration, interrupt, lab};

/// What `cargo xtask lab vm` takes.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask lab vm",
    bin_name = "cargo xtask lab vm",
    about = "Run the lab in virtual machines, under Debian's kernels"
)]
pub(crate) struct Options {
    /// Kernels (5.10, 6.1, 6.12, newest, or all) [default: 6.1], and a PATTERN of
    /// faults as `lab run` takes it [default: all]
    #[arg(value_name = "KERNEL... PATTERN")]
    words: Vec<String>,
    /// Whose overlay to build [default: each shape in turn, except calico-vxlan]
    #[arg(long)]
    shape: Option<String>,
    /// Run the agents without the rules that name causes
    #[arg(long)]
    no_rules: bool,
    /// Clusters side by side
    #[arg(long, default_value_t = 1)]
    jobs: u8,
    /// Guests side by side, each of one processor; a kernel's faults are shared out
    /// among its guests [default: as many as there are processors]
    #[arg(long)]
    guests: Option<NonZeroUsize>,
    /// Kill a guest that takes longer than this
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "2h")]
    bound: Duration,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    install: Install,
}

/// The name that stands for every kernel.
const ALL: &str = "all";
/// The kernel that is tried when none is named.
const DEFAULT: &str = "6.1";

/// The agent in a guest, and how much slower a guest may be at what takes work
/// than the limits are meant for.
const AGENT: &str = "--binary /lab/overlaywatch --patience 4";
/// The longest that a demo, or a benchmark, takes in a guest.
const ONCE_BOUND: Duration = Duration::from_secs(3600);

/// What came of one kernel.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Its name here.
    kernel: &'static str,
    /// What it says that it is, what it has, and what agents cannot see under it.
    found: Option<Found>,
    /// What it lacks, as it must.
    expected_gaps: Vec<&'static str>,
    /// The lab's rows.
    rows: Vec<Value>,
    /// What went wrong beside them.
    problems: Vec<String>,
    /// From its last guest's start to its end.
    seconds: f64,
    /// Where its guests' consoles, logs and recordings are.
    kept: Vec<PathBuf>,
    /// `pass` or `fail`.
    result: &'static str,
}

/// Runs the lab under each kernel that `words` name.
pub(crate) fn run(words: &[String], install: Install) -> Result<()> {
    let name = "cargo xtask lab vm".to_owned();
    let options = Options::parse_from(std::iter::once(&name).chain(words));
    let (kernels, pattern) = chosen(&options.words)?;
    let install = Install { no_install: install.no_install || options.install.no_install };
    install.setup()?;
    install.provide_old_tools()?;
    lab::build()?;
    interrupt::install()?;
    let guests = options.guests.map_or_else(std::thread::available_parallelism, Ok)?.get();
    let unpacked = kernels
        .iter()
        .map(|kernel| kernel.provide(!install.no_install))
        .collect::<Result<Vec<_>>>()?;
    let parts = Part::all(guests.div_ceil(kernels.len()));
    let guests_of: Vec<_> = kernels
        .iter()
        .zip(&unpacked)
        .flat_map(|(&kernel, unpacked)| parts.iter().map(move |&part| (kernel, unpacked, part)))
        .collect();
    let mut brought = part::side_by_side(&guests_of, guests, |&(kernel, unpacked, part)| {
        run_part(kernel, unpacked, part, pattern, &options)
    })?
    .into_iter();
    let mut outcomes = Vec::with_capacity(kernels.len());
    for kernel in kernels {
        let outcome = Outcome::of(kernel, brought.by_ref().take(parts.len()).collect());
        if options.output == Output::Text {
            println!("{}", outcome.line());
            for problem in &outcome.problems {
                println!("        PROBLEM {problem}");
            }
        }
        outcomes.push(outcome);
    }
    if options.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !outcome.is_pass())
        .map(|outcome| outcome.kernel)
        .collect();
    ensure!(failed.is_empty(), "not all is right under {}", failed.join(", "));
    Ok(())
}

/// Kernels by name, and what else is there as the pattern of faults.
fn chosen(words: &[String]) -> Result<(Vec<&'static Kernel>, Option<&str>)> {
    let mut kernels = Vec::new();
    let mut pattern = None;
    for word in words {
        if word == ALL {
            kernels.extend(&KERNELS);
        } else if let Some(kernel) = Kernel::named(word) {
            kernels.push(kernel);
        } else if let Some(other) = pattern.replace(word.as_str()) {
            bail!("of {other} and {word} one at most can be a pattern of faults; {}", names());
        }
    }
    if kernels.is_empty() {
        kernels.extend(Kernel::named(DEFAULT));
    }
    Ok((kernels, pattern))
}

/// What one guest brought back.
#[derive(Debug, Default)]
struct Brought {
    found: Option<Found>,
    rows: Vec<Value>,
    problems: Vec<String>,
    seconds: f64,
    kept: PathBuf,
}

/// Which kernels there are, for whoever named none.
fn names() -> String {
    let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    format!("kernels are {} and {ALL}", names.join(", "))
}

fn run_part(
    kernel: &Kernel,
    unpacked: &Unpacked,
    part: Part,
    pattern: Option<&str>,
    options: &Options,
) -> Result<Brought> {
    let start = Instant::now();
    let guest = Guest {
        name: part.name(kernel.name),
        unpacked,
        extra: Extra::default(),
        bound: options.bound,
    };
    let (kept, results) = guest.boot(&run_lines(pattern, part, options))?;
    let mut brought = Brought { kept, ..Brought::default() };
    if let Err(error) = results.and_then(|results| brought.read(&results, part)) {
        brought.problems.push(format!("{error:#}"));
    }
    brought.seconds = start.elapsed().as_secs_f64();
    Ok(brought)
}

/// Shows a mesh in a guest, with what the lab's demo takes, and a fault if one
/// is named: stdout is what the demo says in the end.
pub(crate) fn demo(words: &[String], output: Output, install: Install) -> Result<()> {
    interrupt::install()?;
    let kernel = Kernel::named(DEFAULT).context("no kernel is the usual one")?;
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    let demo = format!("/lab/lab {} {AGENT}", words.join(" "));
    let lines = match output {
        Output::Json => format!("{demo} > demo.json\necho $? > status\n"),
        // What goes to a terminal is drawn over, and a console is no such.
        Output::Text => format!("({demo}; echo $? > status) | cat\n"),
    };
    let results = once(kernel, install, Extra::default(), &lines)?;
    if output == Output::Json {
        print!("{}", fs::read_to_string(results.join("demo.json"))?);
    }
    let status = fs::read_to_string(results.join("status"))?;
    ensure!(status.trim() == "0", "the demo in the guest ended with {}", status.trim());
    Ok(())
}

/// Runs the benchmark of the eBPF programs in a guest: xtask itself, which is
/// told that all is built. What it printed.
pub(crate) fn bench_ebpf(
    kernel: &str,
    pairs: Option<NonZeroUsize>,
    output: Output,
    install: Install,
) -> Result<String> {
    let Some(kernel) = Kernel::named(kernel) else { bail!("no kernel {kernel}: {}", names()) };
    let format = match output {
        Output::Json => "json",
        Output::Text => "text",
    };
    let [_, xtask, _] = BENCH.built else { bail!("who runs the benchmark?") };
    let pairs = pairs.map_or(PAIRS, NonZeroUsize::get);
    let lines = format!(
        "/lab/{xtask} bench ebpf --built --pairs {pairs} -o {format} > bench\necho $? > status\n"
    );
    let results = once(kernel, install, BENCH, &lines)?;
    let status = fs::read_to_string(results.join("status"))?;
    ensure!(status.trim() == "0", "the benchmark in the guest ended with {}", status.trim());
    fs::read_to_string(results.join("bench")).context("the guest printed no benchmark")
}

/// Pairs of runs in a guest.
const PAIRS: usize = 3;
/// What the benchmark of the eBPF programs needs.
const BENCH: Extra = Extra {
    system: &["iperf3"],
    built: &["release/overlaywatch", "debug/xtask", "release/examples/bench_ebpf"],
};

/// Boots one guest, and gives what it brought back.
fn once(kernel: &Kernel, install: Install, extra: Extra, lines: &str) -> Result<PathBuf> {
    let unpacked = kernel.provide(!install.no_install)?;
    let name = kernel.name.to_owned();
    Guest { name, unpacked: &unpacked, extra, bound: ONCE_BOUND }.boot(lines)?.1
}

/// A guest to boot.
struct Guest<'a> {
    /// What it is called on its console, and its folder.
    name: String,
    unpacked: &'a Unpacked,
    extra: Extra,
    /// The longest that it may take.
    bound: Duration,
}

impl Guest<'_> {
    /// Boots it, and lets it do `lines`. Where its console is kept, and what it
    /// brought back.
    fn boot(&self, lines: &str) -> Result<(PathBuf, Result<PathBuf>)> {
        let Self { name, unpacked, extra, bound } = self;
        // The guest runs this system's own programs.
        ensure!(
            cfg!(target_arch = "x86_64"),
            "the lab's kernels are amd64's, and this machine is not"
        );
        let kept = target()?.join("lab/vm").join(name);
        // What is kept of an earlier run would be taken for this one's.
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir_all(&kept)?;
        let archive = kept.join("initrd");
        guest::write(unpacked, format!("{START}{lines}{END}"), *extra, &archive)?;
        eprintln!(
            "booting {} without hardware virtualisation; it is killed after {} s, or {} s without \
             a word",
            unpacked.release,
            bound.as_secs(),
            machine::SILENCE.as_secs()
        );
        let machine =
            Machine { name, kernel: unpacked, archive: &archive, folder: &kept, bound: *bound };
        let results = machine.run();
        interrupt::check()?;
        fs::remove_file(&archive)?;
        Ok((kept, results))
    }
}

impl Brought {
    /// Takes in a guest's results.
    fn read(&mut self, results: &Path, part: Part) -> Result<()> {
        let json = |name: &str| -> Result<Value> {
            let text = fs::read_to_string(results.join(name))
                .with_context(|| format!("the guest made no {name}: see its console"))?;
            serde_json::from_str(&text)
                .with_context(|| format!("the guest's {name} is not whole: see its console"))
        };
        if part.is_first() {
            let found: Found = serde_json::from_value(json("features.json")?)?;
            self.problems.extend(found.problems());
            self.found = Some(found);
        }
        let Value::Array(mut rows) = json("rows.json")? else { bail!("rows.json is no list") };
        for row in &mut rows {
            // Paths of the guest are nobody's.
            if let Some(kept) = row["kept"].as_str() {
                row["kept"] = results.join(kept).display().to_string().into();
            }
        }
        self.rows = rows;
        Ok(())
    }
}

impl Outcome {
    /// Puts together what the guests of one kernel brought back.
    fn of(kernel: &Kernel, brought: Vec<Brought>) -> Self {
        let mut outcome = Self {
            kernel: kernel.name,
            found: None,
            expected_gaps: Vec::new(),
            rows: Vec::new(),
            problems: Vec::new(),
            seconds: 0.0,
            kept: Vec::new(),
            result: "fail",
        };
        for guest in brought {
            if let Some(found) = guest.found {
                outcome.expected_gaps = found.expected_gaps();
                outcome.found = Some(found);
            }
            outcome.rows.extend(guest.rows);
            outcome.problems.extend(guest.problems);
            outcome.seconds = outcome.seconds.max(guest.seconds);
            outcome.kept.push(guest.kept);
        }
        if outcome.is_pass() {
            outcome.result = "pass";
        }
        outcome
    }

    fn passed(&self) -> usize {
        self.rows.iter().filter(|row| row["result"] == "pass").count()
    }

    fn is_pass(&self) -> bool {
        self.problems.is_empty() && !self.rows.is_empty() && self.passed() == self.rows.len()
    }

    fn line(&self) -> String {
        let kept: Vec<_> = self.kept.iter().map(|path| path.display().to_string()).collect();
        let release = self.found.as_ref().map_or("", |found| found.release.as_str());
        let gaps = match self.expected_gaps.as_slice() {
            [] if self.found.is_none() => String::new(),
            [] => "it lacks nothing; ".to_owned(),
            gaps => format!("it lacks {}, as expected; ", gaps.join(", ")),
        };
        format!(
            "{}  {} {release}: {} of {} faults judged rightly in {:.0} s; {gaps}{}",
            self.result,
            self.kernel,
            self.passed(),
            self.rows.len(),
            self.seconds,
            kept.join(", ")
        )
    }
}

/// What a guest does that runs faults.
fn run_lines(pattern: Option<&str>, part: Part, options: &Options) -> String {
    let mut run = format!("--rows rows.json --keep kept --part {part} --jobs {}", options.jobs);
    run += &match &options.shape {
        Some(shape) => format!(" --shape {}", quoted(shape)),
        // To a kernel it is flannel's with other names, port and network identifier.
        None => " --except calico-vxlan".to_owned(),
    };
    if options.no_rules {
        run += " --no-rules";
    }
    if let Some(pattern) = pattern {
        run += &format!(" {}", quoted(pattern));
    }
    let mut lines = String::new();
    if part.is_first() {
        // What was looked for is loaded then, and a fault wants IPIP not to be.
        lines += &format!("/lab/lab features {AGENT} > features.json\nmodprobe -r ipip\n");
    }
    lines + &format!("/lab/lab run --own-machine {AGENT} {run}\n")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

const START: &str = "#!/usr/bin/dash
export PATH=/usr/sbin:/usr/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -qa virtio_pci virtio_blk
ip link set lo up
echo \"booted $(uname -r) in $(cut -d ' ' -f 1 /proc/uptime) s, clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)\"
cd /result
";
const END: &str = "busybox dmesg > kernel.txt
busybox tar -cf /dev/vda .
sync
busybox poweroff -f
";

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn kernels_are_told_from_the_pattern() {
        let named = |line: &str| {
            let words = words(line);
            let (kernels, pattern) = chosen(&words).unwrap();
            let names: Vec<_> = kernels.iter().map(|kernel| kernel.name).collect();
            (names.join(" "), pattern.map(str::to_owned))
        };
        assert_eq!(named(""), ("6.1".to_owned(), None));
        assert_eq!(named("gray-loss"), ("6.1".to_owned(), Some("gray-loss".to_owned())));
        assert_eq!(named("5.10 newest mtu"), ("5.10 newest".to_owned(), Some("mtu".to_owned())));
        assert_eq!(named("all").0, "5.10 6.1 6.12 newest");
        assert!(chosen(&words("6.1 mtu 6.2")).is_err());
    }

    #[test]
    fn the_guest_is_told_what_was_asked() {
        let options = Options::parse_from(["vm", "--shape", "flannel", "--no-rules"]);
        let parts = Part::all(2);
        let first = run_lines(Some("it's"), parts[0], &options);
        assert!(first.contains("features"), "{first}");
        assert!(
            first.ends_with(" --part 1/2 --jobs 1 --shape 'flannel' --no-rules 'it'\\''s'\n"),
            "{first}"
        );
        let second = run_lines(None, parts[1], &Options::parse_from(["vm"]));
        assert!(!second.contains("features"), "{second}");
        assert!(second.ends_with(" --part 2/2 --jobs 1 --except calico-vxlan\n"), "{second}");
        assert!(END.ends_with("poweroff -f\n"));
    }

    #[test]
    fn an_outcome_passes_when_all_rows_and_the_table_agree() {
        let row = |result: &str| serde_json::json!({"result": result});
        let brought = |results: &[&str]| Brought {
            rows: results.iter().map(|result| row(result)).collect(),
            ..Brought::default()
        };
        let of = |brought| Outcome::of(&KERNELS[0], brought).result;
        assert_eq!(of(vec![brought(&["pass"]), brought(&["pass"])]), "pass");
        assert_eq!(of(vec![brought(&["pass"]), brought(&["pass", "fail"])]), "fail");
        assert_eq!(of(vec![brought(&["pass"]), brought(&[])]), "pass", "one had nothing to do");
        assert_eq!(of(vec![brought(&[])]), "fail", "no row proves nothing");
        let broken = Brought { problems: vec!["killed".to_owned()], ..brought(&["pass"]) };
        assert_eq!(of(vec![brought(&["pass"]), broken]), "fail");
    }
}
