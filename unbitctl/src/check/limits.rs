//! limits.conf(5): pam_limits does not run for container users, so lines about them have no effect.

use crate::report::Finding;
use crate::rootfs::RootFs;
use shared::settings::FIRST_UID;
use shared::{ContainerUid, escape};

const CHECK: &str = "limits";
const FILE: &str = "/etc/security/limits.conf";
const DIRECTORY: &str = "/etc/security/limits.d";
const WHY: &str = "pam_limits does not run for container users, so such a line limits nothing";
const FIX: &str = "set the limit for the container, in its cgroup or its vassal, and remove the line";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let entries = node.resolve(DIRECTORY).and_then(std::fs::read_dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    files.retain(|name| name.ends_with(".conf"));
    files.sort();
    let files = std::iter::once(FILE.to_owned()).chain(files.iter().map(|name| format!("{DIRECTORY}/{name}")));
    let mut findings = Vec::new();
    for file in files.filter(|file| node.has(file)) {
        match node.read_bytes(&file) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                findings.extend(about_containers(&text).map(|(number, domain)| {
                    let seen = format!("{}:{number}: {}", escape::name(&file), escape::name(domain));
                    Finding::warn(CHECK, WHY, seen, FIX)
                }));
            }
            Err(error) => {
                findings.push(Finding::not_applicable(CHECK, WHY, format!("{}: {error}", escape::name(&file))));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, WHY, "no line of limits.conf(5) is about container users"));
    }
    findings
}

/// The lines about them: their number, and the word for the user.
fn about_containers(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(at, line)| {
        let domain = line.split('#').next()?.split_whitespace().next()?;
        is_about_containers(domain).then_some((at + 1, domain))
    })
}

/// A name, `@group`, `%group`, or numbers with a colon. `*` and a range from an ordinary user's
/// number on are about the others as well.
fn is_about_containers(domain: &str) -> bool {
    let name = domain.trim_start_matches(['@', '%']);
    let first = name.split(':').next().unwrap_or_default();
    match name.split_once(':') {
        None => ContainerUid::parse(name.as_bytes()).is_some(),
        Some(("", last)) => ContainerUid::parse(last.as_bytes()).is_some(),
        Some(_) => first.parse::<u32>().is_ok_and(|first| first >= FIRST_UID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_line_is_about() {
        for domain in ["30001", "@30001", "%30001", "30000:", "@30000:", "30000:39999", ":30001", "@:30001"] {
            assert!(is_about_containers(domain), "{domain}");
        }
        for domain in
            ["*", "%", "root", "alice", "@users", "1000:", "1000:60000", ":1000", "29999", "030001", "65534", ""]
        {
            assert!(!is_about_containers(domain), "{domain}");
        }
        let text = "# 30001 hard nproc 5\n\n* soft core 0\n  30001\thard nproc 5 # text\n%30002 - maxlogins 4\n#\n";
        assert_eq!(about_containers(text).collect::<Vec<_>>(), [(4, "30001"), (5, "%30002")]);
    }
}
