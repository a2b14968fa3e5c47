//! BIRD, FRR and GoBGP as peers of the agent, each told the same things in its own words.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::peers::Process;
use crate::netns::{NetNs, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bird,
    Frr,
    GoBgp,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Bird, Kind::Frr, Kind::GoBgp];
}

/// One daemon's side of its session, with the agent at 192.0.2.1 where nothing else is said; it carries both families.
#[derive(Clone, Debug)]
pub struct Side {
    pub kind: Kind,
    /// It is at 192.0.2.N and 2001:db8::N, and originates 10.N.0.0/16 and 2001:db8:N::/48.
    pub number: u8,
    pub asn: u32,
    pub remote_asn: u32,
    pub password: Option<&'static str>,
    pub ttl_security: bool,
    /// Seconds.
    pub hold_time: u16,
    /// Its peers are its clients.
    pub reflects: bool,
    /// It announces its IPv6 prefix; else it takes those of others alone.
    pub announces_v6: bool,
    /// BIRD and FRR may have several.
    pub peers: Vec<String>,
}

impl Side {
    pub fn new(kind: Kind, number: u8, asn: u32, remote_asn: u32) -> Side {
        Side {
            kind,
            number,
            asn,
            remote_asn,
            password: None,
            ttl_security: false,
            hold_time: 90,
            reflects: false,
            announces_v6: true,
            peers: vec!["192.0.2.1".to_owned()],
        }
    }

    pub fn v4(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    pub fn v6(&self) -> String {
        format!("2001:db8::{}", self.number)
    }

    pub fn prefix_v4(&self) -> String {
        format!("10.{}.0.0/16", self.number)
    }

    pub fn prefix_v6(&self) -> String {
        format!("2001:db8:{}::/48", self.number)
    }
}

pub struct Daemon {
    pub side: Side,
    host: NetNs,
    folder: PathBuf,
    process: Process,
}

impl Daemon {
    /// Starts it in its namespace; its files are under `folder`.
    pub fn start(side: Side, host: NetNs, folder: &Path) -> Daemon {
        let folder = folder.join(format!("{:?}-{}", side.kind, side.number));
        fs::create_dir(&folder).expect("a folder");
        let configuration = match side.kind {
            Kind::Bird => bird(&side),
            Kind::Frr => frr(&side),
            Kind::GoBgp => gobgp(&side),
        };
        let file = folder.join("conf");
        fs::write(&file, configuration).expect("the configuration");
        let mut command = match side.kind {
            Kind::Bird => {
                let mut bird = Command::new("/usr/sbin/bird");
                bird.arg("-f").arg("-c").arg(&file).arg("-s").arg(folder.join("ctl"));
                bird
            }
            Kind::Frr => {
                let mut bgpd = Command::new("/usr/lib/frr/bgpd");
                bgpd.args(["-Z", "-S", "-P", "0", "-l", &side.v4(), "--log", "stdout"]);
                bgpd.arg("-f").arg(&file).arg("-i").arg(folder.join("pid")).arg("--vty_socket").arg(&folder);
                bgpd
            }
            Kind::GoBgp => {
                let mut gobgpd = Command::new("gobgpd");
                gobgpd.args(["--pprof-disable", "--api-hosts", "127.0.0.1:50051", "-l", "debug", "-f"]);
                gobgpd.arg(&file);
                gobgpd
            }
        };
        let process = Process::start(&host, &mut command, &folder.join("log"));
        let mut daemon = Daemon { side, host, folder, process };
        daemon.originate();
        daemon
    }

