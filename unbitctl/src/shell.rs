//! Quotes arguments for commands that people paste into a shell.

/// An argument, quoted where it has to be, in printable ASCII: bash, zsh and others read `$'\x0a'`.
pub fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-=/.,:_@".contains(c);
    let is_shown = |c: char| c == ' ' || c.is_ascii_graphic();
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else if argument.chars().all(is_shown) {
        format!("'{}'", argument.replace('\'', r"'\''"))
    } else {
        // No letter in it makes lines or directions of its own where the command is shown.
        let byte = |byte: u8| match byte {
            b'\'' | b'\\' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        format!("$'{}'", argument.bytes().map(byte).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shell_reads_what_was_meant() {
        for argument in ["", "/srv/image", "/srv/my image", "it's", "$HOME;`id`", "a\nb", "~", "é", "--nodes=/x"] {
            let said =
                std::process::Command::new("bash").args(["-c", &format!("printf %s {}", quoted(argument))]).output();
            assert_eq!(String::from_utf8(said.unwrap().stdout).unwrap(), argument);
        }
        assert_eq!(quoted("--nodes=/srv/nodes.txt"), "--nodes=/srv/nodes.txt");
    }
}
