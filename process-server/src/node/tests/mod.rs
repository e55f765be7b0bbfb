//! The node between fake neighbours: what goes wrong on either side, one thing at a time, and then all at once.

mod world;

use std::{path::PathBuf, time::Duration};

use engine::{
    frame::{Compare, Compared, Control, Position, Span},
    io::sim::{Fault, SimOp, SimStorage},
    units::{Digest, DiskIndex},
};

use self::world::{BOUNDS, STREAM, World, info};
use super::*;

/// A world in which some has been replicated, and some more is on its way.
fn running(seed: u64) -> World {
    let mut world = World::new(seed);
    world.write_some(40);
    world.settle();
    world.write_some(40);
    world
}

#[test]
fn what_the_agent_writes_arrives() {
    let mut world = running(1);
    world.settle();
    let status = world.node.status();
    assert_eq!((status.spooled, status.durable), (world.target.position.seq, world.target.position.seq));
    assert_eq!(status.target, TargetStatus::Connected);
    assert!(status.agent_connected && status.hold.is_none() && status.trouble.is_none());
    assert_eq!(world.target.hellos, [("web-agent".to_owned(), info())]);
    assert!(status.counts.logical_bytes_in >= world.agent.blocks.len() as u64 * 4096);
    let counts = (status.counts.agent_errors, status.counts.target_errors, status.counts.holds);
    assert_eq!((counts, world.agent.resets), ((0, 0, 0), 0));
}

#[test]
fn a_connection_cut_at_any_delivery_is_taken_up_where_it_was() {
    let deliveries = {
        let mut world = World::new(2);
        world.write_some(60);
        world.settle();
        world.deliveries
    };
    for (wire, deliveries) in deliveries.into_iter().enumerate() {
        for nth in 1..=deliveries {
            let mut world = World::new(2);
            world.cut_at = Some((wire, nth));
            world.write_some(60);
            world.settle();
            assert_eq!(world.agent.resets, 0, "wire {wire}, delivery {nth}: content was sent twice");
            assert_eq!(world.target.frames, world.target.position.seq.0);
        }
    }
}

#[test]
fn a_killed_process_server_goes_on_where_it_was() {
    for ticks in 0..60 {
        let mut world = running(3);
        (0..ticks).for_each(|_| world.tick(4000));
        let disk = (*world.storage()).clone();
        world.restart(disk);
        world.settle();
        assert_eq!(world.agent.resets, 0, "killed after {ticks} ms: content was sent twice");
    }
}

#[test]
fn a_lost_spool_costs_time_and_no_data() {
    for ticks in 0..60 {
        let mut world = running(4);
        (0..ticks).for_each(|_| world.tick(4000));
        world.restart(SimStorage::new());
        world.settle();
    }
}

#[test]
fn an_old_spool_is_discarded() {
    let mut world = running(5);
    let old = (*world.storage()).clone();
    world.settle();
    world.write_some(40);
    world.settle();
    world.restart(old);
    world.settle();
    assert_eq!(world.node.counts().discards, 1);
    world.write_some(10);
    world.settle();
}

#[test]
fn a_target_with_another_history_is_right() {
    let mut world = running(6);
    world.settle();
    world.hang_up_target();
    // Rolled back, and gone on differently: what the agent thought durable is not there.
    world.target.position.seq.0 -= 2;
    world.target.position.chain = Digest::of(b"another history");
    world.target.blocks.clear();
    world.write_some(5);
    world.settle();
    assert!(world.node.counts().discards == 1 && world.agent.resets == 1);
}

#[test]
fn a_target_that_lost_what_the_spool_still_has_gets_it_again() {
    let mut world = running(7);
    world.settle();
    let (position, blocks) = (world.target.position, world.target.blocks.clone());
    world.write_some(2);
    world.settle();
    world.hang_up_target();
    (world.target.position, world.target.blocks) = (position, blocks);
    world.write_some(2);
    world.settle();
    assert!(world.node.counts().discards == 0 && world.agent.resets == 0);
}

#[test]
fn of_an_unknown_stream_the_target_is_asked_first() {
    let mut world = World::new(8);
    world.target.unreachable = true;
    world.write_some(3);
    world.dial_as_agent();
    world.until("refused", |world| world.agent.refused == Some(Refusal::Unavailable));
    for why in [Refusal::NoSpace, Refusal::NotYours, Refusal::Lost, Refusal::Unavailable] {
        (world.target.unreachable, world.target.refuses) = (false, Some(why));
        world.dial_as_agent();
        world.until("refused alike", |world| world.agent.refused == Some(why));
        assert!(world.storage().list(&PathBuf::new()).unwrap().is_empty(), "nothing is kept of it");
    }
    world.target.refuses = None;
    // It may stand anywhere.
    world.target.position = Position { seq: Seq(1000), epoch: Epoch(4), chain: Digest::of(b"there") };
    world.settle();
    assert!(world.target.position.seq > Seq(1000));
}

