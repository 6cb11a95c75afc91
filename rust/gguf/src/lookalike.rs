//! Files that people open by mistake, told apart by their first bytes so that an error can say what to do.

/// What a file that is no GGUF seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookalike {
    /// The text that git keeps in place of a large file.
    LfsPointer,
    /// A web page, most often an error page saved under the model's name.
    Html,
    /// A zip archive, as PyTorch checkpoints are.
    Zip,
    /// A safetensors file.
    Safetensors,
    /// A ggml file from before GGUF.
    OldGgml,
    /// Zeros: a writer was killed before it had written the header.
    Zeros,
    /// Something else.
    Unknown,
}

impl Lookalike {
    /// Judges by the first bytes.
    pub fn of(bytes: &[u8]) -> Lookalike {
        let text = bytes.trim_ascii_start();
        let starts = |prefix: &[u8]| text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix));
        if starts(b"version https://git-lfs") {
            Self::LfsPointer
        } else if starts(b"<!doctype") || starts(b"<html") {
            Self::Html
        } else if bytes.starts_with(b"PK\x03\x04") {
            Self::Zip
        } else if bytes.get(5..9) == Some(b"\0\0\0{") {
            // Eight bytes of header length, below 2^40 in any real file, then JSON.
            Self::Safetensors
        } else if [b"lmgg", b"tjgg", b"fmgg", b"algg"].iter().any(|magic| bytes.starts_with(*magic)) {
            Self::OldGgml
        } else if bytes.iter().take(4096).all(|&b| b == 0) {
            Self::Zeros
        } else {
            Self::Unknown
        }
    }

    pub(crate) fn hint(self) -> Option<&'static str> {
        match self {
            Self::LfsPointer => Some("fetch the file itself: git lfs pull"),
            Self::Html => Some("the download saved a web page: check the address and fetch the file again"),
            Self::Zip | Self::Safetensors => Some("convert the model to GGUF first"),
            Self::OldGgml => Some("convert the model again: this format was replaced by GGUF in 2023"),
            Self::Zeros => Some("the program that wrote it was stopped: write or download it again"),
            Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Lookalike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LfsPointer => "a git-LFS pointer",
            Self::Html => "a web page",
            Self::Zip => "a zip archive or PyTorch checkpoint",
            Self::Safetensors => "a safetensors file",
            Self::OldGgml => "a ggml file from before GGUF",
            Self::Zeros => "zeros at its start",
            Self::Unknown => "something else",
        })
    }
}
