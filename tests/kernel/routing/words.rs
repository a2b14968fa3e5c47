//! The configurations of the daemons.

use std::fmt::Write;

use super::daemons::{Offer, Side};

pub fn bird(side: &Side) -> String {
    let Side { asn, hold_time, .. } = side;
    let mut more = side.password.map(|password| format!("password \"{password}\"; ")).unwrap_or_default();
    for (wanted, words) in [
        (side.ttl_security, "ttl security on; "),
        (side.reflects, "rr client; "),
        (side.restarts, "graceful restart on; "),
        (side.extended_messages, "enable extended messages on; "),
    ] {
        more.push_str(if wanted { words } else { "" });
    }
    let (id, v4, v6) = (side.id(), side.v4(), side.v6());
    let (prefix_v4, prefix_v6) = (side.prefix_v4(), side.prefix_v6());
    let channel = "import all; export where source ~ [ RTS_STATIC, RTS_BGP ];";
    let session = |(index, (peer, remote_asn)): (usize, &(String, u32))| {
        format!(
            r"
protocol bgp peer{index} {{
    local {v4} as {asn};
    neighbor {peer} as {remote_asn};
    hold time {hold_time};
    connect retry time 1;
    connect delay time 1;
    error wait time 1, 2;
    {more}
    ipv4 {{ {channel} }};
    ipv6 {{ {channel} next hop address {v6}; }};
}}"
        )
    };
    let sessions: String = side.peers.iter().enumerate().map(session).collect();
    let routes = |six: bool| -> String {
        side.offers.iter().filter(|offer| offer.is_v6() == six).map(bird_route).collect()
    };
    let (routes_v4, routes_v6) = (routes(false), routes(true));
    format!(
        r"
router id {id};
protocol device {{}}
protocol direct {{ ipv4; ipv6; }}
protocol static {{ ipv4; route {prefix_v4} blackhole; {routes_v4} }}
protocol static {{ ipv6; route {prefix_v6} blackhole; {routes_v6} }}
protocol kernel {{ persist; ipv4 {{ export where source = RTS_BGP; }}; }}
protocol kernel {{ persist; ipv6 {{ export where source = RTS_BGP; }}; }}
{sessions}
"
    )
}

fn bird_route(offer: &Offer) -> String {
    let mut words = String::new();
    let origin = if offer.is_incomplete { "ORIGIN_INCOMPLETE" } else { "ORIGIN_IGP" };
    let _ = write!(words, "bgp_origin = {origin}; ");
    if let Some(preference) = offer.local_pref {
        let _ = write!(words, "bgp_local_pref = {preference}; ");
    }
    if let Some(med) = offer.med {
        let _ = write!(words, "bgp_med = {med}; ");
    }
    for asn in offer.path.iter().rev() {
        let _ = write!(words, "bgp_path.prepend({asn}); ");
    }
    for number in 0..offer.communities {
        let _ = write!(words, "bgp_large_community.add((64512, 1, {number}));\n ");
    }
    format!("route {} blackhole {{ {words} }};\n", offer.prefix)
}

pub fn frr(side: &Side) -> String {
    let Side { asn, hold_time, .. } = side;
    let keepalive = hold_time / 3;
    let (id, v6, prefix_v6) = (side.id(), side.v6(), side.prefix_v6());
    let (mut neighbors, mut in_v4, mut in_v6) = (String::new(), String::new(), String::new());
    for (peer, remote_asn) in &side.peers {
        let mut say = |words: String| neighbors.push_str(&format!(" neighbor {peer} {words}\n"));
        say(format!("remote-as {remote_asn}"));
        say(format!("timers {keepalive} {hold_time}"));
        say("timers connect 1".to_owned());
        if let Some(password) = side.password {
            say(format!("password {password}"));
        }
        if side.ttl_security {
            say("ttl-security hops 1".to_owned());
        }
        let client = format!("  neighbor {peer} route-reflector-client\n");
        let both = format!("  neighbor {peer} activate\n{}", if side.reflects { &client } else { "" });
        in_v4.push_str(&both);
        let _ = writeln!(in_v6, "{both}  neighbor {peer} route-map v6 out");
    }
    let restarts = " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n";
    let restarts = if side.restarts { restarts } else { "" };
    let (mut maps, mut own) = (String::new(), String::new());
    for (index, offer) in side.offers.iter().enumerate() {
        let list = if offer.is_v6() { &mut in_v6 } else { &mut in_v4 };
        let map = frr_map(offer, index);
        let by = if map.is_empty() { String::new() } else { format!(" route-map offer{index}") };
        let _ = writeln!(list, "  network {}{by}", offer.prefix);
        maps.push_str(&map);
        if offer.is_v6() && !offer.prefix.starts_with(prefix_v6.trim_end_matches(":/48")) {
            let _ = writeln!(own, "ipv6 prefix-list own seq {} permit {}", 10 + index, offer.prefix);
        }
    }
    // Maps that come after their use are heeded seconds later.
    format!(
        r"
ipv6 prefix-list own seq 5 permit {prefix_v6} le 128
{own}{maps}route-map v6 permit 10
 match ipv6 address prefix-list own
 set ipv6 next-hop global {v6}
exit
route-map v6 permit 20
exit
router bgp {asn}
 bgp router-id {id}
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
{restarts}{neighbors} address-family ipv4 unicast
  network {}
{in_v4} exit-address-family
 address-family ipv6 unicast
  network {prefix_v6}
{in_v6} exit-address-family
exit
",
        side.prefix_v4()
    )
}

