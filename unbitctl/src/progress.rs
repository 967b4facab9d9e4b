//! Reports each step of a command as soon as it is done, as a line for people, or all steps at the
//! end as JSON.

use crate::command_line::print_lossy;
use crate::report::lines_of;
use serde::Serialize;
use shared::escape;
use std::io::{IsTerminal, Write, stdout};

/// One step, done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Done {
    /// Its name: `directory`, `key`, `vassal`.
    pub step: &'static str,
    /// Whether it has changed anything.
    pub changed: bool,
    /// What it found or did.
    pub detail: String,
}

/// The steps so far.
pub struct Progress {
    json: bool,
    done: Vec<Done>,
}

/// As wide as the longest name of a step.
const NAMES: usize = 12;

impl Progress {
    /// With `--json` nothing is printed before the end.
    pub const fn new(json: bool) -> Self {
        Self { json, done: Vec::new() }
    }

    /// Something was made, changed or removed.
    pub fn changed(&mut self, step: &'static str, detail: impl std::fmt::Display) {
        self.add(step, true, &detail.to_string());
    }

    /// All is as it should be already.
    pub fn found(&mut self, step: &'static str, detail: impl std::fmt::Display) {
        self.add(step, false, &detail.to_string());
    }

    fn add(&mut self, step: &'static str, changed: bool, detail: &str) {
        let detail = escape::line(detail).to_string();
        if !self.json {
            let over = if stdout().is_terminal() { "\x1b[K" } else { "" }; // what `now` has left there
            print_lossy!("{over}{step:NAMES$}  {detail}\n");
            let _ = stdout().flush();
        }
        self.done.push(Done { step, changed, detail });
    }

    /// Shows what is being done, on a terminal, until the next line replaces it.
    pub fn now(&self, detail: impl std::fmt::Display) {
        if !self.json && stdout().is_terminal() {
            let columns = crate::terminal::size().map_or(80, |(_, columns)| columns);
            let line: String =
                escape::line(&detail.to_string()).to_string().chars().take(columns.saturating_sub(1)).collect();
            print_lossy!("{line}\x1b[K\r");
            let _ = stdout().flush();
        }
    }

    /// More text for people, of several lines.
    pub fn text(&self, text: &str) {
        if !self.json {
            print_lossy!("{}", lines_of(text));
        }
    }

    /// Whether any step has changed anything.
    pub fn has_changed(&self) -> bool {
        self.done.iter().any(|done| done.changed)
    }

    /// All of them.
    pub fn done(&self) -> &[Done] {
        &self.done
    }
}
