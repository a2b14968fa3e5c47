//! Images that nothing needs any more: removed when their file system fills up, those unused for longest first. Pure.
//!
//! Above the high mark as many go as bring it below the low one; where the node is short of disk, all. Images of containers,
//! running or dead, images that pods of the node name, pinned images and those that came lately stay.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Images are removed when this share of their file system is used; 100 for never.
    pub high_percent: u8,
    /// What is aimed at then.
    pub low_percent: u8,
    /// An image stays this long after it was first seen.
    pub age_min: Duration,
    /// An image goes when nothing has used it for this long, however much disk is free.
    pub age_max: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: Duration::from_secs(120), age_max: None }
    }
}

impl Settings {
    /// Bytes that have to go of a file system with `capacity` of which `available` is free.
    pub fn excess(&self, available: u64, capacity: u64) -> Option<u64> {
        if capacity == 0 || self.high_percent >= 100 {
            return None;
        }
        let share = |percent: u8| u128::from(capacity) * u128::from(percent) / 100;
        let used = u128::from(capacity.saturating_sub(available));
        let excess = used.checked_sub(share(self.low_percent))?;
        (used >= share(self.high_percent)).then(|| u64::try_from(excess).unwrap_or(u64::MAX))
    }
}

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// Tags and digests.
    pub names: Vec<String>,
    pub bytes: u64,
    pub pinned: bool,
}

impl Image {
    fn is_in(&self, names: &HashSet<String>) -> bool {
        names.contains(&self.id) || self.names.iter().any(|name| names.contains(name))
    }
}

#[derive(Clone, Copy, Debug)]
struct Life {
    /// `None`: it was there at the first look.
    first_seen: Option<Instant>,
    last_used: Option<Instant>,
}

/// How much of the images should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// At least this many bytes; none for 0, but those that are too old.
    Bytes(u64),
    Everything,
}

/// What is remembered of images between looks.
#[derive(Clone, Debug, Default)]
pub struct Images {
    lives: HashMap<String, Life>,
    first_look: Option<Instant>,
}

impl Images {
    /// Takes note of what is there and of what is used, by id, tag or digest. Images of the first look came before.
    pub fn observe(&mut self, images: &[Image], used: &HashSet<String>, now: Instant) {
        let first_seen = self.first_look.map(|_| now);
        self.first_look.get_or_insert(now);
        self.lives.retain(|id, _| images.iter().any(|image| &image.id == id));
        for image in images {
            let fresh = Life { first_seen, last_used: None };
            let life = self.lives.entry(image.id.clone()).or_insert(fresh);
            if image.is_in(used) {
                life.last_used = Some(now);
            }
        }
    }

    /// The images to remove, in this order.
    pub fn choose<'a>(
        &self,
        images: &'a [Image],
        used: &HashSet<String>,
        wanted: Wanted,
        settings: &Settings,
        now: Instant,
    ) -> Vec<&'a Image> {
        let since = |at: Instant| now.saturating_duration_since(at);
        let free = images.iter().filter(|image| !image.pinned && !image.is_in(used));
        let free = free.filter_map(|image| Some((image, *self.lives.get(&image.id)?)));
        let mut free: Vec<_> =
            free.filter(|(_, life)| life.first_seen.is_none_or(|at| since(at) >= settings.age_min)).collect();
        free.sort_by_key(|(image, life)| (life.last_used, life.first_seen, &image.id));
        let mut freed = 0;
        let chosen = free.into_iter().filter(|(image, life)| {
            let unused_since = life.last_used.or(life.first_seen).or(self.first_look);
            let too_old = settings.age_max.is_some_and(|age| unused_since.is_some_and(|at| since(at) > age));
            let needed = match wanted {
                Wanted::Everything => true,
                Wanted::Bytes(bytes) => freed < bytes,
            };
            if needed || too_old {
                freed += image.bytes;
            }
            needed || too_old
        });
        chosen.map(|(image, _)| image).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, bytes: u64) -> Image {
        Image { id: id.to_owned(), names: vec![format!("docker.io/library/{id}:1")], bytes, pinned: false }
    }

    fn used(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ids<'a>(images: &[&'a Image]) -> Vec<&'a str> {
        images.iter().map(|image| image.id.as_str()).collect()
    }

    #[test]
    fn a_file_system_above_the_high_mark_is_to_come_below_the_low_one() {
        let settings = Settings::default();
        assert_eq!(settings.excess(16, 100), None);
        assert_eq!(settings.excess(15, 100), Some(5));
        assert_eq!(settings.excess(0, 100), Some(20));
        assert_eq!(settings.excess(0, 0), None, "nothing is known");
        assert_eq!(Settings { high_percent: 100, ..settings }.excess(0, 100), None);
    }

    #[test]
    fn those_unused_for_longest_go_first_and_no_more_than_needed() {
        let all = ["never", "early", "late", "running"].map(|id| image(id, 10));
        let (settings, start) = (Settings::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut images = Images::default();
        images.observe(&all, &used(&["early", "late", "running"]), at(0));
        images.observe(&all, &used(&["docker.io/library/late:1", "running"]), at(300));
        let chosen = |wanted| {
            let chosen = images.choose(&all, &used(&["running"]), wanted, &settings, at(600));
            chosen.into_iter().map(|image| image.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(Wanted::Bytes(0)), [""; 0]);
        assert_eq!(chosen(Wanted::Bytes(10)), ["never"]);
        assert_eq!(chosen(Wanted::Bytes(11)), ["never", "early"]);
        assert_eq!(chosen(Wanted::Everything), ["never", "early", "late"]);
    }

    #[test]
    fn images_that_came_lately_or_are_pinned_stay() {
        let (old, mut pinned, new) = (image("old", 1), image("pinned", 1), image("new", 1));
        pinned.pinned = true;
        let (settings, start) = (Settings::default(), Instant::now());
        let mut images = Images::default();
        images.observe(&[old.clone(), pinned.clone()], &used(&[]), start);
        let all = [old, pinned, new];
        images.observe(&all, &used(&[]), start);
        let chosen = |seconds| {
            let now = start + Duration::from_secs(seconds);
            ids(&images.choose(&all, &used(&[]), Wanted::Everything, &settings, now)).join(" ")
        };
        assert_eq!([chosen(119), chosen(120)], ["old", "old new"]);
    }

    #[test]
    fn an_image_unused_for_longer_than_the_maximum_age_goes_without_need() {
        let all = [image("a", 1), image("b", 1)];
        let settings = Settings { age_max: Some(Duration::from_secs(3600)), ..Settings::default() };
        let start = Instant::now();
        let mut images = Images::default();
        images.observe(&all, &used(&[]), start);
        images.observe(&all, &used(&["a"]), start + Duration::from_secs(5));
        let chosen = |seconds| {
            let now = start + Duration::from_secs(seconds);
            ids(&images.choose(&all, &used(&[]), Wanted::Bytes(0), &settings, now)).join(" ")
        };
        assert_eq!([chosen(3600), chosen(3605), chosen(3606)], ["", "b", "b a"]);
    }
}
