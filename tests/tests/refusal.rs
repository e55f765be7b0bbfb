//! The promise: who has no business here is refused, logged and counted, and changes nothing. (What makes a
//! certificate a wrong one stands in configuration-server/tests/tls.rs; here are the services as they run.)
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use engine::net::{Credentials, Role, TlsFiles, connect};
use homeward::lab::{Look, Tracker, Vm, isolate};
use homeward_tests::{ground::configure, rig::Rig, settings};
use tokio::io::AsyncReadExt;

const BLOCKS: u64 = 1024;

/// Another agent, with a certificate of its own, says that it is the VM's, or even that it is the same replication.
#[test]
fn an_agent_of_another_vm() {
    const VM: &str = "owner";
    const OTHER: &str = "intruder";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let rig = Rig::new(VM, BLOCKS, |options| {
        let disks = options.vms[0].disks.clone();
        options.vms.push(Vm { disks, ..Vm::new(OTHER, Tracker::Ebpf) });
    });
    let (relay, target, other) =
        (rig.lab.process_server(), rig.lab.master_target(), rig.lab.agent(OTHER).unwrap());
    configure(other, |table| {
        table.insert("vm".into(), VM.into());
    });
    for service in [target, relay, rig.lab.agent(VM).unwrap()] {
        service.start().unwrap();
    }
    let mut points = vec![rig.had()];
    let refused = |why: &str| {
        rig.wait("the other agent is refused", || {
            let error = rig.lab.agent_status(OTHER)?.connection_error.unwrap_or_default();
            Ok(if error.contains("NotYours") { Look::Done(()) } else { Look::NotYet(error) })
        });
        rig.wait_for_log(relay, &["NotYours", why]);
        rig.wait_for_count(relay, "homeward_refused_connections_total{reason=\"stream\"}");
    };

    other.start().unwrap();
    refused("replicated by another agent");
    rig.wait_for_count(target, "homeward_refused_connections_total{reason=\"stream\"}");

    other.stop().unwrap();
    let states = ["agent-0", "agent-1"].map(|agent| rig.lab.layout().dir(agent).join("agent.json"));
    fs::copy(&states[0], &states[1]).unwrap();
    other.start().unwrap();
    refused("belongs to agent");

    points.push(rig.had());
    rig.check(&points);
    let streams = fs::read_dir(rig.lab.layout().dir("journal")).unwrap();
    let streams = streams.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(streams.count(), 1, "the refused stream left something behind");
}

/// A good certificate of a service that has no business at that port.
#[test]
fn a_wrong_role() {
    const VM: &str = "roles";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let point = rig.start();
    let keys = rig.lab.layout().dir("keys");
    let (relay, target) = (rig.lab.process_server(), rig.lab.master_target());
    let cases = [
        (relay, Role::ProcessServer, Role::MasterTarget, "lab"),
        (relay, Role::ProcessServer, Role::ProcessServer, "lab"),
        (target, Role::MasterTarget, Role::Agent, VM),
    ];
    for (number, (service, role, wrong, name)) in cases.into_iter().enumerate() {
        let before = service.metric("homeward_refused_connections_total").unwrap();
        let mut listen = String::new();
        configure(service, |table| listen = table["listen"].as_str().unwrap().into());
        assert!(!is_welcome(&keys, wrong, name, role, &listen), "case {number}");
        rig.wait("it is counted", || {
            let now = service.metric("homeward_refused_connections_total")?;
            Ok(if now > before { Look::Done(()) } else { Look::NotYet(now.to_string()) })
        });
        rig.wait_for_log(service, &["refused a connection", &wrong.to_string()]);
    }
    rig.check(&[point, rig.had()]);
}

/// Whether the service at `addr`, of the role `role`, goes on talking to who shows the certificate of another.
fn is_welcome(keys: &Path, own: Role, name: &str, role: Role, addr: &str) -> bool {
    let file = |ending| keys.join(format!("{own}-{name}.{ending}"));
    let files = TlsFiles { ca: keys.join("ca.pem"), cert: file("pem"), key: file("key") };
    let tls = Credentials::load(&files, own).unwrap().client(role).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // A client learns only after its handshake that its certificate was refused.
        let Ok(mut peer) = connect(addr, &tls).await else { return false };
        matches!(peer.stream.read(&mut [0]).await, Ok(1..))
    })
}
