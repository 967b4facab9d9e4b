//! Container engines: in which cgroup each one runs a container, and whether a new container gets
//! the same cgroup.
//!
//! An engine is asked only when a container is attached. Later the engine is known by the name of
//! the cgroup.

use crate::command::{self, Output};
use crate::rootfs::RootFs;
use anyhow::{Context, Result, bail};
use join::cgroups::Hierarchies;
use join::proc::Proc;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Who runs a container, and its name there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Engine {
    /// systemd-machined's: systemd-nspawn, and other programs that register machines there.
    Machine(String),
    Lxc(String),
    Incus(String),
    Podman(String),
    Docker(String),
    /// A service of systemd's, without an engine.
    Unit(String),
    /// What the operator names.
    Cgroup(PathBuf),
}

/// The cgroup of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub cgroup: PathBuf,
    /// How long the link stays valid: "as long as ..." or "until ...".
    pub stays: String,
    /// What the operator has to know of it.
    pub warnings: Vec<String>,
}

impl Engine {
    /// For people: "podman container web1".
    pub fn name(&self) -> String {
        match self {
            Self::Machine(name) => format!("machine {name}"),
            Self::Lxc(name) => format!("LXC container {name}"),
            Self::Incus(name) => format!("Incus instance {name}"),
            Self::Podman(name) => format!("podman container {name}"),
            Self::Docker(name) => format!("Docker container {name}"),
            Self::Unit(name) => format!("unit {name}"),
            Self::Cgroup(path) => format!("cgroup {}", path.display()),
        }
    }

    /// Asks the engine's own tools for the container, which must run, and finds its cgroup.
    pub fn find(&self, node: &RootFs) -> Result<Found> {
        match self {
            Self::Machine(name) => machine(node, name),
            Self::Lxc(name) => payload(&directory_of(lxc_pid(node, name)?)?, name),
            Self::Incus(name) => incus(node, name),
            Self::Podman(name) => {
                let pid = oci_pid(node, "podman", name)?;
                scope(&directory_of(pid)?, "podman", name)
            }
            Self::Docker(name) => {
                let pid = oci_pid(node, "docker", name)?;
                scope(&directory_of(pid)?, "docker", name)
            }
            Self::Unit(name) => unit(node, name),
            Self::Cgroup(path) => Ok(named(path)),
        }
    }
}

/// What runs a container without a link.
pub const UWSGI: &str = "uwsgi";

/// Which engine runs a container, by where its link leads, if it has one.
pub fn by_link(link: Option<&Path>) -> &'static str {
    link.map_or(UWSGI, by_cgroup)
}

/// Where LXC runs the container of this cgroup, if that is in another one: `lxc.payload.web1-1`
/// while a cgroup of an earlier start is left.
pub fn renamed_by_lxc(cgroup: &Path) -> Option<PathBuf> {
    let name = cgroup.file_name()?.to_str()?.strip_prefix(PAYLOAD)?;
    let process = directory_of(lxc_pid(&RootFs::at(None), name).ok()?).ok()?;
    let now = ancestor(&process, |part| part.starts_with(PAYLOAD))?;
    (now != cgroup && number_of_payload(&now, name).is_some()).then_some(now)
}

/// What LXC has put behind the name of a container for its cgroup: nothing, or `-1`. `None` if
/// it is another container's.
fn number_of_payload<'a>(cgroup: &'a Path, name: &str) -> Option<&'a str> {
    let number = cgroup.file_name()?.to_str()?.strip_prefix(PAYLOAD)?.strip_prefix(name)?;
    let is_number = |rest: &str| rest.strip_prefix('-').is_some_and(|rest| rest.parse::<u32>().is_ok());
    (number.is_empty() || is_number(number)).then_some(number)
}

/// Which engine a cgroup is of, in a word, by its path.
pub fn by_cgroup(cgroup: &Path) -> &'static str {
    let names: Vec<_> = cgroup.iter().filter_map(|name| name.to_str()).collect();
    let has = |begin: &str| names.iter().any(|name| name.starts_with(begin));
    let last = names.last().copied().unwrap_or_default();
    if has("systemd-nspawn@") {
        "nspawn"
    } else if let Some(name) = names.iter().find_map(|name| name.strip_prefix(PAYLOAD)) {
        // Incus uses LXC's library and its names; what it keeps of a running instance is below
        // /run.
        if Path::new("/run/incus").join(name).exists() { "incus" } else { "lxc" }
    } else if holds(cgroup, PAYLOAD) {
        "lxc"
    } else if has("libpod") || holds(cgroup, "libpod") {
        "podman"
    } else if has("docker") || holds(cgroup, "docker-") {
        "docker"
    } else if last.starts_with("machine-") {
        "machine"
    } else if last.ends_with(".service") {
        "unit"
    } else {
        "cgroup"
    }
}

