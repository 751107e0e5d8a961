//! Counts what an input has allocated, because a small file that asks for gigabytes is a fault, and one that
//! otherwise only shows on the machine that has no more to give.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Bytes that any input may have allocated at one time, however short it is.
pub const FREE: usize = 64 << 20;
/// Bytes at which an allocation fails, so that a test ends before the machine does.
const CEILING: isize = 4 << 30;

thread_local! {
    /// Bytes that this thread has allocated, less those that it has freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that it was.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Most bytes that were allocated at one time on this thread while `body` ran, beyond those before.
pub fn peak(body: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    body();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

/// The system's allocator, and the counts.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts `change` bytes; false where that is too much.
fn count(change: isize) -> bool {
    // A thread that is ending has no counts any more, and does not need them.
    let within = LIVE.try_with(|live| {
        let now = live.get() + change;
        if change > 0 && now > CEILING {
            return false;
        }
        live.set(now);
        PEAK.set(PEAK.get().max(now));
        true
    });
    within.unwrap_or(true)
}

// SAFETY: every call goes to the system's allocator as it came, or fails before it with null, which is how an
// allocator refuses; the counts are of this thread alone, allocate nothing and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !count(size as isize - layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_at_one_time_is_counted() {
        let twice = peak(|| {
            drop(std::hint::black_box(vec![1_u8; 1 << 20]));
            drop(std::hint::black_box(vec![1_u8; 1 << 20]));
        });
        let together = peak(|| {
            let first = std::hint::black_box(vec![0_u8; 1 << 20]);
            let mut second = std::hint::black_box(Vec::with_capacity(1 << 10));
            second.resize(1 << 20, first[0]);
            std::hint::black_box(&second);
        });
        assert!((1 << 20..(1 << 20) + 4096).contains(&twice), "{twice}");
        assert!((2 << 20..(2 << 20) + 4096).contains(&together), "{together}");
    }

    #[test]
    fn an_allocation_beyond_the_ceiling_fails() {
        assert!(Vec::<u8>::new().try_reserve_exact(CEILING as usize + 1).is_err());
        assert!(Vec::<u8>::new().try_reserve_exact(1 << 20).is_ok());
    }
}
