//! Makes the cluster: builds what is missing, wires the hosts, starts their first processes and waits for Ready nodes.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::host::{Process, Spec};
use super::layout::{self, Cluster, FABRIC, IpFamily, SERVER, node_address, node_name};
use super::status::enter_command;
use crate::{build, images, install, run};

const READY_WITHIN: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// redb inside seaway-server
    Embedded,
    /// Debian's etcd beside seaway-server
    Etcd,
}

#[derive(Args)]
pub(crate) struct UpArguments {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(layout::NODES_MAX)))]
    pub(crate) nodes: u8,
    /// Where the API server keeps its objects
    #[arg(long, value_enum, default_value = "embedded")]
    pub(crate) store: Store,
    /// Which IP families the cluster has
    #[arg(long, value_enum, default_value = "dual")]
    pub(crate) ip_family: IpFamily,
    /// Release binaries instead of development ones
    #[arg(long)]
    pub(crate) release: bool,
}

/// What the hosts run.
struct Parts {
    binaries: BTreeMap<String, PathBuf>,
    images: images::Images,
    arguments: Cluster,
}

impl Parts {
    fn binary(&self, name: &str) -> &Path {
        &self.binaries[name]
    }
}

pub(crate) fn up(arguments: &UpArguments) -> Result<()> {
    let store = if arguments.store == Store::Etcd { "etcd" } else { "embedded" };
    if let Some(cluster) = running() {
        let same = cluster.nodes == arguments.nodes
            && cluster.store == store
            && cluster.release == arguments.release
            && cluster.ip_family == arguments.ip_family;
        if same {
            run::say("the cluster is up already");
            run::step("waiting for Ready nodes", || ready(arguments.nodes))?;
            return super::status();
        }
        run::say("another cluster is up: taking it down first");
    }
    if !layout::namespaces().is_empty() || layout::state().exists() {
        super::down()?;
    }
    let start = Instant::now();
    run::say(&format!("making a cluster of {} nodes, store {store}", arguments.nodes));
    install::ensure(&[install::CLUSTER, install::IMAGES, install::KUBECTL])?;
    if arguments.store == Store::Etcd {
        install::ensure(&[install::ETCD])?;
    }
    layout::cgroup2()?;
    if arguments.ip_family == IpFamily::Dual && !Path::new("/proc/sys/net/ipv6").exists() {
        bail!("this kernel has no IPv6: add --ip-family ipv4");
    }
    let binaries = build::binaries(arguments.release)?;
    let images = run::step("building the test images", images::build)?;
    let cluster = Cluster {
        nodes: arguments.nodes,
        store: store.to_owned(),
        api_port: free_port()?,
        release: arguments.release,
        ip_family: arguments.ip_family,
    };
    let parts = Parts { binaries, images, arguments: cluster };
    let started = Instant::now();
    std::fs::create_dir_all(layout::state().join("logs")).context("making target/cluster")?;
    parts.arguments.save()?;
    run::step("wiring the hosts", || network(arguments.nodes, arguments.ip_family))?;
    run::step("starting the image registry", || registry(&parts))?;
    run::step("starting the server", || server(&parts))?;
    run::step("starting the nodes", || nodes(&parts))?;
    run::step("waiting for Ready nodes", || ready(arguments.nodes))?;
    announce(start, started);
    Ok(())
}

fn announce(start: Instant, started: Instant) {
    let kubeconfig = layout::state().join("kubeconfig");
    run::say(&format!(
        "\nThe cluster is ready ({:.1} s, of which {:.1} s from the first host on).\n    export KUBECONFIG={}\n    kubectl get nodes",
        start.elapsed().as_secs_f64(),
        started.elapsed().as_secs_f64(),
        kubeconfig.display()
    ));
}

/// The cluster that runs now, where every host's first process is alive.
fn running() -> Option<Cluster> {
    let cluster = Cluster::load().ok()?;
    let mut hosts = vec![SERVER.to_owned()];
    hosts.extend((1..=cluster.nodes).map(node_name));
    let alive = hosts.iter().all(|host| {
        std::fs::read_to_string(layout::state().join(host).join("host.pid"))
            .is_ok_and(|pid| Path::new("/proc").join(pid.trim()).exists())
    });
    alive.then_some(cluster)
}

/// 6443, or the next free port of loopback.
fn free_port() -> Result<u16> {
    (layout::API_PORT..layout::API_PORT + 100)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free port of 127.0.0.1 between 6443 and 6542")
}

