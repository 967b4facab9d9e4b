//! Formats the findings of `unbitctl check` as OpenMetrics.

use crate::engine;
use crate::report::{Finding, Profile, State};
use join::openmetrics::{Kind::Gauge, Text};
use shared::ContainerUid;

const STATES: [(State, &str); 4] =
    [(State::Ok, "ok"), (State::Warn, "warn"), (State::Fail, "fail"), (State::NotApplicable, "not-applicable")];

/// How many findings of each check ended in each way; those of a container have its labels.
pub fn text(findings: &[Finding], container: Option<ContainerUid>) -> String {
    let mut names: Vec<(Profile, &str)> = Vec::new();
    for name in findings.iter().map(|finding| (finding.profile, finding.check)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let samples = names.into_iter().flat_map(|(profile, check)| {
        STATES.into_iter().map(move |(state, state_name)| {
            let is_one =
                |finding: &&Finding| (finding.profile, finding.check, finding.state) == (profile, check, state);
            let count = findings.iter().filter(is_one).count();
            let labels = match container {
                Some(container) => vec![
                    ("uid", container.to_string()),
                    ("engine", engine::by_link(join::link::target_of(container).as_deref()).to_owned()),
                ],
                None => vec![("profile", profile.name().to_owned())],
            };
            let rest = [("check", check.to_owned()), ("state", state_name.to_owned())];
            (labels.into_iter().chain(rest).collect(), count as f64)
        })
    });
    let mut text = Text::default();
    match container {
        Some(_) => text.family(
            "unbit_container_check_findings",
            Gauge,
            "Findings of unbitctl check UID, by step and state.",
            samples,
        ),
        None => text.family("unbit_check_findings", Gauge, "Findings of unbitctl check, by name and state.", samples),
    }
    text.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_number_for_each_state() {
        let findings = [
            Finding::ok("pam", "why", "well"),
            Finding::fail("pam", "why", "ill", "fix"),
            Finding::fail("pam", "why", "worse", "fix"),
            Finding::warn("ports", "why", "open", "fix").with_profile(Profile::Guide),
        ];
        let text = text(&findings, None);
        let pam = |state: &str| format!("unbit_check_findings{{profile=\"login\",check=\"pam\",state=\"{state}\"}}");
        for (state, count) in [("ok", 1), ("warn", 0), ("fail", 2), ("not-applicable", 0)] {
            assert!(text.contains(&format!("\n{} {count}\n", pam(state))), "{text}");
        }
        assert!(text.contains("{profile=\"uwsgi.it\",check=\"ports\",state=\"warn\"} 1\n"), "{text}");
        let own = super::text(&findings[..1], ContainerUid::new(30001));
        assert!(own.contains("\nunbit_container_check_findings{uid=\"30001\",engine="), "{own}");
    }
}
