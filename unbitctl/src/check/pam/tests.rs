//! The stacks of Debian's releases and what may be wrong with them.

use super::*;

const COMMON: [(&str, &str); 3] = [
    (
        "common-auth",
        "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n",
    ),
    (
        "common-account",
        "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\naccount required pam_permit.so\n",
    ),
    (
        "common-session",
        "session [default=1] pam_permit.so\nsession requisite pam_deny.so\nsession required pam_permit.so\n\
         session required pam_unix.so\nsession optional pam_systemd.so\n",
    ),
];

/// As Debian 12 and 13 have it.
const STOCK: &str = "\
# Standard Un*x authentication.
@include common-auth

account    required     pam_nologin.so

# Standard Un*x authorization.
@include common-account

session [success=ok ignore=ignore module_unknown=ignore default=bad]        pam_selinux.so close
session    required     pam_loginuid.so
session    optional     pam_keyinit.so force revoke

# Standard Un*x session setup and teardown.
@include common-session
session    optional     pam_motd.so  motd=/run/motd.dynamic
";

const FIXED: &str = "\
# Container users, see pam_unbit(8): for them this line comes first.
auth       [success=done ignore=ignore module_unknown=ignore default=die] pam_unbit.so

# Standard Un*x authentication.
@include common-auth

account    required     pam_nologin.so

# Container users, see pam_unbit(8): for them this line comes first.
account    [success=1 default=ignore] pam_succeed_if.so quiet uid < 30000
account    required     pam_unbit.so

# Standard Un*x authorization.
@include common-account

# Container users, see pam_unbit(8): for them this line comes first.
session    [success=done ignore=ignore module_unknown=ignore default=die] pam_unbit.so

session [success=ok ignore=ignore module_unknown=ignore default=bad]        pam_selinux.so close
session    required     pam_loginuid.so
session    optional     pam_keyinit.so force revoke

# Standard Un*x session setup and teardown.
@include common-session
session    optional     pam_motd.so  motd=/run/motd.dynamic
";

/// What setup wrote when the session line's place was behind pam_loginuid and pam_keyinit.
fn former() -> String {
    const NOW: &str = "\
# Container users, see pam_unbit(8): for them this line comes first.
session    [success=done ignore=ignore module_unknown=ignore default=die] pam_unbit.so

";
    const THEN: &str = "\
# Container users, see pam_unbit(8): for them nothing runs on the node after this line.
session    [success=done ignore=ignore module_unknown=ignore default=die] pam_unbit.so

";
    let common = "# Standard Un*x session";
    FIXED.replacen(NOW, "", 1).replacen(common, &format!("{THEN}{common}"), 1)
}

fn reader(sshd: &str) -> impl Fn(&str) -> Option<String> {
    move |name| match name {
        "sshd" => Some(sshd.to_owned()),
        _ => COMMON.iter().find(|(common, _)| *common == name).map(|(_, text)| (*text).to_owned()),
    }
}

fn seen(sshd: &str) -> Vec<String> {
    faults(&stack::flatten(&reader(sshd), "sshd")).into_iter().map(|fault| fault.seen).collect()
}

fn fix_text(sshd: &str) -> Result<Option<String>> {
    fixed(&reader(sshd))
}

#[test]
fn the_stock_file_is_fixed_and_then_left_alone() {
    assert_eq!(seen(STOCK).len(), 3, "{:?}", seen(STOCK));
    assert_eq!(fix_text(STOCK).unwrap().unwrap(), FIXED);
    assert_eq!(seen(FIXED), [""; 0]);
    assert_eq!(fix_text(FIXED).unwrap(), None);
}

#[test]
fn a_session_line_in_its_former_place_is_moved_up() {
    assert_eq!(
        seen(&former()),
        [
            "/etc/pam.d/sshd line 16: pam_selinux.so runs for container users: if it fails, every module after pam_unbit.so runs for them too, as root",
            "/etc/pam.d/sshd line 17: pam_loginuid.so runs for container users: if it fails, every module after pam_unbit.so runs for them too, as root",
            "/etc/pam.d/sshd line 18: pam_keyinit.so runs for container users: pam_unbit.so must be the first session line",
        ]
    );
    assert_eq!(fix_text(&former()).unwrap().unwrap(), FIXED);
    let debug = former().replace("pam_unbit.so", "pam_unbit.so debug");
    assert_eq!(fix_text(&debug).unwrap().unwrap(), FIXED.replace("pam_unbit.so", "pam_unbit.so debug"));
}

