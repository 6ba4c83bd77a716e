//! The ceiling: the same load on a bare hyper server that sinks and serves the same bodies, and on plain files with
//! fdatasync. Whatever a zone does above these numbers is its own work; below them it cannot go on this machine.

use std::convert::Infallible;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::args::{LoadArgs, Op, parse_size};
use super::body::Source;
use super::load;
use super::process;
use super::report::{Cost, Phase, Report, Tally};

/// One file of the file ceiling is begun anew after this many bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// How long the bare server may take to say where it listens.
const START: Duration = Duration::from_secs(10);

/// Measures both ceilings with the load's sizes, concurrency and duration.
pub(super) async fn run(args: &LoadArgs) -> anyhow::Result<Report> {
    let mut report = bare_server(args).await?;
    for bytes in &args.sizes {
        report.phases.push(files(args, *bytes).await?);
    }
    Ok(report)
}

async fn bare_server(args: &LoadArgs) -> anyhow::Result<Report> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["bench", "ceiling", "serve"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the bare server")?;
    let stdout = server.stdout.take().context("standard output is piped")?;
    let mut line = String::new();
    tokio::time::timeout(START, BufReader::new(stdout).read_line(&mut line))
        .await
        .context("the bare server does not listen")??;
    let args = LoadArgs {
        endpoint: line.trim().to_owned(),
        pids: server.id().into_iter().collect(),
        ops: vec![Op::Put, Op::Get, Op::Head],
        ..args.clone()
    };
    let report = load::run_sink(&args, "bare hyper").await?;
    server.kill().await?;
    Ok(report)
}

/// The bare server: prints its URL, answers until its standard input ends.
pub(super) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "http://{}", listener.local_addr()?)?;
        out.flush()?;
    }
    // As large as what it may be asked for in one piece; larger bodies repeat it.
    let source = Source::new(8 << 20)?;
    let mut connections = JoinSet::new();
    let mut parent = tokio::io::stdin();
    let mut byte = [0];
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let source = source.clone();
                let service = service_fn(move |request| answer(request, source.clone()));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
            // A connection that failed is the client's to report.
            Some(_) = connections.join_next() => {}
            _ = parent.read(&mut byte) => return Ok(()),
        }
    }
}

type Answer = http::Response<http_body_util::Either<Full<Bytes>, Repeated>>;

async fn answer(request: http::Request<Incoming>, source: Source) -> Result<Answer, hyper::Error> {
    let (parts, mut body) = request.into_parts();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    let mut response = http::Response::builder().header("etag", "\"0\"");
    let body = match parts.method.as_str() {
        "GET" => {
            http_body_util::Either::Right(Repeated { piece: source, left: asked_bytes(parts.uri.path()) })
        }
        "HEAD" => {
            response = response.header("content-length", asked_bytes(parts.uri.path()));
            http_body_util::Either::Left(Full::default())
        }
        "POST" => http_body_util::Either::Left(Full::from("<R><UploadId>0</UploadId></R>")),
        _ => http_body_util::Either::Left(Full::default()),
    };
    Ok(response.body(body).expect("constant headers are valid"))
}

/// The size in `/bucket/<size>/<number>`.
fn asked_bytes(path: &str) -> u64 {
    path.split('/').nth(2).and_then(|size| parse_size(size).ok()).unwrap_or(0)
}

/// A body of any length, in pieces of at most 1 MiB.
struct Repeated {
    piece: Source,
    left: u64,
}

impl http_body::Body for Repeated {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let bytes = self.left.min(1 << 20);
        if bytes == 0 {
            return std::task::Poll::Ready(None);
        }
        self.left -= bytes;
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(self.piece.cut(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left)
    }
}

/// Appends of `bytes`, each with fdatasync before it counts, by as many writers as the load has requests in flight.
async fn files(args: &LoadArgs, bytes: u64) -> anyhow::Result<Phase> {
    let dir = args.dir.join(format!("holdfast-bench-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let source = Source::new(bytes)?;
    let own = [std::process::id()];
    let before = process::read(&own)?;
    let begun = Instant::now();
    let end = begun + args.duration;
    let mut writers = JoinSet::new();
    for writer in 0..args.concurrency {
        let (path, source) = (dir.join(writer.to_string()), source.clone());
        writers.spawn_blocking(move || append_until(&path, &source, bytes, end));
    }
    let mut tally = Tally::default();
    while let Some(part) = writers.join_next().await {
        tally.merge(part??);
    }
    let (elapsed, after) = (begun.elapsed(), process::read(&own)?);
    std::fs::remove_dir_all(&dir)?;
    let cost = Cost { servers: Some((before, after)), generator: (after, after) };
    Ok(Phase::new("plain files, fdatasync", "write", bytes, elapsed, tally, cost))
}

fn append_until(path: &Path, source: &Source, bytes: u64, end: Instant) -> anyhow::Result<Tally> {
    let file = std::fs::File::create(path)?;
    let (mut tally, mut offset) = (Tally::default(), 0);
    while Instant::now() < end {
        let begun = Instant::now();
        file.write_all_at(&source.cut(bytes), offset)?;
        file.sync_data()?;
        tally.done(bytes, begun.elapsed());
        offset += bytes;
        if offset >= FILE_BYTES_MAX {
            file.set_len(0)?;
            offset = 0;
        }
    }
    Ok(tally)
}
