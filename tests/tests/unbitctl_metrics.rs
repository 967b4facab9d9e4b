//! `unbitctl --openmetrics` of list, check and sessions, and `unbit-agent metrics`: what
//! Prometheus' own tool and a strict reader of OpenMetrics make of it, and whether the numbers are
//! true.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use unbit_tests::agent::{Node, Routers};
use unbit_tests::*;

const TOOLS: &str = "/unbit/target/metrics";

/// Reads the text as OpenMetrics says it is, and prints each sample with sorted labels.
const STRICT: &str = r#"import sys
sys.path.insert(0, sys.argv[1])
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation and family.samples, family
    for s in family.samples: print(s.name, *[f'{k}={v}' for k, v in sorted(s.labels.items())], s.value, sep='|')"#;

/// What a command of unbitctl tells, read by both.
fn metrics(command: &str) -> String {
    read(&format!("unbitctl {command} --openmetrics"))
}

/// What a program tells, read by both.
fn read(command: &str) -> String {
    let text = run("sh", &["-c", command], b"").ok() + "\n";
    assert!(text.ends_with("# EOF\n"), "{text}");
    let tool = format!("{TOOLS}/promtool");
    if run("sh", &["-c", &format!("{tool} --version")], b"").status == Some(0) {
        let checked = run(&tool, &["check", "metrics"], text.as_bytes());
        assert_eq!((checked.status, checked.out.as_str(), checked.err.as_str()), (Some(0), "", ""), "{text}");
    } else {
        not_tried("there is no promtool for this release, or it could not be fetched", true);
    }
    if fs::exists(format!("{TOOLS}/python")).unwrap() {
        let read = run("python3", &["-c", STRICT, &format!("{TOOLS}/python")], text.as_bytes()).ok();
        assert_eq!(read.lines().count(), text.lines().filter(|line| !line.starts_with('#')).count(), "{read}\n{text}");
    } else {
        not_tried("python3-prometheus-client could not be fetched", true);
    }
    text
}

/// The value of a sample; nothing if there is none.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    Some(line.parse().unwrap_or_else(|_| panic!("{sample}: {line}")))
}

#[track_caller]
fn number(text: &str, sample: &str) -> f64 {
    value(text, sample).unwrap_or_else(|| panic!("{sample}\n{text}"))
}

