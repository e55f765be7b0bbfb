//! Common points: the node obeys a process server that leads it to one, or is silent, or says things out of turn.

use engine::{
    frame::{GroupOrder, GroupReport},
    limits::GROUP_FREEZE,
    point::{BarrierId, GroupMark},
};

use super::*;

impl World {
    fn barrier(&self) -> BarrierId {
        BarrierId(uuid::Uuid::from_u128(self.barrier))
    }

    fn mark(&self) -> GroupMark {
        let members = vec!["db".into(), "vm".into()];
        GroupMark { group: "shop".into(), barrier: self.barrier(), members, missing: Vec::new(), skew_us: 0 }
    }

    /// What follows on a report; `None` if nothing does.
    fn next_order(&self, report: &GroupReport) -> Option<GroupOrder> {
        match report {
            GroupReport::Ready => Some(GroupOrder::Quiesce),
            GroupReport::Quiesced => Some(GroupOrder::Hold),
            GroupReport::Held => Some(GroupOrder::Release),
            GroupReport::Released { .. } => Some(GroupOrder::Seal { mark: self.mark() }),
            GroupReport::Durable { .. } | GroupReport::Failed { .. } => None,
        }
    }

    fn prepare(&mut self, application: bool) {
        self.barrier += 1;
        let order = GroupOrder::Prepare { group: "shop".into(), application };
        self.peer.order(self.barrier(), order);
    }

    /// Orders what follows on what was reported last, mostly.
    pub(super) fn lead(&mut self) {
        let Some((barrier, report)) = self.peer.reports.pop() else {
            // Orders or reports may be lost; then there is another barrier.
            self.silent_for += 1;
            if self.silent_for > 20 {
                self.silent_for = 0;
                let application = self.rng.random();
                self.prepare(application);
            }
            return;
        };
        self.silent_for = 0;
        self.peer.reports.clear();
        let order = match self.rng.random_range(0..80) {
            0 => Some(GroupOrder::Abort { reason: "as it happens".into() }),
            1 => Some(GroupOrder::Hold),
            2 => Some(GroupOrder::Release),
            3 => Some(GroupOrder::Seal { mark: self.mark() }),
            _ => self.next_order(&report),
        };
        if let Some(order) = order {
            self.peer.order(barrier, order);
        }
    }

    pub(super) fn abort(&mut self) {
        self.peer.order(self.barrier(), GroupOrder::Abort { reason: "enough".into() });
    }

    /// Goes on until the newest report is the one that is wanted, obeying the others.
    fn lead_to(&mut self, wanted: &GroupReport) {
        for _ in 0..20_000 {
            self.step();
            self.exchange(true);
            let Some((barrier, report)) = self.peer.reports.pop() else { continue };
            assert_eq!(barrier, self.barrier());
            if std::mem::discriminant(&report) == std::mem::discriminant(wanted) {
                return;
            }
            let order = self.next_order(&report).unwrap_or_else(|| panic!("{report:?}"));
            self.peer.order(barrier, order);
        }
        panic!("{wanted:?} was never reported: {:?}", self.node.status(self.now()));
    }

    fn until_thawed(&mut self) {
        while self.node.is_frozen() {
            self.step();
        }
        assert!(!self.vm.is_frozen());
    }
}

/// A VM that is written, all of which was sent once, and that is about to make a common point.
fn preparing(seed: u64, application: bool) -> World {
    let mut world = World::new(plan_of(seed), seed);
    world.converge();
    world.vm.set_activity(2);
    world.prepare(application);
    world
}

#[test]
fn a_common_point_is_exact_and_says_whose_it_is() {
    for seed in 0..40 {
        let mut world = preparing(seed, false);
        world.lead_to(&GroupReport::Held);
        assert!(world.vm.is_frozen() && world.node.is_frozen());
        let asked = world.node.handle_point_request(Consistency::CrashConsistent);
        world.peer.order(world.barrier(), GroupOrder::Release);
        world.lead_to(&GroupReport::Released { frozen_us: 0 });
        assert!(!world.vm.is_frozen() && !world.node.is_frozen());
        world.peer.order(world.barrier(), GroupOrder::Seal { mark: world.mark() });
        world.lead_to(&GroupReport::Durable { point: PointId(uuid::Uuid::nil()) });
        let point =
            world.node.points.records().find(|record| record.point.group.is_some()).unwrap().point.clone();
        assert_eq!(point.group.as_deref(), Some(&world.mark()));
        assert_eq!((point.method, world.common), (Method::Frozen, 1));
        assert!(!world.answers.contains_key(&asked), "it was asked for after the instant");
        // Asked once more, after a lost connection, it says so once more.
        world.converge();
        world.peer.order(world.barrier(), GroupOrder::Seal { mark: world.mark() });
        world.lead_to(&GroupReport::Durable { point: PointId(uuid::Uuid::nil()) });
        assert_eq!(world.common, 1);
        world.accounting();
    }
}

#[test]
fn applications_hold_for_a_common_point_or_it_says_that_they_did_not() {
    let (mut held, mut failed) = (0, 0);
    for seed in 0..40 {
        let mut world = preparing(seed, true);
        for _ in 0..20_000 {
            world.step();
            world.exchange(true);
            let Some((barrier, report)) = world.peer.reports.pop() else { continue };
            let Some(order) = world.next_order(&report) else { break };
            world.peer.order(barrier, order);
        }
        held += world.application_consistent;
        failed += world.failed;
    }
    assert!(held > 5 && failed > 0, "{held} application-consistent, {failed} not");
}

#[test]
fn whoever_is_not_told_to_go_on_goes_on_by_itself() {
    for seed in 0..10 {
        // Silence.
        let mut world = preparing(seed, false);
        world.lead_to(&GroupReport::Held);
        let since = world.now();
        world.until_thawed();
        assert!(world.now() - since <= GROUP_FREEZE);
        world.exchange(true);
        assert!(matches!(world.peer.reports.pop(), Some((_, GroupReport::Failed { .. }))));

        // Too late: it is no point, whatever the others say.
        world.peer.order(world.barrier(), GroupOrder::Release);
        world.peer.order(world.barrier(), GroupOrder::Seal { mark: world.mark() });
        world.converge();
        assert_eq!(world.common, 0);
        let report = world.peer.reports.pop();
        assert!(matches!(report, Some((barrier, GroupReport::Failed { .. })) if barrier == world.barrier()));

        // A connection that is lost.
        world.prepare(false);
        world.lead_to(&GroupReport::Held);
        world.cut();
        assert!(!world.vm.is_frozen() && !world.node.is_frozen());

        // An order to.
        world.converge();
        world.prepare(false);
        world.lead_to(&GroupReport::Held);
        world.abort();
        world.exchange(true);
        assert!(!world.vm.is_frozen() && !world.node.is_frozen());
        world.converge();
        world.accounting();
        assert_eq!(world.common, 0);
    }
}

#[test]
fn who_is_asked_for_a_point_that_comes_to_nothing_gets_another() {
    let mut world = preparing(3, false);
    world.lead_to(&GroupReport::Quiesced);
    let request = world.node.handle_point_request(Consistency::CrashConsistent);
    world.peer.order(world.barrier(), GroupOrder::Hold);
    world.lead_to(&GroupReport::Held);
    world.abort();
    for _ in 0..20_000 {
        world.step();
        world.exchange(true);
    }
    assert!(world.answers[&request].is_ok());
}
