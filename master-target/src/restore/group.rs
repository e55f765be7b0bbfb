//! Which moment the VMs of a group are restored to: a pure choice among the points that each has.

use std::collections::{BTreeMap, BTreeSet};

use engine::point::{BarrierId, GroupMark, PointId};

use super::Select;
use crate::journal::SealedPoint;

/// A VM that is replicated here, and its points, oldest first.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub vm: String,
    /// Its points.
    pub points: Vec<SealedPoint>,
}

impl Member {
    fn of<'a>(&'a self, group: &'a str) -> impl DoubleEndedIterator<Item = (&'a SealedPoint, &'a GroupMark)> {
        let marked = self.points.iter().filter_map(|sealed| Some((sealed, sealed.point.group.as_deref()?)));
        marked.filter(move |(_, mark)| mark.group == group)
    }
}

/// A moment that all VMs of a group share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Which.
    pub barrier: BarrierId,
    /// Each VM's point of it.
    pub points: BTreeMap<String, PointId>,
}

/// The VMs of a group that are replicated here, or should be, as their newest points say.
#[must_use]
pub fn vms_of(members: &[Member], group: &str) -> BTreeSet<String> {
    let newest = members.iter().filter_map(|member| member.of(group).next_back());
    let newest = newest.max_by_key(|(sealed, _)| sealed.point.taken_at);
    newest.map(|(_, mark)| mark.members.iter().chain(&mark.missing).cloned().collect()).unwrap_or_default()
}

/// The moment that is meant: the newest that every VM of the group has a point of, among those that `select` allows; by
/// id, that of a barrier or of any VM's point of it. If there is none, why, and which VMs lack it.
pub fn shared_point(members: &[Member], group: &str, select: &Select) -> Result<Shared, String> {
    if *select == Select::BeforeFailback {
        return Err(
            "the disks before failback are no moment of a group: restore its VMs one by one".to_owned()
        );
    }
    let vms = vms_of(members, group);
    if vms.is_empty() {
        return Err(format!("no point of a group {group:?} is kept here"));
    }
    let mut moments: BTreeMap<BarrierId, Vec<(&str, &SealedPoint)>> = BTreeMap::new();
    for member in members {
        for (sealed, mark) in member.of(group) {
            moments.entry(mark.barrier).or_default().push((&member.vm, sealed));
        }
    }
    // Newest first; within a moment the members' clocks may differ.
    let mut moments: Vec<_> = moments.into_iter().filter(|moment| select.allows(moment)).collect();
    moments.sort_by_key(|(_, points)| points.iter().map(|(_, sealed)| sealed.point.taken_at).max());
    let lacking = |points: &[(&str, &SealedPoint)]| -> Vec<String> {
        vms.iter().filter(|vm| points.iter().all(|(has, _)| has != vm)).cloned().collect()
    };
    let whole = moments.iter().rev().find(|(_, points)| lacking(points).is_empty());
    if let Some((barrier, points)) = whole {
        let points = points.iter().filter(|(vm, _)| vms.contains(*vm));
        let points = points.map(|(vm, sealed)| ((*vm).to_owned(), sealed.point.id)).collect();
        return Ok(Shared { barrier: *barrier, points });
    }
    Err(match moments.last() {
        None => format!("no point of group {group} is the one that is meant; list them with `points VM`"),
        Some((barrier, points)) => format!(
            "no such moment of group {group} is kept by all of its VMs; the newest, {}, is not by: {}. Restore the \
             others one by one (`restore VM --point ID`) if that is what you want",
            barrier,
            lacking(points).join(", ")
        ),
    })
}

