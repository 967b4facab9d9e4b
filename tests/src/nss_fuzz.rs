//! Arbitrary names, host names and addresses, arbitrary buffers, and what the module must say to
//! them.
//!
//! What it must say comes from a second, slow and obvious reading of the rules (see
//! [`Input::expected`]), so that the two readings check each other. The seeds are in `tests/fuzz`,
//! one on a line, with `\n`, `\xff` and the like for what a line cannot hold.

use crate::nss::{Answer, Function, Guarded, Module, NETDB_INTERNAL, NOTFOUND, SUCCESS, TRYAGAIN, UNAVAIL};
use libc::{AF_INET, AF_INET6, c_char, c_int};
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An account.
    Name,
    /// A host, by name.
    Host,
    /// A host, by address.
    Address,
}

/// Something to look up.
#[derive(Clone, PartialEq, Eq)]
pub struct Input(pub Kind, pub Vec<u8>);

impl fmt::Debug for Input {
    /// As it would stand in the file of seeds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.0, self.1.escape_ascii())
    }
}

/// The seeds of `tests/fuzz`, in the directory of the project.
pub fn seeds(project: &Path) -> Vec<Input> {
    let mut seeds = vec![];
    for (file, kind) in [("names", Kind::Name), ("hosts", Kind::Host), ("addresses", Kind::Address)] {
        let text = fs::read(project.join("tests/fuzz").join(file)).unwrap();
        seeds.extend(text.split(|byte| *byte == b'\n').map(|line| Input(kind, unescape(line))));
    }
    seeds
}

fn unescape(line: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = line.iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'n') => b'\n',
                Some(b'x') => {
                    let digits: Vec<_> = rest.by_ref().take(2).collect();
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => panic!("{other:?} after a backslash"),
            },
            other => other,
        });
    }
    bytes
}

/// What the rules say of an input.
enum Verdict {
    /// A container, if it is there: with this uid.
    Container(u32),
    /// 10.0.0.3, whether or not it is there.
    Address(Ipv4Addr),
    /// An account by a second name, if there is a link of that name.
    SecondName(String),
    /// None of our business.
    Stranger,
}

impl Input {
    fn expected(&self) -> Verdict {
        let address = |uid: u32| (uid <= 16_807_212).then(|| Ipv4Addr::from(0x0a00_0000 + uid - 30_000 + 2));
        let text = self.c_string();
        let text = std::str::from_utf8(&text).unwrap_or("?");
        let verdict = match self.0 {
            Kind::Name => uid(text)
                .map(Verdict::Container)
                .or_else(|| is_second_name(text).then(|| Verdict::SecondName(text.to_owned()))),
            Kind::Host => {
                let text = text.to_ascii_lowercase();
                let text = text.strip_suffix('.').unwrap_or(&text);
                text.strip_suffix(".local").and_then(uid).and_then(address).map(Verdict::Address)
            }
            Kind::Address => {
                let v4 = match self.1.len() {
                    4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(&self.1[..]).unwrap())),
                    16 => Ipv6Addr::from(<[u8; 16]>::try_from(&self.1[..]).unwrap()).to_ipv4_mapped(),
                    _ => None,
                };
                let number = v4.and_then(|v4| u32::from(v4).checked_sub(0x0a00_0002)?.checked_add(30_000));
                let found = number.and_then(|number| uid(&number.to_string()));
                found.filter(|uid| address(*uid) == v4).map(Verdict::Container)
            }
        };
        verdict.unwrap_or(Verdict::Stranger)
    }

    /// The bytes that C sees of a name.
    fn c_string(&self) -> Vec<u8> {
        self.1.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    fn functions(&self, module: Module) -> Vec<Function> {
        let name = self.c_string();
        match self.0 {
            Kind::Name => module.by_any_name(&name),
            Kind::Host => vec![module.gethostbyname2(&name, AF_INET), module.gethostbyname2(&name, AF_INET6)],
            Kind::Address => {
                let family = if self.1.len() == 16 { AF_INET6 } else { AF_INET };
                vec![module.gethostbyaddr(&self.1, family)]
            }
        }
    }

    /// Looks it up in every way there is, with a buffer of this length that ends at a guard page.
    pub fn check(&self, module: Module, memory: &mut Guarded, length: usize) {
        let ipv6_forward = |index| self.0 == Kind::Host && index == 1;
        for (index, function) in self.functions(module).iter().enumerate() {
            let page = memory.bytes();
            page.fill(0x5a);
            let start = page.len() - length;
            let answer = (function.call)(page[start..].as_mut_ptr().cast::<c_char>(), length);
            let case = format!("{self:?} by {} with {length} bytes: {answer:?}", function.name);
            assert!(memory.bytes()[..start].iter().all(|byte| *byte == 0x5a), "{case}: wrote outside");
            let (mut status, uid) = match self.expected() {
                Verdict::Stranger => (NOTFOUND, 0),
                Verdict::SecondName(_) if function.name == "getgrnam_r" => (NOTFOUND, 0),
                Verdict::SecondName(name) => linked(&name),
                Verdict::Address(_) if ipv6_forward(index) => (NOTFOUND, 0),
                Verdict::Address(_) => (SUCCESS, 0),
                Verdict::Container(uid) => (presence(uid), uid),
            };
            if status == SUCCESS && answer.status == TRYAGAIN {
                assert!(length < 128, "{case}: that would be enough");
                status = TRYAGAIN;
            }
            assert_eq!(answer.status, status, "{case}");
            assert_errors(&answer, function.host, ipv6_forward(index), &case);
            if status == SUCCESS && uid != 0 {
                let texts = answer.texts();
                let name = if let Verdict::SecondName(name) = self.expected() { name } else { uid.to_string() };
                assert!(texts[0].trim_end_matches(".local") == name, "{case}");
                assert!(function.name != "getpwnam_r" || texts[3] == format!("/containers/{uid}"), "{case}");
            }
            if let (SUCCESS, Verdict::Address(address)) = (status, self.expected()) {
                assert_eq!(answer.address, Some(address), "{case}");
            }
        }
    }
}

