//! The files of sshd_config(5), in the order in which sshd reads them.

/// A keyword with its value, and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directive {
    pub file: String,
    pub line: usize,
    pub keyword: String,
    pub value: String,
    /// Behind a Match, which goes on to the end of its file.
    pub conditional: bool,
}

/// Files that include each other end somewhere; sshd's own limit.
const DEPTH: usize = 16;
/// As many files as are read: one that includes itself twice would be read 65536 times.
const FILES: usize = 256;

/// Reads a file and what it includes: `read` is asked for files, `list` for the names in a
/// directory.
pub fn directives(
    read: &dyn Fn(&str) -> Option<String>,
    list: &dyn Fn(&str) -> Vec<String>,
    file: &str,
) -> Vec<Directive> {
    let (mut found, mut left) = (Vec::new(), FILES);
    add(&mut found, &mut left, read, list, file, false, 0);
    found
}

fn add(
    found: &mut Vec<Directive>,
    left: &mut usize,
    read: &dyn Fn(&str) -> Option<String>,
    list: &dyn Fn(&str) -> Vec<String>,
    file: &str,
    mut conditional: bool,
    depth: usize,
) {
    if depth == DEPTH || *left == 0 {
        return;
    }
    *left -= 1;
    let Some(text) = read(file) else { return };
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
        let (keyword, value) = line.split_at(end);
        let value = value.trim_start_matches(|c: char| c.is_whitespace() || c == '=');
        if keyword.is_empty() || keyword.starts_with('#') {
            continue;
        }
        if keyword.eq_ignore_ascii_case("Match") {
            conditional = true;
        } else if keyword.eq_ignore_ascii_case("Include") {
            for path in value.split_whitespace().flat_map(|pattern| expand(pattern.trim_matches('"'), list)) {
                add(found, left, read, list, &path, conditional, depth + 1);
            }
        } else {
            let (file, value) = (file.to_owned(), value.to_owned());
            found.push(Directive { file, line: at + 1, keyword: keyword.to_owned(), value, conditional });
        }
    }
}

/// The files that a pattern names, sorted as sshd's glob(3) sorts them; a star is for the last part
/// of a path.
fn expand(pattern: &str, list: &dyn Fn(&str) -> Vec<String>) -> Vec<String> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") };
    let Some((directory, last)) = pattern.rsplit_once('/') else { return Vec::new() };
    let Some((start, end)) = last.split_once('*') else { return vec![pattern] };
    let mut names = list(directory);
    let fits = |name: &String| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    names.retain(|name| fits(name) && !name.starts_with('.'));
    names.sort();
    names.into_iter().map(|name| format!("{directory}/{name}")).collect()
}
