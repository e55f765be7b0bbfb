//! The text descriptor of a VMDK: bytes in, types out.
//!
//! Two steps. [`RawDescriptor`] is the text as found, split into lines and checked for nothing but grammar; it
//! keeps every byte, so what it prints is what it read. [`Descriptor`] is made from it by `TryFrom` and holds
//! the values that decide what may be done with the disk, each checked. The only edit is
//! [`RawDescriptor::set_content_id`]. What new disks say is [`NewText`].
//!
//! Nothing here opens a file: the text comes from someone else and this code is fuzzed.

mod checked;
mod error;
mod line;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashMap;

pub use checked::{Access, CreateType, Descriptor, Extent, ExtentType};
pub use error::DescriptorError;
use line::{Line, LineKind};
pub use text::{NewText, random_long_prefix};

use super::content_id::ContentId;

/// Longest descriptor that is read. Those of ESXi are under 1 KiB; a disk of 62 TiB in 2 GB pieces, which only
/// hosted products make, has one of about 2 MiB and is refused anyway.
pub const MAX_BYTES: usize = 256 << 10;

/// Most lines in a descriptor.
pub const MAX_LINES: usize = 4096;

/// A descriptor as found: lines that can be printed again byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawDescriptor {
    lines: Vec<Line>,
    /// NULs after the text; QEMU fills the last sector with them.
    padding: usize,
}

/// `key = value`, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Line number, from 1.
    pub line: usize,
    /// The value without its quotes. Not necessarily UTF-8.
    pub value: &'a [u8],
}

impl RawDescriptor {
    /// Splits `bytes` into lines. Refuses what does not follow the grammar or names a key twice, as readers
    /// would disagree on what it says.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_BYTES {
            return Err(DescriptorError::TooLong { bytes: bytes.len() });
        }
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let (text, padding) = bytes.split_at(end);
        let mut lines = Vec::new();
        let mut first_line_of = HashMap::new();
        for (bytes, number) in text.split_inclusive(|&byte| byte == b'\n').zip(1..) {
            if number > MAX_LINES {
                return Err(DescriptorError::TooManyLines);
            }
            let line = Line::parse(bytes, number)?;
            if let LineKind::Entry { key, .. } = &line.kind
                && let Some(first_line) = first_line_of.insert(key.clone(), number)
            {
                return Err(DescriptorError::Twice { line: number, first_line, key: key.clone() });
            }
            lines.push(line);
        }
        Ok(Self { lines, padding: padding.len() })
    }

    /// The bytes it was parsed from, with the edits made since.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.lines.iter().flat_map(|line| &line.bytes).copied().collect();
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }

    /// The value of `key`, which is not case-sensitive.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Entry<'_>> {
        self.numbered().find_map(|(number, line)| match &line.kind {
            LineKind::Entry { key: found, value } if found.eq_ignore_ascii_case(key) => {
                Some(Entry { line: number, value: &line.bytes[value.clone()] })
            }
            _ => None,
        })
    }

    /// The extent lines, unread, with their numbers.
    pub fn extent_lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.numbered()
            .filter(|(_, line)| matches!(line.kind, LineKind::Extent))
            .map(|(number, line)| (number, line.bytes.as_slice()))
    }

    /// Writes a new CID, and its digits to the end of `ddb.longContentID` if there is one. No other byte changes.
    pub fn set_content_id(&mut self, id: ContentId) -> Result<(), DescriptorError> {
        let digits = id.to_string();
        let long = match self.get(LONG_CONTENT_ID) {
            Some(entry) => Some(checked::long_content_id(entry)?.to_owned()),
            None => None,
        };
        if !self.set(CID, digits.as_bytes()) {
            return Err(DescriptorError::Missing { key: CID });
        }
        if let Some(mut long) = long {
            long.replace_range(long.len() - digits.len().., &digits);
            self.set(LONG_CONTENT_ID, long.as_bytes());
        }
        Ok(())
    }

    /// Replaces the value of `key`; false if there is none.
    fn set(&mut self, key: &str, new: &[u8]) -> bool {
        for line in &mut self.lines {
            if let LineKind::Entry { key: found, value } = &mut line.kind
                && found.eq_ignore_ascii_case(key)
            {
                line.bytes.splice(value.clone(), new.iter().copied());
                value.end = value.start + new.len();
                return true;
            }
        }
        false
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Line)> {
        (1..).zip(&self.lines)
    }
}

const CID: &str = "CID";
const LONG_CONTENT_ID: &str = "ddb.longContentID";
