//! VMDK descriptors: no bytes make the parser panic, what it accepts it prints back, and an edit is read back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use master_target::vmdk::{
    content_id::ContentId,
    descriptor::{Descriptor, RawDescriptor},
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut raw) = RawDescriptor::parse(bytes) else { return };
    assert_eq!(raw.to_bytes(), bytes);
    let checked = Descriptor::try_from(&raw);
    if raw.set_content_id(ContentId::FRESH).is_err() {
        assert_eq!(raw.to_bytes(), bytes, "a failed edit changed something");
        return;
    }
    let reread = RawDescriptor::parse(&raw.to_bytes()).expect("an edit keeps the grammar");
    assert_eq!(reread, raw);
    if let Ok(mut expected) = checked {
        expected.content_id = ContentId::FRESH;
        assert_eq!(Descriptor::try_from(&reread), Ok(expected));
    }
});
