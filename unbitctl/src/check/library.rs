//! Checks our libraries: each is where it is looked for, loads without an error, and is the one
//! that is loaded. nss-unbit and pam-unbit in C have the same file names.

use crate::command;
use crate::report::Finding;
use crate::rootfs::RootFs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// The file that glibc loads for the service `unbit`.
pub const NSS_MODULE: &str = "libnss_unbit.so.2";

/// Whether a library of ours is there, and its own dynamic linker can load it.
pub fn check(node: &RootFs, check: &'static str, why: &'static str, path: &str, fix: String) -> Finding {
    if !node.has(path) {
        return Finding::fail(check, why, format!("there is no {path}"), fix);
    }
    if !command::can_run_programs(node) {
        return Finding::not_applicable(check, why, format!("{path}: root is needed to see whether it can be loaded"));
    }
    match command::cannot_load(node, path) {
        Ok(None) if !is_ours(node, path) => {
            Finding::fail(check, why, format!("{path} is not unbit's: it is {}", whose(path)), fix)
        }
        Ok(None) => Finding::ok(check, why, format!("{path} can be loaded")),
        Ok(Some(complaint)) => Finding::fail(check, why, format!("{path} cannot be loaded: {complaint}"), fix),
        Err(error) => Finding::not_applicable(check, why, format!("{path} cannot be tried: {error:#}")),
    }
}

/// What only ours have: a name that each must export.
const MARKS: [(&str, &[u8]); 2] =
    [("libnss_unbit", b"_nss_unbit_initgroups_dyn\0"), ("pam_unbit", b"pam_sm_acct_mgmt\0")];

/// Whether a library is ours, and not an original in C. What cannot be read, and what is no library
/// of either name, counts as ours.
pub fn is_ours(node: &RootFs, path: &str) -> bool {
    let (Some((_, mark)), Ok(bytes)) = (MARKS.iter().find(|(name, _)| path.contains(name)), node.read_bytes(path))
    else {
        return true;
    };
    bytes.windows(mark.len()).any(|window| window == *mark)
}

/// Who else has libraries of our names.
pub fn whose(path: &str) -> &'static str {
    if path.contains("libnss_unbit") {
        "nss-unbit in C, or a library of another project"
    } else {
        "pam-unbit in C, or a module of another project"
    }
}

/// Whether two paths are one file.
pub fn is_same(node: &RootFs, one: &str, other: &str) -> bool {
    let id = |path: &str| {
        let found = File::from(node.open(path).ok()?).metadata().ok()?;
        Some((found.dev(), found.ino()))
    };
    id(one).is_some() && id(one) == id(other)
}

/// The library of the service `unbit` that glibc loads, as its dynamic linker says itself; `None`
/// if it loads none.
pub fn loaded_for_nss(node: &RootFs) -> Option<String> {
    let answer = command::run(node, "env", &["LD_DEBUG=libs", "getent", "-s", "unbit", "passwd", "root"]).ok()?;
    initialised(&answer.err, NSS_MODULE).map(str::to_owned)
}

/// The lines of LD_DEBUG, ld.so(8): `calling init: PATH`.
fn initialised<'a>(debug: &'a str, library: &str) -> Option<&'a str> {
    let paths = debug.lines().filter_map(|line| line.split_once("calling init: ")).map(|(_, path)| path.trim());
    paths.into_iter().find(|path| path.rsplit('/').next() == Some(library))
}

/// The libraries of a name that the cache of a root directory has, in its order: /etc/ld.so.cache,
/// `struct cache_file_new` of glibc's dl-cache.h.
pub fn cached<'a>(cache: &'a [u8], library: &str) -> Vec<&'a str> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEAD: usize = 48;
    const ENTRY: usize = 24;
    // An older format may come first.
    let Some(start) = cache.windows(MAGIC.len()).position(|window| window == MAGIC) else { return Vec::new() };
    let cache = cache.get(start..).unwrap_or_default();
    let number = |at: usize| {
        let bytes = cache.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let text = |at: usize| {
        let rest = cache.get(number(at)?..)?;
        std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()
    };
    let entries = (0..number(MAGIC.len()).unwrap_or(0).min(100_000)).map(|index| HEAD + index * ENTRY);
    entries.filter(|at| text(at + 4) == Some(library)).filter_map(|at| text(at + 8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_names_the_file() {
        let debug = "      7:\tfind library=libnss_unbit.so.2 [0]; searching\n      7:\t  trying file=/lib/x86_64-linux-gnu/libnss_unbit.so.2\n\
                     \x20     7:\tcalling init: /lib/x86_64-linux-gnu/libc.so.6\n      7:\tcalling init: /lib/libnss_unbit.so.2\n";
        assert_eq!(initialised(debug, "libnss_unbit.so.2"), Some("/lib/libnss_unbit.so.2"));
        assert_eq!(initialised(debug, "libnss_systemd.so.2"), None);
    }

    #[test]
    fn the_cache_of_this_machine_knows_libc() {
        let cache = std::fs::read("/etc/ld.so.cache").unwrap();
        let found = cached(&cache, "libc.so.6");
        assert!(found.iter().any(|path| std::path::Path::new(path).exists()), "{found:?}");
        assert_eq!(cached(&cache, "libno-such.so.1"), [""; 0]);
        assert_eq!(cached(b"", "libc.so.6"), [""; 0]);
        for length in [20, 48, 60, cache.len() / 2] {
            drop(cached(&cache[..length], "libc.so.6")); // a cut cache is no panic
        }
    }
}
