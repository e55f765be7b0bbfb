//! Tools that are missing are installed from the distribution.

use engine::service::exit::{Code, WithCode};
use homeward::lab::tool::{Tool, find, package_of};

/// Installs what is missing of `programs`. Nothing that is installed is removed or replaced by it.
pub fn ensure(programs: &[&str]) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = programs
        .iter()
        .filter(|program| find(program).is_none())
        .map(|program| package_of(program))
        .collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let wanted = packages.join(" ");
    if find("apt-get").is_none() {
        let error = anyhow::anyhow!("these tools are compared with and are missing: {wanted}; install them");
        return Err(error).with_code(Code::Refused);
    }
    eprintln!("installing {wanted}");
    Tool::new("apt-get").args(["update", "-q"]).run()?;
    // QEMU's tools and its emulator must be of one version: rather than removing the one, apt is to fail.
    let options = ["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    Tool::new("env")
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .args(options)
        .args(packages)
        .run()?;
    Ok(())
}