fn ip(arguments: &str) -> Result<()> {
    run::output(Command::new("ip").args(arguments.split(' '))).map(|_| ())
}

/// The fabric is a bridge in a namespace of its own; each host has one link to it, and nothing leads out.
fn network(nodes: u8, ip_family: IpFamily) -> Result<()> {
    ip(&format!("netns add {FABRIC}"))?;
    ip(&format!("-n {FABRIC} link add {} type bridge forward_delay 0", layout::BRIDGE))?;
    addresses(FABRIC, layout::BRIDGE, layout::FABRIC_ADDRESS, ip_family)?;
    ip(&format!("-n {FABRIC} link set {} up", layout::BRIDGE))?;
    ip(&format!("-n {FABRIC} link set lo up"))?;
    let mut hosts = vec![(SERVER.to_owned(), layout::SERVER_ADDRESS)];
    hosts.extend((1..=nodes).map(|index| (node_name(index), node_address(index))));
    for (host, address) in hosts {
        ip(&format!("netns add {host}"))?;
        ip(&format!("-n {host} link set lo up"))?;
        ip(&format!("-n {host} link add eth0 type veth peer name {host} netns {FABRIC}"))?;
        ip(&format!("-n {FABRIC} link set {host} master {} up", layout::BRIDGE))?;
        addresses(&host, "eth0", address, ip_family)?;
        ip(&format!("-n {host} link set eth0 up"))?;
    }
    Ok(())
}

fn addresses(host: &str, link: &str, address: Ipv4Addr, ip_family: IpFamily) -> Result<()> {
    ip(&format!("-n {host} addr add {address}/24 dev {link}"))?;
    if ip_family == IpFamily::Dual {
        ip(&format!("-n {host} addr add {}/64 dev {link} nodad", layout::address_v6(address)))?;
    }
    Ok(())
}

