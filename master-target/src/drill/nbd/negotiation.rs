//! The handshake: options in, answers out, until the client has chosen an export or has gone.
//!
//! Where TLS is demanded, nothing but the wish for it is heard before it stands; what was agreed before counts no
//! more afterwards.

use super::{
    Export, ProtocolError,
    layout::{
        BASE_ALLOCATION, BASE_ALLOCATION_ID, EXPORT_NAME_PADDING, INIT_MAGIC, OPTION_HEADER, OPTION_MAGIC,
        OPTION_REPLY_MAGIC, hello, option, reply,
    },
    request::Session,
};
use crate::drill::limits;

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which.
    pub option: u32,
    /// Bytes that follow.
    pub bytes: usize,
}

impl OptionHeader {
    /// Reads it.
    pub fn parse(header: &[u8; OPTION_HEADER]) -> Result<Self, ProtocolError> {
        let mut data = Data(header);
        if data.u64() != Some(OPTION_MAGIC) {
            return Err(ProtocolError::Magic { what: "option" });
        }
        let (Some(option), Some(bytes)) = (data.u32(), data.u32()) else {
            return Err(ProtocolError::Magic { what: "option" });
        };
        if bytes > limits::OPTION_BYTES {
            return Err(ProtocolError::OptionTooLong { option, bytes });
        }
        Ok(Self { option, bytes: bytes as usize })
    }
}

/// What follows an option, after its answer was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another option.
    Option,
    /// The TLS handshake, then options again.
    Tls,
    /// Requests for the export with this number.
    Requests {
        /// Which of the exports.
        export: usize,
        /// What was agreed on.
        session: Session,
    },
    /// The connection ends.
    End,
}

/// A handshake that goes on.
#[derive(Debug)]
pub struct Negotiation<'a> {
    exports: &'a [Export],
    tls: Tls,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    contexts: Option<usize>,
    options: u32,
}

/// How the connection stands to TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// There is none here: nobody else is on the way.
    None,
    /// Demanded, and not there yet.
    Demanded,
    /// Stands.
    Stands,
}

impl<'a> Negotiation<'a> {
    /// What the server says first.
    #[must_use]
    pub fn greeting() -> Vec<u8> {
        let mut out = INIT_MAGIC.to_be_bytes().to_vec();
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend((hello::FIXED_NEWSTYLE | hello::NO_ZEROES).to_be_bytes());
        out
    }

    /// After the client's answer to the greeting, its four bytes of flags.
    pub fn new(exports: &'a [Export], tls: Tls, flags: [u8; 4]) -> Result<Self, ProtocolError> {
        let flags = u32::from_be_bytes(flags);
        let known = u32::from(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
        if flags & u32::from(hello::FIXED_NEWSTYLE) == 0 || flags & !known != 0 {
            return Err(ProtocolError::Flags(flags));
        }
        let no_zeroes = flags & u32::from(hello::NO_ZEROES) != 0;
        Ok(Self { exports, tls, no_zeroes, structured: false, contexts: None, options: 0 })
    }

    /// TLS stands now. What was agreed in the clear is forgotten: somebody else may have agreed to it.
    pub fn handle_tls(&mut self) {
        self.tls = Tls::Stands;
        self.structured = false;
        self.contexts = None;
    }

    /// Answers an option: the bytes to send, and what follows.
    pub fn handle_option(&mut self, option: u32, data: &[u8]) -> Result<(Vec<u8>, Next), ProtocolError> {
        self.options += 1;
        if self.options > limits::OPTIONS {
            return Err(ProtocolError::TooManyOptions);
        }
        let mut out = Answers { option, bytes: Vec::new() };
        let next = match option {
            option::ABORT => {
                out.push(reply::ACK, &[]);
                Next::End
            }
            option::STARTTLS => self.starttls(data, &mut out),
            // It has no answer that could say no.
            option::EXPORT_NAME if self.tls == Tls::Demanded => Next::End,
            option::EXPORT_NAME => return Ok(self.export_name(data)),
            _ if self.tls == Tls::Demanded => {
                out.refuse(reply::ERR_TLS_REQD, "this is no local connection: start TLS first");
                Next::Option
            }
            option::LIST => self.list(data, &mut out),
            option::INFO | option::GO => self.info(option == option::GO, data, &mut out),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                out.push(reply::ACK, &[]);
                Next::Option
            }
            option::STRUCTURED_REPLY => out.malformed(),
            option::LIST_META_CONTEXT => self.meta_contexts(false, data, &mut out),
            option::SET_META_CONTEXT => self.meta_contexts(true, data, &mut out),
            _ => {
                out.refuse(reply::ERR_UNSUP, "");
                Next::Option
            }
        };
        Ok((out.bytes, next))
    }

