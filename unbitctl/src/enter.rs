//! `unbitctl enter`: root enters a container.
//!
//! [`join::attach`] verifies and joins, as for a login, and [`probe`](crate::probe) is the process
//! that enters. This command keeps everything of the operator's session out of the container: the
//! terminal (the session gets a pty), other descriptors (it gets pipes, see [`pty_forward`]), and
//! the environment (it gets a new one).

use crate::check::pam;
use crate::command_line::warn_line;
use crate::names::Account;
use crate::probe::{self, Messages, Probe};
use crate::pty_forward::{self, End, Event, Stream};
use crate::reaper::{self, Reaper, Started};
use crate::rootfs::RootFs;
use crate::terminal::{Pty, Raw};
use crate::{sealed_exe, sys};
use anyhow::{Error, Result, anyhow, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use join::attach::{Attachment, Who};
use join::refusal::{Context, Reason, Refusal};
use join::sys::retry;
use join::user_namespace::Ids;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};
use shared::ContainerUid;
use std::cell::Cell;
use std::ffi::{CStr, CString, OsString};
use std::io::{IsTerminal, stderr, stdin, stdout};
use std::mem::replace;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub const EXAMPLES: &str = "\
Examples:
  unbitctl enter 30001                  a login shell, as the container's user
  unbitctl enter 30001 -- ps aux        one command
  tar c site | unbitctl enter 30001 -- tar x
  unbitctl enter --root 30001 -- ss -tlnp

The exit status is the command's, 128 plus the signal's number if a signal ended it, 126 if it cannot be run, 127 if it does not exist.";

