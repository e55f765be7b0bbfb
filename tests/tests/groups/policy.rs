//! With one member down, and with one that is there and does nothing, the policy decides, and the label says it.

use std::time::Instant;

use engine::service::shutdown::Shutdown;
use homeward::lab::let_pass;
use rustix::process::{Pid, Signal, kill_process};

use crate::five::{Five, MEMBERS, PATIENCE, TEST, Tally, vm};

const AWAY: usize = 2;

fn others() -> Vec<usize> {
    (0..MEMBERS).filter(|member| *member != AWAY).collect()
}

/// One that is slow may be missing as well while the policy allows it: a busy machine gets more tries.
fn makes_one_of_all(five: &Five) {
    let is_of_all = |_| five.point(false, &mut Tally::default()).mark.missing.is_empty();
    assert!((0..20).any(is_of_all), "one that is back is missing for good");
}

/// Its agent does not run.
pub(crate) fn decides_without_one(five: &Five) {
    let agent = five.lab.agent(&vm(AWAY)).unwrap();
    agent.stop().unwrap();
    five.wait_for(&others());
    let refused = five.ask(false).unwrap().unwrap_err();
    assert!(refused.contains(&format!("{}: its agent is not connected", vm(AWAY))), "{refused}");

    five.partial("allow");
    five.wait_for(&others());
    makes_one_of_the_others(five);
    agent.start().unwrap();
    five.wait_until_well();
    makes_one_of_all(five);
}

/// Its agent is connected, and stopped in the middle of whatever it is doing.
pub(crate) fn decides_with_one_that_is_stuck(five: &Five) {
    let agent = five.lab.agent(&vm(AWAY)).unwrap();
    let pid = Pid::from_raw(agent.pid().unwrap() as i32).unwrap();
    let signal = |signal| kill_process(pid, signal).unwrap();
    five.partial("allow");
    five.wait_until_well();
    signal(Signal::STOP);
    let began = Instant::now();
    makes_one_of_the_others(five);
    println!("{TEST}: with one that is stuck, a point took {:.1} s", began.elapsed().as_secs_f64());
    signal(Signal::CONT);
    five.wait_until_well();
    makes_one_of_all(five);

    five.partial("refuse");
    five.wait_until_well();
    signal(Signal::STOP);
    let refused = five.ask(false).unwrap().unwrap_err();
    let too_slow = format!("{}: it took longer than {} ms", vm(AWAY), PATIENCE.as_millis());
    assert!(refused.contains(&too_slow), "{refused}");
    signal(Signal::CONT);
    five.wait_until_well();

    // While it is frozen, perhaps: then it is not it that thaws.
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| five.ask(false).unwrap());
            let_pass(&Shutdown::manual(), std::time::Duration::from_millis(200)).unwrap();
            signal(Signal::STOP);
            let _ = asking.join().unwrap();
            signal(Signal::CONT);
        });
    }
    five.wait_until_well();
}

/// Others that are slow may be missing as well; what is made says so, each time.
fn makes_one_of_the_others(five: &Five) {
    let is_of_the_others = |_| point_without_one(five).as_slice() == [vm(AWAY)];
    assert!((0..20).any(is_of_the_others), "others are missing for good");
}

/// Makes a point, and returns who is missing.
fn point_without_one(five: &Five) -> Vec<String> {
    let point = five.point(false, &mut Tally::default());
    let missing = point.mark.missing.clone();
    assert!(missing.contains(&vm(AWAY)), "{missing:?}");
    for member in 0..MEMBERS {
        let sealed = five.of_barrier(member, point.mark.barrier);
        assert_eq!(sealed.is_none(), missing.contains(&vm(member)), "{member}");
        assert_eq!(point.mark.members.contains(&vm(member)), sealed.is_some(), "{member}");
        if let Some(sealed) = sealed {
            assert_eq!(sealed.group.as_deref(), Some(&point.mark), "the label says who is missing");
        }
    }
    five.check(&[point]);
    missing
}
