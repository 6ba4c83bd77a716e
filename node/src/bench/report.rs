//! What was measured, as a table for people and JSON for everything else. The JSON field names are a contract.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::args::{LoadArgs, Payload, show_size};
use super::process::Usage;

const GIB: f64 = (1_u64 << 30) as f64;

/// The results of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    endpoint: String,
    concurrency: u32,
    duration_s: f64,
    part_bytes: u64,
    signed_payload: bool,
    cores: usize,
    pub(super) phases: Vec<Phase>,
}

impl Report {
    pub(super) fn new(args: &LoadArgs) -> Self {
        Self {
            endpoint: args.endpoint.clone(),
            concurrency: args.concurrency,
            duration_s: args.duration.as_secs_f64(),
            part_bytes: args.part_size,
            signed_payload: args.payload == Payload::Signed,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            phases: Vec::new(),
        }
    }
}

/// One operation at one size.
#[derive(Debug, Serialize)]
pub(super) struct Phase {
    pub(super) target: String,
    op: &'static str,
    object_bytes: u64,
    seconds: f64,
    ops: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
    bytes: u64,
    ops_per_s: f64,
    mb_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    generator_cpu_s: f64,
    /// Of the processes named by pid; absent where none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<ServerCost>,
}

/// What a phase cost the measured processes, summed over them.
#[derive(Debug, Serialize)]
struct ServerCost {
    cpu_s: f64,
    cpu_s_per_1000_ops: f64,
    /// Absent where no object bytes moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_s_per_gib: Option<f64>,
    rss_bytes: u64,
    rss_bytes_largest_process: u64,
    written_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_per_object_byte: Option<f64>,
}

/// Readings before and after a phase.
pub(super) struct Cost {
    pub(super) servers: Option<(Usage, Usage)>,
    pub(super) generator: (Usage, Usage),
}

/// What one worker, or all of them, did in a phase.
#[derive(Default)]
pub(super) struct Tally {
    bytes: u64,
    pub(super) errors: u64,
    first_error: Option<String>,
    /// Of every operation that succeeded, microseconds.
    latencies_us: Vec<u32>,
}

impl Tally {
    pub(super) fn done(&mut self, bytes: u64, latency: Duration) {
        self.bytes += bytes;
        self.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies_us.extend(other.latencies_us);
    }
}

impl Phase {
    pub(super) fn new(
        target: &str,
        op: &'static str,
        object_bytes: u64,
        elapsed: Duration,
        mut tally: Tally,
        cost: Cost,
    ) -> Self {
        tally.latencies_us.sort_unstable();
        let (ops, seconds) = (tally.latencies_us.len() as u64, elapsed.as_secs_f64().max(1e-9));
        let ms = |quantile| f64::from(at_quantile(&tally.latencies_us, quantile)) / 1000.0;
        Self {
            target: target.to_owned(),
            op,
            object_bytes,
            seconds,
            ops,
            errors: tally.errors,
            first_error: tally.first_error,
            bytes: tally.bytes,
            ops_per_s: ops as f64 / seconds,
            mb_per_s: tally.bytes as f64 / 1e6 / seconds,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            max_ms: ms(1.0),
            generator_cpu_s: cost.generator.1.cpu_s - cost.generator.0.cpu_s,
            servers: cost.servers.map(|(before, after)| ServerCost::new(before, after, ops, tally.bytes)),
        }
    }
}

impl Phase {
    pub(super) fn ops(&self) -> u64 {
        self.ops
    }

    /// CPU seconds of the servers for each operation; 0 where none was measured.
    pub(super) fn servers_cpu_per_op(&self) -> f64 {
        self.servers.as_ref().map_or(0.0, |cost| cost.cpu_s_per_1000_ops / 1000.0)
    }

    /// Under another name.
    pub(super) fn named(self, target: &str) -> Self {
        Self { target: target.to_owned(), ..self }
    }
}

impl ServerCost {
    fn new(before: Usage, after: Usage, ops: u64, bytes: u64) -> Self {
        let cpu_s = after.cpu_s - before.cpu_s;
        let written_bytes = after.written_bytes.saturating_sub(before.written_bytes);
        let moved = (bytes > 0).then_some(bytes as f64);
        Self {
            cpu_s,
            cpu_s_per_1000_ops: cpu_s * 1000.0 / (ops.max(1) as f64),
            cpu_s_per_gib: moved.map(|bytes| cpu_s * GIB / bytes),
            rss_bytes: after.rss_bytes,
            rss_bytes_largest_process: after.rss_max_bytes,
            written_bytes,
            written_per_object_byte: moved.map(|bytes| written_bytes as f64 / bytes),
        }
    }
}

/// The smallest value that a `quantile` of the sorted values do not exceed; 0 of none.
fn at_quantile(sorted: &[u32], quantile: f64) -> u32 {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, concurrency, duration_s, cores, .. } = self;
        writeln!(f, "{endpoint}, {concurrency} in flight, {duration_s} s each, {cores} cores")?;
        let mut target = "";
        for phase in &self.phases {
            if phase.target != target {
                target = &phase.target;
                writeln!(f, "\n{target}")?;
                writeln!(
                    f,
                    "{:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>8}",
                    "op",
                    "size",
                    "ops/s",
                    "MB/s",
                    "p50 ms",
                    "p99 ms",
                    "errors",
                    "CPU s/GiB",
                    "CPU s/1k",
                    "RSS MiB",
                    "written x",
                    "own CPU"
                )?;
            }
            write!(f, "{phase}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers.as_ref();
        let or_dash = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        writeln!(
            f,
            "{:>7} {:>7} {:>9.1} {:>9.1} {:>9.2} {:>9.2} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7.1}s",
            self.op,
            show_size(self.object_bytes),
            self.ops_per_s,
            self.mb_per_s,
            self.p50_ms,
            self.p99_ms,
            self.errors,
            or_dash(servers.and_then(|cost| cost.cpu_s_per_gib), 2),
            or_dash(servers.map(|cost| cost.cpu_s_per_1000_ops), 3),
            or_dash(servers.map(|cost| (cost.rss_bytes >> 20) as f64), 0),
            or_dash(servers.and_then(|cost| cost.written_per_object_byte), 2),
            self.generator_cpu_s,
        )?;
        if let Some(error) = &self.first_error {
            writeln!(f, "        first error: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_many() {
        assert_eq!(at_quantile(&[], 0.5), 0);
        assert_eq!(at_quantile(&[7], 0.99), 7);
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!((at_quantile(&hundred, 0.5), at_quantile(&hundred, 0.99)), (50, 99));
        assert_eq!(at_quantile(&hundred, 1.0), 100);
    }

    #[test]
    fn a_phase_without_bytes_has_no_cost_per_gib() {
        let after = Usage { cpu_s: 2.0, written_bytes: 10, ..Usage::default() };
        let cost = ServerCost::new(Usage::default(), after, 500, 0);
        assert_eq!(cost.cpu_s_per_gib, None);
        assert!((cost.cpu_s_per_1000_ops - 4.0).abs() < 1e-9);
    }
}
