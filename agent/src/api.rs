//! Asks the API, and checks its answers: an answer that is anything else than expected changes
//! nothing.
//!
//! What a job does with an answer is in [`jobs`](crate::jobs), how a request is sent in
//! [`client`](crate::client).

use crate::client::{Post, Request, Response};
use crate::fetcher::Fetcher;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shared::{ContainerUid, escape};
use std::collections::{BTreeMap, BTreeSet};

/// No text that becomes a file is longer.
pub const MAX_TEXT: u64 = 1 << 20;
/// The list of containers.
const CONTAINERS: &str = "/containers/";
/// No list has more.
const MAX_ENTRIES: usize = 100_000;

/// The API, by the process that talks to it.
pub struct Api(pub Fetcher);

/// A container, as the API lists it. The times are the API's own and are compared with nothing but
/// what it said before.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct ContainerTimes {
    #[serde(default)]
    pub mtime: Value,
    #[serde(default, rename = "ssh_keys_mtime")]
    pub keys_changed: Value,
}

#[derive(Deserialize)]
struct ListedContainer {
    uid: u32,
    #[serde(flatten)]
    about: ContainerTimes,
}

/// A container of the list without its times, which would need much memory for many containers.
#[derive(Deserialize)]
struct ListedNumber {
    uid: u32,
}

/// Lists of addresses.
#[derive(Deserialize)]
pub struct Nodes {
    pub nodes: Vec<String>,
}

impl Api {
    /// The containers of this node.
    pub fn containers(&mut self) -> Result<BTreeMap<u32, ContainerTimes>> {
        let response = self.get(CONTAINERS)?;
        containers(&response.body)
    }

    /// Their numbers alone.
    pub fn container_numbers(&mut self) -> Result<BTreeSet<u32>> {
        let listed: Vec<ListedNumber> = self.list(CONTAINERS)?;
        Ok(unique(listed.into_iter().map(|ListedNumber { uid }| (uid, ())))?.into_keys().collect())
    }

    /// A list.
    pub fn list<T: DeserializeOwned>(&mut self, path: &str) -> Result<Vec<T>> {
        list(path, &self.get(path)?.body)
    }

    /// A document in JSON. A truncated document is an error.
    pub fn json<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        json(path, &self.get(path)?.body)
    }

    /// A text that becomes a file. Where its end was not seen, a second answer must be the same.
    pub fn text(&mut self, path: &str) -> Result<String> {
        let first = self.get(path)?;
        if first.may_be_half && self.get(path)?.body != first.body {
            bail!("GET {path}: the connection ends before the answer does");
        }
        if first.body.len() as u64 > MAX_TEXT {
            bail!("GET {path}: longer than {MAX_TEXT} bytes");
        }
        let text = String::from_utf8(first.body).with_context(|| format!("GET {path}: not text"))?;
        must_be_plain(&text).with_context(|| format!("GET {path}"))?;
        Ok(text)
    }

    fn get(&mut self, path: &str) -> Result<Response> {
        let request = Request { path: path.to_owned(), body: None };
        let response = self.0.ask(&request).with_context(|| format!("GET {path}"))?;
        match response.status {
            200 => Ok(response),
            status => bail!("GET {path}: the API answers {status}"),
        }
    }

    /// Sends a body, which the API must answer with 201. Another answer is not the same as no
    /// answer, see [`Posted`].
    pub fn post(&mut self, path: &str, body: Vec<u8>) -> Result<Posted> {
        let request = Request { path: path.to_owned(), body: Some(body) };
        match self.0.ask(&request).with_context(|| format!("POST {path}"))?.status {
            201 => Ok(Posted::Created),
            status => Ok(Posted::Refused(status)),
        }
    }

    /// Sends many values, for each of which the API has to answer 201, and says how each one ended.
    /// `None` for values that were not sent, because many before them were refused.
    pub fn send(&mut self, below: &str, posts: &[Post]) -> Result<Vec<Option<Posted>>> {
        let statuses = self.0.send(posts).with_context(|| format!("POST {below}"))?;
        let posted = |status| if status == 201 { Posted::Created } else { Posted::Refused(status) };
        Ok(statuses.into_iter().map(|status| status.map(posted)).collect())
    }
}

/// An answer that is a document.
pub fn json<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).with_context(|| format!("GET {path}: not the JSON that was asked for"))
}

/// An answer that is a list.
pub fn list<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<Vec<T>> {
    let list: Vec<T> = json(path, body)?;
    if list.len() > MAX_ENTRIES {
        bail!("GET {path}: more than {MAX_ENTRIES} entries");
    }
    Ok(list)
}

/// The list of containers.
pub fn containers(body: &[u8]) -> Result<BTreeMap<u32, ContainerTimes>> {
    let listed: Vec<ListedContainer> = list(CONTAINERS, body)?;
    unique(listed.into_iter().map(|ListedContainer { uid, about }| (uid, about)))
}

/// A number that no container can have makes the whole list wrong: who is missing in it would be
/// stopped.
fn unique<T>(listed: impl Iterator<Item = (u32, T)>) -> Result<BTreeMap<u32, T>> {
    let mut containers = BTreeMap::new();
    for (uid, about) in listed {
        if ContainerUid::new(uid).is_none() {
            bail!("GET {CONTAINERS}: {uid} is not a container's number");
        }
        if containers.insert(uid, about).is_some() {
            bail!("GET {CONTAINERS}: {uid} is listed twice");
        }
    }
    Ok(containers)
}

/// How a POST ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posted {
    /// The API has it.
    Created,
    /// It does not want it, and says so by this status.
    Refused(u16),
}

/// Refuses what no configuration and no authorized_keys file has in it.
pub fn must_be_plain(text: &str) -> Result<()> {
    match text.chars().find(|letter| letter.is_control() && !matches!(letter, '\n' | '\r' | '\t')) {
        Some(odd) => bail!("the character {} is in the text", odd.escape_unicode()),
        None => Ok(()),
    }
}

/// Refuses what is no configuration of uWSGI: an error page, or nothing.
pub fn must_be_ini(text: &str) -> Result<()> {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with([';', '#']));
    match first {
        Some("[uwsgi]") => Ok(()),
        Some(other) => bail!("not a uWSGI configuration, which begins with [uwsgi], but {}", escape::quoted(other)),
        None => bail!("an empty configuration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_begins_with_its_section() {
        for good in ["[uwsgi]\nuid = 30001\n", "\n; a comment\r\n [uwsgi] \nx=y"] {
            must_be_ini(good).unwrap();
        }
        for bad in ["", "\n", "; [uwsgi]", "<html>[uwsgi]", "x = y\n[uwsgi]", "[uwsgi", "Forbidden\n"] {
            assert!(must_be_ini(bad).is_err(), "{bad:?}");
        }
        assert!(must_be_plain("a\tb\r\n").is_ok());
        assert!(must_be_plain("a\0").is_err() && must_be_plain("a\x1b[2J").is_err());
    }
}
