//! What must hold for any input of unbitctl's parsers. unbitctl/src/main.rs includes this file as
//! its module `properties` for the fuzzer, so that parsers need not be public for it.
//!
//! An input that is several files has a line `==> NAME <==` before each, as head(1) prints them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use crate::check::pam::stack::{self, Action, Control, Kind};
use crate::check::sshd::{self, EffectiveConfig, files};
use crate::check::{accounts, container, nsswitch, subids, vassals};
use crate::firewall::list::{Addresses, path, public_ip};
use crate::firewall::nft;
use crate::firewall::values::{Interface, Network, PortRange, Services};
use crate::list::processes::Process;
use crate::names::Account;
use crate::report::State;
use crate::vassal::{self, Choice};
use crate::{command_line, keys};
use join::proc::{START, stat_field};
use shared::ContainerUid;
use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::str::FromStr;

/// The first file, and all of them by name.
fn sections(data: &[u8], first: &str) -> BTreeMap<String, String> {
    let (mut name, mut files) = (first.to_owned(), BTreeMap::new());
    for line in String::from_utf8_lossy(data).split_inclusive('\n') {
        let head = line.trim_end().strip_prefix("==> ").and_then(|rest| rest.strip_suffix(" <=="));
        match head {
            Some(other) => other.clone_into(&mut name),
            None => files.entry(name.clone()).or_insert_with(String::new).push_str(line),
        }
    }
    files
}

/// /proc/PID/status and stat, in which a tenant chooses the name.
pub fn process(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(process) = Process::parse(4242, &text) {
        let line = |key: &str| text.split('\n').find_map(|line| line.strip_prefix(key)).unwrap().trim();
        assert!(!line("State:").starts_with(['Z', 'X']), "it has ended");
        assert_eq!(line("PPid:").split_whitespace().next().unwrap().parse(), Ok(process.parent));
    }
    // The second field of stat is in parentheses, and may hold some itself.
    let fields = text.rfind(')').map(|end| text[end + 1..].split_whitespace().collect::<Vec<_>>());
    assert_eq!(stat_field::<u64>(&text, START), fields.and_then(|fields| fields.get(19)?.parse().ok()));
}

/// A PAM service as libpam's _pam_parse_conf_file() reads it (pam_handlers.c, pam_misc.c), which is
/// written here a second time.
pub fn pam_stack(data: &[u8]) {
    let files = sections(data, "sshd");
    let entries = stack::flatten(&|name| files.get(name).cloned(), "sshd");
    let (mut expected, mut left) = (Vec::new(), stack::FILES);
    libpam(&files, "sshd", None, &mut left, 0, &mut expected);
    if left > 0 {
        let entry = |entry: &stack::Entry| Line {
            kind: entry.kind,
            silent: entry.silent,
            control: entry.control.clone(),
            words: [std::slice::from_ref(&entry.module), entry.arguments.as_slice()].concat(),
        };
        assert_eq!(entries.iter().map(entry).collect::<Vec<_>>(), expected);
    }
    let length = files.get("sshd").map_or(0, |text| text.split('\n').count());
    for entry in &entries {
        assert!(entry.top <= entry.bottom && entry.bottom < length, "{} to {} of {length}", entry.top, entry.bottom);
        assert!(files.contains_key(&entry.file), "{}", entry.place());
        assert!(!entry.name().contains('/'));
        assert!(entry.control.all().iter().all(|action| *action != Action::Jump(0)), "libpam knows no jump of 0");
    }
}

#[derive(PartialEq, Debug)]
struct Line {
    kind: Kind,
    silent: bool,
    control: Control,
    words: Vec<String>,
}

/// The lines that name a module; those that libpam cannot read, and which fail whatever comes, are
/// left out.
fn libpam(
    files: &BTreeMap<String, String>,
    file: &str,
    only: Option<Kind>,
    left: &mut usize,
    depth: usize,
    found: &mut Vec<Line>,
) {
    if *left == 0 || depth == 16 {
        return;
    }
    *left -= 1;
    let Some(text) = files.get(file) else { return };
    let mut joined = String::new();
    for line in text.split('\n') {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue; // also between two parts of one line
        }
        if !joined.is_empty() {
            joined.push(' ');
        }
        if let Some((body, _)) = line.split_once('#') {
            joined.push_str(body);
        } else if let Some(body) = line.trim_end_matches([' ', '\t']).strip_suffix('\\') {
            joined.push_str(body);
            continue;
        } else {
            joined.push_str(line);
        }
        libpam_line(files, &tokens(&std::mem::take(&mut joined)), only, left, depth, found);
    }
    // A file that ends in a backslash is an error to libpam, and every login fails; what is there
    // is still what it says.
    libpam_line(files, &tokens(&joined), only, left, depth, found);
}

