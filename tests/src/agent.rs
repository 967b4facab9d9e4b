//! `unbit-agent` with a directory of settings of its own, and a stand-in for the API.

use crate::api::Api;
use crate::{Done, eventually, run, sh};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// A node's directory of settings that only these tests know, and the API that they ask.
pub struct Node {
    /// Whom the agent asks.
    pub api: Api,
    /// In the place of /etc/uwsgi.
    pub directory: PathBuf,
}

impl Node {
    /// A node with an API that knows nothing yet.
    pub fn new(name: &str) -> Self {
        let directory = Self::directory(name);
        Self { api: Api::start(&directory), directory }
    }

    /// The directory alone, with those below it that every node has, and the user that the agent
    /// needs.
    pub fn directory(name: &str) -> PathBuf {
        sh("grep -q api.test /etc/hosts || echo '127.0.0.1 api.test' >>/etc/hosts
            id _unbit-agent >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin _unbit-agent")
        .ok();
        let directory = PathBuf::from(format!("/run/agent-{name}"));
        let _ = fs::remove_dir_all(&directory);
        for part in ["vassals", "custom_services"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        directory
    }

    /// Runs the agent.
    pub fn agent(&self, words: &str) -> Done {
        let directory = self.directory.to_str().unwrap();
        let words: Vec<_> = words.split_whitespace().chain(["--directory", directory]).collect();
        run("unbit-agent", &words, b"")
    }

    /// The daemon, whose log goes to a file.
    pub fn run(&self, words: &str) -> (Daemon, PathBuf) {
        let log = self.directory.join("log");
        let mut command = Command::new("unbit-agent");
        command.args(words.split_whitespace()).arg("--directory").arg(&self.directory).stdin(Stdio::null());
        (Daemon(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap()), log)
    }

    /// All files below the directory, with owner, mode, inode and content.
    pub fn state(&self) -> String {
        sh(format!("cd {} && find vassals custom_services nodes legion_nodes alarms -printf '%p %y %U:%G %m %i ' -type f -exec cksum {{}} + -o -printf '\\n' 2>/dev/null | sort", self.directory.display()))
            .out
    }

    /// The names of the Emperor's files.
    pub fn vassals(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.directory.join("vassals"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Has a file for each of these containers, and the API as well.
    pub fn with_containers(&self, uids: &[u32]) {
        for uid in uids {
            let text = ini(*uid);
            fs::write(self.directory.join(format!("vassals/{uid}.ini")), &text).unwrap();
            self.api.says(&format!("/containers/{uid}.ini"), &text);
        }
        self.api.says("/containers/", &list(uids));
    }

    /// Waits until the daemon has done so many rounds more.
    pub fn rounds(&self, count: usize) {
        let mut seen = 0;
        eventually(format!("{count} rounds"), || {
            seen += self.api.asked().iter().filter(|asked| asked.path == "/nodes/").count();
            (seen >= count).then_some(())
        });
    }

    /// What a test may change is nothing: `job` fails, says why, and leaves everything as it is.
    #[track_caller]
    pub fn assert_refuses(&self, job: &str, cause: &str) {
        let before = self.state();
        let error = self.agent(&format!("once {job}")).failed();
        assert!(error.contains(cause), "{cause}: {error}");
        assert_eq!(self.state(), before, "{error}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The daemon, which ends with this.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// The routers of this node, which one test has at a time.
static ROUTERS: LazyLock<Mutex<Routers>> = LazyLock::new(|| Mutex::new(Routers::start()));

/// What the tuntap router and the http router say to whoever connects.
pub struct Routers {
    tuntap: Arc<Mutex<String>>,
    http: Arc<Mutex<String>>,
}

impl Routers {
    fn start() -> Self {
        let [tuntap, http] = [5002, 5003].map(|port| {
            let text = Arc::new(Mutex::new(String::new()));
            let said = Arc::clone(&text);
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    let text = said.lock().unwrap().clone();
                    let _ = connection.unwrap().write_all(text.as_bytes());
                }
            });
            text
        });
        Self { tuntap, http }
    }

    /// Routers that carry nothing yet, for one test.
    pub fn take() -> MutexGuard<'static, Self> {
        let routers = ROUTERS.lock().unwrap_or_else(PoisonError::into_inner);
        routers.say(r#"{"peers": []}"#, r#"{"subscriptions": []}"#);
        routers
    }

    /// What both say from now on.
    pub fn say(&self, tuntap: &str, http: &str) {
        self.tuntap(tuntap);
        http.clone_into(&mut self.http.lock().unwrap());
    }

    /// What the tuntap router says.
    pub fn tuntap(&self, says: &str) {
        says.clone_into(&mut self.tuntap.lock().unwrap());
    }
}

/// A file of the Emperor's.
pub fn ini(uid: u32) -> String {
    format!("[uwsgi]\nuid = {uid}\ngid = {uid}\n")
}

/// The API's list of these containers.
pub fn list(uids: &[u32]) -> String {
    let entry = |uid: &u32| format!(r#"{{"uid": {uid}, "mtime": 1400000000, "ssh_keys_mtime": 1400000000}}"#);
    format!("[{}]", uids.iter().map(entry).collect::<Vec<_>>().join(", "))
}
