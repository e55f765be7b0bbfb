//! Sessions: how two neighbours move a stream of frames so that none is lost, doubled or out of order.
//!
//! Sans-IO: bytes and time come in as arguments, bytes and facts come out; no socket, thread or clock here.
//! A [`Link`] is one connection (framing, liveness). A [`Sender`] holds what is unacknowledged, a [`Receiver`]
//! where it stands. Sender and receiver outlive connections: after a new handshake they go on at the exact frame.

mod error;
mod link;
mod receiver;
mod sender;

#[cfg(test)]
mod tests;

pub use error::SessionError;
pub use link::{Link, Message};
pub use receiver::Receiver;
pub use sender::{Resume, Sender};
