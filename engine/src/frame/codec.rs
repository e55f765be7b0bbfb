//! zstd over whole bodies, with contexts that threads keep: making one costs as much as compressing a few blocks.
//!
//! A thread's contexts take a few MiB; only threads that pack or open frames have them.

use std::{
    cell::RefCell,
    io::{self, Cursor},
};

use zstd::bulk::{Compressor, Decompressor};

/// Compression gains under this share of the content (1/16) are not worth decompressing for.
const WORTHWHILE: usize = 16;

/// From this level on it is worth looking first whether content compresses at all.
const PROBE_FROM: i32 = 2;

/// What is looked at then: so many pieces of so many bytes, of a content of more than twice as many.
const PROBES: usize = 8;
const PROBE: usize = 4 << 10;

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// `head` zeros, then `content` compressed at a zstd level; `None` if that is not worth it.
pub(super) fn compress(head: usize, content: &[u8], level: i32) -> Option<Vec<u8>> {
    if level >= PROBE_FROM && !looks_compressible(content) {
        return None;
    }
    let budget = content.len() - content.len().div_ceil(WORTHWHILE).min(content.len());
    let mut bytes = Vec::with_capacity(head + budget);
    bytes.resize(head, 0);
    let mut body = Cursor::new(bytes);
    body.set_position(head as u64);
    // What fails is a result larger than there is room for, or memory for the context: then it goes as it is.
    let len = with_compressor(level, |compressor| compressor.compress_to_buffer(content, &mut body)).ok()?;
    (len <= budget).then(|| body.into_inner())
}

/// Whether pieces from all over `content` become smaller. Few bytes tell it at once.
fn looks_compressible(content: &[u8]) -> bool {
    if content.len() <= 2 * PROBES * PROBE {
        return true;
    }
    let pieces: Vec<u8> = content
        .chunks(content.len().div_ceil(PROBES))
        .flat_map(|part| &part[..part.len().min(PROBE)])
        .copied()
        .collect();
    let mut buffer = vec![0; pieces.len() - pieces.len() / WORTHWHILE];
    with_compressor(1, |compressor| compressor.compress_to_buffer(&pieces, &mut buffer[..])).is_ok()
}

fn with_compressor<T>(
    level: i32,
    work: impl FnOnce(&mut Compressor<'static>) -> io::Result<T>,
) -> io::Result<T> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let (at, compressor) = match kept {
            Some(kept) => kept,
            None => kept.insert((level, Compressor::new(level)?)),
        };
        if *at != level {
            compressor.set_compression_level(level)?;
            *at = level;
        }
        work(compressor)
    })
}

/// What `body` was compressed from: at most `expected` bytes.
pub(super) fn decompress(body: &[u8], expected: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(expected);
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(body, &mut content)
    })?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const MIB: usize = 1 << 20;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(1);
        (0..bytes).map(|_| rng.random()).collect()
    }

    #[test]
    fn what_shrinks_comes_back_at_any_level() {
        let text: Vec<u8> = (0..MIB).map(|at| ((at * at) >> 7) as u8 & 15).collect();
        for level in [-5, -1, 1, 2, 9, 1] {
            let bytes = compress(3, &text, level).unwrap();
            assert_eq!(bytes[..3], [0; 3]);
            assert!(bytes.len() < MIB * 15 / 16 && decompress(&bytes[3..], MIB).unwrap() == text);
            assert!(decompress(&bytes[3..], MIB - 1).is_err());
        }
    }

    #[test]
    fn noise_is_left_as_it_is() {
        for level in [-1, 1, 2, 19] {
            assert_eq!(compress(8, &noise(MIB), level), None, "level {level}");
        }
        assert_eq!(compress(8, &[], 1), None);
    }

    #[test]
    fn half_noise_is_compressed() {
        let half: Vec<u8> = noise(MIB / 2).into_iter().chain(vec![7; MIB / 2]).collect();
        for level in [1, 3] {
            assert!(compress(0, &half, level).unwrap().len() < MIB * 5 / 8);
        }
    }
}
