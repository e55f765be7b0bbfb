//! Answers to requests, as bytes.

use super::{
    layout::{BASE_ALLOCATION_ID, CHUNK, CHUNK_MAGIC, SIMPLE_REPLY, SIMPLE_REPLY_MAGIC, chunk},
    request::Errno,
};

/// Bytes before the data of a chunk: its head and the offset.
pub const DATA_CHUNK: usize = CHUNK + 8;

/// Done, without anything to tell.
#[must_use]
pub fn done(structured: bool, cookie: u64) -> Vec<u8> {
    match structured {
        true => chunk_head(chunk::DONE, chunk::NONE, cookie, 0).to_vec(),
        false => simple(0, cookie).to_vec(),
    }
}

/// It failed.
#[must_use]
pub fn failed(structured: bool, cookie: u64, error: Errno) -> Vec<u8> {
    if !structured {
        return simple(error as u32, cookie).to_vec();
    }
    // The error, and the length of a message that there is none of.
    let mut out = chunk_head(chunk::DONE, chunk::ERROR, cookie, 6).to_vec();
    out.extend((error as u32).to_be_bytes());
    out.extend(0u16.to_be_bytes());
    out
}

/// What comes before all bytes that were read, where replies are simple.
#[must_use]
pub fn simple_data_head(cookie: u64) -> [u8; SIMPLE_REPLY] {
    simple(0, cookie)
}

/// What comes before a piece of the bytes that were read, where replies are structured.
#[must_use]
pub fn data_chunk_head(cookie: u64, offset: u64, len: usize, last: bool) -> [u8; DATA_CHUNK] {
    let mut out = [0; DATA_CHUNK];
    let flags = if last { chunk::DONE } else { 0 };
    out[..CHUNK].copy_from_slice(&chunk_head(flags, chunk::OFFSET_DATA, cookie, len as u32 + 8));
    out[CHUNK..].copy_from_slice(&offset.to_be_bytes());
    out
}

/// What is where: lengths and flags, in order.
#[must_use]
pub fn status(cookie: u64, extents: &[(u32, u32)]) -> Vec<u8> {
    let len = 4 + extents.len() as u32 * 8;
    let mut out = chunk_head(chunk::DONE, chunk::BLOCK_STATUS, cookie, len).to_vec();
    out.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (len, flags) in extents {
        out.extend(len.to_be_bytes());
        out.extend(flags.to_be_bytes());
    }
    out
}

fn simple(error: u32, cookie: u64) -> [u8; SIMPLE_REPLY] {
    let mut out = [0; SIMPLE_REPLY];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

fn chunk_head(flags: u16, kind: u16, cookie: u64, len: u32) -> [u8; CHUNK] {
    let mut out = [0; CHUNK];
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..].copy_from_slice(&len.to_be_bytes());
    out
}
