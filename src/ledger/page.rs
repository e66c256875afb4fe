//! A text of bounded size in shared memory, under a lock of its own.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::PgSharedMemoryInitialization;
use pgrx::pg_sys;

/// A text of at most `N` bytes.
///
/// pgrx's own types are made on the stack and moved into shared memory. That takes the stack of
/// the postmaster several times `N` bytes, and where `ulimit -s` leaves it no more than 2 MB, it
/// dies before it can say so. A page is zeroed where it lies.
pub struct Page<const N: usize> {
    /// Of the memory, and of the lock's tranche.
    name: &'static CStr,
    // Both are set in the postmaster, and each process has its copy by fork. Null without
    // shared_preload_libraries.
    content: AtomicPtr<Content<N>>,
    lock: AtomicPtr<pg_sys::LWLock>,
}

/// All zeros are an empty text.
#[repr(C)]
struct Content<const N: usize> {
    length: usize,
    bytes: [u8; N],
}

impl<const N: usize> Page<N> {
    pub const fn named(name: &'static CStr) -> Self {
        Self {
            name,
            content: AtomicPtr::new(ptr::null_mut()),
            lock: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// A copy of the text: the lock is not held while it is read.
    pub fn text(&self) -> Vec<u8> {
        self.locked(pg_sys::LWLockMode::LW_SHARED, |content| {
            // SAFETY: who holds the lock for itself is the only one that writes.
            let Content { length, bytes } = unsafe { &*content };
            bytes.get(..*length).unwrap_or_default().to_vec()
        })
        .unwrap_or_default()
    }

    /// Whether the text fits; the page stays as it was if it does not.
    pub fn set(&self, text: &[u8]) -> bool {
        self.locked(pg_sys::LWLockMode::LW_EXCLUSIVE, |content| {
            // SAFETY: nobody else reads or writes while the lock is held.
            let Content { length, bytes } = unsafe { &mut *content };
            let Some(room) = bytes.get_mut(..text.len()) else {
                return false;
            };
            room.copy_from_slice(text);
            *length = text.len();
            true
        })
        .unwrap_or(false)
    }

    /// None where there is no shared memory. `body` must not raise an error.
    fn locked<T>(
        &self,
        mode: pg_sys::LWLockMode::Type,
        body: impl FnOnce(*mut Content<N>) -> T,
    ) -> Option<T> {
        let content = self.content.load(Ordering::Relaxed);
        let lock = self.lock.load(Ordering::Relaxed);
        if content.is_null() || lock.is_null() {
            return None;
        }
        // SAFETY: a lock that was made when the server started.
        unsafe {
            pg_sys::LWLockAcquire(lock, mode);
            let answer = body(content);
            pg_sys::LWLockRelease(lock);
            Some(answer)
        }
    }
}

/// `pg_shmem_init!` sets the hooks, which call these.
impl<const N: usize> PgSharedMemoryInitialization for Page<N> {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: the caller's promise; both copy what they are given.
        unsafe {
            pg_sys::RequestAddinShmemSpace(size_of::<Content<N>>());
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
        }
    }

    /// In the postmaster, again after a crash. AddinShmemInitLock is for platforms where each
    /// process runs the hook; here nobody else is there yet.
    unsafe fn on_shmem_startup(&'static self, (): ()) {
        let mut found = false;
        // SAFETY: the caller's promise. The memory has this size, is aligned for any type
        // (`ShmemAllocRaw`), and any content of it is valid.
        unsafe {
            let content =
                pg_sys::ShmemInitStruct(self.name.as_ptr(), size_of::<Content<N>>(), &mut found)
                    .cast::<Content<N>>();
            if !found {
                ptr::write_bytes(content, 0, 1);
            }
            self.content.store(content, Ordering::Relaxed);
            let tranche = pg_sys::GetNamedLWLockTranche(self.name.as_ptr());
            self.lock.store(&raw mut (*tranche).lock, Ordering::Relaxed);
        }
    }
}
