//! The Prometheus metrics of a process server.

use std::collections::HashMap;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    group::{GroupCounts, GroupStatus},
    node::{Counts, StreamStatus, TargetStatus},
};

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
    group_points: Counters,
    group_partial_points: Counters,
    group_failures: Counters,
    group_retries: Counters,
    group_skew_microseconds: Gauges,
    group_missing: Gauges,
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
        registry.register("group_points", "Common points durable at every member", m.group_points);
        registry.register(
            "group_partial_points",
            "Common points made without some member",
            m.group_partial_points,
        );
        registry.register("group_failures", "Times a group got no common point", m.group_failures);
        registry.register("group_retries", "Times a group was held in vain", m.group_retries);
        registry.register(
            "group_skew_microseconds",
            "First to last member frozen, in the newest point",
            m.group_skew_microseconds,
        );
        registry.register("group_missing", "Members missing in the newest point", m.group_missing);
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

/// The groups' metrics: turns counts into increments.
pub(crate) struct GroupMetrics {
    metrics: Metrics,
    told: HashMap<String, GroupCounts>,
}

impl GroupMetrics {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, told: HashMap::new() }
    }

    pub(crate) fn update(&mut self, groups: &[GroupStatus]) {
        let m = &self.metrics;
        for group in groups {
            let labels = vec![("group", group.name.clone())];
            let (old, new) = (self.told.entry(group.name.clone()).or_default(), group.counts);
            for (counters, old, new) in [
                (&m.group_points, old.durable, new.durable),
                (&m.group_partial_points, old.partial, new.partial),
                (&m.group_failures, old.failures, new.failures),
                (&m.group_retries, old.retries, new.retries),
            ] {
                counters.get_or_create(&labels).inc_by(new - old);
            }
            *old = new;
            if let Some(last) = &group.last {
                m.group_skew_microseconds.get_or_create(&labels).set(last.mark.skew_us as i64);
                m.group_missing.get_or_create(&labels).set(last.mark.missing.len() as i64);
            }
        }
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
