//! Checks that no line of /etc/passwd has a container's name or number.

use crate::report::Finding;
use crate::rootfs::RootFs;
use shared::settings::CONTAINERS;
use shared::{ContainerUid, escape};
use std::io::ErrorKind;

const CHECK: &str = "accounts";
const FILE: &str = "/etc/passwd";
const WHY_NAME: &str =
    "/etc/passwd is asked first: a login by a container's name is refused if the account there has another uid";
const WHY_NUMBER: &str = "the files of a container belong to its number, and so to this account";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let text = match node.read_bytes(FILE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return vec![Finding::not_applicable(CHECK, WHY_NAME, format!("{FILE}: {error}"))],
    };
    let findings = judge(&text, &|uid| node.has(&format!("{CONTAINERS}/{uid}")));
    if findings.is_empty() {
        return vec![Finding::ok(CHECK, WHY_NAME, format!("no line of {FILE} has a container's name or number"))];
    }
    findings
}

pub(crate) fn judge(passwd: &str, has_container: &dyn Fn(ContainerUid) -> bool) -> Vec<Finding> {
    let judge = |(name, uid): (&str, u32)| {
        judge_one(&escape::name(name), ContainerUid::parse(name.as_bytes()), uid, has_container)
    };
    numbered(passwd).filter_map(judge).collect()
}

/// The names and the third fields of passwd(5), or of group(5).
pub(crate) fn numbered(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?))
    })
}

/// `named` is the container that has the account's name.
fn judge_one(
    name: &escape::Escaped<'_>,
    named: Option<ContainerUid>,
    uid: u32,
    has_container: &dyn Fn(ContainerUid) -> bool,
) -> Option<Finding> {
    match (named, ContainerUid::new(uid).filter(|uid| has_container(*uid))) {
        (Some(container), _) if container.get() == uid => {
            let seen = format!("{FILE} has a line of its own for the container {container}");
            let fix = format!("remove that line with vipw: {CONTAINERS}/{container} is the account");
            Some(Finding::warn(CHECK, WHY_NAME, seen, fix))
        }
        (Some(container), _) => {
            let fix = format!("usermod --login ANOTHER_NAME {container}");
            Some(if has_container(container) {
                let seen =
                    format!("{FILE}: the account {name} has the uid {uid}, and {CONTAINERS}/{container} is there");
                Finding::fail(CHECK, WHY_NAME, seen, fix)
            } else {
                let seen = format!("{FILE}: the account {name} has the uid {uid}, and a container's name");
                Finding::warn(CHECK, WHY_NAME, seen, fix)
            })
        }
        (None, Some(container)) => {
            let seen = format!("{FILE}: the account {name} has the uid of the container {container}");
            let fix = "give the account another uid (usermod --uid), and give its files the new one";
            Some(Finding::fail(CHECK, WHY_NUMBER, seen, fix))
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn names_and_numbers_of_containers() {
        const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n\
            29999:x:1007:1007::/:/bin/sh\n030005:x:1008:1008::/:/bin/sh\n+::::::\n\
            30005:x:1001:1001::/home/30005:/bin/bash\n30006:x:1002:1002::/home/x:/bin/bash\n\
            30007:x:30007:30007::/containers/30007:/bin/bash\nweb\x1b:x:30008:30008::/:/bin/sh\nlarge:x:41234:41234::/:/bin/sh\n";
        let judged = judge(PASSWD, &|uid| matches!(uid.get(), 30005 | 30007 | 30008));
        let seen: Vec<_> = judged.iter().map(|finding| (finding.state, finding.seen.as_str())).collect();
        assert_eq!(
            seen,
            [
                (State::Fail, "/etc/passwd: the account 30005 has the uid 1001, and /containers/30005 is there"),
                (State::Warn, "/etc/passwd: the account 30006 has the uid 1002, and a container's name"),
                (State::Warn, "/etc/passwd has a line of its own for the container 30007"),
                (State::Fail, "/etc/passwd: the account web\\u{1b} has the uid of the container 30008"),
            ]
        );
        assert_eq!(judged[0].fix.as_deref(), Some("usermod --login ANOTHER_NAME 30005"));
    }
}
