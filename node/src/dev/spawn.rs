//! One process per node, for `dev --spawn`. Children run `holdfast server` on the configurations of this directory. They
//! die with this process: the kernel kills them when it ends however it ends, and it kills what is left on drop.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::stage;
use super::state::DevState;

/// A stopping node hands its groups over and drains its requests.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// The nodes' processes.
#[derive(Debug)]
pub(super) struct Children {
    children: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    stage: usize,
    child: Child,
    pid: u32,
    ended: bool,
}

impl Children {
    /// Starts all nodes. To be called from the main thread, which lives as long as the process: the kernel ties a child
    /// to the thread that started it.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn start(state: &DevState) -> anyhow::Result<Self> {
        let binary = std::env::current_exe()?;
        let mut children = Vec::new();
        for node in &state.nodes {
            let mut command = Command::new(&binary);
            command
                .args(["server", "--parent", &std::process::id().to_string(), "-c"])
                .arg(&node.config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .kill_on_drop(true);
            if std::env::var_os("HOLDFAST_LOG").is_none() {
                command.env("HOLDFAST_LOG", "warn");
            }
            // A Ctrl-C in the terminal is for the parent, which stops its children in order.
            command.process_group(0);
            let child = command.spawn()?;
            let pid = child.id().unwrap_or_default();
            children.push(Running {
                name: node.name.clone(),
                stage: stage(&node.roles),
                child,
                pid,
                ended: false,
            });
        }
        Ok(Self { children })
    }

    /// The process id of a node, also after it ended.
    pub(super) fn pid(&self, name: &str) -> u32 {
        self.children.iter().find(|running| running.name == name).map_or(0, |running| running.pid)
    }

    /// Returns when a child ends before the zone is ready: the zone cannot become ready.
    pub(super) async fn watch_start(&mut self) -> anyhow::Result<()> {
        loop {
            for running in &mut self.children {
                if let Some(status) = running.child.try_wait()? {
                    anyhow::bail!(
                        "node {} ended while the zone started ({status}); its log says why",
                        running.name
                    );
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reaps children that end, and says so, for ever.
    pub(super) async fn watch(&mut self) {
        loop {
            for running in self.children.iter_mut().filter(|running| !running.ended) {
                if let Ok(Some(status)) = running.child.try_wait() {
                    running.ended = true;
                    tracing::warn!(
                        node = running.name,
                        pid = running.pid,
                        %status,
                        "a node's process ended; `holdfast server -c` on its node.toml brings it back"
                    );
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops gateways, then data nodes, then meta nodes; kills what does not stop.
    pub(super) async fn stop(mut self) {
        for stage in 0..=2 {
            let running = || 0..self.children.len();
            let members: Vec<usize> = running().filter(|at| self.children[*at].stage == stage).collect();
            for at in &members {
                let running = &self.children[*at];
                if !running.ended
                    && let Some(pid) = running.child.id().and_then(|pid| Pid::from_raw(pid as i32))
                {
                    // One that has ended meanwhile needs no signal.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
            }
            for at in members {
                let child = &mut self.children[at].child;
                if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
                    tracing::warn!(
                        node = self.children[at].name,
                        "the node did not stop in time and is killed"
                    );
                    drop(self.children[at].child.kill().await);
                }
            }
        }
    }
}

/// Called first in a child: it is killed when `parent` ends.
///
/// # Errors
/// When the kernel refuses, or the parent has ended already.
pub(crate) fn die_with_parent(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now.map(i64::from) != Some(i64::from(parent)) {
        anyhow::bail!("the process that started this node has ended");
    }
    Ok(())
}
