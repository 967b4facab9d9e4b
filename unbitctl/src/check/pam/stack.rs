//! The lines of a PAM service in the order in which libpam meets them, see pam.d(5).

use crate::check::is_space;
use std::fmt;

/// What a line is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Auth,
    Account,
    Session,
    Password,
}

impl Kind {
    /// Those that a container's login goes through.
    pub const OURS: [Self; 3] = [Self::Auth, Self::Account, Self::Session];

    fn parse(word: &str) -> Option<Self> {
        let all = [Self::Auth, Self::Account, Self::Session, Self::Password];
        all.into_iter().find(|kind| word.eq_ignore_ascii_case(&kind.to_string()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auth => "auth",
            Self::Account => "account",
            Self::Session => "session",
            Self::Password => "password",
        })
    }
}

/// What comes of a module's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Ok,
    Done,
    Bad,
    Die,
    Ignore,
    Reset,
    /// So many lines of the kind are left out.
    Jump(usize),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Done => f.write_str("done"),
            Self::Bad => f.write_str("bad"),
            Self::Die => f.write_str("die"),
            Self::Ignore => f.write_str("ignore"),
            Self::Reset => f.write_str("reset"),
            Self::Jump(lines) => lines.fmt(f),
        }
    }
}

/// The control values of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    named: Vec<(String, Action)>,
    default: Action,
}

/// The answers and actions that libpam knows, in its order (pam_tokens.h).
const ANSWERS: [&str; 33] = [
    "success",
    "open_err",
    "symbol_err",
    "service_err",
    "system_err",
    "buf_err",
    "perm_denied",
    "auth_err",
    "cred_insufficient",
    "authinfo_unavail",
    "user_unknown",
    "maxtries",
    "new_authtok_reqd",
    "acct_expired",
    "session_err",
    "cred_unavail",
    "cred_expired",
    "cred_err",
    "no_module_data",
    "conv_err",
    "authtok_err",
    "authtok_recover_err",
    "authtok_lock_busy",
    "authtok_disable_aging",
    "try_again",
    "ignore",
    "abort",
    "authtok_expired",
    "module_unknown",
    "bad_item",
    "conv_again",
    "incomplete",
    "default",
];
const ACTIONS: [(&str, Action); 6] = [
    ("ignore", Action::Ignore),
    ("ok", Action::Ok),
    ("done", Action::Done),
    ("bad", Action::Bad),
    ("die", Action::Die),
    ("reset", Action::Reset),
];

impl Control {
    /// What libpam cannot read makes every answer a failure, _pam_parse_control() of its
    /// pam_misc.c.
    pub(crate) fn parse(word: &str) -> Self {
        let pairs = match word.to_ascii_lowercase().as_str() {
            "required" => "success=ok new_authtok_reqd=ok ignore=ignore default=bad",
            "requisite" => "success=ok new_authtok_reqd=ok ignore=ignore default=die",
            "sufficient" => "success=done new_authtok_reqd=done default=ignore",
            "optional" => "success=ok new_authtok_reqd=ok default=ignore",
            _ => word,
        };
        Self::read(pairs).unwrap_or(Self { named: Vec::new(), default: Action::Bad })
    }

    fn read(pairs: &str) -> Option<Self> {
        let (mut named, mut default) = (Vec::new(), None);
        let mut rest = pairs.trim_start_matches(is_space);
        while !rest.is_empty() {
            let answer = ANSWERS.into_iter().find(|answer| rest.starts_with(answer))?;
            let after = rest.strip_prefix(answer)?.trim_start_matches(is_space);
            let (action, after) = action(after.strip_prefix('=')?.trim_start_matches(is_space))?;
            rest = after.trim_start_matches(is_space);
            if answer == "default" {
                default = default.or(Some(action)); // it is for what has no action yet, so a second one is for nothing
            } else {
                named.retain(|(other, _)| other != answer);
                named.push((answer.to_owned(), action));
            }
        }
        Some(Self { named, default: default.unwrap_or(Action::Bad) }) // what is not named is a failure
    }

    /// What comes of an answer, named as in pam.d(5).
    pub fn action(&self, answer: &str) -> Action {
        self.named.iter().find(|(named, _)| named == answer).map_or(self.default, |(_, action)| *action)
    }

    /// All that may come of any answer.
    pub fn all(&self) -> Vec<Action> {
        self.named.iter().map(|(_, action)| *action).chain([self.default]).collect()
    }
}

/// The action at the start of a text, and what follows it at once.
fn action(text: &str) -> Option<(Action, &str)> {
    if let Some((word, action)) = ACTIONS.into_iter().find(|(word, _)| text.starts_with(word)) {
        return Some((action, text.strip_prefix(word)?));
    }
    let (digits, after) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    let lines = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
    (lines > 0).then_some((Action::Jump(lines), after))
}

