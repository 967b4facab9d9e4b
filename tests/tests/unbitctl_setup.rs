// node: --stock
//! `unbitctl setup`, and the checks that it fixes: on a node whose nsswitch.conf, pam.d/sshd and
//! sshd_config are Debian's own.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use unbit_tests::*;

const NSSWITCH: &str = "/etc/nsswitch.conf";
const PAM: &str = "/etc/pam.d/sshd";
const SSHD: &str = "/etc/ssh/sshd_config";
const OURS: &str = "/etc/ssh/sshd_config.d/00-unbit.conf";
const NSCD: &str = "/etc/nscd.conf";
/// All that these checks can find.
const STEPS: &str = "--guide uwsgi.it --keys-only pam sshd nsswitch";

/// The files of the node and of the distribution as they are now, and again when the test ends.
struct Stock;

impl Stock {
    const SAVE: &str = "rm -rf /tmp/stock; for root in '' /distros/base; do
        mkdir -p /tmp/stock$root/etc; cp -a $root/etc/{nsswitch.conf,nscd.conf,pam.d,ssh} /tmp/stock$root/etc; done";
    const RESTORE: &str = "for root in '' /distros/base; do
        rm -rf $root/etc/{nsswitch.conf,nscd.conf,.nsswitch,.nscd}* $root/etc/{pam.d,ssh} $root/var/lib/unbitctl
        cp -a /tmp/stock$root/etc/. $root/etc; done";

    fn again() -> Self {
        sh(Self::SAVE).ok();
        Self
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        sh(Self::RESTORE).ok();
    }
}

/// A file that is moved away until the test ends, and may be replaced meanwhile.
struct Away(String);

impl Away {
    fn file(path: &str) -> Self {
        fs::rename(path, format!("{path}.away")).unwrap();
        Self(path.to_owned())
    }

    /// With a getent in its place that does not find root: as if nsswitch.conf were broken.
    fn getent() -> Self {
        const WITHOUT_ROOT: &str = "#!/bin/sh\n[ \"$*\" != 'passwd root' ] || exit 2\nexec $0.away \"$@\"\n";
        let away = Self::file("/usr/bin/getent");
        fs::write("/usr/bin/getent", WITHOUT_ROOT).unwrap();
        sh("chmod 755 /usr/bin/getent").ok();
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(format!("{}.away", self.0), &self.0).unwrap();
    }
}

