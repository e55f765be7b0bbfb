//! `homeward pki`: arguments and output.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use engine::{
    net::{Identity, Role},
    service::exit::{Code, WithCode},
};
use homeward::pki::{self, CA_DAYS, LEAF_DAYS, PkiError, Validity};
use serde_json::json;

const INIT_EXAMPLES: &str = "\
Examples:
  homeward pki init                     in ./pki, valid for ten years
  homeward pki init --dir /root/pki --days 1825

Keep ca.key on this machine and in a backup: whoever has it can be any service.";

const ISSUE_EXAMPLES: &str = "\
Examples:
  homeward pki issue --role agent db-1
  homeward pki issue --role process-server ps-azure --out ./for-ps-azure
  homeward pki issue --role master-target mt-1 --days 365 --json

Copy the certificate, its key and ca.pem to the service's machine; delete the key here.";

const SHOW_EXAMPLES: &str = "\
Examples:
  homeward pki show pki/ca.pem
  homeward pki show pki/agent-db-1.pem --json";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the private CA: ca.pem and ca.key.
    #[command(after_help = INIT_EXAMPLES)]
    Init {
        /// Folder of the CA; made if it is missing.
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// Days that it is valid.
        #[arg(long, default_value_t = CA_DAYS, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
    /// Issue a certificate for a service: ROLE-NAME.pem and ROLE-NAME.key.
    #[command(after_help = ISSUE_EXAMPLES)]
    Issue {
        /// What the service is: agent, process-server or master-target; operator for a person who looks into drills.
        #[arg(long)]
        role: Role,
        /// Its name: 1 to 63 letters, digits, dots, underscores or hyphens.
        name: String,
        /// Folder of the CA.
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// Folder for the new files; the CA's own unless said otherwise.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Days that it is valid, at most as long as the CA.
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
    /// Show whose a certificate is, until when it is valid, and its fingerprint.
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// A PEM file.
        #[arg(value_name = "CERT")]
        cert: PathBuf,
    },
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<()> {
        match self {
            Command::Init { dir, days } => {
                let files = refused(pki::init(&dir, Validity::days(days)))?;
                let not_after = pki::show(&files.cert)?.not_after;
                if json {
                    println!(
                        "{}",
                        json!({ "ok": true, "ca": files.cert, "key": files.key, "not_after": not_after })
                    );
                } else {
                    println!("made a CA, valid until {not_after}");
                    println!("certificate  {}  (every service gets a copy)", files.cert.display());
                    println!("private key  {}  (stays here)", files.key.display());
                }
            }
            Command::Issue { role, name, dir, out, days } => {
                let identity = Identity::new(role, name).with_code(Code::Usage)?;
                let out = out.as_deref().unwrap_or(&dir);
                let files = refused(pki::issue(&dir, &identity, out, Validity::days(days)))?;
                let not_after = pki::show(&files.cert)?.not_after;
                let (ca, cert, key) = (&files.ca, &files.cert, &files.key);
                if json {
                    let (role, name) = (identity.role(), identity.name());
                    let object = json!({ "ok": true, "role": role, "name": name, "ca": ca, "cert": cert,
                        "key": key, "not_after": not_after });
                    println!("{object}");
                } else {
                    println!(
                        "issued a certificate for {identity}, valid until {not_after}; in its configuration:\n"
                    );
                    println!("[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}");
                }
            }
            Command::Show { cert } => {
                let shown = pki::show(&cert)?;
                if json {
                    println!("{}", serde_json::to_string(&shown)?);
                } else {
                    println!("{shown}");
                }
            }
        }
        Ok(())
    }
}

/// What keys would have been overwritten or useless is refused, not failed.
fn refused<T>(result: Result<T, PkiError>) -> Result<T> {
    match result {
        Err(error @ (PkiError::Exists(_) | PkiError::OtherCa(_) | PkiError::CaExpired { .. })) => {
            Err(error).with_code(Code::Refused)
        }
        other => Ok(other?),
    }
}
