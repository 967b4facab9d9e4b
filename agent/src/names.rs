//! Names from the API that become file names: each is parsed into a type, and nothing else becomes
//! a path.

use std::fmt;

/// The longest domain that becomes a file, in characters: with what [`files`](crate::files) adds to
/// the name of a new file, it fits into the 255 bytes of NAME_MAX.
pub const MAX_FILE_DOMAIN: usize = 220;

/// A domain, as a file can be called: labels of letters, digits, `-` and `_`, with dots between
/// them. So it has no slash, and does not begin with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainName(String);

impl DomainName {
    /// Reads one: at most 253 characters, in labels of 63 at most (RFC 1035, 2.3.4).
    pub fn parse(text: &str) -> Option<Self> {
        let is_label = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len())
                && label.bytes().all(known)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (text.len() <= 253 && text.split('.').all(is_label)).then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number without zeros before it or a sign, as the API's keys are in the names of files.
pub fn canonical_number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names_of_files_and_nothing_more() {
        for good in ["example.com", "a", "xn--bcher-kva.example", "_dmarc.example.com", "EXAMPLE.com", "192.0.2.1"] {
            assert_eq!(DomainName::parse(good).map(|name| name.to_string()).as_deref(), Some(good));
        }
        let long = ["a".repeat(64), format!("{}.de", "a.".repeat(126)), "a.".repeat(127)];
        let bad =
            ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a..b", "a.", "-a", "a-", "a b", "a\0", "a\nb"];
        let more = ["*.example.com", "exämple.com", "a;b", "a|", "$(id)", "a%2fb", "a\\b"];
        for bad in bad.iter().chain(&more).copied().chain(long.iter().map(String::as_str)) {
            assert_eq!(DomainName::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers_have_one_way_of_writing() {
        assert_eq!(canonical_number("0"), Some(0));
        assert_eq!(canonical_number("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "00", "01", "+1", "-1", " 1", "1 ", "18446744073709551616", "١"] {
            assert_eq!(canonical_number(bad), None, "{bad:?}");
        }
    }
}
