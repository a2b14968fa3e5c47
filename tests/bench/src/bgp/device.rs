//! The devices under test: our agent as a router, BIRD, FRR's bgpd and GoBGP, each configured to the same end.
//!
//! A device is in a namespace of its own, at 192.0.2.1; a cable leads to the namespace of its peers. It has an external
//! peer that sends (AS 65001), an external one that receives (AS 65002), and takes internal ones from 10.255.0.0/16
//! without being told of each. None writes to the kernel: BIRD has no kernel protocol, FRR no zebra, GoBGP never does, the
//! agent runs as a reflector does. Everything else is at its default.

use std::{
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::session;
use crate::{
    cni,
    process::Process,
    services::ground::{Ground, NetNs},
};

pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const SENDER: (Ipv4Addr, u32) = (Ipv4Addr::new(192, 0, 2, 2), 65001);
pub(super) const RECEIVER: (Ipv4Addr, u32) = (Ipv4Addr::new(192, 0, 2, 3), 65002);
pub(super) const ASN: u32 = 65000;
/// Of internal peers, and of next hops.
pub(super) const MESH_FIRST: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 10);
const MESH: &str = "10.255.0.0/16";
const MESH_ADDRESS: &str = "10.255.0.1/16";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Kind {
    Seaway,
    Bird,
    Frr,
    Gobgp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seaway => "seaway",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Gobgp => "GoBGP",
        })
    }
}

/// A running device, and the namespace of its peers.
pub(super) struct Device {
    pub(super) process: Process,
    pub(super) peers: NetNs,
    _host: NetNs,
    log: PathBuf,
}

/// What a device is to do beside the sessions that all have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setting {
    /// Internal peers come.
    pub(super) mesh: bool,
    /// What is learned goes to the kernel; ours alone.
    pub(super) kernel: bool,
}

impl Device {
    /// Starts one with files in a folder of its own.
    pub(super) fn start(
        kind: Kind,
        agent: &Path,
        ground: &Ground,
        name: &str,
        setting: Setting,
    ) -> Result<Self> {
        let folder = ground.folder().join(name);
        fs::create_dir(&folder).context("making the device's folder")?;
        let (host, peers) = (NetNs::new()?, NetNs::new()?);
        peers.ip(&format!("link add up0 type veth peer name eth0 netns {}", host.path().display()))?;
        peers.ip("link set up0 up")?;
        host.ip("link set eth0 up")?;
        host.ip(&format!("address add {ADDRESS}/24 dev eth0"))?;
        host.ip(&format!("address add {MESH_ADDRESS} dev eth0"))?;
        for (address, _) in [SENDER, RECEIVER] {
            peers.ip(&format!("address add {address}/24 dev up0"))?;
        }
        let mut command = match kind {
            Kind::Seaway => seaway(agent, &folder, setting)?,
            Kind::Bird => bird(&folder)?,
            Kind::Frr => frr(&folder)?,
            Kind::Gobgp => gobgp(&folder)?,
        };
        host.place(&mut command, &ground.cgroup(name)?)?;
        let log = folder.join("log");
        Ok(Self { process: Process::start_logged(command, &log)?, peers, _host: host, log })
    }

    /// A session with it, from the namespace of its peers.
    pub(super) fn session(&self, (address, asn): (Ipv4Addr, u32)) -> Result<std::net::TcpStream> {
        self.peers.run(|| session::establish(address, ADDRESS, asn)).with_context(|| self.said())
    }

    /// Octets of memory that are its own.
    pub(super) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("{path} has no Pss"))? << 10)
    }

    /// Its last words.
    pub(super) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(2000);
        format!("the device said: {}", String::from_utf8_lossy(&text.as_bytes()[from..]))
    }
}

