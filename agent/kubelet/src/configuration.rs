//! What an administrator says about evictions and images, in the words of upstream's KubeletConfiguration
//! (kubelet.config.k8s.io/v1beta1): a file `kubelet.yaml` in the state directory, which need not be there.
//!
//! ```text
//! apiVersion: kubelet.config.k8s.io/v1beta1
//! kind: KubeletConfiguration
//! evictionHard: {memory.available: 200Mi, nodefs.available: 5%}
//! evictionSoft: {memory.available: 1Gi}
//! evictionSoftGracePeriod: {memory.available: 1m30s}
//! imageGCHighThresholdPercent: 90
//! ```
//!
//! As there, `evictionHard` takes the place of all defaults, unless `mergeDefaultEvictionSettings` is true. A field that this
//! kubelet does not carry out is refused by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::eviction::signals::{self, Amount, Signal, Threshold};
use crate::image_gc;
use crate::quantity;

pub const FILE: &str = "kubelet.yaml";
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// The file's contents, with defaults where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    pub eviction: signals::Settings,
    pub images: image_gc::Settings,
}

type Amounts = BTreeMap<String, String>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    eviction_hard: Option<Amounts>,
    #[serde(default)]
    eviction_soft: Amounts,
    #[serde(default)]
    eviction_soft_grace_period: Amounts,
    #[serde(default)]
    eviction_minimum_reclaim: Amounts,
    eviction_pressure_transition_period: Option<String>,
    eviction_max_pod_grace_period: Option<u32>,
    #[serde(default)]
    merge_default_eviction_settings: bool,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
}

impl Configuration {
    /// Reads the file in `state_dir`; without one, the defaults hold.
    ///
    /// # Errors
    /// The file cannot be read or says what cannot be carried out: the error names file, field and reason.
    pub fn load(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let document: Document = serde_saphyr::from_str(text)?;
        let (version, kind) = (&document.api_version, &document.kind);
        ensure!(version == API_VERSION, "apiVersion {version:?}: only {API_VERSION} is known");
        ensure!(kind == "KubeletConfiguration", "kind {kind:?}: it must be KubeletConfiguration");
        Ok(Self { eviction: document.eviction()?, images: document.images()? })
    }
}

impl Document {
    fn eviction(&self) -> anyhow::Result<signals::Settings> {
        let mut settings = signals::Settings::default();
        if let Some(hard) = &self.eviction_hard {
            let given = amounts("evictionHard", hard)?;
            let replaced =
                |t: &Threshold| !self.merge_default_eviction_settings || given.contains_key(&t.signal);
            settings.thresholds.retain(|threshold| !replaced(threshold));
            let given = given.into_iter().filter_map(|(signal, amount)| Some((signal, amount?)));
            settings.thresholds.extend(given.map(|(signal, amount)| Threshold::hard(signal, amount)));
        }
        let graces = &self.eviction_soft_grace_period;
        for name in graces.keys() {
            signal("evictionSoftGracePeriod", name)?;
        }
        for (signal, amount) in amounts("evictionSoft", &self.eviction_soft)? {
            let name = signal.as_str();
            let grace = graces.get(name);
            let grace =
                grace.with_context(|| format!("evictionSoft {name}: needs an evictionSoftGracePeriod"))?;
            let grace = duration(&format!("evictionSoftGracePeriod {name}"), grace)?;
            if let Some(amount) = amount {
                settings.thresholds.push(Threshold { grace, ..Threshold::hard(signal, amount) });
            }
        }
        let reclaims = amounts("evictionMinimumReclaim", &self.eviction_minimum_reclaim)?;
        for threshold in &mut settings.thresholds {
            threshold.reclaim = reclaims.get(&threshold.signal).copied().flatten();
        }
        if let Some(period) = &self.eviction_pressure_transition_period {
            settings.transition = duration("evictionPressureTransitionPeriod", period)?;
        }
        if let Some(seconds) = self.eviction_max_pod_grace_period {
            settings.grace_max = Duration::from_secs(seconds.into());
        }
        Ok(settings)
    }

    fn images(&self) -> anyhow::Result<image_gc::Settings> {
        let mut settings = image_gc::Settings::default();
        let percent = |field: &str, given: Option<u8>, default: u8| {
            let percent = given.unwrap_or(default);
            ensure!(percent <= 100, "{field} {percent}: must be 0 to 100");
            Ok(percent)
        };
        let (high, low) = (self.image_gc_high_threshold_percent, self.image_gc_low_threshold_percent);
        settings.high_percent = percent("imageGCHighThresholdPercent", high, settings.high_percent)?;
        settings.low_percent = percent("imageGCLowThresholdPercent", low, settings.low_percent)?;
        let (high, low) = (settings.high_percent, settings.low_percent);
        ensure!(
            low < high,
            "imageGCLowThresholdPercent {low}: must be below imageGCHighThresholdPercent {high}"
        );
        if let Some(age) = &self.image_minimum_gc_age {
            settings.age_min = duration("imageMinimumGCAge", age)?;
        }
        if let Some(age) = &self.image_maximum_gc_age {
            settings.age_max = Some(duration("imageMaximumGCAge", age)?).filter(|age| !age.is_zero());
        }
        Ok(settings)
    }
}

fn signal(field: &str, name: &str) -> anyhow::Result<Signal> {
    let found = Signal::ALL.into_iter().find(|signal| signal.as_str() == name);
    found.with_context(|| {
        format!("{field} {name:?}: the signals are {}", Signal::ALL.map(Signal::as_str).join(", "))
    })
}

