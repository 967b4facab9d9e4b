//! Reads the state of services from `systemctl show`. A service that restarts again and again is
//! reported, though it runs in between.

use crate::command;
use crate::emperor::has_systemd;
use crate::report::{Finding, State};
use crate::rootfs::RootFs;
use nix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::time::Duration;

const PROPERTIES: &str =
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState,ConditionResult,ActiveEnterTimestampMonotonic";

/// This many restarts, the last one within LOOP_WINDOW, count as a crash loop.
const LOOP_RESTARTS: u32 = 3;
const LOOP_WINDOW: Duration = Duration::from_secs(600);

/// A unit's properties.
pub struct Unit {
    properties: HashMap<String, String>,
}

/// A unit's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Runs,
    /// Runs, and is not started at boot.
    NotEnabled,
    Starting,
    /// Runs after this many restarts, the last one this long ago.
    CrashLoop(u32, Duration),
    /// Will be restarted by systemd: restarts so far, and the result.
    AutoRestart(u32, String),
    /// Has ended with this result, and is not restarted.
    Failed(String),
    Stopped,
    /// A Condition...= of its unit is not met.
    ConditionFailed,
    /// The operator has forbidden it.
    Masked,
}

/// Those of these units that there are; `None` where systemd does not run or does not answer.
pub fn units(node: &RootFs, names: &[&str]) -> Option<Vec<Unit>> {
    if !has_systemd(node) {
        return None;
    }
    let arguments = [&["show"], names, &["--property", PROPERTIES]].concat();
    let answer = command::run(node, "systemctl", &arguments).ok()?;
    answer.succeeded().then(|| parse(&answer.out))
}

/// Reads what `systemctl show` prints: a line for each property, and an empty one between units.
pub(super) fn parse(shown: &str) -> Vec<Unit> {
    let unit = |text: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Unit { properties: lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    };
    let units = shown.split("\n\n").map(unit);
    units.filter(|unit| matches!(unit.of("LoadState"), "loaded" | "masked")).collect()
}

impl Unit {
    fn of(&self, name: &str) -> &str {
        self.properties.get(name).map_or("", String::as_str)
    }

    pub fn name(&self) -> &str {
        self.of("Id")
    }

    /// As people type it.
    pub fn short(&self) -> &str {
        self.name().trim_end_matches(".service")
    }

    pub fn health(&self) -> Health {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.health_at(now)
    }

    fn health_at(&self, now: Duration) -> Health {
        let restarts = self.of("NRestarts").parse().unwrap_or(0);
        let began = Duration::from_micros(self.of("ActiveEnterTimestampMonotonic").parse().unwrap_or(0));
        let age = now.saturating_sub(began);
        match (self.of("LoadState"), self.of("ActiveState"), self.of("SubState")) {
            ("masked", ..) => Health::Masked,
            (_, _, "auto-restart" | "auto-restart-queued") => {
                Health::AutoRestart(restarts, self.of("Result").to_owned())
            }
            (_, "failed", _) => Health::Failed(self.of("Result").to_owned()),
            (_, "active" | "reloading", _) if restarts >= LOOP_RESTARTS && age < LOOP_WINDOW => {
                Health::CrashLoop(restarts, age)
            }
            (_, "active" | "reloading", _) if self.of("UnitFileState") == "disabled" => Health::NotEnabled,
            (_, "active" | "reloading", _) => Health::Runs,
            (_, "activating", _) => Health::Starting,
            _ if self.of("ConditionResult") == "no" && began > Duration::ZERO => Health::ConditionFailed,
            _ => Health::Stopped,
        }
    }

