//! What must hold for any input of join's parsers. join/src/lib.rs includes this file as its module
//! `properties` for the fuzzer, so that parsers need not be public for it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::apparmor;
use crate::cgroups::{HierarchyMount, Membership, Version, parse_frozen, pids_in};
use crate::confinement::{bounding_set_and_no_new_privs, has_filter, limits};
use crate::mountinfo::{self, Mount};
use crate::options::Options;
use crate::proc::{Status, text_of};
use crate::refusal::Reason;
use crate::user_namespace::mapped;
use nix::sys::stat::{major, minor};

/// The words of a PAM line: what is accepted is what a plain reading of pam_unbit(8) accepts, it
/// can be written down and read again, and a refusal is one printable line.
pub fn pam_options(data: &[u8]) {
    let words: Vec<&[u8]> = data.split(|byte| b" \n\t".contains(byte)).filter(|word| !word.is_empty()).collect();
    let accepted = words.iter().all(|word| std::str::from_utf8(word).is_ok_and(is_an_option));
    match Options::parse(words) {
        Ok(options) => {
            assert!(accepted, "pam_unbit(8) has no such option");
            assert!((1..=60).contains(&options.timeout.as_secs()) && options.timeout.subsec_nanos() == 0);
            assert!((1..=1024).contains(&options.sessions));
            let written = written(&options);
            assert_eq!(Options::parse(written.split(' ').map(str::as_bytes)).unwrap(), options, "{written}");
        }
        Err(refusal) => {
            assert!(!accepted, "pam_unbit(8) has these options: {}", refusal.cause);
            assert_eq!(refusal.reason, Reason::Misconfigured);
            assert!(is_a_line(&refusal.cause) && refusal.cause.len() < 400, "{:?}", refusal.cause);
        }
    }
}

fn is_an_option(word: &str) -> bool {
    let number = |text: &str, most: u64| {
        let digits = !text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit());
        digits && (1..=most).contains(&text.trim_start_matches('0').parse().unwrap_or(u64::MAX))
    };
    let namespaces = |list: &str| {
        let names: Vec<_> = list.split(',').collect();
        let known = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];
        names.iter().all(|name| known.contains(name)) && names.contains(&"mnt") && names.contains(&"pid")
    };
    matches!(word, "debug" | "cgroup=required" | "cgroup=optional" | "join=now")
        || word.strip_prefix("timeout=").is_some_and(|text| number(text, 60))
        || word.strip_prefix("sessions=").is_some_and(|text| number(text, 1024))
        || word.strip_prefix("namespaces=").is_some_and(namespaces)
}

fn written(options: &Options) -> String {
    let names: Vec<_> = options.namespaces.iter().map(|kind| kind.name).collect();
    let mut words = vec![
        format!("timeout={}", options.timeout.as_secs()),
        format!("sessions={}", options.sessions),
        format!("namespaces={}", names.join(",")),
        format!("cgroup={}", if options.cgroup_required { "required" } else { "optional" }),
    ];
    words.extend(options.debug.then(|| "debug".to_owned()));
    words.extend(options.join_now.then(|| "join=now".to_owned()));
    words.join(" ")
}

