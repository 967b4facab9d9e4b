//! `unbitctl list --watch`: the containers again and again, until q or a signal.

use super::{Container, Scanner, table};
use crate::columns::Window;
use crate::report;
use crate::terminal::{self, Cbreak};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(2);

/// What ends it. SIGTSTP and SIGCONT are read as well: a terminal is as it was while somebody else
/// has it.
const ENDS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Until q, Ctrl-C, or whatever else asks it to end.
pub fn run(scanner: &mut Scanner, wide: bool) -> Result<()> {
    const NO_TERMINAL: &str = "--watch needs a terminal";
    terminal::size().context(NO_TERMINAL)?;
    let mut held = SigSet::empty();
    held.extend(ENDS);
    held.extend([Signal::SIGTSTP, Signal::SIGCONT]);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), None)?;
    let signals = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut keys = Cbreak::new();
    let mut before: HashMap<u32, Container> = HashMap::new();
    loop {
        let containers = scanner.scan()?;
        let percent = |container: &Container| container.share(before.get(&container.uid)?);
        let shares: Vec<Option<f64>> = containers.iter().map(percent).collect();
        let (rows, columns) = terminal::size().context(NO_TERMINAL)?;
        let columns = columns.max(20);
        let window = if wide { Window::Any } else { Window::Terminal(columns) };
        let mut lines = table::lines(&containers, Some(&shares), window);
        lines.extend(scanner.warning().map(str::to_owned));
        draw(&lines, rows.max(4), columns)?;
        before = containers.into_iter().map(|container| (container.uid, container)).collect();
        if is_over(&signals, &mut keys)? {
            return report::print("\n");
        }
    }
}

/// Waits until the next refresh is due. Returns whether the operator has ended the command instead.
fn is_over(signals: &SignalFd, keys: &mut Option<Cbreak>) -> Result<bool> {
    let next = Instant::now() + INTERVAL;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let mut asked = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        asked.extend(keys.iter().map(|keys| PollFd::new(keys.as_fd(), PollFlags::POLLIN)));
        let is_typed = match poll(&mut asked, PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Ok(false),
            Ok(_) => asked.get(1).and_then(PollFd::any).unwrap_or(false),
            Err(Errno::EINTR) => false,
            Err(errno) => return Err(errno.into()),
        };
        while let Some(signal) = signals.read_signal()? {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTSTP) => {
                    *keys = None; // as it was
                    raise(Signal::SIGSTOP)?;
                    *keys = Cbreak::new();
                    return Ok(false);
                }
                Ok(Signal::SIGCONT) => keys.iter().for_each(Cbreak::reapply),
                Ok(signal) if ENDS.contains(&signal) => return Ok(true),
                _ => {}
            }
        }
        if is_typed {
            match keys.as_ref().and_then(Cbreak::typed) {
                Some(b'q' | b'Q') => return Ok(true),
                Some(_) => {}
                None => *keys = None, // nobody can type any more
            }
        }
    }
}

/// As much as the window has room for, over what was there, without a flicker.
fn draw(lines: &[String], rows: usize, columns: usize) -> Result<()> {
    let room = rows - 2;
    let mut text = String::from("\x1b[H");
    for line in lines.iter().take(room) {
        text.push_str(&crate::columns::truncate(line, columns));
        text.push_str("\x1b[K\n");
    }
    if lines.len() > room {
        text.push_str(&format!("more lines: {}", lines.len() - room));
    }
    text.push_str("\x1b[J");
    report::print(&text)
}
