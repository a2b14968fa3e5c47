//! Time: restarts of peers and our own (RFC 4724, RFC 9494), and when old routes go.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Output, Speaker};
use crate::prefix::Family;
use crate::rib::{Learned, Source};
use crate::session::{self, State};
use crate::wire::attributes::community;
use crate::wire::notification::cease;

/// How long a reflector waits for clients that it has lost: the longest between two attempts to connect, and as long again.
const REUNION_TIME: Duration = Duration::from_secs(60);

impl Speaker {
    /// Carries out what is due. With many peers, most inputs must not cost a look at each.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.peers_deadline.is_some_and(|at| at <= now) {
            self.expire_peers(now);
            self.peers_deadline = self.peers.values().filter_map(super::Peer::next_deadline).min();
        }
        self.finish_deferral(now);
        self.finish_convergence(now);
        self.finish_reunion(now);
    }

    /// A timer of this peer may have been set.
    pub(super) fn timer_set(&mut self, address: IpAddr) {
        let deadline = self.peers.get(&address).and_then(super::Peer::next_deadline);
        self.peers_deadline = [self.peers_deadline, deadline].into_iter().flatten().min();
    }

    fn expire_peers(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let peers_where = |speaker: &Speaker, condition: &dyn Fn(&super::Peer) -> bool| -> Vec<IpAddr> {
            speaker.peers.iter().filter(|(_, peer)| condition(peer)).map(|(address, _)| *address).collect()
        };
        for address in peers_where(self, &|peer| due(peer.session.next_deadline())) {
            self.feed(address, session::Input::Tick, now);
        }
        for address in peers_where(self, &|peer| due(peer.start_deadline)) {
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.start_deadline = None;
            }
            self.feed(address, session::Input::Start, now);
        }
        for address in peers_where(self, &|peer| due(peer.stale_deadline)) {
            self.end_restart_time(address, now);
        }
        for address in peers_where(self, &|peer| peer.long_stale_deadlines.values().any(|at| *at <= now)) {
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            let over: Vec<Family> = peer
                .long_stale_deadlines
                .extract_if(.., |_, at| *at <= now)
                .map(|(family, _)| family)
                .collect();
            for family in over {
                self.rib.sweep_stale(Source::Peer(address), Some(family));
            }
            self.forget_if_dynamic(address, now);
        }
    }

    /// The peer has not come back in its restart time: its routes go, or stay as a last resort (RFC 9494 section 4.2).
    pub(super) fn end_restart_time(&mut self, address: IpAddr, now: Instant) {
        let source = Source::Peer(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.stale_deadline = None;
        let cap = peer.config.long_lived_stale_time.unwrap_or_default();
        let long_lived = peer.long_lived.clone();
        for family in Family::ALL {
            let Some(time) = long_lived.get(&family) else {
                self.rib.sweep_stale(source, Some(family));
                continue;
            };
            self.rib.sweep(source, Some(family), |path| {
                path.stale && path.received.communities.contains(&community::NO_LLGR)
            });
            let mut last: Option<(Arc<Learned>, Arc<Learned>)> = None;
            for (prefix, path) in self.rib.paths_of(source) {
                if !path.stale || prefix.family() != family {
                    continue;
                }
                let marked = match &last {
                    Some((before, marked)) if Arc::ptr_eq(before, path.learned()) => marked.clone(),
                    _ => {
                        let attributes = self.mark_long_stale(&path.attributes);
                        Arc::new(Learned { attributes, ..(**path.learned()).clone() })
                    }
                };
                self.rib.insert(prefix, path.with(marked.clone()));
                last = Some((path.learned().clone(), marked));
            }
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.long_stale_deadlines.insert(family, now + (*time).min(cap));
            }
        }
        self.forget_if_dynamic(address, now);
    }

    pub(super) fn path_failed(
        &mut self,
        address: IpAddr,
        heard_at: Option<Instant>,
        independent: bool,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        match peer.established_at {
            Some(since) if heard_at.is_none_or(|at| at >= since) => {
                self.feed(address, session::Input::PathFailed, now);
            }
            None if independent => {
                peer.stale_deadline = None;
                peer.long_stale_deadlines.clear();
                Family::ALL.into_iter().for_each(|family| self.keep_reflected(address, family));
                if self.rib.count(Source::Peer(address)).total > 0 {
                    return self.end_restart_time(address, now);
                }
                self.forget_if_dynamic(address, now);
            }
            _ => {}
        }
    }

    /// The path to a peer is lost: what leads over it goes. What it has only reflected leads elsewhere, and is a last resort
    /// where the peer has long-lived graceful restart.
    pub(super) fn keep_reflected(&mut self, address: IpAddr, family: Family) {
        let source = Source::Peer(address);
        let keeps = self.peers.get(&address).is_some_and(|peer| peer.long_lived.contains_key(&family));
        self.rib.sweep(source, Some(family), |path| {
            !keeps || path.received.originator_id.is_none() || path.received.next_hop == address
        });
        self.rib.mark_stale(source, family);
    }

    fn forget_if_dynamic(&mut self, address: IpAddr, now: Instant) {
        let Some(peer) = self.peers.get(&address) else { return };
        if peer.dynamic && peer.session.state() < State::OpenSent && peer.long_stale_deadlines.is_empty() {
            self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
        }
    }

    /// Ends the start's deferral once every configured peer has sent all, or the time is over.
    pub(super) fn finish_deferral(&mut self, now: Instant) {
        let Some(deadline) = self.deferral_deadline else { return };
        let mut configured = self.peers.values().filter(|peer| !peer.dynamic).peekable();
        let complete = configured.peek().is_some() && configured.all(|peer| peer.synced_once);
        if !complete && now < deadline {
            return;
        }
        self.deferral_deadline = None;
        self.send_owed();
        self.finish_convergence(now);
    }

    /// Lets the FIB be swept. Later than the end of the deferral where a peer restarts at the same time: it is not
    /// waited for with our own announcements (RFC 4724 4.1), or both would wait for ever, but its routes are still to
    /// come, and the kernel forwards by them all the while.
    pub(super) fn finish_convergence(&mut self, now: Instant) {
        let Some(deadline) = self.convergence_deadline else { return };
        let mut configured = self.peers.values().filter(|peer| !peer.dynamic).peekable();
        let complete = configured.peek().is_some() && configured.all(|peer| peer.received_all);
        if self.deferral_deadline.is_some() || (!complete && now < deadline) {
            return;
        }
        self.convergence_deadline = None;
        self.decide();
        self.report();
        self.outputs.push_back(Output::Converged);
    }

    /// Whether a peer that is back is not to take what it is sent for all there is: clients of ours are still away, and it may
    /// keep their routes as stale until they are back, too.
    pub(super) fn awaits_clients(&mut self, address: IpAddr, now: Instant) -> bool {
        let awaits = self.peers.iter().any(|(other, peer)| *other != address && peer.is_lost_client());
        if awaits {
            self.reunion_deadline.get_or_insert(now + REUNION_TIME);
        }
        awaits
    }

    /// Tells peers that they were sent all, once the clients are back or have been waited for.
    pub(super) fn finish_reunion(&mut self, now: Instant) {
        let Some(deadline) = self.reunion_deadline else { return };
        if self.deferral_deadline.is_some()
            || now < deadline && self.peers.values().any(super::Peer::is_lost_client)
        {
            return;
        }
        self.reunion_deadline = None;
        self.send_owed();
        self.finish_convergence(now);
    }

    /// End-of-RIB to all that wait for it, after what it ends.
    fn send_owed(&mut self) {
        self.decide();
        self.flush_groups();
        let owed: Vec<IpAddr> =
            self.peers.iter().filter(|(_, peer)| peer.end_of_rib_owed).map(|(a, _)| *a).collect();
        for address in owed {
            self.send_end_of_rib(address);
        }
    }
}

impl super::Peer {
    /// A configured client that has been here, and whose routes are not.
    fn is_lost_client(&self) -> bool {
        let is_here = self.established_at.is_some() && self.received_all;
        self.config.route_reflector_client && !self.dynamic && self.is_known && !is_here
    }
}
