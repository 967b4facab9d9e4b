//! TLS for the HTTP client: OpenSSL, with the node's client certificate, and the server's
//! certificate and name verified.

use crate::names::DomainName;
use anyhow::{Context, Result, bail};
use join::regular_file;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslStream, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509VerifyResult};
use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// Where Debian keeps the authorities that everybody trusts.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What the connections of one process have in common.
#[derive(Clone)]
pub struct Tls {
    context: SslContext,
    host: DomainName,
    is_name_verified: bool,
    /// Whether the last connection ended without TLS's own end, so that what ended with it may be
    /// half.
    is_cut: Arc<AtomicBool>,
}

/// What they are made of. Root reads the files, because nobody else may read the key.
pub struct Material {
    /// The private key, in PEM.
    pub key: Vec<u8>,
    /// The certificate, in PEM, with those between it and the authority behind it.
    pub certificate: Vec<u8>,
    /// The authorities that the server's certificate may be of, in PEM.
    pub authorities: Vec<u8>,
}

/// How much of each file is read.
const MAX_FILE: u64 = 4 << 20;

impl Material {
    /// Reads the three files.
    pub fn read(key: &Path, certificate: &Path, authorities: &Path) -> Result<Self> {
        let read = |path: &Path| {
            let name = || path.display().to_string();
            let file = std::fs::File::open(path).with_context(name)?;
            if !file.metadata().with_context(name)?.is_file() {
                bail!("{} is not a regular file", name());
            }
            let bytes = regular_file::read(file, MAX_FILE).with_context(name)?;
            bytes.with_context(|| format!("{} is longer than {MAX_FILE} bytes", name()))
        };
        Ok(Self { key: read(key)?, certificate: read(certificate)?, authorities: read(authorities)? })
    }
}

impl Tls {
    /// Makes the context. Every fault of the files is found here, before anybody is asked.
    pub fn new(material: &Material, host: DomainName, is_name_verified: bool) -> Result<Self> {
        let mut context = SslContext::builder(SslMethod::tls_client())?;
        context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        context.set_mode(SslMode::AUTO_RETRY);
        context.set_verify(SslVerifyMode::PEER);
        let mut store = X509StoreBuilder::new()?;
        let authorities = X509::stack_from_pem(&material.authorities).context("the CA file")?;
        if authorities.is_empty() {
            bail!("the CA file contains no certificate");
        }
        for authority in authorities {
            store.add_cert(authority)?;
        }
        context.set_cert_store(store.build());
        let key: PKey<Private> =
            PKey::private_key_from_pem_callback(&material.key, |_| Ok(0)).context("the client's key")?;
        let mut certificates =
            X509::stack_from_pem(&material.certificate).context("the client's certificate")?.into_iter();
        let certificate = certificates.next().context("the client certificate file contains no certificate")?;
        context.set_certificate(&certificate).context("the client's certificate")?;
        certificates.try_for_each(|between| context.add_extra_chain_cert(between))?;
        context.set_private_key(&key).context("the client's private key does not match its certificate")?;
        context.check_private_key()?;
        Ok(Self { context: context.build(), host, is_name_verified, is_cut: Arc::default() })
    }

    /// Whether the connection of the last answer was cut, see [`Tls::is_cut`]. Asking takes it
    /// back.
    pub fn was_cut(&self) -> bool {
        self.is_cut.swap(false, Ordering::Relaxed)
    }

    fn session(&self) -> Result<Ssl, openssl::error::ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        let host = self.host.as_str();
        let address = host.parse::<IpAddr>();
        if address.is_err() {
            ssl.set_hostname(host)?;
        }
        if self.is_name_verified {
            match address {
                Ok(address) => ssl.param_mut().set_ip(address)?,
                Err(_) => ssl.param_mut().set_host(host)?,
            }
        }
        Ok(ssl)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("host", &self.host).finish_non_exhaustive()
    }
}