    /// The finding about it, unless it runs; `why` is what does not work without it.
    pub fn finding(&self, check: &'static str, why: &'static str) -> Option<Finding> {
        let (name, short) = (self.name(), self.short());
        let log = format!("journalctl -u {short} -n 50");
        let (state, seen, fix) = match self.health() {
            Health::Runs => return None,
            Health::NotEnabled => {
                (State::Warn, format!("{name} runs, and is not started at boot"), format!("systemctl enable {short}"))
            }
            Health::Starting => (State::Warn, format!("{name} is still starting"), log),
            Health::CrashLoop(restarts, age) => {
                let seen = format!("{name} has ended {restarts} times, the last time {} s ago", age.as_secs());
                (State::Fail, seen, log)
            }
            Health::AutoRestart(restarts, result) => {
                let seen = format!("{name} has ended ({result}) after {restarts} restarts, and will be started again");
                (State::Fail, seen, log)
            }
            Health::Failed(result) => {
                let fix = format!("{log}, and then: systemctl restart {short}");
                (State::Fail, format!("{name} has failed ({result})"), fix)
            }
            Health::Stopped | Health::ConditionFailed => {
                (State::Fail, format!("{name} does not run"), format!("systemctl enable --now {short}"))
            }
            Health::Masked => {
                let fix = format!("systemctl unmask {short} && systemctl enable --now {short}");
                (State::Fail, format!("{name} is masked"), fix)
            }
        };
        Some(Finding::new(check, state, why, seen, Some(fix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As systemd 257 printed it, with the properties in its own order.
    fn shown(load: &str, active: &str, sub: &str, result: &str, restarts: u32, file: &str, condition: &str) -> String {
        format!(
            "Result={result}\nNRestarts={restarts}\nId=containers.service\nLoadState={load}\nActiveState={active}\nSubState={sub}\n\
             UnitFileState={file}\nActiveEnterTimestampMonotonic=15189309533\nConditionResult={condition}\n"
        )
    }

    const NOT_FOUND: &str = "Result=success\nNRestarts=0\nId=emperor.service\nLoadState=not-found\nActiveState=inactive\n\
        SubState=dead\nUnitFileState=\nActiveEnterTimestampMonotonic=0\nConditionResult=no\n";

    fn health(shown: &str) -> Health {
        let both = format!("{shown}\n{NOT_FOUND}");
        let units = parse(&both);
        let [unit] = units.as_slice() else { panic!("{both}") };
        assert_eq!((unit.name(), unit.short()), ("containers.service", "containers"));
        unit.health_at(Duration::from_secs(15190)) // less than a second later
    }

    #[test]
    fn each_state_of_a_unit() {
        let loaded = |active, sub, result, restarts| shown("loaded", active, sub, result, restarts, "enabled", "yes");
        assert_eq!(health(&loaded("active", "running", "success", 0)), Health::Runs);
        assert_eq!(health(&loaded("failed", "failed", "signal", 0)), Health::Failed("signal".into()));
        assert_eq!(
            health(&loaded("failed", "failed", "exit-code", 5)),
            Health::Failed("exit-code".into()),
            "start limit"
        );
        assert_eq!(
            health(&loaded("activating", "auto-restart", "exit-code", 0)),
            Health::AutoRestart(0, "exit-code".into())
        );
        assert!(
            matches!(health(&loaded("active", "running", "success", 6)), Health::CrashLoop(6, _)),
            "up between two crashes"
        );
        assert_eq!(health(&loaded("activating", "start", "success", 0)), Health::Starting);
        assert_eq!(health(&loaded("inactive", "dead", "success", 0)), Health::Stopped);
        let unmet = shown("loaded", "inactive", "dead", "success", 0, "enabled", "no");
        assert_eq!(health(&unmet), Health::ConditionFailed);
        assert_eq!(health(&unmet.replace("=15189309533", "=0")), Health::Stopped, "it was never started");
        let disabled = shown("loaded", "active", "running", "success", 0, "disabled", "yes");
        assert_eq!(health(&disabled), Health::NotEnabled);
        assert_eq!(health(&shown("masked", "failed", "failed", "timeout", 0, "masked", "yes")), Health::Masked);
        assert!(parse(NOT_FOUND).is_empty() && parse("").is_empty());
        // Restarts of long ago are no loop.
        let unit = &parse(&loaded("active", "running", "success", 6))[0];
        assert_eq!(unit.health_at(Duration::from_secs(15189 + 601)), Health::Runs);
    }
}
