//! `unbitctl attach` and `detach` on a node whose containers are made as other engines make them.
//! With the engines themselves: tests/engines.

use std::fs;
use std::path::Path;
use unbit_tests::linked::*;
use unbit_tests::*;

const LINK: &str = "/etc/unbit/30001";
const TRUSTED: &str = "/etc/unbit/30001.root-is-trusted";

fn attach(arguments: &[&str]) -> Done {
    run("unbitctl", &[&["attach", "30001"], arguments].concat(), b"")
}

fn attach_group(group: &str) -> Done {
    attach(&["--cgroup", group])
}

fn detach() -> String {
    run("unbitctl", &["detach", "30001"], b"").ok()
}

/// Where a link leads.
fn target() -> Option<String> {
    fs::read_link(LINK).ok().map(|target| target.to_str().unwrap().to_owned())
}

/// However a test ends, the next one finds no link.
fn afterwards() -> AtEnd<impl FnMut() + use<>> {
    AtEnd(|| drop(sh(format!("rm -rf {LINKS}"))))
}

#[test]
#[ignore = "needs the node: make test"]
fn an_account_is_attached_and_detached() {
    let _end = afterwards();
    let container = Engine::new("web1").start();
    let group = container.groups().remove(0);

    let said = attach_group(&group).ok();
    assert!(said.starts_with(&format!("{LINK} -> {group}: made\n")), "{said}");
    assert!(said.contains(&format!("its pid 1 is process {} on this node\n", container.leader)), "{said}");
    assert!(said.ends_with(" ok"), "the verdict of check is last: {said}");
    assert_eq!(target().as_deref(), Some(group.as_str()));
    assert_eq!(sh(format!("stat -c '%U %a' {LINKS}")).ok(), "root 755");
    assert_eq!(ssh(30001, "hostname").ok(), "web1");

    let before = sh(format!("stat -c '%i %Z' {LINK}")).ok();
    let said = attach_group(&format!("{group}/")).ok();
    assert!(said.starts_with(&format!("{LINK} -> {group}: exists already\n")), "{said}");
    assert_eq!(sh(format!("stat -c '%i %Z' {LINK}")).ok(), before, "it was not written again");

    let listed = run("unbitctl", &["list"], b"").ok();
    let line = listed.lines().find(|line| line.contains("30001")).unwrap();
    assert!(line.contains("  cgroup  ") && line.contains("running"), "{listed}");

    fs::write(TRUSTED, "").unwrap();
    let said = detach();
    assert!(said.contains(&format!("{LINK} -> {group}: removed")), "{said}");
    assert!(!Path::new(TRUSTED).exists(), "root's word was for that container");
    assert_eq!(target(), None);
    assert_eq!(ssh(30001, "hostname").ok(), "c30001", "the Emperor's, as before");
    assert_eq!(detach(), format!("{LINK}: there is no such link"));
}

