//! Which points are kept: a pure function of the points, the policy and the time.
//!
//! A tier keeps the first point of every period for so long: of the points that fall into one hour the first, say, for
//! a day. Periods are those of the clock (UTC), and a period leaves its tier as a whole, so what a tier keeps does not
//! depend on when it was asked before. A point stays while any tier keeps it. Limits of count and space drop the oldest
//! first. Pinned points and the newest one always stay.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

/// One point in every period, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Length of a period; zero: every point.
    pub every: Duration,
    /// For how long.
    pub span: Duration,
}

/// What is kept of one VM's points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// For all points.
    pub tiers: Vec<Tier>,
    /// For those that are application-consistent, besides.
    pub application: Vec<Tier>,
    /// Points at most.
    pub points: usize,
    /// Bytes of the journal at most.
    pub bytes: u64,
    /// Bytes of the journal from which on a warning is given.
    pub warn_bytes: u64,
}

impl Policy {
    /// Keeps all.
    #[must_use]
    pub fn everything() -> Self {
        let always = Tier { every: Duration::ZERO, span: Duration::MAX };
        Self {
            tiers: vec![always],
            application: vec![],
            points: usize::MAX,
            bytes: u64::MAX,
            warn_bytes: u64::MAX,
        }
    }
}

/// A point, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The layer it ends: which one it is.
    pub layer: u64,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Whether it is application-consistent.
    pub application: bool,
    /// Whether somebody wants it kept.
    pub pinned: bool,
    /// Bytes of the logs that lead back to it from the point after it.
    pub cost: u64,
}

/// The points to keep, of `points` in the order of their layers. `bytes` is what the journal takes now; `None` if that
/// does not matter at present.
#[must_use]
pub fn keep(points: &[Candidate], policy: &Policy, bytes: Option<u64>, now: Timestamp) -> BTreeSet<u64> {
    let mut kept = BTreeSet::new();
    for tier in &policy.tiers {
        tier.keep(points.iter(), now, &mut kept);
    }
    for tier in &policy.application {
        tier.keep(points.iter().filter(|point| point.application), now, &mut kept);
    }
    kept.extend(points.iter().filter(|point| point.pinned).map(|point| point.layer));
    kept.extend(points.last().map(|newest| newest.layer));
    // Oldest first.
    let droppable = || points.iter().rev().skip(1).rev().filter(|point| !point.pinned);
    for point in droppable() {
        if kept.len() <= policy.points {
            break;
        }
        kept.remove(&point.layer);
    }
    if let Some(bytes) = bytes {
        for point in droppable() {
            if bytes.saturating_sub(freed(points, &kept)) <= policy.bytes {
                break;
            }
            let is_oldest = kept.first() == Some(&point.layer);
            // What one in the middle frees is known when its layers are merged: no other goes before that.
            if kept.remove(&point.layer) && !is_oldest {
                break;
            }
        }
    }
    kept
}

/// Bytes that are not needed to go back to the oldest of `kept`.
fn freed(points: &[Candidate], kept: &BTreeSet<u64>) -> u64 {
    let oldest = kept.first().copied().unwrap_or(0);
    points.iter().take_while(|point| point.layer < oldest).map(|point| point.cost).sum()
}

impl Tier {
    fn keep<'a>(
        &self,
        points: impl Iterator<Item = &'a Candidate>,
        now: Timestamp,
        kept: &mut BTreeSet<u64>,
    ) {
        let (every, span) = (self.every.as_millis() as i128, self.span.as_millis() as i128);
        let now = i128::from(now.as_millisecond());
        let mut last_period = None;
        for point in points {
            let taken = i128::from(point.taken_at.as_millisecond());
            // In milliseconds since 1970; a period ends where the next begins.
            let end = if every == 0 { taken } else { (taken.div_euclid(every) + 1) * every };
            let is_first = every == 0 || last_period.replace(end) != Some(end);
            if is_first && end > now - span {
                kept.insert(point.layer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
