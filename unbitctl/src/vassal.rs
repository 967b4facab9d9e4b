//! The file of a container that the Emperor reads (its vassal): made from examples/container.ini,
//! and the limits in it.

use anyhow::{Result, bail};
use shared::decimal;
use std::fmt;

/// The example itself, so that the two cannot differ.
pub const TEMPLATE: &str = include_str!("../../examples/container.ini");

/// What an operator may choose for a container; `None` keeps the present value.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Choice {
    /// In bytes.
    pub memory: Option<u64>,
    pub pids: Option<u64>,
    /// In microseconds of each 100000, as cgroups have it.
    pub cpu: Option<u64>,
    /// The name of a directory in /distros.
    pub distribution: Option<String>,
}

/// The same values as a vassal has them.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Settings {
    pub memory: Option<String>,
    pub pids: Option<String>,
    pub cpu: Option<String>,
    pub distribution: Option<String>,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory.as_deref().map(|text| text.parse().map_or_else(|_| text.to_owned(), size));
        let cpu = self.cpu.as_deref().map(|text| text.parse().map_or_else(|_| text.to_owned(), processors));
        let parts = [
            memory.map(|memory| format!("memory {memory}")),
            self.pids.as_ref().map(|pids| format!("pids {pids}")),
            cpu.map(|cpu| format!("cpus {cpu}")),
            self.distribution.as_ref().map(|name| format!("on /distros/{name}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// Reads the values of a vassal.
pub fn settings(text: &str) -> Settings {
    let value = |key: &str| text.lines().find_map(|line| placeholder(line, key)).map(str::to_owned);
    Settings {
        memory: value("memory-max"),
        pids: value("pids-max"),
        cpu: value("cpu-max"),
        distribution: text.lines().find_map(distribution).map(str::to_owned),
    }
}

/// The example, with these choices.
pub fn from_template(choice: &Choice) -> Result<String> {
    change(TEMPLATE, choice)
}

/// A file with other values, and otherwise as it is. Fails where it has no line to change.
pub fn change(text: &str, choice: &Choice) -> Result<String> {
    let mut text = text.to_owned();
    for (key, value) in [("memory-max", choice.memory), ("pids-max", choice.pids)] {
        if let Some(value) = value {
            text = set(&text, key, value).ok_or_else(|| {
                anyhow::anyhow!("it has no line set-placeholder = {key}=..., so its limit is set elsewhere")
            })?;
        }
    }
    if let Some(cpu) = choice.cpu {
        text = match set(&text, "cpu-max", cpu) {
            Some(text) => text,
            None => after(&text, "pids-max", &format!("set-placeholder = cpu-max={cpu}")).ok_or_else(|| {
                anyhow::anyhow!("it has no line set-placeholder = pids-max=..., so its limits are set elsewhere")
            })?,
        };
    }
    if let Some(name) = &choice.distribution {
        let Some(old) = settings(&text).distribution else {
            bail!("it has no line that mounts /distros/NAME on /ns, so its root directory is set elsewhere");
        };
        let (old, new) = (format!("/distros/{old}"), format!("/distros/{name}"));
        // The two lines that mount it, of which one is a comment: both are about /ns.
        text = lines(&text, |line| {
            let words = |separators: &[char]| line.split(separators).any(|word| word == old);
            if line.contains("mount:") && line.contains(" /ns ") && words(&[' ', '=', ':']) {
                line.replacen(&old, &new, 1)
            } else {
                line.to_owned()
            }
        });
    }
    Ok(text)
}

fn lines(text: &str, change: impl FnMut(&str) -> String) -> String {
    text.split('\n').map(change).collect::<Vec<_>>().join("\n")
}

/// The value in `set-placeholder = KEY=VALUE`.
fn placeholder<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.trim().strip_prefix("set-placeholder")?.trim_start().strip_prefix('=')?;
    Some(rest.trim_start().strip_prefix(key)?.strip_prefix('=')?.trim())
}

/// The distribution that a line mounts as the container's root.
fn distribution(line: &str) -> Option<&str> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words.as_slice() {
        [option, "=", "mount:none", source, "/ns", "bind"] if option.starts_with("hook-") => {
            source.strip_prefix("/distros/")
        }
        [option, "=", "mount:overlay", _, "/ns", _, options] if option.starts_with("hook-") => {
            options.split(',').find_map(|option| option.strip_prefix("lowerdir=/distros/"))?.split(':').next()
        }
        _ => None,
    }
    .filter(|name| !name.contains(['/', ':', '=', ','])) // separators of such lines
}

fn set(text: &str, key: &str, value: u64) -> Option<String> {
    text.lines().any(|line| placeholder(line, key).is_some()).then(|| {
        lines(text, |line| match placeholder(line, key) {
            Some(old) if old != value.to_string() => format!("set-placeholder = {key}={value}"),
            _ => line.to_owned(),
        })
    })
}

fn after(text: &str, key: &str, line: &str) -> Option<String> {
    let mut is_there = false;
    let text = lines(text, |other| {
        if !is_there && placeholder(other, key).is_some() {
            is_there = true;
            return format!("{other}\n{line}");
        }
        other.to_owned()
    });
    is_there.then_some(text)
}

const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// A size: `1G`, `512M`, or bytes.
pub fn size(bytes: u64) -> String {
    let unit = UNITS.into_iter().find(|(_, unit)| bytes >= *unit && bytes % unit == 0);
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// Reads a size, for an argument.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let letters = text.strip_prefix(digits).unwrap_or_default().to_ascii_uppercase();
    let unit = match letters.strip_suffix("IB").filter(|letter| !letter.is_empty()).unwrap_or(&letters) {
        "" => Some(1),
        letter => UNITS.into_iter().find(|(name, _)| *name == letter).map(|(_, unit)| unit),
    };
    let number = unit.and_then(|unit| decimal::<u64>(digits)?.checked_mul(unit));
    let bytes = number.filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "a size is needed, such as 512M, 1G or 1T (K, M, G and T are powers of 1024)".to_owned())
}

