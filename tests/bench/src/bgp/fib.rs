//! Routes over many next hops into the kernel's table: by the code that the agent installs them with, and through a whole
//! agent that learns them by BGP.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dataplane::routes::{Applied, Routes, RoutesConfig, Target};
use ipnetwork::IpNetwork;

use super::{
    Options,
    device::{ADDRESS, Device, Kind, MESH_FIRST, SENDER, Setting},
    report::Figures,
    session,
};
use crate::services::ground::{Ground, NetNs};

/// Routes that are installed one by one.
const SINGLES: u32 = 5_000;
const PAUSE: Duration = Duration::from_millis(5);
const LEARN_TIME_MAX: Duration = Duration::from_secs(60);

/// Routes per second: all with one call, removed with one call, and each with a call of its own.
pub(super) fn measure(options: &Options, figures: &mut Figures) -> Result<()> {
    let host = NetNs::new()?;
    host.ip("link add up0 type veth peer name up1")?;
    host.ip("link set up1 up")?;
    host.ip("link set up0 up")?;
    host.ip("address add 10.255.0.1/16 dev up0")?;
    let gateways = session::gateways(MESH_FIRST, options.next_hops);
    host.run(|| {
        let config = RoutesConfig { source_v4: Some(Ipv4Addr::new(10, 255, 0, 1).into()), source_v6: None };
        let mut routes = Routes::open(config).context("reading the routes")?;
        routes.allow_removal();
        for _ in 0..options.rounds {
            let count = options.prefixes;
            figures.fib_install.push(f64::from(count) / set(&mut routes, count, Some(&gateways))?);
            figures.fib_remove.push(f64::from(count) / set(&mut routes, count, None)?);
        }
        let began = Instant::now();
        for index in 0..SINGLES {
            routes.set(destination(index), Some(target(index, &gateways)));
            check(&routes.apply().context("one route")?, 1)?;
        }
        figures.fib_singles.push(f64::from(SINGLES) / began.elapsed().as_secs_f64());
        Ok(())
    })
}

/// Sets or clears the first `count` routes; seconds until the kernel has said yes to the last.
fn set(routes: &mut Routes, count: u32, gateways: Option<&[Ipv4Addr]>) -> Result<f64> {
    let changes: Vec<(IpNetwork, Option<Target>)> =
        (0..count).map(|index| (destination(index), gateways.map(|all| target(index, all)))).collect();
    let began = Instant::now();
    for (destination, target) in changes {
        routes.set(destination, target);
    }
    let applied = routes.apply().context("installing routes")?;
    let took = began.elapsed().as_secs_f64();
    check(&applied, count as usize)?;
    Ok(took)
}

fn check(applied: &Applied, count: usize) -> Result<()> {
    ensure!(applied.failed.is_empty(), "routes are refused: {:?}", applied.failed.first());
    ensure!(applied.installed + applied.removed == count, "{applied:?}, not {count}");
    Ok(())
}

fn destination(index: u32) -> IpNetwork {
    session::prefix(index).into()
}

fn target(index: u32, gateways: &[Ipv4Addr]) -> Target {
    Target::Via(vec![IpAddr::V4(gateways[index as usize % gateways.len()])].into())
}

/// Routes per second from the peer's first octet until the kernel's table has all.
pub(super) fn learned(options: &Options, ground: &Ground, round: u32, figures: &mut Figures) -> Result<()> {
    let setting = Setting { kernel: true, ..Setting::default() };
    let mut device = Device::start(Kind::Seaway, &options.agent, ground, &format!("fib-{round}"), setting)?;
    let measured = learn(&device, options, figures).with_context(|| device.said());
    device.process.kill();
    measured
}

fn learn(device: &Device, options: &Options, figures: &mut Figures) -> Result<()> {
    use std::io::Write as _;
    let count = options.prefixes;
    let mut sender = device.session(SENDER)?;
    let gateways = session::gateways(MESH_FIRST, options.next_hops);
    let before = installed(device)?;
    for (octets, wanted) in [
        (session::announcements(count, SENDER.1, &gateways), before + count),
        (session::withdrawals(count), before),
    ] {
        let began = Instant::now();
        sender.write_all(&octets).context("sending to the device")?;
        while installed(device)? != wanted {
            ensure!(began.elapsed() < LEARN_TIME_MAX, "{ADDRESS} has {} of {wanted}", installed(device)?);
            sleep(PAUSE);
        }
        let rate = f64::from(count) / began.elapsed().as_secs_f64();
        if wanted > before { &mut figures.learned_install } else { &mut figures.learned_remove }.push(rate);
    }
    Ok(())
}

/// How many IPv4 prefixes the device's namespace routes.
fn installed(device: &Device) -> Result<u32> {
    let path = format!("/proc/{}/net/fib_triestat", device.process.id());
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let main = text.split("Main:").nth(1).unwrap_or(&text);
    let line = main.lines().find_map(|line| line.trim().strip_prefix("Prefixes:"));
    line.and_then(|count| count.trim().parse().ok()).with_context(|| format!("{path}: {text}"))
}
