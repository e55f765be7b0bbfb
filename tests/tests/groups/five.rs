//! Five machines, each in a network of its own, that write what they have heard from each other; the services around
//! them; and what is asked of them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use engine::{
    point::{BarrierId, Point, PointId},
    service::{admin::AdminError, shutdown::Shutdown},
    units::BLOCK_BYTES,
};
use homeward::lab::{Lab, LabError, Look, LoopDevice, Mount, Options, Tracker, Vm, tool::Tool};
use homeward_tests::{
    gossip::{self, Gossip, Record},
    ground::{configure, logs, options},
    networks::{MIDDLE, Networks},
    settings,
    shelf::Shelf,
};
use process_server::{
    admin::Response,
    group::{GroupPoint, GroupPointState, GroupStatus},
};
use serde_json::json;

pub(crate) const TEST: &str = "groups";
pub(crate) const GROUP: &str = "five";
pub(crate) const MEMBERS: usize = 5;

const DISK: u64 = 24 << 20;

/// How long a member may be stuck before it counts as missing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Tries after which a common point is wanted, on a machine however busy: freezing takes longer when much else runs.
const TRIES: usize = 100;

const WAIT: Duration = Duration::from_secs(120);

pub(crate) fn vm(member: usize) -> String {
    format!("member-{member}")
}

/// All of it. Dropped in this order.
pub(crate) struct Five {
    pub(crate) lab: Lab,
    gossip: Gossip,
    _mounts: Vec<Mount>,
    _devices: Vec<LoopDevice>,
    _networks: Networks,
    dir: tempfile::TempDir,
}

impl Five {
    /// Starts all of it, and waits until everything was sent once.
    pub(crate) fn start() -> Self {
        let mut rng = settings::rng(TEST);
        let networks = Networks::create(MEMBERS as u8).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let disks = disks_in_memory(dir.path());
        let (mut devices, mut mounts, mut vms) = (Vec::new(), Vec::new(), Vec::new());
        for member in 0..MEMBERS {
            let device = LoopDevice::create(&disks.join(vm(member)), DISK).unwrap();
            // On a disk so small it would have smaller blocks, and records anywhere.
            let blocks = BLOCK_BYTES.to_string();
            let make = Tool::new("mke2fs").args(["-q", "-t", "ext4", "-b", &blocks]).arg(device.path());
            make.run().unwrap();
            mounts.push(Mount::new(device.path(), &dir.path().join(vm(member)), "").unwrap());
            vms.push(Vm {
                disks: vec![device.path().into()],
                network: Some(networks.around(member)),
                hooks: Some(vec![hook(dir.path(), member)]),
                ..Vm::new(&vm(member), Tracker::Ebpf)
            });
            devices.push(device);
        }
        let network = Some(networks.middle());
        let lab = Lab::new(dir.path(), Options { vms, network, ..options(&Shutdown::manual()) }).unwrap();
        meet_in_the_middle(&lab);
        set_partial(&lab, "refuse");
        lab.start().unwrap();
        let folders: Vec<&Path> = mounts.iter().map(Mount::point).collect();
        let gossip = Gossip::start(&folders, &mut rng).unwrap();
        let five = Self { lab, gossip, _mounts: mounts, _devices: devices, _networks: networks, dir };
        for member in 0..MEMBERS {
            five.wait("everything was sent once", || {
                let status = five.lab.agent_status(&vm(member))?;
                let over = status.copy.is_none() && status.totals.points > 0;
                Ok(if over { Look::Done(()) } else { Look::NotYet(status.describe()) })
            });
        }
        five
    }

    /// What the machines wrote so far.
    pub(crate) fn writes(&self) -> u64 {
        self.gossip.counts().iter().sum()
    }

    /// Everything else of the test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// From now on, with a member missing.
    pub(crate) fn partial(&self, partial: &str) {
        set_partial(&self.lab, partial);
        self.lab.process_server().restart().unwrap();
    }

    /// Whether the hook of a member does what it should.
    pub(crate) fn let_hook(&self, member: usize, succeed: bool) {
        let flag = flag(self.dir.path(), member);
        if succeed { fs::remove_file(flag) } else { fs::write(flag, "") }.unwrap();
    }