fn process(name: &str, program: &Path, arguments: Vec<String>) -> Process {
    Process {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments,
        environment: BTreeMap::from([("RUST_BACKTRACE".to_owned(), "1".to_owned())]),
        listen: Vec::new(),
        wants: None,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Starts the first process of a host and leaves it running.
fn start_host(name: &str, processes: Vec<Process>) -> Result<()> {
    let state = layout::state();
    let folder = state.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let spec = Spec { name: name.to_owned(), folder: folder.clone(), logs: state.join("logs"), processes };
    let path = folder.join("host.json");
    std::fs::write(&path, serde_json::to_string_pretty(&spec).context("encoding the host")?)
        .context("writing host.json")?;
    let log_path = state.join("logs").join(format!("{name}.host.log"));
    let log = File::create(&log_path).context("making the host's log")?;
    let mut command = Command::new(std::env::current_exe().context("finding xtask")?);
    command.arg("host").arg(&path).stdin(Stdio::null());
    command.stdout(log.try_clone().context("opening the log")?).stderr(log);
    // SAFETY: setsid is async-signal-safe; the host must outlive this process and its terminal.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(|_| ()).map_err(std::io::Error::from));
    }
    let mut child = command.spawn().context("starting the host")?;
    until(Duration::from_secs(10), &format!("{name} to start (see {})", log_path.display()), || {
        if let Some(status) = child.try_wait().context("waiting for the host")? {
            bail!("{name} ended with {status}: {}", std::fs::read_to_string(&log_path).unwrap_or_default());
        }
        Ok(folder.join("host.pid").exists())
    })
}

/// Waits for a condition; an error says what was waited for.
pub(super) fn until(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn server(parts: &Parts) -> Result<()> {
    let mut processes = Vec::new();
    let mut store = words("--store embedded");
    if parts.arguments.store == "etcd" {
        let etcd = run::which("etcd").context("etcd is not on this machine")?;
        let arguments = words(
            "--data-dir /run/node/etcd --listen-client-urls http://127.0.0.1:2379 \
             --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level warn",
        );
        processes.push(process("etcd", &etcd, arguments));
        store = words("--store etcd --etcd-endpoint http://127.0.0.1:2379");
    }
    let mut arguments = words(&format!(
        "all --data-dir /run/node/data --bind {0}:{1} --advertise-address {0} --san 127.0.0.1 --service-cidr {2} \
         --cluster-cidr {3}",
        layout::SERVER_ADDRESS,
        layout::API_PORT,
        parts.arguments.ip_family.service_cidrs(),
        parts.arguments.ip_family.cluster_cidrs()
    ));
    arguments.extend(store);
    let mut seaway = process("server", parts.binary("seaway-server"), arguments);
    seaway.listen = vec![parts.arguments.api_port];
    processes.push(seaway);
    let mut router = process(
        "agent",
        parts.binary("seaway-agent"),
        words(&format!(
            "--router-only --node-name {SERVER} --node-ip {} --kubeconfig /run/node/agent.kubeconfig \
             --state-dir /run/node/seaway --run-dir /run/seaway --bpf-dir /sys/fs/bpf/seaway {}",
            parts.arguments.ip_family.host_addresses(layout::SERVER_ADDRESS),
            ranges(parts)
        )),
    );
    router.wants = Some(PathBuf::from("/run/node/agent.kubeconfig"));
    processes.push(router);
    start_host(SERVER, processes)?;
    let data = layout::state().join(SERVER).join("data");
    until(Duration::from_secs(30), "the server's CA (see target/cluster/logs/sw-server.server.log)", || {
        Ok(data.join("pki/ca.key").exists() && data.join("admin.kubeconfig").exists())
    })?;
    let url = format!("https://127.0.0.1:{}", parts.arguments.api_port);
    let fabric = format!("https://{}:{}", layout::SERVER_ADDRESS, layout::API_PORT);
    let state = layout::state();
    kubeconfig(parts, "kubernetes-admin", "system:masters", &url, &state.join("kubeconfig"))?;
    kubeconfig(parts, "kubernetes-admin", "system:masters", &fabric, &state.join("kubeconfig.fabric"))?;
    until(
        Duration::from_secs(30),
        "the API server to be ready (see target/cluster/logs/sw-server.server.log)",
        || Ok(kubectl(&["get", "--raw", "/readyz"]).is_ok()),
    )?;
    kubeconfig(
        parts,
        "system:seaway-router",
        "system:nodes",
        &fabric,
        &state.join(SERVER).join("agent.kubeconfig"),
    )
}

/// The agents' flags for the ranges of pods and Services.
fn ranges(parts: &Parts) -> String {
    let ip_family = parts.arguments.ip_family;
    format!("--cluster-cidr {} --service-cidr {}", ip_family.cluster_cidrs(), ip_family.service_cidrs())
}

/// Images come from the fabric, never from outside: every registry name leads there.
fn registry(parts: &Parts) -> Result<()> {
    let mut arguments =
        words(&format!("registry --listen {}:{}", layout::FABRIC_ADDRESS, layout::REGISTRY_PORT));
    arguments.push(parts.images.registry.display().to_string());
    start_host(FABRIC, vec![process("registry", &parts.images.multitool, arguments)])
}

fn registry_config(folder: &Path) -> Result<()> {
    let folder = folder.join("certs.d/_default");
    std::fs::create_dir_all(&folder).context("making the folder of registry hosts")?;
    let url = format!("http://{}:{}", layout::FABRIC_ADDRESS, layout::REGISTRY_PORT);
    let text = format!("server = \"{url}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    std::fs::write(folder.join("hosts.toml"), text).context("writing hosts.toml")
}

fn kubeconfig(parts: &Parts, name: &str, group: &str, url: &str, file: &Path) -> Result<()> {
    let data = layout::state().join(SERVER).join("data");
    run::output(
        Command::new(parts.binary("seaway-server"))
            .arg("kubeconfig")
            .arg("--data-dir")
            .arg(data)
            .args(["--cn", name, "--org", group, "--server", url, "--out"])
            .arg(file),
    )
    .map(|_| ())
}

pub(super) fn kubectl(arguments: &[&str]) -> Result<String> {
    let program = run::which("kubectl").context("kubectl is not on this machine")?;
    run::output(
        Command::new(program).arg("--kubeconfig").arg(layout::state().join("kubeconfig")).args(arguments),
    )
}

fn nodes(parts: &Parts) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (1..=parts.arguments.nodes).map(|index| scope.spawn(move || node(parts, index))).collect();
        for thread in threads {
            thread.join().expect("a node's thread does not panic")?;
        }
        Ok(())
    })
}