#[test]
fn without_the_target_the_spool_goes_on() {
    let mut world = running(9);
    world.settle();
    world.target.unreachable = true;
    world.hang_up_target();
    world.write_some(15);
    world.until("all is spooled", |world| world.agent.spooled.0 >= world.target.position.seq.0 + 3);
    // Also for an agent that comes anew, and after a restart.
    world.dial_as_agent();
    world.until("connected", |world| world.node.status().agent_connected);
    let disk = (*world.storage()).clone();
    world.restart(disk);
    world.until("connected", |world| world.node.status().agent_connected);
    assert_eq!(world.node.status().target, TargetStatus::Idle);
    world.target.unreachable = false;
    world.settle();
    assert_eq!(world.agent.resets, 0);
}

/// What is spooled cannot say it, and an agent that begins needs to know whether to compare.
#[test]
fn at_the_beginning_an_agent_is_told_whether_the_disks_at_home_held_something() {
    let mut world = World::new(23);
    world.target.adopted = true;
    world.until("welcomed", |world| world.agent.adopted == Some(true));
    let disk = (*world.storage()).clone();
    world.target.unreachable = true;
    world.restart(disk);
    world.until("refused", |world| world.agent.refused == Some(Refusal::Unavailable));
    (world.target.unreachable, world.agent.adopted) = (false, None);
    world.until("welcomed again", |world| world.agent.adopted == Some(true));
    // Its word holds while the process server lives.
    world.target.unreachable = true;
    world.hang_up_target();
    world.agent.adopted = None;
    world.dial_as_agent();
    world.until("welcomed without it", |world| world.agent.adopted == Some(true));
    world.target.unreachable = false;
    world.write_some(3);
    world.settle();
}

#[test]
fn when_the_target_refuses_a_known_stream_its_agent_is_refused_until_it_does_not() {
    let mut world = running(10);
    world.settle();
    world.target.refuses = Some(Refusal::Restored);
    world.hang_up_target();
    world.write_some(3);
    world.until("refused", |world| world.agent.refused == Some(Refusal::Restored));
    world.agent.refused = None;
    world.until("refused again", |world| world.agent.refused == Some(Refusal::Restored));
    assert_eq!(world.node.status().target, TargetStatus::Refused);
    world.target.refuses = None;
    world.settle();
    assert_eq!(world.agent.resets, 0);
}

#[test]
fn strangers_and_changed_disks_are_refused_and_disturb_nobody() {
    let mut world = running(11);
    world.settle();
    let mut stranger = World::new(12);
    stranger.agent.name = "db-agent".into();
    for (name, bytes, why) in
        [("db-agent", 1 << 30, Refusal::NotYours), ("web-agent", 2 << 30, Refusal::BadRequest)]
    {
        let mut stream = info();
        stream.disks[0].bytes = bytes;
        let description = crate::spool::Description { agent: name.into(), stream };
        let link = engine::session::Link::new(Some(STREAM), world.now);
        let conn = ConnectionId(77);
        world.node.handle_agent_connected(conn, crate::greeting::Hello { description, link }, world.now);
        let Some(Output::ToAgent(to, bytes)) = world.node.poll_output() else { panic!("no answer") };
        let answer = Control::from_frame(&engine::frame::Frame::parse(bytes).unwrap()).unwrap();
        assert!(matches!(answer, Control::Refused { why: found, .. } if found == why), "{answer:?}");
        assert!(to == conn && matches!(world.node.poll_output(), Some(Output::CloseAgent(to)) if to == conn));
        assert!(world.node.status().agent_connected);
    }
    assert_eq!(world.node.counts().refused, 2);
    // How much of a disk is in use may change.
    world.agent.info.disks[0].used_bytes = 5;
    world.dial_as_agent();
    world.write_some(10);
    world.settle();
    assert_eq!(world.agent.refused, None);
}

#[test]
fn the_owner_outlives_a_restart() {
    let mut world = running(13);
    world.settle();
    let disk = (*world.storage()).clone();
    world.restart(disk);
    world.agent.name = "db-agent".into();
    world.until("refused", |world| world.agent.refused == Some(Refusal::NotYours));
}

#[test]
fn a_newer_connection_replaces_the_older() {
    let mut world = running(14);
    for _ in 0..20 {
        world.tick(3000);
        world.dial_as_agent();
    }
    world.settle();
    assert_eq!(world.agent.resets, 0);
}

