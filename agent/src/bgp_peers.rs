//! BGP peers from a file, for hosts that take none from the API: a JSON array, one object per peer.
//!
//! ```json
//! [{"address": "192.0.2.2", "asn": 65001, "passwordFile": "/etc/seaway/tor1.key", "ttlSecurity": 1}]
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bgp::policy::{Action, Community, Policy, Rule};
use bgp::{AddPath, NextHopMode, PeerConfig};
use serde::Deserialize;

use crate::bfd_config;
use crate::bgp_io::{Neighbour, PASSWORD_LENGTH_MAX, Secret, Transport};

/// The peers of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFile(pub Vec<(IpAddr, Neighbour)>);

/// One peer, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Entry {
    address: Option<IpAddr>,
    /// Any AS where absent.
    asn: Option<u32>,
    local_asn: Option<u32>,
    /// 1 to 65535.
    port: Option<u16>,
    source_address: Option<IpAddr>,
    /// Its first line is the TCP MD5 password, 1 to 80 octets.
    password_file: Option<PathBuf>,
    /// Hops, 1 to 254 (RFC 5082).
    ttl_security: Option<u8>,
    /// 1 to 255.
    ttl: Option<u8>,
    passive: bool,
    route_reflector_client: bool,
    cluster_id: Option<Ipv4Addr>,
    /// 0, or 3 to 65535.
    hold_time_seconds: Option<u16>,
    /// 1 to a third of the hold time.
    keepalive_seconds: Option<u16>,
    allow_own_as: u8,
    max_prefixes: Option<u32>,
    max_prefixes_restart_seconds: Option<u32>,
    graceful_shutdown: bool,
    next_hop: NextHop,
    /// Takes several paths per destination (RFC 7911).
    add_path_receive: bool,
    /// Paths sent per destination.
    add_path_send: u8,
    extended_next_hop: bool,
    /// 0 to 4095; 0 turns graceful restart off.
    restart_seconds: Option<u16>,
    /// 1 to 16777215 (RFC 9494).
    long_lived_stale_seconds: Option<u32>,
    /// Put on all that the peer is sent: `aa:nn` or `aa:nn:mm`.
    add_communities: Vec<String>,
    /// `true`, `false`, or an object: `bfd_config.rs`.
    bfd: serde_json::Value,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum NextHop {
    #[default]
    Auto,
    #[serde(rename = "self")]
    SelfAddress,
    Keep,
}

/// Reads and checks a file of peers; the error names the file, the peer and the field.
pub fn load(path: &str) -> Result<PeerFile, String> {
    read(path).map_err(|error| format!("{error:#}"))
}

fn read(path: &str) -> Result<PeerFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let entries: Vec<Entry> =
        serde_json::from_str(&text).with_context(|| format!("{path} is no array of BGP peers"))?;
    let mut peers: Vec<(IpAddr, Neighbour)> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let address = entry.address.with_context(|| format!("{path}: peer {index}: address is missing"))?;
        let neighbour = entry.neighbour().with_context(|| format!("{path}: peer {address}"))?;
        ensure!(peers.iter().all(|(known, _)| *known != address), "{path}: peer {address} is there twice");
        peers.push((address, neighbour));
    }
    Ok(PeerFile(peers))
}

impl Entry {
    fn neighbour(&self) -> Result<Neighbour> {
        ensure!(self.port != Some(0), "port: 1 to 65535");
        ensure!(self.ttl != Some(0), "ttl: 1 to 255");
        ensure!(!matches!(self.ttl_security, Some(0 | 255)), "ttlSecurity: 1 to 254 hops");
        ensure!(!matches!(self.hold_time_seconds, Some(1 | 2)), "holdTimeSeconds: 0, or 3 to 65535");
        ensure!(self.keepalive_seconds != Some(0), "keepaliveSeconds: 1 or more");
        ensure!(self.restart_seconds.is_none_or(|time| time <= 4095), "restartSeconds: 0 to 4095");
        let long = self.long_lived_stale_seconds;
        ensure!(long.is_none_or(|time| (1..1 << 24).contains(&time)), "longLivedStaleSeconds: 1 to 16777215");
        let password =
            self.password_file.as_deref().map(read_password).transpose().context("passwordFile")?;
        let bfd = match &self.bfd {
            serde_json::Value::Null => None,
            value => bfd_config::of_value(value).map_err(anyhow::Error::msg).context("bfd")?,
        };
        Ok(Neighbour {
            bfd,
            config: self.config()?,
            transport: Transport {
                port: self.port,
                source: self.source_address,
                password,
                ttl_security: self.ttl_security,
                ttl: self.ttl,
            },
            ..Neighbour::default()
        })
    }

