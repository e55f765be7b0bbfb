//! The NBD protocol, server side, as pure functions of bytes: what clients say is parsed into checked types, what is
//! answered comes back as bytes. No sockets, threads or disks: those are [`super::connection`]'s.
//!
//! Layers, lowest first: `layout` → `export` → `negotiation`, `request`, `response`.

pub mod export;
pub mod layout;
pub mod negotiation;
pub mod request;
pub mod response;

#[cfg(test)]
mod tests;

pub use export::Export;
pub use negotiation::{Negotiation, Next, OptionHeader};
pub use request::{Action, Errno, Request, Session};

/// What a client sent is no NBD. Its connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first flags are not those of a fixed newstyle client.
    #[error("the client does not speak the fixed newstyle handshake (flags {0:#x}); use a newer one")]
    Flags(u32),
    /// Where a magic number should be.
    #[error("no {what} where one should begin: the client speaks another protocol")]
    Magic {
        /// What should begin.
        what: &'static str,
    },
    /// An option with more bytes than are taken.
    #[error("option {option} has {bytes} bytes, more than any option needs")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length.
        bytes: u32,
    },
    /// More options than anybody needs.
    #[error("the client negotiates without end")]
    TooManyOptions,
    /// A write with more bytes than are taken.
    #[error("a write of {bytes} bytes is longer than the limit it was told")]
    WriteTooLong {
        /// Its length.
        bytes: u32,
    },
}
