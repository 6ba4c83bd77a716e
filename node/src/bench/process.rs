//! What the measured processes cost, from `/proc`.

use anyhow::Context;

/// Clock ticks per second in `/proc/<pid>/stat`: USER_HZ, which is 100 on every architecture that Linux and Rust share.
const TICKS_PER_SECOND: f64 = 100.0;

/// A reading, summed over processes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// User and system time so far, seconds.
    pub(super) cpu_s: f64,
    /// Resident memory now, bytes.
    pub(super) rss_bytes: u64,
    /// Largest resident memory of any one process now, bytes.
    pub(super) rss_max_bytes: u64,
    /// Bytes sent to storage so far.
    pub(super) written_bytes: u64,
}

/// Reads and sums the processes. One that is not there is an error: its cost would silently be missing.
pub(super) fn read(pids: &[u32]) -> anyhow::Result<Usage> {
    let mut sum = Usage::default();
    for pid in pids {
        let one = read_one(*pid).with_context(|| format!("process {pid}"))?;
        sum.cpu_s += one.cpu_s;
        sum.rss_bytes += one.rss_bytes;
        sum.rss_max_bytes = sum.rss_max_bytes.max(one.rss_bytes);
        sum.written_bytes += one.written_bytes;
    }
    Ok(sum)
}

fn read_one(pid: u32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    // Only the owner may read it; without it the bytes are zero.
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Ok(Usage {
        cpu_s: cpu_ticks(&stat)? as f64 / TICKS_PER_SECOND,
        rss_bytes: field(&status, "VmRSS:").unwrap_or(0) << 10,
        rss_max_bytes: 0,
        written_bytes: field(&io, "write_bytes:").unwrap_or(0),
    })
}

/// utime and stime: fields 14 and 15, counted after the name, which may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> anyhow::Result<u64> {
    let (_, rest) = stat.rsplit_once(") ").context("no process name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next().context("no utime")?.parse()?;
    let system: u64 = fields.next().context("no stime")?.parse()?;
    Ok(user + system)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_ticks(stat).unwrap(), 200);
    }

    #[test]
    fn this_process_can_be_read() {
        let usage = read(&[std::process::id()]).unwrap();
        assert!(usage.rss_bytes > 1 << 20);
        assert!(read(&[u32::MAX]).is_err());
    }
}
