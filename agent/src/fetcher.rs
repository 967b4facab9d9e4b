//! The process that talks to the API.
//!
//! It is a child without privileges: TLS, HTTP and name lookups happen only there. The privileged
//! process receives the status and the body of an answer over a socket, and kills the child after a
//! time limit.
//!
//! What an answer must be is in [`api`](crate::api).

use crate::client::{Client, MAX_BODY, Post, REQUEST_TIMEOUT, Request, Response};
use crate::identity::Identity;
use anyhow::{Context, Result, bail};
use join::sys::{close_all_but, exit_now, fork, retry};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than the client's own limit, for name lookups.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 10);

/// What an answer begins with.
const ANSWERED: u8 = b'a';
const FAILED: u8 = b'f';

/// The privileged process's handle to the child. The child is forked when it is first needed, and
/// again after it has ended.
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
        self.with_child(|socket| exchange(socket, request))
    }

    /// Sends values, and says of each by which status it was answered. `None` for values that were
    /// not sent, because many before them were refused.
    pub fn send(&mut self, posts: &[Post]) -> Result<Vec<Option<u16>>> {
        self.with_child(|socket| exchange_posts(socket, posts))
    }

    /// Talks to the child, which is started if there is none. Kills it if it does not answer in
    /// time, or breaks the protocol.
    fn with_child<T>(&mut self, talk: impl FnOnce(&UnixStream) -> io::Result<Result<T, String>>) -> Result<T> {
        if self.child.is_none() {
            self.child = Some(self.fork()?);
            self.exchange_with_child(|socket| await_start(socket).map(Ok))?;
        }
        self.exchange_with_child(talk)
    }

    fn exchange_with_child<T>(&mut self, talk: impl FnOnce(&UnixStream) -> io::Result<Result<T, String>>) -> Result<T> {
        let outcome = match &self.child {
            Some((_, socket)) => talk(socket),
            None => Err(ErrorKind::NotConnected.into()),
        };
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
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
            let error = drop_privileges(&self.identity, &theirs).err().map(|error| format!("{error:#}"));
            let sent = (&theirs).write_all(&framed(error.as_deref().unwrap_or_default().as_bytes()));
            if sent.is_ok() && error.is_none() {
                drop(serve(&self.client, theirs));
            }
            exit_now(0)
        };
        Ok((child, ours))
    }

    /// Ends the child.
    fn end(&mut self) {
        if let Some((child, socket)) = self.child.take() {
            drop(socket); // ends it as well, if we may not send it a signal
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
    identity.assume()?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?; // it writes no file
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(set_pdeathsig(Signal::SIGKILL)?) // now, because another uid takes it back
}

/// In the child.
fn serve(client: &Client, socket: UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(&socket);
    loop {
        match read_command(&mut reader)? {
            Command::Request(request) => answer(&socket, client.ask(&request))?,
            Command::Posts(posts) => {
                let answers = Answers { socket: &socket, pending: Mutex::default() };
                let done = client.send(&posts, |index, status| answers.add(index, status));
                answers.write()?;
                let text = done.err().unwrap_or_default();
                (&socket).write_all(&record(END, 0))?;
                (&socket).write_all(&framed(text.as_bytes()))?;
            }
        }
    }
}

/// Reads the child's first message: why it ends, or nothing.
fn await_start(socket: &UnixStream) -> io::Result<()> {
    let text = read_frame(&mut Until { socket, end: Instant::now() + ANSWER_TIMEOUT })?;
    if text.is_empty() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&text))) }
}

/// What the child is asked to do.
#[derive(PartialEq, Eq, Debug)]
enum Command {
    Request(Request),
    Posts(Vec<Post>),
}

/// What a request on the socket begins with.
const GET: u8 = b'g';
const POST: u8 = b'p';
const POSTS: u8 = b's';