/// A node of linked containers, as docs/engines.md makes one, has no Emperor, and nothing of one is
/// asked for.
#[test]
#[ignore = "needs the node: make test"]
fn nothing_is_wrong_with_a_node_of_linked_containers() {
    let _end = afterwards();
    let container = Engine::new("web1").start();
    const AWAY: &str = "/etc/uwsgi /etc/systemd/system/containers.service /ns /distros";
    let _back = AtEnd(|| {
        drop(sh(format!(
            "for one in {AWAY}; do rm -rf $one; mv $one.away $one; done; node-emperor start
            node-wait-container 30000; node-wait-container 30001"
        )))
    });
    sh(format!("node-emperor stop; for one in {AWAY}; do mv $one $one.away; done")).ok();
    attach_group(&container.groups()[0]).ok();
    let faults = || {
        let text = sh("unbitctl check").out;
        text.lines()
            .filter(|line| line.starts_with("warn") || line.starts_with("FAIL"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(faults(), ["FAIL  mounts         directories of linked containers are on /, without nosuid or nodev"]);
    let text = sh("unbitctl check").out;
    let fix = text.lines().find_map(|line| line.find("echo '/containers ").map(|at| &line[at..]));
    let _mounted = AtEnd(|| drop(sh("umount /containers; mv /tmp/fstab /etc/fstab").ok()));
    sh(format!("touch /etc/fstab; cp /etc/fstab /tmp/fstab; {}", fix.unwrap_or(&text))).ok();
    let text = sh("unbitctl check").out;
    assert_eq!(faults(), [""; 0], "{text}");
    for seen in ["mounts         no Emperor starts containers here", "distributions  no Emperor starts containers here"]
    {
        assert!(text.contains(seen), "{text}");
    }
    assert!(!text.contains("time") && !text.contains("ports"), "{text}");
    // Who may write links leads logins.
    sh(format!("chmod 777 {LINKS}")).ok();
    assert_eq!(faults(), [format!("FAIL  directories    {LINKS} is root:root 0777 where root:root 0755 is needed")]);
    sh("unbitctl setup directories").ok();
    assert_eq!(faults(), [""; 0]);
    // What a sandbox keeps from sshd it keeps from these logins as well.
    assert!(text.contains("service        systemd does not run"), "{text}");
    assert_eq!(ssh(30001, "hostname").ok(), "web1", "the witness");
}

#[test]
#[ignore = "needs the node: make test"]
fn another_container_takes_the_place_of_the_first() {
    let _end = afterwards();
    let (one, other) = (Engine::new("web1").start(), Engine::new("web2").start());
    attach_group(&one.groups()[0]).ok();
    fs::write(TRUSTED, "").unwrap();
    let said = attach_group(&other.groups()[0]).ok();
    assert!(said.contains(": replaced\n"), "{said}");
    assert!(said.contains(&format!("note: the link led to {}\n", one.groups()[0])), "{said}");
    assert!(said.contains(&format!("note: {TRUSTED} says that this container's root is trusted")), "{said}");
    assert_eq!(ssh(30001, "hostname").ok(), "web2");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_a_login_would_refuse_is_not_linked() {
    let _end = afterwards();
    let container = Engine::new("web1").start();
    attach_group(&container.groups()[0]).ok();
    let kept = target();
    let powerful = Engine::new("web2").running("sleep 86400", "sleep").start();
    let mapped = Engine::new("web3").with_users(Users::of("0 1000 1\n1 1000001 65535")).start();
    let empty = format!("{}/../empty", container.groups()[0]);
    let empty = sh(format!("mkdir -p {empty} && realpath {empty}")).ok();
    for (group, cause) in [
        (powerful.groups()[0].as_str(), "its root can have CAP_SYS_PTRACE"),
        (mapped.groups()[0].as_str(), "which is the account alice"),
        (empty.as_str(), "has no processes"),
        ("/sys/fs/cgroup/is/not/there", "there"),
        ("/etc", "which is not a cgroup"),
        (Path::new(&container.groups()[0]).parent().unwrap().to_str().unwrap(), "more than one container"),
    ] {
        let err = attach_group(group).failed();
        assert!(err.contains(cause) && err.contains("nothing has been changed"), "{group}: {err}");
        assert_eq!(target(), kept, "{group}");
    }
    sh(format!("rmdir {empty}")).ok();
    for (arguments, cause) in [
        (["--podman", "web1"], "podman"),
        (["--cgroup", "sys/fs/cgroup"], "an absolute path"),
        (["--machine", "--all"], "unexpected argument"),
        (["--unit", "a b"], "a name is needed"),
    ] {
        let done = attach(&arguments);
        assert!(done.status != Some(0) && done.err.contains(cause), "{done:?}");
    }
    assert_eq!(attach(&[]).status, Some(2));
    assert_eq!(attach(&["--lxc", "a", "--docker", "b"]).status, Some(2));
    assert_eq!(target(), kept);
}

#[test]
#[ignore = "needs the node: make test"]
fn the_accounts_directory_is_made_if_asked() {
    let _end = AtEnd(|| drop(sh(format!("rm -rf {LINKS} /containers/30009"))));
    let container = Engine::new("web1").start();
    let group = &container.groups()[0];
    let attach = |more: &[&str]| run("unbitctl", &[&["attach", "30009", "--cgroup", group], more].concat(), b"");
    let err = attach(&[]).failed();
    assert!(err.contains("--create-home makes it"), "{err}");
    assert!(Path::new("/etc/unbit/30009").symlink_metadata().is_err());
    let done = attach(&["--create-home"]);
    assert_eq!(done.status, Some(1), "there is no key yet, and check says so: {done:?}");
    assert!(done.out.starts_with("/containers/30009: made\n") && done.out.contains("FAIL  keys"), "{done:?}");
    assert_eq!(sh("stat -c '%u:%g %a' /containers/30009").ok(), "30009:30009 755");
    sh("chown 0:0 /containers/30009").ok();
    let err = attach(&["--create-home"]).failed();
    assert!(err.contains("belongs to 0:0, so it is not an account"), "{err}");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_is_in_the_links_place_stays_there() {
    let _end = afterwards();
    let container = Engine::new("web1").start();
    sh(format!("mkdir -p {LINKS} && echo file >{LINK}")).ok();
    let err = attach_group(&container.groups()[0]).failed();
    assert!(err.contains("is not a symbolic link"), "{err}");
    assert_eq!(fs::read_to_string(LINK).unwrap(), "file\n");
    assert!(run("unbitctl", &["detach", "30001"], b"").failed().contains("is not a symbolic link"));
}
