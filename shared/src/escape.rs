//! Escapes text that somebody else chose, for logs, terminals and messages: what is left is
//! printable ASCII and of limited length.
//!
//! Control characters and invisible characters are escaped, and so is every character beyond ASCII:
//! right-to-left text would reorder the text around it.
//!
//! Where a text is shown is not decided here.

use core::fmt::{self, Display, Formatter, Write};

/// The longest name that is shown, in bytes, with its escapes.
const MAX_NAME: usize = 128;
/// Follows a text that was truncated.
const ELLIPSIS: &str = "...";

/// A text as it is shown: a character is plain, or `\u{202e}`; a byte that is not UTF-8 is `\xff`.
#[derive(Clone, Copy)]
pub struct Escaped<'a> {
    text: &'a [u8],
    /// The characters that are not escaped.
    plain: fn(char) -> bool,
    quote: &'static str,
    /// The length at which it is truncated.
    max: usize,
}

/// A whole line or message. Names in it may be escaped already, so backslashes stay.
pub fn line(text: &str) -> Escaped<'_> {
    Escaped { text: text.as_bytes(), plain: is_printable, quote: "", max: usize::MAX }
}

/// A name or a path within a sentence: spaces stay.
pub fn name<T: AsRef<[u8]> + ?Sized>(text: &T) -> Escaped<'_> {
    Escaped { text: text.as_ref(), plain: |letter| is_printable(letter) && letter != '\\', quote: "", max: MAX_NAME }
}

/// A text in double quotes. `...` follows the closing quote of a text that was truncated.
pub fn quoted<T: AsRef<[u8]> + ?Sized>(text: &T) -> Escaped<'_> {
    let plain = |letter| is_printable(letter) && !matches!(letter, '"' | '\\');
    Escaped { text: text.as_ref(), plain, quote: "\"", max: MAX_NAME }
}

/// One word of a sentence, without quotes: every character that could end or continue the sentence
/// is escaped.
pub fn word<T: AsRef<[u8]> + ?Sized>(text: &T) -> Escaped<'_> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".:-_@%/+".contains(letter);
    Escaped { text: text.as_ref(), plain, quote: "", max: MAX_NAME }
}

/// A cgroup as in /proc/PID/cgroup, as one word. Backslashes stay, because systemd escapes unit
/// names with them.
pub fn cgroup(text: &str) -> Escaped<'_> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".:-_@%/+=,\\".contains(letter);
    Escaped { text: text.as_bytes(), plain, quote: "", max: 2 * MAX_NAME }
}

fn is_printable(letter: char) -> bool {
    letter == ' ' || letter.is_ascii_graphic()
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.quote)?;
        let is_truncated = self.write(f)?;
        f.write_str(self.quote)?;
        f.write_str(if is_truncated { ELLIPSIS } else { "" })
    }
}

impl Escaped<'_> {
    /// Writes the text, and returns whether it was truncated.
    fn write(&self, f: &mut Formatter<'_>) -> Result<bool, fmt::Error> {
        let mut room = self.max;
        let mut fits = |length: usize| {
            let rest = room.checked_sub(length);
            room = rest.unwrap_or(0);
            rest.is_some()
        };
        // More bytes than these cannot fit, whatever they are.
        let head = self.text.get(..self.max.saturating_add(4)).unwrap_or(self.text);
        for chunk in head.utf8_chunks() {
            for letter in chunk.valid().chars() {
                if (self.plain)(letter) {
                    if !fits(1) {
                        return Ok(true);
                    }
                    f.write_char(letter)?;
                // Only where a backslash is escaped, too: otherwise `\"` would be ambiguous.
                } else if matches!(letter, '"' | '\\') && !(self.plain)('\\') {
                    if !fits(2) {
                        return Ok(true);
                    }
                    write!(f, "\\{letter}")?;
                } else {
                    let escape = letter.escape_unicode();
                    if !fits(escape.len()) {
                        return Ok(true);
                    }
                    escape.fmt(f)?;
                }
            }
            for byte in chunk.invalid() {
                if !fits(4) {
                    return Ok(true);
                }
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_printable_ascii() {
        let hostile = "a\nb\r\t\0\x1b[2J\x7f\u{85}\u{9b}\u{ad}\u{200b}\u{200f}\u{2028}\u{202e}\u{2066}\u{feff}\u{e0041}\u{5d0}\u{e9}\u{a0}";
        for shown in [line(hostile), name(hostile), quoted(hostile), word(hostile), cgroup(hostile)] {
            let shown = shown.to_string();
            assert!(shown.chars().all(|letter| letter.is_ascii() && !letter.is_ascii_control()), "{shown}");
            assert!(shown.contains(r"a\u{a}b\u{d}\u{9}\u{0}\u{1b}"), "{shown}");
        }
        assert!(line(hostile).to_string().ends_with(r"\u{202e}\u{2066}\u{feff}\u{e0041}\u{5d0}\u{e9}\u{a0}"));
        assert_eq!(name(b"\xff\xe2\x80z").to_string(), r"\xff\xe2\x80z");
    }

    #[test]
    fn what_is_escaped_already_stays_in_a_line() {
        let path = name("/a b\n\\").to_string();
        assert_eq!(path, r"/a b\u{a}\\");
        assert_eq!(line(&path).to_string(), path);
        assert_eq!(line(&"x".repeat(9999)).to_string().len(), 9999);
    }

    #[test]
    fn each_place_has_its_own_letters() {
        let text = r#"it's "a\b" (c); d=e"#;
        assert_eq!(name(text).to_string(), r#"it's "a\\b" (c); d=e"#);
        assert_eq!(quoted(text).to_string(), r#""it's \"a\\b\" (c); d=e""#);
        assert_eq!(word("c d=e\"").to_string(), r#"c\u{20}d\u{3d}e\""#);
        assert_eq!(cgroup(r":/a.slice/b\x2dc.scope").to_string(), r":/a.slice/b\x2dc.scope");
        // After a backslash of its own, `\"` would be read as a backslash and a quote.
        assert_eq!(cgroup(r#":/a\"b"#).to_string(), r":/a\\u{22}b");
    }

    #[test]
    fn a_name_is_cut_between_two_letters() {
        assert_eq!(name(&"x".repeat(128)).to_string(), "x".repeat(128));
        assert_eq!(name(&"x".repeat(129)).to_string(), "x".repeat(128) + "...");
        assert_eq!(name(&"\u{202e}".repeat(99)).to_string(), r"\u{202e}".repeat(16) + "...");
        assert_eq!(quoted(&"x".repeat(200)).to_string(), format!("\"{}\"...", "x".repeat(128)));
        assert_eq!(word(&[0xff; 33]).to_string(), r"\xff".repeat(32) + "...");
        assert_eq!(cgroup(&"x".repeat(256)).to_string(), "x".repeat(256));
        assert_eq!(cgroup(&"x".repeat(257)).to_string(), "x".repeat(256) + "...");
    }
}
