//! Checks the directories of a node: each exists, has the right owner, and is accessible to no more
//! users than necessary.

use super::accounts::numbered;
use super::distributions::DISTRIBUTIONS;
use crate::report::Finding;
use crate::rootfs::{RootFs, others_can_write};
use crate::step::{Change, Choices, Step};
use anyhow::{Context, Result};
use join::link::DIRECTORY as LINKS;
use shared::settings::CONTAINERS;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const CHECK: &str = "directories";

/// The account of the http routers.
const WWW_DATA: &str = "www-data";

/// Who owns a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Root,
    WwwData,
}

/// A directory that a node needs.
struct Directory {
    path: &'static str,
    owner: Owner,
    group: Owner,
    /// As set-up makes it.
    mode: u32,
    /// The bits that it cannot do without.
    least: u32,
    /// The bits that it may have.
    most: u32,
    why: &'static str,
}

impl Directory {
    const fn of_root(path: &'static str, why: &'static str) -> Self {
        Self { path, owner: Owner::Root, group: Owner::Root, mode: 0o755, least: 0o700, most: 0o755, why }
    }

    const fn of_www_data(path: &'static str, why: &'static str) -> Self {
        Self { owner: Owner::WwwData, group: Owner::WwwData, ..Self::of_root(path, why) }
    }

    const fn modes(self, mode: u32, least: u32, most: u32) -> Self {
        Self { mode, least, most, ..self }
    }
}

/// What a login needs.
const CONTAINERS_DIRECTORY: Directory =
    Directory::of_root(CONTAINERS, "a directory in it is an account: whoever can write there can make accounts")
        .modes(0o755, 0o711, 0o755);
/// Where there are links to other engines' containers.
const LINKS_DIRECTORY: Directory = Directory::of_root(
    LINKS,
    "a link in it says which container an account is: whoever can write there decides where logins go",
);

/// What the guide asks for in addition, in the order in which they are made.
const OF_GUIDE: [Directory; 13] = [
    Directory::of_root(DISTRIBUTIONS, "the root file systems of containers, whose programs root starts"),
    Directory::of_root("/ns", "where the Emperor mounts a container's root before pivot_root(2)"),
    Directory::of_www_data("/subscribe", "applications in containers reach the routers' sockets here")
        .modes(0o755, 0o711, 0o755),
    Directory::of_root("/opt/unbit/uwsgi/plugins", "code that the Emperor loads as root").modes(0o755, 0o755, 0o755),
    Directory::of_root("/etc/uwsgi", "the configuration that the Emperor reads as root").modes(0o755, 0o711, 0o755),
    Directory::of_root("/etc/uwsgi/vassals", "a file in it is a container, started as root"),
    Directory::of_www_data("/etc/uwsgi/domains", "the public keys that signed subscriptions are checked with"),
    Directory::of_root("/etc/uwsgi/ssl", "the keys of the node's certificates"),
    Directory::of_www_data("/etc/uwsgi/tmp_ssl", "the keys of customers' certificates are here")
        .modes(0o700, 0o700, 0o700),
    Directory::of_root(
        "/etc/uwsgi/alarms",
        "every container writes its alarms here, and must not change those of others",
    )
    .modes(0o1777, 0o1733, 0o1777),
    Directory::of_root("/etc/uwsgi/services", "a file in it is a service of the node, started as root"),
    Directory::of_root("/etc/uwsgi/custom_services", "a file in it is a customer's service, started as root"),
    Directory {
        group: Owner::WwwData,
        ..Directory::of_root("/var/log/uwsgi", "the routers write their logs here, and logs name customers")
    }
    .modes(0o770, 0o770, 0o770),
];

const ANYBODY: u32 = 0o007;
const STICKY: u32 = 0o1000;

const WHY: &str = "they hold accounts, containers and the node's services";

pub const STEP: Step = Step { guide: check_guide, ..Step::new(CHECK, check, fix) };

/// Those that a login needs, on this node.
fn needed(node: &RootFs) -> Vec<&'static Directory> {
    let links = node.has(LINKS).then_some(&LINKS_DIRECTORY);
    std::iter::once(&CONTAINERS_DIRECTORY).chain(links).collect()
}

pub fn check(node: &RootFs) -> Vec<Finding> {
    judge_all(node, &needed(node), Accounts::ROOT, &node.setup_command(CHECK))
}

