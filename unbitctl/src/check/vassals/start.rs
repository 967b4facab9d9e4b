//! What root does when a container starts from its file, followed as uWSGI does it: asap, pre-jail,
//! post-jail, pivot_root, as root.

use super::plugins::{self, PLUGIN_DIRECTORIES, PLUGINS};
use shared::escape;
use shared::settings::CONTAINERS;
use std::collections::BTreeMap;

/// What a line does that it must not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Root opens a log below the tenant's directory.
    Log,
    /// Root makes, changes or writes something there.
    Path,
    /// Root mounts something from there or to there.
    Mount,
    /// Root runs a program when the tenant's files are mounted.
    Program,
    /// Root reads its configuration there.
    Include,
    /// Root loads a plugin from there.
    Plugin,
    /// The node's devices or terminals are in the container.
    Devices,
    /// A bind with flags that it does not set.
    Nosuid,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// A file, or one that it includes.
    pub file: String,
    pub line: usize,
    pub option: String,
    /// The line, with its placeholders filled in.
    pub text: String,
}

/// An option of a file in uWSGI's order of reading.
#[derive(Clone, Debug)]
struct Setting {
    file: String,
    line: usize,
    key: String,
    value: String,
}

/// The phases in which uWSGI is root; it moves into its root directory before the last two
/// (core/uwsgi.c, core/utils.c: uwsgi_as_root()).
const PHASES: [&str; 5] = ["asap", "pre-jail", "post-jail", "as-root", "in-jail"];
const AFTER_PIVOT: usize = 3;

/// Options whose file root opens. log-backupname is a name that root gives to one.
const LOGS: [&str; 6] = ["logto", "daemonize", "pidfile", "safe-pidfile", "log-backupname", "logfile"];

/// Files that include each other end somewhere.
const DEPTH: usize = 8;
/// As many options as are looked at, and as long as a value grows by placeholders in placeholders.
const MAX_SETTINGS: usize = 4096;
const MAX_VALUE: usize = 4096;