/// A line that names a module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub kind: Kind,
    pub control: Control,
    /// As the line has it: a name, or a path.
    pub module: String,
    pub arguments: Vec<String>,
    /// A dash before the kind: nothing is logged when the module is not there.
    pub silent: bool,
    /// Below a `substack`, whose end is all that `done`, `die` and jumps in it lead to.
    pub substack: bool,
    /// The file that it is in, and its number there.
    pub file: String,
    number: usize,
    /// The first and the last line of the service's own file that it is, or is included by; counted
    /// from 0.
    pub top: usize,
    pub bottom: usize,
}

impl Entry {
    /// The module without its directory.
    pub fn name(&self) -> &str {
        self.module.rsplit('/').next().unwrap_or_default()
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        format!("/etc/pam.d/{} line {}", self.file, self.number)
    }
}

/// Files that include each other end somewhere; libpam's own limit (PAM_SUBSTACK_MAX_LEVEL).
const DEPTH: usize = 16;
/// As many files as are read: one that includes itself twice would be read 65536 times.
pub(crate) const FILES: usize = 128;
/// What is between two words. Not a carriage return: libpam takes that for a part of a module's
/// name.
const BLANKS: [char; 2] = [' ', '\t'];

/// Reads a service: `read` is asked for it and for what it includes, by name.
pub fn flatten(read: &dyn Fn(&str) -> Option<String>, service: &str) -> Vec<Entry> {
    let (mut stack, mut left) = (Vec::new(), FILES);
    let include = Include { only: None, substack: false, within: None, depth: 0 };
    add(&mut stack, &mut left, read, service, include);
    stack
}

#[derive(Clone, Copy)]
struct Include {
    only: Option<Kind>,
    substack: bool,
    within: Option<(usize, usize)>,
    depth: usize,
}

fn add(stack: &mut Vec<Entry>, left: &mut usize, read: &dyn Fn(&str) -> Option<String>, file: &str, include: Include) {
    if include.depth == DEPTH || *left == 0 {
        return;
    }
    *left -= 1;
    let Some(text) = read(file) else { return };
    for (first, last, line) in logical_lines(&text) {
        let (top, bottom) = include.within.unwrap_or((first, last));
        let deeper = Include { within: Some((top, bottom)), depth: include.depth + 1, ..include };
        let name = |word: &str| word.trim_start_matches("/etc/pam.d/").to_owned();
        let words = words(&line);
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["@include", other, ..] => add(stack, left, read, &name(other), deeper),
            [kind, control, module, arguments @ ..] => {
                let silent = kind.starts_with('-');
                let Some(kind) = Kind::parse(kind.strip_prefix('-').unwrap_or(kind)) else { continue };
                if include.only.is_some_and(|only| only != kind) {
                    continue;
                }
                match control.to_ascii_lowercase().as_str() {
                    "include" => add(stack, left, read, &name(module), Include { only: Some(kind), ..deeper }),
                    "substack" => {
                        add(stack, left, read, &name(module), Include { only: Some(kind), substack: true, ..deeper })
                    }
                    _ => stack.push(Entry {
                        kind,
                        control: Control::parse(control),
                        module: (*module).to_owned(),
                        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
                        silent,
                        substack: include.substack,
                        file: file.to_owned(),
                        number: first + 1,
                        top,
                        bottom,
                    }),
                }
            }
            _ => {}
        }
    }
}

/// The lines without comments, joined where one ends in a backslash: the numbers of the first and
/// the last, and the text. As in libpam's _pam_assemble_line(), a comment ends a line, and blank
/// lines between two parts of one do not.
fn logical_lines(text: &str) -> Vec<(usize, usize, String)> {
    let mut lines: Vec<(usize, usize, String)> = Vec::new();
    let mut open = false;
    for (at, line) in text.split('\n').enumerate() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let continued = line.trim_end_matches(BLANKS).strip_suffix('\\');
        let (body, goes_on) = match (line.split_once('#'), continued) {
            (Some((body, _comment)), _) => (body, false),
            (None, Some(body)) => (body, true),
            (None, None) => (line, false),
        };
        match lines.last_mut().filter(|_| open) {
            Some((_, last, joined)) => {
                *last = at;
                joined.push(' ');
                joined.push_str(body);
            }
            None => lines.push((at, at, body.to_owned())),
        }
        open = goes_on;
    }
    lines
}

/// The words of a line. What is in brackets is one, without them (_pam_StrTok() of libpam).
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('[') {
            Some(rest) => {
                let is_end = |(at, _): &(usize, &str)| !rest.get(..*at).is_some_and(|before| before.ends_with('\\'));
                let end = rest.match_indices(']').find(is_end).map_or(rest.len(), |(at, _)| at);
                let (word, after) = rest.split_at(end);
                (word.replace("\\]", "]"), after.strip_prefix(']').unwrap_or(after))
            }
            None => {
                let (word, after) = rest.split_at(rest.find(BLANKS).unwrap_or(rest.len()));
                (word.to_owned(), after)
            }
        };
        words.push(word);
        rest = after.trim_start_matches(BLANKS);
    }
    words
}
