//! What each hook returns, logs, shows the user and counts, called by the hooks' own names. Any
//! user can run these tests: see [`fake`].

use super::*;
use crate::pam::fake::{self, Transaction};
use crate::pam::flag;
use join::refusal::Reason::{self, *};

type Hook = extern "C" fn(*mut RawHandle, c_int, c_int, *const *const c_char) -> c_int;

const HOOKS: [(Hook, c_int); 5] = [
    (pam_sm_authenticate, code::PERM_DENIED),
    (pam_sm_acct_mgmt, code::PERM_DENIED),
    (pam_sm_setcred, code::CRED_ERR),
    (pam_sm_open_session, code::SESSION_ERR),
    (pam_sm_close_session, code::SESSION_ERR),
];

/// A container's number, with its account.
const USER: &str = "30001";
const ACCOUNT: Option<(u32, u32)> = Some((30001, 30001));

fn call(pam: &mut Transaction, hook: Hook, flags: c_int, words: &[&CStr]) -> c_int {
    let words: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    hook(pam.handle(), flags, c_int::try_from(words.len()).unwrap(), words.as_ptr())
}

/// The hook must refuse, with one line in the log, one sentence to the user, and one more in the
/// counters.
#[track_caller]
fn assert_refused(pam: &mut Transaction, hook: (Hook, c_int), words: &[&CStr], reason: Reason, cause: &str) {
    assert_eq!(call(pam, hook.0, 0, words), hook.1);
    let log = std::mem::take(&mut pam.log);
    let [(priority, line)] = &log[..] else { panic!("{log:?}") };
    assert_eq!(*priority, libc::LOG_ERR);
    assert!(line.starts_with("container ") && line.ends_with(&format!(" refused: {cause}")), "{line}");
    let name = line.split(' ').nth(1).unwrap();
    assert_eq!(std::mem::take(&mut pam.told), [Refusal::new(reason, "").sentence(name)]);
    assert_eq!(fake::counted().into_iter().map(|(_, reason)| reason).collect::<Vec<_>>(), [reason]);
}

#[test]
fn other_users_are_ignored() {
    for (user, account) in [
        (Some("alice"), Some((1000, 1000))),
        (Some("root"), Some((0, 0))),
        (Some("ldap"), Some((40000, 40000))), // no directory of that number
        (Some("nobody-knows"), None),
        (None, None),
    ] {
        for service in ["sshd", "su"] {
            for (hook, _) in HOOKS {
                let mut pam = Transaction::new(service, user, account);
                assert_eq!(call(&mut pam, hook, 0, &[c"debug"]), code::IGNORE, "{user:?}");
                assert_eq!((&pam.log[..], &pam.told[..]), (&[][..], &[][..]), "{user:?}");
            }
        }
    }
    assert_eq!(fake::counted(), []);
}

#[test]
fn a_number_that_is_no_container_is_refused() {
    let [authenticate, acct_mgmt, setcred, open_session, _] = HOOKS;
    for (account, cause) in [
        (None, "there is no such account (no directory of its own, or NSS lacks unbit)"),
        (ACCOUNT, "the account has no directory /containers/30001 of its own"),
        (Some((1000, 1000)), "the name is a container's number, but the account has uid 1000 and gid 1000"),
        (Some((30001, 0)), "the name is a container's number, but the account has uid 30001 and gid 0"),
        (Some((30000, 30000)), "the name is a container's number, but the account has uid 30000 and gid 30000"),
    ] {
        let mut pam = Transaction::new("su", Some(USER), account);
        for hook in [acct_mgmt, setcred, open_session] {
            assert_refused(&mut pam, hook, &[], NoContainer, cause);
        }
        // Without a key nobody learns which containers there are.
        assert_refused(&mut pam, authenticate, &[], KeysOnly, cause);
        assert_eq!(call(&mut pam, pam_sm_close_session, 0, &[]), code::IGNORE);
    }
}

#[test]
fn a_containers_uid_under_another_name_is_refused() {
    fake::make_directory(30001);
    for name in ["bob", "030001", "30001 "] {
        let mut pam = Transaction::new("sshd", Some(name), ACCOUNT);
        assert_eq!(call(&mut pam, pam_sm_acct_mgmt, 0, &[]), code::PERM_DENIED, "{name}");
        assert!(
            pam.log[0].1.ends_with("refused: uid 30001 belongs to container 30001 but not to an account of this name")
        );
        assert_eq!(fake::counted(), [(None, NoContainer)]);
    }
}

#[test]
fn a_container_takes_no_password() {
    fake::make_directory(30001);
    let mut pam = Transaction::new("sshd", Some(USER), ACCOUNT);
    let cause = "a password was offered; container users log in with keys";
    assert_refused(&mut pam, HOOKS[0], &[], KeysOnly, cause);
}

