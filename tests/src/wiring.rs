//! Proxies between the services of a lab.

use homeward::lab::{Lab, Service};

use crate::{ground::configure, proxy::Proxy};

/// Puts a proxy before the process server and one before the master target. Before the lab is started.
///
/// # Panics
/// If there is no port, or a configuration is unlike the lab's.
#[must_use]
pub fn proxies(lab: &Lab) -> [Proxy; 2] {
    let agents: Vec<&Service> =
        lab.services().filter(|service| service.name().starts_with("agent-")).collect();
    [between(&agents, "process_server"), between(&[lab.process_server()], "target")]
}

/// A proxy between `services` and the one whose address is their setting `key`.
fn between(services: &[&Service], key: &str) -> Proxy {
    let mut proxy = None;
    for service in services {
        configure(service, |table| {
            let to = table[key].as_str().unwrap().parse().unwrap();
            let proxy = proxy.get_or_insert_with(|| Proxy::start(to).unwrap());
            table.insert(key.into(), proxy.addr().to_string().into());
        });
    }
    proxy.expect("at least one service")
}