fn libpam_line(
    files: &BTreeMap<String, String>,
    tokens: &[String],
    only: Option<Kind>,
    left: &mut usize,
    depth: usize,
    found: &mut Vec<Line>,
) {
    let name = |file: &String| file.trim_start_matches("/etc/pam.d/").to_owned();
    match tokens {
        [at, file, ..] if at == "@include" => libpam(files, &name(file), only, left, depth + 1, found),
        [kind, control, module, arguments @ ..] => {
            let bare = kind.strip_prefix('-').unwrap_or(kind);
            let kinds = [
                ("auth", Kind::Auth),
                ("account", Kind::Account),
                ("session", Kind::Session),
                ("password", Kind::Password),
            ];
            let Some((_, read)) = kinds.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(bare)) else { return };
            if only.is_some_and(|only| only != read) {
                return;
            }
            if ["include", "substack"].iter().any(|word| word.eq_ignore_ascii_case(control)) {
                return libpam(files, &name(module), Some(read), left, depth + 1, found);
            }
            pam_control(control);
            let words = [std::slice::from_ref(module), arguments].concat();
            found.push(Line { kind: read, silent: bare.len() < kind.len(), control: Control::parse(control), words });
        }
        _ => {}
    }
}

/// Words between blanks, tabs and newlines; one that begins with a bracket goes on to the next one
/// that has no backslash before it.
fn tokens(line: &str) -> Vec<String> {
    let mut letters = line.chars().peekable();
    let (mut tokens, is_blank) = (Vec::new(), |letter: &char| matches!(letter, ' ' | '\t' | '\n'));
    loop {
        while letters.next_if(is_blank).is_some() {}
        let mut token = String::new();
        match letters.peek() {
            None => return tokens,
            Some('[') => {
                letters.next();
                while let Some(letter) = letters.next_if(|letter| *letter != ']') {
                    match letters.next_if(|next| letter == '\\' && *next == ']') {
                        Some(bracket) => token.push(bracket),
                        None => token.push(letter),
                    }
                }
                letters.next();
            }
            Some(_) => {
                while let Some(letter) = letters.next_if(|letter| !is_blank(letter)) {
                    token.push(letter);
                }
            }
        }
        tokens.push(token);
    }
}

/// The control values of a line, against _pam_parse_control() written down as a table: what it
/// cannot read is a failure, whatever comes.
fn pam_control(token: &str) {
    let control = Control::parse(token);
    let words = token.to_ascii_lowercase();
    let known = match words.as_str() {
        "required" => Some([Action::Ok, Action::Ok, Action::Ignore, Action::Bad]),
        "requisite" => Some([Action::Ok, Action::Ok, Action::Ignore, Action::Die]),
        "sufficient" => Some([Action::Done, Action::Done, Action::Ignore, Action::Ignore]),
        "optional" => Some([Action::Ok, Action::Ok, Action::Ignore, Action::Ignore]),
        _ => None,
    };
    let answers = ["success", "new_authtok_reqd", "ignore", "auth_err"];
    if let Some(actions) = known {
        assert_eq!(answers.map(|answer| control.action(answer)), actions, "{token}");
        return;
    }
    let written: Vec<String> = answers.iter().map(|answer| format!("{answer}={}", control.action(answer))).collect();
    let again = Control::parse(&written.join(" "));
    assert_eq!(answers.map(|answer| again.action(answer)), answers.map(|answer| control.action(answer)), "{written:?}");
    let is_all_pairs = token.split_whitespace().all(|word| {
        word.split_once('=').is_some_and(|(answer, action)| {
            (answers.contains(&answer) || answer == "default")
                && ["ok", "done", "bad", "die", "ignore", "reset"].contains(&action)
        })
    });
    if is_all_pairs {
        for answer in answers {
            let last = token.split_whitespace().filter_map(|word| word.strip_prefix(&format!("{answer}="))).next_back();
            let default = token.split_whitespace().find_map(|word| word.strip_prefix("default="));
            assert_eq!(control.action(answer).to_string(), last.or(default).unwrap_or("bad"), "{answer} in {token}");
        }
    }
}