/// All of them in a file, which may include others; only .ini files are read.
pub fn faults(path: &str, read: &dyn Fn(&str) -> Option<String>, text: &str) -> Vec<Fault> {
    if !path.ends_with(".ini") {
        return Vec::new();
    }
    let mut start = Start { trees: Vec::new(), is_mounted: false, old_root: None, faults: Vec::new() };
    let mut settings = Vec::new();
    let mut values = BTreeMap::from([("n".to_owned(), stem(path).to_owned())]);
    start.read(&mut settings, &mut values, read, path, text, 0);
    start.go(&settings);
    start.faults.sort_by_key(|fault| (fault.file != path, fault.line));
    start.faults
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// What is where while a container starts.
struct Start {
    /// Directories of the tenant's: all below one is the tenant's to replace.
    trees: Vec<String>,
    /// The tenant's files are mounted somewhere.
    is_mounted: bool,
    /// Where the node's root directory is after pivot_root.
    old_root: Option<String>,
    faults: Vec<Fault>,
}

impl Start {
    /// Reads the options of a file and of those that it includes.
    fn read(
        &mut self,
        settings: &mut Vec<Setting>,
        values: &mut BTreeMap<String, String>,
        read: &dyn Fn(&str) -> Option<String>,
        file: &str,
        text: &str,
        depth: usize,
    ) {
        let mut is_ours = true;
        for (at, line) in text.lines().enumerate() {
            if settings.len() >= MAX_SETTINGS {
                return;
            }
            let line = line.trim();
            if let Some(section) = line.strip_prefix('[') {
                is_ours = section.trim_end_matches(']') == "uwsgi";
                continue;
            }
            if !is_ours || line.starts_with([';', '#']) || line.is_empty() {
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let (key, value) = (key.trim().to_owned(), filled(value.trim(), values));
            if matches!(key.as_str(), "set-placeholder" | "set-ph" | "set") {
                if let Some((name, value)) = value.split_once('=') {
                    values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
                }
            }
            values.insert(key.clone(), value.clone());
            let setting = Setting { file: file.to_owned(), line: at + 1, key, value };
            if matches!(setting.key.as_str(), "ini" | "include" | "inherit" | "config") {
                let path = setting.value.split(':').next().unwrap_or_default().to_owned();
                if self.is_tenants(&path, 0) {
                    self.fault(Kind::Include, &setting);
                } else if let Some(text) = Some(&path).filter(|_| depth < DEPTH).and_then(|path| read(path)) {
                    self.read(settings, values, read, &path, &text, depth + 1);
                }
            }
            settings.push(setting);
        }
    }

    fn go(&mut self, settings: &[Setting]) {
        for (phase, name) in PHASES.iter().enumerate() {
            if phase == AFTER_PIVOT {
                self.pivot(settings);
            }
            let hooks = format!("hook-{name}");
            let commands = format!("exec-{name}");
            for setting in settings.iter().filter(|setting| setting.key == hooks) {
                self.hook(setting, phase);
            }
            for setting in settings.iter().filter(|setting| setting.key == commands) {
                self.command(setting, &setting.value, phase);
            }
        }
        // uWSGI loads plugins as it reads its options, before the first phase.
        for setting in settings {
            let names = match setting.key.as_str() {
                key if PLUGINS.contains(&key) => plugins::parts(&setting.value).collect(),
                key if PLUGIN_DIRECTORIES.contains(&key) => vec![setting.value.as_str()],
                _ => continue,
            };
            if names.into_iter().any(|name| self.is_tenants(name, 0) || self.is_a_tree(name, 0)) {
                self.fault(Kind::Plugin, setting);
            }
        }
        let opened = |setting: &&Setting| LOGS.contains(&setting.key.as_str());
        for setting in settings.iter().filter(opened) {
            if below_a_container(&setting.value, CONTAINERS) || self.is_tenants(&setting.value, AFTER_PIVOT) {
                self.fault(Kind::Log, setting);
            }
        }
        self.no_flags(settings);
    }

    /// `pivot_root = /ns /ns/.old_root`: what was below /ns is below /, and the rest below
    /// /.old_root.
    fn pivot(&mut self, settings: &[Setting]) {
        let Some(setting) = settings.iter().find(|setting| matches!(setting.key.as_str(), "pivot_root" | "pivot-root"))
        else {
            return;
        };
        let mut words = setting.value.split_whitespace();
        let (Some(root), Some(old)) = (words.next(), words.next()) else { return };
        let old = old.strip_prefix(root).unwrap_or(old).to_owned();
        let moved = |tree: &String| match below(tree, root) {
            Some(rest) => format!("/{rest}"),
            None => format!("{old}{tree}"),
        };
        self.trees = self.trees.iter().map(moved).collect();
        self.old_root = Some(old);
    }

    /// A hook, `mount:none /from /to bind`; an exclamation mark before it says that its failure
    /// counts.
    fn hook(&mut self, setting: &Setting, phase: usize) {
        let Some((verb, arguments)) = setting.value.trim_start_matches('!').split_once(':') else { return };
        let words: Vec<_> = arguments.split_whitespace().collect();
        match (verb, words.as_slice()) {
            ("exec" | "safeexec", _) => self.command(setting, arguments, phase),
            ("mount", [_, from, to, flags @ ..]) => self.mount(setting, from, to, flags.first().unwrap_or(&""), phase),
            ("putenv" | "print" | "log" | "hostname" | "alarm" | "exit", _) => {}
            (_, [path, ..]) if self.is_tenants(path, phase) => self.fault(Kind::Path, setting),
            _ => {}
        }
    }

    fn command(&mut self, setting: &Setting, command: &str, phase: usize) {
        let words = command.split(|letter: char| letter.is_whitespace() || "\"'`$(){};|&<>=".contains(letter));
        let names = |start: &Self| words.clone().any(|word| start.is_tenants(word, phase));
        if self.is_mounted {
            self.fault(Kind::Program, setting);
        } else if names(self) {
            self.fault(Kind::Path, setting);
        }
    }

    fn mount(&mut self, setting: &Setting, from: &str, to: &str, flags: &str, phase: usize) {
        let has = |flag: &str| flags.split(',').any(|other| other == flag);
        let is_bind = has("bind") && !has("remount");
        if self.is_tenants(to, phase) || is_bind && self.is_tenants(from, phase) {
            self.fault(Kind::Mount, setting);
        }
        let of_node = from.strip_prefix(self.old_root.as_deref().unwrap_or_default()).unwrap_or(from);
        if is_bind && matches!(of_node, "/dev" | "/dev/" | "/dev/pts" | "/dev/pts/") {
            self.fault(Kind::Devices, setting);
        }
        if is_bind && (self.is_tenants(from, phase) || self.is_a_tree(from, phase)) {
            self.trees.push(to.trim_end_matches('/').to_owned());
            self.is_mounted = true;
        } else if !to.is_empty() && !has("remount") {
            // What is mounted over a tenant's directory hides it.
            self.trees.retain(|tree| tree != to);
        }
    }

    /// Binds with a flag that they do not set, and that no remount of the same place sets.
    fn no_flags(&mut self, settings: &[Setting]) {
        let mounts: Vec<_> = settings
            .iter()
            .filter_map(|setting| {
                let words: Vec<_> = setting.value.strip_prefix("mount:")?.split_whitespace().collect();
                match words.as_slice() {
                    [_, _, to, flags, ..] => Some((setting, (*to).to_owned(), flags.split(',').collect::<Vec<_>>())),
                    _ => None,
                }
            })
            .collect();
        for (at, (setting, to, flags)) in mounts.iter().enumerate() {
            let sets = |flags: &[&str]| flags.contains(&"remount") && flags.contains(&"nosuid");
            let is_set = mounts.iter().skip(at).any(|(_, other, flags)| other == to && sets(flags));
            if flags.contains(&"bind") && flags.contains(&"nosuid") && !flags.contains(&"remount") && !is_set {
                self.fault(Kind::Nosuid, setting);
            }
        }
    }

    /// Whether the tenant can have put something else in a path's place.
    fn is_tenants(&self, path: &str, phase: usize) -> bool {
        below_a_container(path, &self.containers(phase)) || self.trees.iter().any(|tree| below(path, tree).is_some())
    }

    /// Whether a path is a tenant's directory itself: its name is in a directory that root owns.
    fn is_a_tree(&self, path: &str, phase: usize) -> bool {
        let containers = self.containers(phase);
        self.trees.iter().any(|tree| tree == path.trim_end_matches('/'))
            || below(path, &containers).is_some_and(|name| !name.trim_end_matches('/').contains('/'))
    }

    /// Where the node's /containers is.
    fn containers(&self, phase: usize) -> String {
        let old_root = self.old_root.as_deref().filter(|_| phase >= AFTER_PIVOT).unwrap_or_default();
        format!("{old_root}{CONTAINERS}")
    }

    fn fault(&mut self, kind: Kind, setting: &Setting) {
        let text = format!("{} = {}", setting.key, setting.value);
        let fault = Fault {
            kind,
            file: setting.file.clone(),
            line: setting.line,
            option: setting.key.clone(),
            text: escape::name(&text).to_string(),
        };
        self.faults.push(fault);
    }
}

/// What of a path is below a directory; nothing if it is not, or is the directory itself.
fn below<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    path.strip_prefix(directory)?
        .strip_prefix('/')
        .map(|rest| rest.trim_start_matches('/'))
        .filter(|rest| !rest.is_empty())
}

/// Whether it is below the directory of a container.
fn below_a_container(path: &str, containers: &str) -> bool {
    below(path, containers).is_some_and(|rest| rest.trim_end_matches('/').contains('/'))
}

/// A value with `%n` and `%(name)` filled in, as far as they are known.
fn filled(value: &str, values: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let named = after.strip_prefix('(').and_then(|name| name.split_once(')'));
        let short = after.strip_prefix('n').map(|after| ("n", after));
        let known = named.and_then(|(name, after)| Some((values.get(name)?, after)));
        let known = known.or_else(|| short.and_then(|(name, after)| Some((values.get(name)?, after))));
        match known.filter(|(value, _)| text.len() + value.len() <= MAX_VALUE) {
            Some((value, after)) => {
                text.push_str(value);
                rest = after;
            }
            None => {
                text.push('%');
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../../examples/container.ini");
    const CGROUPS: [&str; 2] =
        [include_str!("../../../../examples/cgroup-v1.ini"), include_str!("../../../../examples/cgroup-v2.ini")];

    fn seen(text: &str) -> Vec<(Kind, usize)> {
        seen_with(text, "")
    }

    fn seen_with(text: &str, included: &str) -> Vec<(Kind, usize)> {
        let read = |path: &str| (path == "/etc/uwsgi/cgroup.ini").then(|| included.to_owned());
        let faults = faults("/etc/uwsgi/vassals/30001.ini", &read, text);
        faults.into_iter().map(|fault| (fault.kind, fault.line)).collect()
    }

    #[test]
    fn the_example_is_safe() {
        for cgroup in CGROUPS {
            assert_eq!(seen_with(EXAMPLE, cgroup), []);
        }
        // As it is with the overlay.
        let overlay = EXAMPLE
            .replace(";hook-pre-jail = mount:overlay", "hook-pre-jail = mount:overlay")
            .replace("hook-pre-jail = mount:none /distros/base /ns bind\n", "");
        assert_ne!(overlay, EXAMPLE);
        assert_eq!(seen(&overlay), []);
    }

    /// The example with a line before another, and what is found in it.
    fn with_line(line: &str, before: &str) -> Vec<Kind> {
        let text = EXAMPLE.replacen(before, &format!("{line}\n{before}"), 1);
        assert_ne!(text, EXAMPLE, "{before}");
        seen(&text).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn each_line_that_breaks_the_rule_is_found() {
        let first = "hook-asap = hostname";
        for (line, before, kind) in [
            ("logto = /containers/%n/logs/x.log", "logto2 = ", Kind::Log),
            ("daemonize = /usr/local/x.log", "logto2 = ", Kind::Log),
            ("safe-pidfile = /containers/30001/run/pid", "logto2 = ", Kind::Log),
            ("hook-asap = mkdir:/containers/%n/run", first, Kind::Path),
            ("hook-asap = !appendn:/containers/%(uid)/.ssh/uwsgi_authorized_keys KEY", first, Kind::Path),
            ("hook-asap = chown:/containers/30001/run 30001 30001", first, Kind::Path),
            ("hook-asap = exec:install -d -o %n /containers/%n/run", first, Kind::Path),
            ("exec-asap = touch \"/containers/%n/x\"", first, Kind::Path),
            ("hook-as-root = write:/usr/local/x 1", "hook-as-root", Kind::Path),
            ("hook-as-root = chmod:/containers/%n/run 755", "hook-as-root", Kind::Path),
            ("hook-as-root = unlink:/.old_root/containers/%n/x", "hook-as-root", Kind::Path),
            ("hook-pre-jail = mount:none /containers/%n/run /ns/run bind", "pivot_root = ", Kind::Mount),
            ("hook-pre-jail = mount:none /distros/base/srv /ns/usr/local/srv bind", "pivot_root = ", Kind::Mount),
            ("hook-as-root = mount:tmpfs none /containers/%n/tmp", "hook-as-root", Kind::Mount),
            ("hook-pre-jail = exec:ip link set lo up", "pivot_root = ", Kind::Program),
            ("hook-as-root = exec:route add default gw 10.0.0.1", "hook-as-root", Kind::Program),
            ("exec-as-root = true", "hook-as-root", Kind::Program),
            ("ini = /containers/%n/more.ini", "jailed = true", Kind::Include),
            ("plugins-dir = /containers/%n/plugins", first, Kind::Plugin),
            ("plugin-dir = /containers/%n", first, Kind::Plugin),
            ("plugins = tuntap,0:/containers/%n/x.so", first, Kind::Plugin),
            ("hook-pre-jail = mount:none /dev /ns/dev bind", "pivot_root = ", Kind::Devices),
            ("hook-as-root = mount:none /.old_root/dev/pts /dev/pts bind", "hook-as-root", Kind::Devices),
            ("hook-pre-jail = mount:none /distros/base/srv /ns/srv bind,nosuid", "pivot_root = ", Kind::Nosuid),
        ] {
            assert_eq!(with_line(line, before), [kind], "{line}");
        }
        for (line, before) in [
            // The directory's own name is in a directory that root owns.
            ("hook-asap = mkdir:/containers/%n", first),
            ("hook-asap = chown2:/containers/%n 30001 30001", first),
            ("hook-asap = putenv:HOME=/containers/%n/home", first),
            ("hook-asap = setquota:/dev/sda 30001 1000", first),
            ("; hook-asap = mkdir:/containers/%n/run", first),
            ("plugins = tuntap, 0:python", first),
            ("plugins-dir = /usr/lib/uwsgi/plugins", first),
            ("hook-as-user = exec:/bin/true /containers/%n/x", "hook-as-user"),
            ("logto = /var/log/30001.log", "logto2 = "),
            (
                "hook-pre-jail = mount:none /distros/base/srv /ns/srv bind,nosuid\nhook-pre-jail = mount:none none /ns/srv bind,remount,nosuid",
                "pivot_root = ",
            ),
            ("[other]\nlogto = /containers/%n/x\n[uwsgi]", "logto2 = "),
        ] {
            assert_eq!(with_line(line, before), [], "{line}");
        }
    }

    /// What uwsgi.it's own template does wrong, a line for each fault, in its paths and order.
    const TEMPLATE: &str = "\
        [uwsgi]\n\
        hook-asap = mkdir:/containers/30001/run\n\
        hook-asap = chown:/containers/30001/run 30001 30001\n\
        hook-asap = creat:/containers/30001/logs/lastlog\n\
        hook-pre-jail = mount:none /distros/precise /ns bind\n\
        pivot_root = /ns /ns/.old_root\n\
        hook-as-root = mount:none /.old_root/dev /dev bind\n\
        hook-as-root = mount:none /.old_root/dev/pts /dev/pts bind\n\
        hook-as-root = mount:none /.old_root/containers/30001/.old_root /containers bind\n\
        hook-as-root = mount:none /.old_root/containers/30001 /containers/30001 bind\n\
        hook-as-root = mount:none /containers/30001/tmp /tmp bind,nosuid\n\
        hook-as-root = mount:none /containers/30001 /usr/local bind,nosuid\n\
        hook-as-root = exec:ifconfig lo up\n\
        hook-as-root = chown:/containers/30001/logs/emperor.log 30001 30001\n\
        uid = 30001\n\
        gid = 30001\n\
        logto = /containers/30001/logs/emperor.log\n\
        emperor = /containers/30001/vassals\n";

    #[test]
    fn each_known_fault_of_uwsgi_its_template_is_found() {
        use Kind::{Devices, Log, Mount, Nosuid, Path, Program};
        assert_eq!(
            seen(TEMPLATE),
            [
                (Path, 2),
                (Path, 3),
                (Path, 4),
                (Devices, 7),
                (Devices, 8),
                (Mount, 9),  // .old_root -> .. : another's files appear
                (Mount, 10), // .old_root/30001 -> /etc
                (Mount, 11),
                (Nosuid, 11),
                (Mount, 12), // by way of what is on /containers
                (Nosuid, 12),
                (Program, 13), // ~/sbin/ifconfig
                (Path, 14),
                (Log, 17),
            ]
        );
    }

    #[test]
    fn what_an_included_file_does_counts_there() {
        let text = "[uwsgi]\nuid = %n\nini = /etc/uwsgi/cgroup.ini\n";
        let read = |path: &str| {
            (path == "/etc/uwsgi/cgroup.ini").then(|| {
                "[uwsgi]\nhook-asap = chmod:/containers/%(uid)/x 700\nini = /etc/uwsgi/cgroup.ini\n".to_owned()
            })
        };
        let found = faults("/etc/uwsgi/vassals/30001.ini", &read, text);
        assert_eq!((found[0].file.as_str(), found[0].line), ("/etc/uwsgi/cgroup.ini", 2));
        assert_eq!(found[0].text, "hook-asap = chmod:/containers/30001/x 700");
        assert_eq!(faults("/etc/uwsgi/vassals/30001.xml", &read, text), []);
    }
}
