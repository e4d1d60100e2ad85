//! A disk that answers once a second stalls nobody but those who wait for it.
//!
//! QEMU runs in a network namespace of its own, so that `ping` reaches the guest.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::served::files;
use super::{Kernel, Run, machine, namespace};
use crate::guest::Guest;
use crate::qemu;

/// The tests here; they measure time.
pub const TESTS: &[(&str, Run)] = &[("disks::ping_and_metrics_at_1_iops", ping_and_metrics_at_1_iops)];

const ADDRESS: &str = "10.0.2.15";
const LIMIT: Duration = Duration::from_millis(500);

/// While files are asked for, each ping and each `/metrics` takes under 0.5 s.
fn ping_and_metrics_at_1_iops(kernel: &Kernel) -> Result<()> {
    let mut network = Network::start(kernel)?;
    let mut readers: Vec<Child> = ["1m.bin", "16m.bin", "many/", "folder/"]
        .iter()
        .map(|path| network.curl(60, path).stdout(Stdio::null()).stderr(Stdio::null()).spawn())
        .collect::<Result<_, _>>()?;
    let result = (0..20).try_for_each(|round| {
        std::thread::sleep(Duration::from_millis(100));
        network.answers().with_context(|| format!("round {round}"))
    });
    let waiting = readers[1].try_wait()?.is_none();
    for reader in &mut readers {
        reader.kill()?;
        reader.wait()?;
    }
    let log = network.guest.kill();
    ensure!(!log.to_lowercase().contains("panic"), "the guest panicked:\n{log}");
    ensure!(waiting, "16 MiB were read meanwhile: the disk is not slow");
    result
}

struct Network {
    guest: Guest,
}

impl Network {
    fn start(kernel: &Kernel) -> Result<Self> {
        let monitor = std::env::temp_dir().join(format!("ringfence-{}.monitor", std::process::id()));
        let mut machine = machine(&kernel.pvh);
        let node = json!({
            "driver": "throttle", "node-name": "disk0", "throttle-group": "slow", "read-only": true,
            "file": { "driver": "file", "filename": files()?, "read-only": true },
        });
        machine.extra.extend(["-blockdev".into(), node.to_string().into()]);
        machine
            .extra
            .extend(["-monitor".into(), format!("unix:{},server=on,wait=off", monitor.display()).into()]);
        machine.add(
            "-object throttle-group,id=slow,x-iops-total=1 -device virtio-blk-pci,drive=disk0 \
             -netdev user,id=dhcp -netdev hubport,id=a,hubid=0,netdev=dhcp \
             -netdev tap,id=tap,ifname=ringfence,script=no,downscript=no -netdev hubport,id=b,hubid=0,netdev=tap \
             -netdev hubport,id=c,hubid=0 -device virtio-net-pci,netdev=c,romfile=",
        );
        let url = format!("http://{ADDRESS}/");
        machine.options.push(("url".into(), url.clone()));

        let mut arguments = namespace::arguments("10.0.2.100/24", "qemu-system-x86_64");
        arguments.extend(machine.arguments());
        let mut guest = Guest::start(qemu::tethered("unshare", arguments)?)?;
        let up = guest.wait_until(Duration::from_secs(60), |log| log.contains(&url));
        up.context("the guest does not come up")?;
        // QEMU's own network stack gave the guest its address. From now on it would answer in the guest's
        // place.
        let mut connection = UnixStream::connect(&monitor).context("QEMU's monitor")?;
        std::fs::remove_file(&monitor)?;
        connection.write_all(b"netdev_del dhcp\n")?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(Self { guest })
    }

    fn curl(&self, seconds: u32, path: &str) -> Command {
        namespace::curl(self.guest.id(), seconds, &format!("http://{ADDRESS}/{path}"))
    }

    fn answers(&self) -> Result<()> {
        let ping = namespace::inside(self.guest.id(), "ping")
            .args(["-n", "-c", "1", "-W", "1", ADDRESS])
            .output()?;
        let said = String::from_utf8_lossy(&ping.stdout).into_owned();
        let time = said.split("time=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        ensure!(time.is_some_and(|ms| ms < LIMIT.as_secs_f64() * 1e3), "ping says {said}");
        let start = Instant::now();
        let metrics = self.curl(5, "metrics").output()?;
        let (took, said) = (start.elapsed(), String::from_utf8_lossy(&metrics.stderr).into_owned());
        ensure!(metrics.status.success() && took < LIMIT, "/metrics after {took:?}: {said}");
        Ok(())
    }
}
