//! The parts of the run, in their order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use undermesh_tests::{Result, Testbed};

use crate::churn::Churn;
use crate::fleet::Fleet;
use crate::ledger::Ledger;
use crate::pair::Pair;
use crate::plan::Plan;
use crate::report::{Phase, Report};
use crate::size::Size;
use crate::world::World;

/// The memory that the controller may use, in MiB.
const CONTROLLER_MEMORY: f64 = 700.0;
/// The time within which 99 of 100 changes are to be with a node, in milliseconds.
const DELAY: f64 = 100.0;
/// The memory that an agent may use, in MiB.
const NODE_MEMORY: f64 = 60.0;
/// How long the last changes may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most pods that are replaced while the controller is away.
const REPLACED_MEANWHILE: u32 = 20;

/// Measures everything.
///
/// # Errors
/// When a part fails; a figure that is larger than it should be is no failure.
pub fn run(bed: &Testbed, size: &Size, with_node: bool) -> Result<Report> {
    let mut report = Report::default();
    let plan = Arc::new(Plan::new(size));
    let world = World::new(bed)?;
    // While this process is small: each program that it starts costs a copy of its page tables.
    let pair = with_node.then(|| build_pair(&world, &plan)).transpose()?;
    world.fill(&plan);
    start(&world, &mut report)?;
    let ledger = Arc::new(Ledger::default());
    let mut fleet = join(&world, &plan, &ledger, &mut report)?;
    let mut churn = Churn::new(&plan, &ledger);
    replace_pods(&world, &mut fleet, &mut churn, &ledger, size, &mut report)?;
    restart(&world, &mut fleet, &mut churn, &ledger, size, &mut report)?;
    if let Some(pair) = pair {
        node(&pair, &mut report)?;
    }
    Ok(report)
}

/// Builds the real nodes under a controller of their own, which ends before the cluster grows.
fn build_pair(world: &World<'_>, plan: &Plan) -> Result<Pair> {
    eprintln!("node: two real nodes");
    world.cluster.start_controller(&[])?;
    let pair = Pair::build(world, plan)?;
    world.cluster.stop_controller()?;
    Ok(pair)
}

fn start(world: &World<'_>, report: &mut Report) -> Result<()> {
    eprintln!("start: the controller lists the cluster");
    let begun = Instant::now();
    world.cluster.start_controller(&[])?;
    report.note(Phase::Start, "ready, s", begun.elapsed().as_secs_f64());
    let cpu = world.cpu()?.as_secs_f64();
    report.note(Phase::Start, "controller CPU, s", cpu);
    let (rss, peak) = world.memory()?;
    report.note(Phase::Start, "controller RSS, MiB", rss);
    report.note(Phase::Start, "controller peak RSS, MiB", peak);
    Ok(())
}

fn join(
    world: &World<'_>,
    plan: &Arc<Plan>,
    ledger: &Arc<Ledger>,
    report: &mut Report,
) -> Result<Fleet> {
    let nodes = plan.size().nodes;
    eprintln!("join: {nodes} nodes");
    let server = world.server()?;
    let (cpu, begun) = (world.cpu()?, Instant::now());
    let joined = Fleet::join(plan, &server, ledger);
    let fleet = world.runtime.block_on(joined)?;
    report.note(Phase::Join, "all served, s", begun.elapsed().as_secs_f64());
    report.note(
        Phase::Join,
        "controller CPU, s",
        (world.cpu()? - cpu).as_secs_f64(),
    );
    let received = fleet.received();
    let each = float(received.bytes) / f64::from(nodes);
    report.note(Phase::Join, "to a node, KiB", each / 1024.0);
    report.note(Phase::Join, "failed attempts", float(fleet.failures()));
    note_memory(world, Phase::Join, report)?;
    Ok(fleet)
}

