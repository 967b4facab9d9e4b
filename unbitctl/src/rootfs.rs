//! The file system that a command works on: that of this node, or of a root directory (`--root`),
//! such as a distribution or an image.

use crate::report::GUIDE;
use crate::shell;
use anyhow::bail;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More than any file of a node's set-up has.
const MAX_FILE: u64 = 4 << 20;

/// Attempts of openat2(2) as long as it fails with EAGAIN.
const ATTEMPTS: u32 = 100;

/// Whether its mode lets others than its owner and root write to it. The group root counts as root.
pub fn others_can_write(status: &Metadata) -> bool {
    status.mode() & 0o002 != 0 || status.mode() & 0o020 != 0 && status.gid() != 0
}

/// Where a node's files are.
#[derive(Clone, Debug)]
pub struct RootFs {
    root: PathBuf,
}

impl RootFs {
    /// The root directory of `--root`; fails if it is not a directory.
    pub fn named(root: Option<&Path>) -> anyhow::Result<Self> {
        let node = Self::at(root);
        let named = node.root.display();
        match std::fs::metadata(&node.root) {
            Ok(found) if found.is_dir() => Ok(node),
            Ok(_) => bail!("{named}: it is not a directory"),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("{named}: there is no such directory"),
            Err(error) => bail!("{named}: {error}"),
        }
    }

    /// The node whose files are below `root`; without one, the node that runs.
    pub fn at(root: Option<&Path>) -> Self {
        let running = Path::new("/");
        let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        // By whatever name: `.` in /, /proc/self/root.
        let root = root.filter(|root| id(root).is_none() || id(root) != id(running));
        Self { root: root.unwrap_or(running).to_owned() }
    }

    /// Whether it is the one that runs: a root directory has no kernel, no sshd and no containers
    /// to ask.
    pub fn is_running(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file of the node is, named as the node names it.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Opens a file of the node without touching it (O_PATH). A link leads where it leads on that
    /// node, never out of its root directory.
    pub fn open(&self, absolute: &str) -> Result<OwnedFd> {
        self.open_with(absolute, OFlag::empty())
    }

    /// Like [`Self::open`], but opens a link at the end of the path itself.
    pub fn open_link(&self, absolute: &str) -> Result<OwnedFd> {
        self.open_with(absolute, OFlag::O_NOFOLLOW)
    }

    fn open_with(&self, absolute: &str, flags: OFlag) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_PATH | OFlag::O_CLOEXEC;
        if self.is_running() {
            return Ok(open(absolute, flags, Mode::empty())?);
        }
        let root = open(&self.root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        // EAGAIN, openat2(2): something was renamed or mounted anywhere on the machine while the
        // kernel followed a `..`.
        for _ in 1..ATTEMPTS {
            match openat2(&root, absolute, how) {
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                file => return Ok(file?),
            }
        }
        Ok(openat2(&root, absolute, how)?)
    }

    /// Where a path leads, links followed as the node follows them: in a root directory, never out
    /// of it.
    pub fn resolve(&self, absolute: &str) -> Result<PathBuf> {
        let file = self.open(absolute)?;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    /// The content of a file of the node, if there is one.
    pub fn read(&self, absolute: &str) -> Result<Option<String>> {
        let text = |bytes| String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"));
        match self.read_bytes(absolute).and_then(text) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::new(error.kind(), format!("{absolute}: {error}"))),
        }
    }

    /// The bytes of a file of the node's.
    pub fn read_bytes(&self, absolute: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(absolute)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == MAX_FILE {
            return Err(Error::new(ErrorKind::InvalidInput, "it is too long for such a file"));
        }
        Ok(bytes)
    }

    /// Opens a file for reading. What is not a regular file is not opened: in a root directory
    /// others may have put anything there.
    pub fn open_file(&self, absolute: &str) -> Result<File> {
        let found = File::from(self.open(absolute)?);
        if !found.metadata()?.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// Whether a path leads somewhere.
    pub fn has(&self, absolute: &str) -> bool {
        self.open(absolute).is_ok()
    }

    /// The command that fixes what a check of this name found.
    pub fn setup_command(&self, step: &str) -> String {
        if self.is_running() {
            format!("unbitctl setup {step}")
        } else {
            format!("unbitctl setup --root {} {step}", self.quoted("/"))
        }
    }

    /// The command that does a step of the guide's.
    pub fn guide_setup_command(&self, step: &str) -> String {
        self.setup_command(&format!("--guide {GUIDE} {step}"))
    }

    /// The command that runs another on the node.
    pub fn command_on_node(&self, command: &str) -> String {
        if self.is_running() { command.to_owned() } else { format!("chroot {} {command}", self.quoted("/")) }
    }

    /// Where a file of the node is, quoted for a shell of this machine's.
    pub fn quoted(&self, absolute: &str) -> String {
        let path = if absolute == "/" { self.root.clone() } else { self.path(absolute) };
        shell::quoted(&path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_node_that_runs_has_many_names() {
        for name in ["/", "/.", "/usr/..", "/proc/self/root"] {
            assert!(RootFs::at(Some(Path::new(name))).is_running(), "{name}");
        }
        assert!(!RootFs::at(Some(Path::new("/usr"))).is_running());
        assert!(!RootFs::at(Some(Path::new("/is not there"))).is_running());
    }

    #[test]
    fn links_stay_in_the_root_directory() {
        let root = std::env::temp_dir().join(format!("unbitctl-node-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../../../../../etc/passwd", root.join("etc/upwards")).unwrap();
        symlink("/etc", root.join("directory")).unwrap();
        let node = RootFs::at(Some(&root));
        for path in ["/etc/passwd", "/absolute", "/etc/upwards", "/directory/passwd"] {
            assert_eq!(node.read(path).unwrap().as_deref(), Some("inside"), "{path}");
        }
        assert_eq!(node.read("/etc").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(node.read("/etc/shadow").unwrap().is_none());
        assert_eq!(node.resolve("/absolute").unwrap(), root.canonicalize().unwrap().join("etc/passwd"));
        let link = File::from(node.open_link("/absolute").unwrap());
        assert!(link.metadata().unwrap().is_symlink());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn renames_elsewhere_do_not_matter() {
        let root = std::env::temp_dir().join(format!("unbitctl-renames-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("passwd"), "inside").unwrap();
        symlink("../passwd", root.join("etc/upwards")).unwrap();
        let node = RootFs::at(Some(&root));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (root.join("one"), root.join("other"));
                std::fs::write(&one, "").unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).and_then(|()| std::fs::rename(&other, &one)).unwrap();
                }
            });
            let all = (0..20_000).try_for_each(|_| node.open("/etc/upwards").map(drop));
            done.store(true, Ordering::Relaxed);
            all.unwrap();
        });
        std::fs::remove_dir_all(&root).unwrap();
    }
}
