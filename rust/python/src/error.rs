//! The only place that turns errors of the core crates into Python exceptions. The classes live in
//! `kizami.errors`, so that Python code and the core raise the same ones.

use pyo3::PyErr;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn raise(class: &str, message: String, hint: Option<&str>) -> PyErr {
    Python::attach(|py| {
        let made = || {
            let class = py.import("kizami.errors")?.getattr(class)?;
            let options = PyDict::new(py);
            options.set_item("hint", hint)?;
            class.call((&message,), Some(&options))
        };
        match made() {
            Ok(value) => PyErr::from_value(value),
            Err(_) => PyRuntimeError::new_err(message.clone()),
        }
    })
}

/// The caller asked for something impossible.
pub(crate) fn usage(message: String) -> PyErr {
    raise("UsageError", message, None)
}

/// A file holds something it must not.
pub(crate) fn format(message: String) -> PyErr {
    raise("FormatError", message, None)
}

/// What the container crate says, with its hint.
pub(crate) fn gguf(error: kizami_gguf::Error) -> PyErr {
    let class = match error.kind {
        kizami_gguf::Kind::Io { .. } | kizami_gguf::Kind::NotAFile => "InputOutputError",
        _ => "FormatError",
    };
    raise(class, error.to_string(), error.kind.hint())
}

/// What the quantizer says: a budget is the caller's, everything else comes from a file.
pub(crate) fn quantizer(error: kizami_quantizer::Error) -> PyErr {
    match error {
        kizami_quantizer::Error::Budget { .. } => usage(error.to_string()),
        other => format(other.to_string()),
    }
}

/// Adds what was being done, and turns a kernel error into an exception.
pub(crate) fn kernel(what: &str, error: kizami_kernels::Error) -> PyErr {
    format(format!("{what}: {error}"))
}
