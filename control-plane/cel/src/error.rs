//! Errors: what is wrong with an expression and where, and why an evaluation failed.

use std::fmt;

/// Errors that are listed; more are only counted.
const ERRORS_MAX: usize = 100;
/// Longest source line that is shown, in bytes.
const SNIPPET_MAX: usize = 16_384;

/// One thing that is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where, in bytes from the start; `None` where no place is to blame.
    pub offset: Option<usize>,
    pub message: String,
}

/// All that is wrong with an expression. Prints as upstream does: position, message, source line and a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issues {
    source: String,
    issues: Vec<Issue>,
    total: usize,
}

impl Issues {
    pub(crate) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), issues: Vec::new(), total: 0 }
    }

    pub(crate) fn report(&mut self, offset: Option<usize>, message: impl Into<String>) {
        self.total += 1;
        if self.total <= ERRORS_MAX {
            self.issues.push(Issue { offset, message: message.into() });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.issues.is_empty()
    }

    /// In order of position.
    pub fn iter(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }

    pub(crate) fn sorted(mut self) -> Self {
        self.issues.sort_by_key(|issue| issue.offset);
        self
    }

    /// Line and column, both from one; the column counts characters. `None` prints as upstream's missing location.
    fn position(&self, offset: Option<usize>) -> (i64, i64) {
        let Some(offset) = offset else { return (-1, 0) };
        let before = &self.source[..floor_boundary(&self.source, offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        (line as i64, column as i64)
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let (line, column) = self.position(issue.offset);
            write!(f, "ERROR: <input>:{line}:{column}: {}", issue.message)?;
            let Some(text) =
                usize::try_from(line - 1).ok().and_then(|line| self.source.split('\n').nth(line))
            else {
                continue;
            };
            if text.len() > SNIPPET_MAX {
                continue;
            }
            let text = text.replace('\t', " ");
            write!(f, "\n | {text}\n | ")?;
            let mut chars = text.chars();
            for _ in 1..column {
                match chars.next() {
                    Some(wide) if wide.len_utf8() > 1 => f.write_str("\u{ff0e}")?,
                    Some(_) => f.write_str(".")?,
                    None => break,
                }
            }
            f.write_str(if chars.next().is_some_and(|at| at.len_utf8() > 1) { "\u{ff3e}" } else { "^" })?;
        }
        if self.total > ERRORS_MAX {
            write!(f, "\n{} more errors were truncated", self.total - ERRORS_MAX)?;
        }
        Ok(())
    }
}

impl std::error::Error for Issues {}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// The expression failed on this input, such as `no such key: replicas`.
    Failed(String),
    /// The call's cost limit was exceeded.
    CostLimit,
    /// The budget that several evaluations share is used up.
    Budget,
}

impl EvalError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    /// Whether logical operators may absorb the error.
    pub(crate) fn absorbable(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) => f.write_str(message),
            Self::CostLimit => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::Budget => {
                f.write_str("validation failed due to running out of cost budget, no further validation rules will be run")
            }
        }
    }
}

impl std::error::Error for EvalError {}
