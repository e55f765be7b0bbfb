//! A protected VM: the agent as it is, set up from a configuration, with its node driven against a [`Sink`].

use std::{
    path::Path,
    time::{Duration, Instant},
};

use agent::{
    capture::level::Compression,
    config::{Config, Disk, TrackerChoice},
    node::{Node, Output, RESYNC_FROM, Settings, Step, Waiting},
    setup,
};
use engine::{
    frame::StreamInfo,
    net::TlsFiles,
    point::{Consistency, Point},
    service::{
        quantity::{Period, Size},
        shutdown::Shutdown,
    },
};
use homeward::lab;

use super::{
    probe::{Probe, Probed},
    sink::Sink,
};

/// A point takes longer only if something is wrong.
const POINT_WITHIN: Duration = Duration::from_secs(120);

/// A full copy, too.
const COPY_WITHIN: Duration = Duration::from_secs(600);

/// How long to wait at most before looking at signals.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A request for a point, and what became of it.
pub struct Asked {
    /// The point, or why there is none.
    pub made: anyhow::Result<Point>,
    /// From the request to the confirmation.
    pub took: Duration,
}

/// The agent of a VM with one disk.
pub struct Vm {
    config: Config,
    node: Node,
    sink: Sink,
    probe: Probe,
}

impl Vm {
    /// Begins to track the disk `device`; the agent's state goes to the folder `state`.
    pub fn start(device: &Path, state: &Path) -> anyhow::Result<Self> {
        let config = config(device, state);
        let prepared = setup::prepare(&config)?;
        let (mut parts, probe) = (prepared.parts, Probe::default());
        parts.source.tracker = probe.tracker(parts.source.tracker);
        anyhow::ensure!(parts.freezer.is_some(), "nothing can be frozen here; `--log warn` tells why");
        parts.freezer = parts.freezer.map(|freezer| probe.freezer(freezer));
        let sink = Sink::start(parts.source.disks[0].size())?;
        let StreamInfo { id, vm, disks } = prepared.stream;
        let settings = Settings {
            agent: vm.clone(),
            stream: StreamInfo { id, vm, disks },
            point_interval: config.point_interval.0,
            application_interval: None,
            verify_rate: config.verify_rate.0,
            resync_from: RESYNC_FROM,
        };
        Ok(Self { node: Node::new(settings, parts, Instant::now()), config, sink, probe })
    }

    /// Works until everything was sent once.
    pub fn copy(&mut self, stop: &Shutdown) -> anyhow::Result<()> {
        let until = Instant::now() + COPY_WITHIN;
        loop {
            self.work(LOOK_EVERY, stop)?;
            if self.node.status(Instant::now()).copy.is_none() {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < until,
                "the full copy took more than {} s",
                COPY_WITHIN.as_secs()
            );
        }
    }

    /// Replicates for `time`.
    pub fn work(&mut self, time: Duration, stop: &Shutdown) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            lab::check(stop)?;
            // The only request was answered.
            self.turn(until)?;
        }
        Ok(())
    }

    /// Asks for a point, and works until there is an answer.
    pub fn point(&mut self, stop: &Shutdown) -> anyhow::Result<Asked> {
        let began = Instant::now();
        self.node.handle_point_request(Consistency::CrashConsistent);
        while began.elapsed() < POINT_WITHIN {
            lab::check(stop)?;
            if let Some(answer) = self.turn(began + POINT_WITHIN)? {
                return Ok(Asked { made: answer.map_err(anyhow::Error::msg), took: began.elapsed() });
            }
        }
        anyhow::bail!("no point and no reason for it within {} s", POINT_WITHIN.as_secs())
    }

    /// What the stopwatches saw since the last call.
    pub fn probed(&self) -> Probed {
        self.probe.take()
    }

    /// Ends it; how many blocks at the sink differ from `device`.
    pub fn finish(self, device: &Path) -> anyhow::Result<usize> {
        drop(self.node);
        setup::forget(&self.config)?;
        self.sink.finish()?.different(device)
    }

    /// One piece of work, or a wait until there is some, at most until `until`.
    fn turn(&mut self, until: Instant) -> anyhow::Result<Option<Result<Point, String>>> {
        let now = Instant::now();
        self.node.handle_timeout(now);
        let waiting = match self.node.step(now) {
            Step::Worked => None,
            Step::Waits(waiting) => Some(waiting),
        };
        let answer = self.outputs()?;
        let received = match waiting {
            None => self.sink.inbox().try_recv().ok(),
            Some(waiting) => {
                let until = until.min(now + LOOK_EVERY);
                let until = if let Waiting::Until(moment) = waiting { until.min(moment) } else { until };
                self.sink.inbox().recv_deadline(until).ok()
            }
        };
        let more = received.into_iter().chain(self.sink.inbox().try_iter()).collect::<Vec<_>>();
        more.iter().for_each(|bytes| self.node.handle_bytes(bytes, Instant::now()));
        Ok(answer.or(self.outputs()?))
    }

    fn outputs(&mut self) -> anyhow::Result<Option<Result<Point, String>>> {
        let mut answer = None;
        while let Some(output) = self.node.poll_output(Instant::now()) {
            match output {
                Output::Dial => self.node.handle_connected(Instant::now()),
                Output::Send(bytes) => self.sink.send(bytes),
                Output::Close(reason) => anyhow::bail!("the agent closed its connection: {reason}"),
                Output::Answer(_, made) => answer = Some(made),
            }
        }
        Ok(answer)
    }
}

/// As an agent's defaults are, but for points: they are made when asked for.
fn config(device: &Path, state: &Path) -> Config {
    let unused = || state.join("unused");
    Config {
        vm: "bench".into(),
        disk: vec![Disk { name: "disk".into(), device: device.into() }],
        tracker: TrackerChoice::Ebpf,
        process_server: String::new(),
        state: state.into(),
        point_interval: Period(Duration::from_secs(3600)),
        application: None,
        verify_rate: Size(64 << 20),
        compression: Compression::Level(1),
        threads: None,
        admin: unused(),
        metrics: None,
        tls: TlsFiles { ca: unused(), cert: unused(), key: unused() },
    }
}