pub fn check_guide(node: &RootFs) -> Vec<Finding> {
    match Accounts::of(node) {
        Ok(accounts) => {
            judge_all(node, &OF_GUIDE.iter().collect::<Vec<_>>(), accounts, &node.guide_setup_command(CHECK))
        }
        Err(error) => {
            let why = "the routers run as www-data, and some directories are theirs";
            let fix = node.command_on_node("adduser --system --group --home /var/www --no-create-home www-data");
            vec![Finding::fail(CHECK, why, format!("{error:#}"), fix)]
        }
    }
}

/// `setup` is the command that fixes them.
fn judge_all(node: &RootFs, directories: &[&Directory], accounts: Accounts, setup: &str) -> Vec<Finding> {
    let (mut faults, mut missing, mut well) = (Vec::new(), Vec::new(), 0);
    for directory in directories {
        let (path, why) = (directory.path, directory.why);
        faults.push(match inspect(node, directory, accounts, setup) {
            Verdict::Well => {
                well += 1;
                continue;
            }
            Verdict::Missing => {
                missing.push(path);
                continue;
            }
            Verdict::Hidden => Finding::not_applicable(CHECK, why, format!("{path}: root is needed to see")),
            Verdict::NotSticky(place) => {
                Finding::warn(CHECK, why, format!("{} lacks the sticky bit", place.name), setup)
            }
            Verdict::Wrong(place, seen) => Finding::fail(CHECK, why, format!("{} is {seen}", place.name), setup),
            Verdict::InTheWay(seen, fix) => Finding::fail(CHECK, why, format!("{path} {seen}"), fix),
        });
    }
    let mut findings = Vec::new();
    if well > 0 {
        let seen = match directories {
            [one] => format!("{} exists with the right owner and mode", one.path),
            directories if well == directories.len() => format!("all {well} exist with the right owner and mode"),
            directories => format!("{well} of {} exist with the right owner and mode", directories.len()),
        };
        findings.push(Finding::ok(CHECK, WHY, seen));
    }
    if !missing.is_empty() {
        findings.push(Finding::fail(CHECK, WHY, format!("missing: {}", missing.join(" ")), setup));
    }
    findings.extend(faults);
    findings
}

/// Makes the directories that are missing, and gives the others their owner and mode. What is in
/// the way stays for the operator.
fn fix(node: &RootFs, choices: Choices) -> Result<Vec<Change>> {
    let mut directories = needed(node);
    let mut accounts = Accounts::ROOT;
    if choices.guide {
        directories.extend(&OF_GUIDE);
        accounts = Accounts::of(node)?;
    }
    let mut changes = Vec::new();
    for directory in directories {
        let path = match inspect(node, directory, accounts, "") {
            Verdict::Missing => directory.path.to_owned(),
            Verdict::NotSticky(place) | Verdict::Wrong(place, _) => place.path,
            Verdict::Well | Verdict::Hidden | Verdict::InTheWay(..) => continue,
        };
        let parents: Vec<_> = Path::new(&path).ancestors().skip(1).filter_map(Path::to_str).collect();
        for parent in parents.into_iter().rev() {
            let made = Change::Directory { path: parent.to_owned(), uid: 0, gid: 0, mode: 0o755 };
            let is_made =
                changes.iter().any(|change| matches!(change, Change::Directory { path, .. } if path == parent));
            if !is_made && matches!(node.open(parent), Err(error) if error.kind() == ErrorKind::NotFound) {
                changes.push(made);
            }
        }
        let (uid, gid) = (accounts.uid(directory.owner), accounts.gid(directory.group));
        changes.push(Change::Directory { path, uid, gid, mode: directory.mode });
    }
    Ok(changes)
}

/// The numbers of www-data on a node: those of its own account files, which in a root directory
/// need not be those of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Accounts {
    uid: u32,
    gid: u32,
}

impl Accounts {
    /// Where no directory is www-data's.
    const ROOT: Self = Self { uid: 0, gid: 0 };

    fn of(node: &RootFs) -> Result<Self> {
        let number = |file: &str| {
            number_of(&node.read(file)?.unwrap_or_default(), WWW_DATA)
                .with_context(|| format!("{file} has no {WWW_DATA}"))
        };
        Ok(Self { uid: number("/etc/passwd")?, gid: number("/etc/group")? })
    }

    fn uid(self, owner: Owner) -> u32 {
        if owner == Owner::Root { 0 } else { self.uid }
    }

    fn gid(self, group: Owner) -> u32 {
        if group == Owner::Root { 0 } else { self.gid }
    }

