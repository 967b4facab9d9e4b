//! The ids of a container's user namespace: none may be an account, another container, or in a
//! user's subordinate range.
//!
//! A login is refused only if the session or root inside would have such an id. Root inside can
//! become each other id of the map by setuid(2).

use super::accounts::numbered;
use super::subids;
use join::user_namespace::mapped_ranges;
use shared::{ContainerUid, escape};
use std::ops::RangeInclusive;

/// As `login.defs` has it: from this number on an account is a person's, and not a service's such
/// as Docker's `dockremap`.
const FIRST_PERSON: u32 = 1000;

/// What a map is of, and where the node says who has such ids.
struct Kind {
    map: &'static str,
    accounts: &'static str,
    ranges: &'static subids::Kind,
}

const KINDS: [Kind; 2] = [
    Kind { map: "uid_map", accounts: "/etc/passwd", ranges: &subids::UIDS },
    Kind { map: "gid_map", accounts: "/etc/group", ranges: &subids::GIDS },
];

/// What was seen, and what to do.
#[derive(PartialEq, Eq, Debug)]
pub struct Overlap {
    pub seen: String,
    pub fix: String,
}

/// `read_map` reads a map of the container's, `read` a file of the node's.
pub fn overlaps(
    container: ContainerUid,
    containers: &[ContainerUid],
    read_map: &dyn Fn(&str) -> String,
    read: &dyn Fn(&str) -> String,
) -> Vec<Overlap> {
    let passwd = read("/etc/passwd");
    let people: Vec<_> = numbered(&passwd).filter(|(_, uid)| *uid >= FIRST_PERSON).collect();
    let judge = |kind: &Kind| {
        let map = read_map(kind.map);
        let own = mapped_ranges(&map);
        let shown = map.split_whitespace().collect::<Vec<_>>().join(" ");
        let here = format!("({}: {shown})", kind.map);
        [
            others(kind, &own, container, containers, &read(kind.accounts), &here),
            range_of_a_person(kind, &own, &people, &read(kind.ranges.file), &here),
        ]
    };
    KINDS.iter().flat_map(judge).flatten().collect()
}

/// One of those whose id is in a map, and how many others there are.
fn others(
    kind: &Kind,
    own: &[RangeInclusive<u32>],
    container: ContainerUid,
    containers: &[ContainerUid],
    accounts: &str,
    here: &str,
) -> Option<Overlap> {
    let is_in = |id: u32| own.iter().any(|range| range.contains(&id));
    let containers = containers.iter().filter(|other| **other != container && is_in(other.get()));
    let containers = containers.map(|other| format!("the container {other}"));
    let accounts = numbered(accounts).filter(|(_, id)| *id != container.get() && is_in(*id));
    let accounts = accounts.map(|(name, id)| format!("{id}, {} in {}", escape::name(name), kind.accounts));
    let mut all = containers.chain(accounts);
    let first = all.next()?;
    let more = match all.count() {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    Some(Overlap {
        seen: format!("root of its user namespace can be {first} on the node{more} {here}"),
        fix: "start the container with a user namespace whose ids are nobody else's".to_owned(),
    })
}

/// Whoever has a range of subordinate ids can be each of them in a user namespace of its own: write
/// the files of the container's root, and signal a session.
fn range_of_a_person(
    kind: &Kind,
    own: &[RangeInclusive<u32>],
    people: &[(&str, u32)],
    ranges: &str,
    here: &str,
) -> Option<Overlap> {
    ranges.lines().find_map(|line| {
        let (name, range) = subids::range(line)?;
        let is_a_person = people.iter().any(|(person, uid)| *person == name || name.parse() == Ok(*uid));
        let meets = |own: &RangeInclusive<u32>| {
            *range.start() <= u64::from(*own.end()) && u64::from(*own.start()) <= *range.end()
        };
        (is_a_person && own.iter().any(meets)).then(|| Overlap {
            seen: format!("{}, and so ids of its user namespace {here}", kind.ranges.seen(name, &range)),
            fix: kind.ranges.removal(name, &range),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(map: &str, subuid: &str) -> Vec<String> {
        let containers: Vec<_> = [30000, 30001, 30002].into_iter().filter_map(ContainerUid::new).collect();
        let read = |file: &str| match file {
            "/etc/passwd" => {
                "root:x:0:0::/:/bin/sh\ndockremap:x:110:110::/:/bin/false\nalice:x:1000:1000::/:/bin/sh\nodd\n"
                    .to_owned()
            }
            "/etc/group" => "root:x:0:\nalice:x:1000:\n".to_owned(),
            "/etc/subuid" => subuid.to_owned(),
            _ => String::new(),
        };
        let read_map = |file: &str| if file == "uid_map" { map.to_owned() } else { "0 1000000 65536\n".to_owned() };
        let found = overlaps(containers[1], &containers, &read_map, &read);
        found.into_iter().map(|overlap| format!("{} -> {}", overlap.seen, overlap.fix)).collect()
    }

    #[test]
    fn ids_that_are_somebody_elses() {
        const FIX: &str = "start the container with a user namespace whose ids are nobody else's";
        assert_eq!(seen("0 1000000 65536\n", ""), [""; 0]);
        assert_eq!(seen("0 1000000 5000\n5000 30001 1\n5001 1005001 60000\n", ""), [""; 0], "its own account's");
        for (map, who) in [
            ("0 1000000 40000\n40000 30002 1\n", "the container 30002 on the node"),
            ("0 1000000 40000\n40000 30000 3\n", "the container 30000 on the node, and 1 more"),
            ("0 1000000 1000\n1000 1000 1\n1001 1001001 60000\n", "1000, alice in /etc/passwd on the node"),
            ("0 1000000 40000\n40000 0 1\n", "0, root in /etc/passwd on the node"),
        ] {
            let shown = map.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(seen(map, ""), [format!("root of its user namespace can be {who} (uid_map: {shown}) -> {FIX}")]);
        }
    }

    #[test]
    fn ids_of_a_range_that_a_person_has() {
        let map = "0 100000 65536\n";
        for line in ["alice:100000:65536", "1000:165535:1", "alice:20000:80001"] {
            assert_eq!(seen(map, line).len(), 1, "{line}");
        }
        for line in [
            "alice:165536:65536",
            "alice:20000:80000",
            "dockremap:100000:65536",
            "root:100000:65536",
            "containers:100000:65536",
            "",
        ] {
            assert_eq!(seen(map, line), [""; 0], "{line}");
        }
        assert_eq!(
            seen(map, "alice:100000:65536"),
            [
                "/etc/subuid: alice has 100000-165535, and so ids of its user namespace (uid_map: 0 100000 65536) -> usermod --del-subuids 100000-165535 alice"
            ]
        );
    }
}
