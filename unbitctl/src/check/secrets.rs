//! Checks the secrets of a node by uwsgi.it's guide: local.ini, keys, certificates and vassal files
//! must not be readable by others, nor expired.
//!
//! openssl(1) reads the certificates: the check must use the library that the services use, which
//! uWSGI is built with.

use crate::command;
use crate::containers::vassals;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

const CHECK: &str = "secrets";
const LOCAL: &str = "/etc/uwsgi/local.ini";
const WHY_LOCAL: &str = "the services and daemons read from it the node's address, the API, and the key for the API";
const WHY_MODE: &str = "whoever can read it can pose as this node, or as a customer";
const WHY_CERTIFICATE: &str = "when it expires, clients or the API refuse this node";
/// The default certificate of the http routers.
const HTTPS: [(&str, Use); 2] =
    [("/etc/uwsgi/ssl/uwsgi.it.crt", Use::Certificate), ("/etc/uwsgi/ssl/uwsgi.it.key", Use::Key)];
/// Options of local.ini that name a file.
const NAMED: [(&str, Use); 5] = [
    ("api_client_cert_file", Use::Certificate),
    ("api_client_key_file", Use::Key),
    ("api_cert_file", Use::Certificate),
    ("api_ca_file", Use::Certificate),
    ("api_key_file", Use::Key),
];
/// Those without which nothing is asked of the API.
const NEEDED: [&str; 4] = ["public_ip", "api_domain", "api_client_cert_file", "api_client_key_file"];
const DAYS: u32 = 30;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Certificate,
    Key,
}

pub fn check(node: &RootFs) -> Vec<Finding> {
    let text = match node.read(LOCAL) {
        Ok(Some(text)) => text,
        Ok(None) => {
            let fix =
                format!("write {LOCAL} as the guide has it, then: chown root:www-data {LOCAL} && chmod 640 {LOCAL}");
            return vec![Finding::fail(CHECK, WHY_LOCAL, format!("there is no {LOCAL}"), fix)];
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return vec![Finding::not_applicable(CHECK, WHY_LOCAL, format!("{LOCAL}: root is needed to see"))];
        }
        Err(error) => return vec![Finding::fail(CHECK, WHY_LOCAL, error.to_string(), format!("cat {LOCAL}"))],
    };
    let mut findings: Vec<_> = judge_local(&text).into_iter().chain(judge_mode(node, LOCAL)).collect();
    let named = NAMED.iter().filter_map(|(option, what)| Some((value(&text, option)?.to_owned(), *what)));
    for (path, what) in HTTPS.iter().map(|(path, what)| ((*path).to_owned(), *what)).chain(named) {
        findings.extend(match node.has(&path) {
            false => Some(missing(node, &path, what)),
            true if what == Use::Key => judge_mode(node, &path),
            true => judge_certificate(node, &path),
        });
    }
    let open: Vec<_> =
        vassals(node).into_iter().filter(|file| is_readable(node, &file.path) && has_secret(&file.text)).collect();
    if let [first, others @ ..] = open.as_slice() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        let seen = format!("everybody can read {}{more}, with the customer's key in it", first.path);
        findings.push(Finding::fail(
            CHECK,
            WHY_MODE,
            seen,
            format!("chmod o-rwx {}", node.quoted(first.path.as_str())),
        ));
    }
    if findings.is_empty() {
        let seen = format!(
            "{LOCAL} and the files that it names exist, cannot be read by others, and do not expire within {DAYS} days"
        );
        findings.push(Finding::ok(CHECK, WHY_LOCAL, seen));
    }
    findings
}

/// The last value of an option in any section of local.ini.
fn value<'a>(text: &'a str, option: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#']));
    let mut values = lines.filter_map(|line| line.split_once('=')).filter(|(key, _)| key.trim() == option);
    values.next_back().map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}

/// Options that are missing, or as uwsgi.it has them for people to fill in: `<your_public_ip>`.
fn judge_local(text: &str) -> Option<Finding> {
    let is_set =
        |option: &&&str| value(text, option).is_some_and(|value| !(value.starts_with('<') && value.ends_with('>')));
    let missing: Vec<_> = NEEDED.iter().filter(|option| !is_set(option)).copied().collect();
    (!missing.is_empty()).then(|| {
        let seen = format!("{LOCAL} has no value for: {}", missing.join(" "));
        Finding::fail(CHECK, WHY_LOCAL, seen, format!("editor {LOCAL}"))
    })
}

