//! A network of a test's own: a namespace with a tap interface that Linux answers for. It ends with the last
//! process in it.

use std::ffi::OsString;
use std::process::{Command, Stdio};

/// The name of the tap interface.
pub const TAP: &str = "ringfence";

/// Arguments for `unshare`, so that it makes the namespace, with `address` on the tap interface, and becomes
/// `program` in it.
pub fn arguments(address: &str, program: impl Into<OsString>) -> Vec<OsString> {
    let script = format!(
        "ip link set lo up && ip tuntap add {TAP} mode tap && ip addr add {address} dev {TAP} && \
         ip link set {TAP} up && exec \"$@\""
    );
    let flags = if is_root() { "-n" } else { "-rn" };
    let words = [flags, "sh", "-c", &script, "sh"].map(OsString::from);
    words.into_iter().chain([program.into()]).collect()
}

/// A command in the namespace of process `id`.
pub fn inside(id: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &id.to_string(), "-n"]);
    if !is_root() {
        command.arg("-U");
    }
    command.args(["--", program]).stdin(Stdio::null());
    command
}

/// Curl there, for at most `seconds`.
pub fn curl(id: u32, seconds: u32, url: &str) -> Command {
    let mut command = inside(id, "curl");
    command.args(["-q", "-sS", "--fail", "--noproxy", "*", "--max-time", &seconds.to_string(), url]);
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