    fn name(www_data: u32, number: u32) -> String {
        match number {
            0 => "root".to_owned(),
            number if number == www_data => WWW_DATA.to_owned(),
            number => number.to_string(),
        }
    }
}

/// The third field of the line that begins with this name, in passwd(5) and group(5) alike.
fn number_of(text: &str, name: &str) -> Option<u32> {
    numbered(text).find(|(other, _)| *other == name).map(|(_, number)| number)
}

/// What is seen of one directory.
#[derive(Debug)]
enum Verdict {
    Well,
    Hidden,
    Missing,
    /// All is well, but people who share it can remove what is another's.
    NotSticky(Place),
    /// What its owner and mode are.
    Wrong(Place, String),
    /// Something that set-up does not touch, and what the operator can do about it.
    InTheWay(String, String),
}

/// Where a directory is.
#[derive(Debug)]
struct Place {
    /// The directory itself, behind whatever links, as the node names it.
    path: String,
    /// For people: its name, and where it leads if it is a link.
    name: String,
}

fn inspect(node: &RootFs, directory: &Directory, accounts: Accounts, setup: &str) -> Verdict {
    let found = match node.open(directory.path) {
        Ok(found) => File::from(found),
        Err(error) => return not_opened(node, directory.path, &error, setup),
    };
    let Ok(status) = found.metadata() else { return Verdict::Hidden };
    if !status.is_dir() {
        return Verdict::InTheWay(
            "is not a directory".to_owned(),
            format!("mv {0} {0}.old && {setup}", node.quoted(directory.path)),
        );
    }
    let Some(place) = place(node, directory.path, &found) else { return Verdict::Hidden };
    if [CONTAINERS, LINKS].contains(&directory.path) {
        if let Some(verdict) = on_the_way(node, &place) {
            return verdict;
        }
    }
    match judge(directory, &status, accounts) {
        Judgement::Well => Verdict::Well,
        Judgement::NotSticky => Verdict::NotSticky(place),
        Judgement::Wrong(seen) => Verdict::Wrong(place, seen),
    }
}

fn not_opened(node: &RootFs, path: &str, error: &io::Error, setup: &str) -> Verdict {
    match error.kind() {
        ErrorKind::PermissionDenied => Verdict::Hidden,
        ErrorKind::NotFound if node.open_link(path).is_err() => Verdict::Missing,
        ErrorKind::NotFound => Verdict::InTheWay(
            "is a symbolic link that leads nowhere".to_owned(),
            format!(
                "make the directory that it names (readlink {}), or remove the symbolic link and run {setup}",
                node.quoted(path)
            ),
        ),
        _ => Verdict::InTheWay(
            format!("cannot be opened: {error}"),
            format!("see why not: namei -l {}", node.quoted(path)),
        ),
    }
}

/// The operator may keep a directory elsewhere and leave a link in its place: what counts is the
/// directory behind it.
fn place(node: &RootFs, path: &str, found: &File) -> Option<Place> {
    let behind = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    let root = node.root().canonicalize().ok()?;
    let inside = Path::new("/").join(behind.strip_prefix(&root).ok()?).to_str()?.to_owned();
    let name = if inside == path { inside.clone() } else { format!("{path} (a symbolic link to {inside})") };
    Some(Place { path: inside, name })
}

/// Whoever can rename a directory above one that a login needs can put another in its place.
fn on_the_way(node: &RootFs, place: &Place) -> Option<Verdict> {
    Path::new(&place.path).ancestors().skip(1).filter_map(Path::to_str).find_map(|above| {
        let status = File::from(node.open(above).ok()?).metadata().ok()?;
        let is_loose = others_can_write(&status) && status.mode() & STICKY == 0;
        (status.uid() != 0 || is_loose).then(|| {
            let seen = format!(
                "is below {above}, which is owned by uid {}, mode {:04o}",
                status.uid(),
                status.mode() & 0o7777
            );
            let real = node.quoted(above);
            Verdict::InTheWay(seen, format!("chown root:root {real} && chmod go-w {real}"))
        })
    })
}

#[derive(PartialEq, Eq, Debug)]
enum Judgement {
    Well,
    NotSticky,
    /// What it is, and what it has to be.
    Wrong(String),
}

fn judge(directory: &Directory, status: &Metadata, accounts: Accounts) -> Judgement {
    judge_numbers(directory, (status.uid(), status.gid(), status.mode() & 0o7777), accounts)
}

