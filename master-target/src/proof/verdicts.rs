//! Which points were verified, with what result: a small file beside the catalogue.
//!
//! JSON, replaced as a whole. Points that are gone are left out when it is written the next time.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use engine::{
    io::{Storage, write_file_atomically},
    point::PointId,
};
use serde::{Deserialize, Serialize};

use super::certificate::Coverage;
use crate::journal::{JournalError, State};

/// What is known of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything was compared, and equal.
    Proven(Coverage),
    /// Something of it is not what the source held. This stays, whatever is compared later.
    Different,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Different => f.write_str("DIFFERENT"),
            Verdict::Proven(coverage) if coverage.direct == coverage.leaves => f.write_str("proven"),
            Verdict::Proven(coverage) => {
                let share = coverage.direct as f64 * 100.0 / coverage.leaves.max(1) as f64;
                write!(f, "proven, {share:.1} % of it directly")
            }
        }
    }
}

/// The file with all verdicts of a stream.
pub struct Verdicts {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    verdicts: BTreeMap<PointId, Verdict>,
}

impl Verdicts {
    /// Reads them. If they cannot be read, none are known: labels are only what was observed.
    #[must_use]
    pub fn open(storage: &Arc<dyn Storage>, dir: &std::path::Path) -> Self {
        let path = dir.join("verdicts.json");
        let verdicts = read(storage.as_ref(), &path).unwrap_or_else(|reason| {
            tracing::error!(file = %path.display(), reason, "verdicts on points cannot be read: verify them again");
            BTreeMap::new()
        });
        Self { storage: Arc::clone(storage), path, verdicts }
    }

    /// All that are known.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<PointId, Verdict> {
        &self.verdicts
    }

    /// Adds one, durably. A point that is different stays so.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, point: PointId, verdict: Verdict, state: &State) -> Result<(), JournalError> {
        if self.verdicts.get(&point) == Some(&Verdict::Different) {
            return Ok(());
        }
        self.verdicts.insert(point, verdict);
        let kept: std::collections::BTreeSet<PointId> =
            state.points.values().map(|sealed| sealed.point.id).collect();
        self.verdicts.retain(|point, _| kept.contains(point));
        // Plain data with string keys: turning it into JSON cannot fail.
        #[allow(clippy::expect_used)]
        let json = serde_json::to_vec(&self.verdicts).expect("verdicts serialise");
        write_file_atomically(self.storage.as_ref(), &self.path, &json)
            .map_err(JournalError::io("write", &self.path))
    }
}

fn read(storage: &dyn Storage, path: &std::path::Path) -> Result<BTreeMap<PointId, Verdict>, String> {
    let text = |error: std::io::Error| error.to_string();
    if !storage.exists(path).map_err(text)? {
        return Ok(BTreeMap::new());
    }
    let file = storage.open(path).map_err(text)?;
    let mut bytes = vec![0; file.len().map_err(text)? as usize];
    file.read_exact_at(&mut bytes, 0).map_err(text)?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}
