//! What the process server and the members of a group say to each other to make a common point.
//!
//! Each step is an order to all members, and the next one comes when every member has reported the one before:
//! prepare → ready, quiesce → quiesced, hold → held, release → released, seal → durable. At the moment when the last
//! `held` has arrived all members are frozen, if each of them still is when its `release` arrives; only those that were
//! share the point. A member that cannot go on says `failed`; it, and one that hears `abort`, thaws and forgets.

use serde::{Deserialize, Serialize};

use super::{FrameError, name::is_name};
use crate::{
    limits,
    point::{GroupMark, PointId},
};

/// To a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum GroupOrder {
    /// Send ahead what is dirty, until little is left. Also ends what is known of any barrier before.
    Prepare {
        /// The group's name.
        group: String,
        /// Whether applications are to be held, too.
        application: bool,
    },
    /// Hold the applications, if that is wanted, and write out what file systems hold back.
    Quiesce,
    /// Freeze, capture, and stay frozen.
    Hold,
    /// Thaw.
    Release,
    /// The point is common to these: seal it with this mark. Ordered again after a lost connection: a member that has
    /// sealed it, or cannot any more, says so.
    Seal {
        /// For the point.
        mark: GroupMark,
    },
    /// There will be no common point with this member: thaw, and forget it.
    Abort {
        /// For people.
        reason: String,
    },
}

/// From a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum GroupReport {
    /// Little is left to capture.
    Ready,
    /// It could be frozen at once.
    Quiesced,
    /// It is frozen, and its point is in memory.
    Held,
    /// It goes on, and was frozen all the time until it was told to.
    Released {
        /// For how long, in microseconds.
        frozen_us: u64,
    },
    /// Its point is durable at the master target.
    Durable {
        /// The point.
        point: PointId,
    },
    /// It makes no point for this barrier.
    Failed {
        /// For people.
        reason: String,
    },
}

impl GroupOrder {
    /// Checks what a peer claims: names, and how many.
    pub(super) fn check(&self) -> Result<(), FrameError> {
        match self {
            GroupOrder::Prepare { group, .. } if !is_name(group) => {
                Err(FrameError::Malformed("a group's name must be as a VM's"))
            }
            GroupOrder::Seal { mark } => mark.check(),
            _ => Ok(()),
        }
    }
}

impl GroupMark {
    /// Checks what a peer claims: names, and how many.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] with the rule that is broken.
    pub fn check(&self) -> Result<(), FrameError> {
        let all = || self.members.iter().chain(&self.missing);
        if self.members.is_empty() || all().count() > limits::GROUP_MEMBERS {
            return Err(FrameError::Malformed("a group has 1 to 16 members"));
        }
        if !is_name(&self.group) || !all().all(|name| is_name(name)) {
            return Err(FrameError::Malformed("names of groups and members must be as those of VMs"));
        }
        Ok(())
    }
}
