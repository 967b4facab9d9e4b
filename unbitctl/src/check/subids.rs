//! Subordinate ids, subuid(5): ranges of numbers that ordinary users may be in user namespaces of
//! their own. A container's number among them is that user's as well.

use crate::containers;
use crate::report::{Finding, Profile};
use crate::rootfs::RootFs;
use shared::settings::FIRST_UID;
use shared::{ContainerUid, escape};
use std::io::ErrorKind;
use std::ops::RangeInclusive;

const CHECK: &str = "subids";
const LOGIN_DEFS: &str = "/etc/login.defs";
const WHY: &str = "an ordinary user can become each of these uids in a user namespace, and as a container's uid can write the container's files";

/// A file, the option of usermod(8) that takes a range away, and the settings of login.defs(5) by
/// which useradd(8) gives one.
pub(crate) struct Kind {
    pub(crate) file: &'static str,
    option: &'static str,
    settings: &'static str,
}

pub(crate) const UIDS: Kind = Kind { file: "/etc/subuid", option: "--del-subuids", settings: "SUB_UID" };
pub(crate) const GIDS: Kind = Kind { file: "/etc/subgid", option: "--del-subgids", settings: "SUB_GID" };

impl Kind {
    /// Who has a range.
    pub(crate) fn seen(&self, name: &str, range: &RangeInclusive<u64>) -> String {
        format!("{}: {} has {}-{}", self.file, escape::name(name), range.start(), range.end())
    }

    /// The command that takes the range away.
    pub(crate) fn removal(&self, name: &str, range: &RangeInclusive<u64>) -> String {
        format!("usermod {} {}-{} {}", self.option, range.start(), range.end(), crate::shell::quoted(name))
    }
}

/// Numbers of containers that are there.
pub fn check(node: &RootFs) -> Vec<Finding> {
    let ok = Finding::ok(CHECK, WHY, "no range in /etc/subuid or /etc/subgid has the number of a container");
    of_profile(node, Profile::Login, ok)
}

/// Numbers that a container may get.
pub fn check_guide(node: &RootFs) -> Vec<Finding> {
    let ok = Finding::ok(CHECK, WHY, "useradd gives no numbers that a container may get, and nobody has any");
    of_profile(node, Profile::Guide, ok)
}

fn of_profile(node: &RootFs, profile: Profile, ok: Finding) -> Vec<Finding> {
    let findings: Vec<_> = all(node).into_iter().filter(|finding| finding.profile == profile).collect();
    if findings.is_empty() { vec![ok] } else { findings }
}

fn all(node: &RootFs) -> Vec<Finding> {
    let containers = containers::all(node).unwrap_or_default();
    let read = |path: &str| match node.read_bytes(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Finding::not_applicable(CHECK, WHY, format!("{path}: {error}"))),
    };
    let defaults = if node.has("/usr/sbin/useradd") { read(LOGIN_DEFS) } else { Ok(None) };
    let mut findings = Vec::new();
    for kind in [&UIDS, &GIDS] {
        match read(kind.file) {
            Err(finding) => findings.push(finding),
            Ok(None) => {} // then useradd gives none either
            Ok(Some(text)) => {
                findings.extend(text.lines().filter_map(|line| judge(kind, line, &containers)));
                let given = defaults.as_ref().ok().and_then(Option::as_deref);
                findings.extend(given.and_then(|text| judge_defaults(kind, text)));
            }
        }
    }
    findings
}

/// A line `name:first:count`. What newuidmap(1) does not understand it passes over.
pub(crate) fn range(line: &str) -> Option<(&str, RangeInclusive<u64>)> {
    match line.split(':').collect::<Vec<_>>().as_slice() {
        [name, first, count] => {
            let (first, count) = (first.parse::<u64>().ok()?, count.parse::<u64>().ok()?);
            Some((*name, first..=first.checked_add(count.checked_sub(1)?)?))
        }
        _ => None,
    }
}

/// Whether a container may have one of these numbers.
fn has_container_numbers(range: &RangeInclusive<u64>) -> bool {
    *range.end() >= u64::from(FIRST_UID) && *range.start() <= i32::MAX as u64
}