/// What a command that ends in `unbitctl check` finds: "STATE CHECK: SEEN", and "fix: FIX".
fn said(arguments: &str) -> Vec<String> {
    let found = sh(format!("{arguments} --json"));
    let json: Value = serde_json::from_str(&found.out).unwrap_or_else(|error| panic!("{error}: {found:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let line = |finding: &Value| {
        let [state, check, seen, fix] = ["state", "check", "seen", "fix"].map(|key| text(finding, key));
        format!("{state} {check}: {seen}\nfix: {fix}\n")
    };
    json.as_array().unwrap().iter().map(line).collect()
}

/// What the checks of a step say that is not well.
fn faults(step: &str, root: &str) -> Vec<String> {
    let root = if root.is_empty() { String::new() } else { format!("--root {root}") };
    let mut said = said(&format!("unbitctl check --guide uwsgi.it {root}"));
    said.retain(|said| ["fail", "warn"].iter().any(|state| said.starts_with(&format!("{state} {step}: "))));
    said
}

fn all_faults() -> Vec<String> {
    STEPS.split(' ').flat_map(|step| faults(step, "")).collect()
}

/// All that is in the directories that setup writes to: names, inodes, times and content.
fn everything() -> String {
    sh("find /etc /var/lib -xdev -printf '%p %i %C@ %m %U:%G\\n' | sort; sha256sum /etc/nsswitch.conf* /etc/pam.d/* /etc/ssh/sshd_config*").out
}

fn module(pattern: &str) -> String {
    sh(format!("ls /usr/lib/*-linux-gnu/{pattern}")).ok()
}

#[test]
#[ignore = "needs the node: make test"]
fn a_fresh_debian_becomes_a_node_by_setup_alone() {
    let _stock = Stock::again();
    sh("/usr/sbin/sshd").ok();
    let _end = AtEnd(|| drop(sh("kill $(cat /run/sshd.pid)")));
    eventually("sshd", || Path::new("/run/sshd.pid").exists().then_some(()));
    assert_eq!(ssh("alice", "id -un").ok(), "alice", "the witness");
    ssh(30001, "true").failed();
    assert_ne!(all_faults(), [""; 0]);

    let done = sh("unbitctl setup --guide uwsgi.it --keys-only");
    assert_eq!(done.status, Some(0), "{done:?}");
    for step in ["directories", "pam", "sshd", "nsswitch", "nscd"] {
        assert_eq!(faults(step, ""), [""; 0]);
    }
    assert!(done.out.contains("reload ssh") && done.err.contains("sshd will refuse all passwords"), "{done:?}");
    let [distribution] = &faults("distributions", "")[..] else { panic!("{done:?}") };
    assert!(distribution.ends_with("\nfix: unbitctl setup --root /distros/base nsswitch\n"), "{distribution}");
    sh("unbitctl setup nsswitch --root /distros/base").ok(); // scp and sftp look themselves up in there
    assert_eq!(faults("distributions", ""), [""; 0]);
    sh("kill -HUP $(cat /run/sshd.pid)").ok(); // systemctl reload ssh
    eventually("a login", || (ssh(30001, "true").status == Some(0)).then_some(()));

    assert_eq!(ssh(30001, "hostname; id -un; pwd").ok(), "c30001\n30001\n/containers/30001");
    assert_eq!(ssh("alice", "id -un; hostname").ok(), "alice\nnode");
    sh("echo here >/tmp/here; scp -q /tmp/here 30001@node:there && cmp /tmp/here /containers/30001/there; status=$?; rm /containers/30001/there; exit $status").ok();
    assert!(run("sftp", &["-q", "-b", "-", "30001@node"], b"pwd\n").ok().contains("/containers/30001"));
    let refused = run("ssh", &["-o", "PubkeyAuthentication=no", "-v", "30001@node", "true"], b"").failed();
    assert!(refused.contains("Permission denied (publickey)"), "{refused}");
}

/// The steps of the guide are gone only if they are asked for, and a login needs none of them.
#[test]
#[ignore = "needs the node: make test"]
fn a_plain_setup_makes_what_a_login_needs_and_no_more() {
    const OF_GUIDE: &str = "/subscribe /etc/uwsgi/ssl";
    let _stock = Stock::again();
    sh(format!("rm -rf {OF_GUIDE}; mkdir -p /run/sshd; /usr/sbin/sshd")).ok();
    let _end = AtEnd(|| drop(sh("kill $(cat /run/sshd.pid)")));
    eventually("sshd", || Path::new("/run/sshd.pid").exists().then_some(()));
    let well = || {
        let mut said = said("unbitctl check");
        said.retain(|said| !said.starts_with("ok ") && !said.starts_with("not-applicable "));
        said
    };
    let before = well().concat();
    assert!(before.contains("fail pam: ") && before.contains("fail nsswitch: "), "{before}");
    let done = sh("unbitctl setup");
    assert_eq!(done.status, Some(0), "{done:?}");
    let [distribution] = &well()[..] else { panic!("{:?}", well()) };
    assert!(distribution.ends_with("\nfix: unbitctl setup --root /distros/base nsswitch\n"), "{distribution}");
    assert_eq!(sh(format!("cmp {SSHD} /tmp/stock{SSHD}; ls -d {OF_GUIDE} 2>/dev/null")).out, "");

    // A distribution that has no sftp-server.
    let _back = AtEnd(|| drop(sh("mv /distros/base/usr/lib/openssh/away /distros/base/usr/lib/openssh/sftp-server")));
    sh("mv /distros/base/usr/lib/openssh/sftp-server /distros/base/usr/lib/openssh/away").ok();
    let seen = "warn sshd: Subsystem sftp /usr/lib/openssh/sftp-server, which is not in /distros/base\nfix: unbitctl setup sshd\n";
    assert!(well().contains(&seen.to_owned()), "{:?}", well());
    sh("unbitctl setup sshd").ok();
    assert!(!well().concat().contains("Subsystem"), "{:?}", well());

    let by_guide = sh("unbitctl setup --guide uwsgi.it directories");
    assert_eq!(
        (by_guide.status, sh(format!("ls -d {OF_GUIDE}")).ok().as_str()),
        (Some(0), "/etc/uwsgi/ssl\n/subscribe")
    );
    // Only steps of the guide fail: setup ends as check does.
    sh("rmdir /etc/uwsgi/ssl; touch /etc/uwsgi/ssl").ok();
    let _file = AtEnd(|| drop(sh("rm /etc/uwsgi/ssl")));
    assert_eq!(sh("unbitctl setup --guide uwsgi.it directories").status, Some(4));
    assert_eq!(sh("unbitctl setup directories").status, Some(0));
}

/// sshd may look for keys in other places, but somewhere.
#[test]
#[ignore = "needs the node: make test"]
fn sshd_must_look_for_keys_somewhere() {
    let _stock = Stock::again();
    sh("mkdir -p /run/sshd; unbitctl setup --guide uwsgi.it pam sshd").ok();
    let faults = || {
        let mut said = said("unbitctl check");
        said.retain(|said| said.starts_with("fail sshd: "));
        said
    };
    for (line, fails) in [
        ("AuthorizedKeysFile /etc/ssh/keys/%u", false),
        ("AuthorizedKeysFile none\nAuthorizedKeysCommand /bin/true\nAuthorizedKeysCommandUser nobody", false),
        ("AuthorizedKeysFile none", true),
    ] {
        sh(format!("printf '{line}\n' >/etc/ssh/sshd_config.d/00-a.conf")).ok();
        assert_eq!(!faults().is_empty(), fails, "{line}: {:?}", faults());
    }
    sh(format!(
        "rm /etc/ssh/sshd_config.d/00-a.conf; sed -i 's/^AuthorizedKeysFile.*/AuthorizedKeysFile none/' {OURS}"
    ))
    .ok();
    let [fault] = &faults()[..] else { panic!("{:?}", faults()) };
    assert!(fault.ends_with("\nfix: unbitctl setup sshd\n"), "{fault}");
    sh("unbitctl setup sshd").ok();
    assert_eq!(faults(), [""; 0]);
}

/// Whoever logs in by password still does, unless the operator has said otherwise; and is warned
/// before anything is changed.
#[test]
#[ignore = "needs the node: make test"]
fn passwords_are_refused_only_if_that_is_wished() {
    const EXAMPLE: &str = "/unbit/examples/sshd_config.d-unbit.conf";
    let passwords = || sh("sshd -T | grep -E '^(password|kbdinteractive)authentication'").ok();
    let _stock = Stock::again();
    sh("sshd -T >/dev/null || mkdir -p /run/sshd").ok();
    let before = passwords();
    assert!(before.contains("yes"), "the witness: {before}");
    let done = sh("unbitctl setup pam sshd");
    assert_eq!((done.status, passwords()), (Some(0), before.clone()), "{done:?}");
    assert!(!done.err.contains("passwords:"), "{done:?}");
    let of_sshd = faults("sshd", "");
    let password = of_sshd.iter().find(|fault| fault.contains("PasswordAuthentication")).unwrap();
    assert!(password.contains("PasswordAuthentication yes\nfix: unbitctl setup --keys-only sshd\n"), "{password}");
    // The file is that of examples/, without the lines on passwords; PerSourcePenalties where sshd
    // knows it.
    let plain = |text: &str| {
        text.replace(" .ssh/authorized_keys2", "")
            .replace("#PerSource", "PerSource")
            .replace("\n#Pass", "\nPass")
            .replace("\n#Kbd", "\nKbd")
    };
    let example = fs::read_to_string(EXAMPLE).unwrap();
    let ours = fs::read_to_string(OURS).unwrap();
    assert!(ours.contains("\n#PasswordAuthentication no\n#KbdInteractiveAuthentication no\n"), "{ours}");
    assert_eq!(plain(&ours), plain(&example));

    // The warning comes before the change.
    let keys = Away::file("/root/.ssh/authorized_keys");
    let traced = sh("strace -f -qq -s 200 -o /tmp/calls -e trace=write,rename unbitctl setup --keys-only sshd");
    assert_eq!(traced.status, Some(0), "{traced:?}");
    let calls = fs::read_to_string("/tmp/calls").unwrap();
    let at = |what: &str| calls.find(what).unwrap_or_else(|| panic!("{what}: {calls}"));
    assert!(at("root has no key on this node") < at("00-unbit.conf.unbitctl"), "{calls}");
    drop(keys);
    assert!(!passwords().contains("yes"), "{}", passwords());
    assert!(!faults("sshd", "").concat().contains("Authentication"), "{:?}", faults("sshd", ""));
    let ours = fs::read_to_string(OURS).unwrap();
    assert_eq!(plain(&ours), plain(&example));

    // On a terminal set-up asks; "no" and nothing at all are no.
    sh("unbitctl setup --undo").ok();
    for (answer, refused) in [("", false), ("n\n", false), ("y\n", true)] {
        let asked = run("script", &["-qec", "unbitctl setup sshd", "/dev/null"], answer.as_bytes());
        assert!(asked.out.contains("Should it accept only keys"), "{answer:?}: {asked:?}");
        assert_eq!(!passwords().contains("yes"), refused, "{answer:?}: {asked:?}");
    }
}

/// A root directory that containers start from needs other things than a node's image.
#[test]
#[ignore = "needs the node: make test"]
fn a_distribution_is_set_up_as_one() {
    const OTHER: &str = "/distros/other";
    let _end = AtEnd(|| drop(sh("rm -rf /distros/other /srv/other")));
    sh("set -e; lib=$(dirname $(find /usr/lib -name libc.so.6 | head -1)); mkdir -p /distros/other/etc /distros/other$lib
        cp $lib/libc.so.6 $lib/libnss_unbit.so.2 /distros/other$lib; echo root:x:0:0::/root:/bin/sh >/distros/other/etc/passwd
        echo 'passwd: files' >/distros/other/etc/nsswitch.conf")
    .ok();
    let checks = said(&format!("unbitctl check --root {OTHER}")).concat();
    let missing =
        "fail distributions: /.old_root is missing\nfix: unbitctl setup --root /distros/other distributions\n";
    for (has, words) in [(true, missing), (true, " nsswitch: "), (false, " directories: "), (false, " sshd: ")] {
        assert_eq!(checks.contains(words), has, "{words}: {checks}");
    }
    let refused = sh(format!("unbitctl setup --root {OTHER} directories")).failed();
    assert!(refused.contains("/distros/other is a distribution, and only a node has these directories"), "{refused}");
    sh(format!("unbitctl setup --root {OTHER}")).ok();
    assert_eq!(sh(format!("ls -A {OTHER}")).ok(), ".old_root\ncontainers\netc\nusr\nvar");
    assert_eq!(sh(format!("ls -A {OTHER}/etc | grep -v unbit-")).ok(), "nsswitch.conf\npasswd");
    let checks = said(&format!("unbitctl check --root {OTHER}")).concat();
    assert!(
        checks.contains("ok distributions: it: both directories") && !checks.contains("fail distributions"),
        "{checks}"
    );
    // What was made goes if nothing is in it.
    sh(format!("touch {OTHER}/containers/kept")).ok();
    let undone = sh(format!("unbitctl setup --root {OTHER} --undo")).ok();
    assert!(undone.contains("/.old_root: removed") && !undone.contains("/containers: removed"), "{undone}");
    sh(format!("test ! -e {OTHER}/.old_root && rm {OTHER}/containers/kept")).ok();
    // Elsewhere it is known by where pivot_root(2) leaves the old root; an image of a node has
    // none.
    sh("mkdir -p /srv/other/etc /srv/other/.old_root").ok();
    let is_about_one = |said: &String| said.contains(" nsswitch: ") || said.contains(" distributions: ");
    assert!(said("unbitctl check --root /srv/other").iter().all(is_about_one));
    sh("rmdir /srv/other/.old_root").ok();
    assert!(said("unbitctl check --root /srv/other").concat().contains(" directories: "));
}

/// A node's image, which goes with this: all of /distros/base but what makes it a distribution.
fn image() -> AtEnd<impl FnMut() + use<>> {
    sh("rm -rf /srv/image; cp -al /distros/base /srv/image && rmdir /srv/image/.old_root").ok();
    AtEnd(|| drop(sh("rm -rf /srv/image")))
}

#[test]
#[ignore = "needs the node: make test"]
fn the_second_run_touches_nothing() {
    let _stock = Stock::again();
    sh(format!("unbitctl setup {STEPS}")).ok();
    let before = everything();
    assert_eq!(sh(format!("unbitctl setup {STEPS}")).ok(), "nothing to do");
    assert_eq!(sh(format!("unbitctl setup --dry-run {STEPS}")).ok(), "nothing to do");
    assert_eq!(everything(), before);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_dry_run_shows_and_changes_nothing() {
    let before = everything();
    let shown = sh(format!("unbitctl setup --dry-run {STEPS}")).ok();
    for part in [
        "--- a/etc/nsswitch.conf\n+++ b/etc/nsswitch.conf\n",
        "-passwd:         files systemd\n",
        "+passwd:         files unbit systemd\n",
        "--- a/etc/pam.d/sshd\n",
        "--- /dev/null\n+++ b/etc/ssh/sshd_config.d/00-unbit.conf\n",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(everything(), before);
    let applied = {
        let _stock = Stock::again();
        sh(format!("unbitctl setup {STEPS}")).ok()
    };
    let differences = |text: &str| {
        text.lines().filter(|line| line.starts_with(['+', '-', '@'])).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(differences(&applied), differences(&shown), "the same is shown when it is done");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_setup_would_refuse_a_dry_run_refuses() {
    let _stock = Stock::again();
    let end = |steps: &str, said: &str, ends: &str| {
        for command in ["setup --dry-run", "setup"] {
            let done = sh(format!("unbitctl {command} {steps}"));
            assert_eq!(done.status, Some(1), "{command} {steps}: {done:?}");
            assert!(done.err.contains(said) && done.err.ends_with(ends), "{command} {steps}: {done:?}");
            assert!(command == "setup" || !done.out.contains("unbit"), "a change that would not be made: {done:?}");
        }
    };
    let session = "nsswitch: sshd would give container users a session on the node; first: unbitctl setup pam sshd\n";
    end("nsswitch", session, session);
    {
        let library = module("security/pam_unbit.so");
        let _away = Away::file(&library);
        let none = format!("there is no {library}\n");
        end(STEPS, &none, "failed: pam; not begun: sshd, nsswitch\n");
        fs::write(&library, "no library").unwrap();
        end(STEPS, &format!("{library} cannot be loaded: "), "failed: pam; not begun: sshd, nsswitch\n");
    }
    // Lines that sshd does not ask for, and setup does not change.
    sh("unbitctl setup pam sshd; echo UsePAM no >/etc/ssh/sshd_config.d/00-a.conf").ok();
    end("pam sshd nsswitch", session, "done: pam, sshd; failed: nsswitch\n");
    // Those that the steps before would fix are no obstacle.
    sh("rm /etc/ssh/sshd_config.d/00-a.conf; echo UsePAM no >/etc/ssh/sshd_config.d/00-unbit.conf").ok();
    end("nsswitch", session, session);
    sh("unbitctl setup --dry-run sshd nsswitch && unbitctl setup sshd nsswitch").ok();

    // Without root it is not known of all.
    let shown = sh("unbitctl setup --undo --force; chroot --userspec=1000:1000 / unbitctl setup --dry-run nsswitch");
    assert!(shown.status == Some(3) && shown.out.contains("\n+passwd:         files unbit systemd\n"), "{shown:?}");
    assert!(shown.err.contains("nsswitch: root is needed to ask sshd what it is configured to do\n"), "{shown:?}");
    let shown =
        sh("unbitctl setup nscd; chroot --userspec=1000:1000 / unbitctl setup --dry-run pam sshd nsswitch nscd");
    let known = "unbitctl: setup would end with done: pam, nscd; not known: sshd, nsswitch\n";
    assert!(shown.status == Some(3) && shown.err.ends_with(known), "{shown:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn files_keep_their_mode_and_owner_and_are_kept_with_a_date() {
    let _stock = Stock::again();
    sh(format!("chmod 640 {NSSWITCH}; chown 0:8 {NSSWITCH}")).ok();
    let (old, inode) = (fs::read_to_string(NSSWITCH).unwrap(), fs::metadata(NSSWITCH).unwrap().ino());
    sh(format!("unbitctl setup {STEPS}")).ok();
    let new = fs::metadata(NSSWITCH).unwrap();
    assert_eq!((new.permissions().mode() & 0o7777, new.uid(), new.gid()), (0o640, 0, 8));
    let kept = sh(format!("ls {NSSWITCH}.unbit-*")).ok();
    assert!(kept.starts_with("/etc/nsswitch.conf.unbit-20") && kept.ends_with('Z'), "{kept}");
    assert_eq!((fs::read_to_string(&kept).unwrap(), fs::metadata(&kept).unwrap().ino()), (old, inode));
    assert_eq!(sh("find /etc /var/lib -name '.*unbitctl'").ok(), "", "nothing half-made");
    // Neither is read by sshd.
    assert_eq!(sh("sshd -T | grep -ci ^x11forwarding").ok(), "1");
    assert_eq!(sh(format!("stat -c %a {OURS}")).ok(), "644");
}

/// The power may take what is not on the disk: a file is there before its name is, and its name
/// before the next file.
#[test]
#[ignore = "needs the node: make test"]
fn each_file_is_on_the_disk_before_its_name_is() {
    let _stock = Stock::again();
    for (command, names) in [
        (format!("unbitctl setup {STEPS}"), vec![PAM, SSHD, OURS, NSSWITCH, "/var/lib/unbitctl/setup.json"]),
        ("unbitctl setup --undo".to_owned(), vec![PAM, SSHD, NSSWITCH]),
    ] {
        let traced = sh(format!("strace -qq -y -o /tmp/calls -e trace=fsync,/^rename {command}")).ok();
        let calls = fs::read_to_string("/tmp/calls").unwrap();
        let calls: Vec<_> = calls.lines().collect();
        let renames = calls.iter().enumerate().filter(|(_, call)| call.starts_with("rename"));
        let mut replaced = Vec::new();
        for (at, call) in renames {
            let mut paths = call.split('"').skip(1).step_by(2);
            let (from, to) = (paths.next().unwrap(), paths.next().unwrap());
            let is_synced = |calls: &[&str], path: &str| {
                calls.iter().any(|call| call.starts_with("fsync(") && call.contains(&format!("<{path}>)")))
            };
            let (before, after) = calls.split_at(at);
            let next =
                after.iter().skip(1).position(|call| call.starts_with("rename")).map_or(after.len(), |next| next + 1);
            let directory = Path::new(to).parent().unwrap().to_str().unwrap();
            // What is put back has been on the disk all the time.
            assert!(from.contains(".unbit-") || is_synced(before, from), "{to}: {calls:#?}");
            assert!(is_synced(&after[..next], directory), "{to}: {calls:#?}");
            replaced.push(to);
        }
        for name in names {
            assert!(replaced.contains(&name), "{name}: {replaced:?} {traced}");
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn undo_puts_all_back() {
    let _stock = Stock::again();
    let before = sh("sha256sum /etc/nsswitch.conf /etc/pam.d/* /etc/ssh/sshd_config; stat -c %i /etc/nsswitch.conf; ls -A /etc/pam.d /etc/ssh/sshd_config.d").ok();
    let same = || {
        assert_eq!(sh("sha256sum /etc/nsswitch.conf /etc/pam.d/* /etc/ssh/sshd_config; stat -c %i /etc/nsswitch.conf; ls -A /etc/pam.d /etc/ssh/sshd_config.d").ok(), before)
    };
    sh(format!("unbitctl setup {STEPS}")).ok();
    let shown = sh("unbitctl setup --undo --dry-run").ok();
    for line in ["\n-passwd:         files unbit systemd\n", "\n+passwd:         files systemd\n"] {
        assert!(shown.contains(line), "{shown}");
    }
    assert_eq!(all_faults(), [""; 0], "a dry run");
    let done = sh("unbitctl setup --undo").ok();
    for said in [
        "/etc/nsswitch.conf: as it was before",
        "/etc/pam.d/sshd: as it was before",
        "/etc/ssh/sshd_config.d/00-unbit.conf: removed",
    ] {
        assert!(done.contains(said), "{said}: {done}");
    }
    same();
    assert_eq!(sh("unbitctl setup --undo").ok(), "nothing to undo");

    // Only the last one is undone.
    sh("unbitctl setup pam sshd").ok();
    sh("unbitctl setup nsswitch").ok();
    sh("unbitctl setup --undo").ok();
    assert_eq!(faults("pam", ""), [""; 0]);
    assert_ne!(faults("nsswitch", ""), [""; 0]);
}

/// A set-up that came to nothing is none.
#[test]
#[ignore = "needs the node: make test"]
fn undo_takes_back_the_last_set_up_that_replaced_files() {
    let _stock = Stock::again();
    let _all = AtEnd(|| drop(sh("unbitctl setup --guide uwsgi.it directories")));
    sh("unbitctl setup --guide uwsgi.it directories").ok();
    const READ_ONLY: &str = "unshare --mount sh -c 'mount --bind /etc /etc; mount -o remount,bind,ro /etc; $0 $*'";
    for (come_to_nothing, said) in [
        ("! unbitctl setup nsswitch", "/etc/nsswitch.conf is as it was before"),
        (&format!("! {READ_ONLY} unbitctl setup nscd"), "Read-only file system"),
        ("chmod 700 /subscribe; unbitctl setup --guide uwsgi.it directories", "\n1 directory fixed; it stays\n"),
        ("unbitctl setup --guide uwsgi.it directories pam", "nothing to do"),
    ] {
        assert!(
            sh("unbitctl setup --guide uwsgi.it --keys-only pam sshd")
                .ok()
                .ends_with("\n3 files changed; unbitctl setup --undo takes them back")
        );
        {
            let _getent = Away::getent();
            let nothing = sh(come_to_nothing);
            assert_eq!(nothing.status, Some(0), "{come_to_nothing}: {nothing:?}");
            assert!(format!("{}{}", nothing.out, nothing.err).contains(said), "{come_to_nothing}: {nothing:?}");
            assert!(!nothing.out.contains("--undo"), "{come_to_nothing}: {nothing:?}");
        }
        let undone = sh("unbitctl setup --undo").ok();
        assert!(undone.contains("/etc/pam.d/sshd: as it was before"), "{come_to_nothing}: {undone}");
        let is_stock = "for file in pam.d/sshd ssh/sshd_config nsswitch.conf nscd.conf; do cmp /etc/$file /tmp/stock/etc/$file; done";
        assert_eq!(sh(is_stock).ok(), "", "{come_to_nothing}");
        assert_eq!(sh("unbitctl setup --undo").ok(), "nothing to undo", "{come_to_nothing}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn undo_leaves_what_others_have_changed_since() {
    let _stock = Stock::again();
    sh(format!("unbitctl setup {STEPS}")).ok();
    sh(format!("echo '# mine' >>{PAM}")).ok();
    let before = everything();
    let refused = sh("unbitctl setup --undo");
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.out.contains("+# mine\n"), "{refused:?}");
    assert!(
        refused.err.contains("/etc/pam.d/sshd has been changed since") && refused.err.contains("nothing is undone"),
        "{refused:?}"
    );
    assert_eq!(everything(), before);
    sh("unbitctl setup --undo --force").ok();
    assert_eq!(sh(format!("cmp {PAM} /tmp/stock{PAM} && cmp {NSSWITCH} /tmp/stock{NSSWITCH}")).ok(), "");

    sh("unbitctl setup pam").ok();
    sh(format!("rm {PAM}.unbit-*")).ok();
    let refused = sh("unbitctl setup --undo --force").failed();
    assert!(refused.contains("is gone"), "{refused}");
    assert_eq!(faults("pam", ""), [""; 0]);
}

#[test]
#[ignore = "needs the node: make test"]
fn setup_replaces_the_target_of_a_symlink() {
    let _stock = Stock::again();
    sh("unbitctl setup pam sshd").ok();
    sh("mkdir -p /etc/real; mv /etc/nsswitch.conf /etc/real/nss; ln -s real/nss /etc/nsswitch.conf").ok();
    let _end = AtEnd(|| drop(sh("rm -rf /etc/real")));
    sh("unbitctl setup nsswitch").ok();
    assert_eq!(fs::read_link(NSSWITCH).unwrap(), Path::new("real/nss"));
    assert_eq!(faults("nsswitch", ""), [""; 0]);
    assert_eq!(sh("ls /etc/real | wc -l").ok(), "2", "kept beside the target");
    sh("unbitctl setup --undo").ok();
    assert_eq!(sh("cmp /etc/real/nss /tmp/stock/etc/nsswitch.conf; ls -A /etc/real").ok(), "nss");

    sh("rm -r /etc/real").ok();
    let refused = sh("unbitctl setup nsswitch").failed();
    assert!(refused.contains("/etc/nsswitch.conf is a symbolic link that leads nowhere"), "{refused}");
    assert!(fs::symlink_metadata(NSSWITCH).unwrap().is_symlink());
}

/// Each thing that a step looks at, broken alone and fixed by it.
#[test]
#[ignore = "needs the node: make test"]
fn each_check_fails_by_its_one_thing_and_passes_after_its_fix() {
    let _stock = Stock::again();
    sh(format!("unbitctl setup {STEPS}")).ok();
    assert_eq!(all_faults(), [""; 0], "the witness");
    for (step, broken, fault) in [
        ("nsswitch", "sed -i 's/^passwd:.*/passwd: files systemd/' /etc/nsswitch.conf", "passwd: unbit is missing"),
        ("nsswitch", "sed -i 's/^group:.*/group: files/' /etc/nsswitch.conf", "group: unbit is missing"),
        ("nsswitch", "sed -i '/^shadow:/d' /etc/nsswitch.conf", "shadow: there is no such line"),
        (
            "nsswitch",
            "sed -i 's/^hosts:.*/hosts: files dns unbit/' /etc/nsswitch.conf",
            "hosts: dns is asked before unbit",
        ),
        (
            "nsswitch",
            "sed -i 's/^hosts:.*/hosts: files mdns4_minimal [NOTFOUND=return] unbit/' /etc/nsswitch.conf",
            "hosts: mdns4_minimal [NOTFOUND=return] ends the search before unbit",
        ),
        (
            "nsswitch",
            "sed -i 's/^passwd:.*/passwd: files [NOTFOUND=return] unbit/' /etc/nsswitch.conf",
            "getent passwd 3000",
        ),
        ("nsswitch", "sed -i 's/^passwd:.*/passwd: unbit files/' /etc/nsswitch.conf", "files comes after unbit"),
        (
            "nsswitch",
            "sed -i 's/^passwd:.*/passwd: files systemd unbit/' /etc/nsswitch.conf",
            "warn nsswitch: passwd: systemd is asked before unbit",
        ),
        ("nsswitch", ": >/etc/nsswitch.conf", "there is no such line"),
        ("pam", "sed -i '/^auth.*unbit/d' /etc/pam.d/sshd", "there is no auth line of pam_unbit.so"),
        ("pam", "sed -i '/^account.*unbit/d' /etc/pam.d/sshd", "there is no account line of pam_unbit.so"),
        ("pam", "sed -i '/^session.*unbit/d' /etc/pam.d/sshd", "there is no session line of pam_unbit.so"),
        ("pam", "sed -i '/^session.*unbit/s/done/ok/' /etc/pam.d/sshd", "success is ok"),
        ("pam", "sed -i 's/uid < 30000/uid < 60000/' /etc/pam.d/sshd", "this line is not: uid < 60000"),
        (
            "pam",
            "line=$(grep ^session.*unbit /etc/pam.d/sshd); sed -i '/^session.*unbit/d' /etc/pam.d/sshd; echo \"$line\" >>/etc/pam.d/sshd",
            "pam_motd.so runs for container users",
        ),
        (
            "pam",
            "sed -i '/^session.*unbit/isession optional pam_exec.so /bin/true' /etc/pam.d/sshd",
            "pam_exec.so runs for container users",
        ),
        (
            "pam",
            "sed -i '/^session.*unbit/isession optional pam_env.so user_readenv=1' /etc/pam.d/sshd",
            "pam_env.so runs for container users",
        ),
        (
            "pam",
            "sed -i '/^session.*unbit/i-session optional pam_systemd.so' /etc/pam.d/sshd",
            "pam_systemd.so runs for container users",
        ),
        (
            "pam",
            "sed -i '/^session.*unbit/isession required pam_limits.so' /etc/pam.d/sshd",
            "pam_limits.so runs for container users: if it fails, every module after pam_unbit.so runs for them too",
        ),
        (
            "pam",
            "sed -i '/^session.*unbit/isession include common-session' /etc/pam.d/sshd",
            "fail pam: /etc/pam.d/common-session line ",
        ),
        (
            "pam",
            "sed -i '/^auth.*unbit/iauth optional pam_group.so' /etc/pam.d/sshd",
            "pam_group.so runs for container users",
        ),
        ("sshd", "echo UsePAM no >/etc/ssh/sshd_config.d/00-unbit.conf", "UsePAM no"),
        (
            "sshd",
            "sed -i /AuthorizedKeysFile/d /etc/ssh/sshd_config.d/00-unbit.conf",
            "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2",
        ),
        ("sshd", "sed -i /PasswordAuthentication/d /etc/ssh/sshd_config.d/00-unbit.conf", "PasswordAuthentication yes"),
        (
            "sshd",
            "echo KbdInteractiveAuthentication yes >>/etc/ssh/sshd_config.d/00-unbit.conf",
            "KbdInteractiveAuthentication yes",
        ),
        ("sshd", "sed -i /X11Forwarding/d /etc/ssh/sshd_config.d/00-unbit.conf", "X11Forwarding yes"),
        ("sshd", "echo PubkeyAuthentication no >>/etc/ssh/sshd_config.d/00-unbit.conf", "PubkeyAuthentication no"),
        (
            "sshd",
            "sed -i /PerSourcePenalties/d /etc/ssh/sshd_config.d/00-unbit.conf",
            "PerSourcePenalties crash:90 authfail:5",
        ),
        (
            "sshd",
            "sed -i 's/ClientAliveInterval.*/ClientAliveInterval 0/' /etc/ssh/sshd_config.d/00-unbit.conf",
            "ClientAliveInterval 0",
        ),
        (
            "sshd",
            "sed -i 's|^Subsystem.*|Subsystem sftp /usr/lib/openssh/sftp-server|' /etc/ssh/sshd_config",
            "Subsystem sftp /usr/lib/openssh/sftp-server",
        ),
        ("sshd", "sed -i '/^Subsystem/d' /etc/ssh/sshd_config", "there is no Subsystem sftp"),
        (
            "sshd",
            "rm /etc/ssh/sshd_config.d/00-unbit.conf; echo X11Forwarding yes >/etc/ssh/sshd_config.d/50-cloud.conf",
            "X11Forwarding yes",
        ),
    ] {
        if broken.contains("PerSourcePenalties") && sh("sshd -T | grep -q ^persourcepenalties").status != Some(0) {
            continue; // sshd before 9.8
        }
        sh(broken).ok();
        let seen = faults(step, "");
        assert!(seen.iter().any(|seen| seen.contains(fault)), "{broken}: {seen:?}");
        for other in STEPS.split(' ').filter(|other| *other != step) {
            assert_eq!(faults(other, ""), [""; 0], "{broken}");
        }
        let fixed = sh(format!("unbitctl setup --guide uwsgi.it --keys-only {step}"));
        if let Some((_, line)) = broken.strip_suffix("' /etc/pam.d/sshd").and_then(|begin| begin.split_once("unbit/i"))
        {
            // It is somebody's, so it stays, and ours goes before it.
            assert!(fs::read_to_string(PAM).unwrap().contains(&format!("{line}\n")), "{broken}");
        }
        assert_eq!((fixed.status, all_faults()), (Some(0), Vec::new()), "{broken}: {fixed:?}");
    }
}

/// A node that was set up when the session line's place was behind pam_loginuid and pam_keyinit.
#[test]
#[ignore = "needs the node: make test"]
fn the_session_line_is_moved_up_from_its_former_place() {
    let _stock = Stock::again();
    sh("unbitctl setup pam sshd").ok();
    let now = fs::read_to_string(PAM).unwrap();
    sh(format!("rm {PAM}.unbit-*")).ok();
    let (mut lines, mut ours) = (String::new(), String::new());
    for line in now.split_inclusive('\n') {
        match line {
            line if line.starts_with("session") && line.contains("pam_unbit.so") => ours = line.to_owned(),
            "@include common-session\n" => lines = lines + &ours + line,
            line => lines += line,
        }
    }
    fs::write(PAM, &lines).unwrap();
    let seen = faults("pam", "");
    for module in ["pam_selinux.so", "pam_loginuid.so", "pam_keyinit.so"] {
        let fault = format!("{module} runs for container users");
        let is_told = |seen: &&String| seen.starts_with("fail pam: /etc/pam.d/sshd line ") && seen.contains(&fault);
        assert_eq!(seen.iter().filter(is_told).count(), 1, "{module}: {seen:#?}");
        assert!(seen.iter().all(|seen| seen.ends_with("fix: unbitctl setup pam\n")), "{seen:#?}");
    }
    let before = everything();
    let shown = sh("unbitctl setup --dry-run pam").ok();
    assert_eq!(everything(), before);
    let moved = |sign: &str| {
        let is_ours = |line: &&str| line.starts_with(&format!("{sign}session")) && line.contains("pam_unbit.so");
        shown.lines().filter(is_ours).count()
    };
    assert_eq!((moved("-"), moved("+")), (1, 1), "{shown}");
    assert!(sh("unbitctl setup pam").ok().contains("+session"));
    let after = fs::read_to_string(PAM).unwrap();
    let first = after.lines().find(|line| line.starts_with("session") || line.starts_with("@include common-session"));
    assert!(first.is_some_and(|line| line.contains("pam_unbit.so")), "{after}");
    let without_blanks =
        |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(without_blanks(&after), without_blanks(&now), "nothing else is changed");
    assert_eq!(faults("pam", ""), [""; 0]);
    assert_eq!(sh("unbitctl setup pam").ok(), "nothing to do");
    sh("unbitctl setup --undo").ok();
    assert_eq!(fs::read_to_string(PAM).unwrap(), lines, "undo puts back what was there");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_setup_cannot_fix_is_told_with_the_place() {
    let _stock = Stock::again();
    let said = |root: &str| said(&format!("unbitctl check --guide uwsgi.it {root}")).concat();
    for (broken, fix) in [
        (
            "echo X11Forwarding yes >/etc/ssh/sshd_config.d/00-a.conf",
            "fix: in /etc/ssh/sshd_config.d/00-a.conf line 1: X11Forwarding no",
        ),
        (
            "sed -i '/^Include/d' /etc/ssh/sshd_config",
            "fix: at the top of /etc/ssh/sshd_config: Include /etc/ssh/sshd_config.d/*.conf\n",
        ),
        ("sed -i 's/^auth.*unbit.so/& debig/' /etc/pam.d/sshd", "change the options by hand"),
        (
            "grep ^auth.*unbit /etc/pam.d/sshd >/etc/pam.d/ours; sed -i 's/^auth.*unbit.*/@include ours/; /^session.*unbit/s/done/ok/' /etc/pam.d/sshd",
            "remove the line of pam_unbit.so from /etc/pam.d/ours",
        ),
        (
            "printf 'Match User 3*\\n ChrootDirectory /srv\\n' >>/etc/ssh/sshd_config",
            "fix: keep it from container users",
        ),
        (
            "printf 'Match User 3*\\n AuthenticationMethods publickey,password\\n' >>/etc/ssh/sshd_config",
            "fix: let container users in with publickey only",
        ),
        ("printf 'Match User 3*\\n X11Forwarding yes\\n' >>/etc/ssh/sshd_config", "fix: in /etc/ssh/sshd_config line "),
        ("echo Nonsense yes >>/etc/ssh/sshd_config", "Bad configuration option: Nonsense"),
        (
            "sed -i 's/^session.*unbit.*/# M\\xfcller/' /etc/pam.d/sshd",
            "fix: write the lines of /etc/pam.d/sshd in UTF-8 that this shows: LC_ALL=C.UTF-8 grep -naxv '.*' /etc/pam.d/sshd\n",
        ),
    ] {
        let _stock = Stock::again();
        if !broken.contains("Include") {
            sh("unbitctl setup --guide uwsgi.it pam sshd").ok();
        }
        let before = said("");
        sh(broken).ok();
        let after = said("");
        assert!(after.contains(fix) && !before.contains(fix), "{broken}: {after}");
        let refused = sh("unbitctl setup --guide uwsgi.it pam sshd");
        // What fails of the guide alone has a status of its own; warnings have none.
        let status = if broken.contains("X11") { 0 } else { 1 + 3 * i32::from(broken.contains("Include")) };
        assert_eq!(refused.status, Some(status), "{broken}: {refused:?}");
    }
    let _image = image();
    let _bash = Away::file("/srv/image/usr/bin/bash");
    assert!(said("--root /srv/image").contains("fail sshd: there is no /bin/bash\n"));
}

#[test]
#[ignore = "needs the node: make test"]
fn the_libraries_must_be_there_and_loadable() {
    let _stock = Stock::again();
    sh(format!("unbitctl setup {STEPS}")).ok();
    for (step, path) in [("nsswitch", module("libnss_unbit.so.2")), ("pam", module("security/pam_unbit.so"))] {
        let _away = Away::file(&path);
        let name = path.rsplit('/').next().unwrap();
        let expect = |what: &str| {
            let seen = faults(step, "");
            assert!(seen.iter().any(|seen| seen.contains(name) && seen.contains(what)), "{what}: {seen:?}");
        };
        expect("there is no ");
        fs::write(&path, "no library").unwrap();
        expect("cannot be loaded: ");
        let half = fs::read(format!("{path}.away")).unwrap();
        fs::write(&path, &half[..half.len() / 2]).unwrap();
        expect("cannot be loaded: ");
    }
    assert_eq!(all_faults(), [""; 0]);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_file_that_fails_its_own_check_is_put_back() {
    let _stock = Stock::again();
    let before = |path: &str| assert_eq!(sh(format!("cmp {path} /tmp/stock{path}")).ok(), "");

    // A PAM file that names a module that cannot be loaded.
    {
        let _away = Away::file(&module("security/pam_unbit.so"));
        let done = sh(format!("unbitctl setup {STEPS}"));
        assert_eq!(done.status, Some(1), "{done:?}");
        assert!(
            done.err.contains("/etc/pam.d/sshd is as it was before") && done.err.contains("there is no /usr/lib"),
            "{done:?}"
        );
        assert!(done.err.ends_with("unbitctl: failed: pam; not begun: sshd, nsswitch\n"), "{done:?}");
        [PAM, SSHD, NSSWITCH].iter().for_each(|path| before(path));
        assert_eq!(sh("ls /etc/pam.d/*unbit* /etc/ssh/*unbit* /var/lib/unbitctl/*").out, "", "and nothing is kept");
    }

    // Files that sshd does not read.
    sh("unbitctl setup pam").ok();
    {
        let _away = Away::file("/usr/sbin/sshd");
        fs::write(
            "/usr/sbin/sshd",
            "#!/bin/sh\ncase \"$*\" in *' -t') echo bad line >&2; exit 255; esac\nexec /usr/sbin/sshd.away \"$@\"\n",
        )
        .unwrap();
        sh("chmod 755 /usr/sbin/sshd").ok();
        let done = sh("unbitctl setup sshd");
        assert_eq!(done.status, Some(1), "{done:?}");
        assert!(
            done.err.contains("sshd -t: bad line") && done.err.contains("00-unbit.conf is as it was before"),
            "{done:?}"
        );
        before(SSHD);
        assert!(!Path::new(OURS).exists());
    }

    // An nsswitch.conf with which nobody is found.
    sh("unbitctl setup sshd").ok();
    {
        let _getent = Away::getent();
        let done = sh("unbitctl setup nsswitch");
        assert_eq!(done.status, Some(1), "{done:?}");
        assert!(
            done.err.contains("getent passwd root: ") && done.err.contains("/etc/nsswitch.conf is as it was before"),
            "{done:?}"
        );
        before(NSSWITCH);
    }
    sh(format!("unbitctl setup {STEPS}")).ok();
    assert_eq!(all_faults(), [""; 0], "the witness");
}

#[test]
#[ignore = "needs the node: make test"]
fn a_step_that_fails_keeps_back_those_that_need_it_and_no_others() {
    let _stock = Stock::again();
    {
        let _passwd = Changed::file("/etc/passwd", |text| text.replace("www-data", "web"));
        let done = sh("unbitctl setup --guide uwsgi.it --keys-only");
        assert_eq!(done.status, Some(1), "{done:?}");
        assert!(done.err.contains("unbitctl: directories: /etc/passwd has no www-data\n"), "{done:?}");
        assert!(
            done.err.ends_with("unbitctl: done: pam, sshd, nsswitch, nscd, distributions; failed: directories\n"),
            "{done:?}"
        );
        assert!(done.out.contains("5 files changed; unbitctl setup --undo takes them back\n"), "{done:?}");
        assert!(done.out.contains("fix   adduser"), "what is left is told: {done:?}");
        assert_eq!(all_faults(), [""; 0]);
        sh("unbitctl setup --undo").ok();
    }
    for root in ["/", "/distros/base"] {
        sh(format!("sed -i 's/pam_nologin/pam_gone/' {root}/etc/pam.d/sshd")).ok();
        let done = sh(format!("unbitctl setup --root {root} pam sshd nsswitch nscd"));
        assert_eq!(done.status, Some(1), "{done:?}");
        assert!(done.err.ends_with("unbitctl: done: nscd; failed: pam; not begun: sshd, nsswitch\n"), "{done:?}");
        let old = sh(format!(
            "cd {root}; cmp etc/nsswitch.conf /tmp/stock/$PWD/etc/nsswitch.conf && ls -A etc/ssh/sshd_config.d"
        ));
        assert_eq!(old.ok(), "");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_library_that_crashes_never_gets_into_nsswitch() {
    let _stock = Stock::again();
    sh("unbitctl setup pam sshd").ok();
    let path = module("libnss_unbit.so.2");
    let _away = Away::file(&path);
    let mut library = fs::read(format!("{path}.away")).unwrap();
    crash(&mut library);
    fs::write(&path, library).unwrap();
    let before = everything();
    let refused = sh("unbitctl setup nsswitch").failed();
    assert!(refused.contains("libnss_unbit.so.2 cannot be used"), "{refused}");
    assert_eq!(everything(), before);
}

/// Makes the code of a library (ELF, 64 bits) one of breakpoints: its sections that are executable,
/// for a segment may hold the tables as well.
fn crash(library: &mut [u8]) {
    let number = |at: usize, bytes: usize| {
        library[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    const EXECUTABLE: usize = 4; // SHF_EXECINSTR
    let (headers, size, count) = (number(40, 8), number(58, 2), number(60, 2));
    let sections = (0..count).map(|index| headers + index * size);
    let code: Vec<_> = sections
        .filter(|at| number(at + 8, 8) & EXECUTABLE != 0)
        .map(|at| number(at + 24, 8)..number(at + 24, 8) + number(at + 32, 8))
        .collect();
    assert!(!code.is_empty());
    code.into_iter().for_each(|section| library[section].fill(0xcc));
}

#[test]
#[ignore = "needs the node: make test"]
fn accounts_come_after_the_lines_of_pam() {
    let _stock = Stock::again();
    let refused = sh("unbitctl setup nsswitch").failed();
    assert!(refused.contains("sshd would give container users a session on the node"), "{refused}");
    sh("unbitctl setup pam").ok();
    sh("echo UsePAM no >/etc/ssh/sshd_config.d/00-a.conf").ok();
    let refused = sh("unbitctl setup nsswitch").failed();
    assert!(refused.contains("first: unbitctl setup pam sshd"), "{refused}");
    sh("rm /etc/ssh/sshd_config.d/00-a.conf; cp -a /etc/pam.d/sshd /tmp/fixed").ok();
    // The node has other names, a comment may be of another time, and without a file of sshd's own
    // libpam takes `other`.
    for (broken, command) in [
        ("cp -a /tmp/stock/etc/pam.d/sshd /etc/pam.d", "cd / && unbitctl setup --root . nsswitch"),
        (
            "cp -a /tmp/stock/etc/pam.d/sshd /etc/pam.d; printf '# M\\374ller\\n' >>/etc/pam.d/sshd",
            "unbitctl setup nsswitch",
        ),
        ("rm /etc/pam.d/sshd", "unbitctl setup nsswitch"),
        ("echo '@include gone' >>/etc/pam.d/sshd", "unbitctl setup nsswitch"),
    ] {
        let refused = sh(format!("{broken}; {command}")).failed();
        assert!(refused.contains("first: unbitctl setup pam sshd"), "{broken}: {refused}");
        sh("cp -a /tmp/fixed /etc/pam.d/sshd").ok();
    }
    sh("unbitctl setup nsswitch && unbitctl setup --undo").ok();
    // Nor do they stay behind those lines.
    sh("cp -a /tmp/stock/etc/pam.d/sshd /etc/pam.d; unbitctl setup pam; sed -i '/^passwd:/s/$/ unbit/' /etc/nsswitch.conf").ok();
    let refused = sh("unbitctl setup --undo").failed();
    assert!(refused.contains("remove unbit from /etc/nsswitch.conf first"), "{refused}");
    sh("grep -q pam_unbit /etc/pam.d/sshd && unbitctl setup --undo --force && ! grep pam_unbit /etc/pam.d/sshd").ok();
}

/// What counts is what would be, not which files are put back.
#[test]
#[ignore = "needs the node: make test"]
fn undo_is_refused_if_accounts_would_be_unprotected() {
    let _stock = Stock::again();
    sh("unbitctl setup pam sshd nsswitch").ok();
    let ours = "/etc/ssh/sshd_config.d/00-unbit.conf";
    sh(format!("sed -i 's/^X11Forwarding.*/X11Forwarding yes/' {ours}")).ok();
    let changed = fs::read_to_string(ours).unwrap();
    sh("unbitctl setup --guide uwsgi.it sshd").ok();
    sh("unbitctl setup --undo").ok();
    assert_eq!(fs::read_to_string(ours).unwrap(), changed);
    // The same file, and without PAM.
    sh(format!("sed -i 's/^UsePAM.*//; $ a UsePAM no' {ours}")).ok();
    sh("unbitctl setup sshd").ok();
    let refused = sh("unbitctl setup --undo").failed();
    assert!(refused.contains("remove unbit from /etc/nsswitch.conf first"), "{refused}");
}

#[test]
#[ignore = "needs the node: make test"]
fn notes_of_a_root_directory_lead_nowhere_out_of_it() {
    sh("mkdir -p /tmp/image/etc /tmp/image/var/lib/unbitctl /tmp/victim; ln -s /tmp/victim /tmp/image/link").ok();
    sh("cd /tmp/victim; echo same >file; echo old >kept").ok();
    for path in ["/link/file", "/../victim/file", "/link/../../victim/file"] {
        let notes = format!(
            r#"{{"begun": "", "ended": true, "replaced": [{{"path": "{path}", "kept": "kept", "written": "same\\n"}}]}}"#
        );
        sh(format!("printf '{notes}' >/tmp/image/var/lib/unbitctl/setup.json")).ok();
        let refused = sh("unbitctl setup --undo --root /tmp/image").failed();
        assert!(refused.contains("not a path in this root directory"), "{refused}");
        sh("grep same /tmp/victim/file").ok();
    }
    sh("rm -r /tmp/image /tmp/victim").ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn notes_that_are_damaged_are_in_the_way_and_it_is_told_what_to_do() {
    let _stock = Stock::again();
    sh("unbitctl setup nscd; : >/var/lib/unbitctl/setup.json").ok();
    for command in ["unbitctl setup pam", "unbitctl setup --undo"] {
        let refused = sh(command).failed();
        let told = "move it away. The old files are in the same directories as the new ones, as NAME.unbit-DATE";
        assert!(refused.contains("/var/lib/unbitctl/setup.json is damaged"), "{refused}");
        assert!(refused.contains(told), "{refused}");
    }
    sh("mv /var/lib/unbitctl/setup.json /tmp && unbitctl setup pam && unbitctl setup --undo").ok();
}

#[test]
#[ignore = "needs the node: make test"]
fn only_root_sets_up_and_one_at_a_time() {
    let before = everything();
    let refused = sh("chroot --userspec=1000:1000 / unbitctl setup");
    assert_eq!((refused.status, refused.err.as_str()), (Some(3), "unbitctl: setup needs root\n"));
    let refused = sh("chroot --userspec=1000:1000 / unbitctl setup --dry-run sshd");
    let asked = "unbitctl: sshd: root is needed to ask sshd what it is configured to do\n";
    assert_eq!((refused.status, refused.err.as_str()), (Some(3), asked));
    // Whoever can open a directory can lock it.
    for (directory, root) in [("/etc", "/"), ("/distros/base/etc", "/distros/base")] {
        let undo = format!("flock {directory} unbitctl setup --root {root} --undo");
        assert_eq!(sh(undo).ok(), "nothing to undo");
    }
    let locked = "flock /run/unbit/setup-$(stat -c %d-%i /).lock unbitctl setup";
    let refused = sh(locked);
    assert_eq!((refused.status, refused.err.as_str()), (Some(1), "unbitctl: another unbitctl setup is running\n"));
    assert_eq!(sh(format!("{locked} --root /distros/base --undo")).ok(), "nothing to undo");
    assert_eq!(sh("stat -c '%U %a' /run/unbit/setup-$(stat -c %d-%i /).lock").ok(), "root 600");
    assert_eq!(sh("unbitctl setup nonsense").status, Some(2));
    for command in ["setup", "check"] {
        for (root, fault) in [("/nowhere", "there is no such directory"), ("/etc/passwd", "it is not a directory")] {
            let refused = sh(format!("unbitctl {command} --root {root}"));
            assert_eq!((refused.status, refused.err), (Some(1), format!("unbitctl: {root}: {fault}\n")), "{command}");
        }
    }
    assert_eq!(everything(), before);
    let looked = said("chroot --userspec=1000:1000 / unbitctl check").concat();
    assert!(looked.contains("sshd: root is needed to see"), "{looked}");
    assert!(looked.contains("fail nsswitch: passwd: unbit is missing"), "{looked}");
}

/// What is advised can be given to a shell as it is, and is about that root directory.
#[test]
#[ignore = "needs the node: make test"]
fn advice_about_a_root_directory_is_about_that_one() {
    const ROOT: &str = "/tmp/it's an image";
    const QUOTED: &str = r"'/tmp/it'\''s an image'";
    let quoted = |path: &str| format!(r"'/tmp/it'\''s an image/{path}'");
    for directory in ["etc", "containers", "distros/a b"] {
        fs::create_dir_all(format!("{ROOT}/{directory}")).unwrap();
    }
    let _end = AtEnd(|| fs::remove_dir_all(ROOT).unwrap());
    let said = || said(&format!("unbitctl check --guide uwsgi.it --root {QUOTED}")).concat();
    let adduser = "adduser --system --group --home /var/www --no-create-home www-data";
    assert!(said().contains(&format!("\nfix: chroot {QUOTED} {adduser}\n")), "{}", said());

    for file in ["/etc/passwd", "/etc/group"] {
        fs::copy(file, format!("{ROOT}{file}")).unwrap();
    }
    for no_directory in ["ns", "distros/a b/containers"] {
        fs::write(format!("{ROOT}/{no_directory}"), "").unwrap();
    }
    sh(format!("chown 33 {QUOTED}; chmod o+w {}", quoted("distros/a b"))).ok();
    let (ns, distribution, container) = (quoted("ns"), quoted("distros/a b"), quoted("distros/a b/containers"));
    let advised = [
        format!("chown root:root {QUOTED} && chmod go-w {QUOTED}"),
        format!("mv {ns} {ns}.old && unbitctl setup --root {QUOTED} --guide uwsgi.it directories"),
        format!("chown root:root {distribution} && chmod go-w {distribution}"),
        format!("rm {container} && mkdir -m 755 {container}"),
        format!("unbitctl setup --root {QUOTED} distributions"),
    ];
    for command in advised {
        let before = said();
        assert!(before.contains(&format!("fix: {command}\n")), "{command}: {before}");
        sh(&command).ok();
        assert_ne!(said(), before, "{command}");
    }
    assert!(!said().contains("fail directories"), "{}", said());
}

#[test]
#[ignore = "needs the node: make test"]
fn a_root_directory_is_set_up_from_outside_and_nothing_else() {
    const ROOT: &str = "/srv/image";
    let _image = image();
    sh("mkdir -p /tmp/image-stock && cp -a /srv/image/etc/pam.d /tmp/image-stock").ok();
    let before = everything();
    let library = module("security/pam_unbit.so");
    sh(format!("cp {library} {ROOT}{library}")).ok();
    let _end = AtEnd(|| drop(sh(format!("rm {ROOT}{library}"))));
    // Absolute links lead to the same root's files, not to the node's.
    fs::rename(format!("{ROOT}{NSSWITCH}"), format!("{ROOT}/etc/nss")).unwrap();
    symlink("/etc/nss", format!("{ROOT}{NSSWITCH}")).unwrap();
    let _nss = AtEnd(|| drop(sh(format!("rm -f {ROOT}/etc/nss*"))));

    let seen = faults("pam", ROOT);
    assert!(!seen.is_empty());
    assert!(
        said(&format!("unbitctl check --root {ROOT}"))
            .concat()
            .contains(&format!("fix: unbitctl setup --root {ROOT} pam\n"))
    );
    let done = sh(format!("unbitctl setup --root {ROOT} {STEPS}"));
    assert_eq!(done.status, Some(0), "{done:?}");
    for step in STEPS.split(' ') {
        assert_eq!(faults(step, ROOT), [""; 0]);
    }
    assert!(fs::read_to_string(format!("{ROOT}/etc/nss")).unwrap().contains("files unbit systemd\n"));
    assert_eq!(sh(format!("unbitctl setup --root {ROOT} {STEPS}")).ok(), "nothing to do");
    assert_eq!(everything(), before, "the node's own files");
    sh(format!("unbitctl setup --undo --root {ROOT}")).ok();
    assert!(!fs::read_to_string(format!("{ROOT}/etc/nss")).unwrap().contains("unbit"));
    assert_eq!(sh(format!("ls -A {ROOT}/etc/ssh/sshd_config.d; cmp {ROOT}{PAM} /tmp/image-stock/pam.d/sshd")).ok(), "");
}

/// The calls that change files.
const WRITES: [&str; 5] = ["write", "fsync", "link,linkat", "rename,renameat,renameat2", "unlink,unlinkat"];

/// Runs a command and kills it at the nth of these calls. Says whether it got that far.
fn killed(command: &str, call: &str, nth: usize) -> bool {
    let strace = "strace -qq -o /dev/null";
    let done = sh(format!("{strace} -e trace={call} -e inject={call}:signal=KILL:when={nth} {command} >/dev/null"));
    done.status != Some(0)
}

/// The power goes before each call that writes: the first, the second, ... of each kind. Every file
/// is then the old or the new one, and the next set-up finishes, or the next undo takes it back;
/// and so it is with an undo.
#[test]
#[ignore = "needs the node: make test"]
fn killed_before_any_write_each_file_is_old_or_new() {
    let _stock = Stock::again();
    const STEPS: &str = "pam sshd nsswitch nscd";
    let files = [PAM, SSHD, NSSWITCH, OURS, NSCD];
    let state = || files.map(|file| fs::read_to_string(file).unwrap_or_default());
    let old = state();
    sh(format!("unbitctl setup {STEPS}")).ok();
    let new = state();
    sh("unbitctl setup --undo").ok();
    assert_eq!(state(), old);
    let left = || sh("find /etc /var/lib/unbitctl -name '.*unbitctl*' -o -name '*.unbit-*'").ok();
    assert_eq!(left(), "");

    let mut kills = 0;
    for call in WRITES {
        for nth in 1.. {
            assert_eq!(state(), old, "{call} {nth}");
            let was_killed = killed(&format!("unbitctl setup {STEPS}"), call, nth);
            let now = state();
            for ((now, old), (new, file)) in now.iter().zip(&old).zip(new.iter().zip(files)) {
                assert!(now == old || now == new, "{call} {nth}: {file} is neither the old nor the new: {now}");
            }
            kills += usize::from(was_killed);
            // What is half done can be taken back as well.
            if was_killed && nth % 2 == 0 {
                let undone = sh("unbitctl setup --undo");
                assert_eq!((undone.status, state()), (Some(0), old.clone()), "{call} {nth}: {undone:?}");
                continue;
            }
            let finished = sh(format!("unbitctl setup {STEPS}"));
            assert_eq!((finished.status, state()), (Some(0), new.clone()), "{call} {nth}: {finished:?}");
            assert_eq!(sh("find /etc /var/lib/unbitctl -name '.*unbitctl*'").ok(), "", "{call} {nth}");

            killed("unbitctl setup --undo", call, nth);
            for ((now, old), (new, file)) in state().iter().zip(&old).zip(new.iter().zip(files)) {
                assert!(now == old || now == new, "undo, {call} {nth}: {file} is neither the old nor the new: {now}");
            }
            let undone = sh("unbitctl setup --undo");
            assert_eq!((undone.status, state()), (Some(0), old.clone()), "undo, {call} {nth}: {undone:?}");
            assert_eq!(left(), "", "undo, {call} {nth}");
            if !was_killed {
                break;
            }
        }
    }
    println!("killed {kills} times");
    assert!(kills > 30, "{kills}");
}

#[test]
#[ignore = "needs the node: make test"]
fn killed_before_any_call_no_directory_is_too_open_and_the_next_setup_finishes_it() {
    const REMOVE: &str =
        "rm -rf /opt/unbit /etc/uwsgi/{tmp_ssl,alarms} /var/log/uwsgi /distros/base/{containers,.old_root}";
    const STEPS: &str = "--guide uwsgi.it directories distributions";
    let state = || {
        let paths = "/opt/unbit /opt/unbit/uwsgi /etc/uwsgi/{tmp_ssl,alarms} /var/log/uwsgi /distros/base/{containers,.old_root}";
        sh(format!("stat -c '%n %u:%g %a' {paths} 2>/dev/null")).out
    };
    let was_there = sh("cd /distros/base; stat -c %n containers/* .old_root/*").out;
    assert_eq!(was_there, "", "nothing that is removed here");
    sh(format!("unbitctl setup {STEPS}")).ok();
    let mode = |line: &str| u32::from_str_radix(line.rsplit(' ').next().unwrap(), 8).unwrap();
    let well = state();
    assert_eq!(well.lines().count(), 7, "{well}");
    let mut kills = 0;
    for call in ["mkdir,mkdirat", "chown,fchown,lchown,fchownat", "chmod,fchmod,fchmodat", "fsync"] {
        for nth in 1.. {
            sh(REMOVE).ok();
            let umask = if nth % 2 == 0 { "000" } else { "077" }; // of whoever runs it
            let setup = format!("sh -c 'umask {umask}; exec unbitctl setup {STEPS}'");
            let was_killed = killed(&setup, call, nth);
            for directory in state().lines() {
                let path = directory.split(' ').next().unwrap();
                let well = well.lines().find(|well| well.starts_with(&format!("{path} "))).unwrap();
                assert!(mode(directory) & !mode(well) == 0, "{call} {nth}: {directory}, but {well}");
            }
            sh(format!("unbitctl setup {STEPS}")).ok();
            assert_eq!(state(), well, "{call} {nth}");
            kills += usize::from(was_killed);
            if !was_killed {
                break;
            }
        }
    }
    assert!(kills > 20, "{kills}");
}

#[test]
#[ignore = "needs the node: make test"]
fn what_a_cut_short_setup_has_left_is_removed_though_somebody_was_faster() {
    let _stock = Stock::again();
    sh("unbitctl setup pam sshd").ok();
    let half = Path::new("/etc/.nsswitch.conf.unbitctl");
    for nth in 1.. {
        assert!(killed("unbitctl setup nsswitch", "fsync", nth));
        if half.exists() {
            break;
        }
    }
    fs::copy(half, NSSWITCH).unwrap();
    assert_eq!(sh("unbitctl setup nsswitch").ok(), "nothing to do");
    assert!(!half.exists());
}

/// Nor are the notes of the set-up before lost.
#[test]
#[ignore = "needs the node: make test"]
fn killed_before_any_write_the_set_up_before_can_still_be_undone() {
    let _stock = Stock::again();
    let files = || [PAM, NSCD].map(|file| fs::read_to_string(file).unwrap());
    let old = files();
    let put_pam_back = || sh(format!("cp -a /tmp/stock{PAM} {PAM}; rm {PAM}.unbit-*")).ok();
    let mut kills = 0;
    for call in WRITES {
        for nth in 1.. {
            sh("unbitctl setup pam").ok();
            let was_killed = killed("unbitctl setup nscd", call, nth);
            kills += usize::from(was_killed);
            if !was_killed {
                break;
            }
            // Half of the time another set-up comes between, which replaces nothing and ends.
            if nth % 2 == 0 {
                sh("unbitctl setup --guide uwsgi.it directories").ok();
            }
            let notes: Value = serde_json::from_slice(&fs::read("/var/lib/unbitctl/setup.json").unwrap()).unwrap();
            let is_replaced = files()[1] != old[1];
            let undone = sh("unbitctl setup --undo").ok();
            assert!(undone.contains(NSCD) || !is_replaced, "{call} {nth}: {undone}");
            if undone.contains(NSCD) {
                assert!(!undone.contains(PAM), "{call} {nth}: {undone}");
                if notes["ended"] == true {
                    assert!(is_replaced, "{call} {nth}: {undone}");
                    put_pam_back();
                } else {
                    let again = "The set-up before that one can be undone as well: unbitctl setup --undo";
                    assert!(undone.ends_with(again), "{call} {nth}: {undone}");
                    sh("unbitctl setup --undo").ok();
                }
            }
            assert_eq!(files(), old, "{call} {nth}: {undone}");
            assert_eq!(sh("unbitctl setup --undo").ok(), "nothing to undo", "{call} {nth}");
        }
        assert!(sh("unbitctl setup --undo").ok().contains(NSCD), "the last one, which came to its end");
        assert_eq!(sh("unbitctl setup --undo").ok(), "nothing to undo");
        put_pam_back();
    }
    assert!(kills > 15, "{kills}");
}
