//! Original-location recovery: the target holds the disk as it was before 16 % of it changed, and nobody tracked. Most of
//! what changed was copied from elsewhere on the disk.
//!
//! Ours is a resync: a full copy of the disk as it was, then tracking is lost while the disk changes. What the master
//! target has learnt of its disk by then is removed, so that it has to read all of it, as with a disk that it adopts.

use std::{fs, path::Path};

use homeward::lab::{LoopDevice, image};

use super::{
    Figures, Place, blocks,
    ground::Changed,
    install,
    link::Link,
    ours::{Ours, Setup},
    peers::{Job, Peer},
    report::{OURS, Run},
};

/// All rounds of both.
pub(super) fn run(place: &Place, notes: &mut Vec<String>) -> anyhow::Result<(Vec<Run>, Figures)> {
    if place.peers {
        install::ensure(Peer::Rsync.programs())?;
    }
    let changed = place.ground.changed(place.work, place.stop)?;
    let mut runs = ours(place, &changed)?;
    for round in (1..=place.rounds).filter(|_| place.peers) {
        runs.push(place.told(rsync(place, &changed, round)?));
    }
    notes.push(
        "ours is a resync after a full copy, with tracking and what the target knew of its disk dropped"
            .into(),
    );
    let about = &changed.about;
    let share = |bytes: u64| 100.0 * bytes as f64 / place.ground.about.bytes as f64;
    let figures = Figures::from([
        ("changed_percent_of_disk", share(about.changed_bytes)),
        ("copied_files_percent_of_disk", share(about.copied_bytes)),
        ("new_files_percent_of_disk", share(about.new_bytes)),
    ]);
    Ok((runs, figures))
}

fn rsync(place: &Place, changed: &Changed, round: u32) -> anyhow::Result<Run> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let device = LoopDevice::over(&changed.image)?;
    let target = dir.path().join("target.img");
    image::copy(&place.ground.image, &target, place.stop)?;
    let job = Job { link: &link, source: device.path(), target: &target, dir: dir.path(), stop: place.stop };
    Peer::Rsync.run(&job, round, &changed.image)
}

fn ours(place: &Place, changed: &Changed) -> anyhow::Result<Vec<Run>> {
    let (dir, link) = (place.work.run()?, Link::new(place.rate, place.stop)?);
    let disk = dir.path().join("disk.img");
    image::copy(&place.ground.image, &disk, place.stop)?;
    let device = LoopDevice::over(&disk)?;
    let differing = blocks::differing(&place.ground.image, &changed.image, place.stop)?;
    let make = |image: &Path| blocks::copy(&differing, image, device.path(), place.stop);
    let setup = Setup { link: &link, delay: None, disk: device.path(), dir: dir.path() };
    let ours = Ours::start(place, setup, |_| {})?;
    ours.start_agent(None)?;
    let mut runs = Vec::new();
    for round in 1..=place.rounds {
        ours.lose_tracking()?;
        if round > 1 {
            // Back to how it was.
            make(&place.ground.image)?;
            ours.start_agent(None)?;
            ours.lose_tracking()?;
        }
        make(&changed.image)?;
        forget_digests(&ours)?;
        runs.push(place.told(ours.run(OURS, round, &changed.image)?));
    }
    Ok(runs)
}

/// Removes the digests that the master target keeps beside its journal.
fn forget_digests(ours: &Ours) -> anyhow::Result<()> {
    ours.lab.master_target().stop()?;
    let journal = ours.lab.layout().dir("journal");
    for stream in fs::read_dir(journal)? {
        let stream = stream?.path();
        for file in if stream.is_dir() { fs::read_dir(stream)?.collect() } else { Vec::new() } {
            let file = file?.path();
            if file.file_name().is_some_and(|name| name.to_string_lossy().contains("digests")) {
                fs::remove_file(file)?;
            }
        }
    }
    ours.lab.master_target().start()?;
    Ok(())
}
