//! The HTTP client: one request and one answer, from the API alone, with limits of time and size.
//!
//! TLS is in [`tls`](crate::tls), the process that runs this in [`fetcher`](crate::fetcher).

use crate::settings::ApiDomain;
use crate::tls::{self, Tls};
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, TcpConnector};

/// For all of a request, from the look-up of the name to the last byte of the answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request: less than uWSGI's routers keep it.
const IDLE: Duration = Duration::from_secs(3);
/// How many connections there are at most.
pub const MAX_CONNECTIONS: u32 = 4;
/// How many values of one container may be refused before no other of it is sent. If values of so
/// many containers are refused, no other is sent at all: the API is broken.
pub const MAX_REFUSED: usize = 20;
/// How long an address of the API is used before its name is looked up again.
const MAX_ADDRESS_AGE: Duration = Duration::from_secs(60);
/// The longest answer that is read, in bytes.
pub const MAX_BODY: u64 = 16 << 20;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Below `/api/private`, with a slash before it.
    pub path: String,
    /// With a body it is a POST, without one a GET.
    pub body: Option<Vec<u8>>,
}

/// A value for the API. Those of one container are sent one after the other, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Post {
    /// A container's number.
    pub container: u32,
    /// As in [`Request`].
    pub path: String,
    /// What is sent.
    pub body: Vec<u8>,
}

/// What the API says to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// As HTTP has it.
    pub status: u16,
    /// What follows the headers.
    pub body: Vec<u8>,
    /// Whether the connection ended before the answer's end was seen, so that the answer may be
    /// half.
    pub may_be_half: bool,
}

/// A client of one API.
pub struct Client {
    agent: Agent,
    tls: Tls,
    base: String,
}

impl Client {
    /// Connects at the first request, and keeps the connection for the next one.
    pub fn new(api: &ApiDomain, tls: Tls) -> Self {
        let config = Agent::config_builder()
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None) // which it would take from the environment
            .timeout_global(Some(REQUEST_TIMEOUT))
            .max_idle_age(IDLE)
            .max_idle_connections(MAX_CONNECTIONS as usize)
            .max_idle_connections_per_host(MAX_CONNECTIONS as usize)
            .user_agent(concat!("unbit-agent/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(64 << 10)
            .build();
        let connector = ().chain(TcpConnector::default()).chain(tls.clone());
        let agent = Agent::with_parts(config, connector, Addresses::default());
        Self { agent, tls, base: format!("https://{}/api/private", api.authority) }
    }

    /// Sends values over all connections, and calls `answered` with the index and status of each.
    /// It stops at the first error, or when many are refused, see [`MAX_REFUSED`].
    pub fn send(&self, posts: &[Post], answered: impl Fn(usize, u16) -> io::Result<()> + Sync) -> Result<(), String> {
        let failure = Mutex::new(None);
        let is_over = AtomicBool::new(false);
        let refused_containers = AtomicUsize::new(0);
        let give_up = |error: String| {
            is_over.store(true, Ordering::Relaxed);
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        };
        let of_connection = |connection: u32| {
            let mut refused = HashMap::new();
            for (index, post) in
                posts.iter().enumerate().filter(|(_, post)| post.container % MAX_CONNECTIONS == connection)
            {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let of_container = refused.entry(post.container).or_insert(0);
                if *of_container >= MAX_REFUSED {
                    continue;
                }
                let status = match self.request(&post.path, Some(&post.body)) {
                    Ok(response) => response.status,
                    Err(error) => return give_up(error),
                };
                if status != 201 {
                    *of_container += 1;
                    let is_first = *of_container == 1;
                    if is_first && refused_containers.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REFUSED {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
                if let Err(error) = answered(index, status) {
                    return give_up(error.to_string());
                }
            }
        };
        let of_connection = &of_connection;
        std::thread::scope(|scope| {
            for connection in 0..MAX_CONNECTIONS {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || of_connection(connection));
                if let Err(error) = thread {
                    give_up(format!("make a thread: {error}"));
                }
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Asks once.
    pub fn ask(&self, request: &Request) -> Result<Response, String> {
        self.request(&request.path, request.body.as_deref())
    }

    fn request(&self, path: &str, body: Option<&[u8]>) -> Result<Response, String> {
        let address = format!("{}{path}", self.base);
        let once = || {
            let _ = self.tls.was_cut(); // of an earlier request
            match body {
                None => self.agent.get(&address).call(),
                Some(body) => self.agent.post(&address).content_type("application/octet-stream").send(body),
            }
        };
        let mut answer = once();
        // A new connection is never stale. A value that the API took before it closed the
        // connection is sent twice, with the same time.
        for _ in 0..MAX_CONNECTIONS {
            if answer.as_ref().is_err_and(tls::is_stale) {
                answer = once();
            }
        }
        let mut answer = answer.map_err(|error| error_message(&error))?;
        let status = answer.status().as_u16();
        let has_end =
            answer.headers().contains_key("content-length") || answer.headers().contains_key("transfer-encoding");
        let mut body = Vec::new();
        let read = answer.body_mut().with_config().limit(MAX_BODY).reader().read_to_end(&mut body);
        read.map_err(|error| error_message(&ureq::Error::from(error)))?;
        Ok(Response { status, body, may_be_half: !has_end && self.tls.was_cut() })
    }
}

/// The addresses of the API, the only server that is asked. ureq looks a name up for each request,
/// also if it then uses a connection that it has.
#[derive(Debug, Default)]
struct Addresses {
    resolver: DefaultResolver,
    last: Mutex<Option<(Instant, ResolvedSocketAddrs)>>,
}

impl Resolver for Addresses {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((when, addresses)) if when.elapsed() < MAX_ADDRESS_AGE => Ok(addresses.clone()),
            _ => {
                let addresses = self.resolver.resolve(uri, config, timeout)?;
                *last = Some((Instant::now(), addresses.clone()));
                Ok(addresses)
            }
        }
    }
}

/// A sentence without details that change, so that a lasting fault is logged once.
fn error_message(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no complete answer within {} s", REQUEST_TIMEOUT.as_secs()),
        ureq::Error::BodyExceedsLimit(_) => format!("the answer is longer than {} MiB", MAX_BODY >> 20),
        ureq::Error::HostNotFound => "the name of the API has no address".to_owned(),
        ureq::Error::Io(error) => error.to_string(), // without the "io: " that the next has
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::Timeout;
    use ureq::unversioned::transport::time;

    #[test]
    fn the_name_of_the_api_is_not_looked_up_for_each_request() {
        let addresses = Addresses::default();
        let timeout =
            NextTimeout { after: time::Duration::from(REQUEST_TIMEOUT), reason: Timeout::Global, ..Default::default() };
        let resolve = |name: &str| {
            let uri = format!("https://{name}/").parse().unwrap();
            addresses.resolve(&uri, &Config::default(), timeout).map(|addresses| addresses.to_vec())
        };
        assert!(resolve("no-such.invalid").is_err());
        let first = resolve("127.0.0.1").unwrap();
        // A look-up of this name would fail.
        assert_eq!(resolve("no-such.invalid").unwrap(), first);
        *addresses.last.lock().unwrap() = Instant::now().checked_sub(MAX_ADDRESS_AGE).zip(Some(addresses.empty()));
        assert!(resolve("no-such.invalid").is_err(), "it is looked up again after a while");
    }
}
