//! Parses SSH_AUTH_INFO_0, and describes for the log the client's address and the key or
//! certificate that sshd accepted.
//!
//! sshd puts what it accepted into the PAM environment as `SSH_AUTH_INFO_0` (OpenSSH `auth-pam.c`
//! expose_authinfo, `auth2.c` auth2_update_session_info): one line for each method, with the public
//! key or certificate as in `authorized_keys`. The words follow sshd's own log (`auth.c`
//! format_method_key). Every text that a client or a certificate authority can choose is escaped
//! and truncated.

use base64ct::{Base64, Base64Unpadded, Encoding};
use sha2::{Digest, Sha256};
use shared::escape::{quoted, word};
use std::ffi::CStr;
use std::net::IpAddr;
use std::str;

/// sshd may require several methods (`AuthenticationMethods` in `sshd_config(5)`). The log has
/// four, and says that there are more.
const MAX_METHODS: usize = 4;

/// The words for the log, each clause with a space before it: ` from 192.0.2.7 with ssh-ed25519
/// SHA256:...`. Empty if nothing is known. `remote_host` is PAM_RHOST, `keys` are those of
/// [`accepted_methods`].
pub fn origin(remote_host: Option<&CStr>, keys: &str) -> String {
    let mut words = String::new();
    if let Some(host) = remote_host.filter(|host| !host.is_empty()) {
        words += &format!(" from {}", word(host.to_bytes()));
    }
    if !keys.is_empty() {
        words += &format!(" with {keys}");
    }
    words
}

/// What sshd accepted: `ssh-ed25519 SHA256:... and password`.
///
/// `auth_info` is `SSH_AUTH_INFO_0`, which sshd completes only before it opens the session: in the
/// account hook the last method can be missing.
pub fn accepted_methods(auth_info: Option<&CStr>) -> String {
    let mut words = String::new();
    let lines = auth_info.map(CStr::to_bytes).unwrap_or_default().split(|byte| *byte == b'\n');
    for (number, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        match number {
            0 => words += &describe_method(line),
            1..MAX_METHODS => words += &format!(" and {}", describe_method(line)),
            MAX_METHODS => words += " and more",
            _ => {}
        }
    }
    words
}

/// The client's address and port, as `SSH_CONNECTION` has them: `192.0.2.7 40022 192.0.2.1 22`.
/// sshd puts that into the PAM environment, too (OpenSSH `auth-pam.c` sshpam_init).
pub fn client(connection: Option<&CStr>) -> Option<(String, String)> {
    let mut words = connection?.to_bytes().split(|byte| *byte == b' ');
    let (address, port) = (words.next()?, words.next()?);
    // Without a TCP connection, sshd sets the port 65535 and no valid address.
    let is_address = str::from_utf8(address).is_ok_and(|address| address.parse::<IpAddr>().is_ok());
    let is_port = str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok());
    (is_address && is_port).then(|| (word(address).to_string(), word(port).to_string()))
}

/// One line of `SSH_AUTH_INFO_0`: `METHOD[/SUBMETHOD] [TYPE BASE64] [INFORMATION]`.
fn describe_method(line: &[u8]) -> String {
    let (name, rest) = split_at_space(line);
    match name {
        // sshd appends the use counter of a security key to its key.
        b"publickey" => describe_key(rest).map_or_else(|| "publickey (unreadable)".to_owned(), |(key, _counter)| key),
        b"hostbased" => describe_key(rest).map_or_else(
            || "hostbased (unreadable)".to_owned(),
            |(key, client)| format!("hostbased {key} {}", quoted(client)),
        ),
        _ if rest.is_empty() => word(name).to_string(),
        _ => format!("{} {}", word(name), quoted(rest)),
    }
}

/// `TYPE BASE64 REST`: the words for the key, and the rest.
fn describe_key(text: &[u8]) -> Option<(String, &[u8])> {
    let (kind, rest) = split_at_space(text);
    let (base64, rest) = split_at_space(rest);
    let kind = str::from_utf8(kind).ok()?;
    let blob = Base64::decode_vec(str::from_utf8(base64).ok()?).ok()?;
    let words = match certified(kind) {
        Some((plain, fields)) => format!("{} {}", word(kind.as_bytes()), certificate(&plain, fields, &blob)?),
        None => public_key(&blob).filter(|_| string(&mut &*blob) == Some(kind.as_bytes()))?,
    };
    Some((words, rest))
}

/// A public key's type and fingerprint, as `ssh-keygen -l` prints it. The hash covers the whole
/// blob, so a type unknown here has one too.
fn public_key(blob: &[u8]) -> Option<String> {
    let mut fields = blob;
    let kind = string(&mut fields)?;
    (!fields.is_empty()).then(|| format!("{} {}", word(kind), fingerprint(blob)))
}

/// For a type of certificate: the type of the key in it, and how many fields that key has (OpenSSH
/// `PROTOCOL.certkeys`).
fn certified(kind: &str) -> Option<(String, usize)> {
    let name = kind.strip_suffix("-cert-v01@openssh.com")?;
    let fields = match name {
        "ssh-ed25519" => 1,
        "ssh-rsa" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" | "sk-ssh-ed25519" => 2,
        "sk-ecdsa-sha2-nistp256" => 3,
        "ssh-dss" => 4,
        _ => return None,
    };
    let vendor = if name.starts_with("sk-") { "@openssh.com" } else { "" };
    Some((format!("{name}{vendor}"), fields))
}

/// The fingerprint of a certificate's key, the id, the serial number and the authority. sshd has
/// verified the signature.
fn certificate(plain_kind: &str, key_fields: usize, blob: &[u8]) -> Option<String> {
    let mut fields = blob;
    let (_kind, _nonce) = (string(&mut fields)?, string(&mut fields)?);

    let from_key = fields;
    for _ in 0..key_fields {
        string(&mut fields)?;
    }
    let key = from_key.get(..from_key.len() - fields.len())?;

    let serial = u64::from_be_bytes(*take(&mut fields)?);
    let _user_or_host: &[u8; 4] = take(&mut fields)?;
    let id = string(&mut fields)?;
    let _principals = string(&mut fields)?;
    let _validity: &[u8; 16] = take(&mut fields)?;
    let (_options, _extensions, _reserved) = (string(&mut fields)?, string(&mut fields)?, string(&mut fields)?);
    let authority = public_key(string(&mut fields)?)?;
    let _signature = string(&mut fields)?;
    if !fields.is_empty() {
        return None;
    }

    // The fingerprint is that of the key alone (OpenSSH `sshkey.c` sshkey_fingerprint_raw), so its
    // blob is put together again.
    let length = u32::try_from(plain_kind.len()).ok()?;
    let key = [&length.to_be_bytes(), plain_kind.as_bytes(), key].concat();
    Some(format!("{} ID {} (serial {serial}) CA {authority}", fingerprint(&key), quoted(id)))
}

fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", Base64Unpadded::encode_string(&Sha256::digest(blob)))
}

/// Takes a string of RFC 4251 section 5 from the front: its length in four bytes, then so many
/// bytes.
fn string<'a>(fields: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(*take(fields)?);
    let (string, rest) = fields.split_at_checked(usize::try_from(length).ok()?)?;
    *fields = rest;
    Some(string)
}

/// Takes a fixed number of bytes from the front.
fn take<'a, const N: usize>(fields: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (bytes, rest) = fields.split_first_chunk()?;
    *fields = rest;
    Some(bytes)
}

/// What is before the first space, and what is after it.
fn split_at_space(text: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = text.splitn(2, |byte| *byte == b' ');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