    /// Waits until exactly these members are connected.
    pub(crate) fn wait_for(&self, wanted: &[usize]) {
        self.wait("the process server notices who is connected", || {
            let members = self.status()?.members;
            let is = |member: usize| members.iter().any(|known| known.vm == vm(member) && known.connected);
            let there: Vec<usize> = (0..MEMBERS).filter(|member| is(*member)).collect();
            Ok(if there == wanted { Look::Done(()) } else { Look::NotYet(format!("{there:?} are")) })
        });
    }

    /// Waits until all members are there and go on, whatever happened to them.
    pub(crate) fn wait_until_well(&self) {
        self.wait_for(&(0..MEMBERS).collect::<Vec<_>>());
        let before = self.gossip.counts();
        self.wait("all machines go on", || {
            let counts = self.gossip.counts();
            let on = before.iter().zip(&counts).all(|(before, now)| now > before);
            Ok(if on { Look::Done(()) } else { Look::NotYet(format!("{counts:?} after {before:?}")) })
        });
    }

    fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Look<T>, LabError>) -> T {
        let waited = self.lab.wait(what, WAIT, look);
        waited.unwrap_or_else(|error| panic!("{error}\n{}", logs(&self.lab)))
    }

    /// How the group stands.
    pub(crate) fn status(&self) -> Result<GroupStatus, LabError> {
        match self.lab.process_server().ask(json!({ "ask": "status" }))? {
            Response::Status(status) => Ok(status.groups.into_iter().next().expect("there is one group")),
            other => panic!("{other:?}"),
        }
    }

    /// A common point; why not, if the group has none.
    ///
    /// # Errors
    /// If the process server dies.
    pub(crate) fn ask(&self, application: bool) -> Result<Result<GroupPoint, String>, LabError> {
        let asked = json!({ "ask": "point", "group": GROUP, "application": application, "wait": true });
        match self.lab.process_server().ask(asked) {
            Ok(Response::Durable(point)) => {
                assert_eq!(point.state, GroupPointState::Durable);
                Ok(Ok(point))
            }
            Err(LabError::Admin { source: AdminError::Failed(failure), .. }) => Ok(Err(failure.message)),
            Ok(other) => panic!("{other:?}\n{}", logs(&self.lab)),
            Err(error) => Err(error),
        }
    }

    /// A common point. That there is none when the machine is very busy, and that is said, is no broken promise.
    pub(crate) fn point(&self, application: bool, tally: &mut Tally) -> GroupPoint {
        let began = Instant::now();
        for _ in 0..TRIES {
            match self.ask(application).unwrap_or_else(|error| panic!("{error}\n{}", logs(&self.lab))) {
                Ok(point) => {
                    tally.took_us.push(began.elapsed().as_micros() as u64);
                    return point;
                }
                Err(reason) => {
                    println!("{TEST}: {reason}");
                    tally.failures += 1;
                }
            }
        }
        panic!("no common point in {TRIES} tries\n{}", logs(&self.lab));
    }

    /// A member's points at the master target.
    pub(crate) fn points_of(&self, member: usize) -> HashMap<PointId, Point> {
        let points = self.lab.points(&vm(member)).unwrap();
        points.into_iter().map(|sealed| (sealed.point.id, sealed.point)).collect()
    }

    /// The members' points of a common point, of which nobody is missing.
    pub(crate) fn sealed(&self, point: &GroupPoint) -> Vec<Point> {
        let of = |member| self.points_of(member).remove(&point.points[&vm(member)]).expect("it is durable");
        (0..MEMBERS).map(of).collect()
    }

    /// A member's point of a barrier.
    pub(crate) fn of_barrier(&self, member: usize, barrier: BarrierId) -> Option<Point> {
        let is_of = |point: &Point| point.group.as_ref().is_some_and(|mark| mark.barrier == barrier);
        self.points_of(member).into_values().find(is_of)
    }

    /// What the disks of all members hold at each of these points, one for each member. The master target does not run
    /// meanwhile.
    pub(crate) fn records(&self, points: &[Vec<Option<PointId>>]) -> Vec<Vec<Option<Record>>> {
        self.lab.master_target().stop().unwrap();
        let mut records = vec![vec![None; MEMBERS]; points.len()];
        for member in 0..MEMBERS {
            let index = points.iter().enumerate().filter_map(|(index, of)| Some((of[member]?, index)));
            let index: HashMap<PointId, usize> = index.collect();
            let wanted: HashSet<PointId> = index.keys().copied().collect();
            let looked = Shelf::open(self.lab.master_target(), &vm(member)).look(wanted, |point, image| {
                let record = gossip::newest_on(&image[0], member)
                    .map_err(|error| format!("{}, point {point}: {error}", vm(member)))?;
                records[index[&point]][member] = Some(record);
                Ok(())
            });
            looked.unwrap_or_else(|error| panic!("{error}"));
        }
        self.lab.master_target().start().unwrap();
        records
    }

    /// On none of the points an effect is without its cause. Each must be of all that it says.
    pub(crate) fn check(&self, points: &[GroupPoint]) {
        let ids = |point: &GroupPoint| -> Vec<_> {
            assert!(point.points.keys().eq(&point.mark.members), "{point:?}");
            (0..MEMBERS).map(|member| point.points.get(&vm(member)).copied()).collect()
        };
        let records = self.records(&points.iter().map(ids).collect::<Vec<_>>());
        for (point, newest) in points.iter().zip(&records) {
            assert_eq!(newest.iter().flatten().count(), point.mark.members.len());
            gossip::check(newest).unwrap_or_else(|error| panic!("{}: {error}", point.mark.barrier));
        }
    }

    /// Ends the machines' work.
    pub(crate) fn stop(self) {
        self.gossip.stop().unwrap();
    }
}

