use super::{
    layout::{command, command_flag, option, reply, transmission},
    negotiation::Tls,
    *,
};

fn exports() -> Vec<Export> {
    let export = |name: &str, writable| Export {
        name: name.into(),
        description: format!("web {name}"),
        bytes: 1 << 20,
        writable,
    };
    vec![export("sda", false), export("sdb", true)]
}

fn begin(exports: &[Export], tls: Tls) -> Negotiation<'_> {
    Negotiation::new(exports, tls, 3u32.to_be_bytes()).unwrap()
}

/// Kinds and payloads of the replies.
fn replies(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], layout::OPTION_REPLY_MAGIC.to_be_bytes());
        let (kind, len) = (number(12), number(16) as usize);
        replies.push((kind, bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    replies
}

fn kinds(bytes: &[u8]) -> Vec<u32> {
    replies(bytes).into_iter().map(|(kind, _)| kind).collect()
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), rest].concat()
}

fn base_allocation(name: &str) -> Vec<u8> {
    named(name, &[&1u32.to_be_bytes()[..], &named("base:allocation", &[])].concat())
}

#[test]
fn a_client_chooses_a_disk_by_name_and_the_first_without() {
    let exports = exports();
    for (name, expected) in [("sdb", 1), ("sda", 0), ("", 0)] {
        let mut negotiation = begin(&exports, Tls::None);
        let (_, next) = negotiation.handle_option(option::STRUCTURED_REPLY, &[]).unwrap();
        assert_eq!(next, Next::Option);
        let (out, _) = negotiation.handle_option(option::SET_META_CONTEXT, &base_allocation(name)).unwrap();
        assert_eq!(kinds(&out), [reply::META_CONTEXT, reply::ACK]);
        let (out, next) = negotiation.handle_option(option::GO, &named(name, &[0, 0])).unwrap();
        assert_eq!(kinds(&out), [reply::INFO, reply::INFO, reply::ACK]);
        let flags = u16::from_be_bytes(replies(&out)[0].1[10..].try_into().unwrap());
        assert_eq!(flags & transmission::READ_ONLY == 0, expected == 1);
        let Next::Requests { export, session } = next else { panic!("{next:?}") };
        assert_eq!(export, expected);
        assert!(session.structured && session.base_allocation && session.writable == (expected == 1));
    }
    let (out, next) = begin(&exports, Tls::None).handle_option(option::GO, &named("sdc", &[0, 0])).unwrap();
    assert_eq!((kinds(&out), next), (vec![reply::ERR_UNKNOWN], Next::Option));
}

#[test]
fn contexts_count_for_the_disk_they_were_chosen_for() {
    let exports = exports();
    let mut negotiation = begin(&exports, Tls::None);
    // Not before structured replies are agreed on.
    let (out, _) = negotiation.handle_option(option::SET_META_CONTEXT, &base_allocation("sda")).unwrap();
    assert_eq!(kinds(&out), [reply::ERR_INVALID]);
    negotiation.handle_option(option::STRUCTURED_REPLY, &[]).unwrap();
    negotiation.handle_option(option::SET_META_CONTEXT, &base_allocation("sda")).unwrap();
    let (_, next) = negotiation.handle_option(option::GO, &named("sdb", &[0, 0])).unwrap();
    assert!(matches!(next, Next::Requests { session: Session { base_allocation: false, .. }, .. }));
}

#[test]
fn where_tls_is_demanded_nothing_else_is_heard_and_nothing_before_it_counts() {
    let exports = exports();
    let mut negotiation = begin(&exports, Tls::Demanded);
    for option in [option::LIST, option::STRUCTURED_REPLY, option::GO, option::INFO, 77] {
        let (out, next) = negotiation.handle_option(option, &[]).unwrap();
        assert_eq!((kinds(&out), next), (vec![reply::ERR_TLS_REQD], Next::Option));
    }
    assert_eq!(negotiation.handle_option(option::EXPORT_NAME, b"sda").unwrap(), (vec![], Next::End));
    let (out, next) = negotiation.handle_option(option::STARTTLS, &[]).unwrap();
    assert_eq!((kinds(&out), next), (vec![reply::ACK], Next::Tls));
    negotiation.handle_tls();
    let (out, _) = negotiation.handle_option(option::LIST, &[]).unwrap();
    assert_eq!(kinds(&out), [reply::SERVER, reply::SERVER, reply::ACK]);
    let (out, _) = negotiation.handle_option(option::STARTTLS, &[]).unwrap();
    assert_eq!(kinds(&out), [reply::ERR_INVALID]);
    let (out, _) = begin(&exports, Tls::None).handle_option(option::STARTTLS, &[]).unwrap();
    assert_eq!(kinds(&out), [reply::ERR_POLICY]);
}

