//! BIRD, FRR and GoBGP as peers of the agent, each told the same things in its own words.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::peers::Process;
use super::words;
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

/// One daemon's side of its sessions, with the agent at 192.0.2.1 where nothing else is said; they carry both families.
#[derive(Clone, Debug)]
pub struct Side {
    pub kind: Kind,
    /// It is at 192.0.2.N and 2001:db8::N, and originates 10.N.0.0/16 and 2001:db8:N::/48.
    pub number: u8,
    pub asn: u32,
    /// Its BGP identifier, where it is not its IPv4 address.
    pub router_id: Option<&'static str>,
    pub password: Option<&'static str>,
    pub ttl_security: bool,
    /// Seconds.
    pub hold_time: u16,
    /// Its peers are its clients.
    pub reflects: bool,
    /// It announces its IPv6 prefix; else it takes those of others alone.
    pub announces_v6: bool,
    /// Addresses and autonomous systems.
    pub peers: Vec<(String, u32)>,
    /// Graceful restart, both roles.
    pub restarts: bool,
    /// FRR has its kernel forward by its routes. BIRD does so always, GoBGP never.
    pub forwards: bool,
    /// BIRD takes messages of 65,535 octets; FRR does so always, GoBGP never.
    pub extended_messages: bool,
    pub offers: Vec<Offer>,
}

/// What it originates beside its two prefixes.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    pub prefix: String,
    pub local_pref: Option<u32>,
    /// Put before its own AS, the last one first.
    pub path: Vec<u32>,
    pub is_incomplete: bool,
    pub med: Option<u32>,
    /// That many large communities, 12 octets each; BIRD alone.
    pub communities: usize,
}

impl Offer {
    pub fn of(prefix: &str) -> Offer {
        Offer { prefix: prefix.to_owned(), ..Offer::default() }
    }

    pub fn is_v6(&self) -> bool {
        self.prefix.contains(':')
    }
}

