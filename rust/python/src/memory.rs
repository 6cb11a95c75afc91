//! Where the core's memory comes from.
//!
//! The system's allocator gives large buffers back when they are freed, and every step of a model would pay for their
//! pages anew: a page fault per 4 KiB, 7 % of the time of a prompt. And weights that are read all over want large
//! pages: 4 KiB at a time one core reads 20 GB/s where it could read 27 (`docs/kernels.md`).

use libmimalloc_sys::{mi_option_set, mi_option_t, mi_option_use_numa_nodes};
use memmap2::MmapMut;
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

/// Zeroed memory of its own, on large pages if the system has some.
pub(crate) fn reserve(bytes: usize) -> std::io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // Where there are none, small pages do as well.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}
