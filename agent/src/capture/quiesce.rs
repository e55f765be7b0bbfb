//! Asking the VM's applications to hold for a point, and letting them go on.
//!
//! Only the interface stands here; [`super::hooks`] runs the operator's hooks behind it, a simulation has its own.

use engine::point::{Application, PointId};

/// Holds applications. No call blocks: hooks may take long, and replication goes on meanwhile.
pub trait Quiescer: Send {
    /// Asks applications to hold for the point `id`: pre hooks, in order. Not while another is under way.
    fn hold(&mut self, id: PointId);

    /// Lets them go on: post hooks, in reverse. Before they hold, what was begun is broken off first.
    fn release(&mut self);

    /// How far it is. After a failed pre hook, or when nobody calls [`Self::release`] in time, they are let go on
    /// without being told to.
    fn poll(&mut self) -> Quiesce;
}

/// How far applications are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quiesce {
    /// Hooks run.
    Working,
    /// All of them hold.
    Held,
    /// All of them were let go on, and this is what happened. `not_frozen` is not theirs to know.
    Over(Application),
}
