//! The scheduler's picture of the cluster: a table of nodes in columns, updated in place. No IO.
//!
//! Row = node. Amounts of each resource are two columns of numbers, so that "which nodes have room" runs over plain arrays.
//! Pods that were given to a node but are not yet seen there by the watch are in the table too: they are assumed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

use crate::pod::{HostPort, PodInfo};
use crate::resources::{PODS, amounts};

/// A row of the table. Valid until the next change of the set of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub usize);

/// One resource on all nodes.
#[derive(Debug, Clone)]
pub struct Column {
    /// The resource's name.
    pub name: String,
    /// What pods may take, per node.
    pub allocatable: Vec<i64>,
    /// What pods have asked for, per node.
    pub requested: Vec<i64>,
}

/// The picture.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    row_by_name: HashMap<String, usize>,
    rows: Vec<Row>,
    columns: Vec<Column>,
    cpu_assumed: Vec<i64>,
    memory_assumed: Vec<i64>,
    node_by_pod: HashMap<String, String>,
    /// Pods on nodes that are not (yet, or no longer) in the table.
    homeless: HashMap<String, Vec<Arc<PodInfo>>>,
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    services: BTreeMap<(String, String), Selector>,
    images: HashMap<String, usize>,
}

/// What a node is, beyond numbers.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Sizes in bytes by image name.
    pub images: HashMap<String, i64>,
    /// Its pods, assumed ones included.
    pub pods: Vec<Arc<PodInfo>>,
    /// Taken host ports.
    pub ports: Vec<HostPort>,
}

/// Labels of what has none.
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl Snapshot {
    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows.
    pub fn nodes(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..self.rows.len()).map(NodeIndex)
    }

    /// A row.
    pub fn node(&self, node: NodeIndex) -> &Row {
        &self.rows[node.0]
    }

    /// The row of a name.
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        self.row_by_name.get(name).copied().map(NodeIndex)
    }

    /// The column of a resource, if any node has it or any pod asked for it.
    pub fn column(&self, resource: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == resource)
    }

    /// What pods may take of each resource of a node.
    pub fn allocatable(&self, node: NodeIndex) -> Vec<(String, i64)> {
        self.columns.iter().map(|column| (column.name.clone(), column.allocatable[node.0])).collect()
    }

    /// CPU in milli-cores and memory in bytes that pods ask for or are assumed to need.
    pub fn assumed(&self, node: NodeIndex) -> (i64, i64) {
        (self.cpu_assumed[node.0], self.memory_assumed[node.0])
    }

    /// The number of nodes that have this image.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        self.namespaces.get(namespace).unwrap_or(&NO_LABELS)
    }

    /// Notes or forgets the labels of a namespace.
    pub fn set_namespace(&mut self, name: String, labels: Option<BTreeMap<String, String>>) {
        match labels {
            Some(labels) => self.namespaces.insert(name, labels),
            None => self.namespaces.remove(&name),
        };
    }

    /// Notes or forgets the selector of a Service.
    pub fn set_service(
        &mut self,
        namespace: String,
        name: String,
        selector: Option<BTreeMap<String, String>>,
    ) {
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => self.services.insert((namespace, name), selector.into_iter().collect()),
            None => self.services.remove(&(namespace, name)),
        };
    }

    /// The selectors of the Services that select this pod.
    pub fn services_of<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = &'a Selector> {
        let own = self.services.range((pod.namespace.clone(), String::new())..);
        let own = own.take_while(|((namespace, _), _)| *namespace == pod.namespace);
        own.map(|(_, selector)| selector).filter(|selector| selector.matches(pod.pod.labels()))
    }

    /// Adds a node or replaces what is known of it; its pods stay.
    pub fn set_node(&mut self, node: &Node) {
        let name = node.name_any();
        let at = match self.row_by_name.get(&name) {
            Some(at) => *at,
            None => self.append(&name),
        };
        let row = &mut self.rows[at];
        for image in row.images.keys() {
            decrement(&mut self.images, image);
        }
        row.labels = node.labels().clone();
        let spec = node.spec.clone().unwrap_or_default();
        row.taints = spec.taints.unwrap_or_default();
        row.unschedulable = spec.unschedulable == Some(true);
        let status = node.status.as_ref();
        let images = status.and_then(|status| status.images.as_deref()).unwrap_or_default();
        row.images = images
            .iter()
            .flat_map(|image| {
                image.names.iter().flatten().map(|name| (name.clone(), image.size_bytes.unwrap_or(0)))
            })
            .collect();
        for image in row.images.keys() {
            *self.images.entry(image.clone()).or_default() += 1;
        }
        let allocatable =
            amounts(status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())));
        for column in &mut self.columns {
            column.allocatable[at] = 0;
        }
        for (resource, amount) in allocatable {
            self.column_mut(&resource).allocatable[at] = amount;
        }
        if let Some(pods) = self.homeless.remove(&name) {
            pods.into_iter().for_each(|pod| self.place(pod, &name));
        }
    }

    /// Takes a node out; its pods are remembered in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.row_by_name.remove(name) else { return };
        let row = self.rows.swap_remove(at);
        for column in &mut self.columns {
            column.allocatable.swap_remove(at);
            column.requested.swap_remove(at);
        }
        self.cpu_assumed.swap_remove(at);
        self.memory_assumed.swap_remove(at);
        if let Some(moved) = self.rows.get(at) {
            self.row_by_name.insert(moved.name.clone(), at);
        }
        row.images.keys().for_each(|image| decrement(&mut self.images, image));
        if !row.pods.is_empty() {
            self.homeless.insert(name.to_owned(), row.pods);
        }
    }

    /// Puts a pod on a node, in place of what was known of the same pod before.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.nominated.remove(&pod.uid);
        self.place(pod, node);
    }

    /// Takes a pod off its node; returns whether it was on one.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.node_by_pod.remove(uid) else { return false };
        if let Some(homeless) = self.homeless.get_mut(&node) {
            homeless.retain(|pod| pod.uid != uid);
        }
        if let Some(at) = self.row_by_name.get(&node).copied()
            && let Some(slot) = self.rows[at].pods.iter().position(|pod| pod.uid == uid)
        {
            let pod = self.rows[at].pods.swap_remove(slot);
            self.account(at, &pod, -1);
            let row = &mut self.rows[at];
            row.ports = row.pods.iter().flat_map(|pod| pod.host_ports.iter().cloned()).collect();
        }
        true
    }

    /// The node that a pod is on.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.node_by_pod.get(uid).map(String::as_str)
    }

    /// Notes that room is being made on `node` for a pod, or that it no longer is.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: Option<&str>) {
        match node {
            Some(node) => self.nominated.insert(pod.uid.clone(), (node.to_owned(), pod)),
            None => self.nominated.remove(&pod.uid),
        };
    }

    /// Forgets a nomination.
    pub fn forget_nomination(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// Pods at least as important as `pod` for which room is being made on `node`.
    pub fn nominated_on<'a>(
        &'a self,
        node: &'a str,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let others = self.nominated.values().filter(move |(at, other)| at == node && other.uid != pod.uid);
        others.map(|(_, other)| other).filter(move |other| other.priority >= pod.priority)
    }

    fn append(&mut self, name: &str) -> usize {
        let at = self.rows.len();
        self.row_by_name.insert(name.to_owned(), at);
        self.rows.push(Row {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            images: HashMap::new(),
            pods: Vec::new(),
            ports: Vec::new(),
        });
        for column in &mut self.columns {
            column.allocatable.push(0);
            column.requested.push(0);
        }
        self.cpu_assumed.push(0);
        self.memory_assumed.push(0);
        at
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.node_by_pod.insert(pod.uid.clone(), node.to_owned());
        let Some(at) = self.row_by_name.get(node).copied() else {
            self.homeless.entry(node.to_owned()).or_default().push(pod);
            return;
        };
        self.account(at, &pod, 1);
        let row = &mut self.rows[at];
        row.ports.extend(pod.host_ports.iter().cloned());
        row.pods.push(pod);
    }

    fn account(&mut self, at: usize, pod: &PodInfo, sign: i64) {
        for (resource, amount) in &pod.requests.asked {
            self.column_mut(resource).requested[at] += sign * amount;
        }
        self.column_mut(PODS).requested[at] += sign;
        self.cpu_assumed[at] += sign * pod.requests.cpu_assumed;
        self.memory_assumed[at] += sign * pod.requests.memory_assumed;
    }

    fn column_mut(&mut self, resource: &str) -> &mut Column {
        if let Some(at) = self.columns.iter().position(|column| column.name == resource) {
            return &mut self.columns[at];
        }
        let zeros = vec![0; self.rows.len()];
        self.columns.push(Column { name: resource.to_owned(), allocatable: zeros.clone(), requested: zeros });
        self.columns.last_mut().expect("a column was pushed just now")
    }
}