impl Side {
    pub fn new(kind: Kind, number: u8, asn: u32, remote_asn: u32) -> Side {
        Side {
            kind,
            number,
            asn,
            router_id: None,
            password: None,
            ttl_security: false,
            hold_time: 90,
            reflects: false,
            announces_v6: true,
            peers: vec![("192.0.2.1".to_owned(), remote_asn)],
            restarts: false,
            forwards: false,
            extended_messages: false,
            offers: Vec::new(),
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

    /// Its routes are in its kernel.
    pub fn has_kernel(&self) -> bool {
        match self.kind {
            Kind::Bird => true,
            Kind::Frr => self.forwards,
            Kind::GoBgp => false,
        }
    }

    pub fn id(&self) -> String {
        self.router_id.map_or_else(|| self.v4(), str::to_owned)
    }
}

pub struct Daemon {
    pub side: Side,
    pub host: NetNs,
    folder: PathBuf,
    process: Process,
    /// FRR's other half, which speaks to the kernel.
    _zebra: Option<Process>,
}

impl Daemon {
    /// Starts it in its namespace; its files are under `folder`.
    pub fn start(side: Side, host: NetNs, folder: &Path) -> Daemon {
        let folder = folder.join(format!("{:?}-{}", side.kind, side.number));
        fs::create_dir(&folder).expect("a folder");
        let zebra = (side.kind == Kind::Frr && side.forwards).then(|| zebra(&host, &folder));
        let process = launch(&side, &host, &folder, false);
        let mut daemon = Daemon { side, host, folder, process, _zebra: zebra };
        daemon.originate();
        daemon
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after it was killed, by what its side says now.
    pub fn run_again(&mut self) {
        self.process = launch(&self.side, &self.host, &self.folder, true);
        self.originate();
    }

    /// GoBGP takes its routes over its API alone.
    fn originate(&mut self) {
        if self.side.kind != Kind::GoBgp {
            return;
        }
        let (v4, v6) = (self.side.v4(), self.side.v6());
        let own = [Offer::of(&self.side.prefix_v4()), Offer::of(&self.side.prefix_v6())];
        for offer in own.iter().chain(&self.side.offers.clone()) {
            let words = words::gobgp_route(offer, if offer.is_v6() { &v6 } else { &v4 });
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            eventually("GoBGP takes a route", || {
                assert!(self.process.is_running(), "GoBGP has ended:\n{}", self.log());
                self.ask_words(&words).map(|_| ())
            });
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// What the daemon answers, if it does.
    pub fn ask(&self, question: &str) -> Option<String> {
        match self.side.kind {
            Kind::Frr => self.ask_words(&[question]),
            Kind::Bird | Kind::GoBgp => self.ask_words(&question.split(' ').collect::<Vec<_>>()),
        }
    }

    fn ask_words(&self, words: &[&str]) -> Option<String> {
        let mut command = match self.side.kind {
            Kind::Bird => {
                let mut birdc = Command::new("/usr/sbin/birdc");
                birdc.arg("-s").arg(self.folder.join("ctl")).args(words);
                birdc
            }
            Kind::Frr => {
                let mut vtysh = Command::new("vtysh");
                vtysh.arg("--vty_socket").arg(&self.folder).arg("-d").arg("bgpd").arg("-c").args(words);
                vtysh
            }
            Kind::GoBgp => {
                let mut gobgp = Command::new("gobgp");
                gobgp.args(words);
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

    /// Whether its session with a peer, its first where BIRD is asked, is established.
    pub fn is_established(&self, peer: &str) -> bool {
        let state = |question: &str, path: &[&str]| -> Option<Value> {
            let shown: Value = serde_json::from_str(&self.ask(question)?).ok()?;
            Some(path.iter().fold(shown, |value, key| value[key].clone()))
        };
        match self.side.kind {
            Kind::Bird => self.ask("show protocols peer0").is_some_and(|shown| shown.contains("Established")),
            Kind::Frr => {
                let question = format!("show bgp neighbors {peer} json");
                state(&question, &[peer, "bgpState"]).is_some_and(|state| state == "Established")
            }
            Kind::GoBgp => {
                let question = format!("neighbor {peer} -j");
                state(&question, &["state", "session_state"])
                    .is_some_and(|state| state == 6 || state == "ESTABLISHED")
            }
        }
    }

    /// Has it begin its session anew, in its own words.
    pub fn reset(&self, words: &str) {
        assert!(self.ask(words).is_some(), "{:?} takes {words}", self.side.kind);
    }

    /// Starts a client of GoBGP's that tells each change of its routes.
    pub fn monitor(&self, family: &str, log: &Path) -> Process {
        let mut gobgp = Command::new("gobgp");
        gobgp.args(["monitor", "global", "rib", "-a", family]);
        Process::start(&self.host, &mut gobgp, log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} said:\n{}", self.side.kind, self.log());
        }
    }
}

fn launch(side: &Side, host: &NetNs, folder: &Path, again: bool) -> Process {
    let configuration = match side.kind {
        Kind::Bird => words::bird(side),
        Kind::Frr => words::frr(side),
        Kind::GoBgp => words::gobgp(side),
    };
    let file = folder.join("conf");
    fs::write(&file, configuration).expect("the configuration");
    let mut command = match side.kind {
        Kind::Bird => {
            let mut bird = Command::new("/usr/sbin/bird");
            bird.arg("-f").arg("-c").arg(&file).arg("-s").arg(folder.join("ctl"));
            bird.args(again.then_some("-R"));
            bird
        }
        Kind::Frr => {
            let mut bgpd = Command::new("/usr/lib/frr/bgpd");
            bgpd.args(["-S", "-P", "0", "-l", &side.v4(), "--log", "stdout"]);
            bgpd.arg("-f").arg(&file).arg("-i").arg(folder.join("pid")).arg("--vty_socket").arg(folder);
            if side.forwards {
                bgpd.arg("-z").arg(folder.join("zserv.api"));
            } else {
                bgpd.arg("-Z");
            }
            bgpd
        }
        Kind::GoBgp => {
            let mut gobgpd = Command::new("gobgpd");
            gobgpd.args(["--pprof-disable", "--api-hosts", "127.0.0.1:50051", "-l", "debug"]);
            gobgpd.args(again.then_some("-r")).arg("-f").arg(&file);
            gobgpd
        }
    };
    Process::start(host, &mut command, &folder.join("log"))
}

fn zebra(host: &NetNs, folder: &Path) -> Process {
    let (file, socket) = (folder.join("zebra.conf"), folder.join("zserv.api"));
    fs::write(&file, "").expect("the configuration");
    let mut command = Command::new("/usr/lib/frr/zebra");
    // Its usual user cannot write here, and it insists on its group.
    command.args(["-u", "root", "-g", "frrvty", "-P", "0", "--log", "stdout"]);
    command.arg("-f").arg(&file).arg("-i").arg(folder.join("zebra.pid"));
    command.arg("--vty_socket").arg(folder).arg("-z").arg(&socket);
    let process = Process::start(host, &mut command, &folder.join("zebra.log"));
    eventually("zebra takes clients", || socket.exists().then_some(()));
    process
}
