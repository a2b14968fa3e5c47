//! A namespace's policy, as its labels say.

use std::fmt;

use api::field::FieldError;
use serde_json::{Map, Value};

use super::checks::{self, Forbidden, Pod};

const LABEL_PREFIX: &str = "pod-security.kubernetes.io/";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// v1.N
    Minor(u32),
    Latest,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let digits = text.strip_prefix("v1.")?;
        let is_number = digits == "0" || !digits.starts_with('0');
        if !is_number || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().map(Self::Minor)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

impl LevelVersion {
    const PRIVILEGED: Self = Self { level: Level::Privileged, version: Version::Latest };

    /// What is wrong with a pod by this policy, in the order of the checks.
    pub(super) fn evaluate(self, pod: Pod<'_>) -> Violations {
        let minor = match self.version {
            Version::Minor(minor) => minor,
            Version::Latest => u32::MAX,
        };
        match self.level {
            Level::Privileged => Violations(Vec::new()),
            level => Violations(checks::run(level == Level::Restricted, minor, pod)),
        }
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
            Version::Latest => write!(f, "{level}:latest"),
        }
    }
}

/// All that is wrong with one pod.
pub(super) struct Violations(Vec<Forbidden>);

impl Violations {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `host namespaces, privileged`
    pub(super) fn reasons(&self) -> String {
        self.0.iter().map(|one| one.reason).collect::<Vec<_>>().join(", ")
    }

    /// `host namespaces (hostNetwork=true), privileged (...)`
    pub(super) fn details(&self) -> String {
        self.0.iter().map(|one| format!("{} ({})", one.reason, one.detail)).collect::<Vec<_>>().join(", ")
    }
}

/// The three modes of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

impl Policy {
    /// Reads a namespace's labels. A policy comes back even with errors: enforced strictly, audited and warned of not at
    /// all where the label cannot be read.
    pub(super) fn parse(labels: &Map<String, Value>) -> (Self, Vec<FieldError>) {
        let none = LevelVersion::PRIVILEGED;
        let mut policy = Self { enforce: none, audit: none, warn: none };
        let mut errors = Vec::new();
        let label = |mode: &str| labels.get(&format!("{LABEL_PREFIX}{mode}")).and_then(Value::as_str);
        let mut has_enforce = false;
        for (mode, fallback, slot) in [
            ("enforce", Level::Restricted, &mut policy.enforce),
            ("audit", Level::Privileged, &mut policy.audit),
            ("warn", Level::Privileged, &mut policy.warn),
        ] {
            if let Some(value) = label(mode) {
                let parsed = Level::parse(value);
                has_enforce |= mode == "enforce" && parsed.is_some();
                if parsed.is_none() {
                    errors.push(invalid(mode, value, "must be one of privileged, baseline, restricted"));
                }
                slot.level = parsed.unwrap_or(fallback);
            }
            let mode = format!("{mode}-version");
            if let Some(value) = label(&mode) {
                let parsed = Version::parse(value);
                if parsed.is_none() {
                    errors.push(invalid(&mode, value, "must be \"latest\" or \"v1.x\""));
                }
                slot.version = parsed.unwrap_or(Version::Latest);
            }
        }
        if label("warn").is_none() && has_enforce && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label("warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    /// Nothing is enforced, audited or warned of.
    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|mode| mode.level == Level::Privileged)
    }
}

fn invalid(mode: &str, value: &str, why: &str) -> FieldError {
    FieldError::invalid(format!("metadata.labels[{LABEL_PREFIX}{mode}]"), value, why)
}
