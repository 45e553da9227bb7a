//! The part of Helm's template language that the chart uses, and nothing else of it.
//!
//! `{{ .Values.a.b }}`, `quote`, `printf` with `%s`, `toYaml` and `nindent` in pipes; `if`, `if not`, `else`, `end`;
//! `{{-` and `-}}`. The meaning is that of Go's `text/template` and of Helm's functions. It is stricter in two ways:
//! a name that does not exist is an error, and text that came from a value must be quoted.
use std::fmt::Write as _;

use serde_json::Value;

/// Deepest nesting of `if`.
const MAX_DEPTH: usize = 16;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TemplateError {
    /// Where, from 1.
    pub line: usize,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// `{{` without `}}`.
    #[error("'{{{{' has no '}}}}'; close it")]
    Open,
    /// An `if` without `end`.
    #[error("'if' has no 'end'; add one")]
    NoEnd,
    /// An `end` or `else` outside `if`.
    #[error("'{0}' belongs to no 'if'; remove it")]
    Stray(&'static str),
    /// Too many `if` in each other.
    #[error("more than {MAX_DEPTH} 'if' are inside each other; nest less")]
    Depth,
    /// Something of Helm's language that is not supported here.
    #[error("'{0}' is not supported; use values, quote, printf, toYaml, nindent, if, else and end")]
    Unsupported(String),
    /// A name that does not exist.
    #[error("there is no {0}; correct the name or add the value")]
    Missing(String),
    /// Text without quotes.
    #[error("the text of {0} is not quoted; add '| quote'")]
    Unquoted(String),
    /// An operation that does not go with the value.
    #[error("{function} does not take {found}; check the value")]
    Type {
        /// The function.
        function: &'static str,
        /// The kind of value that it was given.
        found: &'static str,
    },
}

/// Renders `text` with the names in `scope`.
pub(super) fn render(text: &str, scope: &Value) -> Result<String, TemplateError> {
    let pieces = split(text)?;
    let mut reader = Reader {
        pieces: &pieces,
        next: 0,
    };
    let nodes = reader.nodes(0)?;
    if let Some(piece) = reader.peek() {
        let word = if matches!(piece.kind, PieceKind::Else) {
            "else"
        } else {
            "end"
        };
        return Err(piece.error(Problem::Stray(word)));
    }
    let mut out = String::new();
    write(&nodes, scope, &mut out)?;
    Ok(out)
}

/// A run of text, or one action between braces.
struct Piece<'a> {
    line: usize,
    kind: PieceKind<'a>,
}

enum PieceKind<'a> {
    Text(&'a str),
    Expression(&'a str),
    If { path: &'a str, wanted: bool },
    Else,
    End,
}

impl Piece<'_> {
    fn error(&self, problem: Problem) -> TemplateError {
        TemplateError {
            line: self.line,
            problem,
        }
    }
}

enum Node<'a> {
    Text(&'a str),
    Expression {
        line: usize,
        text: &'a str,
    },
    If {
        line: usize,
        path: &'a str,
        wanted: bool,
        then: Vec<Node<'a>>,
        otherwise: Vec<Node<'a>>,
    },
}

fn split(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut rest, mut line) = (text, 1);
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let (before, action) = (&rest[..start], &rest[start + 2..]);
        let own_line = line + newlines(before);
        let error = |problem| TemplateError {
            line: own_line,
            problem,
        };
        let end = action.find("}}").ok_or_else(|| error(Problem::Open))?;
        let (action, after) = (&action[..end], &action[end + 2..]);
        line = own_line + newlines(action);
        rest = after;

        let (inner, trims_before, trims_after) = trims(action);
        let mut before = before;
        if trim_next {
            before = before.trim_start();
        }
        if trims_before {
            before = before.trim_end();
        }
        trim_next = trims_after;
        pieces.push(Piece {
            line: own_line,
            kind: PieceKind::Text(before),
        });
        if !inner.starts_with("/*") {
            let kind = action_kind(inner).map_err(error)?;
            pieces.push(Piece {
                line: own_line,
                kind,
            });
        }
    }
    let rest = if trim_next { rest.trim_start() } else { rest };
    pieces.push(Piece {
        line,
        kind: PieceKind::Text(rest),
    });
    Ok(pieces)
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// What is between the braces, and whether white space before and after them goes.
fn trims(action: &str) -> (&str, bool, bool) {
    let (action, before) = match action.strip_prefix("- ") {
        Some(action) => (action, true),
        None => (action, false),
    };
    let (action, after) = match action.strip_suffix(" -") {
        Some(action) => (action, true),
        None => (action, false),
    };
    (action.trim(), before, after)
}

