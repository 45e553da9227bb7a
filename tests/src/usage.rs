//! What processes use, from the kernel's own accounting in `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Memory of some processes, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Memory {
    /// Resident set size.
    pub rss: f64,
    /// Proportional set size: pages that several processes share are divided among them.
    pub pss: f64,
}

/// The CPU time that `processes` have spent so far: user and system time of all threads, dead ones too.
///
/// # Errors
/// When a process is gone.
pub fn cpu(processes: &BTreeSet<u32>) -> Result<Duration> {
    let ticks = sum(processes, "stat", parse_ticks)?;
    Ok(Duration::from_secs_f64(ticks / ticks_per_second()?))
}

/// The time between two readings of [`cpu`]; none where there is no proxy.
pub fn spent(before: Option<Duration>, after: Option<Duration>) -> Option<Duration> {
    Some(after?.saturating_sub(before?))
}

/// The memory that `processes` use.
///
/// # Errors
/// When a process is gone.
pub fn memory(processes: &BTreeSet<u32>) -> Result<Memory> {
    Ok(Memory {
        rss: sum(processes, "smaps_rollup", |text| {
            parse_mebibytes(text, "Rss:")
        })?,
        pss: sum(processes, "smaps_rollup", |text| {
            parse_mebibytes(text, "Pss:")
        })?,
    })
}

/// The most resident memory that `processes` have used at any time, in MiB.
///
/// # Errors
/// When a process is gone.
pub fn peak(processes: &BTreeSet<u32>) -> Result<f64> {
    sum(processes, "status", |text| parse_mebibytes(text, "VmHWM:"))
}

/// The processes of a cgroup, without those in the cgroups below it.
///
/// # Errors
/// When the cgroup cannot be read.
pub fn processes_of(cgroup: &Cgroup) -> Result<BTreeSet<u32>> {
    // A threaded cgroup lists its threads only.
    let file = cgroup.path().join("cgroup.threads");
    fs::read_to_string(&file)
        .context(|| format!("read {}", file.display()))?
        .lines()
        .map(|thread| {
            let status = read(thread, "status")?;
            find_field(&status, "Tgid:")
                .and_then(|id| id.parse().ok())
                .context(|| format!("find the process of thread {thread}"))
        })
        .collect()
}

fn sum(processes: &BTreeSet<u32>, file: &str, parse: impl Fn(&str) -> Option<f64>) -> Result<f64> {
    processes
        .iter()
        .map(|id| {
            let text = read(&id.to_string(), file)?;
            parse(&text).context(|| format!("understand /proc/{id}/{file}"))
        })
        .sum()
}

fn read(id: &str, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{id}/{file}"))
        .context(|| format!("read /proc/{id}/{file} of a counted process"))
}

/// User and system time in clock ticks (`proc_pid_stat(5)`, fields 14 and 15). The name in field 2 may
/// hold anything, so the fields are counted from its closing bracket.
fn parse_ticks(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// A field of `smaps_rollup` (`proc_pid_smaps(5)`) or `status` (`proc_pid_status(5)`), which the kernel gives in
/// KiB.
fn parse_mebibytes(rollup: &str, field: &str) -> Option<f64> {
    let kibibytes: f64 = find_field(rollup, field)?
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    Some(kibibytes / 1024.0)
}

fn find_field<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .map(str::trim)
}

fn ticks_per_second() -> Result<f64> {
    sysconf(SysconfVar::CLK_TCK)
        .context(|| "ask for the clock ticks of a second")?
        .and_then(|ticks| u32::try_from(ticks).ok())
        .map(f64::from)
        .context(|| "find the clock ticks of a second")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 1234 0 5 0 \
                    150 50 7 8 20 0 3 0 278543 10000 500 18446744073709551615";
        assert_eq!(parse_ticks(stat), Some(200.0));
        assert_eq!(parse_ticks("4242 (cut"), None);
    }

    #[test]
    fn memory_is_read_from_the_rollup() {
        let rollup = "55d0c8f4a000-7ffd3b5f2000 ---p 00000000 00:00 0    [rollup]
Rss:                2048 kB
Pss:                1536 kB
Pss_Dirty:           388 kB
";
        assert_eq!(parse_mebibytes(rollup, "Rss:"), Some(2.0));
        assert_eq!(parse_mebibytes(rollup, "Pss:"), Some(1.5));
        assert_eq!(parse_mebibytes(rollup, "Swap:"), None);
    }

    #[test]
    fn work_of_this_process_shows_in_its_accounting() {
        let this = BTreeSet::from([std::process::id()]);
        let before = cpu(&this).unwrap();
        while cpu(&this).unwrap() == before {
            std::hint::black_box((0..100_000).sum::<u64>());
        }
        let memory = memory(&this).unwrap();
        assert!(memory.pss > 0.0 && memory.rss >= memory.pss);
        assert!(peak(&this).unwrap() > 0.0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(cpu(&BTreeSet::from([u32::MAX])).is_err());
    }
}