fn decrement(counts: &mut HashMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use proptest::prelude::*;

    fn picture(snapshot: &Snapshot) -> BTreeMap<String, (Vec<i64>, Vec<String>)> {
        let of = |index: NodeIndex| {
            let row = snapshot.node(index);
            let mut pods: Vec<String> = row.pods.iter().map(|pod| pod.uid.clone()).collect();
            pods.sort();
            let mut numbers = vec![snapshot.assumed(index).0, snapshot.assumed(index).1];
            for resource in ["cpu", "memory", PODS] {
                let column = snapshot.column(resource);
                numbers.push(column.map_or(0, |column| column.allocatable[index.0]));
                numbers.push(column.map_or(0, |column| column.requested[index.0]));
            }
            (row.name.clone(), (numbers, pods))
        };
        snapshot.nodes().map(of).collect()
    }

    #[derive(Debug, Clone)]
    enum Change {
        Node(usize),
        NoNode(usize),
        Pod(usize, usize),
        NoPod(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0_usize..4).prop_map(Change::Node),
            (0_usize..4).prop_map(Change::NoNode),
            (0_usize..8, 0_usize..4).prop_map(|(pod, node)| Change::Pod(pod, node)),
            (0_usize..8).prop_map(Change::NoPod),
        ]
    }

    proptest! {
        #[test]
        fn any_order_of_changes_equals_a_fresh_table(changes in prop::collection::vec(change(), 0..60)) {
            let mut snapshot = Snapshot::default();
            let (mut nodes, mut pods) = (BTreeMap::new(), BTreeMap::new());
            let name = |n: usize| format!("n{n}");
            for change in changes {
                match change {
                    Change::Node(n) => {
                        nodes.insert(n, node(&name(n), "4"));
                        snapshot.set_node(&nodes[&n]);
                    }
                    Change::NoNode(n) => { nodes.remove(&n); snapshot.remove_node(&name(n)); }
                    Change::Pod(p, n) => {
                        let info = Arc::new(PodInfo::new(Arc::new(pod(&format!("p{p}"), "100m"))));
                        pods.insert(p, (info.clone(), n));
                        snapshot.set_pod(info, &name(n));
                    }
                    Change::NoPod(p) => { pods.remove(&p); snapshot.remove_pod(&format!("p{p}")); }
                }
            }
            let mut fresh = Snapshot::default();
            nodes.values().for_each(|node| fresh.set_node(node));
            pods.values().for_each(|(pod, n)| fresh.set_pod(pod.clone(), &name(*n)));
            prop_assert_eq!(picture(&snapshot), picture(&fresh));
        }
    }
}
