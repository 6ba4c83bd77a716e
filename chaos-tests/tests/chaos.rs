//! Chaos in short: a minute of faults leaves every invariant, and every plant is found.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use holdfast_chaos::chaos::clients::Plant;
use holdfast_chaos::chaos::nemesis::Nemesis;
use holdfast_chaos::chaos::report;
use holdfast_chaos::chaos::run::{self, Plan, Report};
use tokio::sync::Mutex;

/// Two zones at once would measure the machine.
static ONE_ZONE: Mutex<()> = Mutex::const_new(());

fn plan(nemeses: &[Nemesis], seconds: u64, plant: Option<Plant>) -> Plan {
    Plan {
        nemeses: nemeses.to_vec(),
        lasts: Duration::from_secs(seconds),
        clients: 8,
        seed: 11,
        plant,
        data_nodes: 8,
        data_dir: None,
    }
}

fn violated(report: &Report) -> Vec<(&'static str, String)> {
    let of = |invariant: &run::Invariant| {
        invariant.violations.first().map(|first| (invariant.name, first.clone()))
    };
    report.invariants.iter().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_leave_every_invariant() {
    let _one = ONE_ZONE.lock().await;
    let nemeses = [
        Nemesis::KillBoth,
        Nemesis::KillLeader,
        Nemesis::FreezeData,
        Nemesis::FreezeMeta,
        Nemesis::KillGateway,
        Nemesis::PowerCut,
        Nemesis::FlipBits,
    ];
    let report = run::run(&plan(&nemeses, 60, None), |text| eprintln!("{text}")).await.unwrap();
    assert_eq!(violated(&report), Vec::new(), "repeat it: {}", report.repeat);
    assert!(report.faults.len() >= 3 && report.attempts > 500, "{} {}", report.faults.len(), report.attempts);
    assert!(report.invariants.iter().all(|invariant| invariant.checked > 0), "{:?}", report.invariants);
    let unjudged: u64 = report.invariants.iter().map(|invariant| invariant.unjudged).sum();
    assert!(unjudged < report.attempts / 5, "{unjudged} of {} attempts were not judged", report.attempts);
    let page = report::html(&report);
    assert!(page.contains("every invariant holds") && page.contains(&report.faults[0].what), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_plant_is_found() {
    let _one = ONE_ZONE.lock().await;
    let registers = "registers are linearizable";
    let listings = "listings show what is there";
    let bodies = "bodies are those that were stored";
    let zone = run::start(&plan(&[], 0, None)).await.unwrap();
    for (name, plant) in Plant::ALL {
        let expected = match plant {
            Plant::LostWrite | Plant::StaleRead | Plant::DeletedBack | Plant::BlindSwap => registers,
            Plant::Phantom | Plant::LostKey => listings,
            Plant::WrongBytes | Plant::HalfUpload => bodies,
        };
        let invariants = run::lies(&zone, plant, 8, Duration::from_secs(8)).await.unwrap();
        let found = invariants.iter().find(|invariant| invariant.name == expected).unwrap();
        assert!(!found.violations.is_empty(), "{name} was not found: {invariants:?}");
    }
    tokio::task::spawn_blocking(move || drop(zone)).await.unwrap();
}
