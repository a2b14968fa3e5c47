//! Every program and map, against the running kernel.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::Command,
    time::Instant,
};

use aya::maps::MapData;
use dataplane::{
    datapath::{Config, Datapath},
    programs::{LogLevel, TcMode, remove_pinned},
    services::{ServiceEntry, ServiceMaps},
    sizes::Setting,
};
use ebpf_common::{
    Address, FrontendKey, Port, Protocol,
    desired::{Clients, Service, Services},
    maps,
};

use super::{chain, endpoint, leading_to, open};
use crate::netns::BpfDir;

#[test]
fn every_program_passes_the_verifier_with_and_without_its_log() {
    for log_level in [LogLevel::Off, LogLevel::Warn, LogLevel::Trace] {
        let directory = BpfDir::new();
        let config = Config { log_level, ..Config::new(&directory.path) };
        let mut datapath =
            Datapath::open(&config).unwrap_or_else(|error| panic!("{log_level:?}: {}", chain(&error)));
        let loaded: BTreeSet<String> =
            datapath.programs_mut().ebpf_mut().programs().map(|(name, _)| name.to_owned()).collect();
        let wanted = [
            "answer",
            "connect4",
            "connect6",
            "getpeername4",
            "getpeername6",
            "judged",
            "masquerade",
            "pod_egress",
            "pod_ingress",
            "police",
            "police_entering",
            "police_final",
            "police_rest",
            "recvmsg4",
            "recvmsg6",
            "relay_entering",
            "relay_leaving",
            "sendmsg4",
            "sendmsg6",
            "sock_release",
            "towards_client",
            "unmasquerade",
            "uplink_egress",
            "uplink_ingress",
            "uplink_xdp",
        ];
        assert_eq!(loaded, wanted.map(str::to_owned).into());
        print_verified(&mut datapath, log_level);
    }
}

/// What the verifier had to look at, for the reader of `--show-output`. It gives up at a million instructions; older
/// kernels get there sooner, as they see fewer of them to be alike.
fn print_verified(datapath: &mut Datapath, log_level: LogLevel) {
    const BUDGET: u32 = 500_000;
    let mut programs = datapath.programs_mut();
    let infos = programs
        .ebpf_mut()
        .programs()
        .map(|(name, program)| (name, program.info().expect("what the kernel says of it")));
    let mut infos: Vec<_> = infos.collect();
    infos.sort_by_key(|(_, info)| info.loaded_at());
    // The kernel notes when it begins with a program, and the next one follows at once.
    let ends: Vec<_> = infos.iter().skip(1).map(|(_, info)| info.loaded_at()).collect();
    println!("Linux {}, log {log_level:?}", kernel_release());
    println!("{:<15} {:>9} {:>9} {:>9} {:>9}", "program", "verified", "xlated B", "jited B", "ms");
    for ((name, info), end) in infos.into_iter().zip(ends.into_iter().chain([None])) {
        let verified = info.verified_instruction_count().expect("a kernel that counts them, 5.16 or newer");
        let took = end.zip(info.loaded_at()).and_then(|(end, start)| end.duration_since(start).ok());
        let took = took.map_or_else(|| "-".to_owned(), |took| format!("{:.1}", took.as_secs_f64() * 1000.0));
        let (translated, jited) = (info.size_translated().unwrap_or(0), info.size_jitted());
        println!("{name:<15} {verified:>9} {translated:>9} {jited:>9} {took:>9}");
        assert!(verified <= BUDGET, "{name}: {verified} instructions verified");
    }
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release").trim().to_owned()
}

#[test]
fn links_are_used_where_upstream_has_them_and_clsact_before() {
    let release = kernel_release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().expect("a major version"), numbers.next().expect("a minor version"));
    // A distribution may have added them to an older kernel; what matters then is that they work, as other tests say.
    if version >= (6, 6) {
        assert_eq!(TcMode::of_kernel(), TcMode::Tcx, "{release}");
    } else if TcMode::of_kernel() == TcMode::Tcx {
        println!("{release} has them too");
    }
}

#[test]
fn every_map_is_pinned_under_its_name() {
    let directory = BpfDir::new();
    let _datapath = open(&directory);
    let pinned: BTreeSet<String> = fs::read_dir(directory.path.join("maps"))
        .expect("the folder of maps")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(pinned, maps::ALL.map(str::to_owned).into());
}

