//! Runs of programs (BPF_PROG_TEST_RUN), each in the place of a link, and the proof of what they did.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{Program, TestRun as _, TestRunOptions};
use ebpf_common::Counter;

use super::{
    frame::addresses,
    lab::{Family, Lab},
};
use crate::report::median;

/// Runs over one buffer.
const REPEAT: u32 = 50_000;
/// How often that is done; the median counts.
const TIMES: u32 = 5;
/// Runs over one buffer of which each takes a hop, and how often.
const HOPS: u32 = 200;
const HOPPING_TIMES: u32 = 250;
/// Single runs; the median counts.
const SINGLES: u16 = 4000;

/// What a program answers that sends a packet elsewhere (TC_ACT_REDIRECT).
pub(super) const REDIRECT: &[u32] = &[7];
/// Nothing is counted.
pub(super) const UNTOUCHED: &[Counter] = &[];

/// A class of packet, and what has to become of every packet of it.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) program: &'static str,
    pub(super) name: &'static str,
    pub(super) of: &'a Family,
    /// Interface index of the link where the packet is seen.
    pub(super) link: u32,
    pub(super) verdicts: &'a [u32],
    /// Each of these counts every packet; where there are none, nothing counts any.
    pub(super) counted: &'a [Counter],
    /// Its destination afterwards, where that is not what it was in every second run.
    pub(super) to: Option<IpAddr>,
}

impl Case<'_> {
    fn name(&self) -> String {
        format!("{}, {}", self.of.name, self.name)
    }
}

/// How a figure was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Many runs over one packet.
    Repeated,
    /// One run for each packet, without what taking the time costs.
    Single,
}

/// One line of the table.
pub(crate) struct Class {
    pub(crate) program: &'static str,
    pub(crate) name: String,
    pub(crate) way: Way,
    pub(crate) nanoseconds: f64,
    /// What it is to take at most.
    pub(crate) goal: Option<f64>,
}

pub(super) struct Runs {
    lab: Lab,
    classes: Vec<Class>,
    /// Nanoseconds that a single run shows more than it took.
    clock: f64,
}

