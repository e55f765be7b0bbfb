//! The Prometheus metrics of a process server.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::node::{Counts, StreamStatus, TargetStatus};

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// Handles to the metrics; cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    spool_bytes: Gauge,
    spool_limit_bytes: Gauge,
    stream_spool_bytes: Gauges,
    behind_frames: Gauges,
    agent_connected: Gauges,
    target_connected: Gauges,
    held: Gauges,
    refused: Counters,
    wire_bytes_in: Counters,
    wire_bytes_out: Counters,
    logical_bytes_in: Counters,
    frames_in: Counters,
    frames_out: Counters,
    holds: Counters,
    discards: Counters,
    losses: Counters,
    errors: Counters,
}

impl Metrics {
    /// Registers all of them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register("spool_bytes", "Bytes of spool files", m.spool_bytes);
        registry.register("spool_limit_bytes", "Bytes that the spool may take", m.spool_limit_bytes);
        registry.register("stream_spool_bytes", "Bytes of a VM's spool files", m.stream_spool_bytes);
        registry.register(
            "behind_frames",
            "Frames in the spool that are not durable at home",
            m.behind_frames,
        );
        registry.register("agent_connected", "Whether the VM's agent is connected", m.agent_connected);
        registry.register("target_connected", "Whether its master target is connected", m.target_connected);
        registry.register("held", "Whether the agent is told to wait", m.held);
        registry.register("refused_connections", "Connections and streams refused, by reason", m.refused);
        registry.register("wire_bytes_in", "Frame bytes received and safe", m.wire_bytes_in);
        registry.register("wire_bytes_out", "Frame bytes sent to the master target", m.wire_bytes_out);
        registry.register("logical_bytes_in", "Content of frames received, uncompressed", m.logical_bytes_in);
        registry.register("frames_in", "Frames received and safe", m.frames_in);
        registry.register("frames_out", "Frames sent to the master target", m.frames_out);
        registry.register("holds", "Times an agent was told to wait", m.holds);
        registry.register("spool_discards", "Spools discarded for the master target's position", m.discards);
        registry.register("spool_losses", "Damaged or torn places found in spool files", m.losses);
        registry.register("errors", "Errors, by where they happened", m.errors);
        metrics
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    pub(crate) fn spool(&self, used: u64, limit: u64) {
        self.spool_bytes.set(used as i64);
        self.spool_limit_bytes.set(limit as i64);
    }
}

/// One stream's metrics: turns what its node has counted into increments.
pub(crate) struct StreamMetrics {
    metrics: Metrics,
    told: Counts,
}

impl StreamMetrics {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, told: Counts::default() }
    }

    pub(crate) fn update(&mut self, status: &StreamStatus) {
        // An agent that is refused at its first word leaves no VM behind.
        let refused = status.counts.refused;
        let reason = vec![("reason", "stream".to_owned())];
        self.metrics.refused.get_or_create(&reason).inc_by(refused - self.told.refused);
        self.told.refused = refused;
        let Some(vm) = &status.vm else { return };
        let vm = vec![("vm", vm.clone())];
        let (m, old, new) = (&self.metrics, self.told, status.counts);
        let connected = status.target == TargetStatus::Connected;
        m.stream_spool_bytes.get_or_create(&vm).set(status.spool_bytes.0 as i64);
        m.behind_frames.get_or_create(&vm).set((status.spooled.0 - status.durable.0) as i64);
        m.agent_connected.get_or_create(&vm).set(status.agent_connected.into());
        m.target_connected.get_or_create(&vm).set(connected.into());
        m.held.get_or_create(&vm).set(status.hold.is_some().into());
        for (counters, old, new) in [
            (&m.wire_bytes_in, old.wire_bytes_in, new.wire_bytes_in),
            (&m.wire_bytes_out, old.wire_bytes_out, new.wire_bytes_out),
            (&m.logical_bytes_in, old.logical_bytes_in, new.logical_bytes_in),
            (&m.frames_in, old.frames_in, new.frames_in),
            (&m.frames_out, old.frames_out, new.frames_out),
            (&m.holds, old.holds, new.holds),
            (&m.discards, old.discards, new.discards),
            (&m.losses, old.spool_losses, new.spool_losses),
        ] {
            counters.get_or_create(&vm).inc_by(new - old);
        }
        for (place, old, new) in [
            ("agent", old.agent_errors, new.agent_errors),
            ("target", old.target_errors, new.target_errors),
            ("spool", old.spool_errors, new.spool_errors),
        ] {
            let labels = [&vm[..], &[("where", place.to_owned())]].concat();
            m.errors.get_or_create(&labels).inc_by(new - old);
        }
        self.told = new;
    }
}
