//! The tier `emulated`: the kernel tier's tests of the datapath on other kernels than this machine's.
//!
//! Debian's kernel boots in an emulator, without virtualisation and without any network device. Its first process is
//! this program (`guest`), which runs the test binary of the kernel tier as it was built for this machine: the same
//! programs, loaded by the verifier of that kernel, and the same packets through them. What it prints comes by the
//! serial console. Nothing is installed: emulator and kernels are unpacked under `target/emulated`.
//!
//! Each test loads the programs anew, which takes an emulated verifier seconds: where no filter is given, some tests of
//! each kind run, and all of them with the filter `datapath`.

mod archive;
mod guest;
mod kernel;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::test::Count;
use crate::{ebpf, images, install, run};
use archive::Archive;
use kernel::Kernel;

pub(crate) use guest::guest;

/// What is booted where nothing else is named: the oldest kernel that the programs are for.
pub(crate) const OLDEST: &str = "6.1";

/// For one kernel and what is chosen, or all. On a machine with nothing else to do it takes minutes.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
const DEADLINE_OF_ALL: Duration = Duration::from_secs(60 * 60);
/// The machine's memory, in MiB.
const MEMORY: &str = "2048";

/// Repeated string operations are emulated byte by byte: without them, and without what only protects from others on
/// the same machine, the verifier is several times as fast.
const CPU: &str = "max,-erms,-fsrm";
/// 112 is `X86_FEATURE_REP_GOOD` of asm/cpufeatures.h.
const QUICK: &str = "clearcpuid=112 init_on_alloc=0 mitigations=off";

/// What the tests of the datapath call.
const PROGRAMS: &[&str] = &["ip", "tc", "bpftool", "cat", "sleep"];
const TESTS: &str = "/kernel-tests";

/// What runs where no filter is given: every program in every variant, and of each kind of packet and of socket call
/// one test at least, also over a restart of the agent.
const CHOSEN: &[&str] = &[
    "verifier::every_program_passes_the_verifier_with_and_without_its_log",
    "verifier::every_map_is_pinned_under_its_name",
    "verifier::links_are_used_where_upstream_has_them_and_clsact_before",
    "program_runs::a_translated_packet_is_the_one_that_a_host_would_have_sent",
    "program_runs::options_and_extension_headers_are_walked",
    "delivery::a_packet_that_is_handed_over_has_a_hop_less_and_the_pods_hardware_address",
    "delivery::pods_of_a_node_reach_each_other_past_its_stack",
    "drops::a_drop_is_told_with_its_reason_and_both_ends_in_both_families",
    "errors::an_error_about_a_translated_packet_becomes_one_about_the_packet_that_was_sent",
    "errors::a_client_learns_the_path_mtu_to_the_service_from_a_router_that_knows_only_the_backend",
    "frontends::a_client_beyond_the_node_reaches_a_backend_beyond_it_by_an_address_of_the_node",
    "frontends::a_pod_reaches_every_kind_of_frontend",
    "masquerade::a_flow_keeps_its_port_and_outlives_the_agent",
    "masquerade::a_pod_reaches_a_host_outside_that_knows_the_way_to_the_node_only",
    "masquerade::packets::packets_that_leave_and_come_back_are_those_that_hosts_would_have_sent",
    "packets::a_connection_outlives_the_agent_and_its_replacement",
    "packets::a_link_that_went_with_its_pod_is_cleared_and_its_index_can_serve_again",
    "packets::a_pod_reaches_itself_through_its_service",
    "packets::datagrams_in_fragments_pass_both_ways",
    "packets::older_kernels_clsact_serves_the_same_and_survives_its_agent",
    "refusal::a_service_without_endpoints_refuses_pods_and_clients_beyond_the_node",
    "routing::a_packet_that_is_sent_on_has_a_hop_less_and_nothing_else_changed",
    "routing::pods_reach_pods_of_other_nodes_past_the_nodes_stack",
    "sockets::a_new_agent_keeps_ids_services_and_flows",
    "sockets::a_process_of_the_node_reaches_a_node_port_by_every_address_of_the_node_and_by_loopback",
    "sockets::a_service_without_backends_refuses_at_once",
    "sockets::a_v6_socket_reaches_a_v4_service_by_its_mapped_address",
    "sockets::connect_reaches_a_backend_and_getpeername_shows_the_service",
    "sockets::unconnected_datagrams_come_back_from_the_service",
    "source_ranges::packets_of_clients_in_no_range_are_dropped_by_their_reason",
    "stale::a_socket_ends_with_the_backend_that_its_service_connected_it_to_and_no_other_does",
    "stale::this_kernel_can_end_sockets",
];

/// Runs the tests on each kernel, such as 6.1, and counts them.
pub(crate) fn run(kernels: &[String], filter: Option<&str>) -> Result<Count> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the tier emulated boots kernels for x86_64, and this machine is {}", std::env::consts::ARCH);
    }
    install::ensure(&[install::IP, install::BPFTOOL])?;
    let folder = run::target().join("emulated");
    let kernels =
        kernels.iter().map(|version| Kernel::of_debian(version, &folder)).collect::<Result<Vec<_>>>()?;
    let emulator = Emulator::found_or_unpacked(&folder)?;
    run::step("building the BPF object", ebpf::build)?;
    let tests = run::step("building the tests of the kernel tier", test_binary)?;
    let names = names(&tests, filter)?;
    let mut all = Count::default();
    for kernel in &kernels {
        let initramfs = folder.join("initramfs");
        std::fs::write(&initramfs, contents(kernel, &tests, &names)?.finish())
            .with_context(|| format!("writing {}", initramfs.display()))?;
        run::say(&format!("    booting {}", kernel.name));
        let deadline = if filter.is_some() { DEADLINE_OF_ALL } else { DEADLINE };
        let count = boot(emulator.command(kernel, &initramfs), deadline)
            .with_context(|| format!("on {}", kernel.name))?;
        if count.all() != names.len() as u64 {
            bail!("{} tests ran of {} on {}", count.all(), names.len(), kernel.name);
        }
        all.add_all(&count);
    }
    Ok(all)
}