fn node(parts: &Parts, index: u8) -> Result<()> {
    let name = node_name(index);
    let address = node_address(index);
    let folder = layout::state().join(&name);
    std::fs::create_dir_all(folder.join("cni/net.d")).context("making the node's folder")?;
    credentials(parts, &name, address, &folder)?;
    plugins(parts, &folder)?;
    registry_config(&folder)?;
    std::fs::write(folder.join("containerd.toml"), containerd_config()).context("writing containerd.toml")?;
    kubelet_config(&folder)?;
    let containerd = run::which("containerd").context("containerd is not on this machine")?;
    let addresses = parts.arguments.ip_family.host_addresses(address);
    let agent = words(&format!(
        "--node-name {name} --node-ip {addresses} --kubeconfig /run/node/agent.kubeconfig --state-dir /run/node/seaway \
         --run-dir /run/seaway --containerd-socket /run/containerd/containerd.sock --cgroup-parent /{name}/kubepods \
         --bpf-dir /sys/fs/bpf/seaway --cni-conf-dir /run/node/cni/net.d --bgp-listen-range {} {} \
         --tls-cert /run/node/pki/tls.crt --tls-key /run/node/pki/tls.key --client-ca /run/node/pki/ca.crt          --metrics-bind-address 127.0.0.1:10249",
        layout::FABRIC_CIDR,
        ranges(parts)
    ));
    let mut agent = process("agent", parts.binary("seaway-agent"), agent);
    agent.wants = Some(PathBuf::from("/run/containerd/containerd.sock"));
    let processes = vec![
        process("containerd", &containerd, words("--config /run/node/containerd.toml --log-level warn")),
        agent,
    ];
    start_host(&name, processes)?;
    import(parts, &name)
}

fn credentials(parts: &Parts, name: &str, address: Ipv4Addr, folder: &Path) -> Result<()> {
    let data = layout::state().join(SERVER).join("data");
    run::output(
        Command::new(parts.binary("seaway-server"))
            .arg("cert")
            .arg("--data-dir")
            .arg(&data)
            .args(["--cn", &format!("system:node:{name}"), "--org", "system:nodes"])
            .args(["--san", name, "--san", &address.to_string()])
            .args(["--san", &layout::address_v6(address).to_string(), "--out-dir"])
            .arg(folder.join("pki")),
    )?;
    let url = format!("https://{}:{}", layout::SERVER_ADDRESS, layout::API_PORT);
    kubeconfig(parts, &format!("system:node:{name}"), "system:nodes", &url, &folder.join("agent.kubeconfig"))
}

/// containerd calls two plugins by name: ours, and the field's `loopback`.
fn plugins(parts: &Parts, folder: &Path) -> Result<()> {
    let bin = folder.join("cni/bin");
    std::fs::create_dir_all(&bin).context("making the folder of CNI plugins")?;
    std::fs::copy(parts.binary("seaway-cni"), bin.join("seaway-cni")).context("copying seaway-cni")?;
    std::fs::copy("/usr/lib/cni/loopback", bin.join("loopback")).context("copying /usr/lib/cni/loopback")?;
    Ok(())
}

/// The nodes share this machine's disk, which may be fuller than a node's should be, and their images come from nowhere else.
fn kubelet_config(folder: &Path) -> Result<()> {
    let folder = folder.join("seaway");
    std::fs::create_dir_all(&folder).context("making the agent's folder")?;
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
        evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}\n\
        imageGCHighThresholdPercent: 100\n";
    std::fs::write(folder.join("kubelet.yaml"), text).context("writing kubelet.yaml")
}

fn containerd_config() -> &'static str {
    r#"version = 2
root = "/run/node/containerd/root"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/run/node/cni/bin"
    conf_dir = "/run/node/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/run/node/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#
}

fn import(parts: &Parts, name: &str) -> Result<()> {
    let socket = layout::state().join("logs").join(format!("{name}.containerd.log"));
    until(Duration::from_secs(30), &format!("containerd of {name} (see {})", socket.display()), || {
        let version = enter_command(name)?.args(["ctr", "--timeout", "2s", "version"]).output();
        Ok(version.is_ok_and(|output| output.status.success()))
    })?;
    for image in &parts.images.archives {
        run::output(
            enter_command(name)?.args(["ctr", "--namespace", "k8s.io", "images", "import"]).arg(image),
        )
        .with_context(|| format!("importing {} into {name}", image.display()))?;
    }
    Ok(())
}

fn ready(nodes: u8) -> Result<()> {
    let query =
        "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}\n{end}";
    let mut last = String::new();
    let waited = until(READY_WITHIN, &format!("{nodes} Ready nodes"), || {
        last = kubectl(&["get", "nodes", "-o", query]).unwrap_or_else(|error| format!("{error:#}"));
        Ok(last.lines().filter(|line| line.ends_with(" True")).count() == usize::from(nodes))
    });
    waited
        .with_context(|| format!("nodes and whether they are Ready:\n{last}logs are in target/cluster/logs"))
}
