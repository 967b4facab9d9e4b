//! Checks that each second name leads to a container and that no account has it.

use crate::names::{self, Link};
use crate::report::Finding;
use crate::rootfs::RootFs;
use shared::settings::CONTAINERS;
use shared::{ContainerUid, SecondName, escape};
use std::os::unix::fs::MetadataExt;

const CHECK: &str = "names";
const WHY: &str = "a symbolic link such as /containers/web1 -> 30001 gives that account a second name";
const PASSWD: &str = "/etc/passwd";

/// Nothing where there are no such links.
pub fn check(node: &RootFs) -> Vec<Finding> {
    let links = names::links(node);
    let passwd = node.read_bytes(PASSWD).unwrap_or_default();
    let is_container = |uid: ContainerUid| {
        let found = node.resolve(&format!("{CONTAINERS}/{uid}")).and_then(std::fs::metadata);
        found.is_ok_and(|found| uid.owns_directory(found.mode(), found.uid(), found.gid()))
    };
    judge(&links, &String::from_utf8_lossy(&passwd), &is_container)
}

fn judge(links: &[Link], passwd: &str, is_container: &dyn Fn(ContainerUid) -> bool) -> Vec<Finding> {
    let accounts: Vec<_> = passwd.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    let (mut good, mut findings) = (0, Vec::new());
    for link in links {
        match judge_one(link, &accounts, is_container) {
            Verdict::Good => good += 1,
            Verdict::NoName => {}
            Verdict::Bad(finding) => findings.push(finding),
        }
    }
    if good > 0 {
        let seen = match good {
            1 => "the one second name leads to a container of this node".to_owned(),
            many => format!("{many} second names lead to containers of this node"),
        };
        findings.insert(0, Finding::ok(CHECK, WHY, seen));
    }
    findings
}

enum Verdict {
    Good,
    /// A link to something else: none of our business.
    NoName,
    Bad(Finding),
}

fn judge_one(link: &Link, accounts: &[&str], is_container: &dyn Fn(ContainerUid) -> bool) -> Verdict {
    let shown = escape::name(&link.name);
    let remove = || format!("rm {}", crate::shell::quoted(&format!("{CONTAINERS}/{}", link.name)));
    let Some((name, uid)) = link.second_name() else {
        return almost(link).map_or(Verdict::NoName, Verdict::Bad);
    };
    Verdict::Bad(if link.owner != 0 {
        let seen = format!("{CONTAINERS}/{shown} belongs to uid {}: logins by this name are refused", link.owner);
        Finding::fail(CHECK, WHY, seen, remove())
    } else if accounts.contains(&name.as_str()) {
        let seen = format!(
            "{PASSWD} has an account {name} too, which comes first: {CONTAINERS}/{name} is not a name of {uid}"
        );
        let fix =
            format!("unbitctl detach {name}, or give the account another name: usermod --login ANOTHER_NAME {name}");
        Finding::fail(CHECK, WHY, seen, fix)
    } else if !is_container(uid) {
        let seen = format!("{name} is a name of {uid}, and there is no such container on this node");
        Finding::warn(CHECK, WHY, seen, format!("unbitctl detach {name}"))
    } else {
        return Verdict::Good;
    })
}

/// A link that looks as if it were to make a name, and does not.
fn almost(link: &Link) -> Option<Finding> {
    let shown = escape::name(&link.name);
    let text = std::str::from_utf8(&link.text).ok()?;
    if SecondName::target_of(&link.text).is_some() {
        let seen = format!("{CONTAINERS}/{shown} leads to {text}, and is not a name that an account can have");
        let fix = "a name has at most 32 lower case letters, digits, _ and -, and begins with a letter or _";
        return Some(Finding::warn(CHECK, WHY, seen, fix));
    }
    SecondName::parse(link.name.as_bytes())?;
    let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let uid = ContainerUid::parse(last.trim_start_matches('0').as_bytes())?;
    let seen = format!("{CONTAINERS}/{shown} leads to {}, and is not a second name", escape::quoted(text));
    Some(Finding::warn(CHECK, WHY, seen, format!("ln -sfn {uid} {CONTAINERS}/{shown}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn links_that_are_names_and_links_that_are_not() {
        let link =
            |name: &str, text: &str, owner| Link { name: name.to_owned(), text: text.as_bytes().to_owned(), owner };
        let links = [
            link("Web1", "30001", 0),
            link("alice", "30001", 0),
            link("data", "/srv/data", 0),
            link("far", "/containers/30001/", 0),
            link("gone", "30002", 0),
            link("stranger", "30001", 1000),
            link("web1", "30001", 0),
            link("web2", "030001", 0),
        ];
        let findings =
            judge(&links, "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n", &|uid| uid.get() == 30001);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.state, finding.seen.as_str())).collect();
        assert_eq!(
            seen,
            [
                (State::Ok, "the one second name leads to a container of this node"),
                (State::Warn, "/containers/Web1 leads to 30001, and is not a name that an account can have"),
                (
                    State::Fail,
                    "/etc/passwd has an account alice too, which comes first: /containers/alice is not a name of 30001"
                ),
                (State::Warn, "/containers/far leads to \"/containers/30001/\", and is not a second name"),
                (State::Warn, "gone is a name of 30002, and there is no such container on this node"),
                (State::Fail, "/containers/stranger belongs to uid 1000: logins by this name are refused"),
                (State::Warn, "/containers/web2 leads to \"030001\", and is not a second name"),
            ]
        );
        assert_eq!(findings[3].fix.as_deref(), Some("ln -sfn 30001 /containers/far"));
        assert!(judge(&links[2..3], "", &|_| true).is_empty());
    }
}
