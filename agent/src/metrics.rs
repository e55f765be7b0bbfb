//! The Prometheus metrics of an agent.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::node::{NodeStatus, PointState, Totals};

type Labels = [(&'static str, &'static str); 1];

/// Handles to the metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    lag_bytes: Gauge,
    lag_seconds: Gauge<f64, AtomicU64>,
    dirty_bytes: Gauge,
    compare_bytes: Gauge,
    point_age: Gauge<f64, AtomicU64>,
    connected: Gauge,
    compression_level: Gauge,
    wire_bytes: Counter,
    logical_bytes: Counter,
    equal_bytes: Counter,
    points: Counter,
    tries: Counter,
    frozen_seconds: Counter<f64, AtomicU64>,
    holds: Counter,
    held_seconds: Counter<f64, AtomicU64>,
    errors: Family<Labels, Counter>,
    /// What the counters say.
    last: Totals,
}

impl Metrics {
    /// Registers all of them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("lag_bytes", "Bytes that the target may lack", m.lag_bytes.clone());
        registry.register(
            "lag_seconds",
            "How long ago the disks held what the target holds",
            m.lag_seconds.clone(),
        );
        registry.register("dirty_bytes", "Bytes to be sent", m.dirty_bytes.clone());
        registry.register("compare_bytes", "Bytes to be compared with the target", m.compare_bytes.clone());
        registry.register(
            "point_age_seconds",
            "Age of the newest durable recovery point",
            m.point_age.clone(),
        );
        registry.register("connected", "Whether frames can be sent", m.connected.clone());
        registry.register(
            "compression_level",
            "zstd level of what is packed now",
            m.compression_level.clone(),
        );
        registry.register("wire_bytes", "Frame bytes made", m.wire_bytes.clone());
        registry.register("logical_bytes", "Disk bytes in them", m.logical_bytes.clone());
        registry.register("equal_bytes", "Dirty bytes that the target had already", m.equal_bytes.clone());
        registry.register("points", "Recovery points that became durable", m.points.clone());
        registry.register("barrier_tries", "Rounds of the converging barrier", m.tries.clone());
        registry.register("frozen_seconds", "Time that file systems were frozen", m.frozen_seconds.clone());
        registry.register("application_holds", "Times that applications held for a point", m.holds.clone());
        registry.register(
            "application_held_seconds",
            "Time that applications may have been held",
            m.held_seconds.clone(),
        );
        registry.register("errors", "Failures, by kind", m.errors.clone());
        metrics
    }

    /// Takes over how the node stands.
    pub fn update(&mut self, status: &NodeStatus) {
        self.lag_bytes.set(status.lag_bytes as i64);
        self.lag_seconds.set(status.lag_s);
        self.dirty_bytes.set(status.dirty_bytes as i64);
        self.compare_bytes.set(status.resync.map_or(0, |resync| resync.left as i64));
        self.connected.set(status.connected_s.is_some().into());
        self.compression_level.set(status.compression_level.into());
        let durable = status.points.iter().rev().find(|record| record.state == PointState::Durable);
        if let Some(record) = durable {
            self.point_age.set(Timestamp::now().duration_since(record.point.taken_at).as_secs_f64());
        }
        let (now, last) = (status.totals, std::mem::replace(&mut self.last, status.totals));
        self.wire_bytes.inc_by(now.wire_bytes - last.wire_bytes);
        self.logical_bytes.inc_by(now.logical_bytes - last.logical_bytes);
        self.equal_bytes.inc_by(now.equal_bytes - last.equal_bytes);
        self.points.inc_by(now.points - last.points);
        self.tries.inc_by(now.barrier_tries - last.barrier_tries);
        self.frozen_seconds.inc_by((now.frozen_us - last.frozen_us) as f64 / 1e6);
        self.holds.inc_by(now.holds.count - last.holds.count);
        self.held_seconds.inc_by((now.holds.held_us - last.holds.held_us) as f64 / 1e6);
        let error = |kind| self.errors.get_or_create(&[("kind", kind)]).clone();
        error("connection").inc_by(now.connection_errors - last.connection_errors);
        error("capture").inc_by(now.capture_errors - last.capture_errors);
        error("point").inc_by(now.point_failures - last.point_failures);
        error("hook").inc_by(now.holds.hook_failures - last.holds.hook_failures);
        error("freeze").inc_by(now.holds.freeze_failures - last.holds.freeze_failures);
    }
}
