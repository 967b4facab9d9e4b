//! Checks the node's mail server, for which a container user is a local user: it must not run
//! programs that a tenant names in ~/.forward.

use crate::command;
use crate::containers::some_container;
use crate::names;
use crate::report::Finding;
use crate::rootfs::RootFs;
use anyhow::{Result, bail};
use shared::settings::{CONTAINERS, FIRST_UID};

const CHECK: &str = "mail";
const WHY: &str = "mail to 30001@localhost starts the tenant's program on the node, outside its container";

const EXIM: [&str; 2] = ["/usr/sbin/exim4", "/usr/sbin/exim"];
const POSTCONF: &str = "/usr/sbin/postconf";
const SENDMAIL: &str = "/usr/sbin/sendmail";

pub fn check(node: &RootFs) -> Vec<Finding> {
    let exim = EXIM.into_iter().find(|exim| node.has(exim));
    let has_postfix = node.has(POSTCONF);
    if exim.is_none() && !has_postfix {
        return vec![if node.has(SENDMAIL) {
            let seen = format!(
                "{SENDMAIL} is neither exim nor postfix: /usr/share/doc/unbit/docs/operating.md says how to test it"
            );
            Finding::not_applicable(CHECK, WHY, seen)
        } else {
            Finding::ok(CHECK, WHY, "there is no mail server")
        }];
    }
    if !nix::unistd::geteuid().is_root() {
        return vec![Finding::not_applicable(CHECK, WHY, "root is needed to see what the mail server would do")];
    }
    let asked = [exim.map(|exim| (exim, ask_exim(node, exim))), has_postfix.then(|| (POSTCONF, ask_postfix(node)))];
    let judged = asked.into_iter().flatten().map(|(program, verdict)| {
        verdict.unwrap_or_else(|error| Finding::not_applicable(CHECK, WHY, format!("{program}: {error:#}")))
    });
    judged.collect()
}

/// The output of an exim about a container user that has each file which may name a program.
#[derive(Default, PartialEq, Eq, Debug)]
struct Exim {
    /// It knows the account.
    is_known: bool,
    /// It would start what a ~/.forward names.
    starts: bool,
    /// It has started what a filter in ~/.forward names, only to find out where mail goes.
    has_started: bool,
    /// Its transports for such mail.
    transports: Vec<String>,
}

/// Asks it where mail would go (`exim -bt`), of a user who has the files. In a mount namespace of
/// its own that user's directory is one of ours, so no file of a tenant's is read.
const ASK_EXIM: &str = r##"
    root=$1 containers=$2 inside=$3 uid=$4 exim=$5
    umask 022
    mount -t tmpfs -o mode=755 unbitctl "$containers"
    home=$containers/$uid
    mkdir "$home"
    chown "$uid:$uid" "$home"
    chroot "$root" getent passwd "$uid" >/dev/null || exit 0
    echo known
    put() { printf '%s\n' "$2" >"$home/$1"; chown "$uid:$uid" "$home/$1"; }
    ask() { chroot "$root" "$exim" -bt "$uid@localhost" "$uid" 2>/dev/null || :; }
    put .forward '|/bin/true unbitctl'
    ask | sed 's/^/pipe /'
    put .forward "# Exim filter
if \"\${run{/bin/touch $inside/$uid/started}}\" is \"unbitctl\" then finish endif"
    ask >/dev/null
    [ ! -e "$home/started" ] || echo started
    rm "$home/.forward"
    put .procmailrc '# unbitctl'
    put .mailfilter '# unbitctl'
    chmod 600 "$home/.mailfilter"
    ask | sed 's/^/box /'
"##;

impl Exim {
    fn parse(out: &str) -> Self {
        let mut exim = Self::default();
        for line in out.lines() {
            match line.split_once(' ') {
                None if line == "known" => exim.is_known = true,
                None if line == "started" => exim.has_started = true,
                // `*** forbidden ***` follows where forbid_pipe is set.
                Some(("pipe", answer)) => exim.starts |= answer.trim_end().ends_with("-> |/bin/true unbitctl"),
                Some(("box", answer)) => {
                    let name = answer.split_once("transport = ").map(|(_, name)| name.trim());
                    exim.transports.extend(name.filter(|name| is_word(name)).map(str::to_owned));
                }
                _ => {}
            }
        }
        exim.transports.sort();
        exim.transports.dedup();
        exim
    }

    fn judge(&self, program: &str, commands: &[String]) -> Finding {
        let what = match (self.starts, self.has_started, runs_files_of_users(commands)) {
            (true, ..) => "a command in ~/.forward".to_owned(),
            (_, true, _) => "a ${run} in the filter in ~/.forward, as soon as it routes the mail".to_owned(),
            (.., Some(command)) => format!("what {command} finds in the home directory"),
            (false, false, None) => {
                return Finding::ok(CHECK, WHY, format!("{program} starts no program for container users"));
            }
        };
        Finding::fail(CHECK, WHY, format!("for container users, {program} runs {what}"), fix_exim())
    }
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
}

