//! The plugins that these files name, and whether uWSGI has them, as it says itself.

use super::{CHECK, WHY_PLUGINS, list};
use crate::command;
use crate::containers::Vassal;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use join::safe_path::{self, PathError};
use shared::{ContainerUid, escape};
use std::collections::{BTreeMap, BTreeSet};

/// Options of plugins, and of the directories where uWSGI looks for them.
pub const PLUGINS: [&str; 4] = ["plugin", "plugins", "need-plugin", "need-plugins"];
pub const PLUGIN_DIRECTORIES: [&str; 2] = ["plugins-dir", "plugin-dir"];

/// Debian's, and that of uwsgi.it.
const UWSGI: [&str; 2] = ["/opt/unbit/uwsgi/uwsgi", "/usr/bin/uwsgi"];

pub fn check(node: &RootFs, files: &[Vassal]) -> Vec<Finding> {
    let mut wanted: BTreeMap<(Vec<&str>, &str), Vec<&Vassal>> = BTreeMap::new();
    for file in files {
        let directories: Vec<_> = values(&file.text, &PLUGIN_DIRECTORIES).collect();
        if !directories.iter().all(|directory| only_root_writes(node, directory)) {
            continue; // to ask uWSGI would load what is there; start.rs names the line
        }
        for name in names(&file.text) {
            wanted.entry((directories.clone(), name)).or_default().push(file);
        }
    }
    if wanted.is_empty() {
        return Vec::new();
    }
    let Some(uwsgi) = UWSGI.into_iter().find(|uwsgi| node.has(uwsgi)).filter(|_| command::can_run_programs(node))
    else {
        return Vec::new(); // emperor.rs reports an Emperor that nothing starts
    };
    let missing = wanted.into_iter().filter(|((directories, name), _)| lacks(node, uwsgi, directories, name));
    missing.map(|((_, name), files)| finding(uwsgi, name, &files)).collect()
}

fn finding(uwsgi: &str, name: &str, files: &[&Vassal]) -> Finding {
    let is_strict = |file: &&&Vassal| values(&file.text, &["strict"]).last().is_some_and(|value| value != "false");
    let needs = |file: &&&Vassal| {
        values(&file.text, &["need-plugin", "need-plugins"]).any(|value| parts(value).any(|part| part == name))
    };
    let is_needed = files.iter().any(|file| is_strict(&file) || needs(&file));
    let uids: BTreeSet<_> = files.iter().filter_map(|file| uid(file)).map(ContainerUid::get).collect();
    let uids: Vec<_> = uids.into_iter().filter_map(ContainerUid::new).collect();
    let name = escape::name(name).to_string();
    let seen = format!("{uwsgi} has no plugin {name}, which is named by the file of: {}", list(&uids));
    let fix =
        format!("apt-get install uwsgi-plugins-all, or build {name}; then see: {uwsgi} --need-plugin {name} --version");
    Finding::new(CHECK, if is_needed { State::Fail } else { State::Warn }, WHY_PLUGINS, seen, Some(fix))
}

fn uid(file: &Vassal) -> Option<ContainerUid> {
    let name = file.path.rsplit('/').next()?.rsplit_once('.')?.0;
    ContainerUid::parse(name.as_bytes())
}

/// Whether nobody but root can put a plugin there. Where a placeholder leads is not known here.
fn only_root_writes(node: &RootFs, directory: &str) -> bool {
    !directory.contains('%')
        && matches!(safe_path::open_directory(&node.path(directory)), Ok(_) | Err(PathError::Missing(..)))
}

/// uWSGI loads plugins as it reads its arguments, and ends where it needs one that it cannot load.
fn lacks(node: &RootFs, uwsgi: &str, directories: &[&str], name: &str) -> bool {
    let mut arguments = Vec::new();
    for directory in directories {
        arguments.extend(["--plugins-dir", directory]);
    }
    arguments.extend(["--need-plugin", name, "--version"]);
    let answer = command::run(node, uwsgi, &arguments);
    answer.is_ok_and(|answer| answer.status == Some(1) && answer.err.contains("unable to load plugin"))
}

/// The values of options of an .ini file.
fn values<'a>(text: &'a str, keys: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#']));
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| keys.contains(&key.trim()))
        .map(|(_, value)| value.trim())
}

/// `tuntap,0:python`: names, by commas, with a modifier before one.
pub fn parts(value: &str) -> impl Iterator<Item = &str> {
    let names = value.split(',').map(str::trim).map(|part| part.rsplit_once(':').map_or(part, |(_, name)| name));
    names.filter(|name| !name.is_empty())
}

/// The plugins that a file names. A placeholder in a name is not known here, and a path below a
/// tenant's directory is root's to load nowhere.
fn names(text: &str) -> BTreeSet<&str> {
    let is_name = |name: &&str| name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-.".contains(letter));
    values(text, &PLUGINS).flat_map(parts).filter(is_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_plugins() {
        let text = "[uwsgi]\nplugins = tuntap, quota,0:python\n;plugin = not\nneed-plugin=eventfd\nplugin = %(x)\nplugin = /containers/30001/x.so\n\
            plugins-dir = /opt/unbit/uwsgi/plugins\n";
        assert_eq!(names(text).into_iter().collect::<Vec<_>>(), ["eventfd", "python", "quota", "tuntap"]);
        assert_eq!(values(text, &["plugins-dir"]).collect::<Vec<_>>(), ["/opt/unbit/uwsgi/plugins"]);
        assert!(names("plugins =\n").is_empty());
    }

    #[test]
    fn a_plugin_matters_where_it_is_needed() {
        let file = |text: &str| Vassal { path: "/etc/uwsgi/vassals/30001.ini".into(), text: text.into() };
        let state = |text: &str| finding("/usr/bin/uwsgi", "quota", &[&file(text)]).state;
        assert_eq!(state("plugins = quota\nstrict = true\n"), State::Fail);
        assert_eq!(state("need-plugins = a,quota\n"), State::Fail);
        assert_eq!(state("need-plugin = a\nplugin = quota\n"), State::Warn);
        assert_eq!(state("strict = false\nplugin = quota\n"), State::Warn);
    }
}