    /// GoBGP takes its routes over its API alone.
    fn originate(&mut self) {
        if self.side.kind != Kind::GoBgp {
            return;
        }
        let (v4, v6) = (self.side.v4(), self.side.v6());
        eventually("GoBGP takes routes", || {
            assert!(self.process.is_running(), "GoBGP has ended:\n{}", self.log());
            self.ask(&format!("global rib add {} nexthop {v4}", self.side.prefix_v4())).map(|_| ())
        });
        let added = self.ask(&format!("global rib -a ipv6 add {} nexthop {v6}", self.side.prefix_v6()));
        assert!(added.is_some(), "GoBGP takes its IPv6 route");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// What the daemon answers, if it does.
    pub fn ask(&self, question: &str) -> Option<String> {
        let mut command = match self.side.kind {
            Kind::Bird => {
                let mut birdc = Command::new("/usr/sbin/birdc");
                birdc.arg("-s").arg(self.folder.join("ctl")).args(question.split(' '));
                birdc
            }
            Kind::Frr => {
                let mut vtysh = Command::new("vtysh");
                vtysh.arg("--vty_socket").arg(&self.folder).arg("-d").arg("bgpd").arg("-c").arg(question);
                vtysh
            }
            Kind::GoBgp => {
                let mut gobgp = Command::new("gobgp");
                gobgp.args(question.split(' '));
                gobgp
            }
        };
        let output = self.host.run(|| command.output().expect("running its client"));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The next hop of its best path to a prefix, by which it would send packets.
    pub fn next_hop(&self, prefix: &str) -> Option<String> {
        let six = prefix.contains(':');
        match self.side.kind {
            Kind::Bird => {
                let shown = self.ask(&format!("show route {prefix} primary all"))?;
                let line = shown.lines().find(|line| line.contains("BGP.next_hop"))?;
                line.split_whitespace().nth(1).map(str::to_owned)
            }
            Kind::Frr => {
                let family = if six { "ipv6" } else { "ipv4" };
                let shown = self.ask(&format!("show bgp {family} unicast {prefix} json"))?;
                let shown: Value = serde_json::from_str(&shown).ok()?;
                let best =
                    shown["paths"].as_array()?.iter().find(|path| path["bestpath"]["overall"] == true)?;
                let hops = best["nexthops"].as_array()?;
                let global = hops.iter().find(|hop| hop["scope"] != "link-local")?;
                global["ip"].as_str().map(str::to_owned)
            }
            Kind::GoBgp => {
                let family = if six { "ipv6" } else { "ipv4" };
                let shown = self.ask(&format!("global rib -a {family} {prefix} -j"))?;
                let shown: Value = serde_json::from_str(&shown).ok()?;
                let paths = shown.as_array().cloned().or_else(|| shown[prefix].as_array().cloned())?;
                let best = paths.iter().find(|path| path["best"] == true)?;
                let attributes = best["attrs"].as_array()?;
                attributes.iter().find_map(|attribute| attribute["nexthop"].as_str()).map(str::to_owned)
            }
        }
    }

    pub fn await_next_hop(&mut self, prefix: &str, expected: &str) {
        let kind = self.side.kind;
        eventually(&format!("{kind:?} has {prefix} over {expected}"), || {
            assert!(self.process.is_running(), "{kind:?} has ended:\n{}", self.log());
            (self.next_hop(prefix).as_deref() == Some(expected)).then_some(())
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} said:\n{}", self.side.kind, self.log());
        }
    }
}

fn bird(side: &Side) -> String {
    let Side { asn, remote_asn, hold_time, .. } = side;
    let password = side.password.map(|password| format!("password \"{password}\";")).unwrap_or_default();
    let ttl = if side.ttl_security { "ttl security on;" } else { "" };
    let client = if side.reflects { "rr client;" } else { "" };
    let (v4, v6) = (side.v4(), side.v6());
    let (prefix_v4, prefix_v6) = (side.prefix_v4(), side.prefix_v6());
    let channel = "import all; export where source ~ [ RTS_STATIC, RTS_BGP ];";
    let session = |(index, peer): (usize, &String)| {
        format!(
            r"
protocol bgp peer{index} {{
    local {v4} as {asn};
    neighbor {peer} as {remote_asn};
    hold time {hold_time};
    connect retry time 1;
    connect delay time 1;
    error wait time 1, 2;
    {password} {ttl} {client}
    ipv4 {{ {channel} }};
    ipv6 {{ {channel} next hop address {v6}; }};
}}"
        )
    };
    let sessions: String = side.peers.iter().enumerate().map(session).collect();
    format!(
        r"
router id {v4};
protocol device {{}}
protocol direct {{ ipv4; ipv6; }}
protocol static {{ ipv4; route {prefix_v4} blackhole; }}
protocol static {{ ipv6; route {prefix_v6} blackhole; }}
protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; }}
protocol kernel {{ ipv6 {{ export where source = RTS_BGP; }}; }}
{sessions}
"
    )
}

fn frr(side: &Side) -> String {
    let Side { asn, remote_asn, hold_time, .. } = side;
    let keepalive = hold_time / 3;
    let (v4, v6) = (side.v4(), side.v6());
    let (prefix_v4, prefix_v6) = (side.prefix_v4(), side.prefix_v6());
    let [mut sessions, mut of_v4, mut of_v6] = [const { String::new() }; 3];
    for peer in &side.peers {
        sessions.push_str(&format!(
            " neighbor {peer} remote-as {remote_asn}\n neighbor {peer} timers {keepalive} {hold_time}\n \
             neighbor {peer} timers connect 1\n"
        ));
        if let Some(password) = side.password {
            sessions.push_str(&format!(" neighbor {peer} password {password}\n"));
        }
        if side.ttl_security {
            sessions.push_str(&format!(" neighbor {peer} ttl-security hops 1\n"));
        }
        for (family, more) in [(&mut of_v4, ""), (&mut of_v6, "v6")] {
            family.push_str(&format!("  neighbor {peer} activate\n"));
            if !more.is_empty() {
                family.push_str(&format!("  neighbor {peer} route-map {more} out\n"));
            }
            if side.reflects {
                family.push_str(&format!("  neighbor {peer} route-reflector-client\n"));
            }
        }
    }
    format!(
        r"
router bgp {asn}
 bgp router-id {v4}
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
{sessions} address-family ipv4 unicast
  network {prefix_v4}
{of_v4} exit-address-family
 address-family ipv6 unicast
  network {prefix_v6}
{of_v6} exit-address-family
exit
ipv6 prefix-list own seq 5 permit {prefix_v6}
route-map v6 permit 10
 match ipv6 address prefix-list own
 set ipv6 next-hop global {v6}
exit
route-map v6 permit 20
exit
"
    )
}

fn gobgp(side: &Side) -> String {
    let Side { asn, remote_asn, hold_time, .. } = side;
    let keepalive = hold_time / 3;
    let peer = &side.peers[0];
    let v4 = side.v4();
    let password =
        side.password.map(|password| format!("auth-password = \"{password}\"")).unwrap_or_default();
    let mut more = String::new();
    if side.ttl_security {
        more.push_str("[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n");
    }
    if side.reflects {
        more.push_str("[neighbors.route-reflector.config]\nroute-reflector-client = true\n");
        more.push_str(&format!("route-reflector-cluster-id = \"{v4}\"\n"));
    }
    format!(
        r#"
[global.config]
as = {asn}
router-id = "{v4}"
port = 179
local-address-list = ["{v4}"]
[[neighbors]]
[neighbors.config]
neighbor-address = "{peer}"
peer-as = {remote_asn}
{password}
[neighbors.timers.config]
connect-retry = 1
hold-time = {hold_time}
keepalive-interval = {keepalive}
[neighbors.transport.config]
local-address = "{v4}"
{more}
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "ipv4-unicast"
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "ipv6-unicast"
"#
    )
}