fn seaway(agent: &Path, folder: &Path, setting: Setting) -> Result<Command> {
    let of = |(address, asn): (Ipv4Addr, u32)| serde_json::json!({ "address": address, "asn": asn, "passive": true });
    let peers = serde_json::to_vec(&[of(SENDER), of(RECEIVER)])?;
    fs::write(folder.join("peers.json"), peers).context("writing the peers")?;
    fs::write(folder.join("kubeconfig"), cni::KUBECONFIG).context("writing the kubeconfig")?;
    let mut command = Command::new(agent);
    command.args(["--node-name", "device", "--node-ip", &ADDRESS.to_string(), "--asn", &ASN.to_string()]);
    command.args(["--router-only", "--no-kubelet", "--no-dns", "--healthz-port", "0"]);
    if !setting.kernel {
        command.arg("--no-kernel-routes");
    }
    if setting.mesh {
        command.args(["--bgp-listen-range", MESH]);
    }
    for (option, name) in [
        ("--bgp-peer-file", "peers.json"),
        ("--kubeconfig", "kubeconfig"),
        ("--state-dir", "state"),
        ("--run-dir", "run"),
    ] {
        command.arg(option).arg(folder.join(name));
    }
    Ok(command)
}

fn bird(folder: &Path) -> Result<Command> {
    const EXPORT: &str = "export where source = RTS_BGP;";
    let session = |name: &str, (address, asn): (Ipv4Addr, u32)| {
        format!(
            "protocol bgp {name} {{ local {ADDRESS} as {ASN}; neighbor {address} as {asn}; passive on; \
             ipv4 {{ import all; {EXPORT} }}; }}\n"
        )
    };
    let text = format!(
        "router id {ADDRESS};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n{}{}\
         protocol bgp mesh {{ local {ADDRESS} as {ASN}; neighbor range {MESH} as {ASN}; passive on; multihop; \
         ipv4 {{ import all; {EXPORT} next hop self; }}; }}\n",
        session("sender", SENDER),
        session("receiver", RECEIVER),
    );
    let file = folder.join("bird.conf");
    fs::write(&file, text).context("writing bird.conf")?;
    let mut command = Command::new("/usr/sbin/bird");
    command.arg("-f").arg("-c").arg(file).arg("-s").arg(folder.join("ctl"));
    Ok(command)
}

fn frr(folder: &Path) -> Result<Command> {
    let mut text = format!(
        "router bgp {ASN}\n bgp router-id {ADDRESS}\n no bgp ebgp-requires-policy\n bgp listen limit 5000\n \
         neighbor mesh peer-group\n neighbor mesh remote-as {ASN}\n bgp listen range {MESH} peer-group mesh\n"
    );
    for (address, asn) in [SENDER, RECEIVER] {
        text.push_str(&format!(" neighbor {address} remote-as {asn}\n neighbor {address} passive\n"));
    }
    text.push_str(
        " address-family ipv4 unicast\n  neighbor mesh next-hop-self\n exit-address-family\nexit\n",
    );
    let file = folder.join("bgpd.conf");
    fs::write(&file, text).context("writing bgpd.conf")?;
    let mut command = Command::new("/usr/lib/frr/bgpd");
    command.args(["-Z", "-S", "-P", "0", "-l", &ADDRESS.to_string(), "--log", "stdout", "-f"]).arg(file);
    command.arg("-i").arg(folder.join("pid")).arg("--vty_socket").arg(folder);
    Ok(command)
}

fn gobgp(folder: &Path) -> Result<Command> {
    let mut text = format!(
        "[global.config]\nas = {ASN}\nrouter-id = \"{ADDRESS}\"\nport = 179\nlocal-address-list = [\"{ADDRESS}\"]\n"
    );
    let family = "afi-safis]]\n[NAME.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n";
    for (address, asn) in [SENDER, RECEIVER] {
        text.push_str(&format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\npeer-as = {asn}\n\
             [neighbors.transport.config]\npassive-mode = true\n[[neighbors.{}",
            family.replace("NAME", "neighbors")
        ));
    }
    text.push_str(&format!(
        "[[peer-groups]]\n[peer-groups.config]\npeer-group-name = \"mesh\"\npeer-as = {ASN}\n[[peer-groups.{}\
         [[dynamic-neighbors]]\n[dynamic-neighbors.config]\nprefix = \"{MESH}\"\npeer-group = \"mesh\"\n",
        family.replace("NAME", "peer-groups")
    ));
    let file = folder.join("gobgpd.toml");
    fs::write(&file, text).context("writing gobgpd.toml")?;
    let mut command = Command::new("gobgpd");
    command.args(["--pprof-disable", "--api-hosts", "127.0.0.1:50051", "-f"]).arg(file);
    Ok(command)
}
