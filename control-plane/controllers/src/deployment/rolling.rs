//! The arithmetic of rolling updates and of scaling: how large each ReplicaSet should be next. No IO, no clock.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revisions::{DESIRED_REPLICAS, MAX_REPLICAS};

/// What a ReplicaSet asks for and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// `spec.replicas`.
    pub replicas: i32,
    /// `status.availableReplicas`.
    pub available: i32,
}

impl Size {
    /// The size of `set`.
    pub fn of(set: &ReplicaSet) -> Self {
        let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
        Self { replicas: size(set), available }
    }
}

/// How far a rollout may stray from the asked number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// `spec.replicas`.
    pub replicas: i32,
    /// Pods allowed above it.
    pub surge: i32,
    /// Pods that may be missing below it.
    pub unavailable: i32,
}

impl Bounds {
    /// The bounds that the Deployment's strategy asks for; Recreate has neither surge nor slack.
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = desired(deployment);
        let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.and_then(|rolling| rolling.max_surge.clone()).unwrap_or_else(|| quarter.clone());
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.clone()).unwrap_or(quarter);
        Self::resolve(replicas, &surge, &unavailable)
    }

    /// Percentages of surge round up, of unavailability down; both zero would never move, so one may then be missing.
    pub fn resolve(replicas: i32, surge: &IntOrString, unavailable: &IntOrString) -> Self {
        let surge = scaled(surge, replicas, true);
        let mut unavailable = scaled(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }
}

/// An absolute number, or a percentage of `total`; what is neither counts as zero.
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let Some(percent) = text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()) else {
                return 0;
            };
            let product = percent * i64::from(total);
            let value = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(value).unwrap_or(i32::MAX)
        }
    }
}

/// `spec.replicas` of a Deployment.
pub fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `spec.replicas` of a ReplicaSet.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The next move of a rolling update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the new ReplicaSet this large.
    New(i32),
    /// Make the old ReplicaSets this large, in their order.
    Old(Vec<i32>),
    /// Nothing can move now.
    Wait,
}

/// The next move towards `new` holding all replicas; `old` is sorted oldest first.
pub fn step(bounds: &Bounds, new: Size, old: &[Size]) -> Step {
    let grown = grow(bounds, new, old);
    if grown != new.replicas {
        return Step::New(grown);
    }
    let shrunk = shrink(bounds, new, old);
    if shrunk.iter().zip(old).any(|(to, from)| *to != from.replicas) { Step::Old(shrunk) } else { Step::Wait }
}

fn grow(bounds: &Bounds, new: Size, old: &[Size]) -> i32 {
    if new.replicas >= bounds.replicas {
        return bounds.replicas;
    }
    let total = new.replicas + old.iter().map(|set| set.replicas).sum::<i32>();
    let room = (bounds.replicas + bounds.surge - total).max(0);
    new.replicas + room.min(bounds.replicas - new.replicas)
}

fn shrink(bounds: &Bounds, new: Size, old: &[Size]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let total = new.replicas + sizes.iter().sum::<i32>();
    let available_min = bounds.replicas - bounds.unavailable;
    let new_unavailable = (new.replicas - new.available).max(0);
    // Every pod of the new set that is not available yet counts as if it were missing.
    let mut removable = total - available_min - new_unavailable;
    for (size, set) in sizes.iter_mut().zip(old) {
        let unhealthy = (*size - set.available).max(0);
        let removed = unhealthy.min(removable.max(0));
        *size -= removed;
        removable -= removed;
    }
    let available = new.available + old.iter().map(|set| set.available).sum::<i32>();
    let mut spare = (available - available_min).min(removable).max(0);
    for size in &mut sizes {
        let removed = (*size).min(spare);
        *size -= removed;
        spare -= removed;
    }
    sizes
}

/// Whether the Deployment's size was changed since its active ReplicaSets were last sized.
pub fn wants_scaling(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let noted = |set: &Arc<ReplicaSet>| {
        set.annotations().get(DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok())
    };
    sets.iter().filter(|set| size(set) > 0).filter_map(noted).any(|noted| noted != desired(deployment))
}

