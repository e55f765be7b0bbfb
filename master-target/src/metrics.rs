//! The Prometheus metrics of a master target.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::status::StreamStatus;

type Labels = Vec<(&'static str, String)>;

/// Handles to the metrics; cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    refused: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    connected: Family<Labels, Gauge>,
    points: Family<Labels, Gauge>,
    point_age: Family<Labels, Gauge<f64, AtomicU64>>,
    journal_bytes: Family<Labels, Gauge>,
    journal_nearly_full: Family<Labels, Gauge>,
    wire_bytes: Family<Labels, Gauge>,
    logical_bytes: Family<Labels, Gauge>,
    peer_errors: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    verifying: Family<Labels, Gauge>,
    verified: Family<Labels, Gauge>,
    different: Family<Labels, Gauge>,
    scrub_pass: Family<Labels, Gauge>,
    scrub_findings: Family<Labels, Gauge>,
    scrubbed: Family<Labels, Gauge>,
}

impl Metrics {
    /// Registers all of them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register(
            "refused_connections",
            "Connections and streams refused, by reason",
            m.refused.clone(),
        );
        registry.register("errors", "Failures of disks or journal that stopped a stream", m.errors.clone());
        registry.register("connected", "Whether the VM's process server is connected", m.connected.clone());
        registry.register("points", "Recovery points kept", m.points.clone());
        registry.register("point_age_seconds", "Age of the newest recovery point", m.point_age.clone());
        registry.register("journal_bytes", "Bytes of before-images kept", m.journal_bytes.clone());
        registry.register(
            "journal_nearly_full",
            "Whether the journal takes so much that points will soon be dropped for it",
            m.journal_nearly_full.clone(),
        );
        registry.register(
            "wire_bytes",
            "Frame bytes received since the stream was opened",
            m.wire_bytes.clone(),
        );
        registry.register(
            "logical_bytes",
            "Bytes of content applied since the stream was opened",
            m.logical_bytes.clone(),
        );
        registry.register(
            "peer_errors",
            "Connections closed because of what the peer sent",
            m.peer_errors.clone(),
        );
        registry.register(
            "verification_leaves",
            "Leaves of 64 KiB that the last verification compares",
            m.verifying.clone(),
        );
        registry.register(
            "verified_leaves",
            "Those of them that were found equal to the source",
            m.verified.clone(),
        );
        registry.register(
            "different_leaves",
            "Leaves of 64 KiB that the last verification found different from the source",
            m.different.clone(),
        );
        registry.register(
            "scrub_findings",
            "Places of disks and journal that are not what was written",
            m.scrub_findings.clone(),
        );
        registry.register(
            "scrub_pass_bytes",
            "Bytes that the scrub has read in the pass under way",
            m.scrub_pass.clone(),
        );
        registry.register(
            "scrubbed_timestamp_seconds",
            "When the last whole pass of the scrub was complete",
            m.scrubbed.clone(),
        );
        registry.register("waiting_for_space", "Whether replication waits for free space", m.waiting.clone());
        metrics
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    pub(crate) fn error(&self, vm: &str) {
        self.errors.get_or_create(&vec![("vm", vm.to_owned())]).inc();
    }

    pub(crate) fn stream(&self, status: &StreamStatus) {
        let vm = vec![("vm", status.vm.clone())];
        self.connected.get_or_create(&vm).set(status.connected.into());
        self.points.get_or_create(&vm).set(status.points as i64);
        if let Some(age) = status.point_age_seconds(Timestamp::now()) {
            self.point_age.get_or_create(&vm).set(age);
        }
        self.journal_bytes.get_or_create(&vm).set(status.journal_bytes.unwrap_or(0) as i64);
        self.journal_nearly_full.get_or_create(&vm).set(status.journal_nearly_full.into());
        self.wire_bytes.get_or_create(&vm).set(status.wire_bytes as i64);
        self.logical_bytes.get_or_create(&vm).set(status.logical_bytes as i64);
        self.peer_errors.get_or_create(&vm).set(status.peer_errors as i64);
        if let Some(report) = &status.verification {
            self.verifying.get_or_create(&vm).set(report.coverage.leaves as i64);
            self.verified.get_or_create(&vm).set(report.coverage.done() as i64);
            self.different.get_or_create(&vm).set(report.different_leaves as i64);
        }
        if let Some(scrub) = &status.scrub {
            self.scrub_findings.get_or_create(&vm).set(scrub.findings.len() as i64);
            self.scrub_pass.get_or_create(&vm).set(scrub.bytes.unwrap_or(0) as i64);
            if let Some(completed_at) = scrub.completed_at {
                self.scrubbed.get_or_create(&vm).set(completed_at.as_second());
            }
        }
        self.waiting.get_or_create(&vm).set(status.hold.is_some().into());
    }
}
