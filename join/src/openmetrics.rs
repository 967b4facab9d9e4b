//! Metrics as text: OpenMetrics 1.0, in the part of it that the text format of Prometheus (0.0.4)
//! shares, which is what node_exporter's textfile collector reads.
//!
//! The formats differ in counters: OpenMetrics wants `# TYPE x counter` before samples `x_total`,
//! Prometheus `# TYPE x_total counter`. So a counter has no such line; its name says what it is. `#
//! UNIT` and `# EOF` are comments for Prometheus.

use std::fmt::Write;

/// What the samples of a family are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, from when the machine or the container started. Its name ends in `_total`.
    Counter,
}

/// Units that a name may end in.
const UNITS: [&str; 2] = ["bytes", "seconds"];

/// The text, as far as it is written.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// A family with its samples: labels and value of each. One without samples is not written.
    pub fn family(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let text = &mut self.0;
        if kind == Kind::Gauge {
            let _ = writeln!(text, "# TYPE {name} gauge");
            if let Some(unit) = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
        }
        let _ = writeln!(text, "# HELP {name} {}", escaped(help));
        for (labels, value) in samples {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }

    /// The whole text.
    pub fn end(self) -> String {
        self.0 + "# EOF\n"
    }
}

/// What both formats escape in a label's value; help texts have no quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples() {
        let mut text = Text::default();
        let labels = |uid: &str| vec![("uid", uid.to_owned()), ("engine", "a\\b\"\nc".to_owned())];
        text.family(
            "unbit_x_bytes",
            Kind::Gauge,
            "Some.",
            [(labels("30001"), 1_073_741_824.0), (labels("30002"), 0.5)],
        );
        text.family("unbit_x_seconds_total", Kind::Counter, "Time.", [(Vec::new(), 18_446_744_073_709_552_000.0)]);
        text.family("unbit_none", Kind::Gauge, "None.", []);
        let expected = "\
# TYPE unbit_x_bytes gauge
# UNIT unbit_x_bytes bytes
# HELP unbit_x_bytes Some.
unbit_x_bytes{uid=\"30001\",engine=\"a\\\\b\\\"\\nc\"} 1073741824
unbit_x_bytes{uid=\"30002\",engine=\"a\\\\b\\\"\\nc\"} 0.5
# HELP unbit_x_seconds_total Time.
unbit_x_seconds_total 18446744073709552000
# EOF
";
        assert_eq!(text.end(), expected);
    }
}