/// A vassal file of the Emperor's: what `create` changes is what it then reads, and nothing else;
/// what `check` follows stays bounded.
pub fn vassal(data: &[u8]) {
    let files = sections(data, "30001.ini");
    let text = files.get("30001.ini").cloned().unwrap_or_default();
    let before = vassal::settings(&text);
    let _ = before.to_string();
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let choice = Choice {
        memory: Some(64 << 20),
        pids: Some(77),
        cpu: number(before.cpu.clone()).or(Some(50_000)),
        distribution: before.distribution.as_ref().map(|_| "other".to_owned()),
    };
    if let Ok(changed) = vassal::change(&text, &choice) {
        let after = vassal::settings(&changed);
        assert_eq!((number(after.memory), number(after.pids)), (choice.memory, choice.pids), "{changed}");
        assert_eq!(number(after.cpu), choice.cpu, "{changed}");
        assert_eq!(after.distribution, choice.distribution, "{changed}");
        assert_eq!(vassal::change(&changed, &choice).unwrap(), changed, "a second time");
        let others = |text: &str| -> Vec<String> {
            let ours = |line: &&str| line.contains("set-placeholder") || line.contains("/distros/");
            text.split('\n').filter(|line| !ours(line)).map(str::to_owned).collect()
        };
        assert_eq!(others(&changed), others(&text));
    }

    let faults = vassals::start::faults("30001.ini", &|name| files.get(name).cloned(), &text);
    let lines: usize = files.values().map(|text| text.split('\n').count()).sum();
    for fault in &faults {
        assert!(files.contains_key(&fault.file) && (1..=lines).contains(&fault.line), "{fault:?}");
        assert!(fault.text.len() <= 131 && is_a_line(&fault.text), "{fault:?}");
    }
}