#[derive(clap::Args)]
pub struct Arguments {
    /// Stay root inside. The tenant controls what runs there, so enter as the user whenever that is
    /// enough
    #[arg(long)]
    root: bool,
    /// The container: its number, or a second name
    #[arg(value_name = "UID", value_parser = Account::parse)]
    account: Account,
    /// The command (default: a login shell; with --root a shell that is not a login shell)
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// If an argument error comes from a command without `--` before it, adds a tip.
pub fn with_tip(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    let words: Vec<_> = arguments.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return error };
    let at = words.iter().position(|other| other == word);
    let Some((before, command)) = at.and_then(|at| words.split_at_checked(at)) else { return error };
    let is_container =
        before.iter().skip(1).any(|word| Account::parse(word).is_ok_and(|account| account.uid().is_ok()));
    let is_command = before.first().is_some_and(|first| first == "enter") && is_container;
    if is_command && error.kind() == ErrorKind::UnknownArgument && error.get(ContextKind::Suggested).is_none() {
        let tip = format!("to run a command, put -- before it: unbitctl {} -- {}", before.join(" "), command.join(" "));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

const DANGER: [&str; 2] = [
    "warning: root inside the container: the programs, libraries and configuration files there belong to the tenant or the distribution.",
    "They run with uid 0 of this node, which can write to /proc/sys and to the devices that the container sees. Run only what you have to.",
];

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::command_line::must_be_root("enter")?;
    if arguments.root {
        sealed_exe::run_from_memory()
            .map_err(|error| error.context("run from memory, out of reach of what runs in the container"))?;
        DANGER.iter().for_each(warn_line);
    }
    join::sys::set_all_close_on_exec()?;
    let container = arguments.account.uid()?;
    let options = pam::options_of_a_login(&RootFs::at(None))?;
    let session = Session::new(arguments, container)?;
    let attachment =
        Attachment::prepare(container, &options, &mut |_, _| {}).map_err(|refusal| refused(container, &refusal))?;

    let signals = Signals::hold()?;
    let Stdio { outer, inner } = Stdio::new(arguments, attachment.ids())?;
    let who = if session.is_root { Who::Root } else { Who::User };
    let before = || session.detach_from_operator(&inner);
    let inside = |messages: &mut Messages| session.run_inside(messages, &inner, &signals.before);
    let program = arguments.command.first().map_or(shared::settings::SHELL.into(), |program| program.to_string_lossy());
    let outer = Cell::new(Some(outer));
    let spawn = || {
        let probe = probe::spawn(attachment, who, options.timeout, before, inside);
        let arrived = probe.map_err(|refusal| refused(container, &refusal)).and_then(|mut probe| {
            Ok(match arrival(&mut probe, container, &program, options.timeout)? {
                Some(status) => Err(status),
                None => Ok(probe),
            })
        });
        arrived.unwrap_or_else(|error| {
            warn_line(format_args!("{error:#}"));
            Err(1)
        })
    };
    let started = reaper::fork(|| drop(outer.take()), spawn)?;
    drop(inner);
    match (started, outer.take()) {
        (Started::Runs(reaper), Some(outer)) => stay_outside(reaper, outer, &signals),
        (Started::Runs(_), None) => Ok(ExitCode::FAILURE),
        (Started::Ended(code), _) => Ok(code),
    }
}

/// The error for a refusal, with the command to run next.
fn refused(container: ContainerUid, refusal: &Refusal) -> anyhow::Error {
    let Refusal { reason, cause } = refusal;
    match reason {
        Reason::NoContainer => {
            anyhow!(
                "there is no container {container} on this node ({cause}); unbitctl list shows the existing ones, unbitctl create makes one"
            )
        }
        _ => anyhow!("container {container} refused: {cause}; unbitctl check {container} says more, and what to do"),
    }
}

/// What is run, as whom, and with what around it: all of it known before anything is joined.
struct Session {
    container: ContainerUid,
    is_root: bool,
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    homes: Vec<CString>,
}

impl Session {
    fn new(arguments: &Arguments, container: ContainerUid) -> Result<Self> {
        let home = container.home().as_c_str().to_string_lossy().into_owned();
        // For root nothing of /usr/local, which is the tenant's home in a container of uwsgi.it.
        let (user, home, path) = if arguments.root {
            ("root".to_owned(), "/root".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin")
        } else {
            (arguments.account.to_string(), home, "/usr/local/bin:/usr/bin:/bin")
        };
        let shell = shared::settings::SHELL;
        let (programs, words) = match arguments.command.split_first() {
            None => {
                let name = shell.rsplit('/').next().unwrap_or(shell);
                // Root's login shell reads Debian's /etc/profile, which puts /usr/local into PATH,
                // and then runs mesg(1).
                (vec![shell.into()], vec![if arguments.root { name.into() } else { format!("-{name}").into() }])
            }
            // execvp(3) does not look for a program of no name either.
            Some((program, _)) if program.is_empty() || program.as_bytes().contains(&b'/') => {
                (vec![program.clone()], arguments.command.clone())
            }
            Some((program, _)) => {
                let below = |directory| Path::new(directory).join(program).into_os_string();
                (path.split(':').map(below).collect(), arguments.command.clone())
            }
        };
        let mut environment = vec![
            format!("HOME={home}"),
            format!("USER={user}"),
            format!("LOGNAME={user}"),
            format!("SHELL={shell}"),
            format!("PATH={path}"),
        ];
        environment.extend(
            ["TERM", "LANG"].into_iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))),
        );
        Ok(Self {
            container,
            is_root: arguments.root,
            programs: strings(programs)?,
            arguments: strings(words)?,
            environment: strings(environment)?,
            homes: strings([home.as_str(), "/"])?,
        })
    }

    /// Runs in the process that enters, before it does.
    fn detach_from_operator(&self, inner: &InnerEnds) -> Result<(), Refusal> {
        probe::detach_from_operator(self.container)?;
        dup2_stdin(&inner.stdin).context(Reason::Broken, "dup2")?;
        dup2_stdout(&inner.stdout).context(Reason::Broken, "dup2")?;
        dup2_stderr(&inner.stderr).context(Reason::Broken, "dup2")
    }

    /// Runs in the process inside.
    fn run_inside(&self, messages: &mut Messages, inner: &InnerEnds, signals_before: &SigSet) {
        match self.begin(inner, signals_before) {
            Ok(errno) => {
                messages.send("exec", format!("{} {}", if errno == Errno::ENOENT { 127 } else { 126 }, errno.desc()))
            }
            Err(refusal) => messages.send("refused", refusal.cause),
        }
    }

    fn begin(&self, inner: &InnerEnds, signals_before: &SigSet) -> Result<Errno, Refusal> {
        setsid().context(Reason::Broken, "begin a session")?; // the one before is the helper's
        if inner.is_terminal {
            sys::set_controlling_terminal(stdin()).context(Reason::Broken, "take the terminal (TIOCSCTTY)")?;
        }
        // A missing home directory is no error: the operator may have come to fix it.
        let _ = self.homes.iter().find(|home| chdir(home.as_c_str()).is_ok());
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(signals_before), None).context(Reason::Broken, "restore signals")?;
        let programs: Vec<&CStr> = self.programs.iter().map(CString::as_c_str).collect();
        let arguments: Vec<&CStr> = self.arguments.iter().map(CString::as_c_str).collect();
        Ok(probe::exec(&programs, &arguments, &self.environment))
    }
}

fn strings<T: AsRef<std::ffi::OsStr>>(texts: impl IntoIterator<Item = T>) -> Result<Vec<CString>> {
    texts.into_iter().map(|text| Ok(CString::new(text.as_ref().as_bytes())?)).collect()
}

/// The ends of pipes or of a pty, outside and in the session.
struct Stdio {
    outer: OuterEnds,
    inner: InnerEnds,
}

struct OuterEnds {
    pty: Option<OwnedFd>,
    /// `None` if the pty is used instead.
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

struct InnerEnds {
    is_terminal: bool,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Stdio {
    /// A pty for the session if standard input and output are a terminal, otherwise pipes.
    fn new(arguments: &Arguments, user: Ids) -> Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        if !(stdin().is_terminal() && stdout().is_terminal()) {
            let ((their_in, stdin), (stdout, their_out), (stderr, their_err)) = (pipe()?, pipe()?, pipe()?);
            return Ok(Self {
                outer: OuterEnds { pty: None, stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) },
                inner: InnerEnds { is_terminal: false, stdin: their_in, stdout: their_out, stderr: their_err },
            });
        }
        let Ids { uid, gid } = if arguments.root { Ids { uid: 0, gid: 0 } } else { user };
        let Pty { master, slave } = Pty::new(Uid::from_raw(uid), Gid::from_raw(gid))
            .map_err(|error| Error::from(error).context("make a terminal"))?;
        let (stderr, their_err) = match stderr().is_terminal() {
            true => (None, slave.try_clone()?),
            false => pipe().map(|(outer, inner)| (Some(outer), inner))?,
        };
        Ok(Self {
            outer: OuterEnds { pty: Some(master), stdin: None, stdout: None, stderr },
            inner: InnerEnds { is_terminal: true, stdin: slave.try_clone()?, stdout: slave, stderr: their_err },
        })
    }
}

