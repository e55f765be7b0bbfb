//! Common points for which applications hold.

use engine::point::{Consistency, Point, Stage};

use crate::five::{Five, MEMBERS, TEST, Tally, vm};

pub(crate) fn hold_or_the_label_says_it(five: &Five) {
    let mut tally = Tally::default();
    let kinds = |points: &[Point]| points.iter().map(|point| point.consistency).collect::<Vec<_>>();
    let point = five.point(true, &mut tally);
    let sealed = five.sealed(&point);
    assert_eq!(kinds(&sealed), [Consistency::ApplicationConsistent; MEMBERS], "{sealed:?}");
    let held = sealed.iter().filter_map(|point| point.application.as_ref());
    println!("{TEST}: applications held for {:?} us", held.map(|held| held.hold_us).collect::<Vec<_>>());

    // The instant is common all the same, and each VM's label is its own.
    five.let_hook(3, false);
    let without = five.point(true, &mut tally);
    five.let_hook(3, true);
    let sealed = five.sealed(&without);
    for (member, point) in sealed.iter().enumerate() {
        let failed = point.application.as_ref().unwrap().failed.as_ref();
        match failed {
            Some(failed) => {
                assert_eq!((member, failed.stage), (3, Stage::Pre), "{point:?}");
                assert_eq!(point.consistency, Consistency::CrashConsistent);
            }
            None => {
                assert_eq!(point.consistency, Consistency::ApplicationConsistent);
                assert_ne!(member, 3, "{}: its hook failed", vm(3));
            }
        }
    }
    five.check(&[point, without]);
}
