//! Settings: the section `[uwsgi]` of uwsgi.it's local.ini, which the Emperor's services read as
//! well.

use crate::names::DomainName;
use anyhow::{Context, Result, bail};
use join::regular_file;
use shared::{decimal, escape};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// More than any file of settings.
const MAX_FILE: u64 = 64 << 10;

/// What is read of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `api_domain`.
    pub api: ApiDomain,
    /// `api_client_key_file`.
    pub key_file: PathBuf,
    /// `api_client_cert_file`.
    pub certificate_file: PathBuf,
    /// `api_ca_file`.
    pub ca_file: Option<PathBuf>,
    /// `public_ip`.
    pub public_ip: Option<Ipv4Addr>,
}

/// Where the API is: a domain or an IPv4 address, and a port if it is not 443.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiDomain {
    /// The domain or address alone, which the server's certificate must have.
    pub host: DomainName,
    /// With the port, as a URL has it.
    pub authority: String,
}

impl ApiDomain {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let is_port = |port: &str| matches!(decimal::<u16>(port), Some(1..));
        port.is_none_or(is_port).then_some(())?;
        Some(Self { host: DomainName::parse(host)?, authority: text.to_owned() })
    }
}

impl Settings {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| name.clone())?;
        let Some(bytes) = regular_file::read(file, MAX_FILE).with_context(|| name.clone())? else {
            bail!("{name} is longer than {MAX_FILE} bytes");
        };
        let text = String::from_utf8(bytes).with_context(|| name.clone())?;
        Self::parse(&text).with_context(|| name)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| value(text, key);
        let needed = |key: &str| value(key)?.with_context(|| format!("section [uwsgi] has no {key}"));
        let path = |key: &str, value: &str| {
            let path = PathBuf::from(value);
            if path.is_absolute() {
                Ok(path)
            } else {
                bail!("{key} is not an absolute path: {}", escape::quoted(value))
            }
        };
        let api = needed("api_domain")?;
        let public_ip = value("public_ip")?;
        let public_ip = public_ip
            .map(|ip| ip.parse().with_context(|| format!("public_ip is not an IPv4 address: {}", escape::quoted(ip))));
        Ok(Self {
            api: ApiDomain::parse(api).with_context(|| {
                format!("api_domain is not a domain, nor a domain with a port: {}", escape::quoted(api))
            })?,
            key_file: path("api_client_key_file", needed("api_client_key_file")?)?,
            certificate_file: path("api_client_cert_file", needed("api_client_cert_file")?)?,
            ca_file: value("api_ca_file")?.map(|file| path("api_ca_file", file)).transpose()?,
            public_ip: public_ip.transpose()?,
        })
    }
}

/// The value of a key of section `[uwsgi]`. One that is given twice has two meanings: uWSGI takes
/// both, other readers the first or the last.
fn value<'a>(text: &'a str, key: &str) -> Result<Option<&'a str>> {
    let mut is_ours = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_ours = section.trim_end().strip_suffix(']').map(str::trim) == Some("uwsgi");
        } else if is_ours
            && !line.starts_with([';', '#'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
            && found.replace(value.trim()).is_some()
        {
            bail!("{key} is given twice");
        }
    }
    Ok(found.filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "; of this node\n[other]\napi_domain = wrong.example\n[uwsgi]\npublic_ip = 192.0.2.1\napi_domain=api.example\n\
        api_client_key_file = /etc/uwsgi/client.key\n  api_client_cert_file =  /etc/uwsgi/client.crt \nenv = LANG=C\n#api_ca_file = /x\n";

    #[test]
    fn the_section_uwsgi_is_read() {
        let settings = Settings::parse(WHOLE).unwrap();
        assert_eq!(settings.api.authority, "api.example");
        assert_eq!(settings.key_file, Path::new("/etc/uwsgi/client.key"));
        assert_eq!(settings.certificate_file, Path::new("/etc/uwsgi/client.crt"));
        assert_eq!(settings.public_ip, Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(settings.ca_file, None);
        let with_port = Settings::parse(&WHOLE.replace("=api.example", "=api.example:8443")).unwrap();
        assert_eq!(
            (with_port.api.host.as_str(), with_port.api.authority.as_str()),
            ("api.example", "api.example:8443")
        );
    }

    #[test]
    fn what_is_missing_doubled_or_odd_is_named() {
        for (from, to, cause) in [
            ("api_domain=api.example", "", "has no api_domain"),
            ("api_domain=api.example", "api_domain=api.example\napi_domain=b.example", "api_domain is given twice"),
            ("=api.example", "=api.example/x", "api_domain is not a domain"),
            ("=api.example", "=root@api.example", "api_domain is not a domain"),
            ("=api.example", "=api.example:0", "api_domain is not a domain"),
            ("=api.example", "=api.example:+1", "api_domain is not a domain"),
            ("=api.example", "=", "has no api_domain"),
            ("/etc/uwsgi/client.key", "client.key", "api_client_key_file is not an absolute path"),
            ("192.0.2.1", "here", "public_ip is not an IPv4 address"),
            ("[uwsgi]", "[uwsgi", "has no api_domain"),
        ] {
            let error = Settings::parse(&WHOLE.replace(from, to)).unwrap_err();
            assert!(format!("{error:#}").contains(cause), "{to}: {error:#}");
        }
    }
}
