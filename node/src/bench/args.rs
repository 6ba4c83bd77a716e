//! What to measure, as the command line says it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::s3::{EndpointConfig, Keys};

/// Measures an S3 endpoint.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: Option<BenchCommand>,
    #[command(flatten)]
    pub(super) load: LoadArgs,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum BenchCommand {
    /// What this machine could do at all: a bare hyper server, and plain file writes with fdatasync
    Ceiling(CeilingArgs),
    /// What rebuilding a lost data node costs, and what readers notice of it: kills the process that is named
    Repair(RepairArgs),
}

#[derive(Args, Clone, Debug)]
pub(super) struct RepairArgs {
    /// Process of the data node to kill
    #[arg(long)]
    pub(super) kill: u32,
    /// gRPC address of a meta node, host:port
    #[arg(long)]
    pub(super) zone: String,
    /// Stored before, bytes, KiB, MiB or GiB
    #[arg(long, default_value = "512MiB", value_parser = parse_size)]
    pub(super) fill: u64,
    /// How long the rebuild may take to begin, and to end
    #[arg(long, default_value = "20min", value_parser = humantime::parse_duration)]
    pub(super) patience: Duration,
    #[command(flatten)]
    pub(super) load: LoadArgs,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct CeilingArgs {
    #[command(subcommand)]
    pub(super) command: Option<CeilingCommand>,
    #[command(flatten)]
    pub(super) load: LoadArgs,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum CeilingCommand {
    /// The bare server itself, in a process of its own so that its CPU can be told from the generator's
    #[command(hide = true)]
    Serve,
}

#[derive(Args, Clone, Debug)]
pub(super) struct LoadArgs {
    /// The S3 endpoint
    #[arg(long, env = "AWS_ENDPOINT_URL", default_value = "http://127.0.0.1:9000")]
    pub(super) endpoint: String,
    #[arg(long, env = "AWS_ACCESS_KEY_ID", default_value = "")]
    pub(super) access_key: String,
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", default_value = "", hide_env_values = true)]
    pub(super) secret_key: String,
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub(super) region: String,
    /// PEM file of the CA to trust for https, instead of the system's
    #[arg(long)]
    pub(super) ca: Option<PathBuf>,
    /// Requests in flight
    #[arg(long, short = 'c', default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) concurrency: u32,
    /// How long each operation is measured at each size
    #[arg(long, short = 'd', default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// Object sizes in bytes, KiB or MiB
    #[arg(long, value_delimiter = ',', default_value = "4KiB,256KiB,8MiB,64MiB", value_parser = parse_size)]
    pub(super) sizes: Vec<u64>,
    /// Operations to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get,mixed,head,list,delete")]
    pub(super) ops: Vec<Op>,
    /// Objects larger than this are uploaded in parts of this size
    #[arg(long, default_value = "8MiB", value_parser = parse_size)]
    pub(super) part_size: u64,
    /// Whether bodies are covered by the signature
    #[arg(long, value_enum, default_value = "unsigned")]
    pub(super) payload: Payload,
    /// Server process whose CPU, memory and writes are measured; repeatable
    #[arg(long = "pid")]
    pub(super) pids: Vec<u32>,
    /// Directory for the ceiling's files
    #[arg(long, default_value = ".")]
    pub(super) dir: PathBuf,
    /// Also measure the ceiling, after the endpoint
    #[arg(long)]
    pub(super) with_ceiling: bool,
    /// Machine-readable results
    #[arg(long)]
    pub(super) json: bool,
}

impl LoadArgs {
    /// Where requests go.
    pub(super) fn s3(&self) -> EndpointConfig {
        EndpointConfig {
            endpoint: self.endpoint.clone(),
            keys: Keys {
                access_key: self.access_key.clone(),
                secret_key: self.secret_key.clone(),
                region: self.region.clone(),
            },
            ca: self.ca.clone(),
            sign_bodies: self.payload == Payload::Signed,
        }
    }
}

/// One measured operation. The order is the order of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Op {
    Put,
    Get,
    /// Seven GETs to three PUTs
    Mixed,
    Head,
    /// Pages of 1,000 keys
    List,
    Delete,
}

impl Op {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Get => "GET",
            Self::Mixed => "mixed",
            Self::Head => "HEAD",
            Self::List => "LIST",
            Self::Delete => "DELETE",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Payload {
    /// UNSIGNED-PAYLOAD
    Unsigned,
    /// SHA-256 of the body, as clients do over plain http
    Signed,
}

/// `4KiB`, `8MiB`, `1GiB` or plain bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        other => return Err(format!("unknown unit {other:?}: use KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("no size: {text:?}"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or_else(|| format!("too large: {text}"))
}

/// The inverse of [`parse_size`], in the largest unit that divides.
pub(super) fn show_size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        b if b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => b.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_shown() {
        for bytes in [1, 1000, 4 << 10, 8 << 20, 1 << 30, 5 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
        assert!(parse_size("4KB").is_err());
        assert!(parse_size("").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
