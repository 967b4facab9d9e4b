//! Nodes without an Emperor: all of their containers are other engines', and root has linked their cgroups.

use super::Finding;
use crate::node::Node;
use join::link::DIRECTORY;
use shared::ContainerUid;
use std::fs;

/// The checks of what only an Emperor's containers need: quota and private mounts, its unit, /distros, uWSGI's ports.
const OF_THE_EMPEROR: [&str; 4] = ["filesystem", "service", "distributions", "ports"];

/// Whether there are links, and no vassals: a node that has neither is still to be set up.
pub fn has_no_emperor(node: &Node) -> bool {
    let links = fs::read_dir(node.path(DIRECTORY)).into_iter().flatten().flatten();
    let mut accounts = links.filter_map(|link| ContainerUid::parse(link.file_name().as_encoded_bytes()));
    accounts.next().is_some() && !node.has("/etc/uwsgi/vassals")
}

/// On such a node, what the Emperor's checks found is not asked for.
pub fn without_the_emperors(node: &Node, findings: Vec<Finding>) -> Vec<Finding> {
    if !has_no_emperor(node) {
        return findings;
    }
    let seen = "there is no Emperor here (/etc/uwsgi/vassals), and /etc/unbit links the containers of other engines";
    let mut asked: Vec<Finding> = Vec::new();
    for finding in findings {
        if !OF_THE_EMPEROR.contains(&finding.check) {
            asked.push(finding);
        } else if !asked.iter().any(|other| other.check == finding.check) {
            asked.push(Finding::not_applicable(finding.check, finding.why, seen));
        }
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_node_has_no_emperor_if_it_has_links_and_no_vassals() {
        let root = std::env::temp_dir().join(format!("unbitctl-linked-{}", std::process::id()));
        let node = || Node::at(Some(Path::new(&root)));
        fs::create_dir_all(root.join("etc/unbit")).unwrap();
        let found = || {
            let findings =
                ["folders", "ports", "ports", "pam"].map(|check| Finding::fail(check, "why", "seen", "mend"));
            without_the_emperors(&node(), findings.to_vec()).len()
        };
        assert!(!has_no_emperor(&node()));
        fs::write(root.join("etc/unbit/30001.root-is-trusted"), "").unwrap();
        assert!(!has_no_emperor(&node()), "that is no link");
        std::os::unix::fs::symlink("/sys/fs/cgroup/a", root.join("etc/unbit/30001")).unwrap();
        assert!(has_no_emperor(&node()));
        assert_eq!(found(), 3, "folders and pam, and one line for ports");
        fs::create_dir_all(root.join("etc/uwsgi/vassals")).unwrap();
        assert!(!has_no_emperor(&node()));
        assert_eq!(found(), 4);
        fs::remove_dir_all(&root).unwrap();
    }
}
