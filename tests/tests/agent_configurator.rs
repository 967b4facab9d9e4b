//! `unbit-agent`'s jobs of the configurator, against a stand-in for uwsgi.it's API over TLS: each
//! effect, and what an API that is broken, an API that lies and a tenant cannot do.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;
use unbit_tests::agent::{Node, ini, list};
use unbit_tests::api::{Answer, Api, HOST, Pair};
use unbit_tests::*;

const MANY: [u32; 6] = [30001, 30002, 30003, 30004, 30005, 30006];

/// A directory of alarms, in which everybody may make files.
fn alarms_of(node: &Node) -> PathBuf {
    let directory = node.directory.join("alarms");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
    directory
}

/// The name of an alarm's file.
fn uuid(number: u32) -> String {
    format!("01234567-89ab-cdef-0123-{number:012}")
}

fn alarm(uid: u32, msg: &str) -> String {
    format!(r#"{{"container":{uid},"unix":1400000000,"msg":"{msg}"}}"#)
}

/// Makes a file of this owner's, in place of an older one: with fs.protected_regular root must not
/// write to that.
fn raise(file: &Path, owner: u32, text: &str) {
    drop(fs::remove_file(file));
    fs::write(file, text).unwrap();
    std::os::unix::fs::chown(file, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// What the agent remembers of a container that has been restarted in the API since.
const OLD_STATE: &str = r#"{"containers":{"30001":1}}"#;

#[test]
#[ignore = "needs the node: make test"]
fn a_container_of_the_api_is_one_that_ssh_enters() {
    let node = Node::new("whole");
    // The Emperor's own directory, by a link that root made.
    fs::remove_dir(node.directory.join("vassals")).unwrap();
    symlink("/etc/uwsgi/vassals", node.directory.join("vassals")).unwrap();
    let _end = AtEnd(|| {
        sh("rm -f /etc/uwsgi/vassals/30005.ini; rm -rf --one-file-system /containers/30005");
    });
    let text = fs::read_to_string("/unbit/examples/container.ini").unwrap();
    let uids = sh("cd /etc/uwsgi/vassals && ls 3*.ini | sed 's/\\.ini//'").ok();
    let mut uids: Vec<u32> = uids.lines().map(|uid| uid.parse().unwrap()).filter(|uid| *uid != 30000).collect();
    uids.push(30005);
    let key = fs::read_to_string("/root/.ssh/id_ed25519.pub").unwrap();
    for uid in &uids {
        node.api.says(&format!("/containers/{uid}.ini"), &text);
        node.api.says(&format!("/ssh_keys/{uid}"), &key);
    }
    node.api.says("/containers/", &list(&uids));
    sh("install -d -o 30005 -g 30005 /containers/30005").ok();
    let honest = leader(30001);

    let began = Instant::now();
    let said = node.agent("once containers").ok();
    assert_eq!(said, format!("write {}/vassals/30005.ini", node.directory.display()));
    node.agent("once keys").ok();
    eventually("ssh into 30005", || (ssh(30005, "id -un; hostname").out == "30005\nc30005\n").then_some(()));
    println!("from the API's row to the end of a session: {:.1?}", began.elapsed());
    assert_eq!(leader(30001), honest, "a container whose file is the same runs on");
    assert_eq!(node.agent("once containers").ok(), "", "a second round has nothing to do");
    assert_eq!(fs::metadata("/etc/uwsgi/vassals/30005.ini").unwrap().mode() & 0o7777, 0o600);

    uids.pop();
    node.api.says("/containers/", &list(&uids));
    assert_eq!(node.agent("once containers").ok(), format!("remove {}/vassals/30005.ini", node.directory.display()));
    eventually("30005 stops", || pgrep("[3]0005").is_none().then_some(()));
    assert!(Path::new("/containers/30005/.ssh").exists(), "what it has stays");
}

#[test]
#[ignore = "needs the node: make test"]
fn contents_are_compared_and_not_clocks() {
    let node = Node::new("clocks");
    node.with_containers(&MANY);
    let file = node.directory.join("vassals/30001.ini");
    let before = node.state();
    // A server that is hours ahead, one that is years behind, one that says no time at all, and one
    // that says another one each time.
    for time in ["4102444800", "1", "null", "\"today\"", "1.5"] {
        node.api.says("/containers/", &list(&MANY).replace("1400000000", time));
        assert_eq!(node.agent("once containers").ok(), "", "{time}");
        assert_eq!(node.state(), before, "{time}");
    }
    // And one that runs on, while the answer changes.
    let (_daemon, _) = node.run("run configurator --interval 1");
    let inode = file.metadata().unwrap().ino();
    node.rounds(3);
    assert_eq!(file.metadata().unwrap().ino(), inode);
    node.api.says("/containers/30001.ini", "[uwsgi]\nanother = one\n");
    node.api.says("/containers/", &list(&MANY).replace("1400000000", "5"));
    eventually("the new content", || fs::read_to_string(&file).unwrap().contains("another").then_some(()));
    assert_ne!(file.metadata().unwrap().ino(), inode);
    // A file that has been asked for is not asked for again while the API's time of it is the same.
    node.api.answers(
        "/containers/30001.ini",
        [Answer::ok(
            "[uwsgi]
unasked = 1
",
        )],
    );
    node.rounds(2);
    assert!(!fs::read_to_string(&file).unwrap().contains("unasked"));
}

#[test]
#[ignore = "needs the node: make test"]
fn a_restart_in_the_api_restarts_and_one_of_the_agent_does_not() {
    let node = Node::new("restart");
    node.with_containers(&MANY);
    assert_eq!(node.agent("once containers").ok(), "");
    // The API's file has a customer's new keys, which another job writes: the API gives it no other
    // time, for it is no reason to restart.
    let new = "[uwsgi]\nkeys = 2\n";
    node.api.says("/containers/30001.ini", new);
    node.api.asked();
    assert_eq!(node.agent("once containers").ok(), "");
    assert_eq!(node.api.asked().len(), 1, "nothing is asked for but the list");
    // A customer restarts one: the API gives it a new time, and perhaps no other file.
    let restarted = list(&MANY).replacen("1400000000", "1400000001", 1);
    let file = node.directory.join("vassals/30001.ini");
    for text in [new, new] {
        let inode = file.metadata().unwrap().ino();
        let time = if text == fs::read_to_string(&file).unwrap() { "1400000002" } else { "1400000001" };
        node.api.says("/containers/", &restarted.replace("1400000001", time));
        assert_eq!(node.agent("once containers").ok(), format!("write {}", file.display()));
        assert_ne!(file.metadata().unwrap().ino(), inode, "the Emperor sees a new file");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(node.agent("once containers").ok(), "");
    }
    // Without what the agent remembers, contents are compared, and a file that is gone comes back
    // in any case.
    let state = node.directory.join("unbit-agent.json");
    assert_eq!(state.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    fs::write(&state, "{\"containers\": ").unwrap();
    fs::write(&file, "[uwsgi]\nhalf").unwrap();
    assert_eq!(node.agent("once containers").ok(), format!("write {}", file.display()));
    fs::remove_file(&file).unwrap();
    assert_eq!(node.agent("once containers").ok(), format!("write {}", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), new);
}

#[test]
#[ignore = "needs the node: make test"]
fn an_empty_list_stops_nothing() {
    let node = Node::new("removal-limit");
    node.with_containers(&MANY);
    fs::write(node.directory.join("vassals/40001.ini"), "an operator's").unwrap();
    fs::write(node.directory.join("vassals/30000.ini"), "the API's").unwrap();
    node.api.says("/containers/", "[]");
    node.assert_refuses("containers", "6 of 6 containers would be removed at once, so none is; to see which: unbit-agent once containers --dry-run --allow-removal; to allow it: unbit-agent once containers --allow-removal");
    node.api.says("/containers/", &list(&MANY[..2]));
    node.assert_refuses("containers", "4 of 6 containers");
    assert!(node.agent("once containers --dry-run --allow-removal").ok().lines().count() == 4);
    assert_eq!(node.vassals().len(), 8);
    // Three at once go without a word.
    node.api.says("/containers/", &list(&MANY[..3]));
    node.agent("once containers").ok();
    assert_eq!(node.vassals(), ["30000.ini", "30001.ini", "30002.ini", "30003.ini", "40001.ini"]);
    // All of them never do.
    node.api.says("/containers/", "[]");
    node.assert_refuses("containers", "3 of 3 containers would be removed at once");
    node.with_containers(&MANY);
    node.api.says("/containers/", "[]");
    node.agent("once containers --allow-removal").ok();
    assert_eq!(node.vassals(), ["30000.ini", "40001.ini"]);

    // The same of services and of nodes' addresses.
    for id in 1..=5 {
        fs::write(node.directory.join(format!("custom_services/7_{id}.ini")), ini(id)).unwrap();
    }
    node.api.says("/custom_services/", "[]");
    node.assert_refuses("custom-services", "5 of 5 services would be removed at once");
    let addresses: String = (1..=5).map(|host| format!("192.0.2.{host}\n")).collect();
    fs::write(node.directory.join("nodes"), addresses).unwrap();
    fs::write(node.directory.join("legion_nodes"), "").unwrap();
    node.api.says("/legion/nodes/", r#"{"unix": 1, "nodes": []}"#);
    node.api.says("/nodes/", r#"{"unix": 1, "nodes": []}"#);
    node.assert_refuses("nodes", "5 of 5 addresses would be removed at once");
}

#[test]
#[ignore = "needs the node: make test"]
fn an_answer_that_is_no_list_changes_nothing() {
    let node = Node::new("answers");
    node.with_containers(&MANY);
    node.api.says("/containers/30007.ini", &ini(30007));
    node.api.says("/elsewhere", &list(&[30007]));
    let good = list(&MANY);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nLocation: https://{HOST}:{}/api/private/elsewhere\r\nContent-Length: 0\r\n\r\n",
        node.api.port()
    );
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n{good}");
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{good}\r\n", good.len());
    let answers = [
        (Answer::new(500, "[]"), "GET /containers/: the API answers 500"),
        (Answer::new(403, "Forbidden\n"), "the API answers 403"),
        (Answer::new(201, &good), "the API answers 201"),
        (Answer::raw(redirect), "the API answers 302"),
        (Answer::ok("<html>it works</html>"), "not the JSON that was asked for"),
        (Answer::ok(""), "not the JSON"),
        (Answer::ok("null"), "not the JSON"),
        (Answer::ok("{}"), "not the JSON"),
        (Answer::ok(r#"[{"uid": "30001"}]"#), "not the JSON"),
        (Answer::ok(r#"[{"uid": "../../root/.ssh/x"}]"#), "not the JSON"),
        (Answer::ok(r#"[{"uid": -1}]"#), "not the JSON"),
        (Answer::ok(r#"[{"uid": 30001.0}]"#), "not the JSON"),
        (Answer::ok(&good.replace("30003", "0")), "0 is not a container's number"),
        (Answer::ok(&good.replace("30003", "33")), "33 is not a container's number"),
        (Answer::ok(&good.replace("30003", "65534")), "65534 is not a container's number"),
        (Answer::ok(&good.replace("30003", "30001")), "30001 is listed twice"),
        // Half answers: by their length, by chunks, by the end of the connection, and of the JSON
        // alone.
        (Answer::of_length(good.len() as u64 + 1, &good), "GET /containers/: "),
        (Answer::of_length(good.len() as u64 - 1, &good), "not the JSON"),
        (Answer::of_length(1 << 62, &good), "GET /containers/: "),
        (Answer::raw(huge), "GET /containers/: "),
        (Answer::raw(chunked), "GET /containers/: "),
        (Answer::cut(&good[..good.len() / 2]), "not the JSON"),
        (Answer::until_the_end(&good[..good.len() / 2]), "not the JSON"),
        (Answer::endless(), "the answer is longer than 16 MiB"),
        (Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n[]"), "GET /containers/: "),
        (Answer::raw("nonsense\r\n\r\n"), "GET /containers/: "),
        (Answer::raw(""), "GET /containers/: "),
        (Answer::raw(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n[]", "x".repeat(1 << 20))), "GET /containers/: "),
    ];
    for (answer, cause) in answers {
        node.api.answers("/containers/", [answer]);
        node.assert_refuses("containers", cause);
    }
    assert!(node.api.bytes_sent() < 64 << 20, "{} bytes", node.api.bytes_sent());
    assert!(node.api.asked().iter().all(|asked| asked.path == "/containers/"), "no redirect is followed");
    // A list that ends with its connection, without a word, is whole if its JSON is.
    node.api.answers("/containers/", [Answer::cut(&good)]);
    assert_eq!(node.agent("once containers").ok(), "");
}

#[test]
#[ignore = "needs the node: make test"]
fn truncated_or_invalid_answers_write_nothing() {
    let node = Node::new("files");
    node.with_containers(&MANY);
    let whole = format!("[uwsgi]\n{}\n", "comment = long\n".repeat(100));
    let half = &whole[..whole.len() / 2];
    let path = "/containers/30001.ini";
    for (answers, cause) in [
        (vec![Answer::ok("")], "an empty configuration"),
        (vec![Answer::ok("<html>[uwsgi]")], "not a uWSGI configuration"),
        (vec![Answer::ok("[uwsgi]\na = \0\n")], "the character \\u{0} is in the text"),
        (vec![Answer::ok("[uwsgi]\na = \u{1b}[2J\n")], "the character \\u{1b} is in the text"),
        (vec![Answer::new(404, &whole)], "the API answers 404"),
        (vec![Answer::of_length(whole.len() as u64, half)], "GET /containers/30001.ini: "),
        (vec![Answer::cut(half), Answer::cut(&whole)], "the connection ends before the answer does"),
        (vec![Answer::ok(&format!("[uwsgi]\n{}", "x".repeat(1 << 20)))], "longer than 1048576 bytes"),
    ] {
        node.api.answers(path, answers);
        node.assert_refuses("containers", cause);
    }
    // A server that never says goodbye is uWSGI's. What it says twice is taken.
    node.api.answers(path, [Answer::cut(&whole)]);
    node.agent("once containers").ok();
    assert_eq!(fs::read_to_string(node.directory.join("vassals/30001.ini")).unwrap(), whole);
    // One of them that fails keeps none of the others back.
    node.api.says("/containers/", &list(&MANY).replace("1400000000", "1400000001"));
    node.api.answers(path, [Answer::new(500, "")]);
    node.api.says("/containers/30002.ini", "[uwsgi]\nnew = 1\n");
    assert!(node.agent("once containers").failed().contains("30001.ini: the API answers 500"));
    assert!(fs::read_to_string(node.directory.join("vassals/30002.ini")).unwrap().contains("new"));
}

#[test]
#[ignore = "needs the node: make test"]
fn an_api_that_says_nothing_more_costs_half_a_minute() {
    let node = Node::new("stall");
    node.with_containers(&MANY);
    node.api.answers("/containers/", [Answer::stalled()]);
    let began = Instant::now();
    node.assert_refuses("containers", "GET /containers/: no complete answer within 30 s");
    assert!((29..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
#[ignore = "needs the node: make test"]
fn a_process_without_privileges_talks_to_the_api() {
    let node = Node::new("fetcher");
    node.with_containers(&MANY);
    node.api.answers("/containers/", [Answer::stalled()]);
    let (daemon, _) = node.run("run configurator");
    eventually("the request", || node.api.asked().first().cloned());
    let root = daemon.0.id();
    let child = sh(format!("pgrep -P {root}")).ok();
    let id = sh("id -u _unbit-agent").ok();
    let status = |field: &str| status_field(&child, field).unwrap();
    assert_eq!(status("Uid").split_whitespace().collect::<Vec<_>>(), [id.as_str(); 4]);
    assert_eq!(status("Groups").trim(), sh("id -g _unbit-agent").ok());
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(status("NoNewPrivs"), "1");
    let sockets =
        |pid: &str| sh(format!("ss -Htnp state established dport = :{} | grep -c 'pid={pid},'", node.api.port())).out;
    assert_eq!((sockets(&child).trim(), sockets(&root.to_string()).trim()), ("1", "0"));
    // The key is neither in an open file of the child nor for others to read in its memory.
    assert!(descriptors(&child).iter().all(|file| !file.contains("client.key")), "{:?}", descriptors(&child));
    assert!(
        sh(format!("setpriv --reuid {id} --regid {id} --clear-groups head -c 1 /proc/{child}/mem")).status != Some(0)
    );
    // The one ends with the other.
    drop(daemon);
    eventually("the child ends", || (!Path::new(&format!("/proc/{child}")).exists()).then_some(()));
}

#[test]
#[ignore = "needs the node: make test"]
fn the_servers_authority_and_name_are_verified() {
    let directory = Node::directory("tls");
    let authority = Pair::new("authority.test", None);
    let other = Pair::new("authority.test", None);
    for (server, cause) in [
        (Pair::new(HOST, Some(&other)), "the server's certificate is refused: "),
        (Pair::new("another.test", Some(&authority)), "the server's certificate is refused: hostname mismatch"),
        (Pair::new(HOST, None), "the server's certificate is refused: "),
    ] {
        let node = Node { api: Api::start_as(&directory, &authority, &server), directory: directory.clone() };
        fs::create_dir_all(directory.join("vassals")).unwrap();
        node.api.says("/containers/", &list(&[30001]));
        node.api.says("/containers/30001.ini", &ini(30001));
        let error = node.agent("once containers").failed();
        assert!(error.contains(cause), "{error}");
        assert_eq!(node.api.asked(), []);
        let done = node.agent("once containers --insecure-server-name");
        assert!(done.err.contains("warning: --insecure-server-name"), "{done:?}");
        let is_of_the_authority = cause.ends_with("mismatch");
        assert_eq!(done.status, Some(if is_of_the_authority { 0 } else { 1 }), "{done:?}");
        assert_eq!(node.vassals().len(), usize::from(is_of_the_authority));
        fs::create_dir_all(directory.join("custom_services")).unwrap();
        std::mem::forget(node); // which would remove the directory
        fs::remove_dir_all(directory.join("vassals")).unwrap();
    }
    // The client's own certificate reaches the API; another key than its own is found at once.
    let node = Node::new("tls");
    node.with_containers(&[30001]);
    node.agent("once containers").ok();
    assert!(node.api.asked().iter().all(|asked| asked.client == "node.test" && asked.method == "GET"));
    // A server that refuses the node's certificate says so.
    let (kept_key, kept) =
        (fs::read(directory.join("client.key")).unwrap(), fs::read(directory.join("client.crt")).unwrap());
    let stranger = Pair::new("stranger.test", Some(&other));
    fs::write(directory.join("client.key"), stranger.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    fs::write(directory.join("client.crt"), stranger.certificate.to_pem().unwrap()).unwrap();
    let error = node.agent("once containers").failed();
    assert!(error.contains("GET /containers/: TLS: ") && error.contains("alert"), "{error}");
    fs::write(directory.join("client.key"), kept_key).unwrap();
    fs::write(directory.join("client.crt"), kept).unwrap();
    fs::write(directory.join("client.key"), authority.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    assert!(node.agent("once containers").failed().contains("the client's private key does not match its certificate"));
    fs::write(directory.join("client.key"), "nothing").unwrap();
    assert!(node.agent("once containers").failed().contains("the client's key"));
}

#[test]
#[ignore = "needs the node: make test"]
fn a_fault_is_logged_once() {
    let node = Node::new("log");
    node.with_containers(&MANY);
    for (path, said) in
        [("/nodes/", r#"{"nodes": []}"#), ("/legion/nodes/", r#"{"nodes": []}"#), ("/custom_services/", "[]")]
    {
        node.api.says(path, said);
    }
    node.api.answers("/containers/", [Answer::new(500, "")]);
    let (_daemon, log) = node.run("run configurator --interval 1");
    node.rounds(3);
    let text = || fs::read_to_string(&log).unwrap();
    assert_eq!(
        text().matches("unbit-agent: containers: GET /containers/: the API answers 500\n").count(),
        1,
        "{}",
        text()
    );
    node.api.says("/containers/", &list(&MANY));
    eventually("well again", || text().contains("unbit-agent: containers: works again\n").then_some(()));
    assert_eq!(text().matches("containers: ").count(), 2, "{}", text());
}

#[test]
#[ignore = "needs the node: make test"]
fn a_kept_connection_that_the_api_closes_is_replaced() {
    let node = Node::new("kept");
    node.with_containers(&MANY);
    node.api.asked();
    for uid in MANY {
        fs::remove_file(node.directory.join(format!("vassals/{uid}.ini"))).unwrap();
    }
    node.api.answers("/containers/", [Answer::last(200, &list(&MANY))]);
    let said = node.agent("once containers").ok();
    assert_eq!(said.lines().count(), MANY.len(), "{said}");
    let connections: BTreeSet<_> = node.api.asked().iter().map(|asked| asked.connection).collect();
    assert_eq!(connections.len(), 2, "the list has one, and the files have one");
    // How the first one ended says nothing about an answer that ends with the second one.
    fs::remove_file(node.directory.join("vassals/30001.ini")).unwrap();
    node.api.answers("/containers/30001.ini", [Answer::until_the_end("[uwsgi]\nwhole = 1\n")]);
    let said = node.agent("once containers").ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(node.api.asked().len(), 2, "the file is requested once");
    // A new connection without an answer is an error, and nobody asks again and again.
    node.api.answers("/containers/", [Answer::raw("")]);
    let error = node.agent("once containers").failed();
    assert!(error.contains("GET /containers/: Peer disconnected"), "{error}");
    assert_eq!(node.api.asked().len(), 1);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_round_asks_for_the_list_of_containers_once() {
    let node = Node::new("list");
    node.with_containers(&MANY);
    let (_daemon, _) = node.run("run configurator --interval 1");
    let mut paths = Vec::new();
    eventually("three rounds", || {
        paths.extend(node.api.asked().into_iter().map(|asked| asked.path));
        (paths.iter().filter(|path| *path == "/portmappings/").count() >= 3).then_some(())
    });
    for round in paths.split(|path| path == "/portmappings/").take(3) {
        assert_eq!(round.iter().filter(|path| *path == "/containers/").count(), 1, "{paths:?}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn keys_are_written_as_the_tenant_and_through_no_link() {
    let node = Node::new("keys");
    let (uid, home) = (30007, "/containers/30007");
    let _end = AtEnd(|| drop(sh("rm -rf /containers/30007 /root/.ssh/authorized_keys2")));
    sh(format!("rm -rf {home}; install -d -o {uid} -g {uid} {home}")).ok();
    node.api.says("/containers/", &list(&[uid]));
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zu4cnLJAy0BNJDrKZLHPCDRIDRpBKGLFTcYIxKuyn tenant";
    node.api.says("/ssh_keys/30007", &format!("{key}\n"));
    let file = format!("{home}/.ssh/uwsgi_authorized_keys");
    let shown = || sh(format!("stat -c '%U:%G %a %F' {home}/.ssh {file}; cat {file}")).out;
    let right = format!("30007:30007 700 directory\n30007:30007 600 regular file\n{key}\n");

    let line = format!("write {file}");
    assert_eq!(node.agent("once keys --dry-run").ok(), format!("would {line}"));
    assert!(!Path::new(&file).exists() && !Path::new(home).join(".ssh").exists());
    assert_eq!(node.agent("once keys").ok(), line);
    assert_eq!(shown(), right);
    assert_eq!(node.agent("once keys").ok(), "");

    // The attack that was seen: root followed this link, and the tenant's key was root's.
    for target in ["/root/.ssh/authorized_keys2", "/etc/cron.d/tenant", "/nonexistent/x"] {
        sh(format!("ln -sf {target} {file}; chown -h {uid}:{uid} {file}")).ok();
        assert_eq!(node.agent("once keys").ok(), line);
        assert_eq!(shown(), right, "the link is replaced");
        assert!(!Path::new(target).exists(), "{target}");
    }
    // The directory as a link, where the tenant could reach nothing, but root could.
    let root_has = || sh("cd /root/.ssh && ls -la && cksum *").out;
    let before = root_has();
    sh(format!("rm -rf {home}/.ssh; ln -s /root/.ssh {home}/.ssh")).ok();
    assert!(node.agent("once keys").failed().contains(".ssh is a symbolic link or no directory, and is left as it is"));
    assert_eq!(root_has(), before);
    // Fifos, files that cannot be read, links to other users' files: none of them hangs anybody or
    // is written to.
    for odd in
        ["mkfifo FILE", "touch FILE; chmod 0 FILE", "ln /etc/hosts FILE || touch FILE", "touch FILE; chmod 4755 FILE"]
    {
        sh(format!(
            "rm -rf {home}/.ssh; install -d -o {uid} -g {uid} -m 700 {home}/.ssh; {}",
            odd.replace("FILE", &file)
        ))
        .ok();
        let hosts = fs::read_to_string("/etc/hosts").unwrap();
        node.agent("once keys").ok();
        assert_eq!(shown(), right, "{odd}");
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), hosts, "{odd}");
    }
    sh(format!("rm {file}; mkdir {file}")).ok();
    assert!(node.agent("once keys").failed().contains("write .ssh/uwsgi_authorized_keys"));
    sh(format!("rmdir {file}")).ok();
    // A directory that is not the account's, none, and answers that are no keys.
    sh(format!("chown 0:0 {home}")).ok();
    assert_eq!(node.agent("once keys").ok(), "", "no account yet");
    sh(format!("chown {uid}:{uid} {home}")).ok();
    for (answer, cause) in
        [("", "no key in the answer"), ("# none\n", "no key in the answer"), ("ssh-rsa \0", "the character")]
    {
        node.api.says("/ssh_keys/30007", answer);
        assert!(node.agent("once keys").failed().contains(cause));
        assert!(!Path::new(&file).exists());
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn alarms_are_bytes_of_whoever_made_the_file() {
    let node = Node::new("alarms");
    let directory = alarms_of(&node);
    let place = |name: &str| directory.join(name);
    let raise = |name: &str, owner: u32, text: &str| raise(&place(name), owner, text);

    raise(&uuid(1), 30001, &alarm(30001, "container 30001: OUT OF MEMORY !!!"));
    raise(&format!("{}.tmp", uuid(2)), 30001, "half");
    assert_eq!(
        node.agent("once alarms --dry-run").ok(),
        "would send /alarms/30001?unix=1400000000: container 30001: OUT OF MEMORY !!!"
    );
    assert_eq!(node.api.asked(), []);
    node.agent("once alarms").ok();
    let [sent] = node.api.asked().try_into().unwrap();
    assert_eq!((sent.method.as_str(), sent.path.as_str()), ("POST", "/alarms/30001?unix=1400000000"));
    assert_eq!(sent.body, "container 30001: OUT OF MEMORY !!!");
    assert!(!place(&uuid(1)).exists() && place(&format!("{}.tmp", uuid(2))).exists());
    sh(format!("touch -d '6 minutes ago' {}/{}.tmp", directory.display(), uuid(2))).ok();
    node.agent("once alarms").ok();
    assert!(!place(&format!("{}.tmp", uuid(2))).exists(), "it is never finished");

    // The attack that was seen: Perl ran a name of 36 characters that ends in a pipe, as root.
    let command = format!("{:<35}|", "touch alarm-by-root;");
    raise(&command, 65534, "");
    node.agent("once alarms").ok();
    assert!(place(&command).exists(), "a name that is no alarm's is left alone");
    assert_eq!(sh("find / -xdev -name alarm-by-root 2>/dev/null").out, "");
    fs::remove_file(place(&command)).unwrap();

    // Links to what root alone reads, other kinds of files, alarms for others, and what is no
    // alarm.
    fs::write("/etc/agent-secret", alarm(30001, "a secret")).unwrap();
    fs::set_permissions("/etc/agent-secret", fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/agent-secret", place(&uuid(3))).unwrap();
    sh(format!("mkfifo {0}/{1}; mkdir {0}/{2}; mkdir -p {0}/{3}/full", directory.display(), uuid(4), uuid(5), uuid(6)))
        .ok();
    raise(&uuid(7), 30002, &alarm(30001, "from another"));
    raise(&uuid(8), 30001, &"x".repeat(70_000));
    raise(&uuid(9), 30001, &alarm(33, "no container"));
    raise(&uuid(10), 30001, r#"{"container":30001,"unix":"1&x","msg":""}"#);
    let done = node.agent("once alarms");
    assert_eq!(done.out.matches("remove ").count(), 7, "{done:?}");
    assert!(!done.out.contains(&uuid(6)), "it is still there: {done:?}");
    let error = done.failed();
    assert!(error.contains(&format!("remove alarms/{}: ENOTEMPTY", uuid(6))), "{error}");
    assert_eq!(error.matches("an alarm is dropped: ").count(), 8, "{error}");
    for cause in [
        "it is a symbolic link",
        "it is not a regular file",
        "uid 30002: it speaks for container 30001",
        "longer than",
        "33 is no",
    ] {
        assert!(error.contains(cause), "{cause}: {error}");
    }
    assert_eq!(node.api.asked(), []);
    let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [uuid(6).as_str()], "a directory with something in it is passed over");
    fs::remove_file("/etc/agent-secret").unwrap();
    fs::remove_dir_all(place(&uuid(6))).unwrap();

    // Kept while the API does not answer, dropped if it does not want them.
    raise(&uuid(11), 30001, &alarm(30001, "later"));
    node.api.answers("POST /alarms/30001", [Answer::new(500, "")]);
    assert!(node.agent("once alarms").failed().contains("POST /alarms/30001: the API answers 500"));
    assert!(place(&uuid(11)).exists());
    node.api.answers("POST /alarms/30001", [Answer::new(404, "")]);
    assert!(node.agent("once alarms").failed().contains("the API refuses it (404), and it is dropped"));
    assert!(!place(&uuid(11)).exists());

    // Its text does nothing to root's terminal, and makes no line of its own.
    raise(&uuid(14), 30001, &alarm(30001, r"one\u001b]0;title\u0007\nwould remove /etc"));
    assert_eq!(
        node.agent("once alarms --dry-run").ok(),
        r"would send /alarms/30001?unix=1400000000: one\u{1b}]0;title\u{7}\u{a}would remove /etc"
    );
    fs::remove_file(place(&uuid(14))).unwrap();

    // A tenant that makes thousands keeps nobody else's back for long.
    node.api.answers("POST /alarms/30001", [Answer::new(201, "")]);
    (100..400).for_each(|number| raise(&uuid(number), 30001, &alarm(30001, "flood")));
    raise(&uuid(900), 30002, &alarm(30002, "mine"));
    node.api.asked();
    node.agent("once alarms").ok();
    let asked = node.api.asked();
    assert_eq!(asked.len(), 11);
    assert!(asked.iter().any(|asked| asked.body == "mine"));

    // Nor do other names, or alarms that are none, however many they are.
    sh(format!("cd {} && seq -f 0000%g 1 20000 | xargs touch && chown 30001 0000*", directory.display())).ok();
    (0..300).for_each(|number| raise(&format!("00000000-0000-0000-0000-{number:012}"), 30001, ""));
    raise(&uuid(901), 30002, &alarm(30002, "mine again"));
    let error = node.agent("once alarms").failed();
    assert_eq!(error.matches("an alarm is dropped: ").count(), 10, "{error}");
    assert!(node.api.asked().iter().any(|asked| asked.body == "mine again"));
}

#[test]
#[ignore = "needs the node: make test"]
fn an_alarm_that_the_api_does_not_take_keeps_no_others_back() {
    let node = Node::new("alarms-kept");
    let directory = alarms_of(&node);
    let uids = 30001..=30005;
    let files = || fs::read_dir(&directory).unwrap().count();
    let raise_two_each = || {
        for (number, uid) in (0..).zip(uids.clone()) {
            raise(&directory.join(uuid(2 * number)), uid, &alarm(uid, "first"));
            raise(&directory.join(uuid(2 * number + 1)), uid, &alarm(uid, "second"));
        }
    };
    // Such as one whose time is no time for the API. Those of its container wait, and no others.
    for status in [500, 503, 401, 403, 408, 429, 200] {
        raise_two_each();
        node.api.answers("POST /alarms/30001", [Answer::new(status, "")]);
        let error = node.agent("once alarms").failed();
        assert_eq!(
            error,
            format!("unbit-agent: POST /alarms/30001: the API answers {status}, and its alarms are kept\n")
        );
        let asked: Vec<_> = node.api.asked().into_iter().map(|asked| asked.path).collect();
        for uid in uids.clone() {
            let count = asked.iter().filter(|path| path.starts_with(&format!("/alarms/{uid}?"))).count();
            assert_eq!(count, if uid == 30001 { 1 } else { 2 }, "{asked:?}");
        }
        assert_eq!(files(), 2, "{status}");
    }
    for status in [400, 404, 409, 410, 413, 422] {
        raise_two_each();
        node.api.answers("POST /alarms/30001", [Answer::new(status, "")]);
        let error = node.agent("once alarms").failed();
        assert_eq!(error.matches(&format!("the API refuses it ({status}), and it is dropped")).count(), 2, "{error}");
        assert_eq!(files(), 0, "{status}");
    }
    // An API that takes none is not asked for each container, and one that is gone is asked once.
    raise_two_each();
    for (answer, requests) in [(Answer::new(500, ""), 3), (Answer::raw(""), 1)] {
        uids.clone().for_each(|uid| node.api.answers(&format!("POST /alarms/{uid}"), [answer.clone()]));
        node.api.asked();
        node.agent("once alarms").failed();
        assert_eq!((node.api.asked().len(), files()), (requests, 10));
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn a_directory_of_alarms_that_cannot_be_read_ends_the_round() {
    let node = Node::new("alarms-error");
    alarms_of(&node);
    let strace = "timeout 20 strace -qq -o /dev/null -e trace=getdents64 -e inject=getdents64:error=EIO";
    let done = sh(format!("{strace} unbit-agent once alarms --directory {}", node.directory.display()));
    assert_eq!((done.status, done.err.as_str()), (Some(1), "unbit-agent: alarms: EIO: I/O error\n"), "{done:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn keys_are_written_again_for_an_account_that_is_made_anew() {
    let node = Node::new("keys-again");
    let (uid, home) = (30007, "/containers/30007");
    let _end = AtEnd(|| drop(sh("rm -rf /containers/30007")));
    let make = || sh(format!("rm -rf {home}; install -d -o {uid} -g {uid} {home}")).ok();
    make();
    node.api.says("/containers/", &list(&[uid]));
    node.api.says("/ssh_keys/30007", "ssh-ed25519 AAAA tenant\n");
    let (_daemon, log) = node.run("run configurator --interval 1");
    let written = || fs::read_to_string(format!("{home}/.ssh/uwsgi_authorized_keys")).ok();
    let key = eventually("the keys", written);
    make();
    assert_eq!(eventually("the keys again", written), key, "{}", fs::read_to_string(log).unwrap());
    // While they are there, they are not asked for.
    node.api.asked();
    let mut asked = Vec::new();
    eventually("two rounds", || {
        asked.extend(node.api.asked().into_iter().map(|asked| asked.path));
        (asked.iter().filter(|path| *path == "/portmappings/").count() >= 3).then_some(())
    });
    assert!(!asked.iter().any(|path| path.starts_with("/ssh_keys/")), "{asked:?}");
}

#[test]
#[ignore = "needs the node: make test"]
fn lists_of_nodes_are_addresses_and_make_the_firewall() {
    let node = Node::new("nodes");
    let _end = AtEnd(|| drop(sh("nft delete table inet unbit 2>/dev/null")));
    node.api.says("/nodes/", r#"{"unix": 1400000000, "nodes": ["192.0.2.12", "192.0.2.11", "2001:db8::11"]}"#);
    node.api.says("/legion/nodes/", r#"{"unix": 1400000000, "nodes": ["192.0.2.21"]}"#);
    let said = node.agent("once nodes").ok();
    assert!(!said.contains("table inet unbit"), "the operator has not loaded it: {said}");
    let done = sh("unbitctl firewall --reload");
    let nothing = "unbitctl: table inet unbit is not loaded; nothing to do\n";
    assert_eq!((done.status, done.out.as_str(), done.err.as_str()), (Some(0), "", nothing));
    assert_eq!(fs::read_to_string(node.directory.join("nodes")).unwrap(), "192.0.2.11\n192.0.2.12\n2001:db8::11\n");
    assert_eq!(fs::read_to_string(node.directory.join("legion_nodes")).unwrap(), "192.0.2.21\n");
    assert_eq!(node.agent("once nodes").ok(), "");

    let place = node.directory.display();
    sh(format!("unbitctl firewall --nodes {place}/nodes --routers {place}/legion_nodes --public-ip 192.0.2.1 --public-ip 2001:db8::1 --apply")).ok();
    sh("nft add table inet operator").ok();
    node.api.says("/nodes/", r#"{"unix": 1, "nodes": ["192.0.2.12", "192.0.2.13"]}"#);
    let said = node.agent("once nodes").ok();
    assert!(said.ends_with("load table inet unbit: table inet unbit is loaded: nodes: 2, routers: 1"), "{said}");
    let table = sh("nft list table inet unbit").ok();
    assert!(
        table.contains("192.0.2.13") && !table.contains("192.0.2.11") && table.contains("--public-ip=192.0.2.1"),
        "{table}"
    );
    let rules = || sh("nft list ruleset").out;
    let before = rules();
    // Loaded again, it has the same rules: nothing is appended.
    for _ in 0..3 {
        node.agent("once nodes").ok();
    }
    assert_eq!(rules(), before);
    sh("nft delete table inet operator").ok();

    for bad in [
        r#""node7.example""#,
        r#""192.0.2.12; reboot""#,
        r#""192.0.2.0/24""#,
        r#""192.0.2.13\n192.0.2.14""#,
        "7",
        "null",
    ] {
        node.api.says("/nodes/", &format!(r#"{{"unix": 1, "nodes": ["192.0.2.12", {bad}]}}"#));
        node.assert_refuses("nodes", "GET /nodes/: ");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn services_are_files_of_two_numbers() {
    let node = Node::new("services");
    let file = |name: &str| node.directory.join("custom_services").join(name);
    fs::write(file("9_9.ini"), "of a customer that left").unwrap();
    fs::write(file("operator.ini"), "an operator's").unwrap();
    node.api
        .says("/custom_services/", r#"[{"customer": 7, "id": 1, "mtime": 1, "config": "[uwsgi]\nmaster = true\n"}]"#);
    let said = node.agent("once custom-services").ok();
    let place = node.directory.display();
    assert_eq!(said, format!("write {place}/custom_services/7_1.ini\nremove {place}/custom_services/9_9.ini"));
    assert_eq!(fs::read_to_string(file("7_1.ini")).unwrap(), "[uwsgi]\nmaster = true\n");
    assert!(file("operator.ini").exists() && !file("9_9.ini").exists());
    for (bad, cause) in [
        (r#"{"customer": "../../x", "id": 1, "config": "[uwsgi]"}"#, "not the JSON"),
        (r#"{"customer": -1, "id": 1, "config": "[uwsgi]"}"#, "not the JSON"),
        (r#"{"customer": 7, "id": 1, "config": ""}"#, "7_1.ini: an empty configuration"),
        (r#"{"customer": 7, "id": 1, "config": "[uwsgi]\u0000"}"#, "the character"),
        (
            r#"{"customer": 7, "id": 1, "config": "[uwsgi]"}, {"customer": 7, "id": 1, "config": "[uwsgi]\n"}"#,
            "is listed twice",
        ),
    ] {
        node.api.says("/custom_services/", &format!("[{bad}]"));
        node.assert_refuses("custom-services", cause);
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn directories_and_files_that_others_can_lead_elsewhere_are_refused() {
    let node = Node::new("walls");
    node.with_containers(&[30001]);
    let vassals = node.directory.join("vassals");
    let file = vassals.join("30001.ini");
    fs::set_permissions(&vassals, fs::Permissions::from_mode(0o777)).unwrap();
    node.assert_refuses("containers", "root alone must be able to write there");
    fs::set_permissions(&vassals, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&vassals, Some(30001), Some(30001)).unwrap();
    node.assert_refuses("containers", "root alone must be able to write there");
    std::os::unix::fs::chown(&vassals, Some(0), Some(0)).unwrap();
    fs::rename(&file, "/run/kept.ini").unwrap();
    symlink("/run/kept.ini", &file).unwrap();
    node.api.says("/containers/30001.ini", "[uwsgi]\nother = 1\n");
    node.assert_refuses("containers", "30001.ini is a symbolic link, and is left as it is");
    assert_eq!(fs::read_to_string("/run/kept.ini").unwrap(), ini(30001));
    fs::remove_file(&file).unwrap();
    // Owner and mode of a file that is there stay.
    fs::rename("/run/kept.ini", &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&file, Some(0), Some(33)).unwrap();
    node.agent("once containers").ok();
    let now = file.metadata().unwrap();
    assert_eq!((now.mode() & 0o7777, now.uid(), now.gid()), (0o640, 0, 33));
}

#[test]
#[ignore = "needs the node: make test"]
fn a_full_disk_leaves_the_old_file() {
    let node = Node::new("full");
    node.with_containers(&[30001]);
    let vassals = node.directory.join("vassals");
    sh(format!("mount -t tmpfs -o size=16k,mode=755 none {}", vassals.display())).ok();
    let _end = AtEnd(|| drop(sh("umount /run/agent-full/vassals")));
    fs::write(vassals.join("30001.ini"), ini(30001)).unwrap();
    let new = format!("[uwsgi]\n{}", "x = y\n".repeat(5000));
    node.api.says("/containers/30001.ini", &new);
    node.assert_refuses("containers", "No space left on device");
    assert_eq!(node.vassals(), ["30001.ini"], "nothing is left beside it");
    sh(format!("mount -o remount,size=1m {}", vassals.display())).ok();
    node.agent("once containers").ok();
    assert_eq!(fs::read_to_string(vassals.join("30001.ini")).unwrap(), new);
}

#[test]
#[ignore = "needs the node: make test"]
fn killed_at_any_system_call_it_leaves_the_old_file_or_the_new_one() {
    let node = Node::new("killed");
    node.with_containers(&[30001]);
    let file = node.directory.join("vassals/30001.ini");
    let state = node.directory.join("unbit-agent.json");
    let new = "[uwsgi]\nnew = 1\n".to_owned();
    node.api.says("/containers/30001.ini", &new);
    let calls = "openat,unlinkat,fchmod,fchown,write,fsync,renameat,renameat2";
    let (mut ended, mut seen) = (0, [0; 2]);
    for at in 1..400 {
        fs::write(&file, ini(30001)).unwrap();
        fs::write(&state, OLD_STATE).unwrap();
        let command = format!(
            "strace -qq -o /dev/null -e trace={calls} -e inject={calls}:signal=KILL:when={at} unbit-agent once containers --directory {}",
            node.directory.display()
        );
        let done = sh(command);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text == new || text == ini(30001), "call {at}: {text:?}");
        seen[usize::from(text == new)] += 1;
        let said = fs::read_to_string(&state).unwrap();
        assert!(
            said == OLD_STATE || text == new && said == OLD_STATE.replace(":1}", ":1400000000}"),
            "call {at}: {said}"
        );
        if done.status == Some(0) {
            ended = at;
            break;
        }
        // What it has left is no container, and the next round takes it away.
        node.agent("once containers").ok();
        assert_eq!(node.vassals(), ["30001.ini"], "call {at}");
        assert_eq!(fs::read_to_string(&file).unwrap(), new, "call {at}");
    }
    assert!(ended > 20 && seen.iter().all(|count| *count > 0), "{ended} calls, {seen:?}");
    println!("{ended} calls; {} times the old file, {} times the new one", seen[0], seen[1]);
}

#[test]
#[ignore = "needs the node: make test"]
fn a_dry_run_changes_and_sends_nothing() {
    let node = Node::new("dry");
    node.with_containers(&MANY[..3]);
    node.api.says("/containers/30001.ini", "[uwsgi]\nnew = 1\n");
    node.api.says("/containers/30009.ini", &ini(30009));
    node.api.says("/containers/", &list(&[30001, 30002, 30009]));
    node.api.says("/custom_services/", r#"[{"customer": 7, "id": 1, "config": "[uwsgi]\n"}]"#);
    for path in ["/nodes/", "/legion/nodes/"] {
        node.api.says(path, r#"{"nodes": ["192.0.2.2"]}"#);
    }
    let before = node.state();
    let place = node.directory.display();
    let said = node.agent("once containers --dry-run").ok();
    let lines = ["write 30001", "write 30009", "remove 30003"]
        .map(|line| format!("would {}.ini", line.replace(' ', &format!(" {place}/vassals/"))));
    assert_eq!(said.lines().collect::<Vec<_>>(), lines);
    for job in ["custom-services", "nodes"] {
        assert!(node.agent(&format!("once {job} --dry-run")).ok().starts_with("would write "), "{job}");
    }
    assert_eq!(node.state(), before);
    let json: serde_json::Value = serde_json::from_str(&node.agent("once containers --dry-run --json").ok()).unwrap();
    assert_eq!((json["job"].as_str(), json["dry_run"].as_bool()), (Some("containers"), Some(true)));
    assert_eq!(json["changes"][2]["action"], "remove");
    assert_eq!(json["problems"], serde_json::json!([]));
    assert!(node.api.asked().iter().all(|asked| asked.method == "GET"));
}

#[test]
#[ignore = "needs the node: make test"]
fn without_root_or_its_user_it_says_what_is_needed() {
    let node = Node::new("needs");
    let done =
        sh("setpriv --reuid 1000 --regid 1000 --clear-groups unbit-agent once containers --directory /run/agent-needs");
    assert_eq!(done.status, Some(3), "{done:?}");
    sh("userdel _unbit-agent").ok();
    assert!(node.agent("once containers").failed().contains("there is no user _unbit-agent"));
    sh("useradd --system --no-create-home --shell /usr/sbin/nologin _unbit-agent").ok();
    fs::remove_file(node.directory.join("local.ini")).unwrap();
    assert!(node.agent("once containers").failed().contains("local.ini"));
}

#[test]
#[ignore = "needs the node: make test"]
fn the_capabilities_of_the_units_are_enough() {
    let node = Node::new("units");
    let _end = AtEnd(|| {
        drop(sh("nft delete table inet unbit; nft delete table ip unbit_ports; rm -rf /containers/30007"));
    });
    let place = node.directory.display();
    node.with_containers(&[30001]);
    node.api.says("/containers/30001.ini", "[uwsgi]\nnew = 1\n");
    sh("rm -rf /containers/30007; install -d -o 30007 -g 30007 -m 700 /containers/30007").ok();
    node.api.says("/containers/30007.ini", &ini(30007));
    node.api.says("/ssh_keys/30007", "ssh-ed25519 AAAA\n");
    node.api.says("/ssh_keys/30001", &fs::read_to_string("/root/.ssh/id_ed25519.pub").unwrap());
    node.api.says("/containers/", &list(&[30001, 30007]));
    sh(format!("chown 0:33 {place}/vassals/30001.ini; install -d -m 1777 {place}/alarms; install -d -o 33 -g 33 {place}/domains")).ok();
    let alarm = node.directory.join("alarms/01234567-89ab-cdef-0123-456789abcdef");
    fs::write(&alarm, r#"{"container":30001,"unix":1,"msg":"a"}"#).unwrap();
    sh(format!("chown 30001:30001 {0}; chmod 600 {0}", alarm.display())).ok();
    for path in ["/nodes/", "/legion/nodes/"] {
        node.api.says(path, r#"{"nodes": ["192.0.2.2"]}"#);
    }
    sh(format!("touch {place}/nodes {place}/legion_nodes; unbitctl firewall --nodes {place}/nodes --routers {place}/legion_nodes --apply")).ok();
    node.api.says("/custom_services/", r#"[{"customer": 7, "id": 1, "config": "[uwsgi]\n"}]"#);
    node.api.says("/portmappings/", r#"{"mappings": [{"proto": "tcp", "public_ip": "192.0.2.1", "public_port": 9000, "private_ip": "10.0.0.3", "private_port": 8000}]}"#);
    node.api.says("/serverfilemetadata/", r#"["/etc/hostname"]"#);
    node.api.says("/domains/rsa/", "[]");
    for (daemon, jobs) in [
        ("configurator", &["containers", "keys", "nodes", "custom-services", "alarms", "port-mappings"][..]),
        ("collector", &["metrics", "file-metadata"]),
        ("dominator", &["domains"]),
    ] {
        let unit = fs::read_to_string(format!("/unbit/agent/systemd/unbit-agent-{daemon}.service")).unwrap();
        assert!(unit.contains("NoNewPrivileges=yes") && unit.contains(&format!("unbit-agent run {daemon} ")), "{unit}");
        let kept = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        let kept: String =
            kept.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
        for job in jobs {
            let done = sh(format!(
                "umask 077; setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{kept} unbit-agent once {job} --directory {place}"
            ));
            assert_eq!((done.status, done.err.as_str()), (Some(0), ""), "{daemon} {job}: {}", done.out);
        }
    }
    assert!(!alarm.exists());
    assert_eq!(
        sh(format!(
            "stat -c '%a %u:%g' {place}/nodes {place}/vassals/30001.ini /containers/30007/.ssh/uwsgi_authorized_keys"
        ))
        .ok(),
        "644 0:0\n644 0:33\n600 30007:30007"
    );
    assert!(sh("nft list table inet unbit").ok().contains("192.0.2.2"));
}
