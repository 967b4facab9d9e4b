//! The distributions: root file systems that containers start from.
//!
//! A check of the node reads distributions and runs none of their programs, because a customer may
//! have made one. Only `--root DISTRIBUTION` runs its getent and ldd. No link leads out of it.

use super::library::{self, NSS_MODULE};
use crate::command;
use crate::containers::has_emperor;
use crate::report::Finding;
use crate::rootfs::{RootFs, others_can_write};
use crate::step::{Change, Choices, Step};
use anyhow::Result;
use shared::ContainerUid;
use shared::settings::{CONTAINERS, SHELL};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const CHECK: &str = "distributions";
/// Where they are.
pub const DISTRIBUTIONS: &str = "/distros";

/// What pivot_root(2) and the binds of a container's start need.
pub const NEEDED: [&str; 2] = [".old_root", "containers"];

const START: &str = "a container starts by pivot_root(2) into it, which needs both directories";
const NAMES: &str =
    "inside a container scp, sftp-server and shell prompts look up its user, and fail if there is no such account";
const FIRST: &str =
    "first make it root's, as shown above, and remove what others may have put there; then run this check again";
const WRITERS: &str = "every container that starts from it runs its programs";

pub const STEP: Step = Step { guide: check_guide, ..Step::new(CHECK, check, fix) };

/// Where an Emperor starts containers from them.
pub fn check(node: &RootFs) -> Vec<Finding> {
    if is_distribution(node) || has_emperor(node) {
        return check_all(node);
    }
    vec![Finding::not_applicable(CHECK, START, "no Emperor starts containers here")]
}

/// The guide's node has them before it has a container.
pub fn check_guide(node: &RootFs) -> Vec<Finding> {
    if is_distribution(node) || has_emperor(node) { Vec::new() } else { check_all(node) }
}

fn check_all(node: &RootFs) -> Vec<Finding> {
    let distributions = match all(node) {
        Ok(distributions) => distributions,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return vec![Finding::not_applicable(CHECK, START, format!("{DISTRIBUTIONS}: root is needed to see"))];
        }
        Err(error) => return vec![Finding::not_applicable(CHECK, START, format!("open {DISTRIBUTIONS}: {error}"))],
    };
    if distributions.is_empty() {
        let why = "a container starts from one";
        let stable = node.quoted(&format!("{DISTRIBUTIONS}/stable"));
        let fix = format!("debootstrap stable {stable}, and check again");
        return vec![Finding::warn(CHECK, why, format!("{DISTRIBUTIONS} is empty"), fix)];
    }
    distributions.iter().flat_map(|distribution| distribution.check(node)).collect()
}

/// Makes the directories that are missing. Only where nobody but root can change what is there
/// meanwhile.
fn fix(node: &RootFs, _: Choices) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for distribution in all(node).unwrap_or_default() {
        for directory in NEEDED.into_iter().filter(|directory| distribution.can_make(directory)) {
            let path = format!("{}/{directory}", distribution.path);
            changes.push(Change::Directory { path, uid: 0, gid: 0, mode: 0o755 });
        }
    }
    Ok(changes)
}

/// Those that lack a program.
pub fn lacking_program(node: &RootFs, program: &str) -> Vec<String> {
    let distributions = all(node).unwrap_or_default();
    distributions.into_iter().filter(|one| !one.root.has(program)).map(|one| one.path).collect()
}

/// Whether a root directory is a distribution: it is below this machine's /distros, or has where
/// pivot_root(2) leaves the old root.
pub fn is_distribution(node: &RootFs) -> bool {
    let real = node.root().canonicalize();
    let is_below =
        |real: &PathBuf| fs::canonicalize(DISTRIBUTIONS).is_ok_and(|all| real.starts_with(&all) && *real != all);
    !node.is_running() && (real.as_ref().is_ok_and(is_below) || node.has("/.old_root"))
}

/// Of a root directory that is a distribution.
pub fn check_distribution(node: &RootFs) -> Vec<Finding> {
    as_distribution(node).check(node)
}

fn as_distribution(node: &RootFs) -> Distribution {
    Distribution { path: String::new(), root: node.clone() }
}

