//! The seccomp(2) filter of a session whose pid 1 has a filter.
//!
//! The filter of another process cannot be taken over. This one denies every call that the default
//! profile of Docker (moby, `profiles/seccomp/default.json`) or of podman (containers/common,
//! `pkg/seccomp/seccomp.json`) denies a process without capabilities. pid 1's own filter can deny
//! more.
//!
//! Whether a session gets the filter is decided in [`confinement`](crate::confinement).

use crate::sys;
use libc::{c_long, sock_filter as Instruction};
use nix::errno::Errno;

/// AUDIT_ARCH_... of linux/audit.h for this program.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00b7);
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00f3);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const ARCHITECTURE: Option<u32> = None;

/// The calls that fail with EPERM, whatever the arguments.
const DENIED: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    CACHESTAT,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    FUTEX_WAITV,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    QUOTACTL_FD,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    SET_MEMPOLICY_HOME_NODE,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    libc::SYS_vmsplice,
];

/// More such calls, which only x86 has; the kernel has removed most of them.
#[cfg(target_arch = "x86_64")]
const DENIED_ON_THIS_ARCHITECTURE: &[c_long] =
    &[libc::SYS__sysctl, libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_ON_THIS_ARCHITECTURE: &[c_long] = &[];

const IO_PGETEVENTS: c_long = if cfg!(target_arch = "x86_64") { 333 } else { 292 };
/// These have the same number everywhere.
const QUOTACTL_FD: c_long = 443;
const FUTEX_WAITV: c_long = 449;
const SET_MEMPOLICY_HOME_NODE: c_long = 450;
const CACHESTAT: c_long = 451;
/// Not every profile allows calls newer than fchmodat2 (Linux 6.6), so they fail with ENOSYS.
const NEWEST: u32 = 452;
/// The numbers of x32, which are x86_64's with this bit.
const X32: u32 = 0x4000_0000;
/// Every kind of namespace of clone(2): CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and
/// NEWNET.
const NAMESPACES: u32 = 0x7e02_0000;
/// What personality(2) may be asked for: Linux, its 32-bit kind, each with the old uname, and
/// 0xffffffff, which only asks for the present one.
const PERSONALITIES: [u32; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// With this errno libaudit assumes a kernel without audit, and libpam logs no error
/// (audit_open(3)). podman's profile has it as well.
const NO_AUDIT: u32 = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// The low half of an argument on a little-endian machine.
const fn argument_at(index: u32) -> u32 {
    16 + 8 * index
}

/// Filters the system calls of this process and its descendants. Needs CAP_SYS_ADMIN or
/// no_new_privs.
pub fn apply() -> nix::Result<()> {
    sys::filter_system_calls(&filter().ok_or(Errno::EOPNOTSUPP)?)
}

/// Loads a word of `struct seccomp_data`.
const fn load(at: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0)
}

/// Returns the verdict.
const fn ret(verdict: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, verdict, 0)
}

/// Skips the next `over` instructions unless the loaded word is this value.
const fn unless_equal(value: u32, over: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, over)
}

/// Skips them unless the word is at least this value.
const fn unless_at_least(value: u32, over: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, value, over)
}

/// Skips them unless the word has any of these bits.
const fn unless_any_bit(bits: u32, over: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits, over)
}

const fn instruction(code: u32, k: u32, jf: u8) -> Instruction {
    Instruction { code: code as u16, jt: 0, jf, k }
}

