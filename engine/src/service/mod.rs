//! What every service and every command does the same way: configuration, logs, metrics, progress, stopping,
//! the local admin interface, exit codes.
//!
//! Nothing here knows what a service does. Layers: `code`, `quantity` → `progress`, `shutdown`, `config`, `logging` →
//! `metrics`, `admin` → `exit`, which knows the code of every error.

pub mod admin;
mod code;
pub mod config;
pub mod exit;
pub mod logging;
pub mod metrics;
pub mod progress;
pub mod quantity;
pub mod shutdown;
