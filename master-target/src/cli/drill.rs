//! `drill` and `drills`: asks the service, or drills in the foreground where none runs.

use std::{net::SocketAddr, path::PathBuf};

use engine::{
    net::{Credentials, Role},
    service::{
        admin::AdminError,
        exit::{Code, WithCode},
        quantity::Size,
        shutdown::Shutdown,
    },
};
use master_target::{
    admin::{Request, Response},
    config::Config,
    drill::{DrillStatus, Drills, Place, Plan},
    restore::Select,
};
use serde_json::json;

use super::{ask, find};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM.
    #[arg(required_unless_present = "stop")]
    vm: Option<String>,
    /// `latest`, `before-failback`, a point's id, or a time: the newest point taken at or before it.
    #[arg(long, default_value = "latest")]
    point: String,
    /// Only this disk; may be repeated. The first is also the export without a name.
    #[arg(long = "disk", value_name = "NAME")]
    disks: Vec<String>,
    /// Address and port; port 0 is any that is free. If it is not loopback, clients need TLS and a certificate of an
    /// operator.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10809")]
    listen: SocketAddr,
    /// A Unix socket instead, which is made.
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Take writes, and throw them away when the drill ends.
    #[arg(long)]
    writable: bool,
    /// End a drill, by its number in `drills`.
    #[arg(long, value_name = "ID", conflicts_with_all = ["vm", "point", "disks", "listen", "socket", "writable"])]
    stop: Option<u64>,
}

/// `drill`.
pub(crate) fn run(config: &Config, args: Args, json: bool) -> anyhow::Result<()> {
    if let Some(id) = args.stop {
        return stop(config, id, json);
    }
    let place = match args.socket {
        // The service has a working folder of its own.
        Some(path) => Place::Socket(std::path::absolute(path)?),
        None => Place::Listen(args.listen),
    };
    let (vm, point) = (args.vm.unwrap_or_default(), args.point);
    let plan = Plan { vm, disks: args.disks, place, writable: args.writable };
    let request = Request::Drill {
        vm: plan.vm.clone(),
        point: point.clone(),
        disks: plan.disks.clone(),
        place: plan.place.clone(),
        writable: plan.writable,
    };
    match ask(config, &request, json)? {
        Some(Response::Drill(drill)) => {
            print_started(&drill, json)?;
            if !json {
                println!("End it with `homeward-master-target drill --stop {}`.", drill.id);
            }
            Ok(())
        }
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => drill_alone(config, &point, &plan, json),
    }
}

/// The service does not run: the journal is locked, and served from here until somebody interrupts.
fn drill_alone(config: &Config, point: &str, plan: &Plan, json: bool) -> anyhow::Result<()> {
    let select: Select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
    let (home, _lock) = config.open_home()?;
    let mut replica = home.open(find(&home, &plan.vm)?)?;
    let point = replica.select(&select).with_code(Code::Refused)?;
    let image = replica.open_image(&point)?;
    let drills = match plan.place.is_local() {
        true => Drills::new(config.drill.folder.clone(), config.drill.bytes.0, None),
        false => config.drills(&Credentials::load(&config.tls, Role::MasterTarget)?)?,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let stop = runtime.block_on(async { Shutdown::on_signals() })?;
    let drill = drills.start(image, &point.point, plan).with_code(Code::Refused)?;
    print_started(&drill, json)?;
    if !json {
        println!("The service does not run: this goes on until it is interrupted.");
    }
    runtime.block_on(stop.requested());
    Ok(())
}

/// `drills`.
pub(crate) fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let Some(Response::Drills(drills)) = ask(config, &Request::Drills, json)? else {
        return Err(AdminError::NotRunning { path: config.admin.clone() }.into());
    };
    if json {
        println!("{}", json!({ "ok": true, "drills": drills }));
        return Ok(());
    }
    if drills.is_empty() {
        println!("No drill runs.");
    }
    drills.iter().for_each(print);
    Ok(())
}

fn stop(config: &Config, id: u64, json: bool) -> anyhow::Result<()> {
    let Some(Response::Drill(drill)) = ask(config, &Request::StopDrill { id }, json)? else {
        return Err(AdminError::NotRunning { path: config.admin.clone() }.into());
    };
    if json {
        println!("{}", json!({ "ok": true, "drill": drill }));
    } else {
        println!("Drill {id} of {} is over; what was written to it is gone.", drill.vm);
    }
    Ok(())
}

fn print_started(drill: &DrillStatus, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", json!({ "ok": true, "drill": drill }));
    } else {
        print(drill);
    }
    Ok(())
}

fn print(drill: &DrillStatus) {
    let DrillStatus { id, vm, point, taken_at, clients, .. } = drill;
    let how = match drill.writable {
        true => format!("writable, {} written", Size(drill.overlay_bytes)),
        false => "read-only".into(),
    };
    println!("{id}  {vm} at {taken_at} ({point})  {how}, {clients} connections");
    for disk in &drill.disks {
        println!("  {}  {}  {}", disk.disk, Size(disk.bytes), disk.uri);
    }
}
