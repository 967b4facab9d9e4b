//! Checks the systemd service of sshd for restrictions that prevent a login, see systemd.exec(5).

use super::systemd::{self, Health};
use super::{server, sshd};
use crate::command::{self, SSHD};
use crate::containers;
use crate::emperor::has_systemd;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use join::privileges::NEEDED;
use shared::settings::CONTAINERS;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

const CHECK: &str = "service";
/// An sshd that listens itself; one that systemd starts for each connection, from this template.
const UNITS: [Unit; 2] =
    [Unit { name: "ssh.service", asked: "ssh.service" }, Unit { name: "ssh@.service", asked: "ssh@unbitctl.service" }];

struct Unit {
    name: &'static str,
    /// systemctl shows no template, only what would be made of it.
    asked: &'static str,
}
const WHY: &str = "a login joins the container's namespaces and cgroups, which sshd's unit must allow";
/// The namespaces that a login joins, and those that only containers of other engines have.
const NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];
const NAMESPACES_OF_OTHERS: [&str; 2] = ["cgroup", "user"];
/// For the container's namespaces, and for its terminals. systemd.exec(5) has groups of them, which
/// `systemctl show` resolves.
const SYSTEM_CALLS: [&str; 6] = ["mount", "move_mount", "open_tree", "setns", "unshare", "keyctl"];

const WHY_LISTENS: &str = "nobody can log in if no sshd listens";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if node.is_running() && node.has(SSHD) {
        findings.extend(listens(node));
    }
    findings.extend(sandbox(node));
    findings
}

/// An sshd listens, or systemd in its place; and none that ends and is started again and again.
fn listens(node: &RootFs) -> Vec<Finding> {
    let config = nix::unistd::geteuid()
        .is_root()
        .then(|| sshd::effective_config(node, &shared::settings::FIRST_UID.to_string()).ok())
        .flatten();
    let server = server::find(&config.map(|config| config.addresses()).unwrap_or_default());
    let units = systemd::units(node, &["ssh.service"]).unwrap_or_default();
    let of_unit = units.iter().find_map(|unit| match (unit.health(), &server) {
        // Where systemd listens, or somebody has started one by hand, the unit need not run, nor at
        // boot.
        (Health::Stopped | Health::ConditionFailed | Health::Masked | Health::NotEnabled, Some(_)) => None,
        _ => unit.finding(CHECK, WHY_LISTENS),
    });
    match (of_unit, server) {
        (Some(finding), _) => vec![finding],
        (None, Some(_)) => vec![Finding::ok(CHECK, WHY_LISTENS, "an sshd listens")],
        (None, None) if fs::read("/proc/1/status").is_err() => {
            vec![Finding::not_applicable(CHECK, WHY_LISTENS, "root is needed to see whether an sshd listens")]
        }
        (None, None) => vec![Finding::fail(CHECK, WHY_LISTENS, "no sshd listens", SSHD)],
    }
}

fn sandbox(node: &RootFs) -> Vec<Finding> {
    if !has_systemd(node) {
        return vec![Finding::not_applicable(CHECK, WHY, "systemd does not run")];
    }
    let properties =
        "LoadState,ProtectControlGroups,RestrictNamespaces,CapabilityBoundingSet,InaccessiblePaths,SystemCallFilter";
    let [service, template] = UNITS;
    let socket = command::run(node, "systemctl", &["show", "ssh.socket", "--property", "ActiveState,Accept"]);
    let unit = if socket.is_ok_and(|socket| starts_one_each(&socket.out)) { template } else { service };
    let Unit { name, asked } = unit;
    match command::run(node, "systemctl", &["show", asked, "--property", properties]) {
        Ok(answer) if answer.succeeded() => judge(name, &answer.out, !containers::linked(node).is_empty()),
        Ok(answer) => {
            vec![Finding::not_applicable(CHECK, WHY, format!("systemctl show {asked}: {}", answer.error_summary()))]
        }
        Err(error) => vec![Finding::not_applicable(CHECK, WHY, format!("systemctl show {asked}: {error}"))],
    }
}

/// Whether ssh.socket listens, and starts an sshd for each connection (`Accept=yes` of
/// systemd.socket(5)).
fn starts_one_each(shown: &str) -> bool {
    ["ActiveState=active", "Accept=yes"].iter().all(|line| shown.lines().any(|other| other == *line))
}

