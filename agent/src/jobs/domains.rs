//! The customers' public keys, one file for each domain, by which the routers decide who may
//! subscribe a domain.
//!
//! This job runs as www-data, like the routers, and needs no root.

use super::Node;
use crate::api::must_be_plain;
use crate::names::{DomainName, MAX_FILE_DOMAIN};
use crate::report::Report;
use anyhow::{Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

const DIRECTORY: &str = "domains";
/// For www-data alone, which owns it.
const MODE: u32 = 0o600;
const PATH: &str = "/domains/rsa/";
/// Longer than any key.
const MAX_KEY: usize = 64 << 10;

/// A customer, as the API lists it.
#[derive(Deserialize)]
pub struct Customer {
    rsa: Option<String>,
    domains: Vec<Domain>,
}

#[derive(Deserialize)]
struct Domain {
    name: String,
}

pub fn round(node: &mut Node, report: &mut Report) -> Result<()> {
    let customers: Vec<Customer> = node.api.list(PATH)?;
    let own = node.settings.api.host.clone();
    let (wanted, odd) = files(&customers, &own);
    for name in odd {
        report.problem(format!("GET {PATH}: {} is not a domain", shared::escape::quoted(name)));
    }
    let directory = node.open(DIRECTORY)?;
    let there = directory.names(!node.is_dry_run)?;
    let mut stay = BTreeSet::new();
    for (name, key) in wanted {
        let file = format!("{name}.pem");
        let done = key.and_then(|key| node.write(&directory, &file, &key, MODE, report));
        if let Err(error) = done {
            report.problem(format!("GET {PATH}: {error:#}"));
        }
        stay.insert(file);
    }
    let is_domain = |name: &String| {
        let domain = name.strip_suffix(".pem").and_then(DomainName::parse);
        domain.is_some_and(|domain| domain != own)
    };
    let ours: Vec<_> = there.into_iter().filter(is_domain).collect();
    node.remove_others(&directory, ("domains", "domains"), &ours, &stay, report);
    Ok(())
}

/// What a domain's file has to be, or why it has to stay as it is; and the names that are no
/// domains.
pub fn files<'a>(
    customers: &'a [Customer],
    own: &DomainName,
) -> (BTreeMap<DomainName, Result<String>>, BTreeSet<&'a str>) {
    let mut wanted: BTreeMap<DomainName, Result<String>> = BTreeMap::new();
    let mut odd = BTreeSet::new();
    for Customer { rsa, domains } in customers {
        let key = rsa.as_deref().unwrap_or_default();
        for Domain { name } in domains {
            // A customer chooses it: the API asks DNS for the labels at its end alone. So it must
            // not keep others from theirs.
            let Some(name) = DomainName::parse(name) else {
                odd.insert(name.as_str());
                continue;
            };
            let is_right = if name == *own {
                Err(anyhow::anyhow!("{name} is the API's own domain"))
            } else if name.as_str().len() > MAX_FILE_DOMAIN {
                Err(anyhow::anyhow!("{name} is longer than {MAX_FILE_DOMAIN} characters"))
            } else {
                must_be_key(key).map(|()| key.to_owned()).map_err(|error| error.context(name.to_string()))
            };
            // A customer with several containers may be listed several times.
            let before = wanted.get(&name).map(|before| before.as_ref().ok() == is_right.as_ref().ok());
            let is_right = match before {
                Some(false) => Err(anyhow::anyhow!("{name} has two keys")),
                _ => is_right,
            };
            wanted.insert(name, is_right);
        }
    }
    (wanted, odd)
}

/// Refuses what is no public key, and above all a private one.
fn must_be_key(text: &str) -> Result<()> {
    must_be_plain(text)?;
    if text.trim().is_empty() {
        bail!("its customer has no key");
    }
    if text.len() > MAX_KEY {
        bail!("its key is longer than {MAX_KEY} bytes");
    }
    let key = openssl::pkey::PKey::public_key_from_pem(text.as_bytes());
    if key.is_err() || text.contains("PRIVATE KEY-----") {
        bail!("its key is not a public key in PEM");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;

    fn key() -> EcKey<openssl::pkey::Private> {
        EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap()
    }

    #[test]
    fn the_name_of_a_file_fits_while_it_is_written() {
        let rsa = String::from_utf8(key().public_key_to_pem().unwrap()).unwrap();
        let domain = |length: usize| Domain { name: "a.".repeat(100) + &"b".repeat(length - 200) };
        let customers = [Customer { rsa: Some(rsa), domains: vec![domain(220), domain(221)] }];
        let (files, odd) = files(&customers, &DomainName::parse("api.test").unwrap());
        let cause = |key: &Result<String>| key.as_ref().err().map(ToString::to_string);
        let mut seen: Vec<_> = files.iter().map(|(name, key)| (name.as_str().len(), cause(key))).collect();
        seen.sort();
        let too_long = format!("{} is longer than 220 characters", domain(221).name);
        assert_eq!((seen, odd.len()), (vec![(220, None), (221, Some(too_long))], 0));
        // As files.rs has it, with the highest process id (4194304, proc(5)).
        assert!(format!(".{}.pem.4194304.unbit-agent", domain(220).name).len() <= 255);
    }

    #[test]
    fn a_public_key_and_nothing_else() {
        let key = key();
        let public = String::from_utf8(key.public_key_to_pem().unwrap()).unwrap();
        let private = String::from_utf8(key.private_key_to_pem().unwrap()).unwrap();
        must_be_key(&public).unwrap();
        let both = format!("{public}{private}");
        for bad in ["", "\n", "key", &private, &both, &public[..public.len() / 2], &public.replace('\n', "\0")] {
            assert!(must_be_key(bad).is_err(), "{bad}");
        }
    }
}