impl Runs {
    pub(super) fn new(lab: Lab) -> Self {
        Self { lab, classes: Vec::new(), clock: 0.0 }
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(super) fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    pub(super) fn into_classes(self) -> Vec<Class> {
        self.classes
    }

    /// Takes what a single run shows more than it took, by a packet of which a program sees only that it is not IP.
    pub(super) fn calibrate(&mut self) -> Result<()> {
        let mut arp = vec![0xff; 12];
        arp.extend([0x08, 0x06]);
        arp.resize(60, 0);
        let (program, link) = ("uplink_ingress", self.lab.uplink);
        let repeated = self.median_of(TIMES, |runs| runs.run(program, link, &arp, REPEAT))?;
        let single = self.median_of(SINGLES.into(), |runs| runs.run(program, link, &arp, 1))?;
        self.clock = (single - repeated).max(0.0);
        self.put(program, "neither IPv4 nor IPv6".to_owned(), Way::Repeated, repeated);
        Ok(())
    }

    fn median_of(&mut self, times: u32, mut run: impl FnMut(&mut Self) -> Result<Answer>) -> Result<f64> {
        let took: Result<Vec<f64>> = (0..times).map(|_| Ok(run(self)?.nanoseconds)).collect();
        median(took?).context("there are runs")
    }

    /// A packet that comes out as it went in, or goes to and fro.
    pub(super) fn repeated(&mut self, case: Case<'_>, packet: &[u8]) -> Result<()> {
        self.many(case, packet, REPEAT, TIMES)
    }

    /// The same with a hop less after each run.
    pub(super) fn hopping(&mut self, case: Case<'_>, packet: &[u8]) -> Result<()> {
        self.many(case, packet, HOPS, HOPPING_TIMES)
    }

    fn many(&mut self, case: Case<'_>, packet: &[u8], repeat: u32, times: u32) -> Result<()> {
        let before = self.counters()?;
        let mut took = Vec::new();
        for _ in 0..times {
            let answer = self.run(case.program, case.link, packet, repeat)?;
            check(&case, &answer)?;
            took.push(answer.nanoseconds);
        }
        self.check_counters(&case, &before, u64::from(repeat) * u64::from(times))?;
        let took = median(took).context("there are runs")?;
        self.put(case.program, case.name(), Way::Repeated, took);
        Ok(())
    }

    /// One run for each packet. Returns the last one as it came out.
    pub(super) fn single(&mut self, case: Case<'_>, packet: impl Fn(u16) -> Vec<u8>) -> Result<Vec<u8>> {
        let before = self.counters()?;
        let (mut took, mut last) = (Vec::new(), Vec::new());
        for number in 0..SINGLES {
            let answer = self.run(case.program, case.link, &packet(number), 1)?;
            check(&case, &answer)?;
            took.push(answer.nanoseconds);
            last = answer.packet;
        }
        self.check_counters(&case, &before, SINGLES.into())?;
        let took = median(took).context("there are runs")? - self.clock;
        self.put(case.program, case.name(), Way::Single, took);
        Ok(last)
    }

    /// Runs a program for what it leaves behind, and returns the packet as it came out.
    pub(super) fn once(
        &mut self,
        program: &'static str,
        link: u32,
        packet: &[u8],
        verdicts: &[u32],
    ) -> Result<Vec<u8>> {
        let answer = self.run(program, link, packet, 1)?;
        ensure!(
            verdicts.contains(&answer.verdict),
            "{program}, {:?}: the verdict is {}, not one of {verdicts:?}",
            addresses(packet),
            answer.verdict
        );
        Ok(answer.packet)
    }

    fn put(&mut self, program: &'static str, name: String, way: Way, nanoseconds: f64) {
        self.classes.push(Class { program, name, way, nanoseconds: nanoseconds.max(0.0), goal: None });
    }

    /// Says what the last class is to take at most, in nanoseconds.
    pub(super) fn is_to_take(&mut self, nanoseconds: f64) {
        if let Some(class) = self.classes.last_mut() {
            class.goal = Some(nanoseconds);
        }
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        self.lab.datapath.counters().context("reading the counters")
    }

    /// Whether each packet took the way that its class stands for.
    fn check_counters(&self, case: &Case<'_>, before: &[(Counter, u64)], packets: u64) -> Result<()> {
        for ((counter, before), (_, after)) in before.iter().zip(self.counters()?) {
            let (counted, name) = (after - before, counter.name());
            if case.counted.contains(counter) {
                ensure!(
                    counted == packets,
                    "{}, {}: of {packets} packets, {counted} were counted as {name}",
                    case.program,
                    case.name()
                );
            } else if case.counted.is_empty() {
                ensure!(
                    counted == 0,
                    "{}, {}: {counted} packets counted as {name}",
                    case.program,
                    case.name()
                );
            }
        }
        Ok(())
    }

    fn run(&mut self, program: &str, link: u32, packet: &[u8], repeat: u32) -> Result<Answer> {
        let mut programs = self.lab.datapath.programs_mut();
        let found = programs
            .ebpf_mut()
            .program_mut(program)
            .with_context(|| format!("there is no program {program}"))?;
        let mut out = vec![0; packet.len() + 64];
        let context = context(found, link, packet.len());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = match found {
            Program::SchedClassifier(classifier) => classifier.test_run(options),
            Program::Xdp(xdp) => xdp.test_run(options),
            _ => bail!("{program} takes no packets"),
        };
        let result = result.with_context(|| format!("running {program}"))?;
        out.truncate(result.data_size_out as usize);
        let nanoseconds = result.duration.as_nanos() as f64;
        Ok(Answer { verdict: result.return_value, packet: out, nanoseconds })
    }
}

/// Where a packet is seen, in the words of linux/bpf.h: the index of the interface, and what XDP asks for besides. What
/// follows is 0.
fn context(program: &Program, link: u32, packet_bytes: usize) -> Vec<u8> {
    let (interface_at, words) = match program {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex.
        Program::Xdp(_) => (3, vec![0, packet_bytes as u32, 0, link]),
        // struct __sk_buff.
        _ => (10, vec![0; 11]),
    };
    let word = |(at, word)| if at == interface_at { link } else { word };
    words.into_iter().enumerate().flat_map(|at| word(at).to_ne_bytes()).collect()
}

struct Answer {
    verdict: u32,
    packet: Vec<u8>,
    nanoseconds: f64,
}

fn check(case: &Case<'_>, answer: &Answer) -> Result<()> {
    ensure!(
        case.verdicts.contains(&answer.verdict),
        "{}, {}: the verdict is {}, not one of {:?}",
        case.program,
        case.name(),
        answer.verdict,
        case.verdicts
    );
    let to = addresses(&answer.packet).map(|(_, to)| to);
    ensure!(
        case.to.is_none() || case.to == to,
        "{}, {}: the packet goes to {to:?}, not to {:?}",
        case.program,
        case.name(),
        case.to
    );
    Ok(())
}