fn judge(kind: &Kind, line: &str, containers: &[ContainerUid]) -> Option<Finding> {
    let (name, range) = range(line).filter(|(_, range)| has_container_numbers(range))?;
    let first = containers.iter().find(|container| range.contains(&u64::from(container.get())));
    let seen = kind.seen(name, &range);
    // Root needs none of it, and gives such ranges to containers of other engines.
    if matches!(name, "root" | "0") {
        let seen = format!("{seen}, so what root starts with them has the uid of the container {}", first?);
        let fix = format!("give root another range in {}, and change the containers that use the old one", kind.file);
        return Some(Finding::warn(CHECK, WHY, seen, fix));
    }
    let fix = kind.removal(name, &range);
    Some(match first {
        Some(container) => {
            Finding::fail(CHECK, WHY, format!("{seen}, and so the number of the container {container}"), fix)
        }
        None => Finding::warn(CHECK, WHY, format!("{seen}: no container may get one of these numbers"), fix)
            .with_profile(Profile::Guide),
    })
}

/// What useradd(8) gives to the next user.
fn judge_defaults(kind: &Kind, login_defs: &str) -> Option<Finding> {
    let setting = |name: &str, default: u64| {
        let key = format!("{}_{name}", kind.settings);
        let mut values = login_defs.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == key).then(|| words.next()?.parse().ok()).flatten()
        });
        values.next_back().unwrap_or(default)
    };
    let (first, last, count) = (setting("MIN", 100_000), setting("MAX", 600_100_000), setting("COUNT", 65_536));
    (count > 0 && has_container_numbers(&(first..=last))).then(|| {
        let seen =
            format!("{LOGIN_DEFS}: useradd gives each new user {count} of the numbers {first}-{last} ({})", kind.file);
        let fix = format!("set {}_COUNT 0 in {LOGIN_DEFS}", kind.settings);
        Finding::warn(CHECK, WHY, seen, fix).with_profile(Profile::Guide)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn ranges_that_have_numbers_of_containers() {
        let containers: Vec<_> = [30001, 100_005].into_iter().filter_map(ContainerUid::new).collect();
        let [subuid, subgid] = [&UIDS, &GIDS];
        let state = |line: &str| judge(subuid, line, &containers).map(|finding| finding.state);
        for (line, expected) in [
            ("alice:100000:65536", Some(State::Fail)),
            ("alice:100005:1", Some(State::Fail)),
            ("alice:99999:6", Some(State::Warn)),
            ("alice:100006:65536", Some(State::Warn)),
            ("alice:20000:10001", Some(State::Warn)), // 30000
            ("alice:20000:10000", None),
            ("alice:100000:0", None),
            ("alice:2147483647:1", Some(State::Warn)),
            ("alice:2147483648:65536", None),
            ("root:100000:65536", Some(State::Warn)),
            ("root:1000000:65536", None),
            ("alice:100000", None),
            ("alice:100000:65536:7", None),
            ("alice:18446744073709551615:2", None),
            ("alice:x:1", None),
            ("", None),
        ] {
            assert_eq!(state(line), expected, "{line}");
        }
        let finding = judge(subgid, "1000:100000:65536", &containers).unwrap();
        assert_eq!(finding.seen, "/etc/subgid: 1000 has 100000-165535, and so the number of the container 100005");
        assert_eq!(finding.fix.as_deref(), Some("usermod --del-subgids 100000-165535 1000"));
    }

    #[test]
    fn what_useradd_gives() {
        let [subuid, subgid] = [&UIDS, &GIDS];
        assert!(judge_defaults(subuid, "").is_some(), "by default");
        assert!(judge_defaults(subuid, "SUB_UID_MIN\t100000\n#SUB_UID_COUNT 0\nSUB_GID_COUNT 0\n").is_some());
        assert!(judge_defaults(subuid, "SUB_UID_COUNT\t0\n").is_none());
        assert!(judge_defaults(subuid, "SUB_UID_MIN 2147483648\nSUB_UID_MAX 4294836223\n").is_none());
        let finding = judge_defaults(subgid, "").unwrap();
        assert_eq!(
            finding.seen,
            "/etc/login.defs: useradd gives each new user 65536 of the numbers 100000-600100000 (/etc/subgid)"
        );
    }
}