fn judge_numbers(directory: &Directory, (uid, gid, mode): (u32, u32, u32), accounts: Accounts) -> Judgement {
    // A group counts only where it may do what not everybody may.
    let group_counts = (directory.most >> 3 & ANYBODY) != directory.most & ANYBODY;
    let is_owned = uid == accounts.uid(directory.owner) && (!group_counts || gid == accounts.gid(directory.group));
    let (too_much, too_little) = (mode & 0o777 & !directory.most, directory.least & !mode);
    match (is_owned, too_much, too_little) {
        (true, 0, 0) => Judgement::Well,
        (true, 0, STICKY) => Judgement::NotSticky,
        _ => Judgement::Wrong(format!(
            "{}:{} {mode:04o} where {}:{} {:04o} is needed",
            Accounts::name(accounts.uid, uid),
            Accounts::name(accounts.gid, gid),
            Accounts::name(accounts.uid, accounts.uid(directory.owner)),
            Accounts::name(accounts.gid, accounts.gid(directory.group)),
            directory.mode,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: Accounts = Accounts { uid: 33, gid: 33 };

    fn all() -> impl Iterator<Item = &'static Directory> {
        [&CONTAINERS_DIRECTORY, &LINKS_DIRECTORY].into_iter().chain(&OF_GUIDE)
    }

    fn judged(path: &str, uid: u32, gid: u32, mode: u32) -> Judgement {
        let directory = all().find(|directory| directory.path == path).unwrap();
        judge_numbers(directory, (uid, gid, mode), DEBIAN)
    }

    #[test]
    fn what_setup_makes_is_well() {
        for directory in all() {
            let made = (DEBIAN.uid(directory.owner), DEBIAN.gid(directory.group), directory.mode);
            assert_eq!(judge_numbers(directory, made, DEBIAN), Judgement::Well, "{}", directory.path);
        }
    }

    #[test]
    fn an_operator_may_be_stricter_but_not_too_strict() {
        for (path, uid, gid, mode) in [
            (CONTAINERS, 0, 0, 0o711),
            ("/etc/uwsgi/ssl", 0, 33, 0o750),
            ("/etc/uwsgi/vassals", 0, 0, 0o700),
            ("/subscribe", 33, 0, 0o2755),
        ] {
            assert_eq!(judged(path, uid, gid, mode), Judgement::Well, "{path} {mode:o}");
        }
        for (path, uid, gid, mode) in [
            (CONTAINERS, 0, 0, 0o700), // a container's user could not reach the own home
            (CONTAINERS, 0, 0, 0o775),
            (CONTAINERS, 0, 0, 0o757),
            (CONTAINERS, 0, 0, 0o1777),
            (CONTAINERS, 33, 0, 0o755),
            ("/etc/uwsgi/tmp_ssl", 33, 33, 0o750),
            ("/etc/uwsgi/tmp_ssl", 0, 0, 0o700),
            ("/etc/uwsgi/domains", 0, 0, 0o755),
            ("/etc/uwsgi/alarms", 0, 0, 0o755),
            ("/var/log/uwsgi", 0, 0, 0o770),
            ("/var/log/uwsgi", 33, 33, 0o770),
            ("/var/log/uwsgi", 0, 33, 0o775),
            ("/var/log/uwsgi", 0, 33, 0o750),
        ] {
            assert!(matches!(judged(path, uid, gid, mode), Judgement::Wrong(_)), "{path} {uid}:{gid} {mode:o}");
        }
        assert_eq!(judged("/etc/uwsgi/alarms", 0, 0, 0o777), Judgement::NotSticky);
    }

    #[test]
    fn people_read_names() {
        assert_eq!(
            judged("/var/log/uwsgi", 1000, 33, 0o755),
            Judgement::Wrong("1000:www-data 0755 where root:www-data 0770 is needed".to_owned())
        );
    }

    #[test]
    fn the_nodes_own_account_files_count() {
        let passwd =
            "root:x:0:0::/:/bin/sh\nwww-data2:x:7:7::/:/bin/sh\nwww-data:x:48:49::/var/www:/usr/sbin/nologin\n";
        assert_eq!(number_of(passwd, WWW_DATA), Some(48));
        assert_eq!(number_of("www-data:x:49:\n", WWW_DATA), Some(49));
        assert_eq!(number_of("www-data:x\n", WWW_DATA), None);
        assert_eq!(number_of("", WWW_DATA), None);
    }
}
