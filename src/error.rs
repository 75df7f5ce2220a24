//! The one error type. Every variant names what a person needs to mend it: the file and byte, or the field and its limit.

use std::fmt;
use std::path::PathBuf;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by who has to mend it. [`Error::exit_code`] is the process's exit code for it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag or a request field out of its range, or in conflict with another.
    #[error("{param}: {message}")]
    Argument {
        /// The flag or field as the user writes it, without dashes (`top_p`, `alpha`).
        param: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A model file that cannot be read as what it claims to be.
    #[error("{}{}: {message}", Escaped(.path), At(.offset))]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Byte at which reading failed, where that means something.
        offset: Option<u64>,
        /// What is wrong.
        message: String,
    },
    /// A model of the hub that cannot be fetched.
    #[error("{repo} at {revision}{}{}: {message}", OfFile(.file), OfStatus(.status))]
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The file of the repository, where it is about one.
        file: Option<String>,
        /// The HTTP status, where there was an answer.
        status: Option<u16>,
        /// What is wrong and what to do.
        message: String,
    },
    /// A field of a JSON file of a model that is missing, of the wrong kind or out of range.
    #[error("{}: field `{field}`: {message}", Escaped(.path))]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, dotted (`rope_scaling.factor`).
        field: String,
        /// What is wrong and what is accepted.
        message: String,
    },
    /// Tensors that do not fit the configuration.
    #[error("{}: tensor `{}`: {message}", Escaped(.path), .tensor.escape_debug())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The three vocabularies, prompts or prefixes cannot be combined.
    #[error("{message}")]
    Vocabulary {
        /// Names the id and both strings where there is one.
        message: String,
    },
    /// No such device, a missing driver, a limit too small, a lost device.
    #[error("{backend}: {message}")]
    Device {
        /// `cpu`, `wgpu` or `cuda`.
        backend: &'static str,
        /// What was looked for and what was found.
        message: String,
    },
    /// Too little memory for what was asked.
    #[error("{what} needs {needed} bytes, the limit is {limit}")]
    Memory {
        /// What was to be allocated.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        limit: u64,
    },
    /// A text that is too long for the engine's KV cache, even alone.
    #[error("the text may need {needed} pages of the KV cache, which has {limit}")]
    NeverFits {
        /// Pages it may need.
        needed: usize,
        /// Pages there are.
        limit: usize,
    },
    /// As many texts wait as may; try again later.
    #[error("the engine is overloaded: {limit} texts may wait")]
    Overloaded {
        /// Texts that may wait.
        limit: usize,
    },
    /// A request that was out of time.
    #[error("{param}: out of time after {limit:?}")]
    Timeout {
        /// `queue_timeout` (it never ran) or `timeout`.
        param: &'static str,
        /// The time it had.
        limit: std::time::Duration,
    },
    /// A sequence whose logits cannot be combined (NaN, +inf, nothing allowed): ends alone, the others go on.
    #[error("{message}")]
    Numeric {
        /// Which rule was broken.
        message: String,
    },
    /// Reading input or writing output failed while running.
    #[error("{message}")]
    Io {
        /// The operating system's words, with the path where there is one.
        message: String,
    },
    /// Some inputs of a batch failed; their results carry the errors.
    #[error("{failed} of {total} requests failed")]
    Partial {
        /// How many.
        failed: usize,
        /// Of how many.
        total: usize,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The reader of standard output went away; nothing is printed.
    #[error("output closed")]
    ClosedPipe,
}

impl Error {
    /// 2 usage, 3 model files, 4 vocabularies, 5 device or memory, 6 run time, 130 interrupted, 141 closed pipe.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Argument { .. } => 2,
            Error::File { .. } | Error::Hub { .. } | Error::Config { .. } | Error::Tensor { .. } => 3,
            Error::Vocabulary { .. } => 4,
            Error::Device { .. } | Error::Memory { .. } | Error::NeverFits { .. } => 5,
            Error::Overloaded { .. } | Error::Timeout { .. } => 6,
            Error::Numeric { .. } | Error::Io { .. } | Error::Partial { .. } => 6,
            Error::Interrupted => 130,
            Error::ClosedPipe => 141,
        }
    }

    /// The `type` of the error in JSON results.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Argument { .. } | Error::NeverFits { .. } => "invalid_request_error",
            Error::File { .. } | Error::Hub { .. } | Error::Config { .. } | Error::Tensor { .. } => "model_error",
            Error::Vocabulary { .. } => "vocabulary_error",
            Error::Device { .. } => "device_error",
            Error::Memory { .. } => "memory_error",
            Error::Overloaded { .. } => "overloaded_error",
            Error::Timeout { .. } => "timeout_error",
            Error::Numeric { .. } => "numeric_error",
            Error::Io { .. } | Error::Partial { .. } | Error::ClosedPipe => "io_error",
            Error::Interrupted => "interrupted",
        }
    }

    /// The request field at fault, for JSON results.
    pub fn param(&self) -> Option<&str> {
        match self {
            Error::Argument { param, .. } => Some(param),
            Error::Timeout { param, .. } => Some(param),
            _ => None,
        }
    }

    /// An [`Error::Argument`].
    pub fn argument(param: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Argument { param: param.into(), message: message.into() }
    }

    /// An [`Error::File`] without a byte offset.
    pub fn file(path: impl Into<PathBuf>, message: impl fmt::Display) -> Self {
        Error::File { path: path.into(), offset: None, message: message.to_string() }
    }

    /// An [`Error::File`] at a byte.
    pub fn file_at(path: impl Into<PathBuf>, offset: u64, message: impl fmt::Display) -> Self {
        Error::File { path: path.into(), offset: Some(offset), message: message.to_string() }
    }

    /// An [`Error::Config`].
    pub fn config(path: impl Into<PathBuf>, field: impl Into<String>, message: impl fmt::Display) -> Self {
        Error::Config { path: path.into(), field: field.into(), message: message.to_string() }
    }

    /// An [`Error::Tensor`].
    pub fn tensor(path: impl Into<PathBuf>, tensor: impl Into<String>, message: impl fmt::Display) -> Self {
        Error::Tensor { path: path.into(), tensor: tensor.into(), message: message.to_string() }
    }

    /// An [`Error::Vocabulary`].
    pub fn vocabulary(message: impl fmt::Display) -> Self {
        Error::Vocabulary { message: message.to_string() }
    }

    /// An [`Error::Device`].
    pub fn device(backend: &'static str, message: impl fmt::Display) -> Self {
        Error::Device { backend, message: message.to_string() }
    }
}

/// A path with control characters and invalid UTF-8 escaped, so that no file name can forge a line of output.
struct Escaped<'a>(&'a PathBuf);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = format!("{:?}", self.0);
        let plain = &quoted[1..quoted.len() - 1];
        f.write_str(if plain == self.0.to_string_lossy() { plain } else { &quoted })
    }
}

struct OfFile<'a>(&'a Option<String>);

impl fmt::Display for OfFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |file| write!(f, ", {}", file.escape_debug()))
    }
}

struct OfStatus<'a>(&'a Option<u16>);

impl fmt::Display for OfStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, ": HTTP {status}"))
    }
}

struct At<'a>(&'a Option<u64>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, ": byte {offset}"))
    }
}
