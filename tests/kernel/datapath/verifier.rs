//! Every program and map, against the running kernel.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::maps::MapData;
use dataplane::{
    datapath::{Config, Datapath},
    programs::{LogLevel, remove_pinned},
    services::ServiceMaps,
};
use ebpf_common::maps;

use super::{chain, open};
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
            "connect4",
            "connect6",
            "getpeername4",
            "getpeername6",
            "pod_egress",
            "pod_ingress",
            "recvmsg4",
            "recvmsg6",
            "sendmsg4",
            "sendmsg6",
            "uplink_egress",
            "uplink_ingress",
        ];
        assert_eq!(loaded, wanted.map(str::to_owned).into());
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
    const BUDGET_BYTES: u64 = 36 << 20;
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
