//! A catalogue's bytes: numbered lines behind their checksums, every one twice. Opens nothing.

use std::{ops::Range, path::Path};

use serde::Deserialize;

use super::{
    State,
    record::{OLDEST_VERSION, Record, VERSION},
};
use crate::journal::{JournalError, entry::Malformed};

/// A record as its two equal lines: CRC-32 of the rest in hexadecimal, its number, the JSON.
pub(super) fn lines(number: u64, record: &Record) -> Vec<u8> {
    // Plain data with string keys: serialising it cannot fail.
    #[allow(clippy::expect_used)]
    let json = serde_json::to_string(record).expect("records serialise");
    let numbered = format!("{number} {json}");
    format!("{:08x} {numbered}\n", crc32fast::hash(numbered.as_bytes())).repeat(2).into_bytes()
}

/// What a catalogue's bytes hold.
pub(super) struct Parsed {
    pub(super) state: State,
    pub(super) records: u64,
    /// Length of the good part.
    pub(super) end: u64,
    /// Offset of a copy that had to be replaced by the other.
    pub(super) rotten: Option<u64>,
}

/// Reads the records in `bytes` in order.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Parsed, JournalError> {
    let damaged = |at, what| JournalError::unusable(path, at, what);
    let (mut state, mut records, mut end) = (None::<State>, 0, 0);
    let (mut at, mut bad, mut copies, mut rotten) = (0, None, 2, None);
    for line in split(bytes) {
        match line.strip_suffix(b"\n").and_then(record) {
            Some((number, _)) if number.checked_add(1) == Some(records) => copies += 1,
            Some((number, record)) if number == records => {
                let record = record.map_err(|what| damaged(at, what))?;
                if copies < 2 {
                    rotten = bad;
                }
                let follows = match &mut state {
                    None => State::start(record).map(|first| state = Some(first)),
                    Some(state) => state.allows(&record).then(|| state.apply(record)),
                };
                follows.ok_or_else(|| damaged(at, Malformed::Nonsense("catalogue record out of order")))?;
                (records, copies) = (records + 1, 1);
            }
            Some(_) => return Err(damaged(bad.unwrap_or(at), Malformed::Checksum("catalogue record"))),
            None => {
                bad.get_or_insert(at);
                at += line.len() as u64;
                continue;
            }
        }
        at += line.len() as u64;
        end = at;
    }
    // Both copies are written at once: where one is whole, either the other was torn or one has rotted.
    if copies < 2 {
        rotten = bad.or(Some(end));
    }
    let state = state.ok_or_else(|| damaged(0, Malformed::Nonsense("catalogue without a first record")))?;
    Ok(Parsed { state, records, end, rotten })
}

/// The first line that is not what was written.
pub(super) fn damaged(bytes: &[u8]) -> Option<Range<u64>> {
    let mut at = 0;
    split(bytes).find_map(|line| {
        let place = at..at + line.len() as u64;
        at = place.end;
        line.strip_suffix(b"\n").and_then(record).is_none().then_some(place)
    })
}

/// The lines, each with its end. Where only the end between the copies of a record has rotted, it still is one.
fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .flat_map(|line| {
            let (first, second) = line.split_at(line.len() / 2);
            match (first.split_last(), second.split_last()) {
                (Some((_, one)), Some((_, other))) if one == other => [first, second],
                _ => [line, &[]],
            }
        })
        .filter(|line| !line.is_empty())
}

/// The number and the record of a line whose checksum holds. The inner error says why it is not understood.
fn record(line: &[u8]) -> Option<(u64, Result<Record, Malformed>)> {
    let (crc, numbered) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // As it is written, to the letter: no bit of it may flip unnoticed.
    if crc != format!("{:08x}", crc32fast::hash(numbered.as_bytes())) {
        return None;
    }
    let (number, json) = numbered.split_once(' ')?;
    Some((number.parse().ok()?, understand(json)))
}

fn understand(json: &str) -> Result<Record, Malformed> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_str(json) {
        Ok(Versioned { version }) if !(OLDEST_VERSION..=VERSION).contains(&version) => {
            Err(Malformed::Version(version))
        }
        _ => serde_json::from_str(json)
            .map_err(|_| Malformed::Nonsense("a catalogue record that this version does not know")),
    }
}