#[test]
fn a_full_spool_makes_the_agent_wait_once_and_then_go_on() {
    let mut world = running(15);
    world.settle();
    world.target.stalled = true;
    world.agent.holds.clear();
    (0..200).for_each(|block| world.agent.write(block));
    world.until("told to wait", |world| !world.agent.holds.is_empty());
    for _ in 0..5000 {
        world.tick(20_000);
        assert!(world.node.status().spool_bytes.0 <= BOUNDS.per_stream);
        assert!(world.node.pending_bytes() <= engine::limits::WINDOW_BYTES);
    }
    let told = world.agent.holds.clone();
    assert!(matches!(&told[..], [Some(reason)] if reason.contains("is full")), "{told:?}");
    assert_eq!(world.node.counts().holds, 1);
    world.target.stalled = false;
    world.settle();
    assert_eq!(world.agent.holds.len() % 2, 0, "each wait has its end: {:?}", world.agent.holds);
    assert_eq!(world.agent.holds.last(), Some(&None));
    assert_eq!(world.agent.resets, 0);
}

#[test]
fn the_targets_wait_is_passed_on() {
    let mut world = World::new(16);
    world.target.hold = Some("its disk is full".into());
    world.write_some(3);
    world.until("told", |world| !world.agent.holds.is_empty());
    assert!(world.agent.holds[0].as_ref().unwrap().contains("its disk is full"));
    world.target.hold = None;
    world.hang_up_target();
    world.settle();
    assert_eq!(world.agent.holds.last(), Some(&None));
}

fn question(number: u64) -> Control {
    let first = number * engine::limits::SPAN_LEAVES;
    let span = Span::of(DiskIndex(0), [first]).unwrap();
    Control::Compare(Compare { span, digest: Digest::of(&number.to_le_bytes()) })
}

fn answer(question: &Control, position: Seq) -> Control {
    let Control::Compare(Compare { span, digest }) = *question else { panic!("{question:?}") };
    Control::Compared(Compared { span, position, digest, digests: Vec::new() })
}

#[test]
fn questions_and_answers_of_a_resync_pass() {
    let mut world = running(21);
    world.settle();
    let asked: Vec<Control> = (0..5).map(question).collect();
    world.agent.questions = asked.clone();
    world.until("all are asked", |world| world.target.questions.len() == 5);
    assert_eq!(std::mem::take(&mut world.target.questions), asked);
    let answers: Vec<Control> = asked.iter().map(|asked| answer(asked, world.target.position.seq)).collect();
    answers.iter().for_each(|answer| world.target.say(answer, &mut world.wires[3]));
    world.until("all are answered", |world| world.agent.answers.len() == 5);
    assert_eq!(std::mem::take(&mut world.agent.answers), answers);

    // What is asked while the master target is away is asked when it is back; without the agent an answer is dropped.
    world.target.unreachable = true;
    world.hang_up_target();
    world.agent.questions = asked.clone();
    (0..50).for_each(|_| world.tick(20_000));
    world.target.unreachable = false;
    world.write_some(5);
    world.settle();
    assert_eq!(std::mem::take(&mut world.target.questions), asked);
    // It goes without having answered: what it was asked, it is asked again.
    world.hang_up_target();
    world.until("all are asked again", |world| world.target.questions.len() == 5);
    assert_eq!(world.target.questions, asked);
    world.hang_up_agent();
    answers.iter().for_each(|answer| world.target.say(answer, &mut world.wires[3]));
    world.deliver(3, usize::MAX);
    world.write_some(5);
    world.settle();
    assert_eq!((&world.agent.answers[..], world.agent.resets), (&[][..], 0));
}

#[test]
fn no_more_questions_are_passed_on_than_may_be_unanswered() {
    let mut world = running(22);
    world.settle();
    let most = engine::limits::QUESTIONS;
    world.agent.questions = (0..2 * most as u64).map(question).collect();
    world.until("some are asked", |world| world.target.questions.len() == most);
    (0..50).for_each(|_| world.tick(20_000));
    assert_eq!(world.target.questions.len(), most);
    // Each answer makes room for one.
    let answered = answer(&world.target.questions[0], world.target.position.seq);
    world.target.say(&answered, &mut world.wires[3]);
    world.until("it is answered", |world| world.agent.answers.len() == 1);
    world.agent.questions = (0..2).map(question).collect();
    (0..50).for_each(|_| world.tick(20_000));
    assert_eq!(world.target.questions.len(), most + 1);
    world.write_some(5);
    world.settle();
    assert_eq!(world.agent.resets, 0);
}

