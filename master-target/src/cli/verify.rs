//! `verify`: asks the service to compare a point with the source, or checks a certificate offline.

use std::path::{Path, PathBuf};

use engine::{
    net::Authorities,
    service::{
        admin::AdminError,
        exit::{Code, Told, WithCode},
        quantity::Size,
    },
};
use master_target::{
    admin::{Request, Response},
    config::Config,
    proof::{Certificate, Phase, Report, Verdict, Verified},
};
use serde_json::json;

use super::ask;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM.
    #[arg(required_unless_present = "check")]
    vm: Option<String>,
    /// `latest`, a point's id, or a time: the newest point taken at or before it.
    #[arg(long, default_value = "latest")]
    point: String,
    /// Wait until it is done; exit code 6 if something differs.
    #[arg(long)]
    wait: bool,
    /// Compare again, although there is a certificate.
    #[arg(long)]
    again: bool,
    /// Check a certificate's signature instead; the service need not run.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vm", "point", "wait", "again"])]
    check: Option<PathBuf>,
    /// The CA that the signer's certificate must be of; without it, that of the configuration.
    #[arg(long, value_name = "FILE", requires = "check")]
    ca: Option<PathBuf>,
}

impl Args {
    /// The certificate to be checked and the CA, if that needs no configuration.
    pub(crate) fn offline(&self) -> Option<(&Path, &Path)> {
        self.check.as_deref().zip(self.ca.as_deref())
    }
}

/// `verify --check FILE`.
pub(crate) fn check(file: &Path, ca: &Path, json: bool) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display()))?;
    let authorities = Authorities::load(ca)?;
    let certificate = Certificate::check(&text, &authorities)
        .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
        .with_code(Code::Refused)?;
    if json {
        println!("{}", json!({ "ok": true, "certificate": certificate }));
    } else {
        println!("The signature is good.");
        print_certificate(&certificate);
    }
    Ok(())
}

/// `verify VM`.
pub(crate) fn run(config: &Config, args: Args, json: bool) -> anyhow::Result<()> {
    if let Some(file) = &args.check {
        return check(file, &config.tls.ca, json);
    }
    let Args { vm, point, wait, again, .. } = args;
    let vm = vm.unwrap_or_default();
    let request = Request::Verify { vm: vm.clone(), point, wait, again };
    let verified = match ask(config, &request, json)? {
        Some(Response::Verified(verified)) => *verified,
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => return Err(AdminError::NotRunning { path: config.admin.clone() }.into()),
    };
    let failure = failure(&verified);
    if json {
        let error = failure.as_ref().map(|told| &told.message);
        println!("{}", json!({ "ok": failure.is_none(), "error": error, "vm": vm, "verified": verified }));
    } else {
        print(&verified);
    }
    failure.map_or(Ok(()), |told| Err(told.into()))
}

fn failure(verified: &Verified) -> Option<Told> {
    let different = |message| Told { code: Code::Different, message };
    match &verified.report {
        Some(Report { phase: Phase::Failed(reason), .. }) => {
            let message = format!("the verification was given up: {reason}");
            Some(Told { code: Code::Failed, message })
        }
        _ if verified.verdict == Some(Verdict::Different) => Some(different(format!(
            "point {} differs from the source; what differed was or is sent again, so verify a newer point",
            verified.point
        ))),
        Some(report) if report.different_leaves > 0 => Some(different(format!(
            "{} leaves differed from the source; what differed was or is sent again, so verify a newer point",
            report.different_leaves
        ))),
        _ => None,
    }
}

fn print(verified: &Verified) {
    if let Some(certificate) =
        verified.certificate.as_ref().filter(|_| verified.verdict != Some(Verdict::Different))
    {
        return print_certificate(certificate);
    }
    let Some(report) = &verified.report else { return };
    let coverage = report.coverage;
    let state = match &report.phase {
        Phase::Comparing => "comparing",
        Phase::Computing => "compared; computing the roots",
        Phase::Proven => "proven",
        Phase::Different => "different",
        Phase::Failed(_) => "given up",
    };
    println!("point {}: {state}", verified.point);
    println!(
        "  {:.1} % compared and equal: {} leaves of 64 KiB as of the point, {} as of later ones, of {}",
        coverage.done() as f64 * 100.0 / coverage.leaves.max(1) as f64,
        coverage.direct,
        coverage.later,
        coverage.leaves
    );
    for difference in &report.differences {
        println!("  {difference}");
    }
}

fn print_certificate(certificate: &Certificate) {
    let statement = &certificate.statement;
    println!("point {} of {}, taken {}: proven", statement.point, statement.vm, statement.taken_at);
    for disk in &statement.disks {
        let coverage = disk.coverage;
        println!(
            "  {}  {}  root {}  {:.1} % directly",
            disk.name,
            Size(disk.bytes),
            disk.root,
            coverage.direct as f64 * 100.0 / coverage.leaves.max(1) as f64
        );
    }
    println!("  compared {} to {}, by {}", statement.begun_at, statement.completed_at, statement.issuer);
}
