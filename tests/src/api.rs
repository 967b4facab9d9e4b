//! A stand-in for uwsgi.it's API: TLS with client certificates, answers that a test chooses, and a
//! record of the requests.

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509NameBuilder};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Its name.
pub const HOST: &str = "api.test";

/// A key and its certificate.
pub struct Pair {
    /// The private key.
    pub key: PKey<Private>,
    /// The certificate.
    pub certificate: X509,
}

impl Pair {
    /// Makes one: an authority without an issuer, or else a certificate for this name.
    pub fn new(name: &str, issuer: Option<&Self>) -> Self {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let mut subject = X509NameBuilder::new().unwrap();
        subject.append_entry_by_text("CN", name).unwrap();
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(120, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name())).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
        if issuer.is_none() {
            builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        } else {
            let context = builder.x509v3_context(issuer.map(|issuer| &*issuer.certificate), None);
            let names = SubjectAlternativeName::new().dns(name).build(&context).unwrap();
            builder.append_extension(names).unwrap();
        }
        builder.sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
        Self { key, certificate: builder.build() }
    }

    fn write(&self, directory: &Path, name: &str) {
        let key = directory.join(format!("{name}.key"));
        fs::write(&key, self.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(directory.join(format!("{name}.crt")), self.certificate.to_pem().unwrap()).unwrap();
    }
}

/// What is answered to a path.
#[derive(Clone)]
pub struct Answer {
    bytes: Vec<u8>,
    end: End,
}

/// What follows an answer's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The next request on the same connection.
    Next,
    /// The next request, and the end of the connection instead of its answer.
    Last,
    /// The end of the connection, as TLS has it.
    Close,
    /// Its end without a word, as when the server dies.
    Cut,
    /// Nothing, for as long as the client likes.
    Silence,
    /// Zeros without end.
    Flood,
}

impl Answer {
    fn with(bytes: Vec<u8>, end: End) -> Self {
        Self { bytes, end }
    }

    /// An ordinary answer.
    pub fn new(status: u16, body: &str) -> Self {
        let head =
            format!("HTTP/1.1 {status} Status\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
        Self::with((head + body).into_bytes(), End::Next)
    }

    /// 200 and this body.
    pub fn ok(body: &str) -> Self {
        Self::new(200, body)
    }

    /// An answer that says that it has so many bytes, and has others.
    pub fn of_length(length: u64, body: &str) -> Self {
        Self::with(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes(), End::Close)
    }

    /// An answer that ends with its connection, as HTTP/1.0 has it.
    pub fn until_the_end(body: &str) -> Self {
        Self::with(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}").into_bytes(), End::Close)
    }

    /// Like [`Self::until_the_end`], but the connection ends without TLS's own end, so that nobody
    /// can tell whether something is missing.
    pub fn cut(body: &str) -> Self {
        Self { end: End::Cut, ..Self::until_the_end(body) }
    }

    /// An ordinary answer, after which the connection ends just when the next request is there.
    pub fn last(status: u16, body: &str) -> Self {
        Self { end: End::Last, ..Self::new(status, body) }
    }

    /// Any bytes, and the end of the connection.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(bytes.into(), End::Close)
    }

    /// The beginning of an answer, and then nothing more.
    pub fn stalled() -> Self {
        Self::with(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[".to_vec(), End::Silence)
    }

    /// An answer that never ends.
    pub fn endless() -> Self {
        Self::with(b"HTTP/1.1 200 OK\r\n\r\n[".to_vec(), End::Flood)
    }
}

/// A request, as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// GET or POST.
    pub method: String,
    /// Below /api/private.
    pub path: String,
    /// What was sent with it.
    pub body: String,
    /// The name in the client's certificate.
    pub client: String,
    /// Which connection it came over: the port of its other end.
    pub connection: u16,
    /// Whether all of it was in one record of TLS.
    pub in_one_record: bool,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Vec<Answer>>,
    asked: Vec<Asked>,
    bytes_sent: u64,
}

/// The server. It runs as long as the test program does.
pub struct Api {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Api {
    /// Starts one with a certificate for its name, and writes local.ini and the files that it names
    /// into a directory.
    pub fn start(directory: &Path) -> Self {
        let authority = Pair::new("authority.test", None);
        let server = Pair::new(HOST, Some(&authority));
        Self::start_as(directory, &authority, &server)
    }

