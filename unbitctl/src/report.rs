//! The findings of checks, and how they are shown: text for people, JSON for programs.
//!
//! What is checked is in [`check`](crate::check).

use crate::terminal;
use anyhow::{Context, Result};
use serde::Serialize;
use shared::escape;
use std::io::{ErrorKind, IsTerminal, Write, stdout};
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

/// The question that a finding answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Profile {
    /// Can container users log in, and only where they belong?
    #[serde(rename = "login")]
    Login,
    /// Are the steps of uwsgi.it's guide to a node done?
    #[serde(rename = "uwsgi.it")]
    Guide,
}

impl Profile {
    /// Its name for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Guide => GUIDE,
        }
    }
}

/// The name of the guide that `--guide` takes.
pub const GUIDE: &str = "uwsgi.it";

/// One check, done.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The question that it answers.
    pub profile: Profile,
    /// The name by which check and setup know it: `nsswitch`, `pam`, `directories`.
    pub check: &'static str,
    /// How it ended.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// Why it matters, in one line.
    pub why: &'static str,
    /// What to do: a command, or a sentence. `None` if all is well.
    pub fix: Option<String>,
    #[serde(skip)]
    #[expect(dead_code, reason = "only what is in this file can make one")]
    made: Made,
}

/// Makes [`Finding::new`], which escapes its texts, the only constructor.
#[derive(Clone, Debug)]
struct Made;

impl Finding {
    /// `seen` becomes one line, so no name of a tenant can add another. `fix` may have several;
    /// names in it must be quoted for a shell.
    pub fn new(
        check: &'static str,
        state: State,
        why: &'static str,
        seen: impl AsRef<str>,
        fix: Option<String>,
    ) -> Self {
        let seen = escape::line(seen.as_ref()).to_string();
        Self { profile: Profile::Login, check, state, seen, why, fix: fix.map(|fix| lines_of(&fix)), made: Made }
    }

    /// This finding, as an answer to this question.
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// This finding, with another text for what was seen.
    pub fn with_seen(self, text: impl FnOnce(&str) -> String) -> Self {
        let seen = text(&self.seen);
        Self::new(self.check, self.state, self.why, seen, self.fix).with_profile(self.profile)
    }

    /// This finding, with one more line of what to do.
    pub fn with_more_to_do(self, line: &str) -> Self {
        let fix = self.fix.map_or_else(|| line.to_owned(), |fix| format!("{fix}\n{line}"));
        Self::new(self.check, self.state, self.why, self.seen, Some(fix)).with_profile(self.profile)
    }

    /// All is well.
    pub fn ok(check: &'static str, why: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, State::Ok, why, seen.into(), None)
    }

    /// It works, but something that depends on it does not, or could be better.
    pub fn warn(check: &'static str, why: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, State::Warn, why, seen.into(), Some(fix.into()))
    }

    /// Somebody cannot log in, or gets to what is not theirs; of the guide: a service does not
    /// work, or somebody may do too much.
    pub fn fail(check: &'static str, why: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, State::Fail, why, seen.into(), Some(fix.into()))
    }

    /// There is nothing to check, or it cannot be checked from here.
    pub fn not_applicable(check: &'static str, why: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, State::NotApplicable, why, seen.into(), None)
    }
}

/// Writes to standard output. EPIPE (as with head(1)) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written
        .or_else(|error| if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
        .context("write standard output")
}

/// How to show it. Colour only on a terminal, and not where NO_COLOR (no-color.org) is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Without a width, lines are as long as they are: grep(1) and scripts read them.
    Text {
        colour: bool,
        width: Option<usize>,
    },
    Json,
}

impl Format {
    /// What `--json` and the terminal ask for.
    pub fn new(json: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal::size().map(|(_, columns)| columns);
        if json { Self::Json } else { Self::Text { colour: stdout().is_terminal() && !no_colour, width } }
    }
}

/// The exit status where steps of the guide fail, and nothing that a login needs.
const GUIDE_FAILED: u8 = 4;