/// Whether a cgroup right below this one is named so.
fn holds(cgroup: &Path, begin: &str) -> bool {
    let entries = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().as_encoded_bytes().starts_with(begin.as_bytes()))
}

/// Runs the tool of an engine.
fn ask(node: &RootFs, tool: &str, arguments: &[&str]) -> Result<Output> {
    command::run(node, tool, arguments)
        .with_context(|| format!("cannot ask {tool} for the container (use --cgroup PATH instead)"))
}

/// systemd-machined knows the unit, and systemd its cgroup.
fn machine(node: &RootFs, name: &str) -> Result<Found> {
    let answer = ask(node, "machinectl", &["show", "--property=Unit", "--value", "--", name])?;
    let unit = answer.out.trim();
    if !answer.succeeded() || unit.is_empty() {
        bail!(
            "the machine {name} is not running ({}); start it first: machinectl start {name}",
            answer.error_summary()
        );
    }
    let stays = if unit.ends_with(".service") {
        format!("as long as {unit} has this name: restarts do not change it")
    } else {
        format!("as long as the machine is started under this name: {unit}")
    };
    Ok(Found { cgroup: control_group(node, unit)?, stays, warnings: Vec::new() })
}

fn unit(node: &RootFs, name: &str) -> Result<Found> {
    let unit = if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
    if unit.ends_with(".slice") {
        bail!("{unit} is a slice, which other units can share; name the container's own service");
    }
    let stays = format!("as long as {unit} has this name: restarts do not change it");
    Ok(Found { cgroup: control_group(node, &unit)?, stays, warnings: Vec::new() })
}

/// The directory of a unit that runs.
fn control_group(node: &RootFs, unit: &str) -> Result<PathBuf> {
    let answer = ask(node, "systemctl", &["show", "--property=ControlGroup", "--value", "--", unit])?;
    let group = answer.out.trim();
    if !answer.succeeded() || !group.starts_with('/') {
        let why = if answer.succeeded() { "it has no cgroup".to_owned() } else { answer.error_summary() };
        bail!("unit {unit} is not running ({why}); start it first: systemctl start {unit}");
    }
    let hierarchies = Hierarchies::mounted()?;
    // Where cgroup v1 has the controllers, systemd has its own hierarchy next to them.
    let mounted = hierarchies.v2_mount_point().unwrap_or("/sys/fs/cgroup/systemd");
    Ok(Path::new(mounted).join(group.trim_start_matches('/')))
}

fn lxc_pid(node: &RootFs, name: &str) -> Result<i32> {
    let answer = ask(node, "lxc-info", &["--name", name, "--pid", "--no-humanize"])?;
    match answer.out.trim().parse() {
        Ok(pid) if answer.succeeded() && pid > 0 => Ok(pid),
        _ => bail!("the LXC container {name} is not running; start it first: lxc-start {name}"),
    }
}

/// `NAME`, or `PROJECT/NAME`.
fn incus(node: &RootFs, name: &str) -> Result<Found> {
    let (project, instance) = name.split_once('/').unwrap_or(("default", name));
    let path = format!("/1.0/instances/{instance}/state?project={project}");
    let answer = ask(node, "incus", &["query", &path])?;
    if !answer.succeeded() {
        bail!("Incus has no instance {name}: {}", answer.error_summary());
    }
    let state: Value = serde_json::from_str(&answer.out).context("parse the output of incus query")?;
    let pid = number(state.get("pid"));
    let Some(pid) = pid else { bail!("the instance {name} is not running; start it first: incus start {name}") };
    // LXC's name of an instance of another project has the project's in front.
    let payload_of = if project == "default" { instance.to_owned() } else { format!("{project}_{instance}") };
    payload(&directory_of(pid)?, &payload_of)
}

/// podman and Docker describe a container in the same form.
fn oci_pid(node: &RootFs, engine: &str, name: &str) -> Result<i32> {
    let answer = ask(node, engine, &["container", "inspect", "--", name])?;
    if !answer.succeeded() {
        bail!("{engine} has no container {name}: {}", answer.error_summary());
    }
    let described: Value =
        serde_json::from_str(&answer.out).with_context(|| format!("parse the output of {engine} inspect"))?;
    let pid = number(described.pointer("/0/State/Pid"));
    pid.with_context(|| format!("the container {name} is not running; start it first: {engine} start {name}"))
}