#[test]
fn an_option_that_is_not_known_refuses_on_each_line() {
    fake::make_directory(30001);
    let [_, acct_mgmt, setcred, open_session, _] = HOOKS;
    for (words, cause) in [
        (&[c"timout=3"][..], "unknown option: timout=3"),
        (&[c"debug", c"timeout=0"], "option timeout=0: a number of seconds from 1 to 60 is needed"),
        (&[c"sessions=+1"], "option sessions=+1: a number of sessions from 1 to 1024 is needed"),
        (&[c"x\ncontainer 30002: session opened"], r"unknown option: x\u{a}container 30002: session opened"),
    ] {
        for hook in [acct_mgmt, setcred, open_session] {
            assert_refused(&mut Transaction::new("su", Some(USER), ACCOUNT), hook, words, Misconfigured, cause);
        }
    }
}

#[test]
fn a_service_enters_in_its_own_way_only() {
    fake::make_directory(30001);
    let [_, acct_mgmt, _, open_session, _] = HOOKS;
    for hook in [acct_mgmt, open_session] {
        let cause = "the service su cannot enter containers without join=now";
        assert_refused(&mut Transaction::new("su", Some(USER), ACCOUNT), hook, &[], Misconfigured, cause);
        let cause = r"the service su\u{a}x cannot enter containers without join=now";
        assert_refused(&mut Transaction::new("su\nx", Some(USER), ACCOUNT), hook, &[], Misconfigured, cause);
        let cause = "join=now would take sshd's monitor into the container; remove it from sshd's lines";
        assert_refused(&mut Transaction::new("sshd", Some(USER), ACCOUNT), hook, &[c"join=now"], Misconfigured, cause);
    }
}

#[test]
fn a_container_that_cannot_be_entered_is_refused_before_the_session() {
    fake::make_directory(30001);
    let mut pam = Transaction::new("sshd", Some(USER), ACCOUNT);
    // It is not running, or who runs this test may not enter it.
    assert_eq!(call(&mut pam, pam_sm_acct_mgmt, 0, &[]), code::PERM_DENIED);
    assert_eq!((pam.log.len(), pam.told.len(), fake::counted().len()), (1, 1, 1), "{:?}", pam.log);
    assert!(pam.log[0].1.starts_with("container 30001 refused: ") && pam.told[0].starts_with("Container 30001 "));
}

#[test]
fn a_missing_pam_line_refuses() {
    fake::make_directory(30001);
    let open_session = HOOKS[3];
    let missing = |line| format!("is the {line} line of pam_unbit.so missing? It was not called");
    let mut pam = Transaction::new("sshd", Some(USER), ACCOUNT);
    assert_refused(&mut pam, open_session, &[], Misconfigured, &missing("account"));
    // The auth line alone.
    assert_eq!(call(&mut pam, pam_sm_setcred, 0, &[]), code::SUCCESS);
    assert_refused(&mut pam, open_session, &[], Misconfigured, &missing("account"));
    assert_eq!(call(&mut pam, pam_sm_setcred, flag::DELETE_CRED, &[]), code::SUCCESS);
    assert_eq!(call(&mut pam, pam_sm_close_session, 0, &[]), code::SUCCESS);
    assert_eq!((pam.log.len(), fake::counted().len()), (0, 0), "no session was open: {:?}", pam.log);
    // The next login of another user knows nothing of it.
    let mut other = Transaction::new("sshd", Some(USER), ACCOUNT);
    assert_eq!(call(&mut other, pam_sm_setcred, flag::DELETE_CRED, &[]), code::IGNORE);
}

#[test]
fn no_message_with_pam_silent_or_without_conversation() {
    fake::make_directory(30001);
    let mut silent = Transaction::new("sshd", Some(USER), ACCOUNT);
    assert_eq!(call(&mut silent, pam_sm_authenticate, flag::SILENT, &[]), code::PERM_DENIED);
    assert_eq!((silent.log.len(), silent.told.len()), (1, 0));
    let mut alone = Transaction::new("sshd", Some(USER), ACCOUNT).without_conversation();
    assert_eq!(call(&mut alone, pam_sm_authenticate, 0, &[]), code::PERM_DENIED);
    assert_eq!((alone.log.len(), alone.told.len()), (1, 0));
}

#[test]
fn without_a_transaction_nothing_is_done() {
    for (hook, _) in HOOKS {
        assert_eq!(hook(std::ptr::null_mut(), 0, 0, std::ptr::null()), code::ABORT);
    }
}

/// sshd only logs an error of setcred's after a login by key, and goes on: so the process ends.
#[test]
fn sshds_setcred_ends_the_process_instead_of_refusing() {
    const INSIDE: &str = "UNBIT_TEST_SETCRED";
    if std::env::var_os(INSIDE).is_some() {
        call(&mut Transaction::new("sshd", Some(USER), None), pam_sm_setcred, 0, &[]);
        panic!("it goes on");
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let name = "hooks::tests::sshds_setcred_ends_the_process_instead_of_refusing";
    let done = again.args(["--exact", name]).env(INSIDE, "").output().unwrap();
    assert_eq!(done.status.code(), Some(255), "{done:?}");
}