#[test]
#[ignore = "needs the node: make test"]
fn the_containers() {
    let pid = leader(30001);
    let session = Session::open(30001, &[], 4001);
    let text = metrics("list");
    let of = |name: &str| format!("unbit_container_{name}{{uid=\"30001\",engine=\"uwsgi\"}}");
    let state = |state: &str| number(&text, &of("state").replace('}', &format!(",state=\"{state}\"}}")));
    assert_eq!((state("running"), state("not-running"), state("unknown")), (1.0, 0.0, 0.0));
    assert!(number(&text, &of("sessions")) >= 1.0);
    assert!(number(&text, &of("cpu_seconds_total")) > 0.0);
    let started: f64 = sh(format!("date -d \"$(ps -o lstart= -p {pid})\" +%s")).ok().parse().unwrap();
    assert!((number(&text, &of("start_time_seconds")) - started).abs() <= 1.0, "{started}\n{text}");
    match value(&text, &of("memory_limit_bytes")) {
        Some(limit) => {
            assert_eq!(limit, f64::from(1 << 30), "that of examples/container.ini");
            let (used, peak) = (number(&text, &of("memory_bytes")), number(&text, &of("memory_peak_bytes")));
            assert!(0.0 < used && used <= peak && peak <= limit, "{text}");
            assert_eq!(number(&text, &of("oom_kills_total")), 0.0);
        }
        None => not_tried("no controller memory", layout_lacks_controllers()),
    }
    drop(session);
    let _account = AtEnd(|| drop(sh("rmdir /containers/30005")));
    fs::create_dir("/containers/30005").unwrap();
    assert_eq!(
        number(&metrics("list"), "unbit_container_state{uid=\"30005\",engine=\"uwsgi\",state=\"no-account\"}"),
        1.0
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn sessions_and_refusals() {
    let refused = |reason: &str| {
        let sample = format!("unbit_refusals_total{{uid=\"30001\",engine=\"uwsgi\",reason=\"{reason}\"}}");
        value(&metrics("sessions"), &sample).unwrap_or(0.0)
    };
    let sessions = |service: &str| {
        let sample = format!("unbit_sessions{{uid=\"30001\",engine=\"uwsgi\",service=\"{service}\"}}");
        value(&metrics("sessions"), &sample).unwrap_or(0.0)
    };
    let before = sessions("sshd");
    let session = Session::open(30001, &[], 4002);
    assert_eq!(sessions("sshd"), before + 1.0);
    drop(session);

    let [misconfigured, too_many, not_running] = ["misconfigured", "too-many-sessions", "not-running"].map(refused);
    for _ in 0..2 {
        let _option = with_option("timout=5");
        assert_eq!(ssh(30001, "true").status, Some(255));
    }
    assert_eq!(refused("misconfigured"), misconfigured + 2.0, "{}", sh("ls -lR /run/unbit").out);
    assert_eq!(refused("too-many-sessions"), too_many);
    assert_eq!(refused("not-running"), not_running);
    {
        let _su = join_now("su");
        let _option = Changed::file("/etc/pam.d/su", |text| text.replace("join=now", "join=now unheard-of"));
        assert_ne!(run("su", &["30001", "-c", "true"], b"").status, Some(0));
        assert!(refused("misconfigured") > misconfigured + 2.0, "su's are counted, too");
    }
    // Nobody but root sees or writes them.
    assert_eq!(sh("stat -c '%a %u' /run/unbit/refusals /run/unbit/refusals/30001").ok(), "700 0\n600 0");
    // A file that is not root's is not written to, and the login is refused all the same.
    let counted = refused("misconfigured");
    sh("chown 30001 /run/unbit/refusals").ok();
    {
        let _back = AtEnd(|| drop(sh("chown 0 /run/unbit/refusals")));
        let _option = with_option("timout=5");
        let (log, done) = (Log::from_now(), ssh(30001, "true"));
        assert_eq!(done.status, Some(255));
        log.one_line("unknown option: timout=5");
    }
    assert_eq!(refused("misconfigured"), counted);
}

#[test]
#[ignore = "needs the node: make test"]
fn verdicts() {
    leader(30001);
    let node = metrics("check");
    let pam = |state: &str| format!("unbit_check_findings{{profile=\"login\",check=\"pam\",state=\"{state}\"}}");
    assert_eq!(number(&node, &pam("fail")), 0.0);
    assert!(number(&node, &pam("ok")) >= 1.0);
    let step = |state: &str| {
        format!("unbit_container_check_findings{{uid=\"30001\",engine=\"uwsgi\",check=\"shell\",state=\"{state}\"}}")
    };
    assert_eq!(number(&metrics("check 30001"), &step("ok")), 1.0);
    let _option = with_option("timout=5");
    assert_eq!(sh("unbitctl check --openmetrics >/dev/null").status, Some(0), "the text has the verdict");
    assert!(number(&metrics("check"), &pam("fail")) >= 1.0);
    let failed = metrics("check 30001");
    assert_eq!(number(&failed, &step("ok").replace("shell", "pam").replace("\"ok\"", "\"fail\"")), 1.0);
}

/// As the manual says to do it.
#[test]
#[ignore = "needs the node: make test"]
fn a_file_for_node_exporter() {
    let page = fs::read_to_string("/unbit/man/unbitctl.8").unwrap();
    let line = page.lines().find(|line| line.contains("openmetrics >")).unwrap();
    let directory = "/var/lib/prometheus/node-exporter";
    assert!(line.contains(directory), "{line}");
    fs::create_dir_all(directory).unwrap();
    let _end = AtEnd(|| fs::remove_dir_all(directory).unwrap());
    let command = line.split_once(" root ").unwrap().1.replace("\\-", "-");
    sh(&command).ok();
    assert_eq!(sh(format!("ls {directory}")).ok(), "unbit.prom");
    assert!(fs::read_to_string(format!("{directory}/unbit.prom")).unwrap().ends_with("# EOF\n"));
    // One that fails leaves the last text.
    let failed = sh(command.replace("unbitctl list", "unbitctl lisst"));
    assert_ne!(failed.status, Some(0));
    assert!(fs::read_to_string(format!("{directory}/unbit.prom")).unwrap().ends_with("# EOF\n"));
}

#[test]
#[ignore = "needs the node: make test"]
fn what_unbit_agent_has_besides() {
    // The user that it becomes, and an /etc/uwsgi without settings.
    Node::directory("openmetrics");
    let routers = Routers::take();
    routers.say(
        r#"{"peers": [{"uid": 30001, "rx": 11, "tx": 12}, {"uid": 30077, "rx": 1, "tx": 1}, {"uid": 30078, "rx": 1, "tx": 1}]}"#,
        r#"{"subscriptions": [{"key": "a.example", "nodes": [{"uid": 30001, "rx": 1, "tx": 2, "requests": 3},
            {"uid": 30001, "rx": 10, "tx": 20, "requests": 30}, {"uid": 0, "rx": 1, "tx": 1, "requests": 1}]},
            {"key": "x\"} 1\n", "nodes": [{"uid": 30001, "rx": 5, "tx": 5, "requests": 5}]}]}"#,
    );
    // Two containers of another engine: root of one is 30078 here, that of the other has taken the
    // uid of an account.
    let start = |words: &str| {
        let mut process = Command::new("sh").args(["-c", &format!("exec {words}")]).spawn().unwrap();
        AtEnd(move || {
            process.kill().unwrap();
            process.wait().unwrap();
        })
    };
    let user = |uid: u32| format!("setpriv --reuid {uid} --regid {uid} --clear-groups");
    let new = "unshare --pid --fork --kill-child";
    let _mapped = start(&format!("{} {new} --user --map-root-user sleep 1178", user(30078)));
    let _taken = start(&format!("{new} {} sleep 1177", user(30077)));
    let pid_1 = eventually("the first one's pid 1", || pgrep("^sleep 1178$"));
    assert_ne!(namespaces(&pid_1)["user"], namespaces("self")["user"]);
    eventually("the other one's pid 1", || pgrep("^sleep 1177$"));
    let text = read("unbit-agent metrics");
    let of = |name: &str| format!("unbit_container_{name}{{uid=\"30001\"}}");
    let of_domain = |name: &str| format!("unbit_domain_{name}{{uid=\"30001\",domain=\"a.example\"}}");
    for (sample, expected) in [
        (of("net_rx_bytes_total"), 11.0),
        (of("net_tx_bytes_total"), 12.0),
        (of_domain("net_rx_bytes_total"), 11.0),
        (of_domain("net_tx_bytes_total"), 22.0),
        (of_domain("hits_total"), 33.0),
    ] {
        assert_eq!(number(&text, &sample), expected, "{sample}\n{text}");
    }
    assert!(
        !text.contains("30077") && !text.contains("30078") && !text.contains("uid=\"0\""),
        "only containers that run:\n{text}"
    );
    if value(&metrics("list"), "unbit_container_memory_bytes{uid=\"30001\",engine=\"uwsgi\"}").is_some() {
        assert!(number(&text, &of("memory_rss_bytes")) > 0.0);
    } else {
        not_tried("no controller memory", layout_lacks_controllers());
    }
    // Both texts can be in one directory.
    let families = |text: &str| {
        let names = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next().map(str::to_owned));
        names.collect::<BTreeSet<_>>()
    };
    let (own, other) = (families(&text), families(&metrics("list")));
    assert!(own.len() >= 5 && own.is_disjoint(&other), "{own:?} {other:?}");

    // Half a text would look like a container that is gone.
    routers.tuntap(r#"{"peers": [{"uid": 30001"#);
    let failed = run("unbit-agent", &["metrics"], b"");
    assert_eq!((failed.status, failed.out.as_str()), (Some(1), ""));
    assert!(failed.err.contains("127.0.0.1:5002: not the JSON of a router"), "{}", failed.err);
}

