//! Findings as a table for people, and as JSON for programs.
use std::io::{self, Write};

use serde_json::json;
use undermesh_control::{Diagnostic, Severity};

use super::Summary;

/// Spaces between columns.
const GAP: &str = "   ";
/// Columns before the finding itself.
const COLUMNS: usize = 4;

/// Writes a line for each finding, and a summary.
pub(super) fn table(
    findings: &[Diagnostic],
    summary: &Summary,
    out: &mut impl Write,
) -> io::Result<()> {
    if !findings.is_empty() {
        let rows = findings.iter().map(row);
        let rows: Vec<_> = std::iter::once(headers()).chain(rows).collect();
        // A column that is empty throughout, as the place of objects of a cluster, is left out.
        let is_used = |column: usize| {
            rows.iter()
                .skip(1)
                .any(|(cells, _)| !cells[column].is_empty())
        };
        let width = |column: usize| {
            rows.iter()
                .map(|(cells, _)| cells[column].chars().count())
                .max()
        };
        let used = (0..COLUMNS).filter(|column| is_used(*column));
        let widths: Vec<(usize, usize)> = used
            .map(|column| (column, width(column).unwrap_or_default()))
            .collect();
        for (cells, finding) in &rows {
            for (column, width) in &widths {
                write!(out, "{:width$}{GAP}", cells[*column])?;
            }
            writeln!(out, "{finding}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{}", sentence(summary))
}

type Row = ([String; COLUMNS], String);

fn headers() -> Row {
    let cells = ["SEVERITY", "PLACE", "RESOURCE", "FIELD"];
    (cells.map(str::to_owned), "FINDING".to_owned())
}

fn row(finding: &Diagnostic) -> Row {
    let place = match finding.line {
        0 => finding.file.to_string(),
        line => format!("{}:{line}", finding.file),
    };
    let resource = finding.resource.as_ref();
    let cells = [
        severity(finding.severity).to_owned(),
        place,
        resource.map(ToString::to_string).unwrap_or_default(),
        finding.field.to_string(),
    ];
    let text = match finding.remedy.as_str() {
        "" => finding.message.clone(),
        remedy => format!("{}; {remedy}", finding.message),
    };
    (cells.map(|cell| one_line(&cell)), one_line(&text))
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Text without characters that would move the cursor of a terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

fn sentence(summary: &Summary) -> String {
    let count = |number: usize, noun: &str| match number {
        1 => format!("1 {noun}"),
        more => format!("{more} {noun}s"),
    };
    let objects = count(summary.objects, "object");
    if summary.errors + summary.warnings + summary.infos == 0 {
        return format!("No findings in {objects}.");
    }
    format!(
        "{}, {}, {} in {objects}.",
        count(summary.errors, "error"),
        count(summary.warnings, "warning"),
        count(summary.infos, "info"),
    )
}

/// Writes one object: the findings and their counts.
pub(super) fn json(
    findings: &[Diagnostic],
    summary: &Summary,
    out: &mut impl Write,
) -> io::Result<()> {
    let answer = json!({
        "findings": findings,
        "objects": summary.objects,
        "errors": summary.errors,
        "warnings": summary.warnings,
        "infos": summary.infos,
    });
    serde_json::to_writer_pretty(&mut *out, &answer)?;
    writeln!(out)
}