fn replace_pods(
    world: &World<'_>,
    fleet: &mut Fleet,
    churn: &mut Churn,
    ledger: &Ledger,
    size: &Size,
    report: &mut Report,
) -> Result<()> {
    let count = size.churn * size.seconds;
    eprintln!("churn: {count} pods, {} a second", size.churn);
    let (cpu, before) = (world.cpu()?, fleet.received());
    let replaced = churn.run(&world.api, size.churn, count);
    let time = world.server_runtime.block_on(replaced).as_secs_f64();
    let missed = world.runtime.block_on(ledger.settle(PATIENCE));
    let (cpu, after) = ((world.cpu()? - cpu).as_secs_f64(), fleet.received());
    let delays = ledger.take_delays();
    let phase = Phase::Churn;
    let replaced = f64::from(count);
    report.note(phase, "pods replaced/s", replaced / time);
    report.note(phase, "changes that arrived", float(delays.len()));
    report.note_bounded(phase, "changes that did not arrive", float(missed), 0.0);
    report.note(phase, "write to node, p50, ms", percentile(&delays, 50));
    report.note_bounded(
        phase,
        "write to node, p99, ms",
        percentile(&delays, 99),
        DELAY,
    );
    report.note(
        phase,
        "write to node, longest, ms",
        percentile(&delays, 100),
    );
    report.note(
        phase,
        "controller CPU, s/1,000 pods",
        1000.0 * cpu / replaced,
    );
    let nodes = f64::from(size.nodes);
    let each = |all: u64| float(all) / nodes / time;
    report.note(
        phase,
        "to a node, responses/s",
        each(after.messages - before.messages),
    );
    report.note(
        phase,
        "to a node, KiB/s",
        each(after.bytes - before.bytes) / 1024.0,
    );
    note_memory(world, phase, report)?;
    world.runtime.block_on(fleet.settle())
}

fn restart(
    world: &World<'_>,
    fleet: &mut Fleet,
    churn: &mut Churn,
    ledger: &Ledger,
    size: &Size,
    report: &mut Report,
) -> Result<()> {
    eprintln!("restart: the controller is killed");
    let phase = Phase::Restart;
    let (before, failures) = (fleet.mark(), fleet.failures());
    world.cluster.kill_controller()?;
    let replacements = REPLACED_MEANWHILE.min(size.churn);
    let replaced = churn.run(&world.api, size.churn, replacements);
    world.server_runtime.block_on(replaced);
    let begun = Instant::now();
    world.cluster.start_controller(&[])?;
    report.note(phase, "ready, s", begun.elapsed().as_secs_f64());
    world.runtime.block_on(fleet.served_since(&before))?;
    report.note(phase, "all served, s", begun.elapsed().as_secs_f64());
    let missed = world.runtime.block_on(ledger.settle(PATIENCE));
    report.note_bounded(phase, "changes that did not arrive", float(missed), 0.0);
    world.runtime.block_on(fleet.settle())?;
    let forgetful = fleet.forgetful(usize::try_from(replacements).unwrap_or(usize::MAX));
    report.note_bounded(phase, "nodes that forgot", float(forgetful), 0.0);
    let refused = float(fleet.failures() - failures);
    report.note(phase, "attempts before it was back", refused);
    report.note(phase, "controller CPU, s", world.cpu()?.as_secs_f64());
    note_memory(world, phase, report)
}

fn node(pair: &Pair, report: &mut Report) -> Result<()> {
    eprintln!("node: it talks");
    let phase = Phase::Node;
    report.note(phase, "pods in the mesh", float(pair.pods()));
    report.note(phase, "before it talks, RSS, MiB", pair.memory()?.rss);
    let connections = pair.talk()?;
    report.note(phase, "services it talks to", float(connections.len()));
    let memory = pair.memory()?;
    report.note_bounded(phase, "RSS, MiB", memory.rss, NODE_MEMORY);
    report.note(phase, "PSS, MiB", memory.pss);
    Ok(())
}

fn note_memory(world: &World<'_>, phase: Phase, report: &mut Report) -> Result<()> {
    let (rss, peak) = world.memory()?;
    report.note_bounded(phase, "controller RSS, MiB", rss, CONTROLLER_MEMORY);
    report.note_bounded(phase, "controller peak RSS, MiB", peak, CONTROLLER_MEMORY);
    Ok(())
}

/// The value that so many percent do not exceed, in milliseconds; `sorted` is in ascending order.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    let value = sorted.get(rank - 1).copied().unwrap_or_default();
    value.as_secs_f64() * 1e3
}

/// Counts stay far below 2^53, where this would round.
#[allow(clippy::cast_precision_loss)]
fn float(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), 100.0);
        assert_eq!(percentile(&sorted, 99), 198.0);
        assert_eq!(percentile(&sorted, 100), 200.0);
        assert_eq!(percentile(&[], 99), 0.0);
    }
}