#[test]
fn empty_maps_cost_little() {
    const BUDGET_BYTES: u64 = 38 << 20;
    let directory = BpfDir::new();
    let _datapath = open(&directory);
    let mut total = 0;
    for name in maps::ALL {
        let map = MapData::from_pin(directory.path.join("maps").join(name)).expect("the pinned map");
        let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let info = fs::read_to_string(info).expect("what the kernel says of it");
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("its memory");
        let bytes: u64 = bytes.trim().parse().expect("a number");
        println!("{name:<12} {bytes:>10}");
        total += bytes;
    }
    assert!(total <= BUDGET_BYTES, "{total} bytes for maps without any entry");
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_by_name() {
    let directory = BpfDir::new();
    drop(open(&directory));
    let maps_dir = directory.path.join("maps");
    fs::remove_file(maps_dir.join(maps::SLOTS)).expect("unpinning");
    fs::rename(maps_dir.join(maps::BACKENDS), maps_dir.join(maps::SLOTS))
        .expect("a map under another's name");
    let error = ServiceMaps::open(&maps_dir).expect_err("values of another size");
    assert!(
        chain(&error).contains("SLOTS_1 has keys of 4 and values of 28 bytes, and not 8 and 4"),
        "{error}"
    );
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused_by_name() {
    let directory = BpfDir::new();
    let datapath = open(&directory);
    let error = datapath.attach_cgroup(Path::new("/proc")).expect_err("no cgroup");
    assert!(chain(&error).contains("/proc is not a cgroup v2 directory"), "{error}");
    let error = datapath.attach_cgroup(Path::new("/sys/fs/cgroup/no-such-group")).expect_err("nothing");
    assert!(chain(&error).contains("/sys/fs/cgroup/no-such-group: No such file"), "{}", chain(&error));
}

#[test]
fn nothing_is_left_when_pinned_objects_are_removed() {
    let directory = BpfDir::new();
    drop(open(&directory));
    assert!(directory.path.exists());
    remove_pinned(&directory.path).expect("removing");
    assert!(!directory.path.exists());
    remove_pinned(&directory.path).expect("removing twice");
}

/// `count` services with four backends each.
fn many_services(count: u32) -> Services {
    let address = |first: u8, n: u32| IpAddr::from(Ipv4Addr::from(u32::from(first) << 24 | n));
    (0..count)
        .map(|n| {
            let key = FrontendKey::new(Address::from(address(10, n)), Port::new(80), Protocol::TCP);
            let endpoints = (0..4).map(|m| endpoint(address(11, 4 * n + m), 8080, m == 0)).collect();
            (key, Service { name: format!("default/s{n}"), ..leading_to(endpoints) })
        })
        .collect()
}

#[test]
fn fifty_thousand_services_fit_and_come_back_after_a_restart() {
    const COUNT: u32 = 50_000;
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let start = Instant::now();
    let applied = datapath.set_services(many_services(COUNT)).expect("setting the services");
    println!("{COUNT} services written in {:?}", start.elapsed());
    assert_eq!(applied.written, (COUNT * 10) as usize);
    drop(datapath);

    let mut datapath = open(&directory);
    assert_eq!(datapath.services().len(), COUNT as usize);
    let start = Instant::now();
    let applied = datapath.set_services(many_services(COUNT)).expect("setting the services");
    println!("{COUNT} services found as they were in {:?}", start.elapsed());
    assert_eq!((applied.written, applied.deleted), (0, 0));
    let applied = datapath.set_services(many_services(COUNT - 1)).expect("one service less");
    assert_eq!((applied.written, applied.deleted), (0, 10));
}

#[test]
fn a_change_among_thousands_writes_and_reads_only_what_it_changes() {
    const COUNT: u32 = 20_000;
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let services = many_services(COUNT);
    datapath.set_services(services.clone()).expect("setting the services");
    let entries = datapath.services();

    let (key, service) = services.iter().nth(COUNT as usize / 2).expect("a service");
    let mut changed = service.clone();
    changed.endpoints[3].address = Address::from_v4([12, 0, 0, 1]);
    let start = Instant::now();
    datapath.change_services([(key, &Some(changed))]);
    let applied = datapath.apply_services().expect("one endpoint is another");
    println!("one endpoint among {COUNT} services changed in {:?}", start.elapsed());
    // A backend and its slot; the slots are in the order of addresses, and the last is the last still.
    assert_eq!((applied.written, applied.deleted), (2, 1));

    datapath.change_services([(key, &None)]);
    assert_eq!(datapath.apply_services().expect("one service less").deleted, 10);
    datapath.change_services([(key, &Some(service.clone()))]);
    assert_eq!(datapath.apply_services().expect("it comes back").written, 10);
    let maps_dir = directory.path.join("maps");
    let back = ServiceMaps::dump(&maps_dir).expect("the maps");
    let of = |entries: &[ServiceEntry]| -> Vec<(IpAddr, Vec<IpAddr>)> {
        let backends = |entry: &ServiceEntry| entry.backends.iter().map(|backend| backend.address).collect();
        entries.iter().map(|entry| (entry.address, backends(entry))).collect()
    };
    assert!(of(&back) == of(&entries), "all Services lead where they led");
    let ids = |entries: &[ServiceEntry]| entries.iter().map(|entry| entry.service_id).max();
    assert!(ids(&back) > ids(&entries), "an id is given out once");
}

#[test]
fn services_that_are_written_in_parts_lose_none_of_an_earlier_agent_before_the_last_part() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    datapath.set_services(many_services(20)).expect("setting the services");
    drop(datapath);
    let maps_dir = directory.path.join("maps");
    let before = ServiceMaps::dump(&maps_dir).expect("the maps");

    let mut datapath = open(&directory);
    let parts: Vec<(FrontendKey, Option<Service>)> =
        many_services(30).into_iter().map(|(key, service)| (key, Some(service))).collect();
    let part = |range: std::ops::Range<usize>| parts[range].iter().map(|(key, change)| (key, change));
    datapath.change_services(part(0..10));
    assert_eq!(datapath.write_services().expect("writing what was there"), 0);
    assert_eq!(ServiceMaps::dump(&maps_dir).expect("the maps"), before);
    datapath.change_services(part(25..30));
    assert_eq!(datapath.write_services().expect("writing what is new"), 50);
    assert_eq!(ServiceMaps::dump(&maps_dir).expect("the maps").len(), 25);
    datapath.change_services(part(10..15));
    let applied = datapath.apply_services().expect("writing the last part");
    assert_eq!((applied.written, applied.deleted), (0, 50));
    let after = ServiceMaps::dump(&maps_dir).expect("the maps");
    assert_eq!(after.len(), 20);
    assert_eq!(after[..15], before[..15], "ids have lasted");
}

#[test]
fn a_full_map_is_named_and_what_was_there_keeps_working() {
    let directory = BpfDir::new();
    let bounded = ["slots", "backends"].map(|name| format!("{name}={0}..{0}", maps::SLOTS_MAX));
    let sizes = bounded.iter().map(|text| text.parse::<Setting>().expect("a size")).collect();
    let config = Config { sizes, ..Config::new(&directory.path) };
    let mut datapath = Datapath::open(&config).expect("opening the datapath");
    datapath.set_services(many_services(10)).expect("setting the services");
    let before = ServiceMaps::dump(&directory.path.join("maps")).expect("the maps");
    let error = datapath.set_services(many_services(maps::SLOTS_MAX / 4 + 1)).expect_err("one slot too many");
    assert!(chain(&error).contains("_1 is full"), "{}", chain(&error));
    let dump = ServiceMaps::dump(&directory.path.join("maps")).expect("the maps");
    assert_eq!(dump, before, "the services from before lead where they led");
    datapath.set_services(many_services(20)).expect("services that fit again");
    assert_eq!(ServiceMaps::dump(&directory.path.join("maps")).expect("the maps").len(), 20);
}

/// An element as bpftool takes it.
fn bytes(words: &[u32]) -> Vec<String> {
    words.iter().flat_map(|word| word.to_ne_bytes()).map(|byte| byte.to_string()).collect()
}

pub fn bpftool(arguments: &[&str]) {
    let output = Command::new("bpftool").args(arguments).output().expect("running bpftool");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn services_of_an_agent_with_the_first_layout_are_served_before_the_new_one_knows_any() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    datapath.set_services(many_services(3)).expect("setting the services");
    let before = datapath.services();
    drop(datapath);
    // What an earlier agent would have left: frontends in its layout, all else as it is.
    let maps_dir = directory.path.join("maps");
    fs::remove_file(maps_dir.join(maps::FRONTENDS)).expect("unpinning");
    let old = maps_dir.join(maps::FRONTENDS_1);
    let old = old.to_str().expect("a path");
    bpftool(&[
        "map", "create", old, "type", "hash", "key", "20", "value", "16", "entries", "64", "name", "OLD",
        "flags", "1",
    ]);
    for entry in &before {
        let [a, b, c, d] = Address::from(entry.address).to_words();
        let port = u32::from_ne_bytes([
            entry.port.to_be_bytes()[0],
            entry.port.to_be_bytes()[1],
            entry.protocol.0,
            0,
        ]);
        let (key, value) =
            (bytes(&[a, b, c, d, port]), bytes(&[entry.service_id, 4, 1, entry.affinity_seconds]));
        let mut arguments = vec!["map", "update", "pinned", old, "key"];
        arguments.extend(key.iter().map(String::as_str));
        arguments.push("value");
        arguments.extend(value.iter().map(String::as_str));
        bpftool(&arguments);
    }

    let mut datapath = open(&directory);
    let of = |entries: &[ServiceEntry]| -> Vec<_> {
        entries.iter().map(|entry| (entry.address, entry.service_id, entry.backends.len())).collect()
    };
    assert_eq!(of(&ServiceMaps::dump(&maps_dir).expect("the maps")), of(&before));
    let taken_over = &ServiceMaps::dump(&maps_dir).expect("the maps")[0].backends;
    // The old programs gave clients beyond the node the backends of this node, which came first.
    assert_eq!(
        taken_over.iter().map(|backend| backend.clients).collect::<Vec<_>>(),
        [Clients::All, Clients::Node, Clients::Node, Clients::Node]
    );
    assert!(!Path::new(old).exists(), "the old map is unpinned");
    datapath.set_services(many_services(3)).expect("setting the services");
    assert_eq!(datapath.services(), before, "ids have lasted");
}