/// Reads what `systemctl show` prints, a line for each property.
fn judge(unit: &str, shown: &str, has_other_engines: bool) -> Vec<Finding> {
    let properties: HashMap<&str, &str> = shown.lines().filter_map(|line| line.split_once('=')).collect();
    let of = |name: &str| properties.get(name).copied().unwrap_or_default();
    let words = |name: &str| of(name).split_whitespace().collect::<Vec<_>>();
    if of("LoadState") != "loaded" {
        return vec![Finding::not_applicable(CHECK, WHY, format!("there is no {unit}"))];
    }
    let fail = |seen: String, line: String| {
        let fix = match unit.strip_suffix("@.service") {
            None => format!("systemctl edit ssh, and below [Service]: {line}\nsystemctl restart ssh"),
            Some(_) => format!("systemctl edit {unit}, and below [Service]: {line}"),
        };
        Finding::fail(CHECK, WHY, seen, fix)
    };
    let mut findings = Vec::new();
    if !matches!(of("ProtectControlGroups"), "no" | "") {
        let seen = format!("{unit} has ProtectControlGroups={}", of("ProtectControlGroups"));
        findings.push(fail(seen, "ProtectControlGroups=no".to_owned()));
    }
    let namespaces = words("RestrictNamespaces");
    let others = NAMESPACES_OF_OTHERS.iter().filter(|_| has_other_engines);
    let mut needed = NAMESPACES.iter().chain(others);
    if !matches!(namespaces.as_slice(), [] | ["no"]) && !needed.all(|kind| namespaces.contains(kind)) {
        let seen = format!("{unit} has RestrictNamespaces={}", of("RestrictNamespaces"));
        findings.push(fail(seen, "RestrictNamespaces=no".to_owned()));
    }
    let capabilities = words("CapabilityBoundingSet");
    let needed = NEEDED.map(|capability| capability.to_string());
    let missing: Vec<_> =
        needed.into_iter().filter(|name| !capabilities.contains(&name.to_lowercase().as_str())).collect();
    if !missing.is_empty() {
        let missing = missing.join(" ");
        findings.push(fail(format!("{unit} runs without {missing}"), format!("CapabilityBoundingSet={missing}")));
    }
    let filter = of("SystemCallFilter");
    let (is_denied, listed) = match filter.strip_prefix('~') {
        Some(listed) => (true, listed),
        None => (false, filter),
    };
    let names: Vec<_> = listed.split_whitespace().map(|word| word.split(':').next().unwrap_or(word)).collect();
    let denied: Vec<_> =
        SYSTEM_CALLS.into_iter().filter(|name| !names.is_empty() && names.contains(name) == is_denied).collect();
    if !denied.is_empty() {
        let denied = denied.join(" ");
        findings.push(fail(
            format!("{unit} has a SystemCallFilter= that denies {denied}"),
            if is_denied {
                format!("SystemCallFilter=\n(and the old list without {denied})")
            } else {
                format!("SystemCallFilter={denied}")
            },
        ));
    }
    for path in words("InaccessiblePaths") {
        if Path::new(CONTAINERS).starts_with(path.trim_start_matches(['-', '+'])) {
            let others: Vec<_> = words("InaccessiblePaths").into_iter().filter(|other| *other != path).collect();
            let line = format!("InaccessiblePaths=\nInaccessiblePaths={}", others.join(" "));
            findings.push(fail(format!("{unit} has InaccessiblePaths={path}"), line));
        }
    }
    if findings.iter().all(|finding| finding.state != State::Fail) {
        findings.push(Finding::ok(CHECK, WHY, format!("{unit} allows what a login needs")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Debian's own ssh.service, as systemd 257 shows it.
    const DEBIAN: &str = "CapabilityBoundingSet=cap_chown cap_setgid cap_setuid cap_setpcap cap_sys_chroot cap_sys_ptrace cap_sys_admin\nRestrictNamespaces=no\n\
                          InaccessiblePaths=\nProtectControlGroups=no\nLoadState=loaded\nSystemCallFilter=\n";

    fn seen(shown: &str) -> Vec<(State, String)> {
        judge("ssh.service", shown, false).into_iter().map(|finding| (finding.state, finding.seen)).collect()
    }

    #[test]
    fn each_line_that_keeps_container_users_out_is_named() {
        assert_eq!(seen(DEBIAN), [(State::Ok, "ssh.service allows what a login needs".to_owned())]);
        for (from, to, expected) in [
            ("Groups=no", "Groups=yes", "ssh.service has ProtectControlGroups=yes"),
            ("Groups=no", "Groups=strict", "ssh.service has ProtectControlGroups=strict"),
            ("Namespaces=no", "Namespaces=yes", "ssh.service has RestrictNamespaces=yes"),
            ("Namespaces=no", "Namespaces=ipc mnt", "ssh.service has RestrictNamespaces=ipc mnt"),
            (" cap_sys_admin", "", "ssh.service runs without CAP_SYS_ADMIN"),
            ("cap_sys_ptrace cap_sys_admin", "", "ssh.service runs without CAP_SYS_PTRACE CAP_SYS_ADMIN"),
            ("Paths=", "Paths=/var -/containers", "ssh.service has InaccessiblePaths=-/containers"),
            ("Paths=", "Paths=/", "ssh.service has InaccessiblePaths=/"),
            ("Filter=", "Filter=~chroot mount umount2", "ssh.service has a SystemCallFilter= that denies mount"),
            (
                "Filter=",
                "Filter=read mount:EPERM move_mount open_tree unshare keyctl",
                "ssh.service has a SystemCallFilter= that denies setns",
            ),
        ] {
            assert_eq!(seen(&DEBIAN.replace(from, to)), [(State::Fail, expected.to_owned())]);
        }
        assert_eq!(seen(&DEBIAN.replace("Filter=", "Filter=~reboot swapon"))[0].0, State::Ok);
        for (from, to) in
            [("Paths=", "Paths=/containers2 /home"), ("Namespaces=no", "Namespaces=cgroup ipc net mnt pid user uts")]
        {
            assert_eq!(seen(&DEBIAN.replace(from, to))[0].0, State::Ok);
        }
        // Only containers of other engines have user and cgroup namespaces.
        let few = DEBIAN.replace("Namespaces=no", "Namespaces=ipc net mnt pid uts");
        assert_eq!(seen(&few)[0].0, State::Ok);
        assert_eq!(judge("ssh.service", &few, true)[0].seen, "ssh.service has RestrictNamespaces=ipc net mnt pid uts");
        assert_eq!(seen("LoadState=not-found\n")[0].0, State::NotApplicable);
        let of_the_socket = judge("ssh@.service", &DEBIAN.replace("Groups=no", "Groups=yes"), false);
        assert_eq!(of_the_socket[0].seen, "ssh@.service has ProtectControlGroups=yes");
        assert!(starts_one_each("Accept=yes\nActiveState=active\n"));
        assert!(
            !starts_one_each("Accept=no\nActiveState=active\n")
                && !starts_one_each("Accept=yes\nActiveState=inactive\n")
        );
    }
}
