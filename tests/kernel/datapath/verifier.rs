//! Every program and map, against the running kernel.

use std::{collections::BTreeSet, fs};

use dataplane::{
    datapath::{Config, Datapath},
    programs::LogLevel,
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
