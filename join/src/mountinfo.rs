//! Parses /proc/PID/mountinfo, proc_pid_mountinfo(5).
//!
//! The caller opens the file, except for [`device_of`]. Nothing here opens what is mounted.

use crate::proc;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
    /// Where mounts below it spread to or come from: `shared:10`, `master:2`; nothing for a private
    /// mount.
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

/// The path of the device that has a directory's file system; `None` if the file system is on no
/// device.
pub fn device_of(directory: impl AsRef<Path>) -> io::Result<Option<String>> {
    let device = fs::metadata(directory)?.dev();
    Ok(source(&fs::read_to_string("/proc/self/mountinfo")?, device).filter(|source| source.starts_with('/')))
}

fn source(mountinfo: &str, device: u64) -> Option<String> {
    mountinfo.lines().filter_map(Mount::parse).find(|mount| mount.device == device).map(|mount| mount.source)
}

/// How much of a mountinfo is read: some 25,000 mounts with paths of ordinary length. A tenant that
/// may mount can make the file larger than the node's memory.
pub const MAX_BYTES: u64 = 4 << 20;

/// Whether a mountinfo lists a mount with this id; `None` if it does not within [`MAX_BYTES`], but
/// goes on. The file is read in small parts.
pub fn lists(mountinfo: impl Read, id: u64) -> io::Result<Option<bool>> {
    let wanted = format!("{id} ").into_bytes();
    let mut left = BufReader::with_capacity(16 << 10, mountinfo.take(MAX_BYTES));
    // How many bytes of `wanted` the line matches so far; `None` once it differs.
    let mut same = Some(0);
    loop {
        let part = left.fill_buf()?;
        if part.is_empty() {
            return Ok((left.get_ref().limit() > 0).then_some(false));
        }
        for byte in part {
            same = match same {
                _ if *byte == b'\n' => Some(0),
                Some(place) if wanted.get(place) == Some(byte) => Some(place + 1),
                _ => None,
            };
            if same == Some(wanted.len()) {
                return Ok(Some(true));
            }
        }
        let length = part.len();
        left.consume(length);
    }
}

/// The mount with this id, if it is within [`MAX_BYTES`].
pub fn find(mountinfo: impl Read, id: u64) -> io::Result<Option<Mount>> {
    let mut text = Vec::new();
    mountinfo.take(MAX_BYTES).read_to_end(&mut text)?;
    let wanted = format!("{id} ").into_bytes();
    let line = text.split(|byte| *byte == b'\n').find(|line| line.starts_with(&wanted));
    Ok(line.and_then(|line| Mount::parse(&proc::text_of(line))))
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
    fn a_mount_is_found_by_its_number_in_as_much_as_is_looked_at() {
        let text =
            "27 1 0:3 / / rw - tmpfs none rw\n127 27 0:4 / /27 rw - tmpfs 28 rw\n31 27 0:5 / /p rw - tmpfs none rw";
        let found = |id| lists(text.as_bytes(), id).unwrap();
        assert_eq!([27, 127, 31].map(found), [Some(true); 3]);
        assert_eq!([1, 28, 12, 7].map(found), [Some(false); 4]);
        assert_eq!(lists(&b""[..], 27).unwrap(), Some(false));
        // Lines without end, and one after the part that is looked at.
        assert_eq!(lists(std::io::repeat(b' '), 27).unwrap(), None);
        assert_eq!(lists(std::io::repeat(b'7'), 7).unwrap(), None);
        let long = vec![b'x'; usize::try_from(MAX_BYTES).unwrap()];
        assert_eq!(lists(long.as_slice().chain(&b"\n27 1 0:3 / / rw - tmpfs none rw"[..]), 27).unwrap(), None);
    }

    #[test]
    fn a_mount_is_found_with_all_that_is_said_of_it() {
        let text = "27 1 0:3 / / rw - tmpfs none rw\n127 27 0:4 / /\u{e9} rw - devpts none rw\n31 27 0:5";
        let filesystem = |id| find(text.as_bytes(), id).unwrap().map(|mount| mount.filesystem);
        assert_eq!([27, 127].map(filesystem), ["tmpfs", "devpts"].map(|name| Some(name.to_owned())));
        assert_eq!([0, 1, 12, 31].map(filesystem), [const { None }; 4]);
        assert!(find(std::io::repeat(b' '), 27).unwrap().is_none());
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

    #[test]
    fn the_device_is_found_by_its_number() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:17 / /containers rw shared:1 - xfs /dev/sdb1 rw,usrquota\nodd\n";
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 17)), Some("/dev/sdb1".to_owned()));
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 2)), None);
    }
}
