//! Connections and requests: directly to pods on plain routing, through a Service with us, and with each peer.
//!
//! Every subject has a laboratory of its own with all Services in it, and all are there at the same time: the runs
//! alternate between them, so that what else the machine does meets all of them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Options,
    api::Api,
    change,
    ground::Ground,
    kube_proxy::{KubeProxy, ProxyMode},
    lab::{Lab, Owner},
    load::{Mode, Outcome},
    objects::{self, Place},
    report::Report,
};
use crate::say;

/// What is measured beside each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Subject {
    /// To the pod itself, no program attached and no netfilter rule.
    Plain,
    Seaway,
    /// A client whose sockets are not served: its packets are translated in tc.
    SeawayTc,
    /// As Seaway, and 100 policies select the pods that answer.
    SeawayPoliced,
    KubeProxy(ProxyMode),
}

impl Subject {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain routing",
            Self::Seaway => "seaway",
            Self::SeawayTc => "seaway, tc only",
            Self::SeawayPoliced => "seaway, 100 policies",
            Self::KubeProxy(ProxyMode::Nftables) => "kube-proxy nftables",
            Self::KubeProxy(ProxyMode::Iptables) => "kube-proxy iptables",
        }
    }
}

/// The runs of one line of the table.
pub(crate) type Runs = BTreeMap<Subject, Vec<Outcome>>;

/// One size, all subjects.
pub(crate) fn measure(
    ground: &Ground,
    options: &Options,
    api: Option<&mut Api>,
    services: u32,
    report: &mut Report,
) -> Result<()> {
    let plain = Lab::new(ground, "plain", Owner::Laboratory)?;
    let mut seaway = Lab::new(ground, "seaway", Owner::Laboratory)?;
    let served = seaway.serve(ground, services).context("serving Services")?;
    report.served(services, served);
    let mut labs = vec![plain, seaway];
    let mut subjects = vec![(Subject::Plain, 0), (Subject::Seaway, 1)];
    if options.tc {
        subjects.push((Subject::SeawayTc, 1));
    }
    // What policies cost does not depend on how many Services there are.
    if options.is_smallest(services) {
        let mut policed = Lab::new(ground, "policed", Owner::Laboratory)?;
        policed.serve(ground, services).context("serving Services beside policies")?;
        policed.police().context("setting policies")?;
        subjects.push((Subject::SeawayPoliced, labs.len()));
        labs.push(policed);
    }
    if let (Some(program), Some(api)) = (options.kube_proxy(), api) {
        for mode in ProxyMode::ALL {
            match peer(ground, options, api, program, mode, services, report) {
                Ok(lab) => {
                    subjects.push((Subject::KubeProxy(mode), labs.len()));
                    labs.push(lab);
                }
                // The others are measured all the same, and the table says that this one was not.
                Err(error) => report.note(format!("kube-proxy {} at {services}: {error:#}", mode.word())),
            }
        }
    }
    for (subject, lab) in &subjects {
        let targets = targets(*subject, services, Place::SameNode);
        labs[*lab]
            .check(&targets, is_served(*subject))
            .with_context(|| format!("the first requests of {}", subject.name()))?;
    }
    rounds(options, &labs, &subjects, services, report)
}

fn rounds(
    options: &Options,
    labs: &[Lab],
    subjects: &[(Subject, usize)],
    services: u32,
    report: &mut Report,
) -> Result<()> {
    for round in 0..options.rounds as usize {
        say(&format!("    {services} Services, round {} of {}", round + 1, options.rounds));
        for place in Place::ALL {
            for mode in Mode::ALL {
                for turn in 0..subjects.len() {
                    let (subject, lab) = subjects[(turn + round) % subjects.len()];
                    let targets = targets(subject, services, place);
                    let outcome = labs[lab]
                        .load(mode, place, &targets, is_served(subject), options.warm(), options.seconds)
                        .with_context(|| format!("{} of {} {}", mode.name(), subject.name(), place.name()))?;
                    report.ran((services, place, mode), subject, outcome);
                }
            }
        }
    }
    Ok(())
}

const fn is_served(subject: Subject) -> bool {
    matches!(subject, Subject::Seaway | Subject::SeawayPoliced)
}

fn targets(subject: Subject, services: u32, place: Place) -> Vec<SocketAddr> {
    match subject {
        Subject::Plain => objects::direct(services, place),
        Subject::Seaway | Subject::SeawayTc | Subject::SeawayPoliced | Subject::KubeProxy(_) => {
            objects::measured(services, place)
        }
    }
}

/// A laboratory with a peer's rules in it, complete; what needs the running peer is measured before it is ended.
fn peer(
    ground: &Ground,
    options: &Options,
    api: &mut Api,
    program: &std::path::Path,
    mode: ProxyMode,
    services: u32,
    report: &mut Report,
) -> Result<Lab> {
    let lab = Lab::new(ground, mode.word(), Owner::Laboratory)?;
    api.join(&lab)?;
    say(&format!("    kube-proxy {}: writing rules for {services} Services", mode.word()));
    let mut proxy = KubeProxy::start(ground, api, &lab, program, mode)?;
    let limit = Duration::from_secs(options.peer_seconds);
    let took = proxy.served(&lab, services, limit)?;
    let subject = Subject::KubeProxy(mode);
    report.cold_start(services, subject, took);
    report.memory(services, subject, proxy.memory()?, None);
    if options.has(super::Part::Change) {
        let times = change::measure(options, api, &lab, services).context("changing an endpoint")?;
        report.changes(services, subject, times);
    }
    Ok(lab)
}
