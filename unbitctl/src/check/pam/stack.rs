//! The lines of a PAM service in the order in which libpam meets them, see pam.d(5).

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

/// The control words of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    named: Vec<(String, Action)>,
    default: Action,
}

impl Control {
    fn parse(words: &str) -> Self {
        let words = match words.to_ascii_lowercase().as_str() {
            "required" => "success=ok new_authtok_reqd=ok ignore=ignore default=bad".to_owned(),
            "requisite" => "success=ok new_authtok_reqd=ok ignore=ignore default=die".to_owned(),
            "sufficient" => "success=done new_authtok_reqd=done default=ignore".to_owned(),
            "optional" => "success=ok new_authtok_reqd=ok default=ignore".to_owned(),
            other => other.trim_matches(['[', ']']).to_owned(),
        };
        // What is not named is a failure.
        let mut control = Self { named: Vec::new(), default: Action::Bad };
        for (answer, action) in words.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let action = match action {
                "ok" => Action::Ok,
                "done" => Action::Done,
                "die" => Action::Die,
                "ignore" => Action::Ignore,
                "reset" => Action::Reset,
                number => number.parse().map_or(Action::Bad, Action::Jump),
            };
            match answer {
                "default" => control.default = action,
                _ => control.named.push((answer.to_owned(), action)),
            }
        }
        control
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
    /// The first and the last line of the service's own file that it is, or is included by; counted from 0.
    pub top: usize,
    pub bottom: usize,
}

impl Entry {
    /// The module without its folder.
    pub fn name(&self) -> &str {
        self.module.rsplit('/').next().unwrap_or_default()
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        format!("/etc/pam.d/{} line {}", self.file, self.number)
    }
}

/// Files that include each other end somewhere.
const DEPTH: usize = 8;

/// Reads a service: `read` is asked for it and for what it includes, by name.
pub fn flatten(read: &dyn Fn(&str) -> Option<String>, service: &str) -> Vec<Entry> {
    let mut stack = Vec::new();
    let include = Include { only: None, substack: false, within: None, depth: 0 };
    add(&mut stack, read, service, include);
    stack
}

#[derive(Clone, Copy)]
struct Include {
    only: Option<Kind>,
    substack: bool,
    within: Option<(usize, usize)>,
    depth: usize,
}

fn add(stack: &mut Vec<Entry>, read: &dyn Fn(&str) -> Option<String>, file: &str, include: Include) {
    let Some(text) = read(file).filter(|_| include.depth < DEPTH) else { return };
    for (first, last, line) in logical_lines(&text) {
        let (top, bottom) = include.within.unwrap_or((first, last));
        let deeper = Include { within: Some((top, bottom)), depth: include.depth + 1, ..include };
        let name = |word: &str| word.trim_start_matches("/etc/pam.d/").to_owned();
        let words = words(&line);
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["@include", other, ..] => add(stack, read, &name(other), deeper),
            [kind, control, module, arguments @ ..] => {
                let silent = kind.starts_with('-');
                let Some(kind) = Kind::parse(kind.trim_start_matches('-')) else { continue };
                if include.only.is_some_and(|only| only != kind) {
                    continue;
                }
                match *control {
                    "include" => add(stack, read, &name(module), Include { only: Some(kind), ..deeper }),
                    "substack" => {
                        add(stack, read, &name(module), Include { only: Some(kind), substack: true, ..deeper })
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

/// The lines without comments, joined where one ends in a backslash: the numbers of the first and the last, and the text.
fn logical_lines(text: &str) -> Vec<(usize, usize, String)> {
    let mut lines: Vec<(usize, usize, String)> = Vec::new();
    let mut open = false;
    for (at, line) in text.lines().enumerate() {
        let body = line.split('#').next().unwrap_or_default();
        let (body, goes_on) = match body.trim_end().strip_suffix('\\') {
            Some(body) => (body, true),
            None => (body, false),
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

/// The words of a line; what is in brackets is one.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let end = if rest.starts_with('[') {
            rest.find(']').map_or(rest.len(), |end| end + 1)
        } else {
            rest.find(char::is_whitespace).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(end);
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}
