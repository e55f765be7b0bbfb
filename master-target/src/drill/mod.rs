//! Drill: the disks of any point, served over NBD, so that an operator can look into them, or boot them, before
//! deciding. Replication and points go on meanwhile.
//!
//! What is drilled never changes: reads come from the point, writes (where they are allowed) go to an overlay that
//! is thrown away with the drill. Nothing here can write to a VMDK or a journal: it has only [`crate::image::Image`]s.
//!
//! Layers, lowest first: `limits` → `nbd` → `overlay` → `disk`, `socket` → `connection` → `server`
//! → `registry`.

pub(crate) mod limits;

mod connection;
mod disk;
pub mod nbd;
mod overlay;
mod registry;
mod server;
mod socket;

pub use disk::DrillDisk;
pub use overlay::{Budget, Overlay, OverlayError};
pub use registry::{DrillError, DrillStatus, Drills, Plan, Served};
pub use server::NbdServer;
pub use socket::Place;
