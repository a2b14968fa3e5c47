//! The first process of the emulated machine: what an init does, then the tests, a verdict, and off.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// Where the kernel's modules are; their names begin with their turn.
pub(super) const MODULES: &str = "modules";
/// The command that runs the tests, a word in each line.
pub(super) const COMMAND: &str = "command";
/// What the last line says begins so, and goes on with how the tests ended.
pub(super) const VERDICT: &str = "emulated machine: tests ended with ";
pub(super) const PASSED: &str = "exit status: 0";

/// Runs the tests and switches the machine off, however they ended.
pub(crate) fn guest() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is for the first process of an emulated machine");
    }
    let said = match serve() {
        Ok(status) => format!("{VERDICT}{status}"),
        Err(error) => format!("emulated machine: {error:#}"),
    };
    println!("{said}");
    let mut out = std::io::stdout();
    let _no_console = out.flush();
    // What is on its way to the console would be lost.
    let _no_terminal = nix::sys::termios::tcdrain(&out);
    // SAFETY: a system call without pointers.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    bail!("the machine does not go off: {}", std::io::Error::last_os_error())
}

fn serve() -> Result<std::process::ExitStatus> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        let none: Option<&str> = None;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mounting {at}"))?;
    }
    let release = std::fs::read_to_string("/proc/version").context("reading the kernel's version")?;
    println!("emulated machine: {}", release.trim());
    load_modules()?;
    let words = std::fs::read_to_string(Path::new("/").join(COMMAND)).context("reading the command")?;
    let mut words = words.lines();
    let program = words.next().context("no command")?;
    let mut command = Command::new(program);
    command.args(words).env("PATH", "/usr/bin");
    command.status().with_context(|| format!("starting {program}"))
}

fn load_modules() -> Result<()> {
    let folder = Path::new("/").join(MODULES);
    let entries = std::fs::read_dir(&folder).context("listing the modules")?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        load_module(&path).with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

fn load_module(path: &Path) -> Result<()> {
    /// MODULE_INIT_COMPRESSED_FILE of linux/module.h.
    const COMPRESSED: libc::c_int = 4;
    const NO_PARAMETERS: &CStr = c"";
    let file = File::open(path)?;
    let flags = if path.extension().is_some_and(|ending| ending == "ko") { 0 } else { COMPRESSED };
    // SAFETY: the parameters are a string that lives on, and the descriptor is open.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), NO_PARAMETERS.as_ptr(), flags) };
    let error = std::io::Error::last_os_error();
    // Another module may have brought it.
    if result < 0 && error.raw_os_error() != Some(libc::EEXIST) {
        return Err(error.into());
    }
    Ok(())
}
