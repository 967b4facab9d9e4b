//! SSH_AUTH_INFO_0 and the client's address, as the log shows them.

use crate::pam_unbit::auth_info::{accepted_methods, client, origin};
use base64ct::{Base64, Base64Unpadded, Encoding};
use sha2::{Digest, Sha256};
use std::ffi::CString;

/// The first line is the client's address, or SSH_CONNECTION, the rest what sshd writes. What the
/// log gets is one line of a bounded length; outside of quotes there is no word but ours, the key's
/// and the client's; and a plain key has the fingerprint that SHA256 of its base64 makes.
pub fn check(data: &[u8]) {
    let (host, info) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let c_string = |bytes: &[u8]| CString::new(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).unwrap();
    let info = c_string(info.get(1..).unwrap_or_default());
    let host = c_string(host);
    let shown = origin(Some(&host), &accepted_methods(Some(&info)));
    assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown:?}");
    assert!(shown.len() < 3000, "{} bytes", shown.len());
    assert!(shown.is_empty() || shown.starts_with(" from ") || shown.starts_with(" with "), "{shown}");

    if let Some((address, port)) = client(Some(&host)) {
        let words: Vec<&[u8]> = host.as_bytes().split(|byte| *byte == b' ').collect();
        assert_eq!(words[..2], [address.as_bytes(), port.as_bytes()]);
        assert!(address.parse::<std::net::IpAddr>().is_ok() && port.trim_start_matches('+').parse::<u16>().is_ok());
    }

    let outside: Vec<String> = outside_of_quotes(&shown);
    assert!(!outside.iter().any(|word| word.contains(';')), "another clause: {shown}");
    // The address and the methods' names are the node's own, but for a method that is called like
    // one of these.
    let lines = || data.split(|byte| *byte == b'\n').map(|line| line.split(|byte| b" \0".contains(byte)).next());
    for (word, most) in [("from", 1), ("with", 1), ("and", 4)] {
        let is_a_name = lines().any(|name| name == Some(word.as_bytes()));
        let count = outside.iter().filter(|other| *other == word).count();
        assert!(is_a_name || count <= most, "{count} times {word}: {shown}");
    }

    for line in info.as_bytes().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(4) {
        let Some(expected) = plain_key(line) else { continue };
        assert!(shown.contains(&expected), "{expected} is not in {shown}");
    }
}

/// The words that are not in quotes; those are one word `"`.
fn outside_of_quotes(text: &str) -> Vec<String> {
    let (mut words, mut is_quoted, mut letters) = (vec![String::new()], false, text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                let escape = [Some(letter), letters.next()].into_iter().flatten();
                words.last_mut().unwrap().extend(escape.filter(|_| !is_quoted));
            }
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            _ if !is_quoted => words.last_mut().unwrap().push(letter),
            _ => {}
        }
    }
    assert!(!is_quoted, "a quote that does not end: {text}");
    words
}

/// What the log has of a key without a certificate: its type is the first string in its blob (RFC
/// 4253 section 6.6).
fn plain_key(line: &[u8]) -> Option<String> {
    let mut words = std::str::from_utf8(line).ok()?.strip_prefix("publickey ")?.split(' ');
    let (kind, base64) = (words.next()?, words.next()?);
    let is_plain = kind.len() < 100 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.@".contains(&byte));
    if !is_plain || kind.ends_with("-cert-v01@openssh.com") {
        return None;
    }
    let blob = Base64::decode_vec(base64).ok()?;
    let start = [&(kind.len() as u32).to_be_bytes(), kind.as_bytes()].concat();
    let is_of_this_kind = blob.starts_with(&start) && blob.len() > start.len();
    let hash = Base64Unpadded::encode_string(&Sha256::digest(&blob));
    is_of_this_kind.then(|| format!("{kind} SHA256:{hash}"))
}
