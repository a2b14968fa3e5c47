//! The developer's cluster: every host a network namespace, with its own mounts, host name and cgroup subtree.
//!
//! ```text
//! sw-fabric    a bridge, 10.89.0.0/24: the top-of-rack switch; no route out of the machine
//! sw-server    10.89.0.10   seaway-server, seaway-agent --router-only (routes to the pods), etcd where asked for
//! sw-node1..N  10.89.0.11.. containerd, seaway-agent
//! root         127.0.0.1:6443, a listening socket handed to seaway-server; no other way in
//! ```
//!
//! A host's first process (`host`) holds the namespaces and restarts what dies, as systemd would. Its processes are
//! found by their cgroup, so that `down` needs no record to remove everything.

mod down;
mod host;
mod layout;
mod measure;
mod status;
mod up;

pub(crate) use down::down;
pub(crate) use host::host;
pub(crate) use layout::IpFamily;
pub(crate) use layout::NODES_MAX;
pub(crate) use measure::measure;
pub(crate) use status::{enter, print_logs, status};
pub(crate) use up::{Store, UpArguments, up};