/// A folder for disks that are as fast as memory: each machine has a disk of its own, and not a fifth of one that
/// others use as well. It ends with the mount namespace.
fn disks_in_memory(dir: &Path) -> PathBuf {
    let disks = dir.join("disks");
    fs::create_dir(&disks).unwrap();
    Tool::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&disks).run().unwrap();
    disks
}

/// The process server listens where all of them can reach it.
fn meet_in_the_middle(lab: &Lab) {
    let moved = |address: &toml::Value| {
        let (_, port) = address.as_str().unwrap().rsplit_once(':').unwrap();
        toml::Value::from(format!("{MIDDLE}:{port}"))
    };
    configure(lab.process_server(), |table| table["listen"] = moved(&table["listen"]));
    for member in 0..MEMBERS {
        let agent = lab.agent(&vm(member)).unwrap();
        configure(agent, |table| table["process_server"] = moved(&table["process_server"]));
    }
}

fn set_partial(lab: &Lab, partial: &str) {
    let vms: Vec<_> = (0..MEMBERS).map(vm).collect();
    let patience = format!("{}s", PATIENCE.as_secs());
    let group = toml::toml! {
        name = GROUP
        vms = vms
        partial = partial
        patience = patience
    };
    configure(lab.process_server(), |table| {
        table.insert("group".into(), vec![group.clone()].into());
    });
}

/// A hook that succeeds, unless [`Five::let_hook`] says something else.
fn hook(dir: &Path, member: usize) -> PathBuf {
    let path = dir.join(format!("hook-{member}"));
    fs::write(&path, format!("#!/bin/sh\n[ ! -e '{}' ]\n", flag(dir, member).display())).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn flag(dir: &Path, member: usize) -> PathBuf {
    dir.join(format!("hook-{member}-fails"))
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) points: usize,
    pub(crate) failures: usize,
    pub(crate) took_us: Vec<u64>,
    pub(crate) frozen_us: Vec<u64>,
    pub(crate) skew_us: Vec<u64>,
}

impl Tally {
    pub(crate) fn print(&mut self) {
        let of = |values: &mut Vec<u64>| {
            values.sort_unstable();
            let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
            format!("median {:.1}, p99 {:.1}, most {:.1} ms", at(0.5), at(0.99), at(1.0))
        };
        println!("{TEST}: {} common points, {} times none", self.points, self.failures);
        println!("{TEST}: frozen {}", of(&mut self.frozen_us));
        println!("{TEST}: skew {}", of(&mut self.skew_us));
        println!("{TEST}: from the wish until durable {}", of(&mut self.took_us));
    }
}
