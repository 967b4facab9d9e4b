//! The examples of the manuals are run: each command succeeds, and prints what stands below it.
//! Those of unbit(7) and pam_unbit(8) are run elsewhere, see tests/documents.

use std::fs;
use unbit_tests::*;

/// The commands of a manual's literal blocks, each with the lines that stand below it.
fn examples(manual: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/unbit/man/{manual}")).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines();
    while lines.by_ref().any(|line| line.starts_with(".Bd -literal")) {
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != ".Ed").collect();
        if !block.first().is_some_and(|line| line.starts_with("# ") || line.starts_with("$ ")) {
            continue; // a file, or a line of one
        }
        for line in block {
            let line = line.replace("\\e", "\\").replace("\\-", "-");
            match (line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")), found.last_mut()) {
                (Some(command), _) => found.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &(line + "\n"),
                (None, None) => {}
            }
        }
    }
    found
}

fn assert_all_run(manual: &str, at_least: usize) {
    let examples = examples(manual);
    assert!(examples.len() >= at_least, "{manual}: {examples:?}");
    for (command, output) in examples {
        let printed = sh(&command).ok();
        assert!(output.is_empty() || printed.trim_end() == output.trim_end(), "{manual}: {command}\n{printed}");
    }
}

#[test]
#[ignore = "needs the node: make test"]
fn those_of_nss_unbit() {
    let _gone = AtEnd(|| drop(fs::remove_file("/containers/web1")));
    assert_all_run("nss-unbit.8", 2);
}

#[test]
#[ignore = "needs the node: make test"]
fn those_of_unbitctl() {
    assert_all_run("unbitctl.8", 13);
}
