//! The series of Services: exact, and never more than so many.
//!
//! Those that are asked for most have series of their own; all others share one. A Service takes the place of another
//! only once it is asked for twice as often, so that two of a kind do not change places all the time: what a server of
//! metrics keeps grows with each series that ever was. Every series only grows while it is there. What was told with the
//! others' stays told there, and is left out of the Service's own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ebpf_common::{ServiceCount, ServiceId};

use super::text::Text;

/// The name of all Services that have no series of their own; no namespace and no Service is called so.
const OTHERS: &str = "_other";

/// Of ids that frontends have, the names of their Services as far as they are known.
pub type NameById = HashMap<ServiceId, Option<Box<str>>>;

#[derive(Debug)]
pub struct ServiceSeries {
    own_max: usize,
    /// Of the ids that are counted those that frontends have; without a name until it is known.
    name_by_id: HashMap<ServiceId, Option<Arc<str>>>,
    /// Of what `name_by_id` says.
    generation: Option<u64>,
    /// What the last update found.
    before: HashMap<ServiceId, ServiceCount>,
    /// By `namespace/name` or `namespace/name:port`.
    by_name: BTreeMap<Arc<str>, Series>,
    others: ServiceCount,
}

#[derive(Debug, Default)]
struct Series {
    is_own: bool,
    count: ServiceCount,
    /// Of these, those that were told with the others'.
    with_others: ServiceCount,
    /// Of these, those that were not told yet.
    new: ServiceCount,
}

impl Series {
    fn asked(&self) -> u64 {
        self.count.chosen + self.count.refused
    }
}

impl ServiceSeries {
    /// At most `own_max` ports of Services have series of their own.
    pub fn new(own_max: usize) -> ServiceSeries {
        ServiceSeries {
            own_max,
            name_by_id: HashMap::new(),
            generation: None,
            before: HashMap::new(),
            by_name: BTreeMap::new(),
            others: ServiceCount::ZERO,
        }
    }

    /// Whether the names of these ids have to be looked up again.
    pub fn needs_names(&self, generation: u64, counts: &HashMap<ServiceId, ServiceCount>) -> bool {
        let is_known = |id: &ServiceId| *id == ServiceCount::REST || self.name_by_id.contains_key(id);
        self.generation != Some(generation) || !counts.keys().all(is_known)
    }

    /// Names of all ids that are counted and that frontends have. Services without any are forgotten.
    pub fn set_names(&mut self, generation: u64, names: NameById) {
        self.generation = Some(generation);
        self.name_by_id = names.into_iter().map(|(id, name)| (id, name.map(Arc::from))).collect();
        let known = &self.name_by_id;
        self.before.retain(|id, _| *id == ServiceCount::REST || known.contains_key(id));
        let alive: HashSet<&Arc<str>> = known.values().flatten().collect();
        self.by_name.retain(|name, _| alive.contains(name));
    }

    /// Takes what was counted until now.
    pub fn update(&mut self, counts: &HashMap<ServiceId, ServiceCount>) {
        for (id, count) in counts {
            let series = match self.name_by_id.get(id) {
                Some(Some(name)) => Some(name),
                _ if *id == ServiceCount::REST => None,
                // Whose they are will be known.
                Some(None) | None => continue,
            };
            let before = self.before.insert(*id, *count).unwrap_or_default();
            let is_anew = count.chosen < before.chosen || count.refused < before.refused;
            let new = if is_anew { *count } else { *count - before };
            match series {
                Some(name) => {
                    let series = self.by_name.entry(Arc::clone(name)).or_default();
                    series.count += new;
                    series.new += new;
                }
                None => self.others += new,
            }
        }
        self.choose();
        for series in self.by_name.values_mut() {
            let new = std::mem::take(&mut series.new);
            if !series.is_own {
                series.with_others += new;
                self.others += new;
            }
        }
    }

    /// Gives the places.
    fn choose(&mut self) {
        if self.by_name.len() <= self.own_max {
            self.by_name.values_mut().for_each(|series| series.is_own = true);
            return;
        }
        let of_kind = |is_own: bool| {
            let of_kind = self.by_name.iter().filter(move |(_, series)| series.is_own == is_own);
            let mut found: Vec<(u64, Arc<str>)> =
                of_kind.map(|(name, series)| (series.asked(), Arc::clone(name))).collect();
            found.sort_unstable();
            found
        };
        let (owners, waiting) = (of_kind(true), of_kind(false));
        let mut free = self.own_max.saturating_sub(owners.len());
        let mut owners = owners.into_iter();
        for (asked, name) in waiting.into_iter().rev() {
            if free > 0 {
                free -= 1;
            } else if let Some((_, least)) = owners.next().filter(|(least, _)| asked / 2 > *least) {
                self.set_own(&least, false);
            } else {
                break;
            }
            self.set_own(&name, true);
        }
    }

