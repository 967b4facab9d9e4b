//! All accounts, one by one: `getent passwd`.
//!
//! There is one walk for each database in a process, as C's interface has it. It keeps one descriptor and a short batch
//! of numbers, whatever the number of containers, and survives what processes do: threads that ask at the same time, and fork, even in
//! the middle of another thread's call. A child goes on where its parent was, by a descriptor of its own, for the two
//! would otherwise share one offset.
#![allow(unsafe_code)]

use crate::abi::Failure;
use crate::directory::Directory;
use crate::lookup;
use core::cell::UnsafeCell;
use core::mem::replace;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use rustix::thread::futex;
use shared::{ContainerUid, settings};

/// The walk for passwd.
pub static PASSWD: Enumeration = Enumeration::new();
/// The walk for group.
pub static GROUP: Enumeration = Enumeration::new();
/// The walk for shadow.
pub static SHADOW: Enumeration = Enumeration::new();

/// A walk over the containers.
#[derive(Debug)]
pub struct Enumeration {
    /// Whose turn it is: the pid of the process that is inside, with [`WAITERS`] if threads wait for it; 0 if nobody is.
    turn: AtomicU32,
    /// The offset in the folder after the last entry that was given out. All that a child needs, and never half-written.
    position: AtomicU64,
    /// For whose turn it is.
    walk: UnsafeCell<Walk>,
}

// SAFETY: `walk` is reached through `enter` only, which lets in one at a time.
unsafe impl Sync for Enumeration {}

/// Pids end at 2^22.
const WAITERS: u32 = 1 << 31;

/// How much of the folder is read at once.
const READ: usize = 1024;
/// No entry of getdents64 is shorter.
const SHORTEST_ENTRY: usize = 24;
const BATCH: usize = READ / SHORTEST_ENTRY;

/// What a process remembers between two calls.
#[derive(Debug)]
struct Walk {
    /// The process to which the rest belongs.
    process: u32,
    folder: Folder,
    /// Containers that were read and not given out yet, with the offset after each: `batch[next..count]`.
    batch: [(u32, u64); BATCH],
    next: usize,
    count: usize,
}

#[derive(Debug)]
enum Folder {
    Closed,
    Open(Directory),
    Ended,
}

impl Enumeration {
    /// A walk that has not begun.
    pub const fn new() -> Self {
        let walk = Walk { process: 0, folder: Folder::Closed, batch: [(0, 0); BATCH], next: 0, count: 0 };
        Self { turn: AtomicU32::new(0), position: AtomicU64::new(0), walk: UnsafeCell::new(walk) }
    }

    /// Goes back to the start, with nothing open.
    pub fn rewind(&self) {
        let mut walk = self.enter();
        walk.forget();
        self.position.store(0, Ordering::Relaxed);
    }

    /// Makes a record of the next container. If that fails (the buffer is too small), the container stays the next one.
    ///
    /// One that cannot be looked at is passed over: glibc would end the whole walk on a failure, and the others are well.
    pub fn next<R>(&self, record: impl FnOnce(ContainerUid) -> Result<R, Failure>) -> Result<R, Failure> {
        let mut walk = self.enter();
        let (container, after) = walk.peek(&self.position)?;
        let record = record(container)?;
        walk.next += 1;
        self.position.store(after, Ordering::Relaxed);
        Ok(record)
    }

    /// Waits for its turn, and leaves behind what belongs to another process.
    fn enter(&self) -> Turn<'_> {
        let process = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        let mut mine = process;
        while let Err(turn) = self.turn.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed) {
            let waited = process | WAITERS;
            if turn & !WAITERS != process {
                // The thread that was inside when this process was forked is not in it.
                if self.turn.compare_exchange(turn, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    break;
                }
            } else if turn == waited
                || self.turn.compare_exchange(turn, waited, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                // It returns early if the word has changed, or for a signal.
                let _ = futex::wait(&self.turn, futex::Flags::PRIVATE, waited, None);
                mine = waited; // there may be others
            }
        }
        let mut turn = Turn(self);
        if turn.process != process {
            turn.forget();
            turn.process = process;
        }
        turn
    }
}

impl Walk {
    /// The next container that is here, and the offset after it.
    fn peek(&mut self, position: &AtomicU64) -> Result<(ContainerUid, u64), Failure> {
        loop {
            let Some((uid, after)) = self.batch.get(self.next..self.count).and_then(|batch| batch.first()) else {
                self.read(position)?;
                continue;
            };
            if let Some(Ok(container)) = ContainerUid::new(*uid).map(lookup::present) {
                return Ok((container, *after));
            }
            self.next += 1;
        }
    }

    /// Reads the next batch, which may turn out empty. At the end of the folder there is none.
    fn read(&mut self, position: &AtomicU64) -> Result<(), Failure> {
        if matches!(self.folder, Folder::Ended) {
            return Err(Failure::ABSENT);
        }
        if !matches!(&self.folder, Folder::Open(directory) if directory.is_ours()) {
            let directory = open(settings::CONTAINERS_PATH, position.load(Ordering::Relaxed));
            self.folder = Folder::Open(directory.map_err(Failure::unavailable)?);
        }
        (self.next, self.count) = (0, 0);
        let mut ended = true;
        if let Folder::Open(directory) = &self.folder {
            for entry in directory.read(&mut [0; READ]).map_err(Failure::unavailable)? {
                ended = false;
                let container = ContainerUid::parse(entry.name).filter(|_| entry.may_be_directory);
                if let (Some(container), Some(slot)) = (container, self.batch.get_mut(self.count)) {
                    *slot = (container.get(), entry.offset);
                    self.count += 1;
                }
            }
        }
        if ended {
            self.forget();
            self.folder = Folder::Ended;
        }
        Ok(())
    }

    /// Closes the folder and drops the batch.
    fn forget(&mut self) {
        if let Folder::Open(directory) = replace(&mut self.folder, Folder::Closed) {
            directory.close();
        }
        (self.next, self.count) = (0, 0);
    }
}

/// Somebody's turn, until it is dropped.
struct Turn<'walk>(&'walk Enumeration);

impl Deref for Turn<'_> {
    type Target = Walk;

    fn deref(&self) -> &Walk {
        // SAFETY: `enter` hands out one `Turn` at a time.
        unsafe { &*self.0.walk.get() }
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Walk {
        // SAFETY: as above.
        unsafe { &mut *self.0.walk.get() }
    }
}

impl Drop for Turn<'_> {
    #[inline(never)] // once in the library is enough
    fn drop(&mut self) {
        if self.0.turn.swap(0, Ordering::Release) & WAITERS != 0 {
            let _ = futex::wake(&self.0.turn, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(not(test))]
use crate::directory::open;
#[cfg(test)]
use crate::open;
