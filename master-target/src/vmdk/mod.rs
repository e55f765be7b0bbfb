//! VMware disks as files: the text descriptor and the `-flat` file beside it.
//!
//! Layers, lowest first: [`content_id`] and [`geometry`] → [`descriptor`] → [`flat`] (new disks, and the one
//! rewrite a descriptor ever gets) → [`adopt`] (which existing disks may be written to). Beside them [`sparse`], which reads
//! disks in one file, and above it [`stream_optimized`], which lays such a file out.
//! Only `flat` and `adopt` touch files, and those through [`engine::io::Storage`], so that simulated power cuts
//! reach them. The bytes of a disk are not written here: its flat file is opened as a device by the journal.

pub mod adopt;
pub mod content_id;
pub mod descriptor;
pub mod flat;
pub mod geometry;
pub mod sparse;
pub mod stream_optimized;