fn action_kind(action: &str) -> Result<PieceKind<'_>, Problem> {
    let words: Vec<&str> = action.split_whitespace().collect();
    match words[..] {
        ["end"] => Ok(PieceKind::End),
        ["else"] => Ok(PieceKind::Else),
        ["if", path] if path.starts_with('.') => Ok(PieceKind::If { path, wanted: true }),
        ["if", "not", path] if path.starts_with('.') => Ok(PieceKind::If {
            path,
            wanted: false,
        }),
        ["if" | "else", ..] => Err(Problem::Unsupported(action.to_owned())),
        _ => Ok(PieceKind::Expression(action)),
    }
}

struct Reader<'t, 'a> {
    pieces: &'t [Piece<'a>],
    next: usize,
}

impl<'t, 'a> Reader<'t, 'a> {
    fn peek(&self) -> Option<&'t Piece<'a>> {
        self.pieces.get(self.next)
    }

    /// Up to an `else` or `end` that belongs to somebody else.
    fn nodes(&mut self, depth: usize) -> Result<Vec<Node<'a>>, TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.peek() {
            let node = match piece.kind {
                PieceKind::Else | PieceKind::End => break,
                PieceKind::Text(text) => Node::Text(text),
                PieceKind::Expression(text) => Node::Expression {
                    line: piece.line,
                    text,
                },
                PieceKind::If { .. } if depth == MAX_DEPTH => {
                    return Err(piece.error(Problem::Depth));
                }
                PieceKind::If { path, wanted } => {
                    self.next += 1;
                    nodes.push(self.branches(piece, path, wanted, depth + 1)?);
                    continue;
                }
            };
            self.next += 1;
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn branches(
        &mut self,
        opening: &Piece<'a>,
        path: &'a str,
        wanted: bool,
        depth: usize,
    ) -> Result<Node<'a>, TemplateError> {
        let then = self.nodes(depth)?;
        let mut otherwise = Vec::new();
        if matches!(self.peek().map(|piece| &piece.kind), Some(PieceKind::Else)) {
            self.next += 1;
            otherwise = self.nodes(depth)?;
        }
        match self.peek() {
            Some(Piece {
                kind: PieceKind::End,
                ..
            }) => self.next += 1,
            Some(piece) => return Err(piece.error(Problem::Stray("else"))),
            None => return Err(opening.error(Problem::NoEnd)),
        }
        Ok(Node::If {
            line: opening.line,
            path,
            wanted,
            then,
            otherwise,
        })
    }
}

fn write(nodes: &[Node<'_>], scope: &Value, out: &mut String) -> Result<(), TemplateError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Expression { line, text } => {
                let error = |problem| TemplateError {
                    line: *line,
                    problem,
                };
                out.push_str(&expression(text, scope).map_err(error)?);
            }
            Node::If {
                line,
                path,
                wanted,
                then,
                otherwise,
            } => {
                let value = look_up(path, scope).map_err(|problem| TemplateError {
                    line: *line,
                    problem,
                })?;
                let branch = if truth(value) == *wanted {
                    then
                } else {
                    otherwise
                };
                write(branch, scope, out)?;
            }
        }
    }
    Ok(())
}

/// The value that a part of a pipe hands on.
enum Piped<'s> {
    Value(&'s Value),
    /// Text that is safe in YAML.
    Safe(String),
    /// Text made of values.
    Raw(String),
}

fn expression(text: &str, scope: &Value) -> Result<String, Problem> {
    let mut commands = commands(text)?.into_iter();
    let first = commands
        .next()
        .ok_or_else(|| Problem::Unsupported(text.to_owned()))?;
    let mut piped = start(&first, scope, text)?;
    for command in commands {
        piped = step(&command, piped, text)?;
    }
    match piped {
        Piped::Safe(text) => Ok(text),
        Piped::Value(value @ (Value::Bool(_) | Value::Number(_))) => Ok(value.to_string()),
        Piped::Raw(_) | Piped::Value(Value::String(_)) => Err(Problem::Unquoted(text.to_owned())),
        Piped::Value(value) => Err(Problem::Type {
            function: "output",
            found: kind(value),
        }),
    }
}

