//! Retention against what the policy says, said in another way. A month of it with a journal: tests/replica/month.rs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn tier(every: u64, span: u64) -> Tier {
    Tier { every: Duration::from_secs(every), span: Duration::from_secs(span) }
}

fn policy(tiers: Vec<Tier>, application: Vec<Tier>) -> Policy {
    Policy { tiers, application, ..Policy::everything() }
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_second(second as i64).unwrap()
}

fn point(layer: u64, second: u64) -> Candidate {
    Candidate { layer, taken_at: at(second), application: layer.is_multiple_of(3), pinned: false, cost: 10 }
}

/// What of all points that ever were a policy keeps: for every point, whether there is a tier whose period it began and
/// that still reaches back to the period's end.
fn said(all: &[Candidate], policy: &Policy, now: u64) -> BTreeSet<u64> {
    let second = |point: &Candidate| point.taken_at.as_second() as u64;
    let keeps = |tier: &Tier, point: &Candidate, peers: &dyn Fn(&Candidate) -> bool| {
        let (every, span) = (tier.every.as_secs(), tier.span.as_secs());
        if every == 0 {
            return second(point) + span > now;
        }
        let period = second(point) / every;
        let began_it = !all
            .iter()
            .take_while(|other| other.layer < point.layer)
            .any(|other| peers(other) && second(other) / every == period);
        began_it && (period + 1) * every + span > now
    };
    let wanted = |point: &&Candidate| {
        policy.tiers.iter().any(|tier| keeps(tier, point, &|_| true))
            || point.application
                && policy.application.iter().any(|tier| keeps(tier, point, &|other| other.application))
            || point.pinned
    };
    all.iter().filter(wanted).chain(all.last()).map(|point| point.layer).collect()
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let one = (prop_oneof![Just(0u64), 1u64..50], 0u64..400).prop_map(|(every, span)| tier(every, span));
    prop::collection::vec(one, 0..4)
}

proptest! {
    /// Asked at every point or only now and then, it keeps the same: exactly what the policy says of all points.
    #[test]
    fn keeps_exactly_what_the_policy_says(
        tiers in tiers(), application in tiers(),
        steps in prop::collection::vec((0u64..20, any::<bool>(), prop::bool::weighted(0.03), any::<bool>()), 1..120),
    ) {
        let policy = policy(tiers, application);
        let (mut all, mut left, mut now) = (Vec::new(), Vec::new(), 1000);
        for (layer, (pause, application, pinned, asked)) in (1..).zip(steps) {
            now += pause;
            let new = Candidate { application, pinned, ..point(layer, now) };
            all.push(new);
            left.push(new);
            if asked {
                let kept = keep(&left, &policy, None, at(now));
                left.retain(|point| kept.contains(&point.layer));
            }
        }
        prop_assert_eq!(keep(&left, &policy, None, at(now)), said(&all, &policy, now));
    }

    #[test]
    fn limits_drop_the_oldest_and_never_a_pin_or_the_newest(
        pins in prop::collection::vec(prop::bool::weighted(0.2), 1..40), most in 0usize..40, bytes in 0u64..500,
    ) {
        let points: Vec<_> =
            (1..).zip(&pins).map(|(layer, pinned)| Candidate { pinned: *pinned, ..point(layer, layer) }).collect();
        let newest = pins.len() as u64;
        let policy = Policy { points: most, bytes, ..Policy::everything() };
        let kept = keep(&points, &policy, Some(points.len() as u64 * 10), at(100));
        prop_assert!(kept.contains(&newest));
        prop_assert!(points.iter().all(|point| !point.pinned || kept.contains(&point.layer)));
        let droppable: Vec<u64> =
            points.iter().filter(|p| !p.pinned && p.layer != newest).map(|p| p.layer).collect();
        let dropped = droppable.iter().filter(|layer| !kept.contains(layer)).count();
        prop_assert!(droppable[..dropped].iter().all(|layer| !kept.contains(layer)), "not the oldest");
        prop_assert!(kept.len() <= most || dropped == droppable.len());
        // One point costs ten bytes; no more are dropped than it takes.
        let unpinned_first = points.first().is_some_and(|point| !point.pinned);
        if most >= points.len() && unpinned_first && !pins.iter().any(|pinned| *pinned) {
            let needed = (points.len() as u64 * 10).saturating_sub(bytes).div_ceil(10) as usize;
            prop_assert_eq!(dropped, needed.min(droppable.len()));
        }
    }
}
