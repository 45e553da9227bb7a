//! The result of a run, as JSON and as a table.

use std::fmt::Write;

use serde::Serialize;
use undermesh_tests::{Context, Result};

use super::case::{Case, Figure, Route};
use super::floor::Floor;
use super::machine::Machine;
use super::median::{median, paired_ratio};
use super::series::{Series, Subject};
use super::table::{Align, Table};
use super::topology::{NONE, UNDERMESH};

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    rounds: u32,
    seconds: u64,
    columns: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<Failures>,
}

/// One figure of one case, for every column.
#[derive(Debug, Serialize)]
struct Row {
    case: Case,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Route>,
    figure: Figure,
    /// In the order of the report's columns.
    cells: Vec<Option<Cell>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<FloorMark>,
}

/// The figure of one column.
#[derive(Debug, Serialize)]
struct Cell {
    median: f64,
    /// To `none`: the median of the rounds' own ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    rounds: Vec<f64>,
}

/// A floor, and whether undermesh kept it.
#[derive(Debug, Serialize)]
struct FloorMark {
    bound: Floor,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
}

/// Requests or connections that failed.
#[derive(Debug, Serialize)]
struct Failures {
    case: Case,
    route: Route,
    column: String,
    count: u64,
}

impl Report {
    /// The medians and ratios of `series`.
    pub fn new(machine: Machine, rounds: u32, seconds: u64, series: &Series) -> Self {
        Self {
            machine,
            rounds,
            seconds,
            columns: series.columns().to_vec(),
            rows: series
                .subjects()
                .map(|subject| Row::new(subject, series))
                .collect(),
            failures: series
                .failures()
                .map(|(case, route, column, count)| Failures {
                    case,
                    route,
                    column: column.to_owned(),
                    count,
                })
                .collect(),
        }
    }

    /// The result for programs.
    ///
    /// # Errors
    /// When a figure is no number.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).context(|| "write the result as JSON")?;
        Ok(json + "\n")
    }

    /// The result for people.
    pub fn table(&self) -> String {
        let mut text = self.heading();
        let mut table = Table::new(self.table_headings());
        for row in &self.rows {
            table.push(row.cells_of_table(&self.columns));
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{table}");
        for failure in &self.failures {
            let _ = writeln!(
                text,
                "{} {} {}: {} failures",
                failure.case, failure.route, failure.column, failure.count
            );
        }
        text
    }

    fn heading(&self) -> String {
        let machine = &self.machine;
        let date = machine
            .date
            .as_ref()
            .map(|date| format!(", {date}"))
            .unwrap_or_default();
        format!(
            "Linux {}, {} ({} cores, load {} before), TCP {}, commit {}{}\n\
             Rounds: {}, of {} s each; medians, and ratios to none round by round\n\n",
            machine.kernel,
            machine.processor,
            machine.cores,
            machine.load_before,
            machine.tcp_congestion_control,
            machine.commit,
            date,
            self.rounds,
            self.seconds,
        )
    }

    fn table_headings(&self) -> Vec<(String, Align)> {
        let left = |text: &str| (text.to_owned(), Align::Left);
        let right = |text: &str| (text.to_owned(), Align::Right);
        let mut headings = vec![left("case"), left("route"), left("figure")];
        for column in &self.columns {
            headings.push(right(column));
            if column != NONE {
                headings.push(right("ratio"));
            }
        }
        headings.push(left("floor"));
        headings
    }
}

impl Row {
    fn new(subject: Subject, series: &Series) -> Self {
        let cells: Vec<_> = series
            .columns()
            .iter()
            .map(|column| Cell::new(subject, column, series))
            .collect();
        let undermesh = series
            .columns()
            .iter()
            .position(|column| column == UNDERMESH);
        let undermesh = undermesh.and_then(|column| cells[column].as_ref());
        let floor = Floor::of(subject.case, subject.route, subject.figure).map(|bound| FloorMark {
            bound,
            reached: undermesh.and_then(|cell| bound.reached(cell.median, cell.ratio)),
        });
        Self {
            case: subject.case,
            route: subject.route,
            figure: subject.figure,
            cells,
            floor,
        }
    }