/// The one of these commands that follows a file in the user's home directory.
fn runs_files_of_users(commands: &[String]) -> Option<&str> {
    let programs = |command: &str| ["procmail", "maildrop"].into_iter().find(|program| command.contains(program));
    commands.iter().find_map(|command| programs(command))
}

fn fix_exim() -> String {
    format!(
        "put this router before system_aliases: into a file conf.d/router/350_unbit where dc_use_split_config is 'true',\n\
         else into exim4.conf.template; then: update-exim4.conf && systemctl reload exim4\n\
         unbit_containers:\n\
         \x20 driver = redirect\n\
         \x20 domains = +local_domains\n\
         \x20 check_local_user\n\
         \x20 condition = ${{if and{{{{>={{$local_user_uid}}{{{FIRST_UID}}}}}{{exists{{{CONTAINERS}/$local_user_uid}}}}}}}}\n\
         \x20 allow_fail\n\
         \x20 data = :fail: users of containers have no mailbox here"
    )
}

fn ask_exim(node: &RootFs, exim: &str) -> Result<Finding> {
    let uid = some_container(node).map_or(FIRST_UID, |container| container.get()).to_string();
    let Ok(containers) = node.resolve(CONTAINERS) else {
        return Ok(Finding::not_applicable(CHECK, WHY, format!("{exim}: there is no {CONTAINERS} to ask with")));
    };
    let answer =
        command::run_in_mount_namespace(node, ASK_EXIM, &[&containers.display().to_string(), CONTAINERS, &uid, exim])?;
    if !answer.succeeded() {
        bail!("{}", answer.error_summary());
    }
    let seen = Exim::parse(&answer.out);
    if !seen.is_known {
        let seen = format!("{exim} does not know container users yet: getent passwd {uid} finds nothing");
        return Ok(Finding::not_applicable(CHECK, WHY, seen));
    }
    let mut commands = Vec::new();
    for transport in &seen.transports {
        let options = command::run(node, exim, &["-bP", "transport", transport])?.out;
        commands.extend(options.lines().filter_map(|line| line.trim().strip_prefix("command = ")).map(str::to_owned));
    }
    Ok(seen.judge(exim, &commands))
}

/// Settings of postconf(1), see local(8) and postconf(5).
#[derive(Clone, Default, Debug)]
struct Postfix {
    destinations: String,
    transport: String,
    forward_path: String,
    commands: String,
    mailbox_command: String,
    /// An alias takes the mail of every number, and of every second name, before anything of the
    /// user's is looked at.
    has_alias: bool,
    /// The second names of the node's containers.
    names: Vec<String>,
}

impl Postfix {
    fn judge(&self) -> Finding {
        let words = |text: &str| text.split([',', ' ']).map(str::to_owned).collect::<Vec<_>>();
        let ok = |seen: &str| Finding::ok(CHECK, WHY, format!("postfix {seen}"));
        if self.destinations.is_empty() || !self.transport.starts_with("local") {
            return ok("delivers no mail to users of this node");
        }
        if self.has_alias {
            return ok("gives the mail of container users to somebody else, by alias_maps");
        }
        let allowed = words(&self.commands).into_iter().find(|word| matches!(word.as_str(), "forward" | "include"));
        let forward_path = Some(&self.forward_path)
            .filter(|path| ["$home", "${home", "$(home"].iter().any(|home| path.contains(home)));
        let what = match (forward_path, allowed, runs_files_of_users(std::slice::from_ref(&self.mailbox_command))) {
            (Some(_), Some(word), _) => format!("a command in ~/.forward: allow_mail_to_commands has {word}"),
            (.., Some(command)) => format!("what {command} finds in the home directory: mailbox_command"),
            _ => return ok("starts no program for container users"),
        };
        Finding::fail(CHECK, WHY, format!("for container users, postfix runs {what}"), fix_postfix(&self.names))
    }
}

/// Numbers by a pattern, and the names that there are.
fn fix_postfix(names: &[String]) -> String {
    let names: String = names.iter().map(|name| format!("|{name}")).collect();
    format!(
        "give that mail to root before ~/.forward is looked at:\n\
         echo '/^([1-9][0-9]{{4,9}}{names})$/ root' >/etc/postfix/unbit-aliases\n\
         maps=$(postconf -h alias_maps | sed 's|, regexp:/etc/postfix/unbit-aliases||')\n\
         postconf -e \"alias_maps = $maps, regexp:/etc/postfix/unbit-aliases\" && postfix reload"
    )
}

