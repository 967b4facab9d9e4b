//! The process that talks to the API.
//!
//! It is a child without privileges: TLS, HTTP and name lookups happen only there. The privileged process receives the status and the body of an
//! answer over a socket, and kills the child after a time limit.
//!
//! What an answer must be is in [`api`](crate::api).

use crate::client::{Client, MAX_BODY, REQUEST_TIMEOUT, Request, Response};
use crate::identity::Identity;
use anyhow::{Context, Result, bail};
use join::sys::{close_all_but, exit_now, fork, retry};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longer than the client's own limit, for name lookups.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 10);

/// What an answer begins with.
const ANSWERED: u8 = b'a';
const FAILED: u8 = b'f';

/// The privileged process's handle to the child. The child is forked when it is first needed, and again after it has ended.
pub struct Fetcher {
    client: Client,
    identity: Identity,
    child: Option<(Pid, UnixStream)>,
}

impl Fetcher {
    /// Forks nothing yet.
    pub fn new(client: Client, identity: Identity) -> Self {
        Self { client, identity, child: None }
    }

    /// Asks the API once.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        if self.child.is_none() {
            self.child = Some(self.fork()?);
        }
        let said = match &self.child {
            Some((_, socket)) => exchange(socket, request),
            None => Err(ErrorKind::NotConnected.into()),
        };
        match said {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(text)) => bail!(text),
            Err(error) => {
                self.end();
                Err(match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        anyhow::anyhow!("no complete answer within {} s", ANSWER_TIMEOUT.as_secs())
                    }
                    _ => anyhow::Error::from(error).context("the process that talks to the API"),
                })
            }
        }
    }

    fn fork(&self) -> Result<(Pid, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().context("make a socket")?;
        let ForkResult::Parent { child } = fork().context("fork")? else {
            drop(ours);
            match drop_privileges(&self.identity, &theirs) {
                Ok(()) => drop(serve(&self.client, theirs)),
                Err(error) => drop(answer(&theirs, Err(format!("{error:#}")))),
            }
            exit_now(0)
        };
        Ok((child, ours))
    }

    /// Ends the child.
    fn end(&mut self) {
        if let Some((child, socket)) = self.child.take() {
            drop(socket); // by which it ends as well, where we may not send a signal
            let _ = kill(child, Signal::SIGKILL);
            let _ = retry(|| waitpid(child, None));
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// In the child, before it hears of anything.
fn drop_privileges(identity: &Identity, socket: &UnixStream) -> Result<()> {
    close_all_but(socket)?;
    identity.become_it()?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?; // it writes no file
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(set_pdeathsig(Signal::SIGKILL)?) // now, because another uid takes it back
}

/// In the child.
fn serve(client: &Client, socket: UnixStream) -> io::Result<()> {
    loop {
        let request = hear(&socket)?;
        answer(&socket, client.ask(&request))?;
    }
}

/// A request on the socket: the path's length and the path; one byte, which is 1 if there is a body; the body's length and the body.
fn exchange(mut socket: &UnixStream, request: &Request) -> io::Result<Result<Response, String>> {
    let end = Instant::now() + ANSWER_TIMEOUT;
    socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let body = request.body.as_deref();
    let mut message = framed(request.path.as_bytes());
    message.push(u8::from(body.is_some()));
    message.extend(framed(body.unwrap_or_default()));
    match socket.write_all(&message) {
        // A child that has not come so far as to listen has said why.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }

    let mut head = [0; 4];
    read_until(socket, &mut head, end)?;
    let [kind, may_be_half, status @ ..] = head;
    let bytes = read_frame(|bytes| read_until(socket, bytes, end))?;
    match kind {
        ANSWERED => Ok(Ok(Response { status: u16::from_be_bytes(status), body: bytes, may_be_half: may_be_half != 0 })),
        FAILED => Ok(Err(String::from_utf8_lossy(&bytes).into_owned())),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn hear(mut socket: &UnixStream) -> io::Result<Request> {
    let path = read_frame(|bytes| socket.read_exact(bytes))?;
    let mut has_body = [0];
    socket.read_exact(&mut has_body)?;
    let body = read_frame(|bytes| socket.read_exact(bytes))?;
    let path = String::from_utf8(path).map_err(|_| ErrorKind::InvalidData)?;
    Ok(Request { path, body: (has_body != [0]).then_some(body) })
}

fn answer(mut socket: &UnixStream, said: Result<Response, String>) -> io::Result<()> {
    let (kind, may_be_half, status, bytes) = match said {
        Ok(response) => (ANSWERED, u8::from(response.may_be_half), response.status, response.body),
        Err(text) => (FAILED, 0, 0, text.into_bytes()),
    };
    let [high, low] = status.to_be_bytes();
    socket.write_all(&[kind, may_be_half, high, low])?;
    socket.write_all(&framed(&bytes))
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

/// Never more than an answer can have.
fn read_frame(mut read: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    read(&mut length)?;
    let length = u32::from_be_bytes(length);
    if u64::from(length) > MAX_BODY {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    read(&mut bytes)?;
    Ok(bytes)
}

/// Reads all of it, or fails when the time is over, however slowly it comes.
fn read_until(mut socket: &UnixStream, mut bytes: &mut [u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => bytes = bytes.get_mut(length..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_come_through_as_they_are() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Request { path: "/nodes/".to_owned(), body: Some(vec![0, 255]) };
        let response = Response { status: 403, body: b"Forbidden\n".to_vec(), may_be_half: true };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(hear(&theirs).unwrap(), request);
                answer(&theirs, Ok(response.clone())).unwrap();
                assert_eq!(hear(&theirs).unwrap().body, None);
                answer(&theirs, Err("no".to_owned())).unwrap();
            });
            assert_eq!(exchange(&ours, &request).unwrap(), Ok(response.clone()));
            assert_eq!(exchange(&ours, &Request { body: None, ..request.clone() }).unwrap(), Err("no".to_owned()));
        });
    }

    #[test]
    fn a_child_that_says_too_much_or_nothing_is_not_believed() {
        let request = Request { path: "/nodes/".to_owned(), body: None };
        for said in [&[ANSWERED, 0, 0, 200, 255, 255, 255, 255][..], b"x\0\0\0\0\0\0\0", b"a", b""] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(exchange(&ours, &request).is_err(), "{said:?}");
        }
    }
}