/// The number of a process.
fn number(value: Option<&Value>) -> Option<i32> {
    value.and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

/// The directory of a process's cgroup.
fn directory_of(pid: i32) -> Result<PathBuf> {
    let process = Proc::of(pid).with_context(|| format!("open /proc/{pid}"))?;
    let hierarchies = Hierarchies::mounted()?;
    let directories = hierarchies.directories(&process).with_context(|| format!("read /proc/{pid}/cgroup"))?;
    directories.into_iter().next().with_context(|| format!("process {pid} is in no cgroup that is mounted here"))
}

/// What the names of LXC's cgroups begin with.
const PAYLOAD: &str = "lxc.payload.";

/// LXC's, and Incus's: `lxc.payload.NAME`, and below it whatever the container's own init makes.
fn payload(process: &Path, name: &str) -> Result<Found> {
    let Some(cgroup) = ancestor(process, |part| part.starts_with(PAYLOAD)) else {
        bail!("its pid 1 is in {}, where no component begins with {PAYLOAD}", process.display());
    };
    // LXC is asked by an abstract socket: while the container is stopped, whoever is in the node's
    // network can answer with any process.
    let Some(number) = number_of_payload(&cgroup, name) else {
        bail!("its pid 1 is in {}, which is the cgroup of another container: is {name} running?", cgroup.display());
    };
    let mut warnings = Vec::new();
    if !number.is_empty() {
        warnings.push(format!(
            "it should be {PAYLOAD}{name}: LXC uses another name while a cgroup of an earlier start is left, and {PAYLOAD}{name} again once \
             that is gone; remove it (rmdir), restart the container, and run unbitctl attach again"
        ));
    }
    // With lxc.cgroup.dir the cgroups of a container are below one that keeps its name, whatever
    // LXC calls them.
    let around = cgroup.parent().filter(|around| around.join("cgroup.type").exists() && !is_mounted_at(around));
    if let Some(around) = around {
        let stays = format!("as long as lxc.cgroup.dir of {name} leads to it");
        let warnings = vec![format!("{} must be this container's alone", around.display())];
        return Ok(Found { cgroup: around.to_owned(), stays, warnings });
    }
    Ok(Found { stays: format!("as long as the container is named {name}"), cgroup, warnings })
}

/// Whether a file system is mounted right there. In a cgroup namespace the top of the hierarchy
/// looks like any other cgroup.
fn is_mounted_at(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|status| status.dev()).ok();
    path.parent().is_none_or(|parent| device(parent) != device(path))
}

/// Slices that units of many kinds are in.
const SHARED_SLICES: [&str; 4] = ["-.slice", "machine.slice", "system.slice", "user.slice"];

/// podman's and Docker's: a scope named after the container's id, which a container that is created
/// again has not; or something around it that keeps its name.
fn scope(process: &Path, engine: &str, name: &str) -> Result<Found> {
    let is_own = |part: &str| {
        part.starts_with("libpod-") && !part.starts_with("libpod-conmon")
            || part.starts_with("docker-") && part.ends_with(".scope")
    };
    // By systemd; else the engine makes its cgroups itself: docker/ID, libpod_parent/libpod-ID.
    let by_id = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(own) = ancestor(process, is_own).or_else(|| ancestor(process, by_id)) else {
        bail!("its pid 1 is in {}, which is not a cgroup of {engine}", process.display());
    };
    let around = own.parent().unwrap_or(&own);
    let around_name = around.file_name().and_then(|part| part.to_str()).unwrap_or_default();
    if around_name.ends_with(".service") {
        let stays = format!("as long as {around_name} has this name: a container that it creates again has it too");
        return Ok(Found { cgroup: around.to_owned(), stays, warnings: Vec::new() });
    }
    let is_slice = around_name.ends_with(".slice") && !SHARED_SLICES.contains(&around_name);
    if is_slice && !around_name.starts_with("user-") {
        let stays = format!("as long as the container is created in {around_name}");
        let warnings = vec![format!(
            "{around_name} must be this container's alone: with a second one in it logins to both are refused"
        )];
        return Ok(Found { cgroup: around.to_owned(), stays, warnings });
    }
    let lasting = match engine {
        "podman" => format!(
            "create it with --cgroup-parent=unbit-{name}.slice, or by a quadlet, and run unbitctl attach again: then a new one has the same cgroup"
        ),
        _ => format!(
            "create it with --cgroup-parent=unbit-{name}.slice and run unbitctl attach again: then a new one has the same cgroup"
        ),
    };
    Ok(Found {
        cgroup: own,
        stays: "until the container is created again; restarts do not change it".to_owned(),
        warnings: vec![lasting],
    })
}

/// A cgroup that the operator names.
fn named(path: &Path) -> Found {
    let text = path.as_os_str().to_str().unwrap_or_default().trim_end_matches('/');
    let cgroup = PathBuf::from(if text.is_empty() { "/" } else { text });
    let last = cgroup.file_name().and_then(|part| part.to_str()).unwrap_or_default();
    let mut warnings = Vec::new();
    if last.ends_with(".slice") {
        warnings
            .push(format!("{last} must be this container's alone: with a second one in it logins to both are refused"));
    }
    Found { stays: "as long as this cgroup exists".to_owned(), cgroup, warnings }
}

