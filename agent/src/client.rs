//! The HTTP client: one request and one answer, from the API alone, with limits of time and size.
//!
//! TLS is in [`tls`](crate::tls), the process that runs this in [`fetcher`](crate::fetcher).

use crate::settings::ApiDomain;
use crate::tls::Tls;
use std::io::Read;
use std::time::Duration;
use ureq::Agent;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};

/// For all of a request, from the look-up of the name to the last byte of the answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request: less than uWSGI's routers keep it.
const IDLE: Duration = Duration::from_secs(3);
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

/// What the API says to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// As HTTP has it.
    pub status: u16,
    /// What follows the headers.
    pub body: Vec<u8>,
    /// Whether the connection ended before the answer's end was seen, so that the answer may be half.
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
            .user_agent(concat!("unbit-agent/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(64 << 10)
            .build();
        let connector = ().chain(TcpConnector::default()).chain(tls.clone());
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        Self { agent, tls, base: format!("https://{}/api/private", api.authority) }
    }

    /// Asks once.
    pub fn ask(&self, request: &Request) -> Result<Response, String> {
        let address = format!("{}{}", self.base, request.path);
        let _ = self.tls.was_cut();
        let answer = match &request.body {
            None => self.agent.get(&address).call(),
            Some(body) => self.agent.post(&address).content_type("application/octet-stream").send(body.as_slice()),
        };
        let mut answer = answer.map_err(|error| words(&error))?;
        let status = answer.status().as_u16();
        let has_end =
            answer.headers().contains_key("content-length") || answer.headers().contains_key("transfer-encoding");
        let mut body = Vec::new();
        let read = answer.body_mut().with_config().limit(MAX_BODY).reader().read_to_end(&mut body);
        read.map_err(|error| words(&ureq::Error::from(error)))?;
        Ok(Response { status, body, may_be_half: !has_end && self.tls.was_cut() })
    }
}

/// A sentence that is the same each time, so that it is logged once.
fn words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no complete answer within {} s", REQUEST_TIMEOUT.as_secs()),
        ureq::Error::BodyExceedsLimit(_) => format!("the answer is longer than {} MiB", MAX_BODY >> 20),
        ureq::Error::HostNotFound => "the name of the API has no address".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}
