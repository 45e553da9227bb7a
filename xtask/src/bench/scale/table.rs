//! The figures for people.

use super::Row;
use crate::bench::table::{Align, Table};

/// The rows as a table.
pub fn of(rows: &[Row]) -> Table {
    let headings = [
        ("phase", Align::Left),
        ("figure", Align::Left),
        ("value", Align::Right),
        ("bound", Align::Left),
    ];
    let mut table = Table::new(headings.map(|(text, align)| (text.to_owned(), align)));
    for row in rows {
        table.push(vec![
            row.phase.clone(),
            row.figure.clone(),
            number(row.value),
            row.at_most
                .map(|most| bound(row.value, most))
                .unwrap_or_default(),
        ]);
    }
    table
}

fn bound(value: f64, most: f64) -> String {
    let kept = if value <= most { "reached" } else { "missed" };
    format!("<= {most}  {kept}")
}

/// Whole numbers as they are, others with three digits that count.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_bound_is_kept() {
        let row = |figure: &str, value, at_most| Row {
            phase: "churn".to_owned(),
            figure: figure.to_owned(),
            value,
            at_most,
        };
        let rows = [
            row("write to node, p99, ms", 104.25, Some(100.0)),
            row("changes", 4000.0, None),
            row("controller RSS, MiB", 61.5, Some(700.0)),
        ];
        assert_eq!(
            of(&rows).to_string(),
            "phase  figure                  value  bound\n\
             churn  write to node, p99, ms    104  <= 100  missed\n\
             churn  changes                  4000\n\
             churn  controller RSS, MiB      61.5  <= 700  reached\n"
        );
    }
}