/// Waits until the process is inside and runs the command. Returns an exit code if the command does
/// not exist or cannot be run.
fn arrival(probe: &mut Probe, container: ContainerUid, program: &str, limit: Duration) -> Result<Option<u8>> {
    let Some(words) = probe.messages(limit) else {
        let end = if probe.kill() { "" } else { "; it cannot be ended now" };
        bail!(
            "container {container}: the process that enters (pid {}) did not finish within {} s{end}: is a cgroup of the container frozen, or does one of its file systems hang?",
            probe.pid,
            limit.as_secs()
        );
    };
    match words.first().map(|(word, about)| (word.as_str(), about.as_str())) {
        Some(("exec", about)) => {
            let (code, why) = about.split_once(' ').unwrap_or(("126", about));
            warn_line(format_args!("'{program}' cannot be run in container {container}: {why}"));
            Ok(Some(code.parse().unwrap_or(126)))
        }
        Some((_, cause)) => Err(refused(container, &Refusal::new(Reason::Broken, cause))),
        None => Ok(None),
    }
}

/// How long a session may take to end after a signal.
const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Stays outside: copies bytes and forwards signals until the session's first process ends.
fn stay_outside(reaper: Reaper, outer: OuterEnds, signals: &Signals) -> Result<ExitCode> {
    let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
    let raw = outer
        .pty
        .is_some()
        .then(Raw::new)
        .transpose()
        .map_err(|error| Error::from(error).context("set the terminal"))?;
    let mut streams = Vec::new();
    if let Some(pty) = &outer.pty {
        pty_forward::set_nonblocking(pty)?;
        streams.push(Stream::new(End::Shared(stdin.as_fd()), End::Shared(pty.as_fd())));
        streams.push(Stream::new(End::Shared(pty.as_fd()), End::Shared(stdout.as_fd())));
    }
    if let Some(pipe) = outer.stdin {
        pty_forward::set_nonblocking(&pipe)?;
        streams.push(Stream::new(End::Shared(stdin.as_fd()), End::Own(pipe)));
    }
    for (from, to) in [(outer.stdout, stdout.as_fd()), (outer.stderr, stderr.as_fd())] {
        streams.extend(from.map(|from| Stream::new(End::Own(from), End::Shared(to))));
    }

    let mut session = Forwarded { reaper, streams, end: None };
    let mut was_asked = false;
    while let Event::Signal = pty_forward::forward(&mut session.streams, &signals.descriptor, session.end.is_some())? {
        let Some(signal) = signals.next() else { continue };
        match signal {
            Signal::SIGCHLD => drop(session.ends_within(Duration::ZERO)),
            Signal::SIGWINCH => {
                if let (Some(pty), Ok(size)) = (&outer.pty, sys::window_size(&stdin)) {
                    let _ = sys::set_window_size(pty, size);
                }
            }
            Signal::SIGCONT => {
                if let Some(raw) = &raw {
                    let _ = raw.reapply();
                }
            }
            // Only a reader of the remaining output is left.
            _ if session.end.is_some() => break,
            signal => {
                session.reaper.send(signal);
                // After SIGHUP or a second SIGTERM, do not wait for a session that ignores them
                // (nohup(1)).
                let goes = signal == Signal::SIGHUP || signal == Signal::SIGTERM && replace(&mut was_asked, true);
                if goes && !session.ends_within(EXIT_TIMEOUT) {
                    return Ok(ExitCode::from(128 + signal as u8));
                }
            }
        }
    }
    Ok(session.end.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The session's first process, and the streams from and to it.
struct Forwarded<'a> {
    reaper: Reaper,
    /// The first one is stdin, until the process has ended.
    streams: Vec<Stream<'a>>,
    /// The exit status of the process.
    end: Option<u8>,
}

impl Forwarded<'_> {
    fn ends_within(&mut self, limit: Duration) -> bool {
        if self.end.is_none() {
            self.end = self.reaper.wait(limit);
            if self.end.is_some() {
                self.streams.remove(0); // nobody reads stdin any more
            }
        }
        self.end.is_some()
    }
}

/// The signals that are forwarded, and those that this command handles.
struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    fn hold() -> Result<Self> {
        let mut held = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGCONT,
            Signal::SIGCHLD,
        ] {
            held.add(signal);
        }
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), Some(&mut before))?;
        Ok(Self { descriptor: SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC)?, before })
    }

    fn next(&self) -> Option<Signal> {
        let info = retry(|| self.descriptor.read_signal()).ok()??;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}