/// The kernel tier's test binary, with the BPF object inside.
fn test_binary() -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", "kernel", "--no-run"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("building the tests of the kernel tier ended with {}", output.status);
    }
    // Other crates have a target of this name too.
    let source = run::root().join("tests/kernel/main.rs");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message["target"]["src_path"].as_str().is_some_and(|path| Path::new(path) == source)
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no executable for the kernel tier")
}

/// What the emulated machine has in place of a disk.
fn contents(kernel: &Kernel, tests: &Path, names: &[String]) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "etc", guest::MODULES] {
        archive.folder(folder);
    }
    // The kernel opens it for the first process, before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    let own = std::env::current_exe().context("finding xtask")?;
    let mut programs = vec![(own, "init".to_owned()), (tests.to_owned(), TESTS.to_owned())];
    for name in PROGRAMS {
        let path = run::which(name).with_context(|| format!("{name} is not on this machine"))?;
        programs.push((path, format!("usr/bin/{name}")));
    }
    for (path, name) in &programs {
        archive.program(name, &read(path)?);
        for library in images::libraries(path)? {
            archive.program(&library.display().to_string(), &read(&library)?);
        }
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = module.file_name().context("a module has a name")?.to_string_lossy();
        archive.file(&format!("{}/{number:02}-{name}", guest::MODULES), &read(module)?);
    }
    // One test at a time, as everywhere: what they count is the machine's.
    let options = [TESTS, "--test-threads=1", "--color=never", "--show-output", "--exact"];
    let words: Vec<&str> = options.into_iter().chain(names.iter().map(String::as_str)).collect();
    archive.file(guest::COMMAND, words.join("\n").as_bytes());
    Ok(archive)
}

/// The tests to run, by their whole names.
fn names(tests: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let listed = run::output(Command::new(tests).args(["--list", "--format", "terse"]))?;
    let of_datapath = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let of_datapath = of_datapath.filter(|name| name.starts_with("datapath::"));
    let names: Vec<String> = match filter {
        Some(filter) => of_datapath.filter(|name| name.contains(filter)).map(str::to_owned).collect(),
        None => CHOSEN.iter().map(|name| format!("datapath::{name}")).collect(),
    };
    let unknown = names.iter().find(|name| !listed.contains(&format!("{name}: test")));
    if let Some(unknown) = unknown {
        bail!("{unknown}, which is among those to run, is no test");
    }
    if names.is_empty() {
        bail!("no test of the datapath is named so");
    }
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// qemu, of this machine or unpacked.
struct Emulator {
    program: PathBuf,
    /// Folders of libraries beside the system's, as the dynamic linker takes them.
    libraries: Option<String>,
}

impl Emulator {
    fn found_or_unpacked(folder: &Path) -> Result<Self> {
        const PROGRAM: &str = "qemu-system-x86_64";
        if let Some(program) = run::which(PROGRAM) {
            return Ok(Self { program, libraries: None });
        }
        let root = folder.join("qemu");
        install::unpacked_with_dependencies("qemu-system-x86", &root)?;
        let libraries = ["usr/lib", "lib"]
            .map(|folder| root.join(folder).join("x86_64-linux-gnu").display().to_string())
            .join(":");
        Ok(Self { program: root.join("usr/bin").join(PROGRAM), libraries: Some(libraries) })
    }

    fn command(&self, kernel: &Kernel, initramfs: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        // No network device at all.
        command.args(["-machine", "q35,accel=tcg", "-cpu", CPU, "-smp", "2", "-m", MEMORY, "-nodefaults"]);
        command.args(["-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
        command.arg("-append").arg(format!("console=ttyS0 loglevel=4 panic=-1 {QUICK} -- guest"));
        command
    }
}

/// Ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Shows the console of the machine until it is off, and counts what the tests in it report.
fn boot(mut command: Command, deadline: Duration) -> Result<Count> {
    let start = Instant::now();
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the emulator")?;
    let mut machine = Machine(child);
    let console = lines(machine.0.stdout.take().expect("standard output is piped"));
    let mut count = Count::default();
    let mut verdict = None;
    loop {
        match console.recv_timeout(deadline.saturating_sub(start.elapsed())) {
            Ok(line) => {
                println!("{line}");
                if let Some(summary) = line.strip_prefix("test result: ") {
                    count.add(summary);
                }
                if let Some(said) = line.strip_prefix(guest::VERDICT) {
                    verdict = Some(said.to_owned());
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!("not done after {} s", deadline.as_secs()),
        }
    }
    match verdict.as_deref() {
        Some(guest::PASSED) => Ok(count),
        Some(_) if count.failed > 0 => Ok(count),
        Some(said) => bail!("the tests ended with {said} without a failed test"),
        None => bail!("the machine went off without a verdict"),
    }
}

/// Lines as they come; a console prints whatever bytes it likes.
fn lines(console: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}