fn ask_postfix(node: &RootFs) -> Result<Finding> {
    let ask = |how: &str, name: &str| -> Result<String> {
        let answer = command::run(node, POSTCONF, &[how, name])?;
        if !answer.succeeded() {
            bail!("{}", answer.error_summary());
        }
        Ok(answer.out.trim().to_owned())
    };
    let alias_maps = ask("-hx", "alias_maps")?;
    let maps: Vec<_> = alias_maps.split([',', ' ']).filter(|map| map.contains(':')).collect();
    // The first and nearly the last of the numbers that containers have.
    let numbers = [FIRST_UID, i32::MAX.unsigned_abs() - 1].map(|uid| uid.to_string());
    let links = names::links(node);
    let names: Vec<_> = links.iter().filter_map(|link| Some(link.second_name()?.0.to_string())).collect();
    let has_alias = numbers.iter().chain(&names).all(|user| {
        let takes = |map: &&str| command::run(node, "/usr/sbin/postalias", &["-q", user, map]);
        maps.iter().any(|map| takes(map).is_ok_and(|answer| answer.succeeded() && !answer.out.trim().is_empty()))
    });
    let postfix = Postfix {
        destinations: ask("-hx", "mydestination")?,
        transport: ask("-hx", "local_transport")?,
        forward_path: ask("-h", "forward_path")?, // expanded, $home would be gone
        commands: ask("-hx", "allow_mail_to_commands")?,
        mailbox_command: ask("-h", "mailbox_command")?,
        has_alias,
        names,
    };
    Ok(postfix.judge())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn what_exim_says_of_a_forward_file() {
        // Debian's own, without and with procmail; with the router.
        let debian = "known\n\
            pipe 30000@localhost -> |/bin/true unbitctl\npipe   transport = address_pipe\n\
            started\n\
            box 30000@localhost\nbox   router = local_user, transport = mail_spool\n\
            box 30000@node\nbox   router = procmail, transport = procmail_pipe\n";
        let seen = Exim::parse(debian);
        assert_eq!(
            seen,
            Exim {
                is_known: true,
                starts: true,
                has_started: true,
                transports: vec!["mail_spool".into(), "procmail_pipe".into()]
            }
        );
        let finding = seen.judge("exim4", &[]);
        assert_eq!(
            (finding.state, finding.seen.as_str()),
            (State::Fail, "for container users, exim4 runs a command in ~/.forward")
        );
        let fix = finding.fix.unwrap();
        assert!(
            fix.contains(
                "\n  condition = ${if and{{>={$local_user_uid}{30000}}{exists{/containers/$local_user_uid}}}}\n"
            ),
            "{fix}"
        );

        let judge = |out: &str, commands: &[&str]| {
            let commands: Vec<_> = commands.iter().map(|command| (*command).to_owned()).collect();
            Exim::parse(out).judge("exim4", &commands).state
        };
        assert_eq!(judge("known\nstarted\n", &[]), State::Fail, "pipes are forbidden, filters are not");
        assert_eq!(judge("known\nbox x\n", &["/usr/bin/procmail -d"]), State::Fail);
        assert_eq!(judge("known\nbox x\n", &["/usr/lib/dovecot/deliver"]), State::Ok);
        let refused =
            "known\npipe 30000@localhost is undeliverable: no mailbox here\nbox 30000@localhost is undeliverable: x\n";
        assert_eq!(judge(refused, &[]), State::Ok);
        assert_eq!(judge("known\npipe 30000@x -> |/usr/bin/alias-of-roots\n", &[]), State::Ok);
        let forbidden = "known\npipe 30000@localhost -> |/bin/true unbitctl *** forbidden ***\n";
        assert_eq!(judge(forbidden, &[]), State::Ok);
        assert!(!Exim::parse("").is_known);
        assert_eq!(Exim::parse("known\nbox transport = a b;c\n").transports, [""; 0]);
    }

    #[test]
    fn what_postfix_would_run() {
        let debian = Postfix {
            destinations: "node, localhost".into(),
            transport: "local:node".into(),
            forward_path: "$home/.forward${recipient_delimiter}${extension}, $home/.forward".into(),
            commands: "alias, forward".into(),
            ..Postfix::default()
        };
        assert_eq!(debian.judge().state, State::Fail);
        assert!(debian.judge().fix.unwrap().contains("\necho '/^([1-9][0-9]{4,9})$/ root' >"));
        assert!(fix_postfix(&["web1".into(), "www".into()]).contains("\necho '/^([1-9][0-9]{4,9}|web1|www)$/ root' >"));
        let state = |change: fn(&mut Postfix)| {
            let mut postfix = debian.clone();
            change(&mut postfix);
            postfix.judge().state
        };
        assert_eq!(state(|postfix| postfix.forward_path.clear()), State::Ok);
        assert_eq!(state(|postfix| postfix.forward_path = "/etc/forward/$user".into()), State::Ok);
        assert_eq!(state(|postfix| postfix.forward_path = "${home}/.forward".into()), State::Fail);
        assert_eq!(state(|postfix| postfix.commands = "alias".into()), State::Ok);
        assert_eq!(state(|postfix| postfix.commands = "alias,include".into()), State::Fail);
        assert_eq!(state(|postfix| postfix.has_alias = true), State::Ok);
        assert_eq!(state(|postfix| postfix.destinations.clear()), State::Ok);
        assert_eq!(state(|postfix| postfix.transport = "error:none".into()), State::Ok);
        assert_eq!(
            state(|postfix| {
                postfix.commands.clear();
                postfix.mailbox_command = "procmail -a \"$EXTENSION\"".into();
            }),
            State::Fail
        );
    }
}
