//! The files of the customers' services. An Emperor runs them as root, so their content is trusted
//! like that of containers: it is the API operator's.

use super::Node;
use crate::api::{MAX_TEXT, must_be_ini, must_be_plain};
use crate::names::canonical_number;
use crate::report::Report;
use anyhow::{Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

const DIRECTORY: &str = "custom_services";
const MODE: u32 = 0o600;
const PATH: &str = "/custom_services/";

/// A service, as the API lists it.
#[derive(Deserialize)]
pub struct Service {
    customer: u64,
    id: u64,
    config: String,
}

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let services = services(node.api.list(PATH)?)?;
    let directory = node.open(DIRECTORY)?;
    let there = directory.names(!node.is_dry_run)?;
    for (name, config) in &services {
        let is_right = must_be_plain(config)
            .and_then(|()| must_be_ini(config))
            .and_then(|()| if config.len() as u64 > MAX_TEXT { bail!("longer than {MAX_TEXT} bytes") } else { Ok(()) });
        let done = match is_right {
            Ok(()) => node.write(&directory, name, config, MODE, report),
            Err(error) => Err(error.context(format!("GET {PATH}: {name}"))),
        };
        if let Err(error) = done {
            report.problem(error);
        }
    }
    let ours: Vec<_> = there.into_iter().filter(|name| is_service(name)).collect();
    node.remove_others(&directory, ("custom-services", "services"), &ours, &services.into_keys().collect(), report);
    Ok(())
}

/// The name of each file, and what is in it.
pub fn services(listed: Vec<Service>) -> Result<BTreeMap<String, String>> {
    let mut services = BTreeMap::new();
    for Service { customer, id, config } in listed {
        if services.insert(format!("{customer}_{id}.ini"), config).is_some() {
            bail!("GET {PATH}: {customer}_{id} is listed twice");
        }
    }
    Ok(services)
}

/// Whether a file has the name of a service, CUSTOMER_ID.ini.
pub fn is_service(name: &str) -> bool {
    let numbers = name.strip_suffix(".ini").and_then(|numbers| numbers.split_once('_'));
    numbers.is_some_and(|(customer, id)| canonical_number(customer).and(canonical_number(id)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        assert!(is_service("1_22.ini"));
        for name in ["1.ini", "1_2", "_2.ini", "1_.ini", "01_2.ini", "a1_2.ini", "1_2_3.ini", "../1_2.ini"] {
            assert!(!is_service(name), "{name}");
        }
    }
}