/// /proc/PID/mountinfo: each field is what a byte by byte reading finds, and a mount that is
/// written down as the kernel does is read again.
pub fn mountinfo(data: &[u8]) {
    let text = text_of(data);
    for line in text.split('\n') {
        let Some(mount) = Mount::parse(line) else { continue };
        let (place, kind) = line.split_at(line.find(" - ").unwrap());
        let place: Vec<_> = place.split(' ').collect();
        let kind: Vec<_> = kind[3..].split(' ').collect();
        assert_eq!(mount.id.to_string(), place[0].trim_start_matches(['+', '0']).to_owned() + zero(place[0]));
        assert_eq!((mount.root, mount.point.clone()), (unescaped(place[3]), unescaped(place[4])), "{line}");
        assert_eq!((mount.options.as_str(), mount.filesystem.as_str()), (place[5], kind[0]));
        assert_eq!(mount.propagation, place[6..]);
        assert_eq!((mount.source.clone(), mount.super_options.as_str()), (unescaped(kind[1]), kind[2]));

        let read = Mount::parse(line).unwrap();
        let propagation: String = read.propagation.iter().map(|word| format!(" {word}")).collect();
        let (root, point, source) = (escaped(&read.root), escaped(&read.point), escaped(&read.source));
        let place = format!("{} 1 {}:{} {root} {point}", read.id, major(read.device), minor(read.device));
        let kind = format!("{} {source} {}", read.filesystem, read.super_options);
        let written = format!("{place} {}{propagation} - {kind}", read.options);
        assert_eq!(Mount::parse(&written), Some(read), "{written}");
    }
    let ids: Vec<u64> = text.lines().filter_map(|line| line.split(' ').next().unwrap().parse().ok()).collect();
    for id in ids.iter().copied().chain([0, 7]) {
        let line = format!("{id} ");
        assert_eq!(
            mountinfo::lists(text.as_bytes(), id).unwrap(),
            Some(text.split('\n').any(|any| any.starts_with(&line)))
        );
    }
}

/// The 0 that is left of a number of zeros.
fn zero(number: &str) -> &str {
    if number.trim_start_matches(['+', '0']).is_empty() { "0" } else { "" }
}

fn unescaped(field: &str) -> String {
    let letters: Vec<char> = field.chars().collect();
    let (mut text, mut at) = (String::new(), 0);
    while at < letters.len() {
        let digits = letters[at + 1..].iter().take(3).map_while(|letter| letter.to_digit(8)).collect::<Vec<_>>();
        let code = digits.iter().fold(0, |code, digit| code * 8 + digit);
        if letters[at] == '\\' && digits.len() == 3 && code < 256 {
            text.push(char::from_u32(code).unwrap());
            at += 4;
        } else {
            text.push(letters[at]);
            at += 1;
        }
    }
    text
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |text, letter| match letter {
        ' ' | '\t' | '\n' | '\\' => text + &format!("\\{:03o}", letter as u32),
        _ => text + &letter.to_string(),
    })
}

/// /proc/PID/cgroup, whose paths a container's root can choose to any bytes but a newline,
/// cgroup.procs and the files that say what is frozen. A path is the kernel's to the byte, or one
/// that no directory has; below a mount it is what a walk by components finds.
pub fn cgroups(data: &[u8]) {
    let text = text_of(data);
    let memberships = Membership::all_in(&text);
    let mut left = memberships.iter();
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    for line in &lines {
        let fields: Vec<&[u8]> = line.splitn(3, |byte| *byte == b':').collect();
        let [_, controllers, path] = fields[..] else { continue };
        let membership = left.next().expect("every line with three fields is a membership");
        let is_text = std::str::from_utf8(path).is_ok() && std::str::from_utf8(controllers).is_ok();
        if is_text {
            assert_eq!(membership.path.as_bytes(), path, "another cgroup's path");
            assert_eq!(membership.controllers.as_bytes(), controllers);
        } else {
            let shown = [membership.controllers.as_str(), &membership.path].concat();
            assert!(shown.contains('\0'), "a directory can have this name: {shown:?}");
        }
        let name = membership.name();
        assert!(is_a_line(&name) && !name.contains([' ', ';', '"']) && name.len() < 300, "{name}");
        assert_eq!(membership.version() == Version::Two, controllers.is_empty());
    }
    assert!(left.next().is_none(), "a membership of no line");

    // The paths, seen from mounts of each other's.
    for (root, seen) in memberships.iter().zip(memberships.iter().skip(1)).take(8) {
        let root = root.path.replace(' ', "_").replace('\\', "/").replace(['\r', '\n'], "_");
        let Some(mount) = Mount::parse(&format!("1 0 0:1 {root} /point rw - cgroup2 cgroup2 rw")) else { continue };
        let mount = HierarchyMount::of(mount).expect("version 2");
        let (top, path): (Vec<_>, Vec<_>) =
            (root.trim_end_matches('/').split('/').collect(), seen.path.split('/').collect());
        let expected = (!path.contains(&"..") && path.starts_with(&top))
            .then(|| path[top.len()..].join("/").trim_start_matches('/').to_owned());
        assert_eq!(mount.relative(seen).map(str::to_owned), expected, "{root} {seen:?}");
        assert_eq!(mount.shows(seen), expected.is_some() && seen.controllers.is_empty());
    }

    let pids: Vec<i32> = pids_in(&text).collect();
    assert!(pids.iter().all(|pid| *pid > 0) && pids.len() <= text.len());
    let written = pids.iter().map(|pid| format!("{pid}\n")).collect::<String>();
    assert!(pids_in(&written).eq(pids));
    let says = |line: &[u8]| line.starts_with(b"frozen 1");
    assert_eq!(parse_frozen(&text, Version::Two), lines.iter().any(|line| says(line)));
    assert_eq!(parse_frozen(&text, Version::One), lines.iter().any(|line| line.starts_with(b"F")));
}