/// The first component of this path, from the root on, whose name matches; with its parents.
fn ancestor(path: &Path, is_it: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let all: Vec<_> = path.ancestors().collect();
    let named = |path: &&&Path| path.file_name().and_then(|part| part.to_str()).is_some_and(&is_it);
    all.iter().rev().find(named).map(|path| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn scope_of(path: &str, engine: &str) -> (String, usize) {
        let found = scope(Path::new(&path.replace("ID", ID)), engine, "web1").unwrap();
        (found.cgroup.display().to_string().replace(ID, "ID"), found.warnings.len())
    }

    #[test]
    fn lxc_and_incus_keep_a_containers_processes_in_its_payload() {
        let found = payload(Path::new("/sys/fs/cgroup/lxc.payload.web1/init.scope"), "web1").unwrap();
        assert_eq!((found.cgroup.to_str(), found.warnings.len()), (Some("/sys/fs/cgroup/lxc.payload.web1"), 0));
        let found = payload(Path::new("/sys/fs/cgroup/lxc.payload.web1/lxc.payload.x/init.scope"), "web1").unwrap();
        assert_eq!(
            found.cgroup.to_str(),
            Some("/sys/fs/cgroup/lxc.payload.web1"),
            "the outermost: below it the container names"
        );
        let found = payload(Path::new("/sys/fs/cgroup/lxc.payload.web1-1"), "web1").unwrap();
        assert!(found.warnings[0].contains("lxc.payload.web1 again"), "{found:?}");
        assert!(payload(Path::new("/sys/fs/cgroup/system.slice/x.service"), "web1").is_err());
        // What anybody may have answered in the place of LXC.
        for other in ["web2", "web10", "web", "web1-", "web1-x", "web1-1x", "xweb1"] {
            let path = format!("/sys/fs/cgroup/lxc.payload.{other}/init.scope");
            assert!(
                payload(Path::new(&path), "web1").is_err_and(|error| error.to_string().contains("another container"))
            );
        }
    }

    #[test]
    fn the_top_of_a_hierarchy_is_mounted() {
        assert!(is_mounted_at(Path::new("/")) && is_mounted_at(Path::new("/proc")));
        assert!(!is_mounted_at(Path::new("/proc/self")));
    }

    #[test]
    fn what_keeps_its_name_is_taken_before_a_scope() {
        for (process, engine, cgroup, warnings) in [
            ("/c/machine.slice/libpod-ID.scope/container", "podman", "/c/machine.slice/libpod-ID.scope", 1),
            ("/c/unbit.slice/unbit-x.slice/libpod-ID.scope", "podman", "/c/unbit.slice/unbit-x.slice", 1),
            ("/c/system.slice/web1.service/libpod-payload-ID", "podman", "/c/system.slice/web1.service", 0),
            ("/c/libpod_parent/libpod-ID", "podman", "/c/libpod_parent/libpod-ID", 1),
            (
                "/c/user.slice/user-1000.slice/libpod-ID.scope",
                "podman",
                "/c/user.slice/user-1000.slice/libpod-ID.scope",
                1,
            ),
            ("/c/system.slice/docker-ID.scope", "docker", "/c/system.slice/docker-ID.scope", 1),
            ("/c/system.slice/docker-ID.scope/init", "docker", "/c/system.slice/docker-ID.scope", 1),
            ("/c/docker/ID", "docker", "/c/docker/ID", 1),
            ("/c/unbit.slice/unbit-x.slice/docker-ID.scope", "docker", "/c/unbit.slice/unbit-x.slice", 1),
        ] {
            assert_eq!(scope_of(process, engine), (cgroup.to_owned(), warnings), "{process}");
        }
        assert!(scope(Path::new("/c/system.slice/x.service"), "docker", "web1").is_err());
    }

    #[test]
    fn a_cgroups_name_tells_the_engine() {
        for (path, engine) in [
            ("/c/machine.slice/systemd-nspawn@web1.service", "nspawn"),
            ("/c/machine.slice/machine-web1.scope", "machine"),
            ("/c/lxc.payload.web1", "lxc"),
            ("/c/machine.slice/libpod-0.scope", "podman"),
            ("/c/system.slice/docker-0.scope", "docker"),
            ("/c/docker/0", "docker"),
            ("/c/system.slice/web1.service", "unit"),
            ("/c/a/b", "cgroup"),
            ("/", "cgroup"),
        ] {
            assert_eq!(by_cgroup(Path::new(path)), engine, "{path}");
        }
    }

    #[test]
    fn a_named_cgroup_is_taken_as_it_is() {
        assert_eq!(named(Path::new("/sys/fs/cgroup/a/")).cgroup, Path::new("/sys/fs/cgroup/a"));
        assert_eq!(named(Path::new("/sys/fs/cgroup/unbit-a.slice")).warnings.len(), 1);
    }
}