/// `sshd -T`, sshd_config(5) with what it includes, and the patterns in it.
pub fn sshd(data: &[u8]) {
    let files = sections(data, "/etc/ssh/sshd_config");
    let text = files.values().next().cloned().unwrap_or_default();
    let config = EffectiveConfig::parse(&text);
    for line in text.lines() {
        let (keyword, value) = line.split_at(line.find(' ').unwrap_or(line.len()));
        assert!(config.each(keyword).iter().any(|other| other == value.trim()), "{line:?}");
        assert!(config.value(keyword).contains(value.trim()));
    }
    let _ = (config.addresses(), config.asks_pam(), config.forced_command());

    let list = |directory: &str| {
        let below = |name: &String| name.strip_prefix(directory)?.strip_prefix('/').map(str::to_owned);
        files.keys().filter_map(below).collect()
    };
    let found = files::directives(&|name| files.get(name).cloned(), &list, "/etc/ssh/sshd_config");
    for directive in &found {
        let line = files[&directive.file].lines().nth(directive.line - 1).expect("the line that it names");
        assert!(line.contains(&directive.keyword) && line.contains(&directive.value), "{directive:?}");
        assert!(!directive.keyword.is_empty() && !directive.keyword.starts_with('#'));
    }

    let settings = [("UsePAM", "yes".to_owned()), ("MaxSessions", "10".to_owned())];
    let text = text.replace('\r', ""); // of which the first time takes one from the end of a line
    let new = sshd::with_lines(&text, &settings);
    assert_eq!(sshd::with_lines(&new, &settings), new, "a second time");
    for (keyword, value) in &settings {
        let line = format!("{keyword} {value}");
        assert_eq!(new.lines().filter(|other| *other == line).count(), 1, "{new}");
    }

    let mut words = text.split([' ', '\n']);
    let (pattern, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if pattern.len() * name.len() < 1 << 16 {
        assert_eq!(sshd::matches(pattern, name), is_like(pattern, name), "{pattern} {name}");
    }
}

/// Whether a text is like a pattern, by a table of how much of one can be how much of the other.
fn is_like(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut fits: Vec<bool> = (0..=text.len()).map(|length| length == 0).collect();
    for letter in pattern.chars() {
        let mut next = vec![letter == '*' && fits[0]];
        for (at, other) in text.iter().enumerate() {
            next.push(match letter {
                '*' => next[at] || fits[at + 1],
                '?' => fits[at],
                _ => fits[at] && letter == *other,
            });
        }
        fits = next;
    }
    fits[text.len()]
}

/// nsswitch.conf: the words of each line are where it says, and what set-up makes of a file is
/// well, and stays as it is the next time.
pub fn nsswitch(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for database in ["passwd", "group", "shadow", "hosts"] {
        for line in nsswitch::lines(&text, database) {
            let mut end = 0;
            for service in &line.services {
                assert!(end <= service.name_at.start && service.name_at.end <= service.end && service.end <= line.end);
                assert_eq!(&text[service.name_at.clone()], service.name);
                assert!(text[service.name_at.end..service.end].ends_with(service.actions));
                assert!(
                    !service.name.is_empty() && !service.name.contains(['[', ' ', '\t', '#', '\n']),
                    "{}",
                    service.name
                );
                end = service.end;
            }
            assert!(!text[..line.end].ends_with('\n'));
        }
        // Brackets that glibc cannot read either are for people to fix: those that nothing closes,
        // and those behind no service.
        let is_odd = |line: &nsswitch::Line<'_>| {
            let line = &text[line.start..line.end];
            line.rfind('[') > line.rfind(']') || line.trim_start().starts_with('[')
        };
        if nsswitch::lines(&text, database).iter().any(is_odd) {
            continue;
        }
        let new = nsswitch::fixed(&text, database);
        if let Some(fault) = nsswitch::fault(&new, database) {
            assert!(fault.state != State::Fail, "{database} after set-up: {} in {new:?}", fault.seen);
        }
        assert_eq!(nsswitch::fixed(&new, database), new, "a second time");
        let others = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.split(':').next().unwrap_or_default().trim() != database);
            lines.map(|line| line.trim_end_matches('\r').to_owned()).collect()
        };
        assert_eq!(others(&new), others(&text), "lines of other databases");
    }
}

/// A list of nodes: each line is an address, or named with a reason that can be shown; what is
/// taken can be another node's, and is read again.
pub fn node_list(data: &[u8]) {
    let containers: Network = "10.0.0.0/8".parse().unwrap();
    let (addresses, bad) = Addresses::parse(data, &containers);
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let bad_lines: Vec<usize> = bad.iter().map(|(line, _)| *line).collect();
    for (line, number) in lines.iter().zip(1..) {
        let line = String::from_utf8_lossy(line);
        let word = line.split('#').next().unwrap().trim();
        let is_taken = word.parse().is_ok_and(|address| match address {
            IpAddr::V4(address) => addresses.ipv4.contains(&address),
            IpAddr::V6(address) => addresses.ipv6.contains(&address),
        });
        assert_eq!(is_taken || word.is_empty(), !bad_lines.contains(&number), "{word:?}");
    }
    for (line, reason) in &bad {
        assert!(is_a_line(reason) && reason.len() < 300, "line {line}: {reason:?}");
    }
    for address in &addresses.ipv4 {
        assert!(
            address.octets()[0] != 10 && address.octets()[0] != 127 && address.octets()[0] < 224
                || address.octets()[0] >= 240,
            "{address}"
        );
        assert!(!address.is_unspecified() && !address.is_broadcast());
    }
    for address in &addresses.ipv6 {
        let first = address.segments()[0];
        assert!(
            address.to_ipv4_mapped().is_none() && first & 0xffc0 != 0xfe80 && first & 0xff00 != 0xff00,
            "{address}"
        );
        assert!(address.to_bits() > 1, "{address}");
    }
    let ipv4 = addresses.ipv4.iter().map(|address| format!("{address}\n"));
    let written: String = ipv4.chain(addresses.ipv6.iter().map(|address| format!("{address}\n"))).collect();
    assert_eq!(Addresses::parse(written.as_bytes(), &containers), (addresses, Vec::new()));
    let _ = nft::Table::parse(&String::from_utf8_lossy(data));
}