    fn starttls(&self, data: &[u8], out: &mut Answers) -> Next {
        match self.tls {
            _ if !data.is_empty() => return out.malformed(),
            Tls::Demanded => {
                out.push(reply::ACK, &[]);
                return Next::Tls;
            }
            Tls::None => out.refuse(reply::ERR_POLICY, "there is no TLS on local connections"),
            Tls::Stands => out.refuse(reply::ERR_INVALID, "TLS stands already"),
        }
        Next::Option
    }

    fn export_name(&self, name: &[u8]) -> (Vec<u8>, Next) {
        let Some(export) = self.find(name) else { return (Vec::new(), Next::End) };
        let mut out = self.exports[export].bytes.to_be_bytes().to_vec();
        out.extend(self.exports[export].flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; EXPORT_NAME_PADDING]);
        }
        (out, self.requests(export))
    }

    fn list(&self, data: &[u8], out: &mut Answers) -> Next {
        if !data.is_empty() {
            return out.malformed();
        }
        for export in self.exports {
            let mut payload = (export.name.len() as u32).to_be_bytes().to_vec();
            payload.extend(export.name.as_bytes());
            payload.extend(export.description.as_bytes());
            out.push(reply::SERVER, &payload);
        }
        out.push(reply::ACK, &[]);
        Next::Option
    }

    fn info(&self, go: bool, data: &[u8], out: &mut Answers) -> Next {
        let Some((name, wanted)) = parse_info(data) else { return out.malformed() };
        let Some(export) = self.find(name) else { return out.unknown() };
        for info in self.exports[export].infos(&wanted, self.structured) {
            out.push(reply::INFO, &info);
        }
        out.push(reply::ACK, &[]);
        if go { self.requests(export) } else { Next::Option }
    }

    fn meta_contexts(&mut self, set: bool, data: &[u8], out: &mut Answers) -> Next {
        if set {
            self.contexts = None;
        }
        if !self.structured {
            out.refuse(reply::ERR_INVALID, "ask for structured replies first");
            return Next::Option;
        }
        let Some((name, queries)) = parse_contexts(data) else { return out.malformed() };
        let Some(export) = self.find(name) else { return out.unknown() };
        let base = BASE_ALLOCATION.as_bytes();
        // Listing without a question asks for all; "base:" asks for all of that name space.
        let matches = |query: &&[u8]| *query == base || (!set && *query == b"base:");
        if queries.iter().any(matches) || (!set && queries.is_empty()) {
            let mut payload = if set { BASE_ALLOCATION_ID } else { 0 }.to_be_bytes().to_vec();
            payload.extend(base);
            out.push(reply::META_CONTEXT, &payload);
            if set {
                self.contexts = Some(export);
            }
        }
        out.push(reply::ACK, &[]);
        Next::Option
    }

    /// The export of that name; without a name, the first.
    fn find(&self, name: &[u8]) -> Option<usize> {
        if name.is_empty() && !self.exports.is_empty() {
            return Some(0);
        }
        self.exports.iter().position(|export| export.name.as_bytes() == name)
    }

    fn requests(&self, export: usize) -> Next {
        let Export { bytes, writable, .. } = self.exports[export];
        let base_allocation = self.contexts == Some(export);
        let session = Session { bytes, writable, structured: self.structured, base_allocation };
        Next::Requests { export, session }
    }
}

/// Name and wanted infos.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut data = Data(data);
    let name = data.string()?;
    let count = data.u16()?;
    let wanted = (0..count).map(|_| data.u16()).collect::<Option<Vec<_>>>()?;
    data.0.is_empty().then_some((name, wanted))
}

/// Name and queries.
fn parse_contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut data = Data(data);
    let name = data.string()?;
    let count = data.u32()?;
    // Each takes four bytes at least: a count beyond what is there ends at once.
    let queries = (0..count).map(|_| data.string()).collect::<Option<Vec<_>>>()?;
    data.0.is_empty().then_some((name, queries))
}

/// Bytes, taken from the front.
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Length, then that many bytes.
    fn string(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u32()?;
        self.take(bytes as usize)
    }
}

/// Replies to one option.
struct Answers {
    option: u32,
    bytes: Vec<u8>,
}

impl Answers {
    fn push(&mut self, kind: u32, payload: &[u8]) {
        self.bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        for number in [self.option, kind, payload.len() as u32] {
            self.bytes.extend(number.to_be_bytes());
        }
        self.bytes.extend(payload);
    }

    fn refuse(&mut self, kind: u32, why: &str) {
        self.push(kind, why.as_bytes());
    }

    fn malformed(&mut self) -> Next {
        self.refuse(reply::ERR_INVALID, "the option is malformed");
        Next::Option
    }

    fn unknown(&mut self) -> Next {
        self.refuse(reply::ERR_UNKNOWN, "there is no such disk in this drill; list them");
        Next::Option
    }
}