#[test]
fn what_is_malformed_is_refused() {
    let exports = exports();
    assert!(Negotiation::new(&exports, Tls::None, 0u32.to_be_bytes()).is_err());
    let mut negotiation = begin(&exports, Tls::None);
    negotiation.handle_option(option::STRUCTURED_REPLY, &[]).unwrap();
    for (option, data) in [
        (option::GO, &b""[..]),
        (option::GO, &named("sda", &[0, 2, 0, 0])),
        (option::INFO, &[0xff; 8]),
        (option::LIST, b"x"),
        (option::SET_META_CONTEXT, &named("sda", &[0xff; 4])),
    ] {
        let (out, next) = negotiation.handle_option(option, data).unwrap();
        assert_eq!((kinds(&out), next), (vec![reply::ERR_INVALID], Next::Option), "{option} {data:?}");
    }
    let endless = (0..1000).find_map(|_| negotiation.handle_option(option::LIST, &[]).err());
    assert_eq!(endless, Some(ProtocolError::TooManyOptions));

    let mut header = [0; layout::OPTION_HEADER];
    header[..8].copy_from_slice(&layout::OPTION_MAGIC.to_be_bytes());
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(OptionHeader::parse(&header), Err(ProtocolError::OptionTooLong { .. })));
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> [u8; layout::REQUEST] {
    let mut out = layout::REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
    out.extend([9u64.to_be_bytes(), offset.to_be_bytes()].concat());
    out.extend(length.to_be_bytes());
    out.try_into().unwrap()
}

#[test]
fn requests_are_checked_against_what_was_agreed_on() {
    use command::*;
    let reads = Session { bytes: 1 << 20, writable: false, structured: false, base_allocation: false };
    let writes = Session { bytes: 1 << 20, writable: true, structured: true, base_allocation: true };
    let check = |session: &Session, command, flags, offset, len| {
        Request::parse(&request(command, flags, offset, len)).unwrap().check(session)
    };
    let end = 1 << 20;
    assert_eq!(
        check(&reads, READ, 0, end - 5, 5),
        Ok(Action::Read { offset: end - 5, len: 5, may_split: true })
    );
    assert_eq!(check(&reads, READ, 0, end - 5, 6), Err(Errno::Invalid));
    assert_eq!(check(&reads, READ, 0, u64::MAX, 6), Err(Errno::Invalid));
    assert_eq!(check(&reads, READ, 0, 0, u32::MAX), Err(Errno::Overflow));
    assert_eq!(check(&reads, READ, command_flag::DF, 0, 6), Err(Errno::Invalid));
    assert_eq!(check(&reads, BLOCK_STATUS, 0, 0, 6), Err(Errno::Invalid));
    assert_eq!(check(&reads, 99, 0, 0, 6), Err(Errno::Invalid));
    assert_eq!(check(&writes, BLOCK_STATUS, command_flag::REQ_ONE, 0, 0), Err(Errno::Invalid));
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        assert_eq!(check(&reads, command, 0, 0, 6), Err(Errno::NotPermitted));
        assert!(check(&writes, command, command_flag::FUA, 0, 6).is_ok());
        assert_eq!(check(&writes, command, 0, end, 1), Err(Errno::NoSpace));
        assert_eq!(check(&writes, command, 1 << 15, 0, 1), Err(Errno::Invalid));
    }
    let flags = command_flag::NO_HOLE | command_flag::FAST_ZERO;
    let zero = Action::Zero { offset: 0, len: 512, keep_space: true, fast: true };
    assert_eq!(check(&writes, WRITE_ZEROES, flags, 0, 512), Ok(zero));
    assert!(matches!(
        Request::parse(&request(WRITE, 0, 0, u32::MAX)),
        Err(ProtocolError::WriteTooLong { .. })
    ));
    assert!(Request::parse(&[0; layout::REQUEST]).is_err());
}