/// The uid that a text is, if it is a container's.
fn uid(text: &str) -> Option<u32> {
    let uid = text.parse::<u32>().ok().filter(|uid| uid.to_string() == text)?;
    ((30_000..1 << 31).contains(&uid) && uid != 65534 && uid != 65535).then_some(uid)
}

fn is_second_name(text: &str) -> bool {
    let letters = "abcdefghijklmnopqrstuvwxyz_";
    (1..=32).contains(&text.len())
        && text.starts_with(|first| letters.contains(first))
        && text.chars().all(|letter| letters.contains(letter) || "0123456789-".contains(letter))
}

/// Whether the machine has a container of this second name, and which.
fn linked(name: &str) -> (c_int, u32) {
    let text = fs::read_link(format!("/containers/{name}")).ok();
    let uid = text.as_ref().and_then(|text| uid(text.to_str()?));
    uid.map_or((NOTFOUND, 0), |uid| (presence(uid), uid))
}

/// What the machine has, asked for in the plainest way.
fn presence(uid: u32) -> c_int {
    if !Path::new("/containers").exists() {
        return UNAVAIL;
    }
    let found = fs::metadata(format!("/containers/{uid}"));
    let is_container = found.is_ok_and(|found| found.is_dir() && (found.uid(), found.gid()) == (uid, uid));
    if is_container { SUCCESS } else { NOTFOUND }
}

fn assert_errors(answer: &Answer, host: bool, ipv6_forward: bool, case: &str) {
    let errno = match answer.status {
        TRYAGAIN => libc::ERANGE,
        SUCCESS => crate::nss::STALE,
        _ => libc::ENOENT,
    };
    assert_eq!(answer.errno, errno, "{case}");
    if host {
        let allowed: &[c_int] = match answer.status {
            TRYAGAIN => &[NETDB_INTERNAL],
            SUCCESS => &[0],
            UNAVAIL => &[3],
            _ if ipv6_forward => &[1, 4],
            _ => &[1],
        };
        assert!(allowed.contains(&answer.h_errno), "{case}");
    }
}

/// Numbers that look random and are the same for the same start.
pub struct Random(pub u64);

impl Random {
    /// The next one below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        // xorshift64* of Vigna
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    /// An input like this one, but not quite.
    pub fn mutate(&mut self, seeds: &[Input]) -> Input {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(3) {
            let bytes = &mut input.1;
            let at = self.below(bytes.len() + 1);
            match self.below(8) {
                0 => bytes.insert(at, self.below(256) as u8),
                1 => bytes.insert(at, b"0123456789./+- :local\nweb_"[self.below(26)]),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                4 if at < bytes.len() => bytes[at] = b'0' + self.below(10) as u8,
                5 => bytes.truncate(at),
                6 => {
                    let other = &seeds[self.below(seeds.len())].1;
                    bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
                }
                _ if input.0 == Kind::Address => {
                    // near the ends of the network, where off-by-one lives
                    let edge = [0x0a00_0000u32, 0x0a00_0002, 0x0a00_8ae0, 0x0aff_fffe, 0x0b00_0000][self.below(5)];
                    let near = edge.wrapping_add(self.below(9) as u32).wrapping_sub(4);
                    *bytes = near.to_be_bytes().to_vec();
                }
                _ => {
                    let edge = [30_000u64, 65_535, 16_807_212, 1 << 31, 1 << 32, u64::MAX - 9][self.below(6)];
                    let near = (edge + self.below(9) as u64 - 4).to_string();
                    let suffix = if input.0 == Kind::Host { ".local" } else { "" };
                    *bytes = format!("{near}{suffix}").into_bytes();
                }
            }
        }
        input
    }
}