/// Of whatever kind, and wherever it is written.
#[test]
fn no_session_or_auth_line_may_come_before_ours() {
    for (kind, word) in [("session", "session    [success=done"), ("auth", "auth       [success=done")] {
        for (before, place) in [
            ("required pam_limits.so", "sshd line"),
            ("requisite pam_limits.so", "sshd line"),
            ("optional pam_umask.so", "sshd line"),
            ("[default=ignore] pam_exec.so /bin/true", "sshd line"),
            ("required pam_unheard_of.so", "sshd line"),
            ("include ours", "ours line"),
            ("substack ours", "ours line"),
        ] {
            let broken = FIXED.replacen(word, &format!("{kind} {before}\n{word}"), 1);
            let read = |name: &str| match name {
                "ours" => Some(format!("{kind} optional pam_umask.so\n")),
                _ => reader(&broken)(name),
            };
            let faults = faults(&stack::flatten(&read, "sshd"));
            let [fault] = faults.as_slice() else { panic!("{before}: {}", faults.len()) };
            assert!(fault.seen.starts_with(&format!("/etc/pam.d/{place} ")), "{before}: {}", fault.seen);
            assert_ne!(fault.severity, Severity::Minor, "{before}: {}", fault.seen);
            let new = fixed(&read).unwrap().unwrap();
            let read = |name: &str| if name == "sshd" { Some(new.clone()) } else { read(name) };
            assert!(super::faults(&stack::flatten(&read, "sshd")).is_empty(), "{before}: {new}");
        }
        let dashed = FIXED.replacen(word, &format!("-{kind} optional pam_systemd.so\n{word}"), 1);
        assert_eq!(seen(&dashed).len(), 1, "{:?}", seen(&dashed));
        let whole = FIXED.replacen(word, &format!("@include common-{kind}\n{word}"), 1);
        let place = format!("/etc/pam.d/common-{kind} line ");
        assert!(seen(&whole).iter().all(|seen| seen.starts_with(&place)), "{:?}", seen(&whole));
        assert!(seen(&whole).len() >= 3, "{:?}", seen(&whole));
    }
}

#[test]
fn the_lines_of_the_manual_page_are_good_anywhere_they_may_be() {
    let manual = "auth [success=done ignore=ignore module_unknown=ignore default=die] pam_unbit.so # x\n\
        @include common-auth\naccount required pam_nologin.so\naccount [success=1 default=ignore] pam_succeed_if.so quiet uid < 30000\n\
        account required \\\n   pam_unbit.so\n@include common-account\n\
        session [success=done ignore=ignore module_unknown=ignore default=die] /usr/lib/security/pam_unbit.so\n\
        session required pam_loginuid.so\n@include common-session\n";
    assert_eq!(seen(manual), [""; 0]);
}

/// Each change of the good file is seen, and fixed to the good file or one without a fault.
#[test]
fn each_fault_is_seen_and_fixed() {
    let session = format!("session    {CONTROL} pam_unbit.so\n");
    for (old, new, fault) in [
        (format!("auth       {CONTROL} pam_unbit.so\n"), String::new(), "there is no auth line of pam_unbit.so"),
        ("account    required     pam_unbit.so\n".into(), String::new(), "there is no account line of pam_unbit.so"),
        (session.clone(), String::new(), "there is no session line of pam_unbit.so"),
        (
            session.clone(),
            session.replace("done", "ok"),
            "success is ok, so what comes after it runs for container users as well",
        ),
        (
            session.clone(),
            session.replace("default=die", "default=bad"),
            "perm_denied is bad, so a refusal does not end the stack",
        ),
        (
            session.clone(),
            session.replace("default=die", "default=ignore"),
            "perm_denied is ignore, so a refusal does not end the stack",
        ),
        (
            session.clone(),
            session.replace(" module_unknown=ignore", ""),
            "module_unknown is die, so without the module nobody logs in",
        ),
        (session.clone(), session.replace(" ignore=ignore", ""), "ignore is die, so other users are refused"),
        (session.clone(), session.replace(CONTROL, "sufficient"), "perm_denied is ignore"),
        (session.clone(), session.repeat(2), "a second session line"),
        (
            "account    required     pam_unbit".into(),
            "account    optional     pam_unbit".into(),
            "perm_denied is ignore, so a refusal has no effect",
        ),
        (
            "account    required     pam_unbit".into(),
            format!("account    {CONTROL}     pam_unbit"),
            "module_unknown is ignore",
        ),
        ("uid < 30000".into(), "uid < 40000".into(), "is for uid 30000 and above, this line is not: uid < 40000"),
        ("quiet uid < 30000".into(), "use_uid uid < 30000".into(), "this line is not: use_uid uid < 30000"),
        ("[success=1 default".into(), "[success=2 default".into(), "should be [success=1 default=ignore]"),
        (
            "account    [success=1 default=ignore] pam_succeed_if.so quiet uid < 30000\n".into(),
            String::new(),
            "it runs for other users as well",
        ),
        (
            session.clone(),
            format!("session    optional     pam_motd.so\n{session}"),
            "pam_motd.so runs for container users: it runs programs",
        ),
        (
            session.clone(),
            format!("session    required     pam_env.so user_readenv=1\n{session}"),
            "pam_env.so runs for container users: it reads the tenant's",
        ),
        (
            session.clone(),
            format!("session    sufficient     pam_permit.so\n{session}"),
            "pam_permit.so may end the stack before pam_unbit.so",
        ),
        (
            "account    required     pam_nologin.so\n".into(),
            "account    sufficient     pam_localuser.so\naccount    required     pam_nologin.so\n".into(),
            "pam_localuser.so may end the stack before pam_unbit.so",
        ),
    ] {
        assert!(FIXED.contains(&old), "{old}");
        let broken = FIXED.replacen(&old, &new, 1);
        let seen = seen(&broken);
        assert!(seen.iter().any(|seen| seen.contains(fault)), "{fault}: {seen:?}");
        let again = fix_text(&broken).unwrap().unwrap();
        assert_eq!(super::tests::seen(&again), [""; 0], "{fault}: {again}");
    }
}

