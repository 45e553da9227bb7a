//! Answers on the terminal: tables like kubectl's, JSON and YAML.
use std::io::{self, Write};

use serde_json::Value;

/// Spaces between columns.
const GAP: &str = "   ";

/// Rows under upper-case headers; columns are as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(headers: [&str; N]) -> Self {
        Self {
            rows: vec![headers.iter().map(|header| (*header).to_owned()).collect()],
        }
    }

    /// Appends a row. Control characters are escaped: some cells come from the network.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.iter().map(|cell| one_line(cell)).collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as lines; no line ends in spaces.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join(GAP).trim_end());
            text.push('\n');
        }
        text
    }
}

/// The cell of a value that is not there.
pub fn or_none(value: Option<&str>) -> String {
    value
        .filter(|value| !value.is_empty())
        .unwrap_or("<none>")
        .to_owned()
}

/// A number of bytes in the largest unit that keeps it above one.
#[allow(clippy::cast_precision_loss)] // Shown with one decimal.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1}{unit}")
}

/// A JSON value with indentation.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A JSON value as YAML.
///
/// # Errors
/// When the value has no YAML form.
pub fn yaml(value: &Value) -> Result<String, serde_norway::Error> {
    serde_norway::to_string(value)
}

/// Writes to standard output; a reader that has gone (as `head` does) is no error.
///
/// # Errors
/// When the output cannot be written for another reason.
pub fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The text with control characters escaped.
pub fn one_line(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["cart-7c9d".to_owned(), "active".to_owned()]);
        table.row(["ü\u{1b}".to_owned(), String::new()]);
        assert_eq!(
            table.render(),
            "NAME        STATE\ncart-7c9d   active\nü\\u{1b}\n"
        );
    }

    #[test]
    fn bytes_are_short() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, 3 << 40].map(bytes);
        assert_eq!(
            shown,
            ["0B", "1023B", "1.0KiB", "1.5KiB", "5.0MiB", "3.0TiB"]
        );
    }
}
