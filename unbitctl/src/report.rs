//! What a check found, and how it is shown: text for people, JSON for machines.

use anyhow::Result;
use serde::Serialize;
use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Ok,
    Warn,
    Fail,
    NotApplicable,
}

/// One check, done.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The name by which check and setup know it: `nsswitch`, `pam`, `folders`.
    pub check: &'static str,
    /// How it ended.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// Why it matters, in one line.
    pub why: &'static str,
    /// What to do: a command, or a sentence. Nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, why: &'static str, seen: impl Into<String>) -> Self {
        Self { check, state: State::Ok, seen: seen.into(), why, mend: None }
    }

    /// It works, and could be better.
    pub fn warn(check: &'static str, why: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state: State::Warn, seen: seen.into(), why, mend: Some(mend.into()) }
    }

    /// Logins do not work, or not safely.
    pub fn fail(check: &'static str, why: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state: State::Fail, seen: seen.into(), why, mend: Some(mend.into()) }
    }

    /// There is nothing to check, or no way to from here.
    pub fn not_applicable(check: &'static str, why: &'static str, seen: impl Into<String>) -> Self {
        Self { check, state: State::NotApplicable, seen: seen.into(), why, mend: None }
    }
}

/// How to show it. Colour only on a terminal, and not where NO_COLOR (no-color.org) is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Text { colour: bool },
    Json,
}

impl Format {
    /// What `--json` and the terminal ask for.
    pub fn new(json: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if json { Self::Json } else { Self::Text { colour: stdout().is_terminal() && !no_colour } }
    }
}

/// Shows the findings; fails if one of them does.
pub fn show(findings: &[Finding], format: Format) -> Result<ExitCode> {
    let mut out = stdout().lock();
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, findings)?;
            writeln!(out)?;
        }
        Format::Text { colour } => findings.iter().try_for_each(|finding| write(&mut out, finding, colour))?,
    }
    let failed = findings.iter().any(|finding| finding.state == State::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write(out: &mut impl Write, finding: &Finding, colour: bool) -> std::io::Result<()> {
    let (word, paint) = match finding.state {
        State::Ok => ("ok", "32"),
        State::Warn => ("warn", "33"),
        State::Fail => ("FAIL", "31"),
        State::NotApplicable => ("-", "2"),
    };
    let (on, off) = if colour { (format!("\x1b[{paint}m"), "\x1b[0m") } else { (String::new(), "") };
    writeln!(out, "{on}{word:4}{off} {}: {}", finding.check, finding.seen)?;
    if let Some(mend) = &finding.mend {
        writeln!(out, "       why:  {}", finding.why)?;
        for (at, line) in mend.lines().enumerate() {
            writeln!(out, "       {} {line}", if at == 0 { "mend:" } else { "     " })?;
        }
    }
    Ok(())
}
