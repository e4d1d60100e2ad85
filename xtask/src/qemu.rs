//! QEMU's command line, and starting it so that it never outlives us.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Error, bail};

use crate::guest::Guest;
use crate::image::Image;
use crate::setup::Firmware;
use crate::static_address::StaticAddress;
use crate::tap;

/// Among the kernel's first words.
const KERNEL_RUNS: &str = "protections  ";
/// How long the kernel may take to them. KVM that is itself emulated is slow.
const KVM_LIMIT: Duration = Duration::from_secs(10);

/// The argument that makes this program [`exec_tethered`].
pub const TETHERED: &str = "--tethered";

/// The guest's exit codes as QEMU's isa-debug-exit device turns them into its own: `(code << 1) | 1`.
pub mod exit {
    /// 0x10: what the guest was to do succeeded.
    pub const PASS: i32 = 33;
    /// 0x11: it failed.
    pub const FAIL: i32 = 35;
    /// 0x12: the kernel panicked.
    pub const PANIC: i32 = 37;
    /// Under `-no-reboot`, also a triple fault.
    pub const RESET: i32 = 0;
}

/// How the kernel gets into memory.
#[derive(Clone, Debug)]
pub enum Boot {
    /// QEMU loads the ELF.
    Pvh(PathBuf),
    /// Firmware loads the `bootloader` crate's image.
    Uefi { image: PathBuf, firmware: Firmware },
}

/// The machine type without PCI and firmware.
pub const MICROVM: &str = "microvm";

/// A virtual machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    pub boot: Boot,
    /// `q35`, `pc`, or `microvm`, which has virtio over MMIO.
    pub kind: String,
    pub kvm: bool,
    /// In MiB.
    pub memory: u32,
    pub disk: Option<Image>,
    /// The port on 127.0.0.1 that leads to the guest's port 80; without it and `tap` there is no network
    /// device.
    pub port: Option<u16>,
    /// The tap interface for the network device, which goes before `port`.
    pub tap: Option<String>,
    /// The guest's address; else it asks for one.
    pub address: Option<StaticAddress>,
    /// For the guest, by fw_cfg, under `opt/org.ringfence/`.
    pub options: Vec<(String, String)>,
    /// For QEMU, after all else.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A machine as `run` starts it without options, but with no devices.
    pub fn new(boot: Boot) -> Self {
        let (disk, port, tap, address, options, extra) = Default::default();
        Self { boot, kind: "q35".into(), kvm: false, memory: 128, disk, port, tap, address, options, extra }
    }

    /// Adds arguments for QEMU, separated by white space.
    pub fn add(&mut self, words: &str) {
        self.extra.extend(words.split_whitespace().map(OsString::from));
    }

    /// The name of QEMU's virtio device of that type.
    pub fn device(&self, kind: &str) -> String {
        format!("virtio-{kind}-{}", if self.kind == MICROVM { "device" } else { "pci" })
    }

    /// The arguments for QEMU.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut line = Line(Vec::new());
        line.words("-nodefaults -no-user-config -display none -no-reboot -serial stdio");
        line.words("-device isa-debug-exit,iobase=0xf4,iosize=4");
        if self.kind == MICROVM {
            // QEMU names the devices to the kernel only if no ACPI table does.
            line.option("-machine", "microvm,acpi=off");
            line.option("-global", "virtio-mmio.force-legacy=off");
        } else {
            line.option("-machine", &self.kind);
        }
        if self.kind == "q35" {
            // Who takes a device out of a slot presses the slot's button, as on a real machine. By default
            // QEMU tells an interpreter of ACPI's.
            line.option("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
        }
        // If given again, both are left out here: QEMU takes the first accelerator that works, and mixes the
        // numbers of processors.
        line.default("-accel", if self.kvm { "kvm" } else { "tcg" }, &self.extra);
        line.option("-cpu", "max");
        // Where there can be only one processor, QEMU 7.2 takes the guest's fences for needless and leaves
        // them out, though its devices run in threads of their own: notifications would be lost now and then.
        line.default("-smp", "1,maxcpus=2", &self.extra);
        line.option("-m", format!("{}M", self.memory));
        self.add_boot(&mut line);
        if let Some(disk) = &self.disk {
            line.option("-blockdev", disk.node("disk0").to_string());
            line.option("-device", format!("{},drive=disk0", self.device("blk")));
        }
        self.add_network(&mut line);
        for (name, value) in &self.options {
            line.guest_option(name, value);
        }
        line.0.extend(self.extra.iter().cloned());
        line.0
    }

    fn add_network(&self, line: &mut Line) {
        match (&self.tap, self.port) {
            (Some(name), _) => line.option("-netdev", tap::netdev(name)),
            (None, Some(port)) => {
                // QEMU's own network is the one that the guest believes to be in.
                let network = |own: StaticAddress| format!(",net={}/{}", own.address, own.prefix);
                let gateway = |own: StaticAddress| own.gateway.map(|gateway| format!(",host={gateway}"));
                let [network, gateway] = [self.address.map(network), self.address.and_then(gateway)]
                    .map(Option::unwrap_or_default);
                let guest = self.address.map(|own| own.address.to_string()).unwrap_or_default();
                let forward = format!("hostfwd=tcp:127.0.0.1:{port}-{guest}:80");
                line.option("-netdev", format!("user,id=net0{network}{gateway},{forward}"));
                line.guest_option("url", &format!("http://127.0.0.1:{port}/"));
            }
            (None, None) => return,
        }
        let rom = if self.kind == MICROVM { "" } else { ",romfile=" };
        line.option("-device", format!("{},netdev=net0{rom}", self.device("net")));
        if let Some(address) = &self.address {
            line.guest_option("address", &address.to_string());
        }
    }

    fn add_boot(&self, line: &mut Line) {
        match &self.boot {
            Boot::Pvh(kernel) => line.option("-kernel", kernel),
            Boot::Uefi { image, firmware } => {
                // `snapshot`: writes go to a copy that ends with QEMU.
                let drive = |file: &Path, rest| {
                    format!("format=raw,file={},{rest}", file.to_string_lossy().replace(',', ",,"))
                };
                line.option("-drive", drive(&firmware.code, "if=pflash,unit=0,readonly=on"));
                line.option("-drive", drive(&firmware.variables, "if=pflash,unit=1,snapshot=on"));
                // On the chipset's own disk controller, so that it is no virtio disk of the guest's.
                line.option("-drive", drive(image, "if=none,id=boot,snapshot=on"));
                line.option("-device", "ide-hd,drive=boot,bootindex=0");
            }
        }
    }

    /// A command that starts this machine; QEMU dies with the thread that spawns it.
    pub fn command(&self) -> anyhow::Result<Command> {
        tethered("qemu-system-x86_64", self.arguments())
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.extend([name.into(), value.as_ref().to_owned()]);
    }

    /// An option of which QEMU would not take the last one alone, unless there is one in `given`.
    fn default(&mut self, name: &str, value: &str, given: &[OsString]) {
        let is_it =
            |word: &OsString| word.to_str().is_some_and(|word| word.trim_start_matches('-') == &name[1..]);
        if !given.iter().any(is_it) {
            self.option(name, value);
        }
    }

    /// An option for the guest, by fw_cfg.
    fn guest_option(&mut self, name: &str, value: &str) {
        let value = value.replace(',', ",,"); // as QEMU wants it
        self.option("-fw_cfg", format!("name=opt/org.ringfence/{name},string={value}"));
    }

    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }
}