/// /proc/PID/status, limits and attr/current: each value is that of the first line with its name,
/// or none.
pub fn process(data: &[u8]) {
    let text = text_of(data);
    let first = |key: &str| {
        let line = text.split('\n').find(|line| line.starts_with(&format!("{key}:")))?;
        Some(line[key.len() + 1..].trim())
    };
    for key in ["Uid", "NSpid", "PPid", "NoNewPrivs", "Seccomp", "Name"] {
        let values: Option<Vec<u32>> =
            first(key).and_then(|values| values.split_whitespace().map(|value| value.parse().ok()).collect());
        assert_eq!(Status::new(&text).numbers(key).ok(), values, "{key}");
    }
    let set = first("CapBnd").and_then(|value| u64::from_str_radix(value, 16).ok());
    assert_eq!(Status::new(&text).capabilities("CapBnd").ok(), set);
    if let Some((bounding_set, no_new_privs)) = bounding_set_and_no_new_privs(&text) {
        assert_eq!(Some(bounding_set), set);
        assert_eq!(no_new_privs, Status::new(&text).numbers("NoNewPrivs").unwrap() != [0]);
    }
    assert!(!has_filter(&text) || first("Seccomp").is_some());

    if let Some(all) = limits(&text) {
        assert_eq!(all.len(), 16, "all of getrlimit(2), or none");
        let is_there =
            |value: u64| text.contains(&value.to_string()) || value == u64::MAX && text.contains("unlimited");
        for limit in all {
            assert!(is_there(limit.soft) && is_there(limit.hard), "{limit:?}");
        }
    }

    if let Some(label) = apparmor::label(&text) {
        assert!(text.starts_with(label) && !label.is_empty() && label != "unconfined");
        let rest = text[label.len()..].trim_end_matches(['\n', '\0']);
        assert!(rest.is_empty() || rest.starts_with(" (") && rest.ends_with(')'), "{rest:?}");
    }
}

/// uid_map and gid_map: an id is mapped as a plain look at all lines finds, and to no number that
/// is none.
pub fn id_map(data: &[u8]) {
    let text = text_of(data);
    let extents: Vec<[u64; 3]> = text
        .split('\n')
        .filter_map(|line| {
            let numbers: Vec<u64> = line
                .split_whitespace()
                .take(3)
                .map(|word| word.parse::<u32>().map(u64::from))
                .collect::<Result<_, _>>()
                .ok()?;
            numbers.try_into().ok()
        })
        .collect();
    let edges = extents.iter().flat_map(|[first, _, count]| [*first, first + count, (first + count).saturating_sub(1)]);
    for inside in edges.take(300).chain([0, 1, 30_001, 65_534, u64::from(u32::MAX)]) {
        let Ok(id) = u32::try_from(inside) else { continue };
        let expected = extents.iter().find_map(|[first, outside, count]| {
            let id = (inside >= *first && inside < first + count).then(|| outside + (inside - first))?;
            (id < u64::from(u32::MAX)).then_some(id) // 4294967295 is -1, which setresuid(2) takes for "as it is"
        });
        assert_eq!(mapped(&text, id).map(u64::from), expected, "{inside} in {extents:?}");
    }
}

fn is_a_line(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
