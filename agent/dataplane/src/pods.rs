//! The pods of the node that packets reach past its stack, by address.
//!
//! The programs hand a packet over to what stands here. So a pod is written once its link is ready, and deleted before
//! its route is: without an entry the node's stack delivers, or tells the sender that it cannot.

use std::{net::IpAddr, path::Path};

use ebpf_common::{Address, Flow, LocalPod, Tuple, maps};

use crate::{
    delta::Delta,
    links::{HOST_MAC, PodLink},
    maps::{MapError, PinnedMap},
};

#[derive(Debug)]
pub(crate) struct PodMap {
    map: PinnedMap<Address, LocalPod>,
    pods: Delta<Address, LocalPod>,
}

impl PodMap {
    pub(crate) fn open(directory: &Path) -> Result<Self, MapError> {
        let map = PinnedMap::<Address, LocalPod>::open(directory, maps::PODS)?;
        // What the programs write is theirs. Whoever was judged is, until somebody says more.
        let as_written = |pod: LocalPod| match pod.has_flows & LocalPod::POLICED {
            0 => LocalPod { has_flows: 0, ..pod },
            _ => judged(pod),
        };
        let actual = map.read_all()?.into_iter().map(|(address, pod)| (address, as_written(pod)));
        let pods = Delta::from_actual(actual);
        // Flows of an agent whose programs did not say whose they are.
        let beyond = PinnedMap::<u32, u32>::open(directory, maps::BEYOND)?;
        let flows = PinnedMap::<Tuple, Flow>::open(directory, maps::CONNTRACK)?;
        if beyond.get(&0)? == Some(0) && !flows.is_empty()? {
            beyond.insert(&0, &1)?;
        }
        Ok(Self { map, pods })
    }

    /// Makes `pods` all that there are; `is_policed` as of [`Self::insert`]. Of one that an earlier agent did not write, nobody knows whether it has flows.
    pub(crate) fn set(
        &mut self,
        pods: impl IntoIterator<Item = (IpAddr, PodLink)>,
        is_policed: impl Fn(&Address) -> bool,
    ) -> Result<(), MapError> {
        let wanted = pods.into_iter().map(|(address, link)| (Address::from(address), local_pod(&link)));
        let wanted: Vec<(Address, LocalPod)> = wanted
            .map(|(address, pod)| match self.pods.actual(&address) {
                Some(actual) if LocalPod { has_flows: 0, ..*actual } == pod => (address, *actual),
                _ if is_policed(&address) => (address, judged(pod)),
                _ => (address, LocalPod { has_flows: LocalPod::FLOWS, ..pod }),
            })
            .collect();
        self.pods.set_desired(wanted);
        self.apply()
    }

    /// `is_policed`: packets for it are judged from the first one on.
    pub(crate) fn insert(
        &mut self,
        addresses: &[IpAddr],
        link: &PodLink,
        is_policed: impl Fn(&Address) -> bool,
    ) -> Result<(), MapError> {
        for address in addresses.iter().map(|address| Address::from(*address)) {
            let pod = local_pod(link);
            let pod = match self.pods.actual(&address) {
                _ if !is_policed(&address) => pod,
                // Nothing was translated yet.
                None => LocalPod { has_flows: LocalPod::POLICED, ..pod },
                Some(_) => judged(pod),
            };
            self.pods.insert_desired(address, pod);
        }
        self.apply()
    }

    /// Says of each pod that is there whether packets for it are judged.
    pub(crate) fn police(&mut self, is_policed: impl Fn(&Address) -> bool) -> Result<(), MapError> {
        let changed = |(address, pod): (&Address, &LocalPod)| match (is_policed(address), pod.has_flows) {
            (true, flags) if flags & LocalPod::POLICED == 0 => Some((*address, judged(*pod))),
            // Flows that it may have had are known to the programs alone.
            (false, flags) if flags & LocalPod::POLICED != 0 => {
                Some((*address, LocalPod { has_flows: LocalPod::FLOWS, ..*pod }))
            }
            _ => None,
        };
        let changed: Vec<(Address, LocalPod)> = self.pods.desired().iter().filter_map(changed).collect();
        for (address, pod) in changed {
            self.pods.insert_desired(address, pod);
        }
        self.apply()
    }

    pub(crate) fn remove(&mut self, addresses: &[IpAddr]) -> Result<(), MapError> {
        for address in addresses {
            self.pods.remove_desired(&Address::from(*address));
        }
        self.apply()
    }

    /// Elements of the map.
    pub(crate) fn count(&self) -> usize {
        self.pods.actual_count()
    }

    fn apply(&mut self) -> Result<(), MapError> {
        let gone = self.pods.deletes();
        self.map.remove_all(&gone, |address| self.pods.deleted(address))?;
        let new = self.pods.upserts();
        self.map.insert_all(&new, |address, pod| self.pods.upserted(address, *pod))
    }
}

pub(crate) fn dump(directory: &Path) -> Result<Vec<(IpAddr, u32)>, MapError> {
    let map = PinnedMap::<Address, LocalPod>::open(directory, maps::PODS)?;
    Ok(map.read_all()?.into_iter().map(|(address, pod)| (address.to_ip(), pod.interface_index)).collect())
}

fn judged(pod: LocalPod) -> LocalPod {
    LocalPod { has_flows: LocalPod::FLOWS | LocalPod::POLICED, ..pod }
}

fn local_pod(link: &PodLink) -> LocalPod {
    LocalPod::new(link.host_index, [link.pod_mac, HOST_MAC])
}
