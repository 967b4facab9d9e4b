//! Enumerates all accounts: `getent passwd`, setpwent(3).
//!
//! C's interface has one enumeration for each database in a process. It keeps one descriptor and a
//! short batch of numbers, whatever the number of containers. Threads may call it at the same time,
//! and a process may fork in the middle of another thread's call: the state is in a page that the
//! kernel clears in the child (MADV_WIPEONFORK), so no held lock and no half-written state is
//! inherited. Only the position is. The child opens a descriptor of its own, because an inherited
//! one shares its offset with the parent.
//!
//! What a record looks like is not in this file.
#![allow(unsafe_code)]

use crate::abi::Failure;
use crate::directory::Directory;
use crate::lookup::{self, Account};
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, replace};
use core::ops::{Deref, DerefMut};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::thread::futex;
use shared::{ContainerUid, settings};

/// The enumeration of passwd.
pub static PASSWD: Enumeration = Enumeration::new();
/// The enumeration of group.
pub static GROUP: Enumeration = Enumeration::new();
/// The enumeration of shadow.
pub static SHADOW: Enumeration = Enumeration::new();

/// An enumeration of the containers.
#[derive(Debug)]
pub struct Enumeration {
    /// NULL until somebody enumerates.
    page: AtomicPtr<Page>,
    /// The offset in the directory after the last entry that was returned. Atomic, so a fork cannot
    /// find it half-written.
    position: AtomicU64,
}

/// What the kernel clears in a forked child. All zeros are an unlocked enumeration that has not
/// begun.
#[repr(C)]
struct Page {
    /// A futex: 0 unlocked, 1 locked, 2 locked and others may be waiting.
    lock: AtomicU32,
    /// For the thread that holds the lock.
    walk: UnsafeCell<Walk>,
}

/// How many bytes of the directory one getdents64(2) reads.
const READ_SIZE: usize = 4096;
/// No entry of getdents64 is shorter.
const SHORTEST_ENTRY: usize = 24;
const BATCH: usize = READ_SIZE / SHORTEST_ENTRY;
const _: () = assert!(size_of::<Page>() <= 4096);

/// What a process remembers between two calls.
#[repr(C)]
struct Walk {
    source: Source,
    /// The containers that were read and not returned yet, each with the offset after it:
    /// `batch[next..count]`.
    batch: [(u32, u64); BATCH],
    next: usize,
    count: usize,
}

/// C's layout has the number of the variant first.
#[repr(C)]
enum Source {
    Closed,
    Open(Directory),
    Ended,
}

impl Enumeration {
    /// An enumeration that has not begun.
    pub const fn new() -> Self {
        Self { page: AtomicPtr::new(null_mut()), position: AtomicU64::new(0) }
    }

    /// Goes back to the start, with nothing open.
    pub fn rewind(&self) {
        if let Some(page) = self.page() {
            let mut walk = page.lock();
            walk.forget();
            self.position.store(0, Ordering::Relaxed);
        }
    }

    /// Makes the record of the next container. If that fails (the buffer is too small), the
    /// container stays the next one.
    ///
    /// A container whose stat(2) fails is skipped: glibc would end the enumeration at a failure,
    /// and lose all others.
    pub fn next<R>(&self, record: impl FnOnce(&Account) -> Result<R, Failure>) -> Result<R, Failure> {
        let mut walk = self.lock()?;
        let (account, after) = walk.peek(&self.position)?;
        let record = record(&account)?;
        walk.next += 1;
        self.position.store(after, Ordering::Relaxed);
        Ok(record)
    }

    /// Waits for the lock, in the page that the first call of a process maps.
    fn lock(&self) -> Result<Guard<'_>, Failure> {
        Ok(self.page().map_or_else(|| self.make_page(), Ok)?.lock())
    }

    fn page(&self) -> Option<&Page> {
        // SAFETY: NULL, or a page that is never unmapped.
        unsafe { self.page.load(Ordering::Acquire).as_ref() }
    }

    #[cold]
    fn make_page(&self) -> Result<&Page, Failure> {
        let size = size_of::<Page>();
        let unavailable = |errno: Errno| Failure::unavailable(errno.raw_os_error());
        // SAFETY: a new mapping, whose zeros are a `Page`. If another thread has set one in the
        // meantime, ours is unmapped.
        unsafe {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let memory = mm::mmap_anonymous(null_mut(), size, access, flags).map_err(unavailable)?;
            let ready = mm::madvise(memory, size, Advice::LinuxWipeOnFork).map_err(unavailable);
            let page = match ready {
                Ok(()) => self.page.compare_exchange(null_mut(), memory.cast(), Ordering::AcqRel, Ordering::Acquire),
                Err(_) => Err(null_mut()),
            };
            match page {
                Ok(_) => Ok(&*memory.cast()),
                Err(other) => {
                    let _ = mm::munmap(memory, size);
                    ready.map(|()| &*other)
                }
            }
        }
    }
}

impl Page {
    /// Waits for the lock.
    fn lock(&self) -> Guard<'_> {
        if self.lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.lock.swap(2, Ordering::Acquire) != 0 {
                // Returns early after a signal, or if the value is not 2 any more.
                let _ = futex::wait(&self.lock, futex::Flags::PRIVATE, 2, None);
            }
        }
        Guard(self)
    }
}

impl Walk {
    /// The next container that exists, and the offset after it.
    fn peek(&mut self, position: &AtomicU64) -> Result<(Account, u64), Failure> {
        loop {
            let Some((uid, after)) = self.batch.get(self.next..self.count).and_then(|batch| batch.first()) else {
                self.read(position)?;
                continue;
            };
            if let Some(Ok(account)) = ContainerUid::new(*uid).map(lookup::by_uid) {
                return Ok((account, *after));
            }
            self.next += 1;
        }
    }

    /// Reads the next batch, which can be empty. At the end of the directory it fails with
    /// [`Failure::ABSENT`].
    fn read(&mut self, position: &AtomicU64) -> Result<(), Failure> {
        if matches!(self.source, Source::Ended) {
            return Err(Failure::ABSENT);
        }
        if !matches!(&self.source, Source::Open(directory) if directory.is_ours()) {
            let directory = open(settings::CONTAINERS_PATH, position.load(Ordering::Relaxed));
            self.source = Source::Open(directory.map_err(Failure::unavailable)?);
        }
        (self.next, self.count) = (0, 0);
        let mut ended = true;
        if let Source::Open(directory) = &self.source {
            for entry in directory.read(&mut [MaybeUninit::uninit(); READ_SIZE]).map_err(Failure::unavailable)? {
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
            self.source = Source::Ended;
        }
        Ok(())
    }

    /// Closes the directory and drops the batch.
    fn forget(&mut self) {
        if let Source::Open(directory) = replace(&mut self.source, Source::Closed) {
            directory.close();
        }
        (self.next, self.count) = (0, 0);
    }
}

/// Holds the lock until it is dropped.
struct Guard<'page>(&'page Page);

impl Deref for Guard<'_> {
    type Target = Walk;

    fn deref(&self) -> &Walk {
        // SAFETY: the lock lets one `Guard` exist at a time.
        unsafe { &*self.0.walk.get() }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Walk {
        // SAFETY: as above.
        unsafe { &mut *self.0.walk.get() }
    }
}

impl Drop for Guard<'_> {
    #[inline(never)] // once in the library is enough
    fn drop(&mut self) {
        if self.0.lock.swap(0, Ordering::Release) == 2 {
            let _ = futex::wake(&self.0.lock, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(not(test))]
use crate::directory::open;
#[cfg(test)]
use crate::open;
