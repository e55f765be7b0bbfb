//! Indexes as files: a layer's pieces written once, and opened again if they are exactly right.

use std::{path::Path, sync::Arc};

use engine::{io::Storage, units::StreamId};

use super::{
    layout::{HEADER, MAGIC, PAGE, PAGE_HEAD, PAGE_RECORDS, RECORD, VERSION, at},
    record::encode_page,
    sorted::{PageFile, Pages, Sorted},
};
use crate::journal::{
    JournalError,
    entry::{Malformed, array},
    layer::Layer,
};

impl Sorted {
    /// Writes it as the index of a layer, whole or not at all.
    pub(crate) fn save(
        &self,
        storage: &dyn Storage,
        dir: &Path,
        stream: StreamId,
        layer: &Layer,
    ) -> Result<(), JournalError> {
        let path = layer.log().index_path(dir);
        let temporary = path.with_extension("index.tmp");
        let failed = JournalError::io("write", &temporary);
        if storage.exists(&temporary).map_err(&failed)? {
            storage.remove(&temporary).map_err(&failed)?;
        }
        let file = storage.create(&temporary).map_err(&failed)?;
        file.write_all_at(&header(stream, layer, self.records), 0).map_err(&failed)?;
        let (mut cursor, mut number) = (self.cursor(), 0);
        loop {
            let mut page = Vec::with_capacity(PAGE_RECORDS);
            while page.len() < PAGE_RECORDS
                && let Some(piece) = cursor.next()?
            {
                page.push(piece);
            }
            if page.is_empty() {
                break;
            }
            let offset = HEADER as u64 + number * PAGE as u64;
            file.write_all_at(&encode_page(number, &page), offset).map_err(&failed)?;
            number += 1;
        }
        // A name that a power cut takes back is no harm: the index is made again.
        file.sync().and_then(|()| storage.rename(&temporary, &path)).map_err(&failed)
    }

    /// The index of a layer, if there is one that was made from its log and is whole.
    pub(crate) fn open(
        storage: &dyn Storage,
        dir: &Path,
        stream: StreamId,
        layer: &Layer,
    ) -> Result<Option<Self>, JournalError> {
        match Self::open_whole(storage, dir, stream, layer) {
            // It is made again from the log.
            Err(JournalError::Damaged { .. }) => Ok(None),
            found => found,
        }
    }

    fn open_whole(
        storage: &dyn Storage,
        dir: &Path,
        stream: StreamId,
        layer: &Layer,
    ) -> Result<Option<Self>, JournalError> {
        let Some(mut sorted) = Self::open_unread(storage, dir, stream, layer)? else { return Ok(None) };
        let mut cursor = sorted.cursor();
        while let Some(piece) = cursor.next()? {
            if piece.log != layer.log() || piece.image.at > layer.log_bytes {
                return Ok(None);
            }
            sorted.bytes += piece.extent.bytes();
        }
        Ok(Some(sorted))
    }

    /// The index of a layer, if there is one of this version. Its pages are checked as they are read.
    pub(crate) fn open_unread(
        storage: &dyn Storage,
        dir: &Path,
        stream: StreamId,
        layer: &Layer,
    ) -> Result<Option<Self>, JournalError> {
        let path = layer.log().index_path(dir);
        if !storage.exists(&path).map_err(JournalError::io("look for", &path))? {
            return Ok(None);
        }
        let file = storage.open(&path).map_err(JournalError::io("open", &path))?;
        let len = file.len().map_err(JournalError::io("measure", &path))?;
        let mut raw = [0; HEADER];
        if len >= HEADER as u64 {
            file.read_exact_at(&mut raw, 0).map_err(JournalError::io("read", &path))?;
        }
        let records = u64::from_le_bytes(array(&raw, at::RECORDS));
        if raw != header(stream, layer, records) {
            let is_another_version = raw[..at::VERSION] == MAGIC
                && raw[at::VERSION] != VERSION
                && raw[at::CRC..] == crc32fast::hash(&raw[..at::CRC]).to_le_bytes();
            return match is_another_version {
                true => Ok(None),
                false => Err(JournalError::unusable(&path, 0, Malformed::Checksum("header of an index"))),
            };
        }
        let whole = records.checked_mul(RECORD as u64).and_then(|bytes| {
            bytes.checked_add(HEADER as u64 + records.div_ceil(PAGE_RECORDS as u64) * PAGE_HEAD as u64)
        });
        if whole != Some(len) {
            let what = Malformed::Nonsense("an index is not as long as its header says");
            return Err(JournalError::unusable(&path, len, what));
        }
        let file = PageFile::new(file, path, records);
        Ok(Some(Self { pages: Pages::File(Arc::new(file)), records, bytes: 0 }))
    }
}

fn header(stream: StreamId, layer: &Layer, records: u64) -> [u8; HEADER] {
    let mut raw = [0; HEADER];
    raw[at::MAGIC..][..4].copy_from_slice(&MAGIC);
    raw[at::VERSION] = VERSION;
    raw[at::STREAM..][..16].copy_from_slice(stream.0.as_bytes());
    raw[at::LAYER..][..8].copy_from_slice(&layer.last.to_le_bytes());
    raw[at::GENERATION..][..4].copy_from_slice(&layer.generation.to_le_bytes());
    raw[at::LOG_BYTES..][..8].copy_from_slice(&layer.log_bytes.to_le_bytes());
    raw[at::RECORDS..][..8].copy_from_slice(&records.to_le_bytes());
    let crc = crc32fast::hash(&raw[..at::CRC]);
    raw[at::CRC..].copy_from_slice(&crc.to_le_bytes());
    raw
}
