//! What is shown of texts that somebody else chose.

use shared::escape::{Escaped, cgroup, line, name, quoted, word};

/// Whatever the text, what is shown is printable ASCII of a bounded length. What is shown of a name
/// can be read back, to where it was cut.
pub fn check(data: &[u8]) {
    shown(name(data), data, "", |letter| letter != '\\');
    shown(quoted(data), data, "\"", |letter| !matches!(letter, '"' | '\\'));
    shown(word(data), data, "", |letter| letter.is_ascii_alphanumeric() || ".:-_@%/+".contains(letter));

    let text = String::from_utf8_lossy(data);
    let whole = line(&text).to_string();
    assert!(is_printable(&whole), "{whole:?}");
    let expected: String = text
        .chars()
        .map(|letter| match letter {
            ' '..='~' => letter.to_string(),
            _ => format!("\\u{{{:x}}}", letter as u32),
        })
        .collect();
    assert_eq!(whole, expected);
    assert_eq!(line(&whole).to_string(), whole, "what is escaped already stays");

    let group = cgroup(&text).to_string();
    assert!(is_printable(&group) && group.len() <= 256 + 3 && !group.contains([' ', ';', '"', '\'', '(']), "{group}");
}

fn shown(escaped: Escaped<'_>, data: &[u8], quote: &str, is_plain: fn(char) -> bool) {
    let shown = escaped.to_string();
    assert!(is_printable(&shown) && shown.len() <= 128 + 2 * quote.len() + 3, "{shown:?}");
    let read = |body: &str| Some(unescaped(body.strip_prefix(quote)?.strip_suffix(quote)?, is_plain));
    let is_whole = read(&shown).is_some_and(|read| read == data);
    let is_cut = || shown.strip_suffix("...").and_then(read).is_some_and(|read| data.starts_with(&read));
    assert!(is_whole || is_cut(), "{shown} is not {data:?}");
    assert!(is_whole || shown.len() > 100, "{shown} is cut too soon");
}

/// The bytes behind the escapes, one at a time.
fn unescaped(text: &str, is_plain: fn(char) -> bool) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(code) = rest.strip_prefix("\\u{") {
            let (digits, after) = code.split_once('}').expect("the end of an escape");
            let letter = char::from_u32(u32::from_str_radix(digits, 16).expect("a number")).expect("a letter");
            bytes.extend(letter.to_string().bytes());
            rest = after;
        } else if let Some(code) = rest.strip_prefix("\\x") {
            bytes.push(u8::from_str_radix(&code[..2], 16).expect("a byte"));
            rest = &code[2..];
        } else if let Some(code) = rest.strip_prefix('\\') {
            assert!(code.starts_with(['\\', '"']), "an escape of its own: {text}");
            bytes.push(code.as_bytes()[0]);
            rest = &code[1..];
        } else {
            assert!(is_plain(first), "{first:?} stands as it is in {text}");
            bytes.push(first as u8);
            rest = &rest[1..];
        }
    }
    bytes
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
