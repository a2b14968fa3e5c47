//! Tier kernel: benches at their smallest measure everything that they say, and nothing fails meanwhile.

use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn the_bench_of_services_loses_no_request_and_leaves_no_cgroup() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the kernel tier needs root: it loads BPF programs and makes namespaces"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let figures = folder.path().join("figures.json");
    let child = Command::new(env!("CARGO_BIN_EXE_seaway-bench"))
        .args(["services", "--services", "10", "--rounds", "1", "--seconds", "0.1", "--tc"])
        .args(["--only", "path", "--json"])
        .arg(&figures)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting the bench");
    let cgroup = format!("seaway-bench-{}", child.id());
    let output = child.wait_with_output().expect("the bench ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(&figures).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    let runs = figures["runs"].as_array().expect("runs");
    // Plain routing, served sockets, the same beside policies, and tc only; four operations; two places.
    assert_eq!(runs.len(), 4 * 4 * 2, "{runs:?}");
    for run in runs {
        let outcome = &run["runs"][0];
        assert!(outcome["operations"].as_u64() > Some(0), "{run}");
        assert_eq!(outcome["failures"], 0, "{run}");
        assert!(outcome["cpu_seconds"].as_f64() > Some(0.0), "{run}");
    }
    assert_eq!(figures["not_measured"], serde_json::json!([]));
    let tables = String::from_utf8_lossy(&output.stdout);
    assert!(tables.contains("kube-proxy was NOT measured"), "{tables}");
    let left =
        Command::new("find").args(["/sys/fs/cgroup", "-name", &cgroup]).output().expect("running find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn the_bench_of_programs_shows_every_class_and_each_packet_took_its_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_seaway-bench"))
        .args(["programs", "--services", "10", "--json"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .expect("the bench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&path).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    let packets = figures["packets"].as_array().expect("packets");
    for (family, program) in ["IPv4", "IPv6"].into_iter().flat_map(|family| {
        ["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress"].map(|program| (family, program))
    }) {
        let of_family = |packet: &&Value| {
            packet["program"] == program
                && packet["packet"].as_str().is_some_and(|name| name.starts_with(family))
        };
        assert!(packets.iter().any(|packet| of_family(&packet)), "{family}, {program}: {packets:?}");
    }
    assert!(packets.iter().all(|packet| packet["nanoseconds"].is_number()), "{packets:?}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(table.lines().filter(|line| line.starts_with("| ")).count(), packets.len() + 1, "{table}");
}

#[test]
fn the_bench_of_bgp_measures_each_device_and_says_which_goals_are_reached() {
    let folder = tempfile::tempdir().expect("a folder");
    let figures = folder.path().join("figures.json");
    let bench = std::path::Path::new(env!("CARGO_BIN_EXE_seaway-bench"));
    let output = Command::new(bench)
        .args(["bgp", "--devices", "seaway,bird", "--rounds", "1", "--prefixes", "1000", "--singles", "2"])
        .args(["--peers", "20", "--mesh-rounds", "1", "--next-hops", "10", "--agent"])
        .arg(bench.with_file_name("seaway-agent"))
        .arg("--json")
        .arg(&figures)
        .stdin(Stdio::null())
        .output()
        .expect("running the bench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&figures).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    let devices = figures["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 2, "{devices:?}");
    for figure in ["announce_seconds", "withdraw_seconds", "octets_per_route", "mesh_seconds"] {
        for device in devices {
            assert_eq!(device[figure].as_array().map(Vec::len), Some(1), "{figure}: {device}");
        }
    }
    assert_eq!(devices[0]["learned_installs_per_second"].as_array().map(Vec::len), Some(1));
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(figures["goals"].as_array().map(Vec::len), Some(7));
    assert_eq!(table.matches("reached").count() + table.matches("MISSED").count(), 7, "{table}");
}

#[test]
fn the_bench_of_pods_counts_every_pod_that_it_adds_on_several_nodes() {
    let folder = tempfile::tempdir().expect("a folder");
    let figures = folder.path().join("figures.json");
    let bench = std::path::Path::new(env!("CARGO_BIN_EXE_seaway-bench"));
    let plugin = std::env::var_os("SEAWAY_CNI").expect("`cargo xtask test kernel` builds the plugin");
    let output = Command::new(bench)
        .args(["cni", "--only", "routes", "--nodes", "2", "--per-node", "2", "--interval", "5"])
        .args(["--burst", "3", "--rounds", "1", "--agent"])
        .arg(bench.with_file_name("seaway-agent"))
        .arg("--server")
        .arg(bench.with_file_name("seaway-server"))
        .arg("--plugin")
        .arg(plugin)
        .arg("--json")
        .arg(&figures)
        .stdin(Stdio::null())
        .output()
        .expect("running the bench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&figures).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    let ways = figures["routes"].as_array().expect("ways of adding");
    for (way, pods) in ways.iter().zip([4, 9]) {
        let told = way["pods_by_seconds_at_most"].as_object().expect("a histogram");
        assert_eq!(told.values().filter_map(Value::as_u64).sum::<u64>(), pods, "{way}");
        assert_eq!(way["add_seconds"].as_array().map(Vec::len), Some(pods as usize), "{way}");
    }
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(table.matches("reached").count() + table.matches("MISSED").count(), 2, "{table}");
}
