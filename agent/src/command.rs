//! Runs a program of the node: by its full path, without a shell, with a fixed environment, and for
//! a limited time.
//!
//! What is run is decided by the jobs.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Stdio};

/// Nothing that is asked here takes longer.
const SECONDS: &str = "60";

/// Runs a program. Returns its output.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("/usr/bin/timeout");
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").current_dir("/");
    command.args(["--kill-after=1", SECONDS, program]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    // One that ends early says why, and that is the error to show.
    if let Some(mut stdin) = child.stdin.take() {
        drop(stdin.write_all(input.as_bytes()));
    }
    let done = child.wait_with_output().with_context(|| format!("run {program}"))?;
    // timeout(1) exits with 124 on a timeout. If signal N ended the program (a crash, or SIGKILL
    // after the time limit), it ends by that signal, too, or exits with 128 + N.
    match done.status.code() {
        Some(0) => Ok(String::from_utf8(done.stdout)?),
        Some(124) => bail!("{program} did not end within {SECONDS} s"),
        None | Some(129..=192) => bail!("{program} crashed, or did not end within {SECONDS} s"),
        Some(127) => bail!("{program} is not installed"),
        _ => {
            let stderr = String::from_utf8_lossy(&done.stderr);
            let lines: Vec<_> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(5).collect();
            bail!("{program} failed: {}", lines.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_gets_its_words_as_they_are() {
        assert_eq!(run("/usr/bin/printf", &["%s", "$(id); `id` | a"], "").unwrap(), "$(id); `id` | a");
        assert_eq!(run("/bin/cat", &["-"], "in").unwrap(), "in");
        let error = run("/bin/ls", &["/no/such"], "").unwrap_err().to_string();
        assert!(error.contains("/bin/ls failed: ") && error.contains("No such file"), "{error}");
        assert!(run("/no/such", &[], "").unwrap_err().to_string().contains("is not installed"));
    }

    #[test]
    fn a_signal_that_ends_it_is_no_failure_without_a_reason() {
        for signal in ["KILL", "SEGV"] {
            let error = run("/bin/sh", &["-c", &format!("kill -{signal} $$")], "").unwrap_err().to_string();
            assert!(error.contains("/bin/sh crashed, or did not end within"), "{signal}: {error}");
        }
    }
}
