//! The operator's side: keys and the demo, later the configuration server.

pub mod pki;
