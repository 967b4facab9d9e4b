//! What is mounted where, as the kernel tells it.
//!
//! It parses text. Nothing here opens what is mounted.

/// A line of /proc/PID/mountinfo, see proc_pid_mountinfo(5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The number of the mount, as in a descriptor's fdinfo.
    pub id: u64,
    /// The file system's device number.
    pub device: u64,
    /// The part of the file system that is seen at the mount point.
    pub root: String,
    /// Where it is mounted.
    pub point: String,
    /// The options of this mount: `rw,nosuid`.
    pub options: String,
    /// Where mounts below it spread to or come from: `shared:10`, `master:2`; nothing for a private mount.
    pub propagation: Vec<String>,
    /// The file system's type.
    pub filesystem: String,
    /// What is mounted: a device, or any word.
    pub source: String,
    /// The options of the file system: `rw,memory`.
    pub super_options: String,
}

impl Mount {
    /// Reads one line.
    pub fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' '), kind.split(' '));
        let id = place.next()?.parse().ok()?;
        let (major, minor) = place.nth(1)?.split_once(':')?;
        Some(Self {
            id,
            device: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
            root: unescape(place.next()?),
            point: unescape(place.next()?),
            options: place.next()?.to_owned(),
            propagation: place.map(str::to_owned).collect(),
            filesystem: kind.next()?.to_owned(),
            source: unescape(kind.next()?),
            super_options: kind.next()?.to_owned(),
        })
    }
}

/// The numbers of the mounts in a whole file, without the rest of each line.
pub fn ids(mountinfo: &str) -> impl Iterator<Item = u64> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok())
}

/// mountinfo writes blank, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let digits = after.get(..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit())); // and no sign
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).map(char::from);
        match code {
            Some(code) => {
                text.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read() {
        let line = "27 1 254:3 /part /mnt/a\\040b rw,relatime shared:1 master:2 - ext4 /dev/my\\134disk rw,discard";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.device), (27, nix::sys::stat::makedev(254, 3)));
        assert_eq!(
            (mount.root.as_str(), mount.point.as_str(), mount.options.as_str()),
            ("/part", "/mnt/a b", "rw,relatime")
        );
        assert_eq!(mount.propagation, ["shared:1", "master:2"]);
        assert_eq!((mount.filesystem.as_str(), mount.source.as_str()), ("ext4", "/dev/my\\disk"));
        assert_eq!(mount.super_options, "rw,discard");
        assert!(Mount::parse("27 1 0:3 / / rw - tmpfs none rw").unwrap().propagation.is_empty());
    }

    #[test]
    fn odd_lines_are_no_mounts() {
        for line in ["", " - ", "1 2 3", "34 30 x:y / /p rw - cgroup cgroup rw", "34 30 0:29 - cgroup cgroup rw"] {
            assert!(Mount::parse(line).is_none(), "{line}");
        }
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("a\\0é"), "a\\0é");
        assert_eq!(unescape("a\\+12"), "a\\+12");
    }
}