/// Reads a size of memory, for an argument. A container needs at least 32 MiB.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if bytes < 32 << 20 => Err("a container needs 32M at least".to_owned()),
        bytes if bytes > 1 << 60 => Err("no machine has that much".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Reads a number of processors with a fraction, for an argument: microseconds of each 100000.
pub fn parse_cpus(text: &str) -> Result<u64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let micros = (is_number(whole) && is_number(part) && part.len() <= 3 && whole.len() <= 5)
        .then(|| Some(whole.parse::<u64>().ok()? * 100_000 + format!("{part:0<3}").parse::<u64>().ok()? * 100))
        .flatten();
    match micros {
        // The kernel takes no less than a millisecond (min_cfs_quota_period).
        Some(micros @ 1_000..) => Ok(micros),
        _ => Err("a number of processors is needed, such as 1, 0.5 or 4; 0.01 at least".to_owned()),
    }
}

fn processors(micros: u64) -> String {
    let text = format!("{}.{:03}", micros / 100_000, micros % 100_000 / 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_it_is_the_example() {
        assert_eq!(from_template(&Choice::default()).unwrap(), TEMPLATE);
        let found = settings(TEMPLATE);
        assert_eq!(found.to_string(), "memory 1G, pids 1000, on /distros/base");
    }

    #[test]
    fn a_choice_changes_its_lines_and_no_others() {
        let choice = Choice {
            memory: Some(2 << 30),
            pids: Some(77),
            cpu: Some(150_000),
            distribution: Some("trixie".to_owned()),
        };
        let text = from_template(&choice).unwrap();
        assert_eq!(settings(&text).to_string(), "memory 2G, pids 77, cpus 1.5, on /distros/trixie");
        let changed: Vec<_> = text.lines().filter(|line| !TEMPLATE.lines().any(|other| other == *line)).collect();
        assert_eq!(
            changed,
            [
                "set-placeholder = memory-max=2147483648",
                "set-placeholder = pids-max=77",
                "set-placeholder = cpu-max=150000",
                ";hook-pre-jail = mount:overlay none /ns nosuid,nodev,ro lowerdir=/distros/trixie:/ns",
                "hook-pre-jail = mount:none /distros/trixie /ns bind",
            ]
        );
        assert_eq!(change(&text, &choice).unwrap(), text, "twice is once");
        let back = Choice { memory: Some(1 << 30), pids: Some(1000), distribution: Some("base".to_owned()), cpu: None };
        let back = change(&text, &back).unwrap();
        assert_eq!(back.replace("set-placeholder = cpu-max=150000\n", ""), TEMPLATE);
    }

    #[test]
    fn what_an_operator_wrote_stays_and_is_changed_only_where_it_can_be() {
        let own = "[uwsgi]\n set-placeholder=memory-max=5\nuid = %n\nhook-pre-jail = mount:none /distros/a b /ns bind";
        let choice = |memory, pids| Choice { memory, pids, ..Choice::default() };
        assert_eq!(change(own, &choice(None, None)).unwrap(), own);
        assert_eq!(change(own, &choice(Some(5), None)).unwrap(), own);
        assert!(change(own, &choice(Some(6), None)).unwrap().contains("\nset-placeholder = memory-max=6\nuid"));
        assert!(change(own, &choice(None, Some(6))).is_err());
        assert!(change(own, &Choice { cpu: Some(5000), ..Choice::default() }).is_err());
        assert!(change(own, &Choice { distribution: Some("c".to_owned()), ..Choice::default() }).is_err());
        let overlay = "hook-pre-jail = mount:overlay none /ns nosuid,nodev,ro lowerdir=/distros/old:/ns\n";
        let moved = change(overlay, &Choice { distribution: Some("new".to_owned()), ..Choice::default() }).unwrap();
        assert_eq!(moved, overlay.replace("old", "new"));
    }

    #[test]
    fn sizes_and_processors_are_read_as_they_are_shown() {
        for (text, bytes) in [("1G", 1 << 30), ("512M", 512 << 20), ("1t", 1 << 40), ("2GiB", 2 << 30), ("4096", 4096)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(parse_size(&size(bytes)), Ok(bytes), "{text}");
        }
        for text in ["", "0", "G", "-1", "1.5G", "1X", "1G 2", "1GB", "1iB", "99999999999T", "0x10", "٣"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_memory("31M").is_err() && parse_memory("9999999T").is_err());
        for (text, micros) in [("1", 100_000), ("0.5", 50_000), ("2.125", 212_500), ("0.01", 1_000), ("16", 1_600_000)]
        {
            assert_eq!(parse_cpus(text), Ok(micros), "{text}");
            assert_eq!(processors(micros), text);
        }
        for text in ["", "0", "0.009", ".5", "1.", "1.0001", "-1", "1e3", "999999", "two"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }
}
