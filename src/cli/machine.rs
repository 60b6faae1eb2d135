//! What this machine has for tasks, and how it keeps them to their limits.

use std::fs;
use std::path::Path;

use pensum_core::task::Resources;
use pensum_engine::LimitModes;
use pensum_engine::process::{NotDelegated, enforcement, use_cgroups};

use super::exit::Failure;

/// Bytes of a GB.
const GB: f64 = 1e9;

/// What was written on the command line (`NAME=AMOUNT`) over what the machine has: its processors, its memory and the free
/// space of the present directory. GPU memory is there only where it is written.
pub(crate) fn resources(written: &[(String, String)]) -> anyhow::Result<Resources> {
    let mut resources = Resources {
        cpu_cores: std::thread::available_parallelism()
            .ok()
            .map(|cores| cores.get() as f64),
        memory_gb: memory().map(|bytes| bytes / GB),
        disk_gb: disk().map(|bytes| bytes / GB),
        gpu_memory_gb: None,
    };
    for (name, amount) in written {
        let place = match name.as_str() {
            "cpu_cores" => &mut resources.cpu_cores,
            "memory_gb" => &mut resources.memory_gb,
            "disk_gb" => &mut resources.disk_gb,
            "gpu_memory_gb" => &mut resources.gpu_memory_gb,
            _ => {
                let names = pensum_core::agent::RESOURCE_NAMES.join(", ");
                return Err(Failure::usage(format!("--resource {name}: the resources are {names}")).into());
            }
        };
        let amount: Option<f64> = amount
            .parse()
            .ok()
            .filter(|amount: &f64| amount.is_finite() && *amount >= 0.0);
        *place =
            Some(amount.ok_or_else(|| Failure::usage(format!("--resource {name}: must be a number, zero or more")))?);
    }
    Ok(resources)
}

/// How commands are kept to their limits, to be told once this process works.
#[must_use = "whoever runs it is to know"]
pub(crate) struct Enforced(Result<&'static Path, NotDelegated>);

/// Has the kernel keep commands to their limits where this process has a cgroup of its own. To be asked before this process
/// starts any other.
pub(crate) fn enforce_limits() -> Enforced {
    Enforced(use_cgroups())
}

impl Enforced {
    pub(crate) fn log(&self) {
        let LimitModes { memory, cpu, .. } = LimitModes::of(enforcement());
        let message = "how commands are kept to their limits";
        match &self.0 {
            Ok(cgroup) => tracing::info!(memory, cpu, cgroup = %cgroup.display(), "{message}"),
            Err(why) => tracing::info!(memory, cpu, %why, "{message}"),
        }
    }
}

/// Reads `NAME=AMOUNT`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `MemTotal` of proc(5), in bytes.
fn memory() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024.0)
}

/// What a user may still write into the present directory, in bytes.
fn disk() -> Option<f64> {
    let found = rustix::fs::statvfs(".").ok()?;
    Some(found.f_bavail as f64 * found.f_frsize as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_counts_instead_of_what_the_machine_has() {
        let of = |texts: &[&str]| {
            let written: Vec<_> = texts.iter().map(|text| pair(text).unwrap()).collect();
            resources(&written)
        };
        let machine = of(&[]).unwrap();
        assert!(machine.cpu_cores.unwrap() >= 1.0 && machine.memory_gb.unwrap() > 0.1);
        assert!(machine.disk_gb.is_some() && machine.gpu_memory_gb.is_none());
        let written = of(&["cpu_cores=0.5", "gpu_memory_gb=24"]).unwrap();
        assert_eq!((written.cpu_cores, written.gpu_memory_gb), (Some(0.5), Some(24.0)));
        assert_eq!(written.memory_gb, machine.memory_gb);
        for wrong in ["cores=1", "cpu_cores=many", "cpu_cores=-1", "memory_gb=NaN"] {
            assert!(of(&[wrong]).is_err(), "{wrong}");
        }
        assert!(pair("cpu_cores").is_err());
    }
}
