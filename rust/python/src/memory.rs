//! Where the core's memory comes from.
//!
//! The system's allocator gives large buffers back when they are freed, and every step of a model would pay for their
//! pages anew: a page fault per 4 KiB, 7 % of the time of a prompt. mimalloc keeps them for a second. And weights that
//! are read all over want large pages: 4 KiB at a time one core reads 20 GB/s where it could read 27
//! (`docs/kernels.md`).

use memmap2::MmapMut;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Zeroed memory of its own, on large pages if the system has some.
pub(crate) fn reserve(bytes: usize) -> std::io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // Where there are none, small pages do as well.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}
