//! What the demo says: numbered claims, what was typed, what came back, and the proof.

use std::fmt::Display;
use std::io::{self, IsTerminal};

use undermesh_tests::{Error, Result};

/// Columns of the narrowest terminal that everything but long log lines fits in.
const WIDTH: usize = 100;

/// Indent of all that belongs to a step.
const INDENT: &str = "   ";

/// Indent of what a program printed, and of the second line of a text.
const DEEPER: &str = "      ";

/// Columns between two columns of a table that `undermesh` prints.
const GAP: &str = "   ";

/// Bytes that one line of [`hex`] shows.
const HEX_LINE: usize = 16;

/// Writes to standard output, with colour when a person is there to see it.
#[derive(Debug, Clone, Copy)]
pub struct Narrator {
    colour: bool,
}

impl Narrator {
    /// Colour is for terminals, and not for those who ask for none (<https://no-color.org>).
    pub fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: io::stdout().is_terminal() && !refused,
        }
    }

    /// Says what is done before the first step.
    pub fn prelude(&self, text: impl Display) {
        println!("{}", wrapped(&text.to_string(), "", ""));
    }

    /// Opens step `number` with its claim.
    pub fn step(&self, number: u32, claim: &str) {
        println!("\n{}", self.bold(&format!("{number}. {claim}")));
    }

    /// Explains in a few sentences.
    pub fn say(&self, text: impl Display) {
        println!("{}", wrapped(&text.to_string(), INDENT, INDENT));
    }

    /// Shows what was typed, and where.
    pub fn typed(&self, place: &str, line: impl Display) {
        println!("{INDENT}{}", self.bold(&format!("{place}$ {line}")));
    }

    /// Shows what came back, as it is; a line that is too long is broken between its words.
    pub fn shown(&self, text: &str) {
        for line in text.lines() {
            println!("{}", wrapped(line, DEEPER, &format!("{DEEPER}  ")));
        }
    }

    /// States what was found, when it `holds`.
    ///
    /// # Errors
    /// When it does not: the demo ends there.
    pub fn proof(&self, holds: bool, found: impl Display) -> Result<()> {
        if !holds {
            return Err(Error::step("this claim does not hold", found));
        }
        let text = wrapped(
            &format!("proof: {found}"),
            INDENT,
            &format!("{INDENT}       "),
        );
        println!("{}", text.replacen("proof:", &self.green("proof:"), 1));
        Ok(())
    }

    fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    fn green(&self, text: &str) -> String {
        self.styled("32", text)
    }

    /// The text in a graphic rendition of ECMA-48, when there is colour.
    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// The text in lines of at most [`WIDTH`] columns; a word that is longer keeps a line to itself.
fn wrapped(text: &str, first: &str, others: &str) -> String {
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = others.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines + &line
}

/// A table that `undermesh` printed, with only the columns under `headings`.
pub fn columns(table: &str, headings: &[&str]) -> String {
    let header = table.lines().next().unwrap_or_default();
    let bounds: Vec<(usize, usize)> = headings
        .iter()
        .filter_map(|heading| column(header, heading))
        .collect();
    let mut text = String::new();
    for row in table.lines() {
        let row: Vec<char> = row.chars().collect();
        let cells: Vec<String> = bounds
            .iter()
            .map(|(from, to)| (*from..*to).map(|at| row.get(at).unwrap_or(&' ')).collect())
            .collect();
        text.push_str(cells.concat().trim_end());
        text.push('\n');
    }
    text
}

/// Where the column under `heading` starts, and where the next one does.
fn column(header: &str, heading: &str) -> Option<(usize, usize)> {
    let header = format!("{header}{GAP}");
    let (start, _) = header.match_indices(heading).find(|(at, found)| {
        (*at == 0 || header[..*at].ends_with(GAP)) && header[at + found.len()..].starts_with(GAP)
    })?;
    let after = start + heading.len();
    let rest = &header[after..];
    let gap = rest.len() - rest.trim_start().len();
    let last = rest.trim().is_empty();
    Some((start, if last { WIDTH.max(after) } else { after + gap }))
}

/// The first bytes as hexadecimal numbers and as text, like a packet analyser shows them.
pub fn hex(bytes: &[u8], lines: usize) -> String {
    let mut text = String::new();
    for line in bytes.chunks(HEX_LINE).take(lines) {
        let numbers: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let letters: String = line.iter().map(|byte| letter(*byte)).collect();
        text.push_str(&format!("{:<48} {letters}\n", numbers.join(" ")));
    }
    text
}

fn letter(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' {
        byte.into()
    } else {
        '.'
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "NAME   SERVICE ACCOUNT   STATE\ncart   cart              active\n";

    #[test]
    fn a_table_keeps_the_columns_asked_for() {
        assert_eq!(
            columns(TABLE, &["NAME", "STATE"]),
            "NAME   STATE\ncart   active\n"
        );
        assert_eq!(
            columns(TABLE, &["SERVICE ACCOUNT"]),
            "SERVICE ACCOUNT\ncart\n"
        );
        assert_eq!(columns(TABLE, &["ACCOUNT"]), "\n\n");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        let text = wrapped(&["word"; 30].join(" "), "  ", "    ");
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("    word"))
        );
        assert!(text.lines().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn bytes_are_shown_as_numbers_and_letters() {
        let shown = hex(b"\x17\x03\x03GET", 1);
        assert_eq!(shown, format!("{:<48} ...GET\n", "17 03 03 47 45 54"));
    }

    #[test]
    fn a_claim_that_does_not_hold_is_an_error() {
        let narrator = Narrator { colour: false };
        let error = narrator
            .proof(false, "2 and 2 are 5")
            .map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("this claim does not hold: 2 and 2 are 5".to_owned())
        );
    }
}