/// A request is the length of its path, the path, and with POST the same of its body.
fn exchange(socket: &UnixStream, request: &Request) -> io::Result<Result<Response, String>> {
    let mut message = vec![if request.body.is_some() { POST } else { GET }];
    message.extend(framed(request.path.as_bytes()));
    message.extend(request.body.as_deref().map(framed).unwrap_or_default());
    write_message(socket, &message)?;
    let mut reader = Until { socket, end: Instant::now() + ANSWER_TIMEOUT };
    let mut head = [0; 4];
    reader.read_exact(&mut head)?;
    let [kind, may_be_half, status @ ..] = head;
    let bytes = read_frame(&mut reader)?;
    match kind {
        ANSWERED => Ok(Ok(Response { status: u16::from_be_bytes(status), body: bytes, may_be_half: may_be_half != 0 })),
        FAILED => Ok(Err(String::from_utf8_lossy(&bytes).into_owned())),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// The number of values, and of each its container, path and body. Answers are the index and the
/// status of one value each, in any order; then the index [`END`] and an error, which is empty if
/// there is none. The child has the time of one request for each of them.
fn exchange_posts(socket: &UnixStream, posts: &[Post]) -> io::Result<Result<Vec<Option<u16>>, String>> {
    let mut message = vec![POSTS];
    message.extend(length_of(posts).to_be_bytes());
    for Post { container, path, body } in posts {
        message.extend(container.to_be_bytes());
        message.extend(framed(path.as_bytes()));
        message.extend(framed(body));
    }
    write_message(socket, &message)?;
    let mut statuses = vec![None; posts.len()];
    let mut reader = BufReader::new(Until { socket, end: Instant::now() + ANSWER_TIMEOUT });
    for _ in 0..=posts.len() {
        let mut head = [0; 6];
        reader.read_exact(&mut head)?;
        reader.get_mut().end = Instant::now() + ANSWER_TIMEOUT;
        let [a, b, c, d, status @ ..] = head;
        match u32::from_be_bytes([a, b, c, d]) {
            END => {
                let text = read_frame(&mut reader)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                return Ok(if text.is_empty() { Ok(statuses) } else { Err(text) });
            }
            index => {
                let place = statuses.get_mut(index as usize).ok_or(ErrorKind::InvalidData)?;
                *place = Some(u16::from_be_bytes(status));
            }
        }
    }
    Err(ErrorKind::InvalidData.into())
}

/// The index that no value has.
const END: u32 = u32::MAX;

fn record(index: u32, status: u16) -> [u8; 6] {
    let ([a, b, c, d], [high, low]) = (index.to_be_bytes(), status.to_be_bytes());
    [a, b, c, d, high, low]
}

/// In the child: the answers to values, of which several that come within a second are written
/// together. An answer is written at the latest with the next one.
struct Answers<'a> {
    socket: &'a UnixStream,
    /// What is to be written, and the time of the last write.
    pending: Mutex<(Vec<u8>, Option<Instant>)>,
}

impl Answers<'_> {
    fn add(&self, index: usize, status: u16) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.0.extend(record(u32::try_from(index).unwrap_or(END), status));
        let is_due = pending.0.len() > 1024 || pending.1.is_none_or(|last| last.elapsed().as_secs() > 0);
        drop(pending);
        if is_due { self.write() } else { Ok(()) }
    }

    fn write(&self) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, _) = std::mem::replace(&mut *pending, (Vec::new(), Some(Instant::now())));
        (&mut &*self.socket).write_all(&bytes)
    }
}

fn write_message(mut socket: &UnixStream, message: &[u8]) -> io::Result<()> {
    socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    socket.write_all(message)
}

fn read_command(reader: &mut impl Read) -> io::Result<Command> {
    let mut kind = [0];
    reader.read_exact(&mut kind)?;
    let text = |bytes| String::from_utf8(bytes).map_err(|_| io::Error::from(ErrorKind::InvalidData));
    match kind {
        [GET] => Ok(Command::Request(Request { path: text(read_frame(reader)?)?, body: None })),
        [POST] => Ok(Command::Request(Request { path: text(read_frame(reader)?)?, body: Some(read_frame(reader)?) })),
        [POSTS] => {
            let mut posts = Vec::new();
            for _ in 0..read_number(reader)? {
                let container = read_number(reader)?;
                posts.push(Post { container, path: text(read_frame(reader)?)?, body: read_frame(reader)? });
            }
            Ok(Command::Posts(posts))
        }
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn answer(mut socket: &UnixStream, response: Result<Response, String>) -> io::Result<()> {
    let (kind, may_be_half, status, bytes) = match response {
        Ok(response) => (ANSWERED, u8::from(response.may_be_half), response.status, response.body),
        Err(text) => (FAILED, 0, 0, text.into_bytes()),
    };
    let [high, low] = status.to_be_bytes();
    socket.write_all(&[kind, may_be_half, high, low])?;
    socket.write_all(&length_of(&bytes).to_be_bytes())?;
    socket.write_all(&bytes) // which may be long
}

fn length_of<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&length_of(bytes).to_be_bytes(), bytes].concat()
}

fn read_number(reader: &mut impl Read) -> io::Result<u32> {
    let mut number = [0; 4];
    reader.read_exact(&mut number)?;
    Ok(u32::from_be_bytes(number))
}