/// Nothing where nothing is to be said of an offer.
fn frr_map(offer: &Offer, index: usize) -> String {
    let mut words = String::new();
    if offer.is_incomplete {
        words.push_str(" set origin incomplete\n");
    }
    if let Some(preference) = offer.local_pref {
        let _ = writeln!(words, " set local-preference {preference}");
    }
    if let Some(med) = offer.med {
        let _ = writeln!(words, " set metric {med}");
    }
    if !offer.path.is_empty() {
        let path: Vec<String> = offer.path.iter().map(u32::to_string).collect();
        let _ = writeln!(words, " set as-path prepend {}", path.join(" "));
    }
    if words.is_empty() { words } else { format!("route-map offer{index} permit 10\n{words}exit\n") }
}

pub fn gobgp(side: &Side) -> String {
    let (id, v4, asn) = (side.id(), side.v4(), side.asn);
    let neighbors: String = side.peers.iter().map(|peer| gobgp_neighbor(side, peer)).collect();
    format!(
        r#"
[global.config]
as = {asn}
router-id = "{id}"
port = 179
local-address-list = ["{v4}"]
{neighbors}"#
    )
}

fn gobgp_neighbor(side: &Side, (peer, remote_asn): &(String, u32)) -> String {
    let Side { hold_time, .. } = side;
    let keepalive = hold_time / 3;
    let v4 = side.v4();
    let password =
        side.password.map(|password| format!("auth-password = \"{password}\"")).unwrap_or_default();
    let mut more = String::new();
    if side.ttl_security {
        more.push_str("[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n");
    }
    if side.reflects {
        more.push_str("[neighbors.route-reflector.config]\nroute-reflector-client = true\n");
        more.push_str(&format!("route-reflector-cluster-id = \"{v4}\"\n"));
    }
    let mut family = String::new();
    if side.restarts {
        more.push_str("[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\n");
        family.push_str("[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n");
    }
    format!(
        r#"
[[neighbors]]
[neighbors.config]
neighbor-address = "{peer}"
peer-as = {remote_asn}
{password}
[neighbors.timers.config]
connect-retry = 1
hold-time = {hold_time}
keepalive-interval = {keepalive}
[neighbors.transport.config]
local-address = "{v4}"
{more}
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "ipv4-unicast"
{family}
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "ipv6-unicast"
{family}
"#
    )
}

/// What its client is told.
pub fn gobgp_route(offer: &Offer, next_hop: &str) -> Vec<String> {
    let family = if offer.is_v6() { "ipv6" } else { "ipv4" };
    let origin = if offer.is_incomplete { "incomplete" } else { "igp" };
    let mut words =
        vec!["global", "rib", "-a", family, "add", &offer.prefix, "origin", origin, "nexthop", next_hop];
    let path: Vec<String> = offer.path.iter().map(u32::to_string).collect();
    let (path, preference) = (path.join(" "), offer.local_pref.unwrap_or_default().to_string());
    let med = offer.med.unwrap_or_default().to_string();
    for (wanted, name, value) in [
        (!path.is_empty(), "aspath", &path),
        (offer.local_pref.is_some(), "local-pref", &preference),
        (offer.med.is_some(), "med", &med),
    ] {
        if wanted {
            words.extend([name, value]);
        }
    }
    words.into_iter().map(str::to_owned).collect()
}