/// New sizes after the Deployment itself was scaled, in proportion where several ReplicaSets are active.
pub fn scale(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    sets: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let replicas = desired(deployment);
    let mut active: Vec<_> = sets.iter().filter(|set| size(set) > 0).cloned().collect();
    let only = match active.as_slice() {
        [] => new.or(sets.last()),
        [only] => Some(only),
        _ => None,
    };
    if let Some(only) = only {
        return vec![(only.clone(), replicas)];
    }
    if let Some(new) = new.filter(|new| is_saturated(replicas, new)) {
        return active
            .into_iter()
            .filter(|set| set.metadata.uid != new.metadata.uid)
            .map(|set| (set, 0))
            .collect();
    }
    let bounds = Bounds::of(deployment);
    let allowed = if replicas > 0 { replicas + bounds.surge } else { 0 };
    let to_add = allowed - active.iter().map(|set| size(set)).sum::<i32>();
    // Larger sets take more of the change; among equals, growth goes to the newer and shrinking to the older.
    active.sort_by(|a, b| {
        let by_age = a
            .metadata
            .creation_timestamp
            .cmp(&b.metadata.creation_timestamp)
            .then_with(|| a.name_any().cmp(&b.name_any()));
        size(b).cmp(&size(a)).then(if to_add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = Vec::new();
    for set in active {
        let share = share(deployment, &bounds, &set, to_add, added);
        added += share;
        let size = size(&set) + share;
        sizes.push((set, size));
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, bounds: &Bounds, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, bounds, set);
    if to_add > 0 { fraction.min(to_add - added) } else { fraction.max(to_add - added) }
}

/// The change that keeps this set's part of the whole the same.
fn fraction(deployment: &Deployment, bounds: &Bounds, set: &ReplicaSet) -> i32 {
    if bounds.replicas == 0 {
        return -size(set);
    }
    let noted = set
        .annotations()
        .get(MAX_REPLICAS)
        .and_then(|text| text.parse::<i32>().ok())
        .filter(|noted| *noted > 0);
    let before =
        noted.or_else(|| deployment.status.as_ref()?.replicas.filter(|replicas| *replicas > 0)).unwrap_or(1);
    let exact = f64::from(size(set)) * f64::from(bounds.replicas + bounds.surge) / f64::from(before);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the product of two replica counts over a third, far below 2^53"
    )]
    let rounded = exact.round() as i32;
    rounded - size(set)
}

fn is_saturated(replicas: i32, new: &ReplicaSet) -> bool {
    let noted = new.annotations().get(DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
    let Size { replicas: size, available } = Size::of(new);
    size == replicas && noted == Some(replicas) && available == replicas
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec};
    use proptest::prelude::*;

    fn percent(text: &str) -> IntOrString {
        IntOrString::String(text.into())
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down_and_both_zero_lets_one_go() {
        let bounds = Bounds::resolve(6, &percent("25%"), &percent("25%"));
        assert_eq!((bounds.surge, bounds.unavailable), (2, 1));
        let bounds = Bounds::resolve(3, &IntOrString::Int(0), &percent("10%"));
        assert_eq!((bounds.surge, bounds.unavailable), (0, 1));
        let bounds = Bounds::resolve(2, &IntOrString::Int(0), &IntOrString::Int(9));
        assert_eq!(bounds.unavailable, 2);
    }

    #[test]
    fn unhealthy_old_pods_go_before_healthy_ones() {
        let bounds = Bounds { replicas: 4, surge: 1, unavailable: 1 };
        let new = Size { replicas: 1, available: 0 };
        let old = [Size { replicas: 2, available: 2 }, Size { replicas: 2, available: 1 }];
        assert_eq!(step(&bounds, new, &old), Step::Old(vec![2, 1]));
    }

    fn set(name: &str, replicas: i32, max: i32) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(name.into());
        set.metadata.uid = Some(name.into());
        set.annotations_mut().insert(MAX_REPLICAS.into(), max.to_string());
        set.spec = Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() });
        Arc::new(set)
    }

    fn deployment(replicas: i32) -> Deployment {
        Deployment {
            spec: Some(DeploymentSpec { replicas: Some(replicas), ..DeploymentSpec::default() }),
            ..Deployment::default()
        }
    }

    #[test]
    fn scaling_in_mid_rollout_is_proportional() {
        let sets = [set("old", 8, 13), set("new", 5, 13)];
        let sizes: Vec<_> =
            scale(&deployment(20), Some(&sets[1]), &sets).iter().map(|(s, n)| (s.name_any(), *n)).collect();
        assert_eq!(sizes, [("old".to_owned(), 15), ("new".to_owned(), 10)]);
    }

    #[test]
    fn scaling_to_zero_takes_every_set_to_zero() {
        let sets = [set("old", 8, 13), set("new", 5, 13)];
        assert!(scale(&deployment(0), Some(&sets[1]), &sets).iter().all(|(_, size)| *size == 0));
    }

    proptest! {
        /// Pods become ready in any order; the rollout must stay within its bounds and end.
        #[test]
        fn a_rollout_keeps_its_bounds_and_reaches_its_end(
            replicas in 0_i32..30, surge in 0_i32..40, unavailable in 0_i32..40,
            split in 0_i32..30, unhealthy in 0_i32..6, luck in prop::collection::vec(any::<bool>(), 400),
        ) {
            let bounds = Bounds::resolve(replicas, &IntOrString::Int(surge), &IntOrString::Int(unavailable));
            let first = split.min(replicas);
            let mut old = vec![
                Size { replicas: first, available: (first - unhealthy).max(0) },
                Size { replicas: replicas - first, available: replicas - first },
            ];
            let mut new = Size { replicas: 0, available: 0 };
            let available = |new: &Size, old: &[Size]| new.available + old.iter().map(|s| s.available).sum::<i32>();
            let floor = (replicas - bounds.unavailable).min(available(&new, &old));
            for lucky in luck {
                match step(&bounds, new, &old) {
                    Step::New(size) => new.replicas = size,
                    Step::Old(sizes) => for (set, size) in old.iter_mut().zip(sizes) {
                        prop_assert!(size <= set.replicas);
                        // Deletion takes pods that are not ready first.
                        set.available = set.available.min(size);
                        set.replicas = size;
                    },
                    Step::Wait => {}
                }
                let total = new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
                prop_assert!(total <= replicas + bounds.surge, "{total} pods");
                prop_assert!(available(&new, &old) >= floor, "{new:?} {old:?}");
                if lucky && new.available < new.replicas { new.available += 1; }
            }
            for _ in 0..200 {
                match step(&bounds, new, &old) {
                    Step::New(size) => new = Size { replicas: size, available: size },
                    Step::Old(sizes) => for (set, size) in old.iter_mut().zip(sizes) {
                        *set = Size { replicas: size, available: set.available.min(size) };
                    },
                    Step::Wait => new.available = new.replicas,
                }
            }
            prop_assert_eq!(new, Size { replicas, available: replicas });
            prop_assert!(old.iter().all(|set| set.replicas == 0));
        }

        #[test]
        fn scaling_adds_up_to_the_allowed_total(a in 1_i32..50, b in 1_i32..50, replicas in 1_i32..100) {
            let sets = [set("old", a, a + b), set("new", b, a + b)];
            let sizes = scale(&deployment(replicas), Some(&sets[1]), &sets);
            prop_assert!(sizes.iter().all(|(_, size)| *size >= 0));
            let bounds = Bounds::of(&deployment(replicas));
            prop_assert_eq!(sizes.iter().map(|(_, size)| *size).sum::<i32>(), replicas + bounds.surge);
        }
    }
}