    /// The frontends asked for least, so that `kept` are left; none whose Service has a series of its own. To be called
    /// after an update with the same counts: then their counts may be forgotten, and begin anew.
    pub fn forget_least(&mut self, counts: &HashMap<ServiceId, ServiceCount>, kept: usize) -> Vec<ServiceId> {
        let is_own = |name: &Arc<str>| self.by_name.get(name).is_some_and(|series| series.is_own);
        let is_told_with_others =
            |id: &ServiceId| matches!(self.name_by_id.get(id), Some(Some(name)) if !is_own(name));
        let others = counts.iter().filter(|(id, _)| is_told_with_others(id));
        let mut least: Vec<(u64, ServiceId)> =
            others.map(|(id, count)| (count.chosen + count.refused, *id)).collect();
        least.sort_unstable();
        least.truncate(counts.len().saturating_sub(kept));
        let ids: Vec<ServiceId> = least.into_iter().map(|(_, id)| id).collect();
        for id in &ids {
            self.before.remove(id);
        }
        ids
    }

    fn set_own(&mut self, name: &str, is_own: bool) {
        if let Some(series) = self.by_name.get_mut(name) {
            series.is_own = is_own;
        }
    }

    pub fn write(&self, text: &mut Text) {
        let chosen: fn(ServiceCount) -> u64 = |count| count.chosen;
        let refused: fn(ServiceCount) -> u64 = |count| count.refused;
        for (name, help, of) in [
            (
                "seaway_service_connections_total",
                "Backends given to clients of a port of a Service: by connect(), by the first datagram of another \
                 socket, or by a packet that opened a flow. A hostPort stands under its pod's name. Ports beyond \
                 the limit (--metrics-services) share namespace and service _other.",
                chosen,
            ),
            (
                "seaway_service_refused_total",
                "Clients of a port of a Service that were refused or dropped as there was no endpoint for them: \
                 calls and packets, repeated ones included. Ports are as in seaway_service_connections_total.",
                refused,
            ),
        ] {
            let mut family = text.counter(name, help);
            for (name, series) in self.by_name.iter().filter(|(_, series)| series.is_own) {
                let (namespace, service) = name.split_once('/').unwrap_or(("", name));
                let (service, port) = service.split_once(':').unwrap_or((service, ""));
                let labels = [("namespace", namespace), ("service", service), ("port", port)];
                family.sample(&labels, of(series.count - series.with_others));
            }
            let labels = [("namespace", OTHERS), ("service", OTHERS), ("port", "")];
            family.sample(&labels, of(self.others));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::text::rules::Page;
    use super::*;

    const CONNECTIONS: &str = "seaway_service_connections_total";

    fn names(of: &[(u32, &str)]) -> NameById {
        of.iter().map(|(id, name)| (ServiceId(*id), Some((*name).into()))).collect()
    }

    fn counts(of: &[(u32, u64)]) -> HashMap<ServiceId, ServiceCount> {
        of.iter().map(|(id, chosen)| (ServiceId(*id), ServiceCount { chosen: *chosen, refused: 0 })).collect()
    }

    fn page(series: &ServiceSeries) -> Page {
        let mut text = Text::default();
        series.write(&mut text);
        Page::parse(&text.finish())
    }

    fn of(page: &Page, service: &str) -> Option<u64> {
        let (namespace, service) = service.split_once('/').expect("a namespace");
        let labels = [("namespace", namespace), ("service", service), ("port", "")];
        page.get(CONNECTIONS, &labels).map(|value| value as u64)
    }

    #[test]
    fn the_frontends_of_a_port_are_one_series_and_ports_are_told_apart() {
        let mut series = ServiceSeries::new(9);
        series.set_names(
            0,
            names(&[(1, "default/web:http"), (2, "default/web:http"), (3, "default/web:https")]),
        );
        let mut counted = counts(&[(1, 4), (2, 5), (3, 1)]);
        counted.insert(ServiceId(2), ServiceCount { chosen: 5, refused: 7 });
        series.update(&counted);
        series.update(&counted);
        let page = page(&series);
        let labels = |port| [("namespace", "default"), ("service", "web"), ("port", port)];
        assert_eq!(page.get(CONNECTIONS, &labels("http")), Some(9.0));
        assert_eq!(page.get(CONNECTIONS, &labels("https")), Some(1.0));
        assert_eq!(page.get("seaway_service_refused_total", &labels("http")), Some(7.0));
        assert_eq!(of(&page, "_other/_other"), Some(0));
    }

    #[test]
    fn the_busiest_have_series_of_their_own_and_the_others_share_one() {
        let mut series = ServiceSeries::new(2);
        series.set_names(0, names(&[(1, "a/1"), (2, "a/2"), (3, "a/3"), (4, "a/4")]));
        series.update(&counts(&[(1, 10), (2, 20), (3, 5), (4, 6)]));
        let first = page(&series);
        assert_eq!([1, 2, 3, 4].map(|n| of(&first, &format!("a/{n}"))), [Some(10), Some(20), None, None]);
        assert_eq!(of(&first, "_other/_other"), Some(11));
        assert_eq!(first.count(CONNECTIONS), 3);

        // Not yet twice as many.
        series.update(&counts(&[(1, 10), (2, 20), (3, 20), (4, 6)]));
        assert_eq!(of(&page(&series), "_other/_other"), Some(26));
        series.update(&counts(&[(1, 11), (2, 20), (3, 25), (4, 6)]));
        let third = page(&series);
        assert_eq!(of(&third, "a/1"), None, "it has lost its place");
        assert_eq!(of(&third, "a/3"), Some(5), "what was told with the others' is not told twice");
        assert_eq!(of(&third, "_other/_other"), Some(27), "what the other did since");
    }

    #[test]
    fn the_series_of_a_removed_service_goes_away_and_its_place_is_free() {
        let mut series = ServiceSeries::new(1);
        series.set_names(0, names(&[(1, "a/1"), (2, "a/2")]));
        series.update(&counts(&[(1, 9), (2, 5)]));
        assert!(!series.needs_names(0, &counts(&[(1, 9), (2, 5)])));
        assert!(series.needs_names(1, &counts(&[(1, 9), (2, 5)])), "a Service has come or gone");
        assert!(series.needs_names(0, &counts(&[(3, 1)])), "an id that was not there before");
        series.set_names(1, names(&[(2, "a/2")]));
        series.update(&counts(&[(2, 6)]));
        let page = page(&series);
        assert_eq!(
            [of(&page, "a/1"), of(&page, "a/2"), of(&page, "_other/_other")],
            [None, Some(1), Some(5)]
        );
    }

    #[test]
    fn what_has_no_name_yet_is_told_when_it_has_one_and_what_had_no_room_with_the_others() {
        let mut series = ServiceSeries::new(9);
        series.set_names(0, [(ServiceId(1), None)].into());
        series.update(&counts(&[(1, 9), (0, 3)]));
        assert_eq!(page(&series).count(CONNECTIONS), 1);
        series.set_names(1, names(&[(1, "a/1")]));
        series.update(&counts(&[(1, 10), (0, 3)]));
        let page = page(&series);
        assert_eq!([of(&page, "a/1"), of(&page, "_other/_other")], [Some(10), Some(3)]);
    }

    #[test]
    fn those_asked_for_least_make_room_and_nothing_that_they_did_is_lost() {
        let mut series = ServiceSeries::new(1);
        series.set_names(0, names(&[(1, "a/1"), (2, "a/2"), (3, "a/3"), (4, "a/4")]));
        let counted = counts(&[(0, 0), (1, 9), (2, 2), (3, 3), (4, 4)]);
        series.update(&counted);
        assert_eq!(series.forget_least(&counted, 4), [ServiceId(2)]);
        assert_eq!(series.forget_least(&counted, 0), [2, 3, 4].map(ServiceId), "not what has its own series");
        series.update(&counts(&[(0, 0), (1, 10), (2, 1), (3, 1)]));
        let page = page(&series);
        assert_eq!([of(&page, "a/1"), of(&page, "_other/_other")], [Some(10), Some(2 + 3 + 4 + 1 + 1)]);
    }

    #[test]
    fn a_count_that_began_anew_is_added() {
        let mut series = ServiceSeries::new(9);
        series.set_names(0, names(&[(1, "a/1")]));
        series.update(&counts(&[(1, 9)]));
        series.update(&counts(&[(1, 2)]));
        assert_eq!(of(&page(&series), "a/1"), Some(11));
    }

    proptest! {
        #[test]
        fn series_are_bounded_and_grow_only_and_lose_nothing(
            own_max in 0usize..5,
            rounds in prop::collection::vec(prop::collection::vec((1u32..12, 1u64..40), 0..12), 1..12),
        ) {
            let all: Vec<(u32, String)> = (1..12).map(|id| (id, format!("a/{id}"))).collect();
            let mut series = ServiceSeries::new(own_max);
            series.set_names(0, names(&all.iter().map(|(id, name)| (*id, name.as_str())).collect::<Vec<_>>()));
            let mut asked: BTreeMap<u32, u64> = BTreeMap::new();
            let mut told: HashMap<String, u64> = HashMap::new();
            for round in rounds {
                for (id, more) in round {
                    *asked.entry(id).or_default() += more;
                }
                series.update(&counts(&asked.iter().map(|(id, count)| (*id, *count)).collect::<Vec<_>>()));
                let page = page(&series);
                prop_assert!(page.count(CONNECTIONS) <= own_max + 1);
                prop_assert!(page.sum(CONNECTIONS) as u64 <= asked.values().sum());
                if asked.len() <= own_max {
                    prop_assert_eq!(page.sum(CONNECTIONS) as u64, asked.values().sum::<u64>());
                }
                for (_, name) in all.iter().chain([&(0, "_other/_other".to_owned())]) {
                    if let Some(now) = of(&page, name) {
                        let before = told.insert(name.clone(), now).unwrap_or(0);
                        prop_assert!(now >= before, "{} went from {} to {}", name, before, now);
                    }
                }
            }
        }
    }
}