/// Never more than an answer can have.
fn read_frame(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_number(reader)?;
    if u64::from(length) > MAX_BODY {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads until the time is over, however slowly it comes.
struct Until<'a> {
    socket: &'a UnixStream,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        (&mut &*self.socket).read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DomainName;
    use crate::settings::ApiDomain;
    use crate::tls::{Material, Tls};
    use nix::unistd::geteuid;
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::X509;

    #[test]
    fn requests_and_answers_come_through_as_they_are() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Request { path: "/nodes/".to_owned(), body: Some(vec![0, 255]) };
        let response = Response { status: 403, body: b"Forbidden\n".to_vec(), may_be_half: true };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut reader = BufReader::new(&theirs);
                assert_eq!(read_command(&mut reader).unwrap(), Command::Request(request.clone()));
                answer(&theirs, Ok(response.clone())).unwrap();
                assert_eq!(
                    read_command(&mut reader).unwrap(),
                    Command::Request(Request { path: request.path.clone(), body: None })
                );
                answer(&theirs, Err("no".to_owned())).unwrap();
            });
            assert_eq!(exchange(&ours, &request).unwrap(), Ok(response.clone()));
            assert_eq!(exchange(&ours, &Request { body: None, ..request.clone() }).unwrap(), Err("no".to_owned()));
        });
    }

    #[test]
    fn the_answers_to_values_come_in_any_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let posts: Vec<_> =
            (0..200).map(|container| Post { container, path: "/metrics/x".to_owned(), body: vec![1] }).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(read_command(&mut BufReader::new(&theirs)).unwrap(), Command::Posts(posts.clone()));
                let answers = Answers { socket: &theirs, pending: Mutex::default() };
                (1..200).rev().for_each(|index| answers.add(index, 201).unwrap());
                answers.write().unwrap();
                (&theirs).write_all(&[&record(END, 0)[..], &framed(b"")].concat()).unwrap();
            });
            let statuses = exchange_posts(&ours, &posts).unwrap().unwrap();
            assert_eq!((statuses[0], &statuses[1..]), (None, &[Some(201); 199][..]));
        });
    }

    #[test]
    fn an_answer_to_a_value_does_not_wait_for_a_slow_one() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let answers = Answers { socket: &theirs, pending: Mutex::default() };
        let mut bytes = [0; 64];
        answers.add(0, 201).unwrap();
        assert_eq!(ours.read(&mut bytes).unwrap(), 6, "the first one");
        answers.add(1, 201).unwrap();
        assert_eq!(ours.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock, "several are written together");
        answers.pending.lock().unwrap().1 = Instant::now().checked_sub(Duration::from_secs(1));
        answers.add(2, 201).unwrap();
        assert_eq!(ours.read(&mut bytes).unwrap(), 12);
    }

    #[test]
    fn a_child_that_keeps_its_privileges_ends_with_the_same_error_each_time() {
        if !geteuid().is_root() {
            println!("NOT TRIED: only root has privileges that can be left");
            return;
        }
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_unix(0).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build().to_pem().unwrap();
        let key = key.private_key_to_pem_pkcs8().unwrap();
        let host = DomainName::parse("api.invalid").unwrap();
        let api = ApiDomain { host: host.clone(), authority: host.to_string() };
        let tls = Tls::new(&Material { key, certificate: certificate.clone(), authorities: certificate }, host, true);
        let mut fetcher = Fetcher::new(Client::new(&api, tls.unwrap()), Identity::own());
        for _ in 0..2 {
            let asked = fetcher.ask(&Request { path: "/nodes/".to_owned(), body: None }).map(drop);
            let sent = fetcher.send(&[Post { container: 30001, path: "/metrics/x".to_owned(), body: Vec::new() }]);
            for error in [asked, sent.map(drop)].map(|said| format!("{:#}", said.unwrap_err())) {
                assert_eq!(error, "the process that talks to the API: privileges are left");
            }
            assert!(fetcher.child.is_none());
        }
    }

    #[test]
    fn answers_to_values_that_nobody_sent_are_not_believed() {
        let posts = [Post { container: 1, path: "/metrics/x".to_owned(), body: vec![1] }];
        for said in [record(1, 201).to_vec(), record(0, 201).repeat(3), [&record(END, 0)[..], &[255; 4]].concat()] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&said).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(exchange_posts(&ours, &posts).unwrap_err().kind(), ErrorKind::InvalidData, "{said:?}");
        }
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
