//! The plugin at the head of a chain, with Debian's plugins behind it, as a runtime calls one after the other; and a pod in
//! several networks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::agent::{Agent, plugin};
use super::interop::BLOCKS;
use super::peers::wire;
use super::plugin::address_of;
use crate::netns::{NetNs, eventually};

const DEBIANS: &str = "/usr/lib/cni";
const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;

/// A network as a runtime has it configured.
struct Network<'a> {
    host: &'a NetNs,
    version: &'a str,
    name: &'a str,
    plugins: Vec<Value>,
}

/// A pod's interface in it.
struct Attachment<'a> {
    container: &'a str,
    interface: &'a str,
    pod: &'a NetNs,
}

impl Network<'_> {
    fn call(
        &self,
        command: &str,
        of: &Attachment<'_>,
        at: &Value,
        previous: Option<&Value>,
    ) -> Result<Value, Value> {
        let mut config = at.clone();
        config["cniVersion"] = json!(self.version);
        config["name"] = json!(self.name);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = at["type"].as_str().expect("a type");
        let program = if kind == "seaway-cni" { plugin() } else { Path::new(DEBIANS).join(kind) };
        assert!(program.exists(), "{} of Debian's containernetworking-plugins", program.display());
        let mut command_line = Command::new(program);
        command_line
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", of.container)
            .env("CNI_IFNAME", of.interface)
            .env("CNI_NETNS", of.pod.path())
            .env("CNI_PATH", DEBIANS)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web");
        // Debian's plugins work in the namespace that they are called in: the node's.
        let run = self.host.run(|| harness::run(&mut command_line, &config.to_string()));
        let value = if run.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stdout))
        };
        if run.code == 0 {
            Ok(value)
        } else {
            Err(json!({ "plugin": kind, "error": value, "said": run.stderr }))
        }
    }

    fn add(&self, of: &Attachment<'_>) -> Result<Value, Value> {
        let mut result = None;
        for plugin in &self.plugins {
            result = Some(self.call("ADD", of, plugin, result.as_ref())?);
        }
        Ok(result.expect("a network has a plugin"))
    }

    /// Debian's portmap is left out: its CHECK (1.1.1) looks for rules of IPv4 in the table of IPv6, and always fails.
    fn check(&self, of: &Attachment<'_>, result: &Value) -> Result<(), Value> {
        let mut checked = self.plugins.iter().filter(|plugin| plugin["type"] != "portmap");
        checked.try_for_each(|plugin| self.call("CHECK", of, plugin, Some(result)).map(drop))
    }

    fn delete(&self, of: &Attachment<'_>, result: &Value) -> Result<(), Value> {
        let mut backwards = self.plugins.iter().rev();
        backwards.try_for_each(|plugin| self.call("DEL", of, plugin, Some(result)).map(drop))
    }
}

fn ours(agent: &Agent) -> Value {
    json!({ "type": "seaway-cni", "socket": agent.socket() })
}

/// Answers each connection with one octet, until one says that it is the last.
fn serve(pod: &NetNs, work: impl FnOnce()) {
    let listener = pod.run(|| TcpListener::bind(("0.0.0.0", POD_PORT)).expect("a port of the pod"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut said = [b'a'];
            while said != [b'z'] {
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.read_exact(&mut said).expect("an octet");
                stream.write_all(&said).expect("to answer");
            }
        });
        // Also where the work panics: the thread above waits for it.
        struct Last<'a>(&'a NetNs);
        impl Drop for Last<'_> {
            fn drop(&mut self) {
                self.0.run(|| ask("127.0.0.1", POD_PORT, b'z'));
            }
        }
        let _last = Last(pod);
        work();
    });
}

fn ask(address: &str, port: u16, octet: u8) -> bool {
    let to = SocketAddr::new(address.parse().expect("an address"), port);
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let mut answer = [0];
    stream.write_all(&[octet]).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == [octet]
}

#[test]
fn debians_portmap_and_bandwidth_follow_in_every_version_that_they_know() {
    let (host, other) = wire();
    host.ip("-6 address add 2001:db8::1/64 dev up0 nodad");
    let families = ["--node-ip", "2001:db8::1", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/112"];
    let agent = Agent::with_blocks(&host, &BLOCKS, &families);
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let mapping = json!({ "hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp" });
        let plugins = vec![
            ours(&agent),
            json!({ "type": "portmap", "snat": true, "runtimeConfig": { "portMappings": [mapping] } }),
            json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000 }),
        ];
        let network = Network { host: &host, version, name: "chained", plugins };
        let pod = NetNs::new();
        let of = Attachment { container: "c1", interface: "eth0", pod: &pod };
        let result = network.add(&of).unwrap_or_else(|error| panic!("{version}: {error}\n{}", agent.log()));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["name"], "eth0", "{result}");
        let link = result["interfaces"][0]["name"].as_str().expect("the host's end").to_owned();
        let shaped = || host.output("tc", &["qdisc", "show", "dev", &link]);
        assert!(shaped().contains("tbf"), "{version}: {}", shaped());
        assert!(shaped().contains("clsact"), "{version}: our programs stay: {}", shaped());
        serve(&pod, || {
            assert!(other.run(|| ask("192.0.2.1", HOST_PORT, b'b')), "{version}: by the node's port");
            assert!(host.run(|| ask(&address_of(&result), POD_PORT, b'c')), "{version}: by its address");
        });
        if version != "0.3.1" {
            network.check(&of, &result).unwrap_or_else(|error| panic!("{version}: {error}"));
            // What a plugin behind ours changed, ours does not mind; what was ours and is gone, it says.
            host.ip(&format!("route del {} proto 180", address_of(&result)));
            let error = network.check(&of, &result).expect_err("the route is gone");
            assert_eq!(
                (&error["plugin"], &error["error"]["code"]),
                (&json!("seaway-cni"), &json!(100)),
                "{error}"
            );
        }
        network.delete(&of, &result).unwrap_or_else(|error| panic!("{version}: {error}"));
        network.delete(&of, &result).unwrap_or_else(|error| panic!("{version}, again: {error}"));
        eventually("the link goes", || (!host.output("ip", &["link"]).contains("swp")).then_some(()));
        let rules = host.output("iptables-save", &["-t", "nat"]);
        assert!(!rules.contains(&format!("--dport {HOST_PORT}")), "{version}: {rules}");
    }
    assert_eq!(agent.json("/v1/pods"), json!([]));
}

