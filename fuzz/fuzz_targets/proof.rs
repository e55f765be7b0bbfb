//! What proofs keep: certificates and pages of stored digests. No bytes make their readers panic, and what they accept they
//! write again with the same meaning; of a page, the same bytes.

#![no_main]

use homeward_fuzz::put;
use libfuzzer_sys::fuzz_target;
use master_target::{
    digests::{
        layout::{self, PAGE, at, page_at},
        page::{Header, Page},
    },
    proof::{Certificate, CertificateError},
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        certificate(text);
    }
    let mut raw = [0; PAGE];
    let len = bytes.len().min(PAGE);
    raw[..len].copy_from_slice(&bytes[..len]);
    page(&raw);
    let mut header = raw;
    put(&mut header, at::MAGIC, &layout::MAGIC);
    put(&mut header, at::VERSION, &[layout::VERSION]);
    seal(&mut header, at::CRC);
    page(&header);
    put(&mut raw, page_at::RESERVED, &[0; 20]);
    seal(&mut raw, page_at::CRC);
    page(&raw);
});

fn certificate(text: &str) {
    match Certificate::parse(text) {
        Ok(certificate) => {
            let again = Certificate::parse(&certificate.to_json()).expect("what is written is read");
            assert_eq!(again, certificate);
        }
        Err(CertificateError::Malformed(_) | CertificateError::Version(_)) => {}
        Err(error) => panic!("reading alone says: {error}"),
    }
}

fn page(raw: &[u8; PAGE]) {
    if let Some(header) = Header::decode(raw) {
        assert!(header.encode() == *raw);
    }
    let number = u64::from_le_bytes(std::array::from_fn(|byte| raw[page_at::NUMBER + byte]));
    if let Some(page) = Page::decode(raw, number) {
        let never_written = raw.iter().all(|byte| *byte == 0);
        assert!(never_written || page.encode(number) == *raw);
        for index in 0..=layout::DIGESTS {
            let _ = page.get(index);
        }
    }
}

fn seal(raw: &mut [u8; PAGE], at: usize) {
    let crc = crc32fast::hash(&raw[..at]);
    put(raw, at, &crc.to_le_bytes());
}
