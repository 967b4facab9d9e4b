//! The registers of a process that this thread traces (ptrace(2)), and breakpoints, on the
//! architectures that are known here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use libc::{c_int, c_long, c_void, iovec, pid_t, user_regs_struct};

/// Code as long as a breakpoint.
pub type Code = [u8; BREAKPOINT.len()];

/// What hides an instruction until the process gets there: `int3`.
#[cfg(target_arch = "x86_64")]
pub const BREAKPOINT: [u8; 1] = [0xcc];
/// What hides an instruction until the process gets there: `brk #0`.
#[cfg(target_arch = "aarch64")]
pub const BREAKPOINT: [u8; 4] = 0xd420_0000_u32.to_le_bytes();

/// The instruction that makes a system call: `syscall`.
#[cfg(target_arch = "x86_64")]
const CALL: [u8; 2] = [0x0f, 0x05];
/// The instruction that makes a system call: `svc #0`.
#[cfg(target_arch = "aarch64")]
const CALL: [u8; 4] = 0xd400_0001_u32.to_le_bytes();

/// The number that stands for no system call.
const NO_CALL: c_int = -1;

/// Reads or writes a set of registers of a process that has stopped.
///
/// # Safety
/// `registers` must be what the kernel keeps in this set.
unsafe fn set_of<T>(request: libc::c_uint, pid: pid_t, set: c_int, registers: *mut T) -> io::Result<()> {
    let mut vector = iovec { iov_base: registers.cast::<c_void>(), iov_len: size_of::<T>() };
    // SAFETY: the kernel reads or writes no more than the vector says.
    let answer = unsafe { libc::ptrace(request, pid, set as usize, &raw mut vector) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The general registers.
#[derive(Clone, Copy)]
pub struct Registers(user_regs_struct);

impl Registers {
    /// Those of a process that has stopped. The error is ESRCH for one that has been killed
    /// meanwhile.
    pub fn of(pid: pid_t) -> io::Result<Self> {
        // SAFETY: numbers only, all of which may be zero, and what the kernel has in this set.
        unsafe {
            let mut registers: user_regs_struct = std::mem::zeroed();
            set_of(libc::PTRACE_GETREGSET, pid, libc::NT_PRSTATUS, &raw mut registers)?;
            Ok(Self(registers))
        }
    }

    /// Gives them to the process. The error is ESRCH for one that has been killed meanwhile.
    pub fn write(mut self, pid: pid_t) -> io::Result<()> {
        // SAFETY: what the kernel has in this set.
        unsafe { set_of(libc::PTRACE_SETREGSET, pid, libc::NT_PRSTATUS, &raw mut self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Registers {
    /// The number of the system call that the process enters.
    pub fn call(&self) -> c_long {
        self.0.orig_rax as c_long
    }

    /// The arguments of that call.
    pub fn arguments(&self) -> [u64; 6] {
        [self.0.rdi, self.0.rsi, self.0.rdx, self.0.r10, self.0.r8, self.0.r9]
    }

    /// What a function or a system call has returned, at its end.
    pub fn result(&self) -> i64 {
        self.0.rax as i64
    }

    /// Has the system call return this instead, at its end.
    pub fn set_result(&mut self, result: i64) {
        self.0.rax = result as u64;
    }

    /// Keeps the kernel from the system call that the process enters. Its result is for the caller
    /// to set, at its end.
    pub fn skip_call(mut self, pid: pid_t) -> io::Result<()> {
        self.0.orig_rax = i64::from(NO_CALL) as u64;
        self.write(pid)
    }

    /// Where the process goes on; of one that has met a breakpoint, where that is.
    pub fn here(&self) -> u64 {
        self.0.rip.wrapping_sub(BREAKPOINT.len() as u64)
    }

    /// Has the process go on there.
    pub fn go_on_at(&mut self, address: u64) {
        self.0.rip = address;
    }

    /// Where a function returns to, before its first instruction.
    pub fn return_address(&self, memory: &File) -> io::Result<u64> {
        let mut back = [0; 8];
        memory.read_exact_at(&mut back, self.0.rsp)?;
        Ok(u64::from_ne_bytes(back))
    }

    /// The registers that make one system call, and those to restore afterwards, for a process that
    /// waits in a system call or is about to.
    fn with_call(self, memory: &File, number: u64, a: u64, b: u64) -> io::Result<(Self, Self)> {
        let (mut call, mut after) = (self, self);
        let mut code = CALL;
        memory.read_exact_at(&mut code, self.0.rip)?;
        if code != CALL {
            call.0.rip -= CALL.len() as u64;
            // Restart an interrupted call: ERESTARTSYS and its like are -512 to -516.
            if (-516..=-512).contains(&self.result()) {
                (after.0.rip, after.0.rax) = (call.0.rip, after.0.orig_rax);
            }
        }
        after.0.orig_rax = i64::from(NO_CALL) as u64;
        (call.0.rax, call.0.orig_rax) = (number, after.0.orig_rax);
        (call.0.rdi, call.0.rsi) = (a, b);
        Ok((call, after))
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// The number of the system call that the process enters.
    pub fn call(&self) -> c_long {
        self.0.regs[8] as c_long
    }

    /// The arguments of that call.
    pub fn arguments(&self) -> [u64; 6] {
        let [a, b, c, d, e, f, ..] = self.0.regs;
        [a, b, c, d, e, f]
    }

    /// What a function or a system call has returned, at its end.
    pub fn result(&self) -> i64 {
        self.0.regs[0] as i64
    }

    /// Has the system call return this instead, at its end.
    pub fn set_result(&mut self, result: i64) {
        self.0.regs[0] = result as u64;
    }

    /// Keeps the kernel from the system call that the process enters. Its result is for the caller
    /// to set, at its end.
    pub fn skip_call(self, pid: pid_t) -> io::Result<()> {
        /// Of linux/elf.h: the number has a set of its own.
        const NT_ARM_SYSTEM_CALL: c_int = 0x404;
        let mut none = NO_CALL;
        // SAFETY: what the kernel has in this set.
        unsafe { set_of(libc::PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &raw mut none) }
    }

    /// Where the process goes on; of one that has met a breakpoint, where that is.
    pub fn here(&self) -> u64 {
        self.0.pc
    }

    /// Has the process go on there.
    pub fn go_on_at(&mut self, address: u64) {
        self.0.pc = address;
    }

    /// Where a function returns to, before its first instruction.
    pub fn return_address(&self, _: &File) -> io::Result<u64> {
        Ok(self.0.regs[30])
    }

    /// The registers that make one system call, and those to restore afterwards, for a process that
    /// waits in a system call or is about to.
    fn with_call(self, memory: &File, number: u64, a: u64, b: u64) -> io::Result<(Self, Self)> {
        let mut call = self;
        // The kernel has set everything back for a call that it restarts
        // (arch/arm64/kernel/signal.c, do_signal).
        let mut code = CALL;
        memory.read_exact_at(&mut code, self.0.pc)?;
        if code != CALL {
            call.0.pc -= CALL.len() as u64;
        }
        (call.0.regs[8], call.0.regs[0], call.0.regs[1]) = (number, a, b);
        Ok((call, self))
    }
}

/// Traces a process, makes it do one system call, and then continue the one that it was waiting in.
/// The result is the call's.
pub fn inject(pid: pid_t, number: u64, a: u64, b: u64) -> io::Result<i64> {
    let check = |answer: i64| if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let wait = || {
        let mut status = 0;
        // SAFETY: status is an int of ours.
        check(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }.into()).map(|()| status)
    };
    // SAFETY: these requests take numbers alone.
    let trace = |request| check(unsafe { libc::ptrace(request, pid, 0usize, 0usize) });
    trace(libc::PTRACE_SEIZE)?;
    trace(libc::PTRACE_INTERRUPT)?;
    wait()?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let (call, after) = Registers::of(pid)?.with_call(&memory, number, a, b)?;
    call.write(pid)?;
    // To its entry and to its exit.
    for _ in 0..2 {
        trace(libc::PTRACE_SYSCALL)?;
        wait()?;
    }
    let result = Registers::of(pid)?.result();
    after.write(pid)?;
    trace(libc::PTRACE_DETACH)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    fn memory(pid: pid_t) -> File {
        File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap()
    }

    /// The next stop of a tracee, or its end.
    fn stop(pid: pid_t) -> c_int {
        let mut status = 0;
        // SAFETY: writes one number.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
        status
    }

    fn trace(request: libc::c_uint, pid: pid_t) {
        // SAFETY: these requests take numbers alone.
        let answer = unsafe { libc::ptrace(request, pid, 0usize, 0usize) };
        assert_eq!(answer, 0, "{request}: {}", io::Error::last_os_error());
    }

    /// A cat(1) that has copied a line, and waits for the next one.
    fn cat() -> (Child, pid_t) {
        let mut cat = Command::new("cat");
        cat.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut cat = cat.spawn().unwrap();
        assert_eq!(copied(&mut cat, b"one\n"), *b"one\n");
        let pid = cat.id() as pid_t;
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(" S ") {
            std::thread::yield_now();
        }
        (cat, pid)
    }

    fn copied(cat: &mut Child, line: &[u8; 4]) -> [u8; 4] {
        let mut copy = [0; 4];
        cat.stdin.as_mut().unwrap().write_all(line).unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut copy).unwrap();
        copy
    }

    #[test]
    fn an_injected_call_is_made_and_the_interrupted_one_goes_on() {
        let (mut cat, pid) = cat();
        // SAFETY: takes a number.
        let group = unsafe { libc::getpgid(pid) };
        assert_eq!(inject(pid, libc::SYS_getpgid as u64, 0, 0).unwrap(), i64::from(group));
        assert_eq!(inject(pid, libc::SYS_kill as u64, pid as u64, 1000).unwrap(), -i64::from(libc::EINVAL));
        assert_eq!(copied(&mut cat, b"two\n"), *b"two\n");
        drop(cat.stdin.take());
        assert!(cat.wait().unwrap().success());
    }

    #[test]
    fn a_call_is_answered_in_the_kernels_place() {
        let (mut cat, pid) = cat();
        trace(libc::PTRACE_SEIZE, pid);
        trace(libc::PTRACE_INTERRUPT, pid);
        stop(pid);
        cat.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
        let registers = loop {
            trace(libc::PTRACE_SYSCALL, pid);
            assert!(libc::WIFSTOPPED(stop(pid)));
            let registers = Registers::of(pid).unwrap();
            // The exit of read(2) has the same registers but for its result.
            if registers.call() == libc::SYS_write {
                break registers;
            }
        };
        assert_eq!((registers.arguments()[0], registers.arguments()[2]), (1, 4));
        registers.skip_call(pid).unwrap();
        trace(libc::PTRACE_SYSCALL, pid);
        stop(pid);
        let mut registers = Registers::of(pid).unwrap();
        registers.set_result(-i64::from(libc::ENOSPC));
        registers.write(pid).unwrap();
        trace(libc::PTRACE_DETACH, pid);
        drop(cat.stdin.take());
        let done = cat.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && done.stdout.is_empty() && said.contains("No space left"), "{said}");
    }

    #[inline(never)]
    extern "C" fn one_more(number: c_int) -> c_int {
        black_box(number) + 1
    }

    #[test]
    fn breakpoints_stop_at_a_function_and_where_it_returns() {
        // SAFETY: the child makes system calls alone, and calls a function that touches nothing.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: bare system calls.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(black_box(one_more as extern "C" fn(c_int) -> c_int)(black_box(41)));
            }
        }
        assert_eq!(libc::WSTOPSIG(stop(pid)), libc::SIGSTOP);
        let memory = memory(pid);
        let hide = |address: u64, code: Code| {
            let mut before = code;
            memory.read_exact_at(&mut before, address).unwrap();
            memory.write_all_at(&code, address).unwrap();
            before
        };
        let go_on = |registers: Registers, request| {
            registers.write(pid).unwrap();
            trace(request, pid);
            stop(pid)
        };
        let function = one_more as *const () as u64;
        let hidden = hide(function, BREAKPOINT);
        assert_eq!(libc::WSTOPSIG(go_on(Registers::of(pid).unwrap(), libc::PTRACE_CONT)), libc::SIGTRAP);
        let mut registers = Registers::of(pid).unwrap();
        assert_eq!(registers.here(), function);
        hide(function, hidden);
        let back = registers.return_address(&memory).unwrap();
        let hidden = hide(back, BREAKPOINT);
        registers.go_on_at(function);
        assert_eq!(libc::WSTOPSIG(go_on(registers, libc::PTRACE_CONT)), libc::SIGTRAP);
        let mut registers = Registers::of(pid).unwrap();
        assert_eq!((registers.here(), registers.result()), (back, 42));
        hide(back, hidden);
        registers.go_on_at(back);
        registers.set_result(7);
        assert_eq!(libc::WEXITSTATUS(go_on(registers, libc::PTRACE_DETACH)), 7);
    }
}
