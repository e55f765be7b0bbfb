//! NBD, server side: no options or requests make the parser panic, every answer is well-formed, and what passes the
//! check lies within the disk.
//!
//! Input: a byte of settings, the client's flags, options back to back as on the wire, and after one that ends the
//! handshake requests as on the wire.

#![no_main]

use homeward_fuzz::put;
use libfuzzer_sys::fuzz_target;
use master_target::drill::nbd::{
    Action, Export, Negotiation, Next, OptionHeader, Request, Session,
    layout::{OPTION_HEADER, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST, REQUEST_MAGIC},
    negotiation::Tls,
};

const DISK: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((settings, rest)) = bytes.split_first() else { return };
    let Some((flags, mut rest)) = rest.split_first_chunk() else { return };
    let exports = ["sda", "sdb"].map(|name| Export {
        name: name.into(),
        description: "web".into(),
        bytes: DISK,
        writable: settings & 1 != 0,
    });
    let tls = if settings & 2 != 0 { Tls::Demanded } else { Tls::None };
    let Ok(mut negotiation) = Negotiation::new(&exports, tls, *flags) else { return };
    while let Some((header, after)) = rest.split_first_chunk::<OPTION_HEADER>() {
        let mut header = *header;
        put(&mut header, 0, &OPTION_MAGIC.to_be_bytes());
        let Ok(header) = OptionHeader::parse(&header) else { return };
        let Some((data, after)) = after.split_at_checked(header.bytes) else { return };
        rest = after;
        let Ok((answer, next)) = negotiation.handle_option(header.option, data) else { return };
        match next {
            Next::Option => check_replies(&answer),
            Next::Tls => negotiation.handle_tls(),
            Next::End => return,
            Next::Requests { export, session } => {
                assert!(export < exports.len());
                return requests(rest, &session);
            }
        }
    }
});

fn check_replies(mut answer: &[u8]) {
    assert!(!answer.is_empty());
    while !answer.is_empty() {
        assert_eq!(answer[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let len = u32::from_be_bytes(answer[16..20].try_into().expect("four bytes"));
        answer = &answer[20 + len as usize..];
    }
}

fn requests(mut bytes: &[u8], session: &Session) {
    while let Some((header, after)) = bytes.split_first_chunk::<REQUEST>() {
        let mut header = *header;
        put(&mut header, 0, &REQUEST_MAGIC.to_be_bytes());
        let Ok(request) = Request::parse(&header) else { return };
        let within = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= DISK);
        match request.check(session) {
            Ok(Action::Read { offset, len, .. }) => assert!(within(offset, len as u64)),
            Ok(Action::Write { offset }) => {
                assert!(session.writable && within(offset, request.payload as u64));
            }
            Ok(Action::Zero { offset, len, .. } | Action::Trim { offset, len }) => {
                assert!(session.writable && within(offset, len));
            }
            Ok(Action::Status { offset, len, .. }) => assert!(within(offset, len) && len > 0),
            Ok(Action::Flush | Action::Disconnect) | Err(_) => {}
        }
        bytes = &after[request.payload.min(after.len())..];
    }
}
