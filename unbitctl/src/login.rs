//! What sshd's PAM configuration says to pam_unbit.so, so that a container is entered on the same terms as by a login.

use anyhow::{Context, Result};
use join::options::Options;
use std::collections::BTreeMap;
use std::fs;

/// The PAM configuration of sshd.
pub const FILE: &str = "/etc/pam.d/sshd";

/// The module's own lines, by type (`auth`, `account`, `session`): the options of each. A type that is missing has no line.
pub type Lines = BTreeMap<String, Vec<String>>;

/// The lines of this node.
pub fn lines() -> Result<Lines> {
    let mut lines = Lines::new();
    read(FILE, &mut lines, 0)?;
    Ok(lines)
}

/// The options of the account line, which is where a login is verified; the defaults where there is none, or no sshd.
pub fn options() -> Result<Options> {
    if !fs::exists(FILE)? {
        return Ok(Options::default());
    }
    let lines = lines()?;
    let words = lines.get("account").map(Vec::as_slice).unwrap_or_default();
    parse(words).map_err(|cause| anyhow::anyhow!("{FILE}: {cause}"))
}

/// The options, as the module reads them for sshd.
pub fn parse(words: &[String]) -> Result<Options, String> {
    let options = Options::parse(words.iter().map(String::as_bytes)).map_err(|refusal| refusal.cause)?;
    if options.join_now {
        return Err("join=now would take sshd's monitor into the container; sshd does without".to_owned());
    }
    Ok(options)
}

/// As deep as libpam follows @include, or nearly.
const DEPTH: u32 = 10;

fn read(file: &str, lines: &mut Lines, depth: u32) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("read {file}"))?;
    for line in logical_lines(&String::from_utf8_lossy(&text)) {
        match parse_line(&line) {
            Some(Line::Module { kind, words }) => drop(lines.entry(kind).or_insert(words)),
            Some(Line::Include(other)) if depth < DEPTH => {
                let other = if other.starts_with('/') { other } else { format!("/etc/pam.d/{other}") };
                read(&other, lines, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq, Debug)]
enum Line {
    Module { kind: String, words: Vec<String> },
    Include(String),
}

/// The lines of a file as libpam reads them: without comments, and with those that end in a backslash put together (pam.d(5)).
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim_end();
        match line.strip_suffix('\\') {
            Some(begun) => open.extend([begun, " "]),
            None => lines.push(std::mem::take(&mut open) + line),
        }
    }
    lines.push(open);
    lines
}

/// A line that names our module, or another file.
fn parse_line(line: &str) -> Option<Line> {
    let mut words = words(line).into_iter();
    let kind = words.next()?.to_ascii_lowercase();
    if kind == "@include" {
        return words.next().map(Line::Include);
    }
    let kind = kind.trim_start_matches('-').to_owned();
    let _control = words.next()?;
    let module = words.next()?;
    let is_ours = module.rsplit('/').next() == Some("pam_unbit.so");
    is_ours.then(|| Line::Module { kind, words: words.collect() })
}

/// Words between blanks; what is in brackets is one.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some(bracketed) => bracketed,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(line: &str) -> Option<(String, Vec<String>)> {
        match parse_line(line) {
            Some(Line::Module { kind, words }) => Some((kind, words)),
            _ => None,
        }
    }

    #[test]
    fn our_lines_are_told_from_others() {
        let none: Vec<String> = Vec::new();
        for (line, kind, options) in [
            ("auth [success=done ignore=ignore default=die] pam_unbit.so", "auth", none.clone()),
            (
                "-account\trequired  /usr/lib/security/pam_unbit.so debug timeout=5",
                "account",
                vec!["debug".into(), "timeout=5".into()],
            ),
            ("SESSION required pam_unbit.so [namespaces=mnt,pid]", "session", vec!["namespaces=mnt,pid".into()]),
        ] {
            assert_eq!(module(line), Some((kind.to_owned(), options)), "{line}");
        }
        for line in
            ["", "auth required pam_unix.so", "account required not_pam_unbit.so", "account required", "@include x"]
        {
            assert_eq!(module(line), None, "{line}");
        }
        assert_eq!(parse_line("@include common-auth"), Some(Line::Include("common-auth".into())));
    }

    #[test]
    fn lines_are_put_together_and_comments_left_out() {
        let text =
            "account required \\\n pam_unbit.so timeout=4 # three is too short\n# auth required pam_unbit.so\nsession";
        let lines = logical_lines(text);
        assert_eq!(module(&lines[0]), Some(("account".into(), vec!["timeout=4".into()])));
        assert_eq!(module(&lines[1]), None);
        assert_eq!(lines[2..], ["session", ""]);
    }

    #[test]
    fn sshd_never_joins_now() {
        assert!(parse(&["join=now".into()]).is_err_and(|cause| cause.starts_with("join=now would take")));
        assert!(parse(&["timout=4".into()]).is_err_and(|cause| cause == "unknown option: timout=4"));
        assert!(parse(&["timeout=4".into()]).is_ok());
    }
}
