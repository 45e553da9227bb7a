//! `cargo xtask bench`: what the mesh costs, measured against the same topology without a mesh.
//!
//! One run builds two nodes and a fabric from namespaces. Pods that no proxy captures (`none`) and pods
//! of the mesh (`undermesh`) stand side by side on those nodes. Every case is measured once for each of
//! them in every round, one right after the other and in turned order from round to round, so that
//! whatever the machine does meanwhile meets both alike. A figure is the median over the rounds; a ratio
//! to `none` is the median of the rounds' own ratios. CPU is what the kernel accounts to the proxy's
//! processes (user and system time of all their threads, both nodes), divided by the work done.
//! `memory` is the mean of the two nodes.
//!
//! Environment: `UNDERMESH_BIN` names a binary to measure in place of a fresh release build.

mod case;
mod connections;
mod floor;
mod hook;
mod iperf3;
mod machine;
mod median;
mod release;
mod report;
mod scale;
mod series;
mod servers;
mod table;
mod topology;
mod wrk;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use undermesh_tests::place::installed;
use undermesh_tests::{Context, Error, Result, Sandbox, Testbed, usage};

use case::{Case, Figure, Load, Route};
use hook::{CONTRACT, HookSpec};
use machine::Machine;
use report::Report;
use series::{Series, Subject};
use servers::HTTP_PORT;
use topology::{Column, Topology};

/// The programs that make the load.
const PROGRAMS: [&str; 3] = ["wrk", "iperf3", "nginx"];

/// The connections that are open while `memory` is measured.
const IDLE_CONNECTIONS: usize = 1_000;

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs; the same as `--save` writes.
    Json,
}

/// Measures the mesh against no mesh, and against other proxies.
///
/// Takes about cases x 2 x rounds x seconds for each proxy and for none.
#[derive(Debug, Args)]
#[command(after_long_help = CONTRACT, args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// How often every case is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The length of one measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Measure only this case; may be given more than once.
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// Measure one more proxy, which COMMAND starts; may be given more than once.
    #[arg(long, value_name = "NAME=COMMAND")]
    proxy: Vec<HookSpec>,
    /// Leave undermesh itself out.
    #[arg(long)]
    without_undermesh: bool,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Write the result as JSON to this file as well.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// The date to note in the result, taken as it is.
    #[arg(long, value_name = "TEXT")]
    date: Option<String>,
}

/// Another benchmark.
#[derive(Debug, Subcommand)]
enum Part {
    /// Measures the control plane on a generated cluster.
    Scale(scale::Options),
}

/// Runs the benchmark and prints its result. Must be called while the process has one thread. It fails
/// when something cannot be built, started or measured; a missed floor is no failure.
pub fn run(options: &Options) -> ExitCode {
    if let Some(Part::Scale(options)) = &options.part {
        return scale::run(options);
    }
    match try_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<()> {
    require_programs()?;
    hook::require_distinct(&options.proxy)?;
    if !options.without_undermesh {
        release::require_agent()?;
    }
    let machine = Machine::read(options.date.clone());
    let sandbox = Sandbox::enter()?;
    let bed = Testbed::new(&sandbox, "bench")?;
    let series = measure(&bed, options).inspect_err(|_| bed.journal().print())?;
    let report = Report::new(machine, options.rounds, options.seconds, &series);
    let json = report.json()?;
    if let Some(file) = &options.save {
        fs::write(file, &json).context(|| format!("write {}", file.display()))?;
    }
    match options.output {
        Format::Table => print!("{}", report.table()),
        Format::Json => print!("{json}"),
    }
    Ok(())
}

fn require_programs() -> Result<()> {
    match PROGRAMS.iter().find(|program| !installed(program)) {
        None => Ok(()),
        Some(missing) => Err(Error::step(
            format!("find {missing}"),
            "not on the search path; run `cargo xtask setup`",
        )),
    }
}

fn measure(bed: &Testbed, options: &Options) -> Result<Series> {
    let chosen = |case: Case| options.only.is_empty() || options.only.contains(&case);
    let topology = Topology::build(bed, !options.without_undermesh, &options.proxy)?;
    let mut series = Series::new(topology.columns.iter().map(|column| column.name.clone()));
    if chosen(Case::Memory) {
        note_memory(&topology, Figure::IDLE, &mut series)?;
    }
    topology.probe()?;
    if chosen(Case::Memory) {
        note_memory_under_connections(&topology, &mut series)?;
    }
    for case in Case::ALL.into_iter().filter(|case| chosen(*case)) {
        if let Some(load) = case.load() {
            for route in Route::BOTH {
                measure_load(&topology, case, load, route, options, &mut series)?;
            }
        }
    }
    if chosen(Case::Memory) {
        note_memory(&topology, Figure::LOADED, &mut series)?;
    }
    topology.stop();
    Ok(series)
}

fn measure_load(
    topology: &Topology,
    case: Case,
    load: Load,
    route: Route,
    options: &Options,
    series: &mut Series,
) -> Result<()> {
    for round in 0..options.rounds {
        eprintln!("{case} {route}: round {} of {}", round + 1, options.rounds);
        for column in in_turn(&topology.columns, round) {
            let before = column.cpu()?;
            let work = load.put(
                &column.pods.client,
                column.pods.server(route),
                options.seconds,
            )?;
            let cpu = usage::spent(before, column.cpu()?);
            series.note_failures(case, route, &column.name, work.failures());
            for (figure, value) in work.figures(cpu) {
                series.note(
                    Subject {
                        case,
                        route: Some(route),
                        figure,
                    },
                    &column.name,
                    value,
                );
            }
        }
    }
    Ok(())
}

/// The columns in the order of `round`: forwards in the first one, then backwards, and so on.
fn in_turn<T>(columns: &[T], round: u32) -> Vec<&T> {
    let forwards = columns.iter();
    if round.is_multiple_of(2) {
        forwards.collect()
    } else {
        forwards.rev().collect()
    }
}

fn note_memory(topology: &Topology, figures: [Figure; 2], series: &mut Series) -> Result<()> {
    topology
        .columns
        .iter()
        .try_for_each(|column| note_memory_of(column, figures, series))
}

fn note_memory_of(column: &Column, [rss, pss]: [Figure; 2], series: &mut Series) -> Result<()> {
    if let Some(memory) = column.memory_per_node()? {
        for (figure, value) in [(rss, memory.rss), (pss, memory.pss)] {
            let subject = Subject {
                case: Case::Memory,
                route: None,
                figure,
            };
            series.note(subject, &column.name, value);
        }
    }
    Ok(())
}

fn note_memory_under_connections(topology: &Topology, series: &mut Series) -> Result<()> {
    for column in &topology.columns {
        let held = connections::hold(
            &column.pods.client,
            SocketAddr::new(column.pods.server(Route::Across), HTTP_PORT),
            IDLE_CONNECTIONS,
        )?;
        note_memory_of(column, Figure::CONNECTED, series)?;
        drop(held);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_turns_from_round_to_round() {
        let columns = ["none", "mesh", "other"];
        assert_eq!(in_turn(&columns, 0), [&"none", &"mesh", &"other"]);
        assert_eq!(in_turn(&columns, 1), [&"other", &"mesh", &"none"]);
        assert_eq!(in_turn(&columns, 2), in_turn(&columns, 0));
    }
}