/// The filter; `None` on an architecture that has none here.
fn filter() -> Option<Vec<Instruction>> {
    let mut program = vec![
        load(ARCHITECTURE_AT),
        // The numbers of other architectures, such as 32-bit x86, mean other calls.
        Instruction { jt: 1, ..unless_equal(ARCHITECTURE?, 0) },
        ret(NOT_PERMITTED),
        load(NUMBER_AT),
        unless_at_least(X32, 1),
        ret(NOT_PERMITTED),
        unless_at_least(NEWEST + 1, 1),
        ret(NO_SUCH_CALL),
    ];
    for number in DENIED.iter().chain(DENIED_ON_THIS_ARCHITECTURE) {
        program.extend([unless_equal(*number as u32, 1), ret(NOT_PERMITTED)]);
    }
    // Its flags are in memory, which a filter cannot read. glibc falls back to clone(2).
    program.extend([unless_equal(libc::SYS_clone3 as u32, 1), ret(NO_SUCH_CALL)]);
    let clone = [load(argument_at(0)), unless_any_bit(NAMESPACES, 1), ret(NOT_PERMITTED), ret(ALLOW)];
    let personality: Vec<_> = [load(argument_at(0))]
        .into_iter()
        .chain(PERSONALITIES.into_iter().flat_map(|allowed| [unless_equal(allowed, 1), ret(ALLOW)]))
        .chain([ret(NOT_PERMITTED)])
        .collect();
    let socket = [
        load(argument_at(0)),
        unless_equal(libc::AF_VSOCK as u32, 1),
        ret(NOT_PERMITTED),
        unless_equal(libc::AF_NETLINK as u32, 3),
        load(argument_at(2)),
        unless_equal(libc::NETLINK_AUDIT as u32, 1),
        ret(NO_AUDIT),
        ret(ALLOW),
    ];
    let by_argument: [(c_long, &[Instruction]); 3] =
        [(libc::SYS_clone, &clone), (libc::SYS_personality, &personality), (libc::SYS_socket, &socket)];
    for (number, rules) in by_argument {
        program.push(unless_equal(number as u32, u8::try_from(rules.len()).ok()?));
        program.extend(rules);
    }
    program.push(ret(ALLOW));
    Some(program)
}

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;

    /// What the kernel does with a program, for the few instructions that there are in it.
    fn run(program: &[Instruction], architecture: u32, number: c_long, arguments: [u32; 3]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            let takes = match u32::from(code) {
                0x20 => {
                    value = match k {
                        NUMBER_AT => number as u32,
                        ARCHITECTURE_AT => architecture,
                        other => arguments[(other as usize - 16) / 8],
                    };
                    at += 1;
                    continue;
                }
                0x06 => return k,
                0x05 => {
                    at += 1 + k as usize;
                    continue;
                }
                0x15 => value == k,
                0x35 => value >= k,
                0x45 => value & k != 0,
                other => panic!("{other:#x}"),
            };
            at += 1 + usize::from(if takes { jt } else { jf });
        }
    }

    #[test]
    fn what_is_denied_and_what_is_not() {
        let program = filter().unwrap();
        let native = ARCHITECTURE.unwrap();
        let verdict = |number, arguments| run(&program, native, number, arguments);
        for number in DENIED.iter().chain(DENIED_ON_THIS_ARCHITECTURE) {
            assert_eq!(verdict(*number, [0; 3]), NOT_PERMITTED, "{number}");
        }
        let ordinary =
            [libc::SYS_read, libc::SYS_execve, libc::SYS_openat, libc::SYS_setresuid, libc::SYS_seccomp, 452];
        for number in ordinary {
            assert_eq!(verdict(number, [0; 3]), ALLOW, "{number}");
        }
        for number in [453, 456, 462, 1000, libc::SYS_clone3] {
            assert_eq!(verdict(number, [0; 3]), NO_SUCH_CALL, "{number}");
        }
        for foreign in [0x4000_0003, 0x4000_0028] {
            assert_eq!(
                run(&program, foreign, libc::SYS_read, [0; 3]),
                NOT_PERMITTED,
                "32-bit x86 and ARM: {foreign:#x}"
            );
        }
        assert_eq!(verdict(libc::SYS_read | 0x4000_0000, [0; 3]), NOT_PERMITTED, "x32");
    }

    #[test]
    fn what_depends_on_arguments() {
        let program = filter().unwrap();
        let verdict = |number, arguments| run(&program, ARCHITECTURE.unwrap(), number, arguments);
        assert_eq!(verdict(libc::SYS_clone, [libc::SIGCHLD as u32, 0, 0]), ALLOW);
        for kind in [libc::CLONE_NEWNS, libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(verdict(libc::SYS_clone, [(kind | libc::SIGCHLD) as u32, 0, 0]), NOT_PERMITTED, "{kind:#x}");
        }
        assert_eq!(verdict(libc::SYS_personality, [0x20008, 0, 0]), ALLOW);
        assert_eq!(verdict(libc::SYS_personality, [0x40000, 0, 0]), NOT_PERMITTED, "no address space randomisation");
        let socket = |domain: i32, protocol: i32| verdict(libc::SYS_socket, [domain as u32, 0, protocol as u32]);
        assert_eq!(socket(libc::AF_INET, 0), ALLOW);
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_ROUTE), ALLOW);
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_AUDIT), NO_AUDIT);
        assert_eq!(socket(libc::AF_INET, libc::NETLINK_AUDIT), ALLOW);
        assert_eq!(socket(libc::AF_VSOCK, 0), NOT_PERMITTED);
    }
}
