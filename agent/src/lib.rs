//! The agent on the protected VM: tracks written blocks, captures points, sends.

pub mod capture;
pub mod sim;
pub mod tracker;
