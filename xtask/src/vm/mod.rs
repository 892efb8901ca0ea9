//! The lab in virtual machines: the same faults, judged in the same way, under
//! other kernels than this machine's.

mod cpio;
mod features;
mod guest;
mod kernels;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::Value;

use self::features::Found;
use self::kernels::{KERNELS, Kernel};
use self::machine::Machine;
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
    /// Whose overlay to build [default: each shape in turn]
    #[arg(long)]
    shape: Option<String>,
    /// Run the agents without the rules that name causes
    #[arg(long)]
    no_rules: bool,
    /// Clusters side by side
    #[arg(long, default_value_t = 1)]
    jobs: u8,
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
/// The longest that a demo takes in a guest.
const DEMO_BOUND: Duration = Duration::from_secs(3600);

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
    /// From the guest's start to its end.
    seconds: f64,
    /// Where its console, logs and recordings are.
    kept: PathBuf,
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
    let mut outcomes = Vec::with_capacity(kernels.len());
    for kernel in kernels {
        let outcome = run_one(kernel, install, pattern, &options)?;
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
            let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            bail!(
                "of {other} and {word} one at most can be a pattern of faults; kernels are {} and \
                 {ALL}",
                names.join(", ")
            );
        }
    }
    if kernels.is_empty() {
        kernels.extend(Kernel::named(DEFAULT));
    }
    Ok((kernels, pattern))
}

fn run_one(
    kernel: &'static Kernel,
    install: Install,
    pattern: Option<&str>,
    options: &Options,
) -> Result<Outcome> {
    let start = Instant::now();
    let (kept, results) = boot(kernel, install, &run_lines(pattern, options), options.bound)?;
    let mut outcome = Outcome {
        kernel: kernel.name,
        found: None,
        expected_gaps: Vec::new(),
        rows: Vec::new(),
        problems: Vec::new(),
        seconds: start.elapsed().as_secs_f64(),
        kept,
        result: "fail",
    };
    if let Err(error) = results.and_then(|results| outcome.read(&results)) {
        outcome.problems.push(format!("{error:#}"));
    }
    if outcome.is_pass() {
        outcome.result = "pass";
    }
    Ok(outcome)
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
    let (_, results) = boot(kernel, install, &lines, DEMO_BOUND)?;
    let results = results?;
    if output == Output::Json {
        print!("{}", fs::read_to_string(results.join("demo.json"))?);
    }
    let status = fs::read_to_string(results.join("status"))?;
    ensure!(status.trim() == "0", "the demo in the guest ended with {}", status.trim());
    Ok(())
}

/// Boots a kernel whose guest does `lines`. Where its console is kept, and what
/// it brought back.
fn boot(
    kernel: &Kernel,
    install: Install,
    lines: &str,
    bound: Duration,
) -> Result<(PathBuf, Result<PathBuf>)> {
    // The guest runs this system's own programs.
    ensure!(cfg!(target_arch = "x86_64"), "the lab's kernels are amd64's, and this machine is not");
    let unpacked = kernel.provide(!install.no_install)?;
    let kept = target()?.join("lab/vm").join(kernel.name);
    // What is kept of an earlier run would be taken for this one's.
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&kept)?;
    let archive = kept.join("initrd");
    guest::write(&unpacked, format!("{START}{lines}{END}"), &archive)?;
    eprintln!(
        "booting {} without hardware virtualisation; it is killed after {} s, or {} s without a word",
        unpacked.release,
        bound.as_secs(),
        machine::SILENCE.as_secs()
    );
    let machine =
        Machine { name: kernel.name, kernel: &unpacked, archive: &archive, folder: &kept, bound };
    let results = machine.run();
    interrupt::check()?;
    fs::remove_file(&archive)?;
    Ok((kept, results))
}

impl Outcome {
    /// Takes in what the guest brought back.
    fn read(&mut self, results: &Path) -> Result<()> {
        let json = |name: &str| -> Result<Value> {
            let text = fs::read_to_string(results.join(name))
                .with_context(|| format!("the guest made no {name}: see its console"))?;
            serde_json::from_str(&text)
                .with_context(|| format!("the guest's {name} is not whole: see its console"))
        };
        let found: Found = serde_json::from_value(json("features.json")?)?;
        self.problems.extend(found.problems());
        self.expected_gaps = found.expected_gaps();
        self.found = Some(found);
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

    fn passed(&self) -> usize {
        self.rows.iter().filter(|row| row["result"] == "pass").count()
    }

    fn is_pass(&self) -> bool {
        self.problems.is_empty() && !self.rows.is_empty() && self.passed() == self.rows.len()
    }

    fn line(&self) -> String {
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
            self.kept.display()
        )
    }
}

/// What a guest does that runs faults.
fn run_lines(pattern: Option<&str>, options: &Options) -> String {
    let mut run = format!("--rows rows.json --keep kept --jobs {}", options.jobs);
    if let Some(shape) = &options.shape {
        run += &format!(" --shape {}", quoted(shape));
    }
    if options.no_rules {
        run += " --no-rules";
    }
    if let Some(pattern) = pattern {
        run += &format!(" {}", quoted(pattern));
    }
    // What was looked for is loaded now, and a fault wants IPIP not to be.
    format!(
        "/lab/lab features {AGENT} > features.json\n\
         modprobe -r ipip\n\
         /lab/lab run --own-machine {AGENT} {run}\n"
    )
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
        let lines = run_lines(Some("it's"), &options);
        assert!(lines.ends_with(" --jobs 1 --shape 'flannel' --no-rules 'it'\\''s'\n"));
        assert!(END.ends_with("poweroff -f\n"));
    }

    #[test]
    fn an_outcome_passes_when_all_rows_and_the_table_agree() {
        let mut outcome = Outcome {
            kernel: "6.1",
            found: None,
            expected_gaps: Vec::new(),
            rows: vec![serde_json::json!({"result": "pass"})],
            problems: Vec::new(),
            seconds: 1.0,
            kept: PathBuf::new(),
            result: "fail",
        };
        assert!(outcome.is_pass());
        outcome.rows.push(serde_json::json!({"result": "fail"}));
        assert!(!outcome.is_pass());
        outcome.rows.clear();
        assert!(!outcome.is_pass(), "no row proves nothing");
    }
}
