//! A Service of type LoadBalancer from its manifest to a client behind the top of rack: an address from a pool, announced by
//! BGP as the API says, learned by a BIRD on the switch.

use std::process::{Child, Command};

use harness::{Cluster, eventually};

const OUTSIDE: &str = "sw-fabric";
/// Of its own, so that Services of other tests get nothing from the pool.
const RANGE: &str = "203.0.113.0/24";
const ADDRESS: &str = "203.0.113.10";

const ROUTING: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: balancers}
spec: {cidr: 203.0.113.0/24, allowedUses: [LoadBalancer], assignmentMode: Manual}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]
  communities: [{name: balancers, value: '64512:80'}]
  prefixAdvertisements: [{cidr: 203.0.113.0/24, communities: [balancers]}]
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: top-of-rack}
spec: {peerIP: 10.89.0.1, asNumber: 64999}
";

const SERVICE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: sw-node1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: server, image: 'multitool:1'}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations: {projectcalico.org/loadBalancerIPs: '[\"203.0.113.10\"]'}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

/// What the cluster has beyond a namespace; taken away when the test ends.
struct Routing<'a>(&'a Cluster);

impl Drop for Routing<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "--ignore-not-found", "-f", "-"];
        self.0.kubectl_with(&arguments, ROUTING);
    }
}

/// BIRD on the switch, which learns of balancers alone.
struct Bird<'a> {
    cluster: &'a Cluster,
    folder: tempfile::TempDir,
    process: Child,
}

impl<'a> Bird<'a> {
    fn start(cluster: &'a Cluster, nodes: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let mut configuration =
            "router id 10.89.0.1;\nprotocol device {}\nprotocol kernel { ipv4 { import none; \
                                 export where source = RTS_BGP; }; merge paths on; }\n"
                .to_owned();
        for node in 1..=nodes {
            let neighbour = format!("local 10.89.0.1 as 64999; neighbor 10.89.0.{} as 64512;", 10 + node);
            let timers = "connect delay time 1; connect retry time 1; error wait time 1, 2;";
            let channel = format!("ipv4 {{ import where net ~ [{RANGE}+]; export none; }};");
            configuration
                .push_str(&format!("protocol bgp node{node} {{ {neighbour} {timers} {channel} }}\n"));
        }
        let file = folder.path().join("bird.conf");
        std::fs::write(&file, configuration).expect("writing bird.conf");
        let process = cluster
            .command_on(OUTSIDE)
            .args(["/usr/sbin/bird", "-f", "-c"])
            .arg(&file)
            .arg("-s")
            .arg(folder.path().join("bird.ctl"))
            .spawn()
            .expect("starting BIRD");
        Self { cluster, folder, process }
    }

    fn ask(&self, question: &str) -> String {
        let mut command = Command::new("/usr/sbin/birdc");
        command.arg("-s").arg(self.folder.path().join("bird.ctl")).args(question.split(' '));
        let output = command.output().expect("running birdc");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Bird<'_> {
    fn drop(&mut self) {
        // SIGTERM, so that it takes its routes from the kernel.
        let pid = self.process.id().to_string();
        let ended = Command::new("kill").arg(&pid).status().is_ok_and(|status| status.success());
        if !ended || self.process.wait().is_err() {
            eprintln!("BIRD, process {pid}, may still run");
        }
        self.cluster.on(OUTSIDE, &["ip", "route", "flush", "proto", "bird"]);
    }
}

#[test]
fn a_load_balancers_address_is_announced_to_the_top_of_rack_and_answers_there() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes().len();
    let routing = Routing(&cluster);
    let namespace = cluster.namespace("advertised");
    cluster.kubectl_with(&["apply", "-f", "-"], ROUTING).ok();
    let bird = Bird::start(&cluster, nodes);
    namespace.apply(SERVICE);
    namespace.wait_ready("app=server", 1, 60);
    eventually(10, "the Service's address", || {
        let path = "{.status.loadBalancer.ingress[*].ip}";
        let found = namespace.kubectl(&format!("get service web -o jsonpath={path}")).ok();
        if found == ADDRESS { Ok(()) } else { Err(found) }
    });
    let route = |prefix: &str| bird.ask(&format!("show route {prefix} all"));
    eventually(20, "the range from every node, and the address from the server's", || {
        let (range, address) = (route(RANGE), route(&format!("{ADDRESS}/32")));
        let from = |text: &str| text.matches("via 10.89.0.").count();
        let carries = address.contains("(64512,80)") && address.contains("via 10.89.0.11 ");
        if from(&range) == nodes && from(&address) == 1 && carries {
            Ok(())
        } else {
            Err(format!("{range}{address}"))
        }
    });
    let url = format!("http://{ADDRESS}/");
    let asked = || cluster.on(OUTSIDE, &["curl", "-sS", "--max-time", "2", &url]);
    eventually(20, &url, || {
        let run = asked();
        // With the policy Local the server sees who asks.
        let is_right = run.stdout.contains("\"pod\":\"server\"") && run.stdout.contains("10.89.0.1");
        if is_right { Ok(()) } else { Err(format!("{run:?}")) }
    });

    // Without an endpoint nobody announces it, and what has no Service comes back as unreachable.
    namespace.kubectl("delete pod server --wait=true").ok();
    let is_withdrawn = || {
        let routes = route(&format!("{ADDRESS}/32"));
        if routes.contains("via 10.89.0.") { Err(routes) } else { Ok(()) }
    };
    eventually(20, "the address to be withdrawn with its endpoint", is_withdrawn);
    namespace.apply(SERVICE);
    namespace.wait_ready("app=server", 1, 60);
    eventually(20, "the address to be announced again", || {
        is_withdrawn().err().map(drop).ok_or_else(String::new)
    });
    namespace.kubectl("delete service web").ok();
    eventually(20, "the address to be withdrawn with its Service", is_withdrawn);
    assert_ne!(asked().code, 0, "the range leads to no Service now");
    drop(routing);
    eventually(20, "the range to be withdrawn", || {
        let routes = route(RANGE);
        if routes.contains("via 10.89.0.") { Err(routes) } else { Ok(()) }
    });
}