#[test]
fn a_chain_of_the_newest_version_is_checked_and_collected() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let pod = NetNs::new();
    let of = Attachment { container: "c1", interface: "eth0", pod: &pod };
    let network = Network { host: &host, version: "1.1.0", name: "newest", plugins: vec![ours(&agent)] };
    let result = network.add(&of).expect("ADD");
    network.check(&of, &result).expect("CHECK");
    let gc = |valid: Value| {
        let mut config = ours(&agent);
        config["cni.dev/valid-attachments"] = valid;
        network.call("GC", &of, &config, Some(&result)).expect("GC");
        agent.json("/v1/pods").as_array().expect("a list").len()
    };
    assert_eq!(gc(json!([{ "containerID": "c1", "ifname": "eth0" }])), 1);
    assert_eq!(gc(json!([])), 0);
    let tail = json!({ "type": "portmap", "runtimeConfig": { "portMappings": [] } });
    let refused = network.call("ADD", &of, &tail, Some(&result));
    // The day that Debian's plugins know 1.1, they are to be chained in it above.
    assert_eq!(refused.expect_err("a version that they do not know")["error"]["code"], 1);

    // As is written in the README: Debian's way to shape what a pod sends takes the place of our programs.
    let network = Network { version: "1.0.0", ..network };
    let result = network.add(&of).expect("ADD");
    let shaper = json!({ "type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 8_000_000 });
    let refused = network.call("ADD", &of, &shaper, Some(&result)).expect_err("the place is taken");
    assert!(refused["error"]["msg"].as_str().is_some_and(|said| said.contains("ingress qdisc")), "{refused}");
    network.call("DEL", &of, &shaper, Some(&result)).expect("DEL of what is half made");
    network.delete(&of, &result).expect("DEL");
}

#[test]
fn a_pod_in_two_networks_has_an_address_in_each_and_keeps_one_when_the_other_goes() {
    let (host, other) = wire();
    other.ip("route add 10.244.0.0/16 via 192.0.2.1");
    let agent = Agent::start(&host, &[]);
    let pod = NetNs::new();
    let network = |name| Network { host: &host, version: "1.0.0", name, plugins: vec![ours(&agent)] };
    let (first, second) = (network("first"), network("second"));
    let attached = |interface| Attachment { container: "c1", interface, pod: &pod };
    let (eth0, net1) = (attached("eth0"), attached("net1"));
    let one = first.add(&eth0).expect("ADD of eth0");
    let two = second.add(&net1).expect("ADD of net1");
    assert_ne!(address_of(&one), address_of(&two));
    let reaches = |from: &NetNs, result: &Value| {
        from.output("ping", &["-c", "1", "-W", "2", &address_of(result)]);
    };
    for from in [&host, &other] {
        reaches(from, &one);
        reaches(from, &two);
    }
    let ways = pod.output("ip", &["route", "show", "default"]);
    assert!(ways.lines().next().is_some_and(|way| way.contains("dev eth0")), "the first stays first: {ways}");
    assert!(ways.lines().any(|way| way.contains("dev net1 metric")), "{ways}");
    // Again, as after a lost answer.
    assert_eq!(address_of(&second.add(&net1).expect("ADD again")), address_of(&two));
    first.check(&eth0, &one).expect("CHECK of eth0");
    second.check(&net1, &two).expect("CHECK of net1");
    let crossed = second.check(&net1, &one).expect_err("the other interface's address");
    assert_eq!(crossed["error"]["code"], 100, "{crossed}");
    first.delete(&eth0, &one).expect("DEL of eth0");
    eventually("eth0 goes", || (!pod.output("ip", &["link"]).contains("eth0")).then_some(()));
    reaches(&other, &two);
    let pods = agent.json("/v1/pods");
    assert_eq!((pods.as_array().expect("a list").len(), &pods[0]["address"]), (1, &json!(address_of(&two))));
    second.delete(&net1, &two).expect("DEL of net1");
    assert_eq!(agent.json("/v1/pods"), json!([]));
}