/// Amounts by signal; `None` for 0% and 100%, by which a threshold is switched off.
fn amounts(field: &str, given: &Amounts) -> anyhow::Result<BTreeMap<Signal, Option<Amount>>> {
    let parsed = given.iter().map(|(name, text)| {
        let amount = amount(text).map_err(|why| anyhow::anyhow!("{field} {name}: {why}"))?;
        Ok((signal(field, name)?, amount))
    });
    parsed.collect()
}

fn amount(text: &str) -> Result<Option<Amount>, String> {
    let Some(percent) = text.strip_suffix('%') else {
        let whole = quantity::parse_units(text)?;
        return if whole == 0 {
            Err("must be more than zero".to_owned())
        } else {
            Ok(Some(Amount::Whole(whole)))
        };
    };
    let percent: f64 = percent.parse().map_err(|_| format!("{text:?} is no percentage"))?;
    match percent {
        0.0 | 100.0 => Ok(None),
        within if (0.0..100.0).contains(&within) => Ok(Some(Amount::Percent(within))),
        _ => Err(format!("{text:?} is not between 0% and 100%")),
    }
}

/// A duration as Go writes it: `1m30s`, `0s`, `500ms`, `1.5h`.
fn duration(field: &str, text: &str) -> anyhow::Result<Duration> {
    let wrong = || format!("{field}: {text:?} is no duration such as 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).with_context(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => bail!(wrong()),
        };
        seconds += number.parse::<f64>().ok().with_context(wrong)? * scale;
        rest = after;
    }
    ensure!(!text.is_empty(), wrong());
    Duration::try_from_secs_f64(seconds).ok().with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn parse(text: &str) -> anyhow::Result<Configuration> {
        Configuration::parse(&format!("{HEAD}{text}"))
    }

    #[test]
    fn what_the_file_does_not_say_is_as_in_kubernetes() {
        assert_eq!(parse("").unwrap(), Configuration::default());
        let none = tempfile::tempdir().unwrap();
        assert_eq!(Configuration::load(none.path()).unwrap(), Configuration::default());
        let images = parse("imageGCHighThresholdPercent: 90\nimageMinimumGCAge: 1h\nimageMaximumGCAge: 0s\n");
        let images = images.unwrap().images;
        assert_eq!((images.high_percent, images.low_percent), (90, 80));
        assert_eq!((images.age_min, images.age_max), (Duration::from_secs(3600), None));
    }

    #[test]
    fn hard_thresholds_replace_the_defaults_unless_they_are_to_be_merged() {
        let text = "evictionHard: {memory.available: 200Mi, imagefs.available: 0%}\n";
        let hard = Threshold::hard(Signal::MemoryAvailable, Amount::Whole(200 << 20));
        assert_eq!(parse(text).unwrap().eviction.thresholds, [hard]);
        let merged =
            parse(&format!("{text}mergeDefaultEvictionSettings: true\n")).unwrap().eviction.thresholds;
        let signals: Vec<Signal> = merged.iter().map(|threshold| threshold.signal).collect();
        use Signal::{ImagefsInodesFree, MemoryAvailable, NodefsAvailable, NodefsInodesFree};
        assert_eq!(signals, [NodefsAvailable, NodefsInodesFree, ImagefsInodesFree, MemoryAvailable]);
    }

    #[test]
    fn soft_thresholds_have_a_grace_and_all_may_have_a_minimum_reclaim() {
        let text = "evictionSoft: {nodefs.available: 12.5%}\nevictionSoftGracePeriod: {nodefs.available: 1m30s}\n\
            evictionMinimumReclaim: {nodefs.available: 1Gi}\nevictionMaxPodGracePeriod: 20\n\
            evictionPressureTransitionPeriod: 0s\n";
        let settings = parse(text).unwrap().eviction;
        let soft = Threshold {
            signal: Signal::NodefsAvailable,
            amount: Amount::Percent(12.5),
            grace: Duration::from_secs(90),
            reclaim: Some(Amount::Whole(1 << 30)),
        };
        assert_eq!((settings.thresholds.len(), settings.thresholds.last()), (6, Some(&soft)));
        assert_eq!(settings.thresholds[1].reclaim, soft.reclaim);
        assert_eq!((settings.transition, settings.grace_max), (Duration::ZERO, Duration::from_secs(20)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            (
                "evictionHard: {memory.free: 1Gi}",
                "evictionHard \"memory.free\": the signals are memory.available",
            ),
            (
                "evictionHard: {memory.available: lots}",
                "evictionHard memory.available: \"lots\" is not a quantity",
            ),
            ("evictionHard: {memory.available: '0'}", "must be more than zero"),
            ("evictionHard: {nodefs.available: 101%}", "\"101%\" is not between 0% and 100%"),
            ("evictionHard: {nodefs.available: -1%}", "\"-1%\" is not between"),
            (
                "evictionSoft: {nodefs.available: 20%}",
                "evictionSoft nodefs.available: needs an evictionSoftGracePeriod",
            ),
            ("evictionPressureTransitionPeriod: 5", "evictionPressureTransitionPeriod"),
            ("evictionPressureTransitionPeriod: 5 minutes", "\"5 minutes\" is no duration"),
            ("imageGCLowThresholdPercent: 85", "must be below imageGCHighThresholdPercent 85"),
            ("imageGCHighThresholdPercent: 101", "must be 0 to 100"),
            ("cpuManagerPolicy: static", "cpuManagerPolicy"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
        let error = Configuration::parse("apiVersion: v1\nkind: Pod\n").unwrap_err().to_string();
        assert!(error.contains("apiVersion \"v1\""), "{error}");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "kind: [").unwrap();
        let error = Configuration::load(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("kubelet.yaml"), "{error}");
    }
}
