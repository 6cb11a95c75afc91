//! The allocator of the core. The system's gives large buffers back when they are freed, and every step of a model
//! would pay for their pages anew: a page fault per 4 KiB, 7 % of the time of a prompt.

use libmimalloc_sys::{mi_option_set, mi_option_t, mi_option_use_numa_nodes};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` in mimalloc.h (versions 2 and 3): the option before this one; the crate does not name it.
const PURGE_DELAY: mi_option_t = mi_option_use_numa_nodes - 1;
/// Milliseconds after which freed memory goes back to the system: longer than a step takes.
const DELAY: core::ffi::c_long = 1000;

/// Memory that a step frees stays for the next one.
pub(crate) fn keep_what_is_freed() {
    // SAFETY: the function writes one entry of a static table, which the number is well within.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set(PURGE_DELAY, DELAY);
    }
}