/// uWSGI's own http router and tuntap router, in a network namespace of their own, with a container
/// that subscribes a domain and one connection through each.
const REAL_ROUTERS: &str = r#"
    eventually() { for i in {1..150}; do "$@" && return; sleep 0.1; done; echo "never: $*" >&2; exit 1; }
    ip link set lo up
    mkdir -p /run/routers && cd /run/routers
    cat >router.ini <<.
[uwsgi]
strict = true
plugins = http,tuntap
master = true
http = 127.0.0.1:8080
http-subscription-server = /run/routers/subscribe.socket
subscriptions-use-credentials = true
http-stats-server = 127.0.0.1:5003
tuntap-router = emperor0 /run/routers/tuntap.socket
tuntap-use-credentials = true
tuntap-router-stats = 127.0.0.1:5002
exec-as-root = ip address replace 10.0.0.1/8 dev emperor0
exec-as-root = ip link set emperor0 up
.
    cat >container.ini <<.
[uwsgi]
strict = true
plugins = http,tuntap,router_static
master = true
uid = 30001
gid = 30001
socket = /run/routers/app/app.socket
route-run = break:200 OK
subscribe2 = server=/run/routers/subscribe.socket,key=one.example,addr=/run/routers/app/app.socket
unshare = net
tuntap-use-credentials = true
tuntap-device = uwsgi0 /run/routers/tuntap.socket
exec-as-root = ip address replace 10.0.0.3/8 dev uwsgi0
exec-as-root = echo 1 >/proc/sys/net/ipv6/conf/uwsgi0/disable_ipv6
exec-as-root = ip link set uwsgi0 up
exec-as-root = (: >/dev/tcp/10.0.0.1/9) 2>/dev/null || true
.
    install -d -o 30001 -g 30001 app
    uwsgi router.ini >router.log 2>&1 &
    # Before its process runs, the tuntap router would not see a client's credentials.
    answers() { (exec 3<>/dev/tcp/127.0.0.1/$1) 2>/dev/null; }
    eventually answers 5002
    eventually answers 5003
    chmod 777 *.socket
    uwsgi container.ini >container.log 2>&1 &
    get() { exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\r\nHost: one.example\r\n\r\n' >&3 && grep -q ' 200 ' <&3; }
    eventually get
    count() { unbit-agent metrics >metrics && grep -q container_net_rx metrics; }
    eventually count
    cat metrics
"#;

#[test]
#[ignore = "needs the node: make test"]
fn what_the_real_routers_count() {
    Node::directory("routers");
    let _end = AtEnd(|| drop(sh("rm -rf /run/routers /dev/net")));
    let tun = sh("mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && exec 3<>/dev/net/tun");
    if tun.status != Some(0) {
        return not_tried(format!("the tuntap router needs /dev/net/tun: {}", tun.err), true);
    }
    let done = run("unshare", &["--net", "--pid", "--fork", "--kill-child", "bash", "-c", REAL_ROUTERS], b"");
    let logs = || sh("tail -n 20 /run/routers/*.log; cat /run/routers/metrics").out;
    assert_eq!(done.status, Some(0), "{done:?} {}", logs());
    let text = done.out;
    let domain = "{uid=\"30001\",domain=\"one.example\"}";
    assert_eq!(number(&text, &format!("unbit_domain_hits_total{domain}")), 1.0, "{text}");
    for name in ["net_rx", "net_tx"] {
        assert!(number(&text, &format!("unbit_domain_{name}_bytes_total{domain}")) > 0.0, "{text}");
        // It has counted only what it has forwarded.
        assert!(number(&text, &format!("unbit_container_{name}_bytes_total{{uid=\"30001\"}}")) >= 0.0, "{text}");
    }
}
