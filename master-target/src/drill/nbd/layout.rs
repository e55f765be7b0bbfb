//! Every number of the NBD protocol that is spoken here, as its specification has them
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>). All integers are big-endian.
//!
//! Only the fixed newstyle handshake is spoken; oldstyle, extended headers and resizing are not.

/// First bytes of the server.
pub const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Then this, and before every option of the client.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// magic, option, length
pub const OPTION_HEADER: usize = 8 + 4 + 4;
/// magic, flags, type, cookie, offset, length
pub const REQUEST: usize = 4 + 2 + 2 + 8 + 8 + 4;
/// magic, error, cookie
pub const SIMPLE_REPLY: usize = 4 + 4 + 8;
/// magic, flags, type, cookie, length
pub const CHUNK: usize = 4 + 2 + 2 + 8 + 4;
/// Zeros after the answer to [`option::EXPORT_NAME`], unless both sides do without.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Flags of both sides' hello.
pub mod hello {
    /// Fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No zeros after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export, without an answer that could say no.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Go on with TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export, and use it.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// Something about an export; see [`super::info`].
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    /// An option that is not known here.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Not allowed here.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// Malformed, or at the wrong time.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// TLS first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
}

/// What [`reply::INFO`] tells.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// For people.
    pub const DESCRIPTION: u16 = 2;
    /// Sizes of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of an export.
pub mod transmission {
    /// The others are valid.
    pub const HAS_FLAGS: u16 = 1;
    /// It cannot be written to.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Knows [`super::command::FLUSH`].
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Knows [`super::command_flag::FUA`].
    pub const SEND_FUA: u16 = 1 << 3;
    /// Knows [`super::command::TRIM`].
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Knows [`super::command::WRITE_ZEROES`].
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Knows [`super::command_flag::DF`].
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Knows [`super::command_flag::FAST_ZERO`].
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// End the session.
    pub const DISCONNECT: u16 = 2;
    /// Make what was written durable.
    pub const FLUSH: u16 = 3;
    /// Forget contents.
    pub const TRIM: u16 = 4;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell what is where.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Answer when it is durable.
    pub const FUA: u16 = 1;
    /// Zeros that take space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk of data.
    pub const DF: u16 = 1 << 2;
    /// One extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Only if it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured replies.
pub mod chunk {
    /// Flag: the last chunk.
    pub const DONE: u16 = 1;
    /// Nothing; only to end.
    pub const NONE: u16 = 0;
    /// Offset and bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// Context and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = 0x8001;
}

/// What the context [`BASE_ALLOCATION`] says of an extent.
pub mod extent {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// The only metadata context here.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number.
pub const BASE_ALLOCATION_ID: u32 = 1;
