//! `kizami._core`: converts, detaches from the interpreter, maps errors, and nothing else.
//!
//! Every class is frozen; arrays are taken and given without a copy where that is possible. The
//! stubs in `python/kizami/_core.pyi` document each name for Python readers.
#![deny(unsafe_code)]
#![allow(missing_docs, reason = "documented where it is read: python/kizami/_core.pyi")]

mod blocks;
mod error;
mod gguf;
mod memory;
mod quantize;
mod tensor;

use kizami_kernels as kernels;
use pyo3::prelude::*;

/// Uses `n` threads from now on.
#[pyfunction]
fn set_threads(n: usize) -> PyResult<()> {
    if n == 0 || n > 4096 {
        return Err(error::usage(format!("threads: found {n}, expected 1 to 4096")));
    }
    if kernels::par::set_threads(n) {
        Ok(())
    } else {
        Err(error::usage(format!("threads: the system refuses to start {n}")))
    }
}

/// Forgets the threads of the parent process. The allocator has locks that a fork does not know of: fork between
/// steps, not while another thread computes.
#[pyfunction]
fn after_fork() {
    kernels::par::after_fork();
}

/// Threads in use.
#[pyfunction]
fn threads() -> usize {
    kernels::par::threads()
}

/// Starts or stops recording what each operation takes.
#[pyfunction]
fn profile(on: bool) {
    kernels::profile::record(on);
}

/// What was recorded since the last call.
#[pyfunction]
fn profile_take() -> Vec<(&'static str, u64, u64, u64, u64)> {
    let entries = kernels::profile::take();
    entries.into_iter().map(|e| (e.name, e.calls, e.nanoseconds, e.macs, e.bytes)).collect()
}

/// Bytes per second that all threads together read from a buffer of `bytes`.
#[pyfunction]
#[pyo3(signature = (bytes=1 << 30, passes=5))]
fn read_bandwidth(py: Python<'_>, bytes: usize, passes: usize) -> PyResult<f64> {
    // As weights lie when they are repacked: large pages where the system has them.
    let found = py.detach(|| Ok(kernels::bandwidth::read(&mut memory::reserve(bytes.max(1 << 22))?, passes)));
    found.map_err(|e: std::io::Error| {
        error::usage(format!("bandwidth: no memory for a buffer of {bytes} bytes: {e}"))
    })
}

/// The instruction set in use.
#[pyfunction]
fn isa() -> &'static str {
    kernels::level().name()
}

/// The instruction sets this build knows, lowest first.
#[pyfunction]
fn isa_levels() -> Vec<&'static str> {
    kernels::Level::ALL.iter().map(|l| l.name()).collect()
}

/// The instruction sets this CPU can run, lowest first.
#[pyfunction]
fn isa_available() -> Vec<&'static str> {
    kernels::levels().into_iter().map(|l| l.name()).collect()
}

/// Uses the named instruction set from now on.
#[pyfunction]
fn set_isa(name: &str) -> PyResult<()> {
    match kernels::Level::from_name(name) {
        Some(level) if kernels::set_level(level) => Ok(()),
        _ => Err(error::usage(format!(
            "instruction set: found {name:?}, expected one of {}",
            isa_available().join(", ")
        ))),
    }
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::blocks::{Cache, FfnBlock, Gqa, Head, Mla, Observer, cache_types};
    #[pymodule_export]
    use super::gguf::{GgufFile, GgufWriter};
    #[pymodule_export]
    use super::quantize::{Curvature, output_errors, solve, types};
    #[pymodule_export]
    use super::tensor::Tensor;
    #[pymodule_export]
    use super::{
        after_fork, isa, isa_available, isa_levels, profile, profile_take, read_bandwidth, set_isa,
        set_threads, threads,
    };
}
