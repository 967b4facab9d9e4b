//! Keys and certificates as a line of the log names them, compared with what ssh-keygen(1) prints.

use super::*;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

fn words(remote_host: &str, auth_info: &[u8]) -> String {
    let words = origin(
        Some(&CString::new(remote_host).unwrap()),
        &accepted_methods(Some(&CString::new(auth_info).expect("sshd's variable has no NUL"))),
    );
    assert!(words.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{words:?}");
    assert!(words.len() < 4096, "{words}");
    words
}

/// What comes after "with".
fn with(auth_info: &[u8]) -> String {
    words("192.0.2.7", auth_info).strip_prefix(" from 192.0.2.7 with ").unwrap().to_owned()
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn line(kind: &str, blob: &[u8]) -> Vec<u8> {
    format!("publickey {kind} {}\n", Base64::encode_string(blob)).into_bytes()
}

fn ed25519() -> Vec<u8> {
    [field(b"ssh-ed25519"), field(&[7; 32])].concat()
}

const CERTIFICATE: &str = "ssh-ed25519-cert-v01@openssh.com";

fn certificate_of(id: &[u8]) -> Vec<u8> {
    let mut blob = [field(CERTIFICATE.as_bytes()), field(&[1; 8]), field(&[7; 32])].concat();
    blob.extend(7_u64.to_be_bytes());
    blob.extend(1_u32.to_be_bytes());
    blob.extend(field(id));
    blob.extend(field(&field(b"30001")));
    blob.extend([0; 16]);
    blob.extend([field(b""), field(b""), field(b""), field(&ed25519()), field(b"signature")].concat());
    blob
}

const KEY: &str = "ssh-ed25519 SHA256:gNSIRW+2Iyiuvsdp/bgjy38bvWHw6wQm3tuoXrl3WjQ";

#[test]
fn an_address_and_a_key() {
    assert_eq!(words("2001:db8::7", &line("ssh-ed25519", &ed25519())), format!(" from 2001:db8::7 with {KEY}"));
}

#[test]
fn a_certificate() {
    let fingerprint = KEY.split_once(' ').unwrap().1;
    assert_eq!(
        with(&line(CERTIFICATE, &certificate_of(b"web1 of Ada"))),
        format!("{CERTIFICATE} {fingerprint} ID \"web1 of Ada\" (serial 7) CA {KEY}")
    );
}

#[test]
fn several_methods() {
    let key = line("ssh-ed25519", &ed25519());
    let two = [key.as_slice(), b"keyboard-interactive/pam\n"].concat();
    assert_eq!(with(&two), format!("{KEY} and keyboard-interactive/pam"));
    assert_eq!(with(&key.repeat(6)), format!("{KEY} and {KEY} and {KEY} and {KEY} and more"));
}

#[test]
fn what_sshd_adds_behind_a_key() {
    let key = String::from_utf8(line("ssh-ed25519", &ed25519())).unwrap();
    let (_, key) = key.trim_end().split_once(' ').unwrap();
    assert_eq!(with(format!("publickey {key} signature count = 3\n").as_bytes()), KEY);
    assert_eq!(
        with(format!("hostbased {key} client user \"a\u{202e}b\", client host \"h\"\n").as_bytes()),
        format!(r#"hostbased {KEY} "client user \"a\u{{202e}}b\", client host \"h\"""#)
    );
    assert_eq!(with(b"gssapi-with-mic ada@EXAMPLE.ORG\n"), "gssapi-with-mic \"ada@EXAMPLE.ORG\"");
}

#[test]
fn nothing_known() {
    assert_eq!(origin(None, ""), "");
    assert_eq!(words("", b""), "");
    assert_eq!(words("192.0.2.7", b"\n"), " from 192.0.2.7");
    assert_eq!(origin(None, &accepted_methods(Some(c"password"))), " with password");
}

#[test]
fn unreadable() {
    for text in ["", " ", " ssh-ed25519", " ssh-ed25519 ", " ssh-ed25519 !!!!", " ssh-ed25519 AAAA", " \u{e9} AAAA"] {
        assert_eq!(with(format!("publickey{text}").as_bytes()), "publickey (unreadable)", "{text}");
    }
    assert_eq!(with(b"hostbased ssh-rsa AAAA"), "hostbased (unreadable)");
    assert_eq!(with(&line("ssh-rsa", &ed25519())), "publickey (unreadable)");
    let longer = [certificate_of(b"id"), vec![0]].concat();
    assert_eq!(with(&line(CERTIFICATE, &longer)), "publickey (unreadable)");
}

#[test]
fn a_type_that_is_not_known_here_has_a_fingerprint() {
    for kind in ["ssh-new@example.org", "ssh-new-cert-v01@openssh.com", "ssh-new-cert-v02@openssh.com"] {
        let blob = [field(kind.as_bytes()), b"whatever".to_vec()].concat();
        assert_eq!(with(&line(kind, &blob)), format!("{kind} {}", fingerprint(&blob)));
    }
}

#[test]
fn what_others_choose_is_escaped() {
    for (id, shown) in [
        (&b"a\nb\x1b[2J\x00\x7f"[..], r"a\u{a}b\u{1b}[2J\u{0}\u{7f}"),
        (br#"" (serial 8) CA \"#, r#"\" (serial 8) CA \\"#),
        ("\u{202e}\u{200b}\u{feff}\u{e9}\u{85}".as_bytes(), r"\u{202e}\u{200b}\u{feff}\u{e9}\u{85}"),
        (b"\xff\xe2\x80", r"\xff\xe2\x80"),
        (b"it's 100% ok;", "it's 100% ok;"),
    ] {
        let certificate = with(&line(CERTIFICATE, &certificate_of(id)));
        assert!(certificate.contains(&format!(" ID \"{shown}\" (serial 7) ")), "{certificate}");
    }
    assert_eq!(
        words("a with ssh-ed25519 \"b\\;\u{430}", b""),
        r#" from a\u{20}with\u{20}ssh-ed25519\u{20}\"b\\\u{3b}\u{430}"#
    );
    assert_eq!(with(b"pass\tword"), r"pass\u{9}word");
}

#[test]
fn what_others_choose_is_cut() {
    for (id, shown) in [
        ("x".repeat(128), format!("\"{}\" (serial", "x".repeat(128))),
        ("x".repeat(129), format!("\"{}\"... (serial", "x".repeat(128))),
        (format!("{}\u{202e}", "x".repeat(120)), format!("\"{}\\u{{202e}}\" (serial", "x".repeat(120))),
        (format!("{}\u{202e}", "x".repeat(121)), format!("\"{}\"... (serial", "x".repeat(121))),
        ("\u{202e}".repeat(99_999), format!("\"{}\"... (serial", r"\u{202e}".repeat(16))),
        // The head that is looked at ends within a letter.
        (format!("x{}", "\u{430}".repeat(99)), format!("\"x{}\"... (serial", r"\u{430}".repeat(18))),
    ] {
        let certificate = with(&line(CERTIFICATE, &certificate_of(id.as_bytes())));
        assert!(certificate.contains(&format!(" ID {shown}")), "{certificate}");
    }
    assert_eq!(words(&"h".repeat(999), b""), format!(" from {}...", "h".repeat(128)));
}

/// `words` looks at what comes of each.
#[test]
fn every_truncation_and_every_flipped_bit() {
    for (kind, blob) in [(CERTIFICATE, certificate_of(b"id")), ("ssh-ed25519", ed25519())] {
        let whole = with(&line(kind, &blob));
        for end in 0..blob.len() {
            let cut = with(&line(kind, &blob[..end]));
            assert!(cut == "publickey (unreadable)" || kind != CERTIFICATE, "{end}: {cut}");
            assert_ne!(cut, whole);
        }
        for bit in 0..blob.len() * 8 {
            let mut flipped = blob.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            with(&line(kind, &flipped));
        }
        let line = line(kind, &blob);
        for end in 0..line.len() {
            words("h", &line[..end]);
        }
        for bit in 0..line.len() * 8 {
            let mut flipped = line.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped.retain(|byte| *byte != 0);
            words("h", &flipped);
        }
    }
}

/// A directory that ends with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("unbit-record-{}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn keygen(words: &[&str]) -> String {
    let output = Command::new("ssh-keygen").args(words).output().unwrap();
    assert!(output.status.success(), "ssh-keygen {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The `SSH_AUTH_INFO_0` of a file in the format of `authorized_keys`.
fn info(public: &Path) -> Vec<u8> {
    let text = fs::read_to_string(public).unwrap();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    format!("publickey {}\n", words.join(" ")).into_bytes()
}

/// `256 SHA256:... comment (ED25519)`
fn fingerprint_by_keygen(public: &Path) -> String {
    keygen(&["-lf", public.to_str().unwrap()]).split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn fingerprints_ids_and_serials_are_those_of_ssh_keygen() {
    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        eprintln!("NOT TRIED: ssh-keygen is missing (openssh-client)");
        assert_ne!(env::var("CI").as_deref(), Ok("true"));
        return;
    }
    let directory = Directory::new();
    let file = |name: &str| directory.0.join(name);
    let make = |name: &str, kind: &str, bits: &str| {
        keygen(&["-q", "-N", "", "-C", "", "-t", kind, "-b", bits, "-f", file(name).to_str().unwrap()]);
    };
    let kinds = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];
    for (name, (kind, bits)) in
        kinds.iter().zip([("ed25519", "256"), ("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521")])
    {
        make(name, kind, bits);
    }
    // The keys of a security key without one: their public part is another key's with the name of
    // an application behind it.
    let sk =
        [("sk-ssh-ed25519@openssh.com", "ssh-ed25519"), ("sk-ecdsa-sha2-nistp256@openssh.com", "ecdsa-sha2-nistp256")];
    for (name, of) in sk {
        let text = fs::read_to_string(file(&format!("{of}.pub"))).unwrap();
        let blob = Base64::decode_vec(text.split(' ').nth(1).unwrap().trim()).unwrap();
        let blob = [field(name.as_bytes()), blob[4 + of.len()..].to_vec(), field(b"ssh:")].concat();
        fs::write(file(&format!("{name}.pub")), format!("{name} {}\n", Base64::encode_string(&blob))).unwrap();
    }
    make("ca-ed25519", "ed25519", "256");
    make("ca-rsa", "rsa", "2048");

    for kind in kinds.into_iter().chain(sk.map(|(name, _)| name)) {
        let public = file(&format!("{kind}.pub"));
        let fingerprint = fingerprint_by_keygen(&public);
        assert_eq!(with(&info(&public)), format!("{kind} {fingerprint}"));

        for (ca, ca_kind) in [("ca-ed25519", "ssh-ed25519"), ("ca-rsa", "ssh-rsa")] {
            let id = format!("{kind} by {ca}");
            keygen(&[
                "-q",
                "-s",
                file(ca).to_str().unwrap(),
                "-I",
                &id,
                "-z",
                "18446744073709551615",
                "-n",
                "30001,30002",
                "-O",
                "force-command=true",
                "-V",
                "+1d",
                public.to_str().unwrap(),
            ]);
            let certificate = file(&format!("{kind}-cert.pub"));
            let shown = keygen(&["-Lf", certificate.to_str().unwrap()]);
            let value = |of: &str| shown.lines().find_map(|line| line.trim().strip_prefix(of)).expect(of).to_owned();
            let (id, serial) = (value("Key ID: "), value("Serial: "));
            let (certified, authority) = (value("Public key: "), value("Signing CA: "));
            let words: Vec<&str> =
                [certified.as_str(), &authority].iter().map(|text| text.split(' ').nth(1).unwrap()).collect();
            assert_eq!(words[0], fingerprint);
            assert_eq!(words[1], fingerprint_by_keygen(&file(&format!("{ca}.pub"))));

            let name = kind.replace("@openssh.com", "");
            assert_eq!(
                with(&info(&certificate)),
                format!("{name}-cert-v01@openssh.com {} ID {id} (serial {serial}) CA {ca_kind} {}", words[0], words[1])
            );
        }
    }
}

#[test]
fn the_client_of_a_connection() {
    let of = |text: &str| client(Some(&CString::new(text).unwrap()));
    assert_eq!(of("192.0.2.7 40022 192.0.2.1 22"), Some(("192.0.2.7".into(), "40022".into())));
    assert_eq!(of("2001:db8::7 40022 2001:db8::1 22"), Some(("2001:db8::7".into(), "40022".into())));
    for other in ["UNKNOWN 65535 UNKNOWN 65535", "192.0.2.7", "192.0.2.7 x", "192.0.2.7 65536", "", "\n1 2"] {
        assert_eq!(of(other), None, "{other}");
    }
    assert_eq!(client(None), None);
}