impl Select {
    /// Whether a moment may be meant.
    fn allows(&self, (barrier, points): &(BarrierId, Vec<(&str, &SealedPoint)>)) -> bool {
        match self {
            Self::Latest => true,
            Self::LatestApplicationConsistent => {
                points.iter().all(|(_, sealed)| sealed.is_application_consistent())
            }
            Self::Id(id) => barrier.0 == id.0 || points.iter().any(|(_, sealed)| sealed.point.id == *id),
            Self::At(time) => points.iter().all(|(_, sealed)| sealed.point.taken_at <= *time),
            Self::BeforeFailback => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::{
        point::{Consistency, Method, Point},
        units::{Digest, Epoch},
    };
    use jiff::Timestamp;

    use super::*;

    /// A point at `second` of moment `barrier`, shared by `vms` without `missing`.
    fn point(vm: &str, second: u64, barrier: u128, vms: &[&str], missing: &[&str]) -> SealedPoint {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mark = GroupMark {
            group: "shop".into(),
            barrier: BarrierId(uuid::Uuid::from_u128(barrier)),
            members: names(vms),
            missing: names(missing),
            skew_us: 10,
        };
        let taken_at = Timestamp::from_second(second as i64).unwrap();
        let consistency = match barrier % 2 {
            0 => Consistency::ApplicationConsistent,
            _ => Consistency::CrashConsistent,
        };
        let point = Point {
            id: PointId(uuid::Uuid::from_u128(barrier * 1000 + u128::from(vm.as_bytes()[0]))),
            epoch: Epoch(second),
            taken_at,
            consistency,
            method: Method::Frozen,
            barrier_tries: 1,
            window_us: 1,
            residual_bytes: 0,
            frozen_us: 1,
            application: None,
            group: Some(Box::new(mark)),
        };
        let chain = Digest::of(b"");
        SealedPoint { point, layer: second, log_bytes: 0, sealed_at: taken_at, chain }
    }

    /// Moments 1 to 5 of a and b, one second after another; b lacks what is in `lost`.
    fn members(lost: &[u128]) -> Vec<Member> {
        let vms = ["a", "b"];
        let points = |vm: &str| (1..=5).map(|at| point(vm, at as u64, at, &vms, &[])).collect::<Vec<_>>();
        let mut members = vms.map(|vm| Member { vm: vm.into(), points: points(vm) });
        members[1].points.retain(|sealed| {
            let mark = sealed.point.group.as_ref().unwrap();
            !lost.contains(&mark.barrier.0.as_u128())
        });
        members.into()
    }

    fn found(members: &[Member], select: &str) -> Result<u128, String> {
        shared_point(members, "shop", &select.parse().unwrap()).map(|shared| {
            assert_eq!(shared.points.len(), 2);
            shared.barrier.0.as_u128()
        })
    }

    #[test]
    fn the_newest_moment_that_all_hold() {
        assert_eq!(found(&members(&[]), "latest"), Ok(5));
        assert_eq!(found(&members(&[5]), "latest"), Ok(4));
        assert_eq!(found(&members(&[]), "latest-application-consistent"), Ok(4));
        assert_eq!(found(&members(&[4]), "latest-application-consistent"), Ok(2));
        assert_eq!(found(&members(&[]), "1970-01-01T00:00:03Z"), Ok(3));
        assert_eq!(found(&members(&[3]), "1970-01-01T00:00:03Z"), Ok(2));
        let barrier = uuid::Uuid::from_u128(2).to_string();
        assert_eq!(found(&members(&[]), &barrier), Ok(2));
        let points = uuid::Uuid::from_u128(2000 + u128::from(b'b')).to_string();
        assert_eq!(found(&members(&[]), &points), Ok(2));
    }

    #[test]
    fn who_lacks_it_is_named() {
        let barrier = uuid::Uuid::from_u128(2).to_string();
        let error = found(&members(&[2]), &barrier).unwrap_err();
        assert!(error.contains(&barrier) && error.contains("by: b."), "{error}");
        let error = found(&members(&[1, 2, 3, 4, 5]), "latest").unwrap_err();
        assert!(error.contains("by: b."), "{error}");
        let error = shared_point(&members(&[]), "other", &Select::Latest).unwrap_err();
        assert!(error.contains("other"), "{error}");
        assert!(found(&members(&[]), "1970-01-01T00:00:00Z").is_err());
    }

    /// A moment without one of the group's VMs is not one of the group.
    #[test]
    fn a_moment_with_a_member_missing_is_not_taken() {
        let mut members = members(&[]);
        members[0].points.push(point("a", 6, 6, &["a"], &["b"]));
        assert_eq!(found(&members, "latest"), Ok(5));
        members[1].points.clear();
        assert!(found(&members, "latest").unwrap_err().contains("by: b."));
        assert_eq!(vms_of(&members, "shop"), ["a".to_owned(), "b".to_owned()].into());
    }
}
