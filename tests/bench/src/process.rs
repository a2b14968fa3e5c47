//! Processes that are started, read from /proc and ended by their id.

use std::{
    fs::File,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// What a process gets to end by itself after SIGTERM.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// A child that does not outlive this.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::start_logged(command, log)
    }

    /// Starts what is prepared; what it prints goes to `log`.
    pub(crate) fn start_logged(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::spawn(command)
    }

    /// Starts what is prepared. The kernel ends it together with the calling thread.
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let program = Path::new(command.get_program()).to_owned();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // SAFETY: prctl is safe to call between fork and exec, and nothing else happens there.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, name })
    }

    pub(crate) fn id(&self) -> libc::pid_t {
        self.child.id().cast_signed()
    }

    /// Its ends of pipes, where the command asked for them; once.
    pub(crate) fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// Fails when the process is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// CPU time of all its threads, dead ones too, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_of(self.id()).with_context(|| format!("the CPU time of {} cannot be read", self.name))
    }

    /// What of its CPU time was spent in the kernel, in seconds; the kernel counts it in ticks of 10 ms.
    pub(crate) fn cpu_of_kernel(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The name before the last parenthesis may hold anything; stime is the thirteenth field after it.
        let field = text.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(12));
        let ticks: f64 =
            field.and_then(|ticks| ticks.parse().ok()).with_context(|| format!("{path} has no stime"))?;
        // SAFETY: sysconf has no memory effects.
        Ok(ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64)
    }

    /// Resident memory now and at its highest, in MB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/status", self.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            kilobytes.map(|kilobytes| kilobytes / 1024.0).with_context(|| format!("{path} has no {name}"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Makes the highest resident memory that of now.
    pub(crate) fn forget_highest(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.id());
        std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
    }

    /// SIGTERM, then SIGKILL where that is not enough.
    pub(crate) fn stop(mut self) -> Result<()> {
        // SAFETY: kill has no memory effects; the child is not waited for yet, so the id is its own.
        unsafe { libc::kill(self.id(), libc::SIGTERM) };
        let deadline = std::time::Instant::now() + STOP_TIME_MAX;
        while std::time::Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// Ends it at once, where it has not ended by itself.
    pub(crate) fn kill(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // It may end by itself in between.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// CPU time of all threads of a process, dead ones too, in seconds.
pub(crate) fn cpu_of(process: libc::pid_t) -> std::io::Result<f64> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to a valid place on the stack.
    let failed = unsafe { libc::clock_getcpuclockid(process, &raw mut clock) };
    if failed != 0 {
        return Err(std::io::Error::from_raw_os_error(failed));
    }
    // SAFETY: as above.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// A watcher has a connection, and there may be many.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid place on the stack. Where they fail, connecting says so.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_read_as_it_spends_it() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["if=/dev/zero", "of=/dev/null"].map(str::to_owned);
        let process = Process::start(Path::new("dd"), &arguments, &folder.path().join("log")).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while process.cpu_of_kernel().unwrap() < 0.02 {
            assert!(std::time::Instant::now() < deadline, "dd spends its time in the kernel");
            std::thread::yield_now();
        }
        assert!(process.cpu().unwrap() > 0.01);
    }
}
