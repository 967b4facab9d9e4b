//! `unbitctl setup emperor` and `setup distribution`, on a node as Debian has it. With the real
//! debootstrap and mmdebstrap: tests/distribution.
// node: --stock --without emperor

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use unbit_tests::*;

const EXAMPLES: &str = "/usr/share/doc/unbit/examples";
const FILES: [(&str, &str); 4] = [
    ("/etc/uwsgi/containers.ini", "containers.ini"),
    ("/etc/uwsgi/cgroup.ini", "cgroup-VERSION.ini"),
    ("/etc/systemd/system/containers.service", "containers.service"),
    ("/etc/sysctl.d/60-unbit.conf", "sysctl.d-unbit.conf"),
];

fn unbitctl(words: &str) -> Done {
    run("unbitctl", &words.split_whitespace().collect::<Vec<_>>(), b"")
}

/// All that a set-up could change.
fn files() -> String {
    sh("find /etc /distros /usr/lib/systemd /containers /ns -xdev -not -path '/etc/.pwd.lock' -printf '%p %y %m %U %s %T@\\n' | sort | cksum; ls -A /distros /ns /etc/uwsgi 2>&1").out
}

#[test]
#[ignore = "needs the node: make test"]
fn the_emperors_files_are_those_of_the_examples() {
    let work = sh("mktemp -d").ok();
    let _back = AtEnd(|| {
        sh("unbitctl setup --undo; rm -rf /etc/uwsgi /etc/sysctl.d/60-unbit.conf");
        sh(format!("cp -a {work}/uwsgi /etc; cp {work}/containers.service /etc/systemd/system"));
    });
    sh(format!("cp -a /etc/uwsgi /etc/systemd/system/containers.service {work}; rm -r /etc/uwsgi /etc/systemd/system/containers.service")).ok();
    let bare = files();
    let dry = unbitctl("setup emperor --dry-run").ok();
    for (path, _) in FILES {
        assert!(dry.contains(&format!("\n+++ b{path}\n")), "{path} in {dry}");
    }
    assert!(dry.contains("+++ b/etc/pam.d/sshd") && dry.contains("+++ b/etc/nsswitch.conf"), "{dry}");
    assert_eq!(files(), bare);

    sh("mv /usr/bin/uwsgi /tmp").ok();
    let err = unbitctl("setup emperor").failed();
    sh("mv /tmp/uwsgi /usr/bin").ok();
    assert_eq!(err, "unbitctl: packages are missing: apt-get install uwsgi-core, or give --install\n");
    assert_eq!(files(), bare);

    let said = unbitctl("setup emperor").ok();
    assert!(said.contains("unbitctl setup --undo takes them back"), "{said}");
    let version = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" };
    for (path, example) in FILES {
        let example = example.replace("VERSION", version);
        assert_eq!(sh(format!("cmp {path} {EXAMPLES}/{example} && stat -c '%U %a' {path}")).ok(), "root 644");
    }
    assert_eq!(sh("stat -c '%U %a' /etc/uwsgi/vassals").ok(), "root 755");
    let made = files();
    let said = unbitctl("setup emperor").ok();
    assert_eq!(said.lines().next(), Some("nothing to do"), "{said}");
    assert_eq!(files(), made);

    // What the operator has changed stays, and is named.
    {
        let _own = Changed::file("/etc/uwsgi/containers.ini", |text| format!("{text}emperor-freq = 5\n"));
        let own = files();
        let said = unbitctl("setup emperor").ok();
        assert!(said.contains("not as in the examples, and left as they are: /etc/uwsgi/containers.ini"), "{said}");
        assert_eq!(files(), own);
    }
    unbitctl("setup --undo").ok();
    for (path, _) in FILES {
        assert!(!Path::new(path).exists(), "{path}");
    }
    assert!(!Path::new("/etc/uwsgi").exists());
    let err = unbitctl("create 30005 --without-key").failed();
    assert!(err.contains("the Emperor is not set up here") && err.contains("unbitctl setup emperor"), "{err}");
}

const DEBOOTSTRAP: &str = "/usr/sbin/debootstrap";

/// Puts a script in the place of debootstrap: what it is given is in `$*`, where it shall work in
/// `$new`.
fn debootstrap(script: &str) -> AtEnd<impl FnMut() + use<>> {
    let head = "#!/bin/bash\nset -e\necho \"$*\" >/tmp/arguments\nnew=${@: -1}\necho \"I: Retrieving nothing\"\n";
    fs::write(DEBOOTSTRAP, format!("{head}{script}\n")).unwrap();
    sh(format!("chmod 755 {DEBOOTSTRAP}")).ok();
    AtEnd(|| drop(sh(format!("rm -rf {DEBOOTSTRAP} /distros/new /distros/.new.unbitctl"))))
}

/// A Debian without anything of ours: that of the node's containers.
const DEBIAN: &str = "cp -a /distros/base $new; rm -rf $new/.old_root $new/containers $new/usr/lib/*/libnss_unbit.so.2";