    /// Starts it with this certificate of the server's.
    pub fn start_as(directory: &Path, authority: &Pair, server: &Pair) -> Self {
        let client = Pair::new("node.test", Some(authority));
        client.write(directory, "client");
        authority.write(directory, "ca");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let place = directory.display();
        let local = format!(
            "[uwsgi]\npublic_ip = 192.0.2.1\napi_domain = {HOST}:{port}\napi_client_key_file = {place}/client.key\n\
            api_client_cert_file = {place}/client.crt\napi_ca_file = {place}/ca.crt\n"
        );
        fs::write(directory.join("local.ini"), local).unwrap();

        let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
        context.set_private_key(&server.key).unwrap();
        context.set_certificate(&server.certificate).unwrap();
        context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        context.set_session_id_context(b"unbit").unwrap();
        let mut store = X509StoreBuilder::new().unwrap();
        store.add_cert(authority.certificate.clone()).unwrap();
        context.set_cert_store(store.build());
        let context = context.build();
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (context, state) = (context.clone(), Arc::clone(&served));
                std::thread::spawn(move || serve(&context, connection.unwrap(), &state));
            }
        });
        Self { state, port }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is answered to a path from now on, or with `POST ` before it to what is sent there; the
    /// last of several answers again and again.
    pub fn answers(&self, path: &str, answers: impl Into<Vec<Answer>>) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answers.into());
    }

    /// Answers a path with 200 and this text.
    pub fn says(&self, path: &str, body: &str) {
        self.answers(path, [Answer::ok(body)]);
    }

    /// What has been asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// How many bytes have been sent as bodies without end.
    pub fn bytes_sent(&self) -> u64 {
        self.state.lock().unwrap().bytes_sent
    }
}

fn serve(context: &SslContext, connection: TcpStream, state: &Mutex<State>) {
    connection.set_nodelay(true).unwrap();
    let peer = connection.peer_addr().map_or(0, |address| address.port());
    let mut stream = SslStream::new(Ssl::new(context).unwrap(), connection).unwrap();
    if stream.accept().is_err() {
        // The client refuses it, or has no certificate that is known. What the client still sends
        // is read, or the alert would be lost by a reset.
        let connection = stream.get_mut();
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(connection, &mut std::io::sink());
        return;
    }
    let name = stream.ssl().peer_certificate().and_then(|certificate| {
        let entry = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
        Some(String::from_utf8_lossy(entry.data().as_slice()).into_owned())
    });
    let mut stream = BufReader::new(stream);
    while let Some((method, path, body, in_one_record)) = request(&mut stream) {
        let stream = stream.get_mut();
        let path = path.strip_prefix("/api/private").map_or(format!("not below /api/private: {path}"), str::to_owned);
        let answer = {
            let mut state = state.lock().unwrap();
            let client = name.clone().unwrap_or_default();
            state.asked.push(Asked {
                method: method.clone(),
                path: path.clone(),
                body,
                client,
                connection: peer,
                in_one_record,
            });
            let plain = path.split('?').next().unwrap_or_default();
            let key = if method == "POST" { format!("POST {plain}") } else { plain.to_owned() };
            match state.answers.get_mut(&key) {
                Some(answers) if answers.len() > 1 => answers.remove(0),
                Some(answers) => answers.first().cloned().unwrap_or_else(|| Answer::new(404, "")),
                None if method == "POST" => Answer::new(201, "Created\n"),
                None => Answer::new(403, "Forbidden\n"),
            }
        };
        if stream.write_all(&answer.bytes).is_err() {
            return;
        }
        match answer.end {
            End::Next => {}
            End::Last => {
                let _ = stream.read(&mut [0; 4096]); // what is left unread would be a reset
                return;
            }
            End::Close => {
                let _ = stream.shutdown();
                return;
            }
            End::Cut => return,
            End::Silence => {
                let _ = stream.read(&mut [0]);
                return;
            }
            End::Flood => {
                let zeros = vec![b'0'; 64 << 10];
                while stream.write_all(&zeros).is_ok() {
                    state.lock().unwrap().bytes_sent += zeros.len() as u64;
                }
                return;
            }
        }
    }
}

/// Method, path and body of the next request, and whether they came in one record.
fn request(stream: &mut BufReader<SslStream<TcpStream>>) -> Option<(String, String, String, bool)> {
    let first_record = stream.fill_buf().ok()?.len();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut first = head.lines().next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((method, path, String::from_utf8_lossy(&body).into_owned(), head.len() + body.len() == first_record))
}
