//! `filtered COMMAND...`: executes a command under a filter of system calls that allows everything.
//! `filtered calls NUMBER...`: makes system calls with arguments that mean nothing, and prints the
//! errno of each.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "calls") {
        for number in &words[1..] {
            let number: libc::c_long = number.parse().unwrap();
            // SAFETY: no address is valid, and no descriptor, so that nothing comes of any of them.
            let result = unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) };
            println!("{number} {}", if result < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 });
        }
        return;
    }
    let mut allow = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    let program = libc::sock_fprog { len: 1, filter: allow.as_mut_ptr() };
    // SAFETY: the kernel reads a program of one instruction.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    panic!("{:?}: {}", words, Command::new(&words[0]).args(&words[1..]).exec());
}
