//! Connections between services: mutually authenticated TLS 1.3 over TCP, and who is at the other end.
//!
//! There is no plaintext mode. A connection exists only after both certificates were verified against our
//! private CA and both roles were found right; what flows over it is [`crate::session`]'s business.
//!
//! A server: [`tls::Credentials::load`] → [`tls::Credentials::server`] → [`connect::Listener::bind`] →
//! [`connect::Listener::accept`] → [`connect::Incoming::handshake`].
//! A client: [`tls::Credentials::client`] → [`connect::connect`], again after [`backoff::Backoff::next_delay`].

pub mod backoff;
pub mod blocking;
pub mod certificate;
pub mod connect;
pub mod error;
pub mod identity;
pub mod sign;
pub mod tls;
mod verify;

pub use backoff::Backoff;
pub use connect::{Incoming, Listener, Peer, connect};
pub use error::{NetError, Refusal};
pub use identity::{Identity, Role};
pub use sign::{SignError, Signature};
pub use tls::{Authorities, ClientTls, Credentials, ServerTls, TlsFileError, TlsFiles};
