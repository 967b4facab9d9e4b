//! `unbit-agent`'s jobs of the collector and the dominator, and the ports that lead to containers,
//! against a stand-in for uwsgi.it's API over TLS.

use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use unbit_tests::agent::{Node, Routers, list};
use unbit_tests::api::{Answer, Asked};
use unbit_tests::*;

/// The values that were sent, by the path of the metric and its domain.
fn sent(node: &Node) -> BTreeMap<String, u64> {
    let posts = node.api.asked().into_iter().filter(|asked| asked.method == "POST");
    posts
        .map(|asked| {
            let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            assert!(body["unix"].as_u64().is_some_and(|unix| (now - 60..=now).contains(&unix)), "{asked:?}");
            let domain = body["domain"].as_str().map(|domain| format!(" {domain}")).unwrap_or_default();
            (format!("{}{domain}", asked.path.trim_start_matches("/metrics/")), body["value"].as_u64().unwrap())
        })
        .collect()
}

/// The http router writes the address of a subscriber, which a customer chooses, into its
/// statistics as it is: `uwsgi_stats_keyval` of uWSGI. unbit-agent(8) says so.
#[test]
#[ignore = "needs the node: make test"]
fn an_address_of_a_subscriber_changes_what_domains_count() {
    let node = Node::new("addresses");
    node.api.says("/containers/", &list(&[30001, 30002]));
    let routers = Routers::take();
    let peers = r#"{"peers": [{"uid": 30002, "rx": 11, "tx": 12}]}"#;
    let say = |address: &str| {
        let name = format!(r#""name":"{address}","uid":30001,"rx":1,"tx":1,"requests":1"#);
        routers.say(peers, &format!(r#"{{"subscriptions":[{{"key":"a.example","nodes":[{{{name}}}]}}]}}"#));
    };
    say(r#"10.0.0.3:80","uid":30002,"rx":999,"tx":999,"requests":999},{"name":"x"#);
    node.agent("once metrics").ok();
    assert_eq!(sent(&node).get("domain.hits/30002 a.example"), Some(&999), "another container's");
    // Or nothing is counted of any domain. The rest is sent.
    say("\"");
    let error = node.agent("once metrics").failed();
    assert!(error.contains("127.0.0.1:5003"), "{error}");
    let sent = sent(&node);
    assert_eq!(sent.get("container.net.rx/30002"), Some(&11), "{sent:?}");
    assert!(!sent.keys().any(|name| name.starts_with("domain.")), "{sent:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn metrics_are_what_the_kernel_and_the_routers_count() {
    let node = Node::new("metrics");
    node.api.says("/containers/", &list(&[30001, 30002]));
    let routers = Routers::take();
    routers.say(
        r#"{"version": "1", "peers": [{"uid": 30001, "rx": 11, "tx": 12}, {"uid": 30077, "rx": 1, "tx": 1}]}"#,
        r#"{"subscriptions": [
            {"key": "a.example", "nodes": [{"uid": 30001, "rx": 1, "tx": 2, "requests": 3}, {"uid": 30001, "rx": 10, "tx": 20, "requests": 30},
                {"uid": 30077, "rx": 9, "tx": 9, "requests": 9}, {"uid": 0, "rx": 9, "tx": 9, "requests": 9}]},
            {"key": "../../x?y", "nodes": [{"uid": 30001, "rx": 5, "tx": 5, "requests": 5}]}]}"#,
    );
    node.agent("once metrics").ok();
    let first = sent(&node);
    let network = [("container.net.rx/30001", 11), ("container.net.tx/30001", 12)];
    let domains = [
        ("domain.net.rx/30001 a.example", 11),
        ("domain.net.tx/30001 a.example", 22),
        ("domain.hits/30001 a.example", 33),
    ];
    for (name, value) in network.into_iter().chain(domains) {
        assert_eq!(first.get(name), Some(&value), "{name}: {first:?}");
    }
    assert!(
        !first.keys().any(|name| name.contains("30077") || name.contains("/30002 ") || name.contains("..")),
        "{first:?}"
    );

    // What the kernel counts, as far as this node has its controllers: processor time goes up,
    // memory is that of the group.
    let pid = leader(30001);
    let group = |controller: &str| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let path = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            fields.next()?.split(',').any(|name| name == controller).then(|| fields.next())?
        })?;
        let place = sh(format!(
            "findmnt -rno TARGET,FS-OPTIONS -t cgroup | awk '$2 ~ /(^|,){controller}(,|$)/ {{ print $1; exit }}'"
        ))
        .ok();
        // Its own group, and not the one that it shares with its Emperor.
        (!place.is_empty() && path.ends_with("30001")).then(|| format!("{place}{path}"))
    };
    // Processor time in nanoseconds, which cgroup v2 counts in microseconds, with or without its
    // controller.
    let version_2 = || {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        let place = sh("findmnt -nro TARGET -t cgroup2 | head -1").ok();
        let stat = fs::read_to_string(format!("{place}{path}/cpu.stat")).ok().filter(|_| path.ends_with("30001"))?;
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
        Some(usage.parse::<u64>().unwrap() * 1000)
    };
    let version_1 =
        |group: String| fs::read_to_string(format!("{group}/cpuacct.usage")).unwrap().trim().parse().unwrap();
    if let Some(counted) = group("cpuacct").map(version_1).or_else(version_2) {
        let said = first["container.cpu/30001"];
        assert!(said > 0 && said <= counted, "{said} of {counted}");
        ssh(30001, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").ok();
        node.agent("once metrics").ok();
        assert!(sent(&node)["container.cpu/30001"] > said);
    } else {
        assert!(!first.contains_key("container.cpu/30001"), "its Emperor's processor time is not the container's");
        not_tried("container.cpu: the container shares its group of cpuacct here", false);
    }
    if let Some(memory) = group("memory") {
        // The kernel still takes back what the login above used.
        let counted = || -> u64 {
            fs::read_to_string(format!("{memory}/memory.usage_in_bytes")).unwrap().trim().parse().unwrap()
        };
        let before = counted();
        node.agent("once metrics").ok();
        let (said, after) = (sent(&node)["container.mem/30001"], counted());
        let (least, most) = (before.min(after), before.max(after));
        assert!(said > least / 2 && said < most * 2, "{said}, where it was {before}, and then {after}");
        assert!(
            first.contains_key("container.mem.rss/30001") && first.contains_key("container.mem.cache/30001"),
            "{first:?}"
        );
    }

    // A router that is none, or half of one, and an API that wants none of them.
    routers.tuntap(r#"{"peers": [{"uid": 30001, "rx""#);
    assert!(node.agent("once metrics").failed().contains("127.0.0.1:5002: not the JSON of a router"));
    let said = sent(&node);
    assert!(
        said.contains_key("domain.hits/30001 a.example") && !said.contains_key("container.net.rx/30001"),
        "{said:?}"
    );
    routers.tuntap(r#"{"peers": []}"#);
    node.api.answers("POST /metrics/domain.hits/30001", [Answer::new(403, "")]);
    let error = node.agent("once metrics").failed();
    assert!(error.contains("POST /metrics/domain.hits/30001: the API answers 403"), "{error}");
    node.api.asked();
    let dry = node.agent("once metrics --dry-run").ok();
    assert!(dry.contains("would send /metrics/domain.hits/30001: {"), "{dry}");
    assert!(node.api.asked().iter().all(|asked| asked.method == "GET"));
}

#[test]
#[ignore = "needs the node: make test"]
fn many_values_go_over_a_few_connections_and_those_of_a_container_in_order() {
    let node = Node::new("many");
    let uids: Vec<u32> = (31_001..32_001).collect();
    node.api.says("/containers/", &list(&uids));
    let peers: Vec<_> = uids.iter().map(|uid| serde_json::json!({"uid": uid, "rx": uid, "tx": 2 * uid})).collect();
    let routers = Routers::take();
    routers.tuntap(&serde_json::json!({ "peers": peers }).to_string());
    let posts = || {
        let asked = node.api.asked().into_iter().filter(|asked| asked.method == "POST");
        asked.filter(|asked| asked.path.contains(".net.")).collect::<Vec<_>>()
    };
    let said = node.agent("once metrics --json").ok();
    let sent = posts();
    assert_eq!(sent.len(), 2 * uids.len(), "{said}");
    for uid in &uids {
        let of_it: Vec<_> = sent.iter().filter(|asked| asked.path.ends_with(&format!("/{uid}"))).collect();
        let paths: Vec<_> = of_it.iter().map(|asked| asked.path.as_str()).collect();
        assert_eq!(paths, [format!("/metrics/container.net.rx/{uid}"), format!("/metrics/container.net.tx/{uid}")]);
        let value = |asked: &Asked| serde_json::from_str::<serde_json::Value>(&asked.body).unwrap()["value"].as_u64();
        assert_eq!(
            of_it.iter().map(|asked| value(asked)).collect::<Vec<_>>(),
            [uid, &(2 * uid)].map(|n| Some(u64::from(*n)))
        );
    }
    assert!(sent.iter().all(|asked| asked.in_one_record), "a request takes two packets");
    let connections: BTreeSet<_> = sent.iter().map(|asked| asked.connection).collect();
    assert!((2..=4).contains(&connections.len()), "{connections:?}");

    // An API that closes each connection after an answer, just when the next value comes, has each
    // value once.
    for uid in &uids[..100] {
        node.api.answers(&format!("POST /metrics/container.net.rx/{uid}"), [Answer::last(201, "Created\n")]);
    }
    node.agent("once metrics --json").ok();
    let paths = |posts: Vec<Asked>| posts.into_iter().map(|asked| asked.path).collect::<BTreeSet<_>>();
    let again = posts();
    assert_eq!(again.len(), sent.len());
    assert_eq!(paths(again), paths(sent));

    // A connection that ends without an answer ends the round, with one line. Nobody has been told
    // that the others are sent.
    let broken = "POST /metrics/container.net.rx/31100";
    node.api.answers(broken, [Answer::raw("")]);
    let error = node.agent("once metrics").failed();
    assert!(error.lines().count() == 1 && error.contains("unbit-agent: POST /metrics/: "), "{error}");
    assert!(posts().len() < uids.len(), "the round goes on");
    // The next one is whole again.
    node.api.answers(broken, [Answer::new(201, "Created\n")]);
    node.agent("once metrics").ok();
    assert_eq!(posts().len(), 2 * uids.len());

    // An API that wants none of them is not asked two thousand times.
    for uid in &uids {
        node.api.answers(&format!("POST /metrics/container.net.rx/{uid}"), [Answer::new(500, "")]);
    }
    let error = node.agent("once metrics").failed();
    assert!(
        error.contains("POST /metrics/: values of 20 containers or more are refused, and the others are not sent"),
        "{error}"
    );
    assert!((20..100).contains(&posts().len()));
}

#[test]
#[ignore = "needs the node: make test"]
fn values_of_one_container_that_the_api_refuses_keep_no_others_back() {
    let node = Node::new("refused");
    // Both are sent over the same connection.
    let (tenant, other) = (31_001, 31_005);
    node.api.says("/containers/", &list(&[tenant, other]));
    let subscription = |domain: String, uid: u32| {
        let nodes = serde_json::json!([{"uid": uid, "rx": 1, "tx": 1, "requests": 1}]);
        serde_json::json!({"key": domain, "nodes": nodes})
    };
    // More than a batch of values, so that the count is kept from one batch to the next.
    let mut subscriptions: Vec<_> = (0..400).map(|number| subscription(format!("a{number}.example"), tenant)).collect();
    subscriptions.push(subscription("z.example".to_owned(), other));
    let routers = Routers::take();
    routers.say(r#"{"peers": []}"#, &serde_json::json!({ "subscriptions": subscriptions }).to_string());
    for name in ["net.rx", "net.tx", "hits"] {
        node.api.answers(&format!("POST /metrics/domain.{name}/{tenant}"), [Answer::new(404, "")]);
    }
    let error = node.agent("once metrics").failed();
    let lasting = format!("POST /metrics/: 20 values of container {tenant} are refused, and its others are not sent\n");
    assert!(error.contains(&lasting), "{error}");
    let paths: Vec<_> = node.api.asked().into_iter().filter(|asked| asked.method == "POST").collect();
    let count = |uid: u32| paths.iter().filter(|asked| asked.path.ends_with(&format!("/{uid}"))).count();
    assert_eq!((count(tenant), count(other)), (20, 3), "{error}");
}

#[test]
#[ignore = "needs the node: make test"]
fn collector_is_unprivileged_with_a_quota_helper() {
    let node = Node::new("collector");
    node.api.answers("/containers/", [Answer::stalled()]);
    let (daemon, _) = node.run("run collector");
    eventually("the request", || node.api.asked().first().cloned());
    let main = daemon.0.id().to_string();
    let id = sh("id -u _unbit-agent").ok();
    let children = sh(format!("pgrep -P {main}")).ok();
    for pid in std::iter::once(main.as_str()).chain(children.lines()) {
        let status = |field: &str| status_field(pid, field).unwrap();
        assert_eq!(status("Uid").split_whitespace().collect::<Vec<_>>(), [id.as_str(); 4], "{pid}");
        assert_eq!(status("NoNewPrivs"), "1");
        let sockets = sh(format!("ss -Htnp state established dport = :{} | grep -c 'pid={pid},'", node.api.port())).out;
        // CAP_SYS_ADMIN is bit 21. Whoever has it has no connection.
        match status("CapEff").as_str() {
            "0000000000000000" => {}
            "0000000000200000" => assert!(pid != main && sockets.trim() == "0", "{pid}"),
            other => panic!("{pid} has {other}"),
        }
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn only_files_of_the_list_go_to_the_api() {
    let node = Node::new("metadata");
    fs::write("/etc/agent-motd", "hello\n").unwrap();
    fs::write("/etc/agent-secret", "secret\n").unwrap();
    fs::set_permissions("/etc/agent-secret", fs::Permissions::from_mode(0o600)).unwrap();
    let _end = AtEnd(|| drop(sh("rm -f /etc/agent-motd /etc/agent-secret")));
    let files = [
        "/etc/hostname",
        "/etc/agent-motd",
        "/etc/shadow",
        "/etc/hostname/../shadow",
        "../etc/shadow",
        "/root/.ssh/id_ed25519",
        "/etc/passwd",
        "",
    ];
    node.api.says("/serverfilemetadata/", &serde_json::json!(files).to_string());
    let error = node.agent("once file-metadata --allow-file /etc/agent-motd").failed();
    assert_eq!(error.matches("which --allow-file does not name").count(), 6, "{error}");
    assert_eq!(error.lines().count(), 6, "{error}");
    let posts: Vec<_> = node.api.asked().into_iter().filter(|asked| asked.method == "POST").collect();
    let bodies: Vec<serde_json::Value> = posts.iter().map(|post| serde_json::from_str(&post.body).unwrap()).collect();
    assert_eq!(
        bodies,
        [
            serde_json::json!({"file": "/etc/hostname", "value": "node\n"}),
            serde_json::json!({"file": "/etc/agent-motd", "value": "hello\n"}),
        ]
    );
    // What the operator allows by mistake the kernel still forbids: the job is not root's.
    node.api.says("/serverfilemetadata/", r#"["/etc/agent-secret"]"#);
    assert!(node.agent("once file-metadata --allow-file /etc/agent-secret").failed().contains("Permission denied"));
    assert!(node.api.asked().iter().all(|asked| asked.method == "GET"));
}

#[test]
#[ignore = "needs the node: make test"]
fn domains_are_files_of_www_data_alone() {
    let node = Node::new("domains");
    let place = node.directory.join("domains");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(33), Some(33)).unwrap();
    let rsa = Rsa::generate(2048).unwrap();
    let key = PKey::from_rsa(rsa).unwrap();
    let pem = String::from_utf8(key.public_key_to_pem().unwrap()).unwrap();
    let private = String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let says = |entries: serde_json::Value| node.api.says("/domains/rsa/", &entries.to_string());
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    fs::write(place.join("api.test.pem"), "the API's").unwrap();
    fs::write(place.join("README"), "an operator's").unwrap();
    let domain = |name: &str| serde_json::json!({"name": name, "mtime": 1});
    says(
        serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("b.example")]}, {"rsa": pem, "domains": [domain("a.example")]}]),
    );
    assert!(node.agent("once domains --dry-run").ok().contains("would write "));
    assert_eq!(names(), ["README", "api.test.pem"]);
    let said = node.agent("once domains").ok();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(names(), ["README", "a.example.pem", "api.test.pem", "b.example.pem"]);
    let file = place.join("a.example.pem");
    let status = file.metadata().unwrap();
    assert_eq!((status.mode() & 0o7777, status.uid(), status.gid()), (0o600, 33, 33));
    assert_eq!(fs::read_to_string(&file).unwrap(), pem);
    assert_eq!(node.agent("once domains").ok(), "");

    // A link that www-data could have made leads nowhere with root's rights: the job has none.
    fs::remove_file(&file).unwrap();
    symlink("/etc/agent-by-root", &file).unwrap();
    assert!(node.agent("once domains").failed().contains("is a symbolic link"));
    assert!(!Path::new("/etc/agent-by-root").exists());
    fs::remove_file(&file).unwrap();
    node.agent("once domains").ok();

    let before = sh(format!("cd {} && cksum *", place.display())).ok();
    for (entries, cause) in [
        (
            serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("../../../etc/cron.d/x"), domain("b.example")]}]),
            "is not a domain",
        ),
        (
            serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("/etc/x"), domain("b.example")]}]),
            "is not a domain",
        ),
        (
            serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("."), domain("b.example")]}]),
            "is not a domain",
        ),
        (
            serde_json::json!([{"rsa": "", "domains": [domain("a.example"), domain("b.example")]}]),
            "its customer has no key",
        ),
        (
            serde_json::json!([{"rsa": private, "domains": [domain("a.example"), domain("b.example")]}]),
            "is not a public key",
        ),
        (
            serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("b.example"), domain("api.test")]}]),
            "is the API's own domain",
        ),
        (
            serde_json::json!([{"rsa": pem, "domains": [domain("a.example"), domain("b.example")]}, {"rsa": pem.to_lowercase(), "domains": [domain("a.example")]}]),
            "a.example has two keys",
        ),
    ] {
        says(entries);
        let error = node.agent("once domains").failed();
        assert!(error.contains(cause), "{cause}: {error}");
        assert_eq!(sh(format!("cd {} && cksum *", place.display())).ok(), before, "{error}");
    }
    // A customer who owns evil.example can give the API this name. Others' domains come and go
    // nevertheless.
    let evil = serde_json::json!([domain("../../../etc/cron.d/x.evil.example")]);
    says(
        serde_json::json!([{"rsa": pem, "domains": evil}, {"rsa": pem, "domains": [domain("b.example"), domain("c.example")]}]),
    );
    assert!(node.agent("once domains").failed().contains("is not a domain"));
    assert_eq!(names(), ["README", "api.test.pem", "b.example.pem", "c.example.pem"]);
    says(serde_json::json!([{"rsa": pem, "domains": [domain("b.example")]}]));
    node.agent("once domains").ok();
    assert_eq!(names(), ["README", "api.test.pem", "b.example.pem"]);
    for number in 1..=5 {
        fs::write(place.join(format!("d{number}.example.pem")), &pem).unwrap();
    }
    says(serde_json::json!([]));
    assert!(node.agent("once domains").failed().contains("6 of 6 domains would be removed at once"));
    assert_eq!(names().len(), 8);

    let (daemon, _) = node.run("run dominator --interval 1");
    node.api.asked();
    eventually("a round", || node.api.asked().first().cloned());
    let pid = daemon.0.id().to_string();
    assert_eq!(status_field(&pid, "Uid").unwrap().split_whitespace().collect::<Vec<_>>(), ["33"; 4]);
    assert_eq!(
        (status_field(&pid, "CapEff").unwrap(), status_field(&pid, "Groups").unwrap()),
        ("0000000000000000".to_owned(), "33".to_owned())
    );
}

