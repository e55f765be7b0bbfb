//! Retention against what the policy says, said in another way; and a simulated month of points every five seconds.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;

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

/// A month of points every five seconds, application-consistent every 15 minutes, under the policy of the example
/// configuration; looked at every minute. In CI a week.
#[test]
fn a_simulated_month() {
    let days = 7 * std::env::var("HOMEWARD_ROUNDS").map_or(1, |rounds| rounds.parse::<u64>().unwrap().min(5));
    let (day, begin) = (24 * HOUR, 1_000_000 * 5);
    let policy = policy(
        vec![tier(0, 2 * HOUR), tier(HOUR, day), tier(day, 7 * day)],
        vec![tier(0, day), tier(day, 14 * day)],
    );
    let mut left: Vec<Candidate> = Vec::new();
    for (layer, now) in (1..).zip((begin..begin + days * day).step_by(5)) {
        left.push(Candidate { application: now % 900 == 0, ..point(layer, now) });
        if now % 60 == 0 {
            let kept = keep(&left, &policy, None, at(now));
            left.retain(|point| kept.contains(&point.layer));
        }
        if now % (5 * HOUR) == 0 {
            check_day(&left, now, begin);
        }
    }
}

/// The points that there must be, counted out.
fn check_day(left: &[Candidate], now: u64, begin: u64) {
    let day = 24 * HOUR;
    let mut expected = BTreeSet::new();
    let multiple = |second: u64, of: u64| second.is_multiple_of(of);
    for second in (begin..=now).step_by(5) {
        let age = now - second;
        let began = |every: u64| multiple(second, every) || second == begin;
        let application = multiple(second, 900);
        // A period counts from its end.
        let is_kept = age < 2 * HOUR
            || began(HOUR) && (second / HOUR + 1) * HOUR + day > now
            || began(day) && (second / day + 1) * day + 7 * day > now
            || application && age < day
            || application
                && (multiple(second, day) || second == begin.next_multiple_of(900))
                && (second / day + 1) * day + 14 * day > now;
        if is_kept {
            expected.insert(second);
        }
    }
    let found: BTreeSet<u64> = left.iter().map(|point| point.taken_at.as_second() as u64).collect();
    assert_eq!(found, expected, "at {now}");
}