#[test]
fn a_failing_disk_makes_the_agent_wait_and_loses_nothing() {
    for op in [SimOp::Write, SimOp::Sync, SimOp::SyncDir, SimOp::Create, SimOp::Remove, SimOp::Read] {
        for fault in [Fault::Io, Fault::NoSpace] {
            for nth in 1..6 {
                let mut world = running(17);
                world.storage().fail(op, nth, fault);
                world.settle();
                (0..200).for_each(|block| world.agent.write(block));
                world.settle();
                let what = format!("{op:?} {nth} {fault:?}: {:?}", world.node.status());
                assert!(world.agent.resets == 0, "{what}");
                assert!(world.node.status().hold.is_none(), "{what}");
            }
        }
    }
}

#[test]
fn damage_in_the_spool_is_not_forwarded_and_what_it_held_comes_again() {
    for offset in (80..20_000).step_by(997) {
        let mut world = running(18);
        world.settle();
        world.target.unreachable = true;
        world.hang_up_target();
        (0..40).for_each(|block| world.agent.write(block));
        let end = world.target.position.seq.0 + 14;
        world.until("spooled", |world| world.agent.spooled.0 >= end);
        let storage = world.storage();
        let folder = PathBuf::from(STREAM.to_string());
        let names = storage.list(&folder).unwrap();
        let last = names.iter().rfind(|name| name.ends_with(".seg")).unwrap();
        let _ = storage.flip_bits(&folder.join(last), offset, 8);
        world.target.unreachable = false;
        // The fake target panics at anything that was not sealed.
        world.settle();
    }
}

#[test]
fn silent_neighbours_are_given_up() {
    let mut world = running(19);
    world.settle();
    assert!(world.node.status().agent_connected);
    // Neither fake ever pings.
    let start = world.now;
    world.until("agent given up", |world| world.node.counts().agent_errors > 0);
    world.until("target given up", |world| world.node.counts().target_errors > 0);
    assert!(world.now - start < engine::limits::IDLE + Duration::from_secs(1));
    world.write_some(5);
    world.settle();
}

#[test]
fn a_stream_that_nobody_needs_is_let_go_and_comes_back() {
    let mut world = running(20);
    world.settle();
    world.hang_up_agent();
    world.node.commit(world.now);
    let mut now = world.now;
    while !world.node.is_finished() {
        let at = world.node.poll_timeout().expect("it waits for something");
        assert!(at <= world.now + 2 * limits::LINGER);
        now = now.max(at);
        world.node.handle_timeout(now);
        world.node.commit(now);
        while let Some(output) = world.node.poll_output() {
            assert!(!matches!(output, Output::DialTarget(_) | Output::ToAgent(..)), "{output:?}");
        }
    }
    assert!(world.node.status().spool_bytes.0 < 100, "only a segment's header is left");
    world.now = now;
    let disk = (*world.storage()).clone();
    world.restart(disk);
    world.write_some(5);
    world.settle();
    assert_eq!(world.agent.resets, 0);
}

/// Everything at once, from a seed: cuts, kills, power cuts, lost spools, full disks, stalls, damage.
#[test]
fn whatever_happens_nothing_is_lost() {
    for seed in 0..150 {
        let mut world = World::new(1000 + seed);
        for _ in 0..400 {
            match world.random(100) {
                0..30 => {
                    let count = world.random(6);
                    world.write_some(count);
                }
                30..34 => world.hang_up_agent(),
                34..38 => world.hang_up_target(),
                38 => {
                    let disk = (*world.storage()).clone();
                    world.restart(disk);
                }
                39 => {
                    let storage = world.storage();
                    let luck = world.random(1 << 30);
                    world.restart(storage.power_cut(storage.log_len(), luck));
                }
                40 => {
                    let lost =
                        if world.random(4) == 0 { SimStorage::new() } else { (*world.storage()).clone() };
                    world.restart(lost);
                }
                41 => world.target.stalled ^= true,
                42 => world.target.unreachable ^= true,
                43 => {
                    let op = [SimOp::Write, SimOp::Sync, SimOp::SyncDir, SimOp::Create, SimOp::Read]
                        [world.random(5) as usize];
                    let nth = 1 + world.random(9);
                    world.storage().fail(op, nth, Fault::Io);
                }
                44 => {
                    let quota = 40_000 + world.random(60_000);
                    let storage = world.storage();
                    storage.set_quota(Some(quota));
                }
                45..48 => world.storage().set_quota(None),
                _ => {}
            }
            for _ in 0..world.random(8) {
                world.tick(9000);
            }
        }
        (world.target.stalled, world.target.unreachable) = (false, false);
        world.storage().set_quota(None);
        world.settle();
    }
}
