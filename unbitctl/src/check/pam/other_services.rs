//! The lines of other services that let container users in, with `join=now`: su, login, cron. See
//! pam_unbit(8).

use super::stack::{Action, Entry, Kind, flatten};
use super::{DIRECTORY, MODULE, NAME, SERVICE, VENDOR_DIRECTORY, early, is_ours, reader};
use crate::report::Finding;
use crate::rootfs::RootFs;
use std::collections::BTreeSet;

const WHY: &str =
    "what runs for container users besides our lines runs as root, and after the join in the tenant's files";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let read = reader(node);
    let mut all: Vec<Finding> = Vec::new();
    for finding in names(node).iter().flat_map(|name| findings(&flatten(&read, name), name)) {
        // A file that two services include is reported once: su-l includes su.
        if all.iter().all(|before| before.seen != finding.seen) {
            all.push(finding);
        }
    }
    all
}

/// The services that there are.
fn names(node: &RootFs) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for directory in [DIRECTORY, VENDOR_DIRECTORY] {
        let entries = node.resolve(directory).and_then(std::fs::read_dir);
        let entries = entries.into_iter().flatten().flatten();
        names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    names.retain(|name| name != SERVICE && !is_copy(name));
    names
}

/// What editors, packages and our own set-up leave next to a file, and no program reads.
fn is_copy(name: &str) -> bool {
    const MARKS: [&str; 6] = [".bak", ".dpkg-", ".orig", ".rpm", ".ucf-", ".unbit-"];
    name.ends_with('~') || MARKS.iter().any(|mark| name.contains(mark))
}

/// All that is wrong with a service that our session line takes into containers.
fn findings(stack: &[Entry], name: &str) -> Vec<Finding> {
    let chain = |kind| stack.iter().filter(move |entry| entry.kind == kind);
    let joins = |entry: &Entry| is_ours(entry) && entry.arguments.iter().any(|word| word == "join=now");
    let Some(session) = chain(Kind::Session).find(|entry| joins(entry)) else { return Vec::new() };

    let mut faults: Vec<String> = [Kind::Auth, Kind::Session]
        .into_iter()
        .filter(|kind| chain(*kind).any(is_ours))
        .flat_map(|kind| chain(kind).take_while(|entry| !is_ours(entry)))
        .filter(|entry| !sets_no_credentials(entry))
        .map(|entry| early(entry).seen)
        .collect();
    let done = session.control.action("success");
    if done != Action::Done {
        faults.push(format!("{}: success is {done}, so what comes after it runs for them, inside", session.place()));
    }
    for answer in ["perm_denied", "session_err", "system_err"] {
        let action = session.control.action(answer);
        if action != Action::Die {
            faults.push(format!("{}: {answer} is {action}, so a refusal does not end the stack", session.place()));
        }
    }
    if session.substack {
        faults.push(format!("{}: in a substack, so its control value ends only the substack", session.place()));
    }
    if faults.is_empty() {
        let seen = format!("{DIRECTORY}/{name} lets container users in, and nothing runs for them before {MODULE}");
        return vec![Finding::ok(NAME, WHY, seen)];
    }
    let fix = format!(
        "in {DIRECTORY}/{name} write the session line of {MODULE} before every other session line, and its auth line, if there is one, \
         before all but pam_rootok and pam_faildelay; pam_unbit(8), Other services, has them"
    );
    faults.into_iter().map(|seen| Finding::fail(NAME, WHY, seen, fix.clone())).collect()
}

/// What asks who calls, or waits, and does nothing in pam_setcred(3): with pam_rootok first root
/// runs su without a password.
fn sets_no_credentials(entry: &Entry) -> bool {
    entry.kind == Kind::Auth && ["pam_rootok.so", "pam_faildelay.so"].contains(&entry.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    const LINE: &str = "[success=done ignore=ignore default=die] pam_unbit.so join=now";

    fn seen(text: &str) -> Vec<(State, String)> {
        let read = |name: &str| match name {
            "su" => Some(text.to_owned()),
            "common-session" => Some("session required pam_unix.so\nsession optional pam_umask.so\n".to_owned()),
            _ => None,
        };
        findings(&flatten(&read, "su"), "su").into_iter().map(|finding| (finding.state, finding.seen)).collect()
    }

    #[test]
    fn whatever_comes_before_our_line_is_seen_with_its_file() {
        let good = format!(
            "auth sufficient pam_rootok.so\nauth {LINE}\naccount {LINE}\nsession {LINE}\n@include common-session\n"
        );
        assert_eq!(seen(&good).iter().map(|(state, _)| *state).collect::<Vec<_>>(), [State::Ok]);
        for (before, place) in [
            ("session required pam_limits.so\n", "/etc/pam.d/su line 1: pam_limits.so runs"),
            ("session optional pam_umask.so\n", "/etc/pam.d/su line 1: pam_umask.so runs"),
            ("session [default=1] pam_permit.so\n", "/etc/pam.d/su line 1: pam_permit.so runs"),
            ("@include common-session\n", "/etc/pam.d/common-session line 1: pam_unix.so runs"),
            ("session include common-session\n", "/etc/pam.d/common-session line 2: pam_umask.so runs"),
            ("session substack common-session\n", "/etc/pam.d/common-session line 1: pam_unix.so runs"),
            ("auth optional pam_group.so\n", "/etc/pam.d/su line 1: pam_group.so runs"),
        ] {
            let seen = seen(&format!("{before}{good}"));
            assert!(seen.iter().all(|(state, _)| *state == State::Fail), "{before}: {seen:?}");
            assert!(seen.iter().any(|(_, seen)| seen.starts_with(place)), "{before}: {seen:?}");
        }
        for (old, new, fault) in [
            ("session [success=done", "session [success=ok", "success is ok"),
            ("session [success=done ignore=ignore default=die]", "session required", "success is ok"),
            ("default=die] pam_unbit.so join=now\n@", "default=bad] pam_unbit.so join=now\n@", "session_err is bad"),
        ] {
            let seen = seen(&good.replace(old, new));
            assert!(seen.iter().any(|(state, seen)| *state == State::Fail && seen.contains(fault)), "{new}: {seen:?}");
        }
    }

    #[test]
    fn a_service_that_lets_nobody_in_is_no_matter_of_ours() {
        assert_eq!(seen("session required pam_limits.so\nsession required pam_unbit.so\n"), []);
        assert_eq!(seen("session required pam_limits.so\n"), []);
        assert!(is_copy("su.unbit-20261125-1") && is_copy("su~") && !is_copy("su-l") && !is_copy("systemd-user"));
    }
}