/// The words of each part of a pipe; a quoted word keeps its opening quote.
fn commands(text: &str) -> Result<Vec<Vec<String>>, Problem> {
    let unsupported = || Problem::Unsupported(text.to_owned());
    let mut commands = vec![Vec::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character.is_whitespace() {
            continue;
        }
        if character == '|' {
            commands.push(Vec::new());
            continue;
        }
        let mut word = String::from(character);
        if character == '"' {
            loop {
                match characters.next() {
                    Some('"') => break,
                    Some('\\') | None => return Err(unsupported()),
                    Some(inner) => word.push(inner),
                }
            }
        } else {
            while let Some(inner) =
                characters.next_if(|next| !next.is_whitespace() && *next != '|' && *next != '"')
            {
                word.push(inner);
            }
        }
        if let Some(command) = commands.last_mut() {
            command.push(word);
        }
    }
    Ok(commands)
}

fn start<'s>(words: &[String], scope: &'s Value, text: &str) -> Result<Piped<'s>, Problem> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [path] if path.starts_with('.') => Ok(Piped::Value(look_up(path, scope)?)),
        ["toYaml", path] => Ok(Piped::Safe(to_yaml(look_up(path, scope)?))),
        ["printf", format, ref arguments @ ..] if format.starts_with('"') => {
            printf(&format[1..], arguments, scope, text).map(Piped::Raw)
        }
        _ => Err(Problem::Unsupported(text.to_owned())),
    }
}

fn step<'s>(words: &[String], piped: Piped<'s>, text: &str) -> Result<Piped<'s>, Problem> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (&words[..], piped) {
        (["quote"], Piped::Raw(text)) => Ok(Piped::Safe(quote(&text))),
        (["quote"], Piped::Value(Value::String(text))) => Ok(Piped::Safe(quote(text))),
        (["quote"], Piped::Value(value)) => Err(Problem::Type {
            function: "quote",
            found: kind(value),
        }),
        (["nindent", width], Piped::Safe(text)) => match width.parse() {
            Ok(width) => Ok(Piped::Safe(nindent(&text, width))),
            Err(_) => Err(Problem::Unsupported(format!("nindent {width}"))),
        },
        _ => Err(Problem::Unsupported(text.to_owned())),
    }
}

fn look_up<'s>(path: &str, scope: &'s Value) -> Result<&'s Value, Problem> {
    path.split('.')
        .skip(1)
        .try_fold(scope, |value, name| value.get(name))
        .ok_or_else(|| Problem::Missing(path.to_owned()))
}

/// As in Go's `text/template`: what is empty is false.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn printf(format: &str, arguments: &[&str], scope: &Value, text: &str) -> Result<String, Problem> {
    let unsupported = || Problem::Unsupported(text.to_owned());
    let mut parts = format.split("%s");
    let mut out = parts.next().unwrap_or_default().to_owned();
    let mut arguments = arguments.iter();
    for part in parts {
        let path = arguments
            .next()
            .filter(|path| path.starts_with('.'))
            .ok_or_else(unsupported)?;
        match look_up(path, scope)? {
            Value::String(value) => out.push_str(value),
            value => {
                return Err(Problem::Type {
                    function: "printf",
                    found: kind(value),
                });
            }
        }
        out.push_str(part);
    }
    if arguments.next().is_some() || format.replace("%s", "").contains('%') {
        return Err(unsupported());
    }
    Ok(out)
}

/// A double-quoted YAML scalar (YAML 1.2, section 7.3.1).
fn quote(text: &str) -> String {
    flow(&Value::from(text))
}

/// A list or mapping whose items stand on lines of their own, so that it can go on with what stands before it.
fn to_yaml(value: &Value) -> String {
    let lines: Vec<String> = match value {
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| format!("- {}", flow(item)))
            .collect(),
        Value::Object(fields) if !fields.is_empty() => fields
            .iter()
            .map(|(name, value)| format!("{}: {}", quote(name), flow(value)))
            .collect(),
        value => vec![flow(value)],
    };
    lines.join("\n")
}

/// JSON in ASCII: YAML on one line at any place, with no character that YAML does not take.
fn flow(value: &Value) -> String {
    let mut out = String::new();
    for character in value.to_string().chars() {
        let code = u32::from(character);
        // Writing to a string cannot fail.
        let _ = match code {
            0x20..=0x7e => write!(out, "{character}"),
            0..=0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out
}

fn nindent(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len() + width + 1);
    for line in text.lines() {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n{:width$}{line}", "");
    }
    out
}

#[cfg(test)]
mod tests;