#[test]
#[ignore = "needs the node: make test"]
fn ports_are_a_table_of_their_own() {
    let node = Node::new("ports");
    let _end = AtEnd(|| drop(sh("nft delete table ip unbit_ports; nft delete table ip operator; rm -f /tmp/by-shell")));
    sh("nft add table ip operator; nft add chain ip operator kept").ok();
    let mapping = |port: u32, to: &str| serde_json::json!({"proto": "tcp", "public_ip": "192.0.2.1", "public_port": port, "private_ip": to, "private_port": 8000});
    let says = |mappings: serde_json::Value| {
        node.api.says("/portmappings/", &serde_json::json!({"unix": 1, "mappings": mappings}).to_string())
    };
    let table = || sh("nft list table ip unbit_ports").out;
    says(serde_json::json!([mapping(9000, "10.0.0.3")]));
    assert!(node.agent("once port-mappings --dry-run").ok().contains("would load table ip unbit_ports"));
    assert_eq!(table(), "");
    node.agent("once port-mappings").ok();
    let first = table();
    assert!(first.contains("ip daddr 192.0.2.1 tcp dport 9000 dnat to 10.0.0.3:8000"), "{first}");
    node.agent("once port-mappings").ok();
    assert_eq!(table(), first, "nothing is appended");

    // Packets: a client in a namespace of its own, a container's address on this node.
    sh("ip netns add client && ip link add c0 type veth peer name eth0 netns client && ip address add 192.0.2.1/24 dev c0 && ip link set c0 up &&
        ip -n client address add 192.0.2.9/24 dev eth0 && ip -n client link set eth0 up && ip address add 10.0.0.3/8 dev lo")
    .ok();
    let _net = AtEnd(|| drop(sh("ip netns delete client; ip link delete c0; ip address delete 10.0.0.3/8 dev lo")));
    let listener = TcpListener::bind("10.0.0.3:8000").unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _ = connection.write_all(b"container\n");
            let _ = connection.read(&mut [0]);
        }
    });
    let reach = |port: u16| {
        sh(format!("ip netns exec client timeout 5 bash -c 'exec 3<>/dev/tcp/192.0.2.1/{port} && head -n 1 <&3'")).out
    };
    assert_eq!(reach(9000), "container\n");
    assert_eq!(reach(9001), "");

    for (bad, cause) in [
        (mapping(22, "10.0.0.3"), "22 is not a port from 1024 to 65535"),
        (mapping(9001, "10.0.0.3; touch /tmp/by-shell"), "is not an IPv4 address"),
        (mapping(9001, "$(touch /tmp/by-shell)"), "is not an IPv4 address"),
        (mapping(9001, "192.0.2.9"), "192.0.2.9 is not a container's address"),
    ] {
        says(serde_json::json!([mapping(9000, "10.0.0.3"), bad]));
        let error = node.agent("once port-mappings").failed();
        assert!(error.contains(cause), "{cause}: {error}");
        assert_eq!(table(), first, "{error}");
    }
    assert!(!Path::new("/tmp/by-shell").exists());
    // What customers can make in the API keeps nobody else's port away.
    says(serde_json::json!([
        mapping(9000, "10.0.0.3"),
        mapping(1999, "10.0.0.3"),
        mapping(9000, "10.0.0.4"),
        mapping(9001, "10.0.0.3")
    ]));
    let error = node.agent("once port-mappings").failed();
    assert!(error.contains("192.0.2.1 tcp 1999 is a port of the node's own services, and is not forwarded"), "{error}");
    assert!(
        error.contains("192.0.2.1 tcp 9000 is forwarded to 10.0.0.3:8000, and not to 10.0.0.4:8000 as well"),
        "{error}"
    );
    assert_eq!((reach(9000).as_str(), reach(9001).as_str()), ("container\n", "container\n"));
    assert!(!table().contains("1999") && !table().contains("10.0.0.4"), "{}", table());

    // The daemon loads it again when somebody has flushed it, and takes away what the API does.
    says(serde_json::json!([mapping(9000, "10.0.0.3")]));
    let (_daemon, _) = node.run("run configurator --interval 1");
    sh("nft flush ruleset").ok();
    eventually("loaded again", || table().contains("dport 9000").then_some(()));
    sh("nft add table ip operator; nft add chain ip operator kept").ok();
    says(serde_json::json!([]));
    eventually("taken away", || (!table().contains("dport 9000")).then_some(()));
    assert!(sh("nft list table ip operator").ok().contains("chain kept"), "an operator's table stays");
}