/// All of them, by name.
fn all(node: &RootFs) -> io::Result<Vec<Distribution>> {
    if is_distribution(node) {
        return Ok(vec![as_distribution(node)]);
    }
    let mut names: Vec<_> = std::fs::read_dir(node.resolve(DISTRIBUTIONS)?)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && name != "lost+found")
        .collect();
    names.sort();
    let at = |name: &String| {
        let path = format!("{DISTRIBUTIONS}/{name}");
        let root = node.resolve(&path).ok()?;
        root.is_dir().then(|| Distribution { path, root: RootFs::at(Some(&root)) })
    };
    Ok(names.iter().filter_map(at).collect())
}

/// One of them: a root directory of its own.
struct Distribution {
    /// As the node names it.
    path: String,
    root: RootFs,
}

impl Distribution {
    fn check(&self, node: &RootFs) -> Vec<Finding> {
        let path = &self.path;
        let name = if path.is_empty() { "it" } else { path };
        match self.root.open("/.") {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return vec![Finding::not_applicable(CHECK, START, format!("{name}: root is needed to see"))];
            }
            _ => {}
        }
        let mut findings = Vec::new();
        let writers = self.writers();
        if let Some(writers) = &writers {
            let fix = format!("chown root:root {0} && chmod go-w {0}", self.root.quoted("/"));
            findings.push(Finding::warn(CHECK, WRITERS, format!("{name} {writers}"), fix));
        }
        for directory in NEEDED {
            if let Some(lack) = self.lack(directory) {
                let real = self.root.quoted(directory);
                let fix = match lack {
                    _ if self.can_make(directory) => node.setup_command(CHECK),
                    Lack::Missing => format!("mkdir -m 755 {real}"),
                    Lack::NoDirectory => format!("rm {real} && mkdir -m 755 {real}"),
                };
                let word = if lack == Lack::Missing { "missing" } else { "not a directory" };
                findings.push(Finding::fail(CHECK, START, format!("{path}/{directory} is {word}"), fix));
            }
        }
        match self.account_lookup() {
            Ok(how) if findings.is_empty() => {
                findings.push(Finding::ok(CHECK, START, format!("{name}: both directories, {how}")))
            }
            Ok(_) => {}
            Err((seen, fix)) => {
                // Root would run programs and follow links that others may have put there.
                let fix = if writers.is_none() { fix } else { FIRST.to_owned() };
                findings.push(Finding::warn(CHECK, NAMES, format!("{name}: {seen}"), fix));
            }
        }
        findings
    }

    /// Who besides root may change what is in it.
    fn writers(&self) -> Option<String> {
        let status = File::from(self.root.open("/").ok()?).metadata().ok()?;
        let (uid, mode) = (status.uid(), status.mode() & 0o7777);
        (uid != 0 || others_can_write(&status)).then(|| format!("is owned by uid {uid}, mode {mode:04o}"))
    }

    fn lack(&self, directory: &str) -> Option<Lack> {
        match self.root.open_link(&format!("/{directory}")).map(|found| File::from(found).metadata()) {
            Ok(Ok(status)) if status.is_dir() => None,
            Ok(_) => Some(Lack::NoDirectory),
            Err(_) => Some(Lack::Missing),
        }
    }

    fn can_make(&self, directory: &str) -> bool {
        self.writers().is_none() && self.lack(directory) == Some(Lack::Missing)
    }

    /// How programs in it look up the name of a container's uid; otherwise what is missing, and the
    /// fix.
    fn account_lookup(&self) -> Result<String, (String, String)> {
        let passwd = self.root.read_bytes("/etc/passwd").unwrap_or_default();
        let named = containers_in(&String::from_utf8_lossy(&passwd));
        let Some(directory) = command::library_directories(&self.root)
            .into_iter()
            .find(|directory| self.root.has(&format!("{directory}/libc.so.6")))
        else {
            if named > 0 {
                return Ok(format!("lines of passwd for {named} containers"));
            }
            let seen = "it has no glibc, and /etc/passwd no line for any container".to_owned();
            let line = format!("30001:x:30001:30001:30001:{CONTAINERS}/30001:{SHELL}");
            return Err((
                seen,
                format!("for each container that uses it: echo {line} >>{}", self.root.quoted("/etc/passwd")),
            ));
        };
        let (mut lacks, mut fixes) = (Vec::new(), Vec::new());
        let module = self.loaded(&directory).unwrap_or_else(|| format!("{directory}/{NSS_MODULE}"));
        let real = self.root.quoted(&module);
        match (self.machine(&module), self.machine(&format!("{directory}/libc.so.6"))) {
            (Some(machine), Some(libc)) if machine == libc && library::is_ours(&self.root, &module) => {}
            (Some(machine), Some(libc)) if machine == libc => {
                lacks.push(format!("{module}, which glibc loads there, is {}", library::whose(&module)));
                fixes.push(format!("mv {real} /root/ && install -m 644 {NSS_MODULE} {}", self.root.quoted(&directory)));
            }
            (None, _) if !self.root.has(&module) => {
                lacks.push(format!("no {module}"));
                fixes.push(format!("install -m 644 {NSS_MODULE} of its architecture as {real}"));
            }
            _ => {
                lacks.push(format!("{module} is not of its architecture"));
                fixes.push(format!("install -m 644 {NSS_MODULE} of its architecture as {real}"));
            }
        }
        let nsswitch = self.root.read_bytes("/etc/nsswitch.conf").unwrap_or_default();
        if !names_unbit(&String::from_utf8_lossy(&nsswitch)) {
            lacks.push("no unbit in the passwd line of /etc/nsswitch.conf".to_owned());
            fixes.push(self.root.setup_command("nsswitch"));
        }
        match (lacks.is_empty(), named) {
            (true, _) => Ok(format!("{module} and its line in nsswitch.conf")),
            (false, 0) => Err((lacks.join(", "), fixes.join("\n"))),
            (false, named) => Ok(format!("lines of passwd for {named} containers")),
        }
    }

    /// The library of our name that glibc loads there, in a root directory whose libc is in
    /// `directory`: by the cache, else from its usual directories.
    fn loaded(&self, directory: &str) -> Option<String> {
        let cache = self.root.read_bytes("/etc/ld.so.cache").unwrap_or_default();
        let cached = library::cached(&cache, NSS_MODULE).into_iter().map(str::to_owned);
        let triplet = directory.rsplit('/').next().filter(|name| name.contains("-linux-gnu"));
        let several = triplet.into_iter().flat_map(|name| [format!("/lib/{name}"), format!("/usr/lib/{name}")]);
        let usual = several.chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_owned));
        let machine = self.machine(&format!("{directory}/libc.so.6"))?;
        cached
            .chain(usual.map(|directory| format!("{directory}/{NSS_MODULE}")))
            .find(|path| self.machine(path) == Some(machine))
    }

    /// The machine of an ELF file, elf(5): its class, its byte order and
    /// e_machine.
    fn machine(&self, path: &str) -> Option<[u8; 4]> {
        let mut head = [0; 20];
        self.root.open_file(path).ok()?.read_exact(&mut head).ok()?;
        match head {
            [0x7f, b'E', b'L', b'F', class, order, .., low, high] => Some([class, order, low, high]),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lack {
    Missing,
    /// Something else is there.
    NoDirectory,
}

/// How many containers passwd(5) names.
fn containers_in(passwd: &str) -> usize {
    let is_container = |line: &&str| {
        let uid = line.split(':').nth(2).and_then(|uid| ContainerUid::parse(uid.as_bytes()));
        uid.is_some()
    };
    passwd.lines().filter(is_container).count()
}

/// Whether nsswitch.conf(5) has accounts looked up with our module.
fn names_unbit(nsswitch: &str) -> bool {
    nsswitch
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().strip_prefix("passwd:"))
        .any(|services| services.split_whitespace().any(|service| service == "unbit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_passwd_counts_by_its_uid() {
        let passwd =
            "root:x:0:0::/:/bin/sh\n30001:x:30001:30001::/containers/30001:/bin/bash\nweb:x:30002:30002::/:/bin/sh\n";
        assert_eq!(containers_in(passwd), 2);
        assert_eq!(containers_in("nobody:x:65534:65534::/:/bin/sh\n30001\n:::\n"), 0);
    }

    #[test]
    fn the_passwd_line_alone_counts() {
        for text in ["passwd: files unbit\n", "  passwd:\tcompat unbit # ours", "group: files\npasswd:unbit"] {
            assert!(names_unbit(text), "{text}");
        }
        for text in
            ["", "passwd: files", "group: files unbit", "#passwd: unbit", "passwd: files # unbit", "passwd: unbitx"]
        {
            assert!(!names_unbit(text), "{text}");
        }
    }
}