/// Shows the findings; fails if one of them does.
pub fn show(findings: &[Finding], format: Format) -> Result<ExitCode> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(findings)? + "\n",
        Format::Text { colour, width } => text(findings, colour, width),
    };
    print(&text)?;
    let fails = |profile| findings.iter().any(|finding| (finding.state, finding.profile) == (State::Fail, profile));
    Ok(match (fails(Profile::Login), fails(Profile::Guide)) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(GUIDE_FAILED),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// A line for each finding, with what to do below it where something is to be done, or below the
/// last of several for which that is the same; and a line that counts them.
fn text(findings: &[Finding], colour: bool, width: Option<usize>) -> String {
    let names = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let margin = " ".repeat(names + 8);
    let room = width.map(|width| width.saturating_sub(margin.len()).max(LITTLE_ROOM));
    let mut text = String::new();
    let mut following = findings.iter().skip(1);
    for finding in findings {
        let next = following.next();
        let (word, style) = match finding.state {
            State::Ok => ("ok", "32"),
            State::Warn => ("warn", "33"),
            State::Fail => ("FAIL", "1;31"),
            State::NotApplicable => ("-", "2"),
        };
        let head = format!("{}  {:names$}  ", paint(&format!("{word:4}"), style, colour), finding.check);
        block(&mut text, &head, &margin, &finding.seen, room);
        let is_fixed_alike = |other: &Finding| {
            (other.check, other.state, other.why, &other.fix)
                == (finding.check, finding.state, finding.why, &finding.fix)
        };
        if let Some(fix) = finding.fix.as_ref().filter(|_| !next.is_some_and(is_fixed_alike)) {
            let (why, do_this) = (paint("why ", "2", colour), paint("fix ", "2", colour));
            let below = format!("{margin}      ");
            block(&mut text, &format!("{margin}{why}  "), &below, finding.why, room.map(|room| room.saturating_sub(6)));
            block(&mut text, &format!("{margin}{do_this}  "), &below, fix, None); // it may be a command to copy
        }
    }
    text + &summary(findings)
}

fn paint(word: &str, style: &str, colour: bool) -> String {
    if colour { format!("\x1b[{style}m{word}\x1b[0m") } else { word.to_owned() }
}

/// A text of several lines, escaped but for their ends and for tabs, which files have.
pub fn lines_of(text: &str) -> String {
    let tabs = |line: &str| line.split('\t').map(|part| escape::line(part).to_string()).collect::<Vec<_>>().join("\t");
    text.split('\n').map(tabs).collect::<Vec<_>>().join("\n")
}

/// A terminal with less room than this behind the margin breaks the lines itself.
const LITTLE_ROOM: usize = 20;

/// The lines of a text, the first behind `head` and the others behind `margin`.
fn block(out: &mut String, head: &str, margin: &str, text: &str, room: Option<usize>) {
    for (at, line) in text.lines().flat_map(|line| wrap(line, room)).enumerate() {
        out.push_str(if at == 0 { head } else { margin });
        out.push_str(&line);
        out.push('\n');
    }
}

/// A line as several of at most this many characters, broken between words: a word that is longer
/// stays whole.
pub fn wrap(line: &str, room: Option<usize>) -> Vec<String> {
    let room = room.unwrap_or(usize::MAX);
    let mut lines: Vec<String> = Vec::new();
    for word in line.split(' ') {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= room => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `12 ok, 1 warn, 2 fail, 1 not applicable`, without those of which there is none; no line for
/// nothing. With findings of the guide among them a line for each question.
fn summary(findings: &[Finding]) -> String {
    let (of_guide, of_login): (Vec<_>, Vec<_>) =
        findings.iter().cloned().partition(|finding| finding.profile == Profile::Guide);
    if of_guide.is_empty() {
        return count(&of_login);
    }
    let line = |name: &str, findings: &[Finding]| match findings {
        [] => String::new(),
        findings => format!("{name}: {}", count(findings)),
    };
    line("login", &of_login) + &line(GUIDE, &of_guide)
}

fn count(findings: &[Finding]) -> String {
    let states =
        [(State::Ok, "ok"), (State::Warn, "warn"), (State::Fail, "fail"), (State::NotApplicable, "not applicable")];
    let counted = states.map(|(state, word)| (findings.iter().filter(|finding| finding.state == state).count(), word));
    let parts: Vec<_> =
        counted.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if parts.is_empty() { String::new() } else { parts.join(", ") + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("nscd", "why", "does not run"),
            Finding::fail("distributions", "nobody can log in", "first\nfix  \x1b[2Jthis", "do this\nand that"),
            Finding::warn("time", "because", "drifts", "wait"),
            Finding::not_applicable("nscd", "why", "root is needed to see"),
            Finding::ok("time", "why", "well"),
        ]
    }

    #[test]
    fn people_read_an_aligned_text_and_a_count() {
        let expected = "\
ok    nscd           does not run
FAIL  distributions  first\\u{a}fix  \\u{1b}[2Jthis
                     why   nobody can log in
                     fix   do this
                           and that
warn  time           drifts
                     why   because
                     fix   wait
-     nscd           root is needed to see
ok    time           well
2 ok, 1 warn, 1 fail, 1 not applicable
";
        assert_eq!(text(&findings(), false, None), expected);
        assert_eq!(text(&[], false, None), "");
    }

    #[test]
    fn in_a_narrow_terminal_words_stay_whole_and_so_does_what_is_to_be_done() {
        let findings = [Finding::fail(
            "pam",
            "nobody is let in by a file that is not there",
            "there is no /etc/pam.d/a-name-that-is-too-long-for-the-line in it",
            "setup pam && systemctl restart something",
        )];
        let expected = "\
FAIL  pam  there is no
           /etc/pam.d/a-name-that-is-too-long-for-the-line
           in it
           why   nobody is let
                 in by a file
                 that is not
                 there
           fix   setup pam && systemctl restart something
1 fail
";
        assert_eq!(text(&findings, false, Some(32)), expected);
        assert_eq!(text(&findings, false, Some(1)), expected, "nor is there ever no room");
    }

    #[test]
    fn what_is_fixed_alike_is_fixed_once() {
        let fail = |seen: &str, fix: &str| Finding::fail("directories", "others may write there", seen, fix);
        let findings = [
            fail("/a", "setup directories"),
            fail("/b", "setup directories"),
            Finding::warn("directories", "others may write there", "/c", "setup directories"),
            fail("/d", "setup directories"),
            fail("/e", "by hand"),
        ];
        let expected = "\
FAIL  directories  /a
FAIL  directories  /b
                   why   others may write there
                   fix   setup directories
warn  directories  /c
                   why   others may write there
                   fix   setup directories
FAIL  directories  /d
                   why   others may write there
                   fix   setup directories
FAIL  directories  /e
                   why   others may write there
                   fix   by hand
1 warn, 4 fail
";
        assert_eq!(text(&findings, false, None), expected);
    }

    #[test]
    fn each_question_has_its_own_count() {
        let guide =
            Finding::fail("directories", "why", "missing: /ns", "setup directories").with_profile(Profile::Guide);
        let both = [Finding::ok("pam", "why", "well"), guide.clone()];
        let counted = |findings: &[Finding]| summary(findings);
        assert_eq!(counted(&both), "login: 1 ok\nuwsgi.it: 1 fail\n");
        assert_eq!(counted(&both[1..]), "uwsgi.it: 1 fail\n");
        assert_eq!(counted(&both[..1]), "1 ok\n");
        // Other words for a finding do not change its question.
        let other = guide.with_seen(|seen| format!("{seen} /a")).with_more_to_do("and that");
        assert_eq!((other.profile, other.seen.as_str()), (Profile::Guide, "missing: /ns /a"));
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let painted = text(&findings(), true, None);
        assert!(painted.starts_with("\x1b[32mok  \x1b[0m  nscd"), "{painted:?}");
        let mut plain = painted;
        for style in ["32", "33", "1;31", "2", "0"] {
            plain = plain.replace(&format!("\x1b[{style}m"), "");
        }
        assert_eq!(plain, text(&findings(), false, None));
    }

    #[test]
    fn machines_read_the_same_keys_for_every_finding() {
        let json = serde_json::to_value(findings()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "profile": "login", "check": "distributions", "state": "fail", "seen": r"first\u{a}fix  \u{1b}[2Jthis",
                "why": "nobody can log in", "fix": "do this\nand that"
            })
        );
        assert_eq!(json[3]["state"], "not-applicable");
        for finding in json.as_array().unwrap() {
            let keys: Vec<_> = finding.as_object().unwrap().keys().cloned().collect();
            assert_eq!(keys, ["check", "fix", "profile", "seen", "state", "why"]);
        }
    }
}
