//! Terminal settings: the operator's terminal, and the pty of a session in a container.

use crate::command_line::print_lossy;
use crate::sys;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown, getpgrp, read, tcgetpgrp};
use std::io::{IsTerminal, Stdin, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many rows and columns the terminal on standard output has; `None` if standard output
/// is not a terminal. A serial console may not know: then it is 24 and 80.
pub fn size() -> Option<(usize, usize)> {
    let size = sys::window_size(stdout()).ok()?;
    let or = |count: u16, usual| if count == 0 { usual } else { usize::from(count) };
    Some((or(size.ws_row, 24), or(size.ws_col, 80)))
}

/// Whether somebody is there to be asked.
pub fn can_ask() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Asks the operator for a line, which comes back with its end. It is empty if there is none.
pub fn ask(question: &str) -> std::io::Result<String> {
    print_lossy!("{question} ");
    let _ = stdout().flush();
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(answer)
}

/// The operator's terminal in raw mode: every key goes to the session. The mode is restored when
/// this is dropped.
pub struct Raw {
    terminal: Stdin,
    before: Termios,
}

impl Raw {
    /// Sets the terminal on standard input.
    pub fn new() -> nix::Result<Self> {
        let raw = Self { terminal: stdin(), before: tcgetattr(stdin())? };
        raw.reapply()?;
        Ok(raw)
    }

    /// Sets it again after a stop, in which the operator's shell may have set another mode.
    pub fn reapply(&self) -> nix::Result<()> {
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&self.terminal, SetArg::TCSADRAIN, &raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The operator's terminal in cbreak mode without echo: a key can be read as soon as it is typed,
/// and Ctrl-C still makes a signal. The mode is restored when this is dropped.
pub struct Cbreak {
    terminal: Stdin,
    before: Termios,
}

impl Cbreak {
    /// Sets the terminal on standard input. `None` if there is none, or in the background, where a
    /// change would stop the process (SIGTTOU).
    pub fn new() -> Option<Self> {
        let terminal = stdin();
        let before = tcgetattr(&terminal).ok()?;
        (tcgetpgrp(&terminal) == Ok(getpgrp())).then_some(())?;
        let keys = Self { terminal, before };
        keys.reapply();
        Some(keys)
    }

    /// Sets it again after a stop, like [`Raw::reapply`].
    pub fn reapply(&self) {
        let mut keys = self.before.clone();
        keys.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        self.set(&keys);
    }

    fn set(&self, how: &Termios) {
        if tcgetpgrp(&self.terminal) == Ok(getpgrp()) {
            let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, how);
        }
    }

    /// Reads a key that was typed. `None` if the terminal is gone.
    pub fn typed(&self) -> Option<u8> {
        let mut key = [0];
        (read(&self.terminal, &mut key) == Ok(1)).then_some(key[0])
    }
}

impl AsFd for Cbreak {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

impl Drop for Cbreak {
    fn drop(&mut self) {
        self.set(&self.before);
    }
}

/// A terminal whose other end stays with us: what is typed into it or pushed back there (TIOCSTI)
/// never reaches the operator's own.
pub struct Pty {
    /// Our end.
    pub master: OwnedFd,
    /// The session's.
    pub slave: OwnedFd,
}

impl Pty {
    /// One like the operator's, which belongs to the session's user, as sshd gives it.
    pub fn new(uid: Uid, gid: Gid) -> nix::Result<Self> {
        let pty = openpty(&sys::window_size(stdin())?, &tcgetattr(stdin())?)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fchown(&pty.slave, Some(uid), Some(gid))?;
        fchmod(&pty.slave, Mode::from_bits_truncate(0o600))?;
        Ok(Self { master: pty.master, slave: pty.slave })
    }
}