#[test]
#[ignore = "needs the node: make test"]
fn a_distribution_is_made_and_completed() {
    let _tool = debootstrap(&format!("{DEBIAN}; mkdir $new/made; mount -t tmpfs none $new/made"));
    let said = unbitctl("setup distribution new --suite trixie --include vim,git -- --verbose").ok();
    assert_eq!(
        fs::read_to_string("/tmp/arguments").unwrap(),
        "--variant=minbase --include=iproute2,openssh-sftp-server,vim,git --verbose trixie /distros/.new.unbitctl\n"
    );
    for line in [
        "system        /distros/new: Debian trixie by debootstrap, in ",
        "directory     /.old_root: made",
        "directory     /containers: made",
        "libnss_unbit.so.2: copied from the node",
        "nsswitch      unbit is in its place, directly after files",
        "ok    distributions",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert_eq!(
        sh("ls -A /distros; stat -c '%U %a' /distros/new/.old_root; grep /distros /proc/self/mountinfo").out,
        "base\nnew\nroot 755\n"
    );
    let passwd = sh("grep ^passwd: /distros/new/etc/nsswitch.conf").ok();
    assert!(passwd.contains("files unbit"), "{passwd}");
    let inside = "mkdir /distros/new/containers/30009 && chown 30009:30009 /distros/new/containers/30009 && chroot /distros/new getent passwd 30009; rm -r /distros/new/containers/30009";
    assert_eq!(sh(inside).ok(), "30009:x:30009:30009:30009:/containers/30009:/bin/bash");

    // Again: it is there. What it lacks is put back, and nothing of another's is touched.
    let found = || sh("find /distros/new -printf '%p %i %T@\\n' | sort | cksum").ok();
    let before = found();
    let said = unbitctl("setup distribution new").ok();
    assert!(said.contains("/distros/new: exists") && !said.contains(": made"), "{said}");
    assert_eq!(found(), before);
    sh("rmdir /distros/new/containers; rm /distros/new/usr/lib/*/libnss_unbit.so.2").ok();
    let said = unbitctl("setup distribution new").ok();
    assert!(said.contains("/containers: made") && said.contains("copied from the node"), "{said}");
    for (change, back) in [("chown 30001", "chown 0"), ("chmod g+w", "chmod g-w")] {
        sh(format!("{change} /distros/new")).ok();
        let err = unbitctl("setup distribution new").failed();
        assert!(err.contains("is not a directory that root owns and nobody else may write to"), "{err}");
        sh(format!("{back} /distros/new")).ok();
    }
    // Links in it stay in it.
    sh("rm /distros/new/etc/nsswitch.conf && ln -s /etc/passwd /distros/new/etc/nsswitch.conf; cksum /etc/passwd >/tmp/sum").ok();
    unbitctl("setup distribution new");
    assert_eq!(sh("cksum /etc/passwd | cmp - /tmp/sum").status, Some(0));
}

#[test]
#[ignore = "needs the node: make test"]
fn nothing_is_left_of_a_distribution_that_fails() {
    let clean = || {
        assert_eq!(
            sh("ls -A /distros; grep -c /distros /proc/self/mountinfo; pgrep -fx 'sleep 7777'").out,
            "base\n0\n"
        );
    };
    {
        let _tool = debootstrap("mkdir $new; touch $new/file; echo 'E: no network' >&2; exit 3");
        let err = unbitctl("setup distribution new").failed();
        assert!(
            err.contains(
                "/distros/new has not been made, and nothing of it is left: debootstrap stable: exit status: 3: "
            ),
            "{err}"
        );
        assert!(err.contains("E: no network"), "{err}");
        clean();
    }
    {
        let _tool = debootstrap("mkdir -p $new/etc");
        let err = unbitctl("setup distribution new").failed();
        assert!(
            err.contains("libnss_unbit.so.2") || err.contains("in it: is it of this machine's architecture"),
            "{err}"
        );
        clean();
    }
    for (signal, name) in [("INT", "SIGINT"), ("TERM", "SIGTERM"), ("HUP", "SIGHUP")] {
        let _tool = debootstrap(
            "mkdir -p $new/proc; mount -t tmpfs none $new/proc; trap '' INT TERM HUP; (sleep 7777); sleep 7777",
        );
        let mut command = Command::new("unbitctl");
        command
            .args(["setup", "distribution", "new"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        eventually("it works", || pgrep("^sleep 7777$"));
        sh(format!("kill -{signal} {}", child.id())).ok();
        let done = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{err}");
        assert!(err.contains(&format!("nothing of it is left: ended by {name}")), "{err}");
        clean();
    }
    // Of one that was killed, the next one throws away what is left.
    sh("mkdir -p /distros/.new.unbitctl/old").ok();
    let _tool = debootstrap(&format!("[[ ! -e $new ]]; {DEBIAN}"));
    unbitctl("setup distribution new").ok();
    assert_eq!(sh("ls -A /distros").ok(), "base\nnew");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_tool_that_is_missing_is_named() {
    let err = unbitctl("setup distribution new").failed();
    assert_eq!(err, "unbitctl: packages are missing: apt-get install debootstrap, or give --install\n");
    for words in [
        "setup distribution",
        "setup distribution ../x",
        "setup distribution .x",
        "setup distribution x --suite=--y",
        "setup distribution x pam",
        "setup pam emperor",
    ] {
        assert_eq!(unbitctl(words).status, Some(2), "{words}");
    }
    assert_eq!(sh("ls -A /distros").ok(), "base");
}
