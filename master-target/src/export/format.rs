//! What an export is, and who is told how it goes.

use serde::{Deserialize, Serialize};

/// What an export is a file of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// VMDK for OVF packages: compressed, without zeros.
    #[default]
    StreamOptimized,
    /// The disk's bytes; zeros are holes.
    Raw,
}

/// Told what is being done, bytes done and bytes in all; false ends it.
pub type GoOn<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;