/// A command that starts `program`, by way of this one, so that it dies with the thread that spawns it,
/// however that thread ends.
pub fn tethered(program: &str, arguments: Vec<OsString>) -> anyhow::Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(TETHERED).arg(program).args(arguments);
    Ok(command)
}

/// Becomes the program that `arguments` start with. Returns only if that fails.
pub fn exec_tethered(mut arguments: impl Iterator<Item = OsString>) -> Error {
    let program = arguments.next().unwrap_or_default();
    match rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        Ok(()) => Error::new(Command::new(&program).args(arguments).exec())
            .context(format!("cannot start {}", program.display())),
        Err(error) => Error::new(error).context("cannot tie QEMU to this process"),
    }
}

/// Makes sure that KVM runs `machine` here, by starting it: /dev/kvm may be there and still not do it.
pub fn probe_kvm(machine: &Machine) -> anyhow::Result<()> {
    let mut guest = Guest::start(machine.command()?)?;
    // What QEMU has to say comes on the same pipe, so only words of the kernel's own count.
    let Err(error) = guest.wait_until(KVM_LIMIT, |output| output.contains(KERNEL_RUNS)) else {
        return Ok(());
    };
    let output = guest.kill();
    // QEMU may go on to an assertion and an abort; what it says first is the cause.
    let mut lines = output.lines().filter(|line| !line.trim().is_empty() && !line.contains(" warning: "));
    let reason = lines.next().map_or_else(|| format!("{error:#}"), |line| line.trim().into());
    bail!("--accel kvm: KVM cannot run the kernel on this machine ({reason}); use --accel tcg, the default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut Machine)) -> String {
        let mut machine = Machine::new(Boot::Pvh("k".into()));
        change(&mut machine);
        machine.arguments().join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn what_a_person_adds_wins() {
        let usual = line(|_| ());
        assert!(usual.contains(" -accel tcg ") && usual.contains(" -smp 1,maxcpus=2 "), "{usual}");
        for words in ["-smp 4 -accel kvm", "--accel kvm --smp 4"] {
            let other = line(|machine| machine.add(words));
            assert!(
                other.ends_with(words) && !other.contains("tcg") && !other.contains("maxcpus"),
                "{other}"
            );
        }
    }

    #[test]
    fn networks() {
        let own = line(|machine| machine.port = Some(81));
        assert!(own.contains("-netdev user,id=net0,hostfwd=tcp:127.0.0.1:81-:80 "), "{own}");
        assert!(own.contains("ringfence/url,string=http://127.0.0.1:81/"), "{own}");
        let fixed = line(|machine| {
            (machine.port, machine.address) = (Some(81), "10.1.0.9/16,10.1.2.3".parse().ok());
        });
        assert!(
            fixed
                .contains("user,id=net0,net=10.1.0.9/16,host=10.1.2.3,hostfwd=tcp:127.0.0.1:81-10.1.0.9:80 ")
        );
        assert!(fixed.contains("ringfence/address,string=10.1.0.9/16,,10.1.2.3"), "{fixed}");
        let tap = line(|machine| (machine.port, machine.tap) = (Some(81), Some("a,b".into())));
        assert!(tap.contains(" tap,id=net0,ifname=a,,b,script=no,downscript=no "), "{tap}");
        assert!(
            tap.contains("virtio-net-pci,netdev=net0") && !tap.contains("url") && !tap.contains("hostfwd")
        );
    }
}