/// An error of ours, which ureq passes on unchanged.
fn failed(text: String) -> Error {
    Error::Io(io::Error::other(text))
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Encrypted;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Encrypted>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Err(Error::TlsRequired);
        }
        let mut adapter = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        adapter.set_timeout(details.timeout);
        let session = self.session().map_err(|error| failed(error.to_string()))?;
        let mut stream = SslStream::new(session, adapter).map_err(|error| failed(error.to_string()))?;
        if let Err(error) = stream.connect() {
            let verified = stream.ssl().verify_result();
            if verified != X509VerifyResult::OK {
                return Err(failed(format!("the server's certificate is refused: {}", verified.error_string())));
            }
            return Err(error.into_io_error().map_or_else(|error| failed(reason(&error)), Error::Io));
        }
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let is_cut = Arc::clone(&self.is_cut);
        Ok(Some(Encrypted { buffers, pending: Vec::new(), stream, is_cut, has_answered: false, is_asked: false }))
    }
}

/// OpenSSL's own words for an error, without the places in its source.
fn reason(error: &openssl::ssl::Error) -> String {
    let reasons = error.ssl_error().map(|stack| stack.errors().iter().filter_map(|error| error.reason()));
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    if reasons.is_empty() { "the TLS connection failed".to_owned() } else { format!("TLS: {}", reasons.join("; ")) }
}

/// Whether a connection has ended without TLS's own end.
fn is_cut(error: &openssl::ssl::Error) -> bool {
    let is_end = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    let says_end =
        |error: &openssl::error::Error| error.reason().is_some_and(|reason| reason.contains("unexpected eof"));
    match error.code() {
        ErrorCode::SYSCALL => error.io_error().is_none_or(is_end),
        ErrorCode::SSL => error.ssl_error().is_some_and(|stack| stack.errors().iter().any(says_end)),
        _ => false,
    }
}

/// As much as one record of TLS holds.
const RECORD: usize = 16 << 10;

/// A connection.
pub struct Encrypted {
    buffers: LazyBuffers,
    /// What is not sent yet, so that a request's headers and its body are one record and one
    /// packet.
    pending: Vec<u8>,
    stream: SslStream<TransportAdapter>,
    is_cut: Arc<AtomicBool>,
    /// Whether a request was answered on it.
    has_answered: bool,
    /// Whether a request was sent of whose answer nothing has come.
    is_asked: bool,
}

/// The server closed a kept connection and did not answer the request on it: as a rule it closed
/// it before the request arrived. The request is made again on another connection.
#[derive(Debug)]
struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server closed the connection before it answered")
    }
}

impl std::error::Error for Stale {}

/// Whether a request ended because its connection was [`Stale`].
pub fn is_stale(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Stale>()))
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").finish_non_exhaustive()
    }
}

impl Encrypted {
    fn send_pending(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.stream.get_mut().set_timeout(timeout);
        let sent = self.stream.write_all(&self.pending);
        self.pending.clear();
        self.is_asked = true;
        sent.map_err(|error| self.stale_or(error.into()))
    }

    /// Whether the end of the connection makes it [`Stale`].
    const fn is_stale(&self) -> bool {
        self.has_answered && self.is_asked
    }

    /// This error, unless the connection was kept and closed meanwhile.
    fn stale_or(&self, error: Error) -> Error {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let ends = [BrokenPipe, ConnectionAborted, ConnectionReset];
        let is_end = matches!(&error, Error::Io(error) if ends.contains(&error.kind()));
        if is_end && self.is_stale() { Error::Io(io::Error::other(Stale)) } else { error }
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.pending.extend_from_slice(self.buffers.output().get(..amount).unwrap_or_default());
        if self.pending.len() < RECORD { Ok(()) } else { self.send_pending(timeout) }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send_pending(timeout)?;
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = match self.stream.ssl_read(input) {
            Ok(amount) => amount,
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => 0, // close_notify: TLS's own end
            // Many servers, uWSGI's among them, end so. Whether the answer is whole has to be seen
            // by other means.
            Err(error) if is_cut(&error) => {
                self.is_cut.store(true, Ordering::Relaxed);
                0
            }
            // With TLS 1.3 it is here that a server refuses the client's certificate.
            Err(error) => {
                let error = error.into_io_error().map_or_else(|error| failed(reason(&error)), Error::from);
                return Err(self.stale_or(error));
            }
        };
        if amount == 0 && self.is_stale() {
            return Err(Error::Io(io::Error::other(Stale)));
        }
        self.has_answered |= amount > 0;
        self.is_asked &= amount == 0;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
