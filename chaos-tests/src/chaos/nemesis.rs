//! What goes wrong while clients work, and is made good again: one thing at a time, each within what a zone has to bear.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::cluster::{Node, Zone};
use crate::process;
use crate::wait;

/// How long a fault lasts.
const LASTS: std::ops::Range<u64> = 2_000..12_000;
/// Until a node may be stopped, or is back.
const PATIENCE: Duration = Duration::from_secs(180);
/// Bits flipped at a time.
const FLIPS: usize = 3;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Nemesis {
    /// kill -9 of a data node.
    KillData,
    /// kill -9 of a meta node.
    KillMeta,
    /// kill -9 of the meta node that leads the most groups.
    KillLeader,
    /// kill -9 of a data node and a meta node at once.
    KillBoth,
    /// kill -9 of the gateway.
    KillGateway,
    /// A data node answers nothing, with its sockets open.
    FreezeData,
    /// A meta node likewise.
    FreezeMeta,
    /// The gateway likewise.
    FreezeGateway,
    /// Every meta node and data node in turn: asked, stopped, started.
    Rolling,
    /// kill -9 of everything at once, and a start.
    PowerCut,
    /// Bits on a disk; always of the same data node, so that no stripe loses more than its code bears.
    FlipBits,
}

impl Nemesis {
    /// All of them, by the names they have on the command line.
    pub const ALL: [(&'static str, Self); 11] = [
        ("kill-data", Self::KillData),
        ("kill-meta", Self::KillMeta),
        ("kill-leader", Self::KillLeader),
        ("kill-both", Self::KillBoth),
        ("kill-gateway", Self::KillGateway),
        ("freeze-data", Self::FreezeData),
        ("freeze-meta", Self::FreezeMeta),
        ("freeze-gateway", Self::FreezeGateway),
        ("rolling", Self::Rolling),
        ("power-cut", Self::PowerCut),
        ("flip-bits", Self::FlipBits),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, nemesis)| *nemesis == self).map_or("?", |(name, _)| name)
    }

    /// Does it and makes it good again; what was done, in words.
    pub fn strike(self, zone: &mut Zone, rng: &mut SmallRng) -> anyhow::Result<String> {
        let lasts = Duration::from_millis(rng.random_range(LASTS));
        let mut any = |role: &str| {
            let nodes = zone.nodes(role);
            nodes[rng.random_range(0..nodes.len())].clone()
        };
        match self {
            Self::KillData => kill(zone, &[any("data")], lasts),
            Self::KillMeta => kill(zone, &[any("meta")], lasts),
            Self::KillLeader => {
                let leader = zone.leader();
                kill(zone, &[leader], lasts)
            }
            Self::KillBoth => kill(zone, &[any("data"), any("meta")], lasts),
            Self::KillGateway => kill(zone, &[any("gateway")], lasts),
            Self::FreezeData => freeze(zone, &any("data"), lasts),
            Self::FreezeMeta => freeze(zone, &any("meta"), lasts),
            Self::FreezeGateway => freeze(zone, &any("gateway"), lasts),
            Self::Rolling => rolling(zone),
            Self::PowerCut => power_cut(zone),
            Self::FlipBits => flip_bits(zone, rng),
        }
    }
}

fn name(node: &Node) -> String {
    format!("{} {}.{}", node.roles.join("+"), node.id >> 48, node.id & ((1 << 48) - 1))
}

fn kill(zone: &mut Zone, nodes: &[Node], lasts: Duration) -> anyhow::Result<String> {
    nodes.iter().for_each(|node| zone.kill(node));
    std::thread::sleep(lasts);
    for node in nodes {
        zone.revive(node)?;
    }
    let names: Vec<String> = nodes.iter().map(name).collect();
    Ok(format!("killed {}, and started {:.1} s later", names.join(" and "), lasts.as_secs_f64()))
}

fn freeze(zone: &Zone, node: &Node, lasts: Duration) -> anyhow::Result<String> {
    zone.stop(node);
    std::thread::sleep(lasts);
    zone.resume(node);
    Ok(format!("froze {} for {:.1} s", name(node), lasts.as_secs_f64()))
}

fn rolling(zone: &mut Zone) -> anyhow::Result<String> {
    let nodes: Vec<Node> = ["meta", "data"].iter().flat_map(|role| zone.nodes(role)).collect();
    for node in &nodes {
        let id = format!("{}.{}", node.id >> 48, node.id & ((1 << 48) - 1));
        wait::until("a node that may be stopped", PATIENCE, || {
            zone.cli(&["node", "ok-to-stop", &id]).status.success().then_some(())
        });
        zone.end(node);
        zone.revive(node)?;
    }
    Ok(format!("restarted {} nodes in turn", nodes.len()))
}

/// Every process dies at once; what was not fsynced and the kernel has is still there, so it is no power cut to a disk.
fn power_cut(zone: &mut Zone) -> anyhow::Result<String> {
    let mut nodes: Vec<Node> = zone.zone().nodes.clone();
    for node in &nodes {
        process::signal(node.pid, rustix::process::Signal::KILL);
    }
    nodes.iter().for_each(|node| process::kill(node.pid));
    // Meta nodes first, and not one after the other: none is whole without the others.
    nodes.sort_by_key(|node| !node.is("meta"));
    zone.revive_all(&nodes)?;
    Ok(format!("killed all {} processes at once", nodes.len()))
}

fn flip_bits(zone: &Zone, rng: &mut SmallRng) -> anyhow::Result<String> {
    let victim = zone.nodes("data").remove(0);
    let segments = victim.data_dir.join("target").join("segments");
    let files: Vec<_> = std::fs::read_dir(&segments)
        .with_context(|| segments.display().to_string())?
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.len() > 1 << 20))
        .map(|entry| entry.path())
        .collect();
    anyhow::ensure!(!files.is_empty(), "no segment is there yet");
    for _ in 0..FLIPS {
        let path = &files[rng.random_range(0..files.len())];
        let file = File::options().read(true).write(true).open(path)?;
        let at = rng.random_range(0..file.metadata()?.len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << rng.random_range(0..8))], at)?;
    }
    Ok(format!("flipped {FLIPS} bits of {}", name(&victim)))
}
