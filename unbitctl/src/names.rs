//! Second names of containers, root's links `/containers/web1 -> 30001`: as arguments, and as they
//! are on a node. See nss-unbit(8).

use crate::command_line;
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use join::safe_path::must_belong_to_root;
use join::sys::retry;
use nix::sys::stat::stat;
use shared::settings::{CONTAINERS, CONTAINERS_PATH};
use shared::{ContainerUid, SecondName, escape};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// An argument: the number of a container, or a second name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    Number(ContainerUid),
    Name(SecondName),
}

impl Account {
    /// Reads it, and looks at no file.
    pub fn parse(text: &str) -> Result<Self, String> {
        match SecondName::parse(text.as_bytes()) {
            Some(name) => Ok(Self::Name(name)),
            None => command_line::container(text).map(Self::Number),
        }
    }

    /// Whose it is.
    pub fn uid(&self) -> Result<ContainerUid> {
        match self {
            Self::Number(uid) => Ok(*uid),
            Self::Name(name) => container_of(name),
        }
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(uid) => uid.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An argument: a second name.
pub fn second_name(text: &str) -> Result<SecondName, String> {
    SecondName::parse(text.as_bytes()).ok_or_else(|| {
        "a name has at most 32 lower case letters, digits, _ and -, and begins with a letter or _".to_owned()
    })
}

/// The link that makes a name.
pub fn link_path(name: &SecondName) -> PathBuf {
    Path::new(CONTAINERS).join(name.as_str())
}

/// The container that a name is one of, by its link.
pub fn container_of(name: &SecondName) -> Result<ContainerUid> {
    let path = link_path(name);
    let link = path.display();
    match fs::read_link(&path) {
        Ok(text) => SecondName::target_of(text.as_os_str().as_bytes()).with_context(|| {
            let text = escape::quoted(text.as_os_str().as_bytes());
            format!("{link} is a symbolic link to {text}, which is not exactly the number of a container")
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("no container has the name {name}: {link} does not exist; unbitctl list shows the existing names")
        }
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            bail!("{link} is not a symbolic link, so {name} is not a second name")
        }
        Err(error) => Err(error).with_context(|| link.to_string()),
    }
}

/// Fails if others than root can have made the links in /containers.
pub fn containers_must_belong_to_root() -> Result<()> {
    let directory = retry(|| stat(CONTAINERS_PATH)).with_context(|| CONTAINERS.to_owned())?;
    must_belong_to_root(&directory).map_err(|seen| anyhow::anyhow!("{CONTAINERS} {seen}"))
}

/// A symbolic link in /containers.
pub struct Link {
    /// What it is called.
    pub name: String,
    /// Its text.
    pub text: Vec<u8>,
    /// Who made it.
    pub owner: u32,
}

impl Link {
    /// The name and the container, if it makes one.
    pub fn second_name(&self) -> Option<(SecondName, ContainerUid)> {
        Some((SecondName::parse(self.name.as_bytes())?, SecondName::target_of(&self.text)?))
    }
}

/// All symbolic links in a node's /containers but those of numbers, by name.
pub fn links(node: &RootFs) -> Vec<Link> {
    let entries = node.resolve(CONTAINERS).and_then(fs::read_dir).into_iter().flatten().flatten();
    let mut links: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            if ContainerUid::parse(name.as_encoded_bytes()).is_some() {
                return None;
            }
            let status = entry.metadata().ok().filter(std::fs::Metadata::is_symlink)?;
            let text = fs::read_link(entry.path()).ok()?.as_os_str().as_bytes().to_owned();
            Some(Link { name: name.to_string_lossy().into_owned(), text, owner: status.uid() })
        })
        .collect();
    links.sort_by(|one, other| one.name.cmp(&other.name));
    links
}

/// The second names of a container.
pub fn names_of(uid: ContainerUid) -> Vec<SecondName> {
    let names = links(&RootFs::at(None)).into_iter().filter_map(|link| link.second_name());
    names.filter(|(_, container)| *container == uid).map(|(name, _)| name).collect()
}

/// Whether a name can be given to a container: it is nobody's, or already this container's.
pub fn can_be_given(name: &SecondName, uid: ContainerUid) -> Result<()> {
    let link = link_path(name);
    match fs::symlink_metadata(&link) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| link.display().to_string()),
        Ok(_) => must_be_its(name, uid)?,
    }
    containers_must_belong_to_root()
        .context("second names need a /containers that only root can write to (unbitctl setup directories)")?;
    let user = nix::unistd::User::from_name(name.as_str()).with_context(|| format!("look up the account {name}"))?;
    match user {
        Some(user) if user.uid.as_raw() != uid.get() => {
            bail!("{name} is an account already, with the uid {}", user.uid)
        }
        _ => Ok(()),
    }
}

/// Refuses a name that is another container's.
fn must_be_its(name: &SecondName, uid: ContainerUid) -> Result<()> {
    match container_of(name)? {
        other if other == uid => Ok(()),
        other => bail!("{name} is a name of {other}: unbitctl detach {name}"),
    }
}

/// Makes the link, atomically. Returns whether it is new. Fails if another command has given the
/// name to another container since [`can_be_given`].
pub fn give(name: &SecondName, uid: ContainerUid) -> Result<bool> {
    let link = link_path(name);
    match symlink(uid.to_string(), &link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return must_be_its(name, uid).map(|()| false),
        made => made.with_context(|| link.display().to_string())?,
    }
    File::open(CONTAINERS).and_then(|directory| directory.sync_all()).with_context(|| CONTAINERS.to_owned())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_a_number_or_a_name() {
        assert_eq!(Account::parse("30001").map(|account| account.to_string()).as_deref(), Ok("30001"));
        assert_eq!(Account::parse("web1").map(|account| account.to_string()).as_deref(), Ok("web1"));
        for text in ["030001", "1", "Web1", "", "-a", "web.1", "65534", "../web1"] {
            assert!(Account::parse(text).is_err(), "{text}");
        }
        assert!(second_name("30001").is_err() && second_name("web1").is_ok());
    }
}
