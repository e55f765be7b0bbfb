//! The operator's side: keys, a whole Homeward on one machine, and the demo; later the configuration server.

pub mod demo;
pub mod lab;
pub mod pki;
