//! Connections that pods have when a policy selects them for the first time, from their sockets: else nobody would know which
//! of them the pod began, and answers to it would be dropped.
//!
//! They are judged when they are used next. A socket that is bound and not connected, as those of servers of UDP are, says
//! nothing of its peers, and needs nothing: its peers are judged by their next datagram.

use std::{collections::HashSet, io, path::Path};

use ebpf_common::{Address, Flow, PolicyFlow, PolicyFlowKey, Port, Protocol, Tuple, maps, policy_flow_key};

use crate::{
    flows::now_ns,
    maps::{MapError, PinnedMap},
    namespaces::Namespaces,
    netlink::Socket,
    sock_diag::{self, End, Family, NETLINK_SOCK_DIAG},
};

/// Notes the connections of the pods with these addresses. What cannot be read is left out.
pub(super) fn note(directory: &Path, pods: &HashSet<Address>) -> Result<(), MapError> {
    let flows: PinnedMap<Tuple, Flow> = PinnedMap::open(directory, maps::CONNTRACK)?;
    let noted: PinnedMap<PolicyFlowKey, PolicyFlow> = PinnedMap::open(directory, maps::POLICY_FLOWS)?;
    let mut found = Vec::new();
    let visited = Namespaces::visit(NETLINK_SOCK_DIAG, |mut socket| match connections(&mut socket, pods) {
        Ok(connections) => found.extend(connections),
        Err(error) => tracing::debug!("listing the connections of a network namespace: {error}"),
    });
    if let Err(error) = visited {
        tracing::warn!("listing the connections of pods: {error}");
    }
    for (tuple, is_inbound) in found {
        // Behind its Service, where packets are translated and the socket does not know.
        let key = match flows.get(&tuple)? {
            Some(flow) if flow.is_forward() && !flow.is_masqueraded() => flow.translated,
            _ => tuple,
        };
        if noted.get(&key)?.is_none() {
            match noted.insert(&key, &PolicyFlow::new(0, is_inbound, now_ns())) {
                Err(MapError::Full { .. }) => {
                    tracing::warn!("connections of pods are left out, as the map of policies' flows is full");
                    return Ok(());
                }
                result => result?,
            }
        }
    }
    Ok(())
}

/// What the pods send, and whether their peer began it.
fn connections(socket: &mut Socket, pods: &HashSet<Address>) -> io::Result<Vec<(Tuple, bool)>> {
    let mut connections = Vec::new();
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let mut ends = Vec::new();
        for family in Family::BOTH {
            ends.extend(sock_diag::ends(socket, family, protocol)?);
        }
        let listening: HashSet<Port> =
            ends.iter().filter(|end| end.peer.is_none()).map(|end| end.own.1).collect();
        connections.extend(ends.iter().filter_map(|End { own, peer }| {
            let peer = (*peer)?;
            let tuple = policy_flow_key(own.0, own.1, peer.0, peer.1, protocol);
            pods.contains(&own.0).then(|| (tuple, listening.contains(&own.1)))
        }));
    }
    Ok(connections)
}
