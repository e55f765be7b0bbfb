//! One line of a descriptor: what kind it is, and where its value stands.

use std::ops::Range;

use super::error::{DescriptorError, excerpt};

/// Longest line. A key list of an encrypted disk is a few KiB.
const MAX_LINE_BYTES: usize = 16 << 10;

/// A line with all its bytes, the line end included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) kind: LineKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    /// Nothing, or a comment.
    Ignored,
    /// `key = value`. The key is lower-case; `value` is its place in the line, without quotes.
    Entry { key: String, value: Range<usize> },
    /// `RW 2048 VMFS "disk-flat.vmdk"`, not read any further.
    Extent,
}

impl Line {
    pub(super) fn parse(bytes: &[u8], number: usize) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_LINE_BYTES {
            return Err(DescriptorError::LineTooLong { line: number, max: MAX_LINE_BYTES });
        }
        let kind = kind_of(bytes, number)?;
        Ok(Self { bytes: bytes.to_vec(), kind })
    }
}

fn kind_of(bytes: &[u8], number: usize) -> Result<LineKind, DescriptorError> {
    let text = trimmed(bytes, 0..bytes.len());
    // Other readers end the text at a NUL, so that one inside would hide the rest from them, comment or not.
    if bytes.contains(&0) {
        return Err(DescriptorError::ControlCharacter { line: number });
    }
    if text.is_empty() || bytes[text.start] == b'#' {
        return Ok(LineKind::Ignored);
    }
    if bytes[text.clone()].iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(DescriptorError::ControlCharacter { line: number });
    }
    if is_extent(&bytes[text.clone()]) {
        return Ok(LineKind::Extent);
    }
    let neither = || DescriptorError::NotALine { line: number, text: excerpt(&bytes[text.clone()]) };
    let equals =
        text.start + bytes[text.clone()].iter().position(|&byte| byte == b'=').ok_or_else(neither)?;
    let key = &bytes[trimmed(bytes, text.start..equals)];
    if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
        return Err(neither());
    }
    let value = unquoted(bytes, trimmed(bytes, equals + 1..text.end))
        .ok_or_else(|| DescriptorError::BadQuotes { line: number, text: excerpt(&bytes[text.clone()]) })?;
    Ok(LineKind::Entry { key: String::from_utf8_lossy(key).to_ascii_lowercase(), value })
}

/// Whether the first word is an access mode.
fn is_extent(text: &[u8]) -> bool {
    let word = text.split(u8::is_ascii_whitespace).next().unwrap_or(text);
    [&b"RW"[..], b"RDONLY", b"NOACCESS"].iter().any(|mode| word.eq_ignore_ascii_case(mode))
}

/// `range` without the blanks at both ends.
fn trimmed(bytes: &[u8], range: Range<usize>) -> Range<usize> {
    let part = &bytes[range.clone()];
    let end = range.start + part.trim_ascii_end().len();
    end - part.trim_ascii().len()..end
}

/// `range` without quotes, if it has a pair of them or none.
fn unquoted(bytes: &[u8], range: Range<usize>) -> Option<Range<usize>> {
    let quotes = bytes[range.clone()].iter().filter(|&&byte| byte == b'"').count();
    let value = &bytes[range.clone()];
    match quotes {
        0 => Some(range),
        2 if value.starts_with(b"\"") && value.ends_with(b"\"") => Some(range.start + 1..range.end - 1),
        _ => None,
    }
}
