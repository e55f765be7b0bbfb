//! What a client is told of a disk that it may use.

use super::layout::{info, transmission};
use crate::drill::limits;

/// A disk that clients can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name; the disk's within its VM.
    pub name: String,
    /// For people: VM and point.
    pub description: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether it takes writes.
    pub writable: bool,
}

impl Export {
    /// What clients may send. `structured`: whether they may want a reply in one piece.
    ///
    /// Several connections always see the same, for nothing is kept back from anybody; so does a flush have nothing
    /// to do, and is there only because file systems want it.
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        use transmission::*;
        let writing = match self.writable {
            true => SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
            false => READ_ONLY,
        };
        HAS_FLAGS | CAN_MULTI_CONN | writing | if structured { SEND_DF } else { 0 }
    }

    /// The payloads of `NBD_REP_INFO`, the wanted ones and those that always come.
    pub(super) fn infos(&self, wanted: &[u16], structured: bool) -> Vec<Vec<u8>> {
        let mut infos = vec![info_payload(info::EXPORT, |out| {
            out.extend(self.bytes.to_be_bytes());
            out.extend(self.flags(structured).to_be_bytes());
        })];
        infos.push(info_payload(info::BLOCK_SIZE, |out| {
            for bytes in [1, limits::PREFERRED_BYTES, limits::REQUEST_BYTES] {
                out.extend(bytes.to_be_bytes());
            }
        }));
        if wanted.contains(&info::NAME) {
            infos.push(info_payload(info::NAME, |out| out.extend(self.name.as_bytes())));
        }
        if wanted.contains(&info::DESCRIPTION) {
            infos.push(info_payload(info::DESCRIPTION, |out| out.extend(self.description.as_bytes())));
        }
        infos
    }
}

fn info_payload(kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    fill(&mut out);
    out
}
