//! What `make demo` prints is what docs/demo.txt has, from which the README takes its transcript.

use std::process::Command;

/// Without what differs between two runs.
fn lasting(command: &str) -> String {
    let script = format!("set -o pipefail; {command} | sed -Ef /unbit/tests/demo.sed");
    let run = Command::new("bash").args(["-c", &script]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{command}: {}\n{out}{err}", run.status);
    out.trim_start().to_owned()
}

#[test]
#[ignore = "needs the node: make test"]
fn the_demo_prints_what_its_recording_has() {
    let recorded = lasting("cat /unbit/docs/demo.txt");
    let shown = lasting("/unbit/tests/demo </dev/null 2>&1");
    for (line, (recorded, shown)) in recorded.lines().zip(shown.lines()).enumerate() {
        assert_eq!(shown, recorded, "line {} of docs/demo.txt is out of date: tests/record-demo", line + 1);
    }
    assert_eq!(shown.lines().count(), recorded.lines().count(), "{shown}");
}