    fn cells_of_table(&self, columns: &[String]) -> Vec<String> {
        let mut row = vec![
            self.case.to_string(),
            self.route
                .map(|route| route.to_string())
                .unwrap_or_default(),
            self.figure.to_string(),
        ];
        for (column, cell) in columns.iter().zip(&self.cells) {
            row.push(number(cell.as_ref().map(|cell| cell.median)));
            if column != NONE {
                row.push(number(cell.as_ref().and_then(|cell| cell.ratio)));
            }
        }
        row.push(
            self.floor
                .as_ref()
                .map(FloorMark::to_text)
                .unwrap_or_default(),
        );
        row
    }
}

impl Cell {
    fn new(subject: Subject, column: &str, series: &Series) -> Option<Self> {
        let rounds = series.values(subject, column);
        let base = series.values(subject, NONE);
        Some(Self {
            median: median(rounds)?,
            ratio: (column != NONE)
                .then(|| paired_ratio(rounds, base))
                .flatten(),
            rounds: rounds.to_vec(),
        })
    }
}

impl FloorMark {
    fn to_text(&self) -> String {
        let mark = match self.reached {
            Some(true) => "  reached",
            Some(false) => "  missed",
            None => "",
        };
        format!("{}{mark}", self.bound)
    }
}

/// Three digits that matter, or `-`.
fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            kernel: "6.1".to_owned(),
            processor: "a processor".to_owned(),
            cores: 2,
            load_before: "0.01".to_owned(),
            tcp_congestion_control: "cubic".to_owned(),
            commit: "abc".to_owned(),
            date: None,
        }
    }

    fn report() -> Report {
        let mut series = Series::new([NONE, UNDERMESH, "other"].map(str::to_owned));
        let requests = Subject {
            case: Case::Http64,
            route: Some(Route::Across),
            figure: Figure::Requests,
        };
        let cpu = Subject {
            figure: Figure::CpuPerRequest,
            ..requests
        };
        for (none, undermesh, other) in [(100.0, 30.0, 10.0), (50.0, 15.0, 6.0), (80.0, 24.0, 9.0)]
        {
            series.note(requests, NONE, none);
            series.note(requests, UNDERMESH, undermesh);
            series.note(requests, "other", other);
        }
        series.note(cpu, UNDERMESH, 60.0);
        series.note_failures(Case::Http64, Route::Across, "other", 3);
        Report::new(machine(), 3, 5, &series)
    }

    #[test]
    fn every_figure_stands_beside_no_mesh_and_its_floor() {
        assert_eq!(
            report().table(),
            "Linux 6.1, a processor (2 cores, load 0.01 before), TCP cubic, commit abc\n\
             Rounds: 3, of 5 s each; medians, and ratios to none round by round\n\
             \n\
             case     route   figure                 none  undermesh  ratio  other  ratio  floor\n\
             http-64  across  requests/s             80.0       24.0   0.30   9.00   0.11  ratio >= 0.19  reached\n\
             http-64  across  proxy CPU, us/request     -       60.0      -      -      -  <= 53  missed\n\
             http-64 across other: 3 failures\n"
        );
    }

    #[test]
    fn json_has_the_medians_the_ratios_and_all_rounds() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["case"], "http-64");
        assert_eq!(row["figure"], "requests");
        assert_eq!(row["cells"][1]["median"], 24.0);
        assert_eq!(row["cells"][1]["rounds"][1], 15.0);
        assert_eq!(row["floor"]["bound"]["ratio-at-least"], 0.19);
        assert_eq!(row["floor"]["reached"], true);
        assert_eq!(json["rows"][1]["cells"][0], serde_json::Value::Null);
        assert_eq!(json["failures"][0]["count"], 3);
    }
}
