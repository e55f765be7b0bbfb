//! What can be wrong with a descriptor. Each error names the line.

use super::{MAX_BYTES, MAX_LINES};

/// Why a text is not a descriptor that can be relied on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Over [`MAX_BYTES`].
    #[error("{bytes} bytes are too many for a descriptor (at most {MAX_BYTES}); is this the disk itself?")]
    TooLong {
        /// Length of the file.
        bytes: usize,
    },
    /// Over [`MAX_LINES`].
    #[error("more than {MAX_LINES} lines")]
    TooManyLines,
    /// A line without end.
    #[error("line {line} is longer than {max} bytes")]
    LineTooLong {
        /// Line number.
        line: usize,
        /// The bound.
        max: usize,
    },
    /// A NUL or another control character where text should stand.
    #[error("line {line} holds a control character")]
    ControlCharacter {
        /// Line number.
        line: usize,
    },
    /// Not a comment, `key=value` or extent.
    #[error("line {line} is neither a comment nor key=value nor an extent: {text}")]
    NotALine {
        /// Line number.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// A value that starts or ends with a quote and lacks the other, or has some inside.
    #[error("line {line} has unpaired quotes: {text}")]
    BadQuotes {
        /// Line number.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// A key that stands there twice.
    #[error("line {line} sets {key} again, line {first_line} did already")]
    Twice {
        /// Line number of the second.
        line: usize,
        /// Line number of the first.
        first_line: usize,
        /// The key.
        key: String,
    },
    /// A key that every descriptor has.
    #[error("there is no line that sets {key}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that cannot be understood.
    #[error("line {line}: {key} is \"{value}\", expected {expected}")]
    BadValue {
        /// Line number.
        line: usize,
        /// The key.
        key: &'static str,
        /// Beginning of what stands there.
        value: String,
        /// What could.
        expected: &'static str,
    },
    /// An extent line that cannot be understood.
    #[error("line {line}: extent with {what}: {text}")]
    BadExtent {
        /// Line number.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
        /// Its beginning.
        text: String,
    },
}

/// The beginning of `bytes`; what cannot be printed becomes U+FFFD.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}
