//! Whether a tracker can vouch that it missed no write while the agent was away.

use std::fmt;

use engine::units::DiskIndex;

/// What opening a tracker found out about one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// Every write since the maps were made is in them.
    Proven,
    /// Writes may have been missed: the maps are new and the whole disk is marked dirty. A resync can clear what
    /// it finds equal.
    Lost {
        /// The disk.
        disk: DiskIndex,
        /// Why.
        reason: LostReason,
    },
}

/// Why continuity is not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// The disk was not tracked before.
    New,
    /// Another disk stands under its device number.
    Replaced,
    /// Its size changed.
    Resized,
    /// It has nothing to tell it from another disk under the same device number.
    Unidentified,
    /// The pinned programs are not all attached.
    Detached,
    /// The machine was restarted since.
    Rebooted,
    /// The maps were made for another replication.
    OtherStream,
    /// The maps or saved digests are of another version.
    OtherVersion,
    /// The maps or saved digests are incomplete or make no sense.
    Damaged,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "it was not tracked before",
            Self::Replaced => "it was replaced by another disk",
            Self::Resized => "its size changed",
            Self::Unidentified => "it has no serial number, so a replacement would go unnoticed",
            Self::Detached => "tracking was detached",
            Self::Rebooted => "the machine was restarted",
            Self::OtherStream => "what was tracked belongs to another replication",
            Self::OtherVersion => "what was tracked was written by another version",
            Self::Damaged => "what was tracked is incomplete or damaged",
        })
    }
}
