//! Where a destination has several paths, the agent and the daemons choose the same one.

use serde_json::{Value, json};

use super::agent::Agent;
use super::capture::Capture;
use super::daemons::{Daemon, Kind, Offer, Side};
use super::interop::{agent, kernel_routes, lan, peer_of, start};
use crate::netns::{NetNs, eventually};

/// What of two offers tells them apart.
#[derive(Clone, Copy, Debug)]
enum Step {
    LocalPref,
    PathLength,
    Origin,
    Med,
    /// Nothing but who says it.
    RouterId,
}

const STEPS: [Step; 5] = [Step::LocalPref, Step::PathLength, Step::Origin, Step::Med, Step::RouterId];

impl Step {
    /// The offer that is to be preferred, or the other one.
    fn offer(self, prefix: &str, is_better: bool) -> Offer {
        let mut offer = Offer { path: vec![65100], local_pref: Some(100), ..Offer::of(prefix) };
        match (self, is_better) {
            (Step::LocalPref, true) => offer.local_pref = Some(200),
            // All that comes later speaks for this one.
            (Step::LocalPref, false) => offer.path.clear(),
            (Step::PathLength, true) => offer.is_incomplete = true,
            (Step::PathLength, false) => offer.path.push(65101),
            (Step::Origin, true) => offer.med = Some(50),
            (Step::Origin, false) => offer.is_incomplete = true,
            (Step::Med, true) => offer.med = Some(10),
            (Step::Med, false) => offer.med = Some(20),
            (Step::RouterId, _) => {}
        }
        offer
    }
}

/// A destination that two of three daemons offer; the third and the agent have the choice.
struct Contest {
    prefix: String,
    decider: usize,
    winner: usize,
}

fn contests(daemons: &mut [Side], steps: &[Step]) -> Vec<Contest> {
    let mut contests = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        for decider in 0..daemons.len() {
            let (low, high) = ((decider + 1) % 3, (decider + 2) % 3);
            let (low, high) = (low.min(high), low.max(high));
            for six in [false, true] {
                // The one with the higher identifier, so that the last step is not what decides.
                let winner = if matches!(step, Step::RouterId) { low } else { high };
                let prefix = if six {
                    format!("2001:db8:f{number}:{}::/64", decider + 1)
                } else {
                    format!("10.200.{}.0/24", number * 10 + decider)
                };
                for who in [low, high] {
                    daemons[who].offers.push(step.offer(&prefix, who == winner));
                }
                contests.push(Contest { prefix, decider, winner });
            }
        }
    }
    contests
}

fn best(agent: &Agent, prefix: &str) -> Option<(String, String)> {
    let routes = agent.json("/v1/routes");
    let route = routes.as_array()?.iter().find(|route| route["prefix"] == prefix)?.clone();
    (route["paths"].as_array()?.len() >= 2).then_some(())?;
    Some((route["best"].as_str()?.to_owned(), route["reason"].as_str()?.to_owned()))
}

fn judge(lan: &NetNs, agent: &Agent, daemons: &mut [Daemon], contests: &[Contest]) {
    for Contest { prefix, decider, winner } in contests {
        let side = daemons[*winner].side.clone();
        let next_hop = if prefix.contains(':') { side.v6() } else { side.v4() };
        eventually(&format!("the agent takes {prefix} from {}", side.v4()), || {
            (best(agent, prefix)?.0 == side.v4()).then_some(())
        });
        daemons[*decider].await_next_hop(prefix, &next_hop);
        let hosts = [lan, &daemons[*decider].host];
        let count = 1 + usize::from(daemons[*decider].side.has_kernel());
        for host in &hosts[..count] {
            eventually(&format!("{prefix} goes to {next_hop}"), || {
                kernel_routes(host).get(prefix)?.contains(&next_hop).then_some(())
            });
        }
    }
}

/// A full mesh of three daemons and the agent, each in the AS that its number has.
fn mesh(asn: impl Fn(u8) -> u32, steps: &[Step], secure: impl Fn(&mut Side)) {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let side = |(kind, number)| {
        let mut side = Side { forwards: true, ..Side::new(kind, number, asn(number), 64512) };
        secure(&mut side);
        side
    };
    let mut sides: Vec<Side> = Kind::ALL.into_iter().zip(11..).map(side).collect();
    let all: Vec<(String, u32)> = sides.iter().map(|side| (side.v4(), side.asn)).collect();
    for side in &mut sides {
        let own = side.v4();
        side.peers.extend(all.iter().filter(|(address, _)| *address != own).cloned());
    }
    let contests = contests(&mut sides, steps);
    let peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    let _capture = Capture::start(&lan, "up0", folder.path());
    let agent = agent(&lan, &json!(peers), &folder);
    let mut daemons = start(&lan, sides, &folder);
    judge(&lan, &agent, &mut daemons, &contests);
}

#[test]
fn of_several_paths_inside_an_as_we_choose_the_one_that_bird_frr_and_gobgp_choose() {
    mesh(|_| 64512, &STEPS, |side| side.password = Some("not-a-secret"));
}

#[test]
fn of_several_paths_from_other_as_we_choose_the_one_that_bird_frr_and_gobgp_choose() {
    // Between autonomous systems, LOCAL_PREF is not told, and MED is not compared.
    mesh(|number| 65000 + u32::from(number), &STEPS[1..3], |side| side.ttl_security = true);
}
