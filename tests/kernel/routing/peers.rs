//! The other side of the link: BIRD, and a client that sends nonsense.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::netns::{NetNs, eventually};

/// A process that is killed with its owner.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program in a namespace, its output in a file.
    pub fn start(host: &NetNs, command: &mut Command, log: &std::path::Path) -> Process {
        let output = fs::File::options().create(true).append(true).open(log).expect("the log file");
        let errors = output.try_clone().expect("a second descriptor");
        let child = host.run(|| {
            command
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors)
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}"))
        });
        Process { child }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("killing");
        self.child.wait().expect("waiting");
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("a signal");
        eventually("the process ends", || (!self.is_running()).then_some(()));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waiting").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two hosts on one wire: 192.0.2.1 and 192.0.2.2.
pub fn wire() -> (NetNs, NetNs) {
    let (a, b) = (NetNs::new(), NetNs::new());
    a.ip(&format!("link add up0 type veth peer name up0 netns {}", b.path()));
    for (host, address) in [(&a, "192.0.2.1/24"), (&b, "192.0.2.2/24")] {
        host.ip(&format!("address add {address} dev up0"));
        host.ip("link set up0 up");
    }
    (a, b)
}

/// BIRD 2 at 192.0.2.2 with one prefix of its own, 10.77.0.0/16.
pub struct Bird {
    folder: PathBuf,
    process: Process,
}

impl Bird {
    pub fn start(host: &NetNs, folder: &std::path::Path) -> Bird {
        let folder = folder.to_owned();
        let configuration = r#"
router id 192.0.2.2;
protocol device {}
protocol direct { ipv4; }
protocol static { ipv4; route 10.77.0.0/16 blackhole; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol bgp seaway {
    local 192.0.2.2 as 64512;
    neighbor 192.0.2.1 as 64512;
    graceful restart on;
    connect retry time 1;
    connect delay time 1;
    error wait time 1, 2;
    ipv4 { import all; export where source = RTS_STATIC; next hop self; };
}
"#;
        fs::write(folder.join("bird.conf"), configuration).expect("bird.conf");
        let mut command = Command::new("/usr/sbin/bird");
        command.arg("-f").arg("-c").arg(folder.join("bird.conf"));
        command.arg("-s").arg(folder.join("bird.ctl"));
        let process = Process::start(host, &mut command, &folder.join("bird.log"));
        Bird { folder, process }
    }

    /// What `birdc` says.
    pub fn ask(&self, question: &str) -> String {
        let output = Command::new("/usr/sbin/birdc")
            .arg("-s")
            .arg(self.folder.join("bird.ctl"))
            .args(question.split(' '))
            .output()
            .expect("running birdc");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn await_established(&mut self) {
        eventually("BIRD sees the session established", || {
            assert!(self.process.is_running(), "BIRD has ended; see bird.log");
            self.ask("show protocols seaway").contains("Established").then_some(())
        });
    }
}
