//! What a process costs, from the kernel's own books.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Processor time of all threads so far. The process's CPU clock counts in
/// nanoseconds; `utime` and `stime` of /proc/PID/stat are the same sum, cut to
/// ticks of 10 ms each, which is too coarse for half a percent.
pub(crate) fn cpu_time(pid: Pid) -> Result<Duration> {
    let clock = clock_getcpuclockid(pid).with_context(|| format!("process {pid} has ended"))?;
    Ok(Duration::from(clock_gettime(clock)?))
}

/// Resident memory in bytes: now, and at its highest.
pub(crate) fn resident_bytes(pid: Pid) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    Ok((field_bytes(&status, "VmRSS")?, field_bytes(&status, "VmHWM")?))
}

/// A field of /proc/PID/status, which counts in units of 1,024 bytes (proc(5)).
fn field_bytes(status: &str, name: &str) -> Result<u64> {
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        if key == name {
            let number = value.trim().strip_suffix("kB").context("a size in kB")?;
            return Ok(number.trim().parse::<u64>()? * 1024);
        }
    }
    bail!("/proc/PID/status has no {name}")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn reads_a_status() {
        let status = "Name:\toverlaywatch\nVmHWM:\t   12044 kB\nVmRSS:\t   11000 kB\n";
        assert_eq!(field_bytes(status, "VmHWM").unwrap(), 12_044 * 1024);
        assert_eq!(field_bytes(status, "VmRSS").unwrap(), 11_000 * 1024);
        assert!(field_bytes(status, "VmSwap").is_err());
    }

    #[test]
    fn processor_time_grows_with_work() {
        let before = cpu_time(Pid::this()).unwrap();
        let start = Instant::now();
        while cpu_time(Pid::this()).unwrap() < before + Duration::from_millis(5) {
            assert!(start.elapsed() < Duration::from_secs(60), "the clock stands still");
        }
        let (now, highest) = resident_bytes(Pid::this()).unwrap();
        assert!(now > 0 && highest >= now);
    }
}
