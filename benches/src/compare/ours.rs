//! Homeward: an agent at one end of the link, process server and master target at the other, with TLS.
//!
//! The link is the hop from the agent to the process server. The other hop is within a network namespace.

use std::path::Path;

use anyhow::Context;
use engine::service::quantity::Size;
use homeward::lab::{Lab, Options, SealedPoint, Service, Vm, build_services, image, is_release, tool::Tool};
use jiff::Timestamp;

use super::{
    Place,
    link::Link,
    meter::{Meter, Usage},
    relay::{Delay, Relay},
    report::Run,
    work::forget_cached,
};

/// The VM.
pub const VM: &str = "bench";

/// The port that the relay listens on, and that of the process server.
const RELAY_PORT: u16 = 10_100;
const PORT: u16 = 10_101;

/// How Homeward is set up.
#[derive(Clone, Copy)]
pub(super) struct Setup<'a> {
    /// Between the agent and the other two.
    pub link: &'a Link,
    /// On the way from the agent, too.
    pub delay: Option<Delay>,
    /// The disk.
    pub disk: &'a Path,
    /// A folder of its own.
    pub dir: &'a Path,
}

/// The services.
pub(super) struct Ours<'a> {
    /// They.
    pub lab: Lab,
    place: &'a Place<'a>,
    setup: Setup<'a>,
    _relay: Option<Relay>,
}

/// What something took.
pub(super) struct Taken {
    meter: Meter,
    wire_before: u64,
}

impl<'a> Ours<'a> {
    /// Starts process server and master target.
    pub fn start(
        place: &'a Place<'a>,
        setup: Setup<'a>,
        change: impl FnOnce(&mut Vm),
    ) -> anyhow::Result<Self> {
        let Setup { link, delay, disk, dir } = setup;
        let network = Some(link.near.network());
        let mut vm = Vm { disks: vec![disk.to_owned()], network, ..Vm::new(VM, place.tracker) };
        change(&mut vm);
        let options = Options {
            vms: vec![vm],
            spool: Size(1 << 30),
            network: Some(link.far.network()),
            stop: place.stop.clone(),
            ..Options::new(build_services(is_release())?)
        };
        let lab = Lab::new(dir, options)?;
        let (listens, relayed) = (link.far.port(PORT), link.far.port(RELAY_PORT));
        let dialled = if delay.is_some() { relayed } else { listens };
        for (service, key, address) in
            [(lab.process_server(), "listen", listens), (lab.agent(VM)?, "process_server", dialled)]
        {
            service.configure(|table| drop(table.insert(key.into(), address.to_string().into())))?;
        }
        lab.master_target().start()?;
        lab.process_server().start()?;
        let relay = delay.map(|delay| Relay::start(&link.far.network(), relayed, listens, delay)).transpose();
        let relay = relay.context("cannot start the relay")?;
        Ok(Self { lab, place, setup, _relay: relay })
    }

    /// Starts the agent and measures what it takes until there is a point of what the disk holds.
    pub fn run(&self, tool: &str, round: u32, expected: &Path) -> anyhow::Result<Run> {
        forget_cached()?;
        let (taken, began) = (self.measure()?, Timestamp::now());
        let point = self.start_agent(Some(&taken))?;
        let (wire_bytes, usage) = taken.end(self)?;
        let seconds = point.sealed_at.duration_since(began).as_secs_f64();
        Ok(Run::new(tool, round, seconds, wire_bytes, usage, self.is_equal(expected)?))
    }

    /// Starts the agent; the point of what the disk holds then, when it can be restored.
    pub fn start_agent(&self, taken: Option<&Taken>) -> anyhow::Result<SealedPoint> {
        let agent = self.lab.agent(VM)?;
        agent.start()?;
        if let (Some(taken), Some(pid)) = (taken, agent.pid()) {
            taken.meter.add(pid);
        }
        let made = self.lab.point_now(VM)?.id;
        let found = self.lab.points(VM)?.into_iter().find(|sealed| sealed.point.id == made);
        found.context("the master target does not know the point that the agent made")
    }

    /// Stops the agent, and drops what the kernel knows of the disk's writes, as a reboot does.
    pub fn lose_tracking(&self) -> anyhow::Result<()> {
        let agent = self.lab.agent(VM)?;
        agent.stop()?;
        let program = agent.program().display().to_string();
        Tool::new(&program).arg("--config").arg(agent.config()).arg("untrack").run()?;
        Ok(())
    }

    /// Measures what the services that run take from now on.
    pub fn measure(&self) -> anyhow::Result<Taken> {
        let meter = Meter::start(self.lab.services().filter_map(Service::pid))?;
        Ok(Taken { meter, wire_before: self.setup.link.bytes()? })
    }

    /// Whether the disk at home is equal to an image, byte for byte.
    pub fn is_equal(&self, expected: &Path) -> anyhow::Result<bool> {
        let vmdk = self.lab.vmdks(VM)?.into_iter().next().context("the VM has no disk")?;
        Ok(image::first_difference(expected, &vmdk.flat, self.place.stop)?.is_none())
    }
}

impl Taken {
    /// Bytes on the link, and the rest.
    pub fn end(self, ours: &Ours) -> anyhow::Result<(u64, Usage)> {
        Ok((ours.setup.link.bytes()? - self.wire_before, self.meter.usage()))
    }
}
