//! What must hold for any input of each parser. The programs in fuzz/targets call these with what
//! the fuzzer makes up, and tests/corpus.rs with what is kept in fuzz/corpus.

mod auth_info;
mod container;
mod escape;

/// pam_unbit makes a library for C, from which nothing can be called; this file of it needs no
/// other one.
#[path = "../../../pam_unbit/src"]
mod pam_unbit {
    pub mod auth_info;
}

/// Panics if the property does not hold for this input.
pub type Property = fn(&[u8]);

/// Each target's name, which its corpus has too, and its property.
pub const ALL: &[(&str, Property)] = &[
    ("accounts", unbitctl::properties::accounts),
    ("agent_alarms", unbit_agent::properties::alarms),
    ("agent_containers", unbit_agent::properties::containers),
    ("agent_domains", unbit_agent::properties::domains),
    ("agent_keys", unbit_agent::properties::keys),
    ("agent_nodes", unbit_agent::properties::nodes),
    ("agent_port_mappings", unbit_agent::properties::port_mappings),
    ("agent_services", unbit_agent::properties::services),
    ("agent_settings", unbit_agent::properties::settings),
    ("arguments", unbitctl::properties::arguments),
    ("auth_info", auth_info::check),
    ("cgroups", join::properties::cgroups),
    ("escape", escape::check),
    ("hosts", container::hosts),
    ("id_map", join::properties::id_map),
    ("mountinfo", join::properties::mountinfo),
    ("names", container::names),
    ("node_list", unbitctl::properties::node_list),
    ("nsswitch", unbitctl::properties::nsswitch),
    ("pam_options", join::properties::pam_options),
    ("pam_stack", unbitctl::properties::pam_stack),
    ("process", process),
    ("sshd", unbitctl::properties::sshd),
    ("vassal", unbitctl::properties::vassal),
];

/// Checks the property of a target.
pub fn check(name: &str, data: &[u8]) {
    let (_, property) = ALL.iter().find(|(other, _)| *other == name).expect("a target of this name");
    property(data);
}

fn process(data: &[u8]) {
    join::properties::process(data);
    unbitctl::properties::process(data);
}
