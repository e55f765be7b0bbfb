//! Resyncs: what is dirty because tracking was lost is compared, and only what differs is sent.

use engine::{
    digest::leaf_digest,
    frame::{Compared, LeafRange, Span, digest_of_all},
    units::Digest,
};

use super::*;

/// Granules of 4 KiB, 8 KiB, and of two leaves, as on very large disks. The last leaves of the disks are short.
fn plans() -> impl Iterator<Item = Plan> {
    [0, 1, 5].into_iter().map(|shift| Plan { disks: vec![600, 45], shift, writers: 2, activity: 3 })
}

impl World {
    /// The machine reboots after its writers have worked for a while without an agent. Returns the leaves in which it
    /// differs from the target.
    fn reboot_after(&mut self, works: u32) -> BTreeSet<(u16, u64)> {
        self.cut();
        self.vm.set_activity(3);
        (0..works).for_each(|_| self.vm.work());
        self.vm.reboot();
        self.vm.set_activity(0);
        self.restart_agent();
        self.stale_leaves()
    }
}

#[test]
fn an_unchanged_disk_is_compared_and_not_sent() {
    for (seed, plan) in (0..).zip(plans()) {
        let mut world = World::new(plan, seed);
        world.vm.fill();
        world.converge();
        assert_eq!(world.reboot_after(0), BTreeSet::new());
        let (content, all) = (world.peer.content, world.node.status(world.now()).dirty_bytes);
        world.converge();
        let status = world.node.status(world.now());
        assert_eq!(
            (status.totals.equal_bytes, status.totals.logical_bytes),
            (world.leaves() as u64 * LEAF_BYTES, 0)
        );
        assert!(status.totals.equal_bytes >= all && status.resync.is_none());
        assert!(world.peer.content - content < 4096, "only a seal is sent");
    }
}

#[test]
fn of_a_changed_disk_only_the_leaves_that_differ_are_sent() {
    for (seed, plan) in (0..).zip(plans()) {
        let leaves_of_granule = (1u64 << plan.shift).div_ceil(16);
        let mut world = World::new(plan, seed);
        world.vm.fill();
        world.converge();
        for works in [1, 20, 100] {
            let stale = world.reboot_after(works);
            world.converge();
            let granules: BTreeSet<_> =
                stale.iter().map(|(disk, leaf)| (*disk, leaf / leaves_of_granule)).collect();
            let most = granules.len() as u64 * leaves_of_granule * LEAF_BYTES;
            let sent = world.node.status(world.now()).totals.logical_bytes;
            assert!(sent <= most, "{sent} bytes were sent, {most} differ");
            assert!(sent >= stale.len() as u64 * BLOCK_BYTES, "{stale:?} was not sent");
        }
    }
}

/// The disks at home were there before: at the very first connection only the leaves that differ are sent.
#[test]
fn of_disks_that_were_at_home_before_only_what_differs_is_sent() {
    for (seed, plan) in (0..).zip(plans()) {
        for kill in [false, true] {
            let leaves_of_granule = (1u64 << plan.shift).div_ceil(16);
            let mut world = World::new(plan.clone(), seed);
            world.vm.fill();
            world.peer.adopted = true;
            for disk in 0..plan.disks.len() {
                world.peer.target[disk] = world.vm.bytes(DiskIndex(disk as u16));
            }
            let stale = world.reboot_after(60);
            if kill {
                while world.peer.content == 0 {
                    world.step();
                    world.exchange(true);
                }
                world.restart_agent();
            }
            world.converge();
            let granules: BTreeSet<_> =
                stale.iter().map(|(disk, leaf)| (*disk, leaf / leaves_of_granule)).collect();
            let most = granules.len() as u64 * leaves_of_granule * LEAF_BYTES;
            let sent = world.peer.content;
            // What was on its way is sent again after a kill.
            assert!(sent <= most * if kill { 2 } else { 1 } + 8192, "{sent} bytes were sent, {most} differ");
            assert!(sent >= stale.len() as u64 * BLOCK_BYTES, "{stale:?} was not sent");
        }
    }
}

/// Another question of the same leaves may be answered late, and a target may not hold yet what is on its way to it.
#[test]
fn an_answer_counts_only_for_what_was_read_and_from_where_this_agent_goes_on() {
    let plan = Plan { disks: vec![64], shift: 0, writers: 0, activity: 0 };
    let mut world = World::new(plan, 3);
    world.vm.fill();
    world.converge();
    world.reboot_after(0);
    // The peer loses every third question.
    world.peer.questions = 2;
    while world.peer.questions < 3 {
        world.step();
        world.exchange(true);
    }
    let position = world.node.durable;
    let span = Span::of(DiskIndex(0), 0..4).unwrap();
    let right = {
        let target = &world.peer.target[0];
        let digests: Vec<_> = target.chunks(LEAF_BYTES as usize).map(leaf_digest).collect();
        digest_of_all(&digests)
    };
    let answer = Compared { span, position, digest: right, digests: Vec::new() };
    let left = |world: &World| world.node.resync.as_ref().map_or(0, |resync| resync.suspect()[0].count());
    let wrong = [
        Compared { position: Seq(position.0 - 1), ..answer.clone() },
        Compared { digest: Digest::ZERO, ..answer.clone() },
        Compared { span: Span::of(DiskIndex(0), 0..3).unwrap(), ..answer.clone() },
    ];
    for wrong in wrong {
        world.node.handle_compared(&wrong);
        assert_eq!(left(&world), 4, "{wrong:?}");
    }
    world.node.handle_compared(&answer);
    assert_eq!((left(&world), world.node.source.is_clean()), (0, true));
    world.converge();
}

#[test]
fn leaves_that_are_asked_for_meanwhile_are_sent_whatever_they_are() {
    let plan = Plan { disks: vec![640], shift: 0, writers: 0, activity: 0 };
    let mut world = World::new(plan, 4);
    world.vm.fill();
    world.converge();
    world.reboot_after(0);
    while world.node.resync.is_none() {
        world.step();
        world.exchange(true);
    }
    world.node.give_up_comparing(&[LeafRange { disk: DiskIndex(0), first: 7, count: 2 }]);
    world.converge();
    assert_eq!(world.node.status(world.now()).totals.logical_bytes, 2 * LEAF_BYTES);
}
