//! The files of `examples/` in the place that systemd would give them. Every other test runs with
//! them too, but in a group at the top.
// node: --cgroups v2 --without emperor

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;
use unbit_tests::*;

const GROUP: &str = "/sys/fs/cgroup/system.slice/containers.service";

/// What containers.service says of a key.
fn unit(key: &str) -> String {
    let unit = fs::read_to_string("/etc/systemd/system/containers.service").unwrap();
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_default().to_owned();
    assert_eq!(values.next(), None, "{key} twice");
    value
}

/// systemd.service(5), systemd.exec(5), systemd.resource-control(5) and systemd.kill(5), as far as
/// the unit asks.
#[test]
#[ignore = "needs the node: make test"]
fn the_unit_starts_containers_in_its_own_group_and_leaves_no_mount_on_the_node() {
    assert_eq!(unit("Delegate"), "cpu io memory pids");
    // systemd hands down these four. Here it is all that this machine has on cgroup v2, for with
    // any one the Emperor must not be in the group that hands it down.
    sh(format!(
        "mkdir -p {GROUP}
         for group in /sys/fs/cgroup /sys/fs/cgroup/system.slice; do
             for controller in $(cat $group/cgroup.controllers); do echo +$controller >$group/cgroup.subtree_control; done
         done
         mount --make-rshared /"
    ))
    .ok();
    let notify = UnixDatagram::bind("/run/notify").unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(unit("PrivateMounts"), "yes");
    let flags = unit("MountFlags");
    // By default systemd shares the mounts again, with the namespaces that are made from this one.
    let private = format!(
        "unshare --mount --propagation slave {}",
        if flags == "slave" { "" } else { "sh -c 'mount --make-rshared / && exec \"$@\"' sh" }
    );
    let mut main = Command::new("sh")
        .args([
            "-c",
            &format!(
                "echo $$ >{GROUP}/cgroup.procs && exec {private} {} >>/var/log/emperor.log 2>&1",
                unit("ExecStart")
            ),
        ])
        .env("NOTIFY_SOCKET", "/run/notify")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let pid = main.id().to_string();

    for uid in [30000, 30001] {
        leader(uid);
        let session = ssh(uid, "id -u; grep ^0:: /proc/self/cgroup").ok();
        assert_eq!(session, format!("{uid}\n0::/system.slice/containers.service/{uid}"));
    }
    let members = |group: &str| fs::read_to_string(format!("{group}/cgroup.procs")).unwrap();
    assert_eq!(members(GROUP), "", "a group that hands controllers down holds no process");
    assert!(members(&format!("{GROUP}/emperor")).lines().any(|member| member == pid));
    let has = |file: &str| fs::read_to_string(format!("{GROUP}/{file}")).unwrap();
    assert_eq!(has("cgroup.subtree_control"), has("cgroup.controllers"));

    for process in ["self", &pid] {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
        let on_ns: Vec<_> = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/ns")).collect();
        assert!(on_ns.is_empty(), "{process}: {on_ns:#?}");
    }

    assert_eq!((unit("Type").as_str(), unit("NotifyAccess").as_str()), ("notify", "all"));
    let mut said = [0; 4096];
    eventually("it says that it is ready", || {
        let length = notify.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..length]).contains("READY=1").then_some(())
    });

    assert_eq!(unit("KillMode"), "mixed");
    sh(format!("kill -{} {pid}", unit("KillSignal"))).ok();
    eventually("the end of the Emperor", || main.try_wait().unwrap());
    // systemd kills what is left of the group then: nothing is.
    eventually("the end of the containers", || (sh("node-pid 30000 || node-pid 30001").out.is_empty()).then_some(()));
}