/// The arguments of commands: what is taken can be shown and taken again, and a refusal can be
/// shown.
pub fn arguments(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    there_and_back::<PortRange>(text);
    there_and_back::<Interface>(text);
    there_and_back::<Services>(text);
    if let Some(network) = there_and_back::<Network>(text) {
        let (base, length) = text.split_once('/').unwrap();
        let (base, bits) = (base.parse::<std::net::Ipv4Addr>().unwrap().to_bits(), 32 - length.parse::<u32>().unwrap());
        for (address, holds) in
            [(u64::from(base), true), (u64::from(base) + (1 << bits) - 1, true), (u64::from(base) + (1 << bits), false)]
        {
            let Ok(address) = u32::try_from(address) else { continue };
            assert_eq!(network.holds(address.into()), holds, "{network}");
        }
    }

    let size = vassal::parse_size(text);
    assert_eq!(size.clone().ok(), plain_size(text), "{text}");
    if let Ok(bytes) = size {
        assert_eq!(vassal::parse_size(&vassal::size(bytes)), Ok(bytes));
        assert_eq!(vassal::parse_memory(text).is_ok(), ((32 << 20)..=(1 << 60)).contains(&bytes));
    }
    if let Ok(micros) = vassal::parse_cpus(text) {
        assert!(micros >= 1_000 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{text}");
        let processors = text.parse::<f64>().unwrap();
        assert!((processors * 100_000.0 - micros as f64).abs() < 1.0, "{text} is {micros}");
    }

    assert_eq!(command_line::container(text).ok(), ContainerUid::parse(data));
    match Account::parse(text) {
        Ok(account) => assert_eq!(account.to_string(), text),
        Err(reason) => assert!(is_a_line(&reason) && reason.len() < 200, "{reason:?}"),
    }
    if let Ok(address) = public_ip(text) {
        assert!(!address.is_loopback() && !address.is_unspecified() && !address.is_multicast());
        assert_eq!(public_ip(&address.to_string()), Ok(address));
    }
    if let Ok(path) = path(text) {
        assert!(path.starts_with('/') && path.len() <= 100 && !path.contains(['"', '\n', '\0']), "{path:?}");
        assert_eq!(crate::firewall::list::path(&path), Ok(path));
    }
}

fn plain_size(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let end = upper.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(upper.len());
    let (digits, unit) = upper.split_at(end);
    let shift = match unit {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

fn there_and_back<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            assert!(is_a_line(&written), "{written:?}");
            assert_eq!(written.parse::<T>().ok().as_ref(), Some(&value));
            Some(value)
        }
        Err(reason) => {
            assert!(is_a_line(&reason.to_string()) && reason.to_string().len() < 300, "{reason}");
            None
        }
    }
}

/// passwd(5), subuid(5) and a tenant's authorized_keys(5).
pub fn accounts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let is_container = |uid: ContainerUid| uid.get() % 2 == 1;
    let findings = accounts::judge(&text, &is_container);
    for finding in &findings {
        assert!(is_a_line(&finding.seen) && finding.seen.len() < 400, "{}", finding.seen);
    }
    let mut wrong = 0;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let uid = fields.get(2).and_then(|uid| uid.parse::<u32>().ok());
        let is_containers = uid.and_then(ContainerUid::new).is_some_and(is_container);
        wrong += usize::from(uid.is_some() && (is_containers || ContainerUid::parse(fields[0].as_bytes()).is_some()));

        if let Some((name, range)) = subids::range(line) {
            assert_eq!((fields.len(), fields[0]), (3, name));
            assert_eq!(fields[1].parse(), Ok(*range.start()));
            assert_eq!(fields[2].parse::<u64>().unwrap() - 1, range.end() - range.start());
        }
        if let Some((kind, blob)) = keys::identity(line) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.windows(2).position(|pair| pair == [kind, blob]);
            assert!(at.is_some() && blob.starts_with("AAAA"), "{line}");
            assert!(line.trim_start().starts_with('#') || container::has_key(data), "{line}");
        }
    }
    assert_eq!(findings.len(), wrong, "{text}");
}

fn is_a_line(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