fn missing(node: &RootFs, path: &str, what: Use) -> Finding {
    let word = if what == Use::Key { "key" } else { "certificate" };
    let fix = format!("put the {word} there: ls -l {}", node.quoted(path));
    Finding::fail(CHECK, WHY_LOCAL, format!("there is no {path}"), fix)
}

/// Root and www-data may read it, for the services that are not root any more; only root may write.
fn judge_mode(node: &RootFs, path: &str) -> Option<Finding> {
    let status = File::from(node.open(path).ok()?).metadata().ok()?;
    let mode = status.mode() & 0o7777;
    (mode & 0o027 != 0).then(|| {
        let real = node.quoted(path);
        let fix = format!("chown root:www-data {real} && chmod 640 {real}");
        Finding::fail(CHECK, WHY_MODE, format!("{path} has mode {mode:04o}"), fix)
    })
}

fn is_readable(node: &RootFs, path: &str) -> bool {
    node.open(path)
        .ok()
        .and_then(|file| File::from(file).metadata().ok())
        .is_some_and(|status| status.mode() & 0o004 != 0)
}

/// uwsgi.it's template writes each customer's RSA key into the file of the container, line by line.
fn has_secret(text: &str) -> bool {
    text.contains("PRIVATE KEY")
}

fn judge_certificate(node: &RootFs, path: &str) -> Option<Finding> {
    let answer =
        |arguments: &[&str]| command::run(node, "openssl", &[&["x509", "-noout", "-in", path], arguments].concat());
    let unknown = |cause: String| Some(Finding::not_applicable(CHECK, WHY_CERTIFICATE, format!("{path}: {cause}")));
    if !command::can_run_programs(node) {
        return unknown("root is needed to see".to_owned());
    }
    let end = match answer(&["-enddate"]) {
        Err(error) => return unknown(format!("{error:#}")),
        Ok(answer) => answer,
    };
    if !end.succeeded() {
        let seen = format!("{path} is not a certificate: {}", end.error_summary());
        let fix = format!("openssl x509 -noout -text -in {}", node.quoted(path));
        return Some(Finding::fail(CHECK, WHY_CERTIFICATE, seen, fix));
    }
    // `notAfter=Nov 29 16:00:00 2026 GMT`
    let end = end.out.trim().trim_start_matches("notAfter=").to_owned();
    let lasts = |days: u32| answer(&["-checkend", &(days * 86_400).to_string()]).is_ok_and(|answer| answer.succeeded());
    let (state, seen) = match (lasts(0), lasts(DAYS)) {
        (false, _) => (State::Fail, format!("{path} expired on {end}")),
        (true, false) => (State::Warn, format!("{path} expires on {end}")),
        (true, true) => return None,
    };
    let fix = format!("renew it: openssl x509 -noout -subject -issuer -enddate -in {}", node.quoted(path));
    Some(Finding::new(CHECK, state, WHY_CERTIFICATE, seen, Some(fix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_local_ini_must_say() {
        let good = "[uwsgi]\npublic_ip = 192.0.2.1\napi_domain=api.example.com\napi_client_cert_file = /c\napi_client_key_file = /k\n";
        assert!(judge_local(good).is_none());
        for (from, to, missing) in [
            ("public_ip = 192.0.2.1", "public_ip = <your_public_ip>", "public_ip"),
            ("public_ip = 192.0.2.1", ";public_ip = 192.0.2.1", "public_ip"),
            ("api_domain=api.example.com\n", "", "api_domain"),
            ("file = /k", "file =", "api_client_key_file"),
        ] {
            let finding = judge_local(&good.replace(from, to)).unwrap();
            assert_eq!(finding.seen, format!("/etc/uwsgi/local.ini has no value for: {missing}"), "{to}");
        }
        assert_eq!(value("a = 1\n[legion]\na = 2\n", "a"), Some("2"));
    }
}
