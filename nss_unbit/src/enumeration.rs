//! All accounts, one by one: `getent passwd`.
//!
//! There is one walk for each database in a process, as C's interface has it. It keeps one descriptor and a short batch
//! of numbers, whatever the number of containers, and survives what processes do: threads that ask at the same time, and fork, even in
//! the middle of another thread's call. The walk is in a page of memory that the kernel clears in a child (MADV_WIPEONFORK): no
//! lock and no half-written state of a thread of the parent survives. The position does. The child opens its own descriptor, because an
//! inherited one shares its offset with the parent.
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

/// The walk for passwd.
pub static PASSWD: Enumeration = Enumeration::new();
/// The walk for group.
pub static GROUP: Enumeration = Enumeration::new();
/// The walk for shadow.
pub static SHADOW: Enumeration = Enumeration::new();

/// A walk over the containers.
#[derive(Debug)]
pub struct Enumeration {
    /// NULL until somebody enumerates.
    page: AtomicPtr<Page>,
    /// The offset in the directory after the last entry that was given out. Never half-written.
    position: AtomicU64,
}

/// What is empty in a child. All zeros are a walk that nobody has begun.
#[repr(C)]
struct Page {
    /// 0: nobody is inside. 1: a thread is. 2: and others may be waiting.
    turn: AtomicU32,
    /// For the thread that is inside.
    walk: UnsafeCell<Walk>,
}

/// How much of the directory is read at once.
const READ_SIZE: usize = 4096;
/// No entry of getdents64 is shorter.
const SHORTEST_ENTRY: usize = 24;
const BATCH: usize = READ_SIZE / SHORTEST_ENTRY;
const _: () = assert!(size_of::<Page>() <= 4096);

/// What a process remembers between two calls.
#[repr(C)]
struct Walk {
    source: Source,
    /// Containers that were read and not given out yet, with the offset after each: `batch[next..count]`.
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
    /// A walk that has not begun.
    pub const fn new() -> Self {
        Self { page: AtomicPtr::new(null_mut()), position: AtomicU64::new(0) }
    }

    /// Goes back to the start, with nothing open.
    pub fn rewind(&self) {
        if let Some(page) = self.page() {
            let mut walk = page.enter();
            walk.forget();
            self.position.store(0, Ordering::Relaxed);
        }
    }

    /// Makes a record of the next container. If that fails (the buffer is too small), the container stays the next one.
    ///
    /// One that cannot be looked at is passed over: glibc would end the whole walk on a failure, and the others are well.
    pub fn next<R>(&self, record: impl FnOnce(&Account) -> Result<R, Failure>) -> Result<R, Failure> {
        let mut walk = self.enter()?;
        let (account, after) = walk.peek(&self.position)?;
        let record = record(&account)?;
        walk.next += 1;
        self.position.store(after, Ordering::Relaxed);
        Ok(record)
    }

    /// Waits for its turn, on a page that the first call of a process makes.
    fn enter(&self) -> Result<Turn<'_>, Failure> {
        Ok(self.page().map_or_else(|| self.make_page(), Ok)?.enter())
    }

    fn page(&self) -> Option<&Page> {
        // SAFETY: NULL, or a page that stays for good.
        unsafe { self.page.load(Ordering::Acquire).as_ref() }
    }

    #[cold]
    fn make_page(&self) -> Result<&Page, Failure> {
        let size = size_of::<Page>();
        let unavailable = |errno: Errno| Failure::unavailable(errno.raw_os_error());
        // SAFETY: memory that nobody else has, where zeros are a `Page`. If another thread was faster, ours is given back.
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
    /// Waits for its turn.
    fn enter(&self) -> Turn<'_> {
        if self.turn.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.turn.swap(2, Ordering::Acquire) != 0 {
                // It returns early if that has changed, or for a signal.
                let _ = futex::wait(&self.turn, futex::Flags::PRIVATE, 2, None);
            }
        }
        Turn(self)
    }
}

impl Walk {
    /// The next container that is here, and the offset after it.
    fn peek(&mut self, position: &AtomicU64) -> Result<(Account, u64), Failure> {
        loop {
            let Some((uid, after)) = self.batch.get(self.next..self.count).and_then(|batch| batch.first()) else {
                self.read(position)?;
                continue;
            };
            if let Some(Ok(account)) = ContainerUid::new(*uid).map(lookup::present) {
                return Ok((account, *after));
            }
            self.next += 1;
        }
    }

    /// Reads the next batch, which may turn out empty. At the end of the directory there is none.
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

/// Somebody's turn, until it is dropped.
struct Turn<'page>(&'page Page);

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
        if self.0.turn.swap(0, Ordering::Release) == 2 {
            let _ = futex::wake(&self.0.turn, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(not(test))]
use crate::directory::open;
#[cfg(test)]
use crate::open;
