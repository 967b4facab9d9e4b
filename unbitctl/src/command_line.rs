//! What all subcommands share: messages on standard error, exit codes, the check for root, and the
//! number of a container as an argument.

use anyhow::Result;
use shared::{ContainerUid, escape};
use std::io::{self, Write};
use std::num::IntErrorKind;
use std::process::ExitCode;

/// The exit status for an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<NeedsRoot>() { ExitCode::from(3) } else { ExitCode::FAILURE }
}

/// Writes one line to standard error. A write error is ignored.
pub fn warn_line(what: impl std::fmt::Display) {
    let line = format!("unbitctl: {}\n", escape::line(&what.to_string()));
    let _ = io::stderr().write_all(line.as_bytes()); // in one piece
}

/// Writes to standard output and ignores errors: a closed pipe must not end a change half-way.
macro_rules! print_lossy {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = write!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use print_lossy;

/// The error of a command that only root may run.
#[derive(Debug)]
pub struct NeedsRoot(String);

impl std::fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NeedsRoot {}

/// Fails unless root runs this.
pub fn must_be_root(what: &'static str) -> Result<()> {
    root_or(format!("{what} needs root"))
}

/// Like [`must_be_root`], with this error message.
pub fn root_or(sentence: impl Into<String>) -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(NeedsRoot(sentence.into()).into()) }
}

/// An argument: a container's number.
pub fn container(text: &str) -> Result<ContainerUid, String> {
    use shared::settings::FIRST_UID;
    const LAST: i32 = i32::MAX;
    let out_of_range =
        || format!("containers have the numbers from {FIRST_UID} to {LAST}; `unbitctl list` shows those of this node");
    ContainerUid::parse(text.as_bytes()).ok_or_else(|| {
        let digits = text.trim_start_matches('0');
        match text.parse::<u64>() {
            Ok(65534 | 65535) => "no container can have this number: 65534 and 65535 are reserved".to_owned(),
            Ok(0..) if ContainerUid::parse(digits.as_bytes()).is_some() => {
                format!("a container's number has no zeros before it: {digits}")
            }
            Ok(0..) => out_of_range(),
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => out_of_range(),
            Err(_) => format!(
                "a container's number is needed, such as {}, or a name of it: `unbitctl list` shows those of this node",
                FIRST_UID + 1
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_container_says_why() {
        for (text, why) in [
            ("29999", "containers have the numbers from 30000 to 2147483647"),
            ("2147483648", "containers have the numbers from 30000 to 2147483647"),
            ("99999999999999999999999", "containers have the numbers from 30000 to 2147483647"),
            ("65534", "65534 and 65535 are reserved"),
            ("030001", "no zeros before it: 30001"),
            ("Web1", "a container's number is needed, such as 30001"),
        ] {
            let message = container(text).map(|_| ()).expect_err(text);
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}
