//! The agent on the protected VM: tracks written blocks, captures points, sends.

pub mod admin;
pub mod capture;
mod cli;
pub mod command;
pub mod config;
pub mod driver;
pub mod metrics;
pub mod node;
pub mod setup;
pub mod sim;
pub mod tracker;