    fn config(&self) -> Result<PeerConfig> {
        let seconds = |time: Option<u16>| time.map(|time| Duration::from_secs(u64::from(time)));
        let long_seconds = |time: Option<u32>| time.map(|time| Duration::from_secs(u64::from(time)));
        let communities: Vec<Action> = self
            .add_communities
            .iter()
            .map(|text| Ok(Action::AddCommunity(text.parse::<Community>().context("addCommunities")?)))
            .collect::<Result<_>>()?;
        let mut export = Policy::default();
        if !communities.is_empty() {
            let name = "addCommunities".into();
            export.rules.push(Rule { name, actions: communities, ..Rule::default() });
        }
        Ok(PeerConfig {
            asn: self.asn,
            local_asn: self.local_asn,
            passive: self.passive,
            route_reflector_client: self.route_reflector_client,
            cluster_id: self.cluster_id,
            hold_time: seconds(self.hold_time_seconds),
            keepalive_time: seconds(self.keepalive_seconds),
            export,
            next_hop: match self.next_hop {
                NextHop::Auto => NextHopMode::Auto,
                NextHop::SelfAddress => NextHopMode::SelfAddress,
                NextHop::Keep => NextHopMode::Keep,
            },
            local_address: self.source_address,
            allow_own_as: self.allow_own_as,
            max_prefixes: self.max_prefixes,
            max_prefixes_restart: long_seconds(self.max_prefixes_restart_seconds),
            graceful_shutdown: self.graceful_shutdown,
            restart_time: seconds(self.restart_seconds),
            long_lived_stale_time: long_seconds(self.long_lived_stale_seconds),
            add_path: AddPath { receive: self.add_path_receive, send_max: self.add_path_send },
            extended_next_hop: self.extended_next_hop,
            ..PeerConfig::default()
        })
    }
}

fn read_password(path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let password = text.lines().next().unwrap_or_default().as_bytes();
    let range = 1..=PASSWORD_LENGTH_MAX;
    ensure!(range.contains(&password.len()), "{}: 1 to {PASSWORD_LENGTH_MAX} octets", path.display());
    Ok(Secret::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Result<Neighbour> {
        serde_json::from_str::<Entry>(text)?.neighbour()
    }

    #[test]
    fn a_peer_reads_as_it_is_written() {
        let text = r#"{"address": "192.0.2.2", "asn": 65001, "holdTimeSeconds": 3, "ttlSecurity": 1,
            "nextHop": "self", "addCommunities": ["1:2", "1:2:3"], "addPathReceive": true,
            "bfd": {"detectionMultiplier": 4}}"#;
        let peer = entry(text).expect("a peer");
        assert_eq!(peer.config.asn, Some(65001));
        assert_eq!(peer.config.hold_time, Some(Duration::from_secs(3)));
        assert_eq!(peer.config.next_hop, NextHopMode::SelfAddress);
        assert_eq!(peer.config.export.rules[0].actions.len(), 2);
        assert!(peer.config.add_path.receive);
        assert_eq!(peer.transport.ttl_security, Some(1));
        assert_eq!(peer.bfd, Some(bfd::Config { multiplier: 4, ..bfd_config::DEFAULT }));
        assert_eq!(entry(r#"{"address": "192.0.2.2"}"#).expect("a peer").bfd, None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_fields_name() {
        for (text, expected) in [
            (r#"{"holdTimeSeconds": 2}"#, "holdTimeSeconds"),
            (r#"{"ttlSecurity": 255}"#, "ttlSecurity"),
            (r#"{"restartSeconds": 4096}"#, "restartSeconds"),
            (r#"{"addCommunities": ["1"]}"#, "addCommunities"),
            (r#"{"passwordFile": "/nonexistent"}"#, "passwordFile"),
            (r#"{"bfd": {"detectionMultiplier": 0}}"#, "bfd: detectionMultiplier: 0"),
            (r#"{"holdTime": 3}"#, "unknown field `holdTime`"),
        ] {
            let error = format!("{:#}", entry(text).expect_err(text));
            assert!(error.contains(expected), "{error}");
        }
    }
}
