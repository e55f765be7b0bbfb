//! Makes a lab's keys, configurations and services, before anything runs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use engine::{
    net::{Identity, Role, TlsFiles, identity::IdentityError},
    service::quantity::Rate,
};
use serde_json::{Value, json};

use super::{
    Agent, Lab, Options, Vm,
    error::LabError,
    layout::{Layout, Ports},
    process::Spawner,
    service::Service,
    tool::Tool,
};
use crate::pki::{self, CA_DAYS, LEAF_DAYS, Validity};

/// Name of the process server and of the master target.
const NAME: &str = "lab";

/// `homeward-agent untrack`, for a service that does not run.
pub(super) fn untrack(agent: &Service) -> Result<(), LabError> {
    let program = agent.program.to_string_lossy().into_owned();
    Tool::new(&program).arg("--config").arg(&agent.config).arg("untrack").run().map(drop)
}

pub(super) fn lab(dir: &Path, options: Options) -> Result<Lab, LabError> {
    let layout = Layout::create(dir)?;
    let keys = layout.dir("keys");
    pki::init(&keys, Validity::days(CA_DAYS))?;
    let spawner = Arc::new(Spawner::new().map_err(LabError::io("start", "a thread"))?);
    let mut making =
        Making { layout: &layout, options: &options, spawner: &spawner, ports: Ports::default() };

    let (agents_to, servers_to) = (making.ports.next()?, making.ports.next()?);
    let network = &options.network;
    let master_target = making.service("master-target", Role::MasterTarget, NAME, network, |making| {
        making.master_target(servers_to)
    })?;
    let process_server = making.service("process-server", Role::ProcessServer, NAME, network, |making| {
        making.process_server(agents_to, servers_to)
    })?;
    let mut agents = Vec::new();
    for (number, vm) in options.vms.iter().enumerate() {
        let name = format!("agent-{number}");
        let service = making.service(&name, Role::Agent, &vm.name, &vm.network, |making| {
            making.agent(&name, vm, agents_to)
        })?;
        agents.push(Agent { vm: vm.clone(), service });
    }
    Ok(Lab { layout, agents, process_server, master_target, stop: options.stop, _spawner: spawner })
}

struct Making<'a> {
    layout: &'a Layout,
    options: &'a Options,
    spawner: &'a Arc<Spawner>,
    ports: Ports,
}

impl Making<'_> {
    /// Issues a certificate, writes `specific` and what all configurations have in common.
    fn service(
        &mut self,
        name: &str,
        role: Role,
        identity: &str,
        network: &Option<PathBuf>,
        specific: impl FnOnce(&Self) -> Value,
    ) -> Result<Service, LabError> {
        let keys = self.layout.dir("keys");
        let identity = Identity::new(role, identity)
            .map_err(|error: IdentityError| LabError::unexpected(name, error.to_string()))?;
        let TlsFiles { ca, cert, key } = pki::issue(&keys, &identity, &keys, Validity::days(LEAF_DAYS))?;

        let (admin, metrics) = (self.layout.admin(name), self.ports.next()?);
        let mut config = specific(self);
        config["admin"] = json!(admin);
        config["metrics"] = json!(metrics);
        config["tls"] = json!({ "ca": ca, "cert": cert, "key": key });
        let path = self.layout.config(name);
        let text = toml::to_string(&config).map_err(|error| LabError::unexpected(name, error.to_string()))?;
        fs::write(&path, text).map_err(LabError::io("write", &path))?;

        Ok(Service {
            name: name.into(),
            program: self.options.binaries.join(format!("homeward-{role}")),
            config: path,
            admin,
            metrics,
            network: network.clone(),
            log: self.layout.log(name),
            filter: self.options.log.clone(),
            spawner: Arc::clone(self.spawner),
            stop: self.options.stop.clone(),
            child: Mutex::new(None),
        })
    }

    fn agent(&self, name: &str, vm: &Vm, process_server: SocketAddr) -> Value {
        let disks = vm.disks.iter().enumerate();
        let disks = disks.map(|(index, device)| json!({ "name": format!("disk{index}"), "device": device }));
        let mut config = json!({
            "vm": vm.name,
            "disk": disks.collect::<Vec<_>>(),
            "tracker": vm.tracker,
            "process_server": process_server,
            "state": self.layout.dir(name),
            "point_interval": vm.point_interval.to_string(),
        });
        if let Some(hooks) = &vm.hooks {
            let hooks: Vec<_> = hooks.iter().map(|path| json!({ "path": path })).collect();
            config["application"] = json!({ "interval": "24h", "hook": hooks });
        }
        config
    }

    fn process_server(&self, listen: SocketAddr, target: SocketAddr) -> Value {
        let mut config = json!({
            "listen": listen,
            "target": target,
            "spool": { "path": self.layout.dir("spool"), "size": self.options.spool },
        });
        if let Some(Rate(bytes)) = self.options.rate {
            config["rate"] = json!(format!("{bytes}B/s"));
        }
        config
    }

    fn master_target(&self, listen: SocketAddr) -> Value {
        let originals = self.options.originals.iter().map(|(vm, disk, descriptor)| {
            json!({ "vm": vm, "disk": disk, "datastore": "lab", "descriptor": descriptor })
        });
        let devices = self.options.devices.iter();
        let devices = devices.map(|(vm, disk, device)| json!({ "vm": vm, "disk": disk, "device": device }));
        json!({
            "listen": listen,
            "journal": self.layout.dir("journal"),
            "datastore": [{ "name": "lab", "path": self.layout.datastore(), "kind": "nfs", "reserve_bytes": 64 << 20 }],
            "placement": { "datastore": "lab", "provisioning": self.options.provisioning },
            "original": originals.collect::<Vec<_>>(),
            "device": devices.collect::<Vec<_>>(),
            "retention": { "points": self.options.retention },
            "drill": { "folder": self.layout.dir("drills") },
        })
    }
}
