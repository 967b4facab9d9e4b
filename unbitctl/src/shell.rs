//! Commands that people give to a shell as they are.

/// An argument, quoted where it has to be.
pub fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-=/.,:_@".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shell_reads_what_was_meant() {
        for argument in ["", "/srv/image", "/srv/my image", "it's", "$HOME;`id`", "a\nb", "~", "é", "--nodes=/x"] {
            let said =
                std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(argument))]).output();
            assert_eq!(String::from_utf8(said.unwrap().stdout).unwrap(), argument);
        }
        assert_eq!(quoted("--nodes=/srv/nodes.txt"), "--nodes=/srv/nodes.txt");
    }
}
