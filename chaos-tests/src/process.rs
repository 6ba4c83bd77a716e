//! The processes of one zone as a group that cannot outlive its test.
//!
//! A test binary can end in ways that run no destructor: a static zone, a panic in a destructor, `kill -9`. So every
//! group has a watchdog in a group of its own. It reads from a pipe whose other end only this process holds; when that
//! closes, for whatever reason, it kills the zone's group and removes its directory.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

use crate::wait;

/// Kills the group `$0` and, once it is gone, removes the directory `$1`.
const WATCHDOG: &str = r#"
read _
kill -KILL "-$0" 2>/dev/null
tries=0
while kill -0 "-$0" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
[ -z "$1" ] || rm -rf -- "$1"
"#;

/// A process group with its directory.
#[derive(Debug)]
pub struct Group {
    anchor: Child,
    watchdog: Child,
    dir: PathBuf,
}

impl Group {
    /// An empty group and an empty directory. With `HOLDFAST_KEEP` set the directory stays for inspection.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?.keep();
        // Leads the group, so that its id stays valid while the nodes come and go.
        let anchor =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn()?;
        let removed = if std::env::var_os("HOLDFAST_KEEP").is_some() { Path::new("") } else { &dir };
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG])
            .arg(anchor.id().to_string())
            .arg(removed)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        Ok(Self { anchor, watchdog, dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a process in the group, its standard error appended to `log` in the group's directory.
    pub fn spawn(&self, command: &mut Command, log: &str) -> anyhow::Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join(log))?;
        let leader = i32::try_from(self.anchor.id())?;
        command
            .stdin(Stdio::null())
            .stderr(log)
            .process_group(leader)
            .spawn()
            .with_context(|| format!("starting {command:?}"))
    }

    /// The last bytes of a log, for whoever has to explain a failure.
    pub fn log_tail(&self, log: &str) -> String {
        let text = std::fs::read(self.dir.join(log)).unwrap_or_default();
        let start = text.len().saturating_sub(6000);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Reaped here first: the watchdog would wait for a zombie that only we can reap.
        if let Some(leader) = i32::try_from(self.anchor.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        let _ = self.anchor.wait();
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills a process and waits until it is gone or a zombie.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
    wait::until("a killed process to end", Duration::from_secs(20), || (!runs(pid)).then_some(()));
}

/// Whether a process runs: exists and is no zombie.
pub fn runs(pid: u32) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    if test_kill_process(id).is_err() {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X']))
}

/// Resident memory of a process, bytes: the peak so far, or the present.
pub fn rss(pid: u32, peak: bool) -> anyhow::Result<u64> {
    let name = if peak { "VmHWM:" } else { "VmRSS:" };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib << 10)
}

/// One plain HTTP GET; the body of a 200.
pub fn http_get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    use std::io::Write;
    let timeout = Duration::from_secs(10);
    let mut stream = std::net::TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
    anyhow::ensure!(head.split_whitespace().nth(1) == Some("200"), "{head}");
    Ok(body.to_owned())
}

/// The `holdfast` binary of this build, built if it is not there; `HOLDFAST_BIN` names another.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("HOLDFAST_BIN") {
        Some(path) => path.into(),
        None => build().unwrap_or_else(|error| panic!("building holdfast: {error:#}")),
    })
}

fn build() -> anyhow::Result<PathBuf> {
    // target/<profile>/deps/<this test>, or target/<profile>/<this command>
    let this = std::env::current_exe()?;
    let above = this.parent().context("a binary without a directory")?;
    let profile_dir = if above.ends_with("deps") { above.parent() } else { Some(above) };
    let profile_dir = profile_dir.context("a test outside a target directory")?;
    let target_dir = profile_dir.parent().context("a profile outside a target directory")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--package", "holdfast-node", "--bin", "holdfast"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .arg("--target-dir")
        .arg(target_dir);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.stdin(Stdio::null()).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(profile_dir.join("holdfast"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_group_leaves_no_process_and_no_file() {
        let group = Group::new().unwrap();
        let dir = group.dir().to_owned();
        let mut child = group.spawn(Command::new("sleep").arg("1000"), "log").unwrap();
        assert!(runs(child.id()));
        drop(group);
        assert!(!runs(child.id()));
        child.wait().unwrap();
        assert!(!dir.exists());
    }
}
