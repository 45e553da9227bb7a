//! A table of text for people.

use std::fmt;

/// Space between two columns.
const GAP: &str = "  ";

/// Where the text of a column stands in its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// At the left: words.
    Left,
    /// At the right: numbers.
    Right,
}

/// Rows of cells under a heading.
#[derive(Debug)]
pub struct Table {
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column headings.
    pub fn new(headings: impl IntoIterator<Item = (String, Align)>) -> Self {
        let (headings, aligns) = headings.into_iter().unzip();
        Self {
            aligns,
            rows: vec![headings],
        }
    }

    /// Adds a row; cells beyond the headings are not shown.
    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    fn width(&self, column: usize) -> usize {
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, align)) in row.iter().zip(&self.aligns).enumerate() {
                let width = self.width(column);
                let padding = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => line.extend([cell, &padding, GAP]),
                    Align::Right => line.extend([&padding, cell, GAP]),
                }
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let mut table = Table::new([
            ("case".to_owned(), Align::Left),
            ("none".to_owned(), Align::Right),
        ]);
        table.push(vec!["http-64".to_owned(), "123456".to_owned()]);
        table.push(vec!["bulk-1".to_owned(), "7".to_owned()]);
        assert_eq!(
            table.to_string(),
            "case       none\nhttp-64  123456\nbulk-1        7\n"
        );
    }
}