#[test]
fn who_refuses_everybody_before_ours_is_somebodys_decision() {
    let broken = FIXED.replacen("account    required     pam_nologin.so", "account    required     pam_deny.so", 1);
    assert_eq!(seen(&broken), ["/etc/pam.d/sshd line 7: pam_deny.so refuses everybody before pam_unbit.so"]);
    assert!(fix_text(&broken).unwrap_err().to_string().contains("by hand"));
}

#[test]
fn a_line_behind_the_common_ones_is_too_late() {
    let auth = format!("auth {CONTROL} pam_unbit.so\n");
    let late = format!(
        "@include common-auth\n{auth}account required pam_unbit.so\nsession required pam_loginuid.so\n@include common-session\nsession {CONTROL} pam_unbit.so\n"
    );
    let seen = seen(&late);
    for fault in [
        "/etc/pam.d/common-auth line 2: pam_deny.so may end the stack before pam_unbit.so",
        "/etc/pam.d/common-session line 5: pam_systemd.so runs for container users: it starts the tenant's own units on the node",
    ] {
        assert!(seen.iter().any(|seen| seen == fault), "{fault}: {seen:?}");
    }
    assert_eq!(super::tests::seen(&fix_text(&late).unwrap().unwrap()), [""; 0]);
}

#[test]
fn options_stay_and_bad_ones_are_left_to_people() {
    let debug = FIXED.replace("pam_unbit.so", "pam_unbit.so debug timeout=5");
    assert_eq!(seen(&debug), [""; 0]);
    let broken = debug.replacen("=done", "=ok", 1);
    assert_eq!(fix_text(&broken).unwrap().unwrap(), debug);

    for (words, fault) in
        [("debig", "unknown option: debig"), ("join=now", "join=now is not for sshd"), ("timeout=0", "timeout=0")]
    {
        let bad = FIXED.replace("pam_unbit.so\n", &format!("pam_unbit.so {words}\n"));
        assert!(seen(&bad).iter().any(|seen| seen.contains(fault)), "{:?}", seen(&bad));
        assert!(fix_text(&bad).unwrap_err().to_string().contains("by hand"));
    }
    let unlike = FIXED.replacen("pam_unbit.so\n", "pam_unbit.so debug\n", 1);
    assert!(seen(&unlike).iter().any(|seen| seen.contains("other options than in")), "{:?}", seen(&unlike));
}

#[test]
fn substacks_and_includes_of_one_kind_are_followed() {
    let substack = FIXED
        .replace("@include common-auth", "auth substack common-auth")
        .replace("@include common-session", "session include common-session");
    assert_eq!(seen(&substack), [""; 0]);
    let read = |name: &str| match name {
        "sshd" => Some("auth substack ours\naccount include ours\nsession include ours\n".to_owned()),
        "ours" => Some(FIXED.to_owned()),
        _ => None,
    };
    let faults: Vec<_> = faults(&stack::flatten(&read, "sshd")).into_iter().map(|fault| fault.seen).collect();
    assert_eq!(faults, ["/etc/pam.d/ours line 2: in a substack, so its control value ends only the substack"]);
    assert!(fixed(&read).unwrap_err().to_string().contains("from /etc/pam.d/ours"));
}

#[test]
fn a_jump_takes_a_substack_for_one_line() {
    let auth = format!("auth       {CONTROL} pam_unbit.so\n");
    let jump = |over: usize| {
        FIXED.replacen(
            &auth,
            &format!("auth [success={over} default=ignore] pam_permit.so\nauth substack common-auth\n{auth}"),
            1,
        )
    };
    let fault = "/etc/pam.d/sshd line 2: pam_permit.so may end the stack before pam_unbit.so".to_owned();
    assert!(!seen(&jump(1)).contains(&fault));
    assert!(seen(&jump(2)).contains(&fault), "{:?}", seen(&jump(2)));
}
